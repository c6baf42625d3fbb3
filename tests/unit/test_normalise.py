"""Normalisation against the truth of a phantom, and refusal of what is not an upright brain."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainlm.atlas import Atlas
from brainlm.config import parse_config
from brainlm.errors import BrainLMError, RecordingError
from brainlm.preprocess.io.derivatives import read_own_sidecar, write_volume
from brainlm.preprocess.motion.brain_mask import brain_mask
from brainlm.preprocess.normalise import registration
from brainlm.preprocess.normalise.agreement import RefusedFit, check_image, check_pose
from brainlm.preprocess.normalise.boundary import find_boundary
from brainlm.preprocess.normalise.normalise_text import describe_ways
from brainlm.preprocess.normalise.pose import axis_turns
from brainlm.preprocess.normalise.registration import (
    Normalisation,
    as_normalisation,
    choose_way,
    fit_ways,
    normalise,
)
from brainlm.preprocess.normalise.template import load_template
from brainlm.preprocess.normalise.tissue_fit import (
    COSINES,
    Image,
    Problem,
    State,
    grid_of,
    smooth_tissues,
)
from brainlm.preprocess.normalise.warp import load_normalisation
from brainlm.preprocess.stages.context import Context
from brainlm.preprocess.stages.normalise_stage import run_normalise

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from phantom import make_head, make_phantom

SEED, BEND_MM = 1, 2.5
SIX = Atlas("six", "MNI152NLin2009aSym", 6, None, "ab" * 32, None, (), "", "")


@pytest.fixture(scope="module")
def phantom():
    still = np.repeat(np.eye(4)[None], 4, axis=0)
    return make_phantom("demo", 4, seed=SEED, motion=still, bend_mm=BEND_MM)


@pytest.fixture(scope="module")
def reference(phantom):
    return phantom.volumes.mean(axis=0)


@pytest.fixture(scope="module")
def template():
    return load_template("MNI152NLin2009aSym")


@pytest.fixture(scope="module")
def fitted(phantom, reference, template):
    return normalise(reference, phantom.affine, template)


def _error(result, phantom, template):
    index = np.argwhere(template.mask)[::11, ::-1]
    points = index @ template.affine[:3, :3].T + template.affine[:3, 3]
    return np.linalg.norm(result(points) - phantom.to_reference(points), axis=1).mean()


def _dice(result, phantom, template):
    """Of the template's brain with the phantom's own, brought there, inside the field of view."""
    index = np.indices(template.mask.shape)[:, ::2, ::2, ::2].reshape(3, -1).T
    places = result(index[:, ::-1] @ template.affine[:3, :3].T + template.affine[:3, 3])
    inverse = np.linalg.inv(phantom.affine)
    voxels = (places @ inverse[:3, :3].T + inverse[:3, 3])[:, ::-1]
    inside = ((voxels >= 0) & (voxels <= np.array(phantom.brain.shape) - 1)).all(axis=1)
    shares = ndimage.map_coordinates(np.float32(phantom.brain), voxels[inside].T, order=1)
    found = shares > 0.5
    brain = template.mask[tuple(index[inside].T)]
    return 2 * (found & brain).sum() / (found.sum() + brain.sum())


def test_error_without_t1w(fitted, phantom, template):
    assert fitted.method == "direct"
    assert _error(fitted, phantom, template) <= 1.0
    assert _dice(fitted, phantom, template) >= 0.98


def test_lost_signal_does_not_pull(fitted, phantom, reference, template):
    """Nine tenths of the signal above the nose are lost; the fit had been 6 mm off there."""
    index = np.argwhere(template.mask)[::3, ::-1]
    points = index @ template.affine[:3, :3].T + template.affine[:3, 3]
    place, nose = phantom.to_reference, np.array([[0.0, 40, -24]])
    voxels = np.moveaxis(np.indices(reference.shape)[::-1], 0, -1)
    away = voxels @ phantom.affine[:3, :3].T + phantom.affine[:3, 3] - place(nose)
    lost = 0.9 * np.exp(-(away**2).sum(axis=-1) / 2 / 15**2)
    result = normalise(reference * (1 - lost), phantom.affine, template)
    straight = replace(result, coefficients=np.zeros_like(result.coefficients))
    near = points[np.linalg.norm(points - nose, axis=1) < 24]
    bent, before = (np.linalg.norm(fit(near) - place(near), axis=1) for fit in (result, straight))
    assert len(near) > 500
    assert bent.mean() <= before.mean() + 0.5
    assert bent.max() <= 6
    assert _error(result, phantom, template) <= 1.2


@pytest.mark.parametrize(("step_mm", "margin_mm"), [(4.0, 0.0), (4.0, 6.0), (8.0, 3.0)])
def test_a_bend_is_the_same_on_every_grid(template, step_mm, margin_mm):
    """It had been read in another box than it was fitted in through a T1w image."""
    bend = np.random.default_rng(5).normal(size=(3, *COSINES[::-1]))
    fit = as_normalisation(template, State(np.eye(4), bend), "direct")
    grid = grid_of(template, step_mm, margin_mm)
    found = np.moveaxis(grid.bend(bend), 0, -1)[grid.inside]
    np.testing.assert_allclose(found, fit.bend(grid.points), atol=1e-4)


@pytest.fixture(scope="module")
def anatomy():
    """The head's T1w image; the head moved by 12 mm and 5 degrees between it and the run."""
    image, _, affine = make_head(SEED, BEND_MM, "t1w")
    moved = np.eye(4)
    moved[:3, :3] = Rotation.from_euler("x", 5, degrees=True).as_matrix()
    moved[:3, 3] = 2, 0, -12
    return {"t1w": image, "t1w_affine": moved @ affine}


