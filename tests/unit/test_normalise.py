"""Normalisation against the truth of a phantom, and refusal of what is not an upright brain."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainlm.atlas import Atlas
from brainlm.config import parse_config
from brainlm.errors import BrainLMError, RecordingError
from brainlm.preprocess.io.derivatives import write_volume
from brainlm.preprocess.motion.brain_mask import brain_mask
from brainlm.preprocess.normalise.registration import Normalisation, normalise
from brainlm.preprocess.normalise.template import load_template
from brainlm.preprocess.normalise.warp import load_normalisation
from brainlm.preprocess.stages.context import Context
from brainlm.preprocess.stages.normalise_stage import run_normalise

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from phantom import make_head, make_phantom

SEED, BEND_MM = 1, 2.5


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
    assert _error(fitted, phantom, template) <= 1.3
    assert _dice(fitted, phantom, template) >= 0.98


def test_error_with_t1w(phantom, reference, template):
    """The head moved between the T1w and the run by 12 mm and 5 degrees."""
    image, _, affine = make_head(SEED, BEND_MM, "t1w")
    moved = np.eye(4)
    moved[:3, :3] = Rotation.from_euler("x", 5, degrees=True).as_matrix()
    moved[:3, 3] = 2, 0, -12
    result = normalise(reference, phantom.affine, template, t1w=image, t1w_affine=moved @ affine)
    assert result.method == "t1w"
    assert _error(result, phantom, template) <= 0.7
    assert _dice(result, phantom, template) >= 0.98


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


@pytest.mark.parametrize("flip", [(slice(None, None, -1),), (slice(None), slice(None, None, -1))])
def test_a_flipped_image_fails(flip, phantom, reference, template):
    with pytest.raises(RecordingError, match="orientation is wrong") as error:
        normalise(reference[flip], phantom.affine, template)
    assert error.value.status == "registration_failed"


def test_a_refused_fit_is_kept_to_look_at_and_replaces_an_older_one(tmp_path, phantom, reference):
    atlas = Atlas("six", "MNI152NLin6Asym", 6, None, "ab" * 32, None, (), "", "")
    config = parse_config(
        {"results": str(tmp_path), "cohorts": [{"name": "a", "folder": str(tmp_path)}]}
    )
    context = Context(config, config.cohorts[0], atlas)
    entry = SimpleNamespace(recording_id="sub-01_task-rest", t1w=None)
    files = context.files(entry)
    write_volume(files.boldref, reference[::-1], phantom.affine, space="scanner")
    write_volume(files.mask, phantom.brain[::-1], phantom.affine, space="scanner")
    files.normalisation.write_text("of an earlier run")
    with pytest.raises(RecordingError, match="orientation is wrong"):
        run_normalise(entry, context)
    assert not files.normalisation.exists()
    upright = load_normalisation(files.refused)
    assert np.isfinite(upright(np.zeros((1, 3)))).all()


@pytest.mark.parametrize("what", ["empty", "nan", "noise", "ball", "box"])
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
    }[what]
    with pytest.raises(RecordingError) as error:
        normalise(image, phantom.affine, template)
    assert error.value.status == "registration_failed"


def test_brain_mask_overlaps_the_truth(phantom, reference):
    for image in (reference, reference * phantom.brain):
        found = brain_mask(image, phantom.affine)
        assert 2 * (found & phantom.brain).sum() / (found.sum() + phantom.brain.sum()) >= 0.98


def test_template_spaces():
    stands_in = load_template("MNI152NLin6Asym")
    assert stands_in.image_space == "MNI152NLin2009aSym"
    assert "NLin6Asym" in stands_in.note
    assert not load_template("MNI152NLin2009aSym").note
    with pytest.raises(BrainLMError, match="not known"):
        load_template("MNI305")
