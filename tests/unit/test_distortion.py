"""Susceptibility distortion on images whose field is known, made by pushing signal about."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import phantom as ph
from distorted import (
    READOUT_S,
    RUN,
    TIE,
    Head,
    scan_distorted,
    write,
    write_map,
    write_pair,
    write_run,
)
from scipy import ndimage

from brainlm.atlas import Atlas
from brainlm.cohort.recordings import Entry
from brainlm.config import parse_config
from brainlm.errors import RecordingError
from brainlm.preprocess.distortion.correct import find_correction
from brainlm.preprocess.distortion.field_map import read_field_map
from brainlm.preprocess.distortion.shift import Shift
from brainlm.preprocess.distortion.sources import Map, Pair, find_sources, read_readout
from brainlm.preprocess.io.derivatives import read_own_sidecar, write_volume
from brainlm.preprocess.kernels.sampling import sample, sample_parcels
from brainlm.preprocess.kernels.unwrap import unwrap
from brainlm.preprocess.motion.brain_mask import brain_mask
from brainlm.preprocess.normalise.normalise_text import describe_normalisation
from brainlm.preprocess.normalise.template import load_template
from brainlm.preprocess.normalise.undistorted import place_points
from brainlm.preprocess.normalise.warp import load_normalisation
from brainlm.preprocess.stages.context import Context
from brainlm.preprocess.stages.normalise_stage import run_normalise
from brainlm.steps import trigger

SIX = Atlas("six", "MNI152NLin2009aSym", 6, None, "ab" * 32, None, (), "", "")
HEADS = {peak: Head("demo", 0, peak) for peak in (6.0, 12.0)}


def correct(folder: Path, peak_mm: float, method: str = "auto"):
    image, affine = HEADS[peak_mm].scan("j")
    return find_correction(folder / RUN, image, affine, brain_mask(image, affine), method)


def test_a_pair_of_opposite_readouts_gives_the_field(tmp_path):
    peak_mm = 12.0  # 6 mm with one image, below
    write_run(tmp_path, HEADS[6.0])
    write_pair(tmp_path, HEADS[peak_mm], moved=True)
    found, notes = correct(tmp_path, peak_mm)
    assert not notes and found.method == "pepolar" and len(found.files) == 2
    error, before = (HEADS[peak_mm].error_mm(shift) for shift in (found.shift, None))
    assert error.mean() <= 0.5 and error.mean() < 0.3 * before.mean()
    figures = found.figures
    assert figures["distortion_after"] > figures["distortion_before"]
    assert figures["distortion_peak_mm"] == pytest.approx(peak_mm, rel=0.2)


@pytest.mark.parametrize("readout_s", [READOUT_S, 0.03])
def test_one_image_of_opposite_readout_is_paired_with_the_run(tmp_path, readout_s):
    write_run(tmp_path, HEADS[6.0])
    write_pair(tmp_path, HEADS[6.0], directions=("j-",))
    if readout_s != READOUT_S:  # less displaced than the run
        image, affine = scan_distorted(
            0, "demo", lambda p: HEADS[6.0].field(p) * readout_s / READOUT_S, "j-"
        )
        stated = {"PhaseEncodingDirection": "j-", "TotalReadoutTime": readout_s}
        tie = {"IntendedFor": ["bids::" + RUN]}
        write(tmp_path, "sub-01/fmap/sub-01_dir-AP_epi.nii.gz", image, affine, **stated, **tie)
    found, notes = correct(tmp_path, 6.0)
    assert not notes and len(found.files) == 1
    assert HEADS[6.0].error_mm(found.shift).mean() <= 0.5


@pytest.mark.parametrize(
    ("kind", "peak_mm", "about"),
    [("phasediff", 12.0, {}), ("phases", 6.0, {}), ("fieldmap", 12.0, {"Units": "rad/s"})],
)  # fmt: skip
def test_a_field_map_gives_the_field_where_the_head_is_now(tmp_path, kind, peak_mm, about):
    write_run(tmp_path, HEADS[6.0])
    write_map(tmp_path, HEADS[peak_mm], kind, **about)
    found, notes = correct(tmp_path, peak_mm)
    assert not notes and found.method == kind
    assert HEADS[peak_mm].error_mm(found.shift).mean() <= 0.5


def test_what_is_undone_is_the_image_without_distortion():
    image, affine = HEADS[12.0].scan("j")
    still, _ = HEADS[12.0].scan(None)
    there, shift = HEADS[12.0].brain, Shift(HEADS[12.0].mm(), affine, 1)
    undone = shift.undo(image)
    r_before, r_after = (np.corrcoef(one[there], still[there])[0, 1] for one in (image, undone))
    assert r_before < 0.85 and r_after > 0.97
    whole = ndimage.binary_erosion(there, iterations=2)
    assert undone[whole].mean() == pytest.approx(still[whole].mean(), rel=0.01)
    plain = undone / shift.stretch  # signal that piled up is not where it belongs
    assert np.abs(plain - still)[whole].mean() > 1.5 * np.abs(undone - still)[whole].mean()


def test_phase_is_unwrapped_to_what_it_was():
    z, y, x = np.mgrid[-12:12, -12:12, -12:12]
    truth = 0.02 * (x**2 + y**2) + 0.5 * z
    inside = x**2 + y**2 + z**2 < 121
    wrapped = (truth + np.pi) % (2 * np.pi) - np.pi
    out, done = np.zeros(truth.shape), np.zeros(truth.shape, bool)
    unwrap(wrapped, inside, (12, 12, 12), out, done)
    assert (done == inside).all() and np.ptp(truth[inside]) > 2 * np.pi
    np.testing.assert_allclose((out - truth)[inside], (out - truth)[12, 12, 12], atol=1e-9)


# ---- what belongs to a run, and what cannot be believed


def refuse(folder: Path, peak_mm: float = 6.0, method: str = "auto") -> str:
    found, notes = correct(folder, peak_mm, method)
    assert found is None and len(notes) == 1
    kind, _, words = notes[0].partition(": not corrected: ")
    assert kind == "distortion"
    return words


def test_without_field_maps_nothing_is_corrected_and_nothing_warned_of(tmp_path):
    write_run(tmp_path, HEADS[6.0])
    assert correct(tmp_path, 6.0) == (None, [])
    write_pair(tmp_path, HEADS[6.0])
    assert correct(tmp_path, 6.0, "none") == (None, [])


@pytest.mark.parametrize(
    ("own", "about", "expected"),
    [
        ({"PhaseEncodingDirection": None}, {}, r"rest_bold.nii.gz: expected PhaseEncodingDirect"),
        ({"TotalReadoutTime": None}, {}, r"rest_bold.nii.gz: expected TotalReadoutTime .* none"),
        ({}, {"TotalReadoutTime": None}, r"_epi.nii.gz: expected TotalReadoutTime .* found none"),
        ({}, {"TotalReadoutTime": 50}, r"_epi.nii.gz: .* found 50; it looks like milliseconds"),
        ({}, {"TotalReadoutTime": "x"}, r"_epi.json: TotalReadoutTime is 'x', expected seconds"),
        ({"PhaseEncodingDirection": "j-"}, {"directions": ("j-",)}, r"against j-, found j-"),
        ({}, {"directions": ("i-",)}, r"expected an image read out against j, found i-"),
        ({}, {"IntendedFor": "func/sub-01_task-other_bold.nii.gz"}, r"to name this run"),
        ({"B0FieldSource": "pepolar"}, {}, r"B0FieldIdentifier there and B0FieldSource here"),
    ],
)
def test_what_contradicts_itself_is_a_warning_that_names_the_file(tmp_path, own, about, expected):
    import re

    write_run(tmp_path, HEADS[6.0], **own)
    write_pair(tmp_path, HEADS[6.0], **about)
    assert re.search(expected, refuse(tmp_path))


def test_a_correction_that_makes_the_image_worse_is_refused(tmp_path):
    write_run(tmp_path, HEADS[6.0])
    write_pair(tmp_path, HEADS[12.0])
    for path in (tmp_path / "sub-01/fmap").glob(
        "*.json"
    ):  # all directions are the wrong way round
        stated = json.loads(path.read_text())
        stated["PhaseEncodingDirection"] = {"j": "j-", "j-": "j"}[stated["PhaseEncodingDirection"]]
        path.write_text(json.dumps(stated))
    assert "to agree better with the one that the field was measured with" in refuse(
        tmp_path, 12.0
    )


@pytest.mark.parametrize(
    ("kind", "about", "expected"),
    [
        ("phasediff", {"EchoTime2": None}, "expected EchoTime1 and EchoTime2"),
        ("phasediff", {"EchoTime1": 4.92, "EchoTime2": 7.38}, "in seconds, found 4.92 and 7.38"),
        ("fieldmap", {"Units": "Hz", "other": True}, "expected the grid of"),
    ],
)
def test_field_maps_that_contradict_themselves_are_refused(tmp_path, kind, about, expected):
    write_run(tmp_path, HEADS[6.0])
    other = about.pop("other", False) if isinstance(about, dict) else False
    write_map(tmp_path, HEADS[6.0], kind, **about)
    if other:
        image, affine = HEADS[6.0].scan(None, True, "t1w")
        write(tmp_path, "sub-01/fmap/sub-01_magnitude.nii.gz", image[1:], affine,
              **TIE)  # fmt: skip
    assert expected in refuse(tmp_path)


def test_a_field_map_is_tied_by_identifier_before_anything_else(tmp_path):
    write_run(tmp_path, HEADS[6.0], B0FieldSource=["one", "two"])
    write_pair(tmp_path, HEADS[6.0], IntendedFor=None, B0FieldIdentifier="two")
    (source,), _ = find_sources(tmp_path / RUN, "auto")
    assert isinstance(source, Pair) and source.same is not None


@pytest.mark.parametrize(
    "name",
    ["bids::" + RUN, "bids:raw:" + RUN, RUN.removeprefix("sub-01/"), "./" + RUN, "/" + RUN,
     RUN.removeprefix("sub-01/").replace("/", "\\"), RUN.removesuffix(".gz")],
)  # fmt: skip
@pytest.mark.parametrize("others", [[], ["func/sub-01_task-other_bold.nii.gz"]])
def test_however_a_path_is_written_the_run_is_meant(tmp_path, name, others):
    write_run(tmp_path, HEADS[6.0])
    write_pair(tmp_path, HEADS[6.0], IntendedFor=[*others, name] if others else name)
    (source,), refused = find_sources(tmp_path / RUN, "auto")
    assert isinstance(source, Pair) and not refused
    elsewhere = tmp_path / RUN.replace("rest", "estrest")
    (tmp_path / RUN).rename(elsewhere)
    with pytest.raises(RecordingError, match="to name this run"):
        find_sources(elsewhere, "auto")


@pytest.mark.parametrize(("kind", "says"), [("phasediff", "phasediff"), ("phases", "phase2")])
def test_the_images_of_one_map_go_with_the_one_that_says_what_it_is_for(tmp_path, kind, says):
    write_run(tmp_path, HEADS[6.0])
    write_map(tmp_path, HEADS[6.0], kind)
    for path in sorted((tmp_path / "sub-01/fmap").glob("*.json")):
        stated = json.loads(path.read_text())
        if not path.stem.endswith(says):
            del stated["IntendedFor"]
        path.write_text(json.dumps(stated))
        if path.stem.endswith("magnitude1"):
            path.unlink()  # as converters leave it
    (source,), refused = find_sources(tmp_path / RUN, "auto")
    assert isinstance(source, Map) and source.kind == kind and not refused


def test_the_units_and_times_of_a_sidecar_are_those_of_the_standard(tmp_path):
    write_run(tmp_path, HEADS[6.0], TotalReadoutTime=None, EffectiveEchoSpacing=READOUT_S / 47)
    assert read_readout(tmp_path / RUN).total_s == pytest.approx(READOUT_S)  # 48 lines
    fields = []
    for unit in ("Hz", "rad/s", "T"):
        write_map(tmp_path, HEADS[6.0], "fieldmap", Units=unit)
        (source,), _ = find_sources(tmp_path / RUN, "auto")
        fields.append(read_field_map(source).hz)
    np.testing.assert_allclose(fields[1:], [fields[0]] * 2, rtol=1e-4, atol=1e-3)


def test_a_pair_stored_along_other_axes_gives_the_same_field(tmp_path):
    write_run(tmp_path, HEADS[6.0])
    image, affine = HEADS[6.0].scan("j-")
    stored = np.swapaxes(image, 1, 2)[:, :, ::-1]  # its x runs against the old y
    last = image.shape[1] - 1
    back = np.array([[0, 1, 0, 0], [-1, 0, 0, last], [0, 0, 1, 0], [0, 0, 0, 1]])
    about = {"PhaseEncodingDirection": "i", "TotalReadoutTime": READOUT_S} | TIE
    write(tmp_path, "sub-01/fmap/sub-01_dir-AP_epi.nii.gz", stored, affine @ back, **about)
    found, notes = correct(tmp_path, 6.0)
    assert not notes and HEADS[6.0].error_mm(found.shift).mean() <= 0.1


def test_images_that_name_no_run_are_used_where_the_configuration_asks_for_them(tmp_path):
    write_run(tmp_path, HEADS[6.0])
    write_pair(tmp_path, HEADS[6.0], IntendedFor=None)
    write_map(tmp_path, HEADS[6.0], "phasediff", IntendedFor=None)
    with pytest.raises(RecordingError, match="found 4 images in fmap/"):
        find_sources(tmp_path / RUN, "auto")
    for method, kind in (("pepolar", Pair), ("fieldmap", Map)):
        (source,), refused = find_sources(tmp_path / RUN, method)
        assert isinstance(source, kind) and not refused


def test_a_field_map_stands_in_for_a_pair_that_cannot_be_used(tmp_path):
    write_run(tmp_path, HEADS[6.0])
    write_pair(tmp_path, HEADS[6.0], directions=("j",))
    write_map(tmp_path, HEADS[6.0], "fieldmap")
    found, notes = correct(tmp_path, 6.0)
    assert found.method == "fieldmap" and len(notes) == 1
    assert notes[0].startswith("distortion: another field map is used: ")


def test_a_run_of_the_other_direction_next_to_it_serves_as_the_opposite(tmp_path):
    image, affine = HEADS[6.0].scan("j")
    other, _ = HEADS[6.0].scan("j-")
    stem = "sub-01/func/sub-01_task-rest_dir-"
    for label, one, direction in (("PA", image, "j"), ("AP", other, "j-")):
        about = {"PhaseEncodingDirection": direction, "TotalReadoutTime": READOUT_S}
        write(tmp_path, f"{stem}{label}_bold.nii.gz", np.stack([one] * 3), affine, **about)
    run = tmp_path / f"{stem}PA_bold.nii.gz"
    assert find_sources(run, "auto") == ([], [])
    (source,), _ = find_sources(run, "pepolar")
    assert source.opposite.path.name == "sub-01_task-rest_dir-AP_bold.nii.gz"
    found, notes = find_correction(run, image, affine, brain_mask(image, affine), "pepolar")
    assert not notes and HEADS[6.0].error_mm(found.shift).mean() <= 0.5


# ---- the whole way: a template point, the corrected image, the image as acquired


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """The normalise stage on a run with a pair of opposite readouts: figures, files, context."""
    folder, head = tmp_path_factory.mktemp("distortion"), HEADS[12.0]
    run = write_run(folder / "data", head)
    write_pair(folder / "data", head, moved=True)
    cohort = {"name": "c", "folder": str(folder / "data"), "layout": "bids", "role": "reference"}
    config = parse_config({"cohorts": [cohort], "results": str(folder / "results")})
    context = Context(config, config.cohorts[0], SIX)
    entry = Entry("sub-01_task-rest", "sub-01", None, "rest", None, run, RUN, None, 1, 1, "00000")
    image, affine = head.scan("j")
    files = context.files(entry)
    files.boldref.parent.mkdir(parents=True)
    write_volume(files.boldref, image, affine, space="scanner")
    write_volume(files.mask, brain_mask(image, affine), affine, space="scanner")
    return run_normalise(entry, context), files, context, entry


def test_the_template_is_fitted_to_the_corrected_image_and_read_from_the_distorted(stage):
    made, files, _, _ = stage
    assert not made["warnings"] and made["distortion_after"] > made["distortion_before"] + 0.02
    assert made["template_after"] > made["template_before"]
    fit, template = load_normalisation(files.normalisation), load_template(SIX.space)
    index = np.argwhere(template.mask)[::11, ::-1]
    points = index @ template.affine[:3, :3].T + template.affine[:3, 3]
    head = HEADS[12.0]
    still = ph.make_subject(head.seed, 2.5).place(points)
    truth = still + head.field(still)[:, None] * fit.shift.along
    world, gains = place_points(fit, points)
    np.testing.assert_array_equal(world, fit(points))
    error = np.linalg.norm(world - truth, axis=1)
    plain = np.linalg.norm(fit.fit(points) - truth, axis=1)
    assert error.mean() < 2 < plain.mean() - 0.5
    stretch = Shift(head.mm(), fit.shift.grid, 1).gains(still)
    assert np.corrcoef(gains, stretch)[0, 1] > 0.9


def test_sidecar_methods_and_page_say_what_was_corrected(stage):
    from brainlm.report.recording import _describe_distortion

    _, files, _, _ = stage
    told = read_own_sidecar(files.normalisation)["Distortion"]
    assert told["Method"] == "pepolar" and told["PhaseEncodingAxis"] == "j"
    assert told["Sources"][0].startswith("bids:raw:sub-01/fmap/sub-01_dir-")
    sentence = describe_normalisation(files, SIX)
    assert "estimated from images of opposite phase encoding" in sentence.text
    assert any(work.startswith("Andersson et al. 2003") for work in sentence.cites)
    (figure,) = _describe_distortion(files, SIX.space)
    assert 'over"' in figure.svg and "after the correction" in figure.caption


def test_a_study_without_correction_says_so_and_depends_on_nothing_new(stage):
    _, files, context, entry = stage
    options = context.config.preprocess.model_copy(update={"distortion": "none"})
    config = context.config.model_copy(update={"preprocess": options})
    plain, cohort = context.config, context.config.cohorts[0]
    triggers = {trigger("normalise", one, cohort=cohort) for one in (config, plain)}
    assert len(triggers) == 2
    for json_file in (context.cohort.folder / "sub-01/fmap").glob("*.json"):
        json_file.write_text(json_file.read_text().replace("0.05", "null"))
    made = run_normalise(entry, context)
    assert made["warnings"][0].startswith("distortion: not corrected: ")
    assert "expected TotalReadoutTime" in made["warnings"][0]
    sentence = describe_normalisation(files, SIX)
    assert sentence.text.endswith("Susceptibility distortion was not corrected.")
    assert not hasattr(load_normalisation(files.normalisation), "shift")


def test_gains_count_in_parcel_means_and_ones_change_nothing():
    rng = np.random.default_rng(0)
    volumes = rng.normal(100, 5, size=(4, 8, 9, 10)).astype(np.float32)
    points = rng.uniform(1, 6, size=(300, 3))
    labels, gains = rng.integers(0, 4, 300), rng.uniform(0.5, 2, 300).astype(np.float32)
    plain, _ = sample_parcels(volumes, np.eye(4), points, labels, 3)
    ones, _ = sample_parcels(volumes, np.eye(4), points, labels, 3, gains=np.ones(300))
    np.testing.assert_array_equal(ones, plain)
    weighted, coverage = sample_parcels(volumes, np.eye(4), points, labels, 3, gains=gains)
    values = sample(volumes, np.eye(4), points, gains=gains)
    np.testing.assert_allclose(values, sample(volumes, np.eye(4), points) * gains)
    for parcel in (1, 2, 3):
        np.testing.assert_allclose(
            weighted[:, parcel - 1], values[:, labels == parcel].mean(1), rtol=1e-5
        )
    assert (coverage == 1).all()