@pytest.fixture(scope="module")
def ways(phantom, reference, template, anatomy):
    return fit_ways(reference, phantom.affine, template, **anatomy)


def test_the_nearer_way_is_taken(ways, phantom, template):
    errors = {way: _error(fit, phantom, template) for way, fit in ways.items()}
    assert errors["t1w"] <= 0.65 < 0.8 < errors["direct"] <= 1.3
    assert _dice(ways["t1w"], phantom, template) >= 0.98
    taken = choose_way(ways, insist=False)
    assert taken.method == "t1w"
    assert taken.quality["boundary_t1w"] > taken.quality["boundary_direct"]
    words = describe_ways(taken.quality)
    assert f"{taken.quality['boundary_t1w']:.3f} through the T1w, correlation" in words


@pytest.mark.parametrize(
    ("border", "insist", "bend_mm", "way"),
    [(0.7, False, 3, "t1w"), (0.5, False, 3, "direct"), (0.5, True, 3, "t1w"),
     (0.5, False, 9, "t1w"), (0.1, True, 3, "direct"), (0.1, False, 9, "direct")],
)  # fmt: skip
def test_which_way_is_taken(border, insist, bend_mm, way, ways):
    """By the border's contrast, unless one is insisted on or the direct fit is refused."""
    figures = {"boundary_t1w": border, "boundary_direct": 0.6}
    fits = {name: replace(fit, quality=fit.quality | figures) for name, fit in ways.items()}
    fits["direct"].quality["bend_rms_mm"] = bend_mm
    assert choose_way(fits, insist).method == way


@pytest.fixture(scope="module")
def found(ways, template, anatomy):
    """The T1w image, and where the template lies in it."""
    start = State(ways["direct"].affine, ways["direct"].coefficients * 0)
    return registration.fit_anatomy(template, start, **anatomy)


@pytest.fixture(scope="module")
def boundary(template, found):
    return find_boundary(template, *found)


@pytest.mark.parametrize("shift", [(3.0, -2, 2, 0, 0, 0), (0, 0, 0, 2.0, -1, 1.5)])
def test_the_border_brings_a_moved_image_back(shift, boundary, ways, phantom, reference):
    """From 4 mm, or 3 degrees; where it brings points is where the unmoved image has them."""
    image = Image(reference, phantom.affine)
    fit, turn = ways["t1w"], np.eye(4)
    middle = fit(boundary.inner).mean(axis=0)
    turn[:3, :3] = Rotation.from_euler("xyz", shift[3:], degrees=True).as_matrix()
    turn[:3, 3] = shift[:3] + middle - turn[:3, :3] @ middle
    away = replace(fit, affine=turn @ fit.affine)
    assert boundary.contrast(image, away) < boundary.contrast(image, fit) - 0.05
    move = boundary.align(image, away)
    back = replace(away, affine=move @ away.affine)
    assert np.linalg.norm(back(boundary.inner) - fit(boundary.inner), axis=1).max() < 0.3
    assert np.allclose(move[:3, :3] @ turn[:3, :3], np.eye(3), atol=0.02)


def test_a_t1w_without_white_matter_is_named(template, found):
    image, there = found
    inverted = Image(image.data.max() - image.data, image.affine)
    with pytest.raises(RecordingError, match="white matter is not brighter than grey"):
        find_boundary(template, inverted, there)


def test_quality_is_reported(fitted):
    assert fitted.quality["mask_dice"] > 0.95
    assert fitted.quality["correlation"] > fitted.quality["correlation_affine"]
    assert fitted.quality["jacobian_min"] > 0.25
    assert all(np.isfinite(value) for value in fitted.quality.values())


def test_survives_the_disk(fitted, tmp_path):
    fitted.save(tmp_path / "xfm.npz")
    again = Normalisation.load(tmp_path / "xfm.npz")
    points = np.random.default_rng(0).uniform(-60, 60, (50, 3))
    np.testing.assert_array_equal(again(points), fitted(points))
    assert again.quality == fitted.quality
    assert again.method == fitted.method


def test_a_file_of_something_else_is_an_error(tmp_path):
    (tmp_path / "xfm.npz").write_text("no")
    with pytest.raises(BrainLMError, match=r"xfm\.npz"):
        Normalisation.load(tmp_path / "xfm.npz")


def _turned(turn, image, affine):
    """The affine of a header that is wrong by a turn about the middle of the image."""
    middle = affine[:3, :3] @ ((np.array(image.shape)[::-1] - 1) / 2) + affine[:3, 3]
    out = np.eye(4)
    out[:3, :3] = turn @ affine[:3, :3]
    out[:3, 3] = turn @ (affine[:3, 3] - middle) + middle
    return out


@pytest.mark.parametrize("turn", [(180, "x"), (90, "z"), (-90, "y"), (120, "xyz")])
def test_a_turned_image_fails_and_the_reason_says_how(turn, phantom, reference, template):
    degrees, axes = turn
    vector = np.array([axis in axes for axis in "xyz"]) * np.deg2rad(degrees) / len(axes) ** 0.5
    wrong = Rotation.from_rotvec(vector).as_matrix().round()
    with pytest.raises(RecordingError, match="orientation is wrong in the header") as error:
        normalise(reference, _turned(wrong, reference, phantom.affine), template)
    assert error.value.status == "registration_failed"
    words = f"fits turned by {degrees}° about {axes}"
    words = words if len(axes) == 1 else "with the head's right, front and top along its"
    assert words in error.value.reason


@pytest.mark.parametrize("order", [(slice(None, None, -1),), (slice(None), slice(None, None, -1))])
def test_a_mirrored_image_fails(order, phantom, reference, template):
    with pytest.raises(RecordingError, match=r"or mirrored in [yz]: .*orientation is wrong"):
        normalise(reference[order], phantom.affine, template)


@pytest.mark.parametrize(("axis", "degrees"), [("x", 65), ("y", -85), ("z", 170), ("x", 50)])
def test_a_fit_that_turned_the_head_over_is_refused(axis, degrees):
    """A thin slab on its side may be found by the fit itself: the header is wrong all the same."""
    found = np.eye(4)
    found[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix() @ np.diag(
        [0.9, 1.05, 1.0]
    )
    fit = SimpleNamespace(affine=found)
    if degrees == 50:  # a head that nods far
        check_pose(0.4, None, fit)
        return
    nearest = 90 * round(degrees / 90)
    with pytest.raises(
        RefusedFit, match=f"turned by {nearest}° about {axis}.*wrong in the header"
    ):
        check_pose(0.4, None, fit)
    with pytest.raises(RefusedFit, match="or it is no whole brain"):
        check_pose(0.3, None, fit)
    with pytest.raises(RefusedFit, match="does not look like a brain"):
        check_pose(0.1, None, fit)


@pytest.mark.parametrize("shift_mm", [500.0, 1e12])
def test_a_step_out_of_the_image_costs_more_than_any_fit(phantom, reference, template, shift_mm):
    """As thin slabs make the first steps take: no error, and the step is halved."""
    grid = grid_of(template, 12.0, 8.0)
    tissue = smooth_tissues(template, grid, 12.0)
    problem = Problem(Image(reference, phantom.affine), 12.0, grid, tissue)
    here = State(np.eye(4), np.zeros((3, *COSINES[::-1])))
    far = np.eye(4)
    far[2, 3] = shift_mm
    assert problem.measure(replace(here, affine=far)).cost > problem.measure(here).cost


def test_the_24_turns():
    turns = axis_turns()
    assert len({tuple(turn.ravel()) for turn in turns}) == 24
    np.testing.assert_array_equal(turns[0], np.eye(3))
    assert all(np.allclose(turn @ turn.T, np.eye(3)) for turn in turns)
    assert all(np.linalg.det(turn) > 0 for turn in turns)


def test_a_refused_fit_is_kept_to_look_at_and_replaces_an_older_one(tmp_path, phantom, reference):
    config = parse_config(
        {"results": str(tmp_path), "cohorts": [{"name": "a", "folder": str(tmp_path)}]}
    )
    context = Context(config, config.cohorts[0], SIX)
    run = tmp_path / "bold.nii"
    entry = SimpleNamespace(recording_id="sub-01_task-rest", path=run, t1w=None)
    files = context.files(entry)
    write_volume(files.boldref, reference[::-1], phantom.affine, space="scanner")
    write_volume(files.mask, phantom.brain[::-1], phantom.affine, space="scanner")
    files.normalisation.write_text("of an earlier run")
    with pytest.raises(RecordingError, match="orientation is wrong"):
        run_normalise(entry, context)
    assert not files.normalisation.exists()
    upright = load_normalisation(files.refused)
    assert np.isfinite(upright(np.zeros((1, 3)))).all()
    assert read_own_sidecar(files.refused)["Template"] == "MNI152NLin2009aSym"


@pytest.mark.parametrize(
    "what", ["empty", "nan", "noise", "ball", "box", "noise in a head", "half", "thick"]
)
def test_what_is_not_a_brain_fails(what, phantom, reference, template):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=reference.shape)
    place = (np.indices(reference.shape).T - (np.array(reference.shape) - 1) / 2) * 4
    image = {
        "empty": reference * 0,
        "nan": reference * np.nan,
        "noise": noise**2,
        "ball": 1000 * (np.linalg.norm(place, axis=-1).T < 65) + 10 * noise,
        "box": 1000 * (np.abs(place).max(axis=-1).T < 60) + 10 * noise,
        "noise in a head": phantom.brain * (800 + 500 * ndimage.gaussian_filter(noise, 1.5)),
        "half": reference
        * (np.arange(reference.shape[0]) > reference.shape[0] // 2)[:, None, None],
        "thick": reference,
    }[what]
    affine = phantom.affine @ np.diag([1, 1, 1.5 if what == "thick" else 1, 1])
    with pytest.raises(RecordingError) as error:
        normalise(image, affine, template)
    assert error.value.status == "registration_failed"


@pytest.mark.parametrize(("axis", "share"), [(0, 0.4), (1, 0.45), (1, 0.65), (2, 0.4), (2, 0.6)])
def test_a_brain_that_is_wrapped_around_is_refused(axis, share, phantom, reference):
    image = np.pad(reference, ((4, 4), (0, 0), (0, 0)))  # with room above and below
    rolled = np.roll(image, round(share * image.shape[axis]), axis)
    with pytest.raises(RecordingError, match=rf"along {'zyx'[axis]} .*wrapped around"):
        check_image(rolled, phantom.affine, None)


@pytest.mark.parametrize("part", [np.s_[10:26], np.s_[:, 20:], np.s_[:, :, :22]])
def test_a_brain_that_is_partly_outside_is_not_wrapped_around(part, phantom, reference):
    check_image(reference[part], phantom.affine, None)


@pytest.mark.parametrize(
    ("use", "damage", "words"),
    [(True, "side", "fit is worse"), ("auto", "side", "fit is worse"),
     ("auto", "distorted", "0.700 directly and 0.600 through the T1w"),
     ("auto", "empty", "every voxel is 1"), ("auto", "cut", "ends early")],
)  # fmt: skip
def test_a_t1w_that_does_not_help_costs_no_recording(
    tmp_path, phantom, reference, fitted, monkeypatch, use, damage, words
):
    """Of a head on its side, empty, or unreadable: the fit is direct, with a warning."""
    figures = {"boundary_direct": 0.7, "boundary_t1w": 0.6,
               "correlation_direct": 0.9, "correlation_t1w": 0.8}  # fmt: skip

    def fit(reference, affine, template, *, mask, t1w=None, t1w_affine=None, insist=False):
        assert insist is (t1w is not None and use is True)
        if t1w is not None and damage == "side":
            raise RefusedFit("through the T1w image the fit is worse", fitted)
        return replace(fitted, quality=fitted.quality | (figures if t1w is not None else {}))

    monkeypatch.setattr(registration, "normalise", fit)
    image, _, affine = make_head(SEED, BEND_MM, "t1w")
    nib.save(nib.Nifti1Image((image * 0 + 1 if damage == "empty" else image).T, affine),
             tmp_path / "t1w.nii")  # fmt: skip
    if damage == "cut":
        os.truncate(tmp_path / "t1w.nii", 5000)
    config = parse_config({
        "results": str(tmp_path), "preprocess": {"use_t1w": use},
        "cohorts": [{"name": "a", "folder": str(tmp_path)}],
    })  # fmt: skip
    context = Context(config, config.cohorts[0], SIX)
    entry = SimpleNamespace(
        recording_id="sub-01_task-rest", path=tmp_path / "bold.nii", t1w=tmp_path / "t1w.nii"
    )
    files = context.files(entry)
    write_volume(files.boldref, reference, phantom.affine, space="scanner")
    write_volume(files.mask, phantom.brain, phantom.affine, space="scanner")
    made = run_normalise(entry, context)
    assert made["method"] == "direct"
    assert made["warnings"][0].startswith("T1w: not used, the fit is direct:")
    assert words in made["warnings"][0]


def test_brain_mask_overlaps_the_truth(phantom, reference):
    for image in (reference, reference * phantom.brain):
        found = brain_mask(image, phantom.affine)
        assert 2 * (found & phantom.brain).sum() / (found.sum() + phantom.brain.sum()) >= 0.98
