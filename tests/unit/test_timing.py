"""A repetition time is believed only from what states it, and all statements must agree."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brainlm.errors import RecordingError
from brainlm.preprocess.io.read import open_bold, read_series

COUNT = 20
STEPS = [3.0 * k for k in range(COUNT)]


def write_run(
    folder: Path, header_tr: float = 1.0, unit: str = "sec", **sidecars: dict | str
) -> Path:
    """A BOLD run of sub-01 in its folder; sidecars by file name (``__`` is the empty own one)."""
    image = nib.Nifti1Image(np.zeros((16, 16, 16, COUNT), np.int16), np.diag([4.0, 4, 4, 1]))
    image.set_sform(image.affine, 1)
    image.header.set_xyzt_units("mm", unit)
    image.header["pixdim"][4] = header_tr
    path = folder / "sub-01/func/sub-01_task-rest_bold.nii.gz"
    path.parent.mkdir(parents=True)
    nib.save(image, path)
    for name, values in sidecars.items():
        target = path.with_name("sub-01_task-rest_bold.json" if name == "own" else name)
        target.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def refused(path: Path, *words: str, cohort_s: float | None = None) -> None:
    with pytest.raises(RecordingError) as caught:
        open_bold(path, repetition_time_s=cohort_s)
    assert caught.value.status == "bad_metadata"
    for word in words:
        assert word in caught.value.reason


@pytest.mark.parametrize(
    ("header_tr", "unit"),
    [(1.0, "sec"), (1.0, "unknown"), (1000.0, "msec"), (1e6, "usec"), (0.0, "sec"),
     (-2.0, "sec"), (np.nan, "sec"), (2.0, "hz"), (2.0, "ppm")],
)  # fmt: skip
def test_a_header_that_states_nothing_asks_for_both_keys(tmp_path, header_tr, unit):
    path = write_run(tmp_path, header_tr, unit)
    refused(path, "RepetitionTime", "repetition_time_s")
    assert open_bold(path, repetition_time_s=2.0).tr_s == 2.0
    assert open_bold(path, repetition_time_s=1.0).tr_s == 1.0


@pytest.mark.parametrize(
    ("header_tr", "unit", "seconds"),
    [(2.0, "sec", 2.0), (720.0, "msec", 0.72), (0.735, "unknown", 0.735), (735000, "usec", 0.735)],
)
def test_a_header_that_states_a_time_is_believed_with_a_warning(
    tmp_path, header_tr, unit, seconds
):
    run = open_bold(write_run(tmp_path, header_tr, unit))
    assert run.tr_s == seconds and any("from the header" in text for text in run.warnings)
    refused(run.path, "repetition_time_s", f"{seconds:g} s", cohort_s=2.5)


@pytest.mark.parametrize(
    ("sidecar", "seconds"),
    [
        ({"RepetitionTime": 2.5}, 2.5),
        ({"RepetitionTime": 2}, 2.0),
        ({"VolumeTiming": STEPS}, 3.0),
        ({"VolumeTiming": [0.5 + t for t in STEPS], "AcquisitionDuration": 2.0}, 3.0),
        ({"SamplingFrequency": 0.5}, 2.0),
        ({"SamplingFrequency": "TR", "RepetitionTime": 2.5}, 2.5),
        ({"SamplingFrequency": 0.4, "RepetitionTime": 2.5}, 2.5),
        ({"RepetitionTime": None, "VolumeTiming": STEPS}, 3.0),
    ],
)
def test_sidecars_state_it_in_three_ways(tmp_path, sidecar, seconds):
    path = write_run(tmp_path, own=sidecar)
    assert open_bold(path).tr_s == pytest.approx(seconds)
    assert open_bold(path, repetition_time_s=seconds).tr_s == pytest.approx(seconds)
    refused(path, "the cohort's repetition_time_s 4 s", cohort_s=4.0)


@pytest.mark.parametrize(
    ("sidecar", "words"),
    [
        ({"VolumeTiming": [t + 10 * (t > 30) for t in STEPS]}, "steps of 3 to 13 s"),
        ({"VolumeTiming": STEPS[::-1]}, "equal steps"),
        ({"VolumeTiming": [0.0] * COUNT}, "equal steps"),
        ({"VolumeTiming": STEPS[:-1]}, "19 times, the recording 20 volumes"),
        ({"VolumeTiming": STEPS, "RepetitionTime": 2.0}, "VolumeTiming of the sidecar 3 s"),
        ({"VolumeTiming": 3.0}, "VolumeTiming is 3.0"),
        ({"VolumeTiming": [1e-3 * t for t in STEPS]}, "expected 0.2 to 10 s"),
        ({"SamplingFrequency": 2.0, "RepetitionTime": 2.0}, "SamplingFrequency of the sidecar"),
        ({"SamplingFrequency": 0}, "expected Hz"),
        ({"RepetitionTime": "2.0"}, "expected seconds"),
        ({"RepetitionTime": True}, "expected seconds"),
        ({"RepetitionTime": [2.0]}, "expected seconds"),
        ('{"RepetitionTime": NaN}', "expected seconds"),
        ('{"RepetitionTime": 1' + "0" * 400 + "}", "expected seconds"),
        ('{"RepetitionTime": 2.0, "RepetitionTime": 3.0}', "appears twice"),
    ],
)
def test_statements_that_cannot_be_true_are_refused(tmp_path, sidecar, words):
    refused(write_run(tmp_path, own=sidecar), words)


@pytest.mark.parametrize("slices", [[0.0, 1.5, 3.0], [0, 500, 1000], [2.1]])
def test_slices_are_taken_within_the_repetition_time(tmp_path, slices):
    own = {"RepetitionTime": 2.0, "SliceTiming": slices}
    refused(write_run(tmp_path / "1", own=own), f"a slice at {max(slices):g} s", "2 s apart")
    for number, times in enumerate(([0, 0.7, 2.0], ["0", 3000.0], [0.5]), 2):  # words are not used
        run = open_bold(write_run(tmp_path / str(number), own=own | {"SliceTiming": times}))
        assert run.tr_s == 2.0 and not any("slice times" in text for text in run.warnings)


def test_slice_times_that_cannot_be_true_are_a_warning_where_the_time_is_confirmed(tmp_path):
    own = {"RepetitionTime": 2.0, "SliceTiming": [0, 500, 1000]}
    alone, confirmed = (write_run(tmp_path / name, tr, own=own)
                        for name, tr in (("a", 1.0), ("b", 2.0)))  # fmt: skip
    for run in (open_bold(alone, repetition_time_s=2.0), open_bold(confirmed)):
        assert run.tr_s == 2.0 and "slice times" in " ".join(run.warnings)


def test_a_header_may_confirm_but_not_contradict_a_sidecar(tmp_path):
    path = write_run(tmp_path, 1.794, own={"RepetitionTime": 2.0})
    refused(path, "the sidecar says 2 s", "the header 1.794 s", "RepetitionTime")
    refused(path, "repetition_time_s", cohort_s=2.0)


def test_a_header_may_have_the_acquisition_time_of_sparse_volumes(tmp_path):
    path = write_run(tmp_path, 2.0, own={"VolumeTiming": STEPS, "AcquisitionDuration": 2.0})
    run = open_bold(path)
    assert run.tr_s == 3.0 and any("the header says 2" in text for text in run.warnings)


def test_a_header_cannot_have_a_longer_time_than_sparse_volumes(tmp_path):
    refused(write_run(tmp_path, 4.0, own={"VolumeTiming": STEPS}), "the header 4 s")


def test_other_sidecars_of_the_run_are_read(tmp_path):
    path = write_run(tmp_path, **{"sub-01_task-rest_space-MNI_desc-preproc_bold.json":
                                  {"RepetitionTime": 2.2}})  # fmt: skip
    assert open_bold(path).tr_s == 2.2
    refused(path, "sub-01_task-rest_space-MNI_desc-preproc_bold.json says 2.2", cohort_s=2.0)
    for other in ("sub-01_task-nback_bold", "sub-01_task-rest_run-2_bold",
                  "sub-01_task-rest_physio"):  # fmt: skip
        path.with_name(f"{other}.json").write_text('{"RepetitionTime": 5.0}')
    assert open_bold(path).tr_s == 2.2


def test_a_series_has_the_time_of_the_image_that_it_came_from(tmp_path):
    func = tmp_path / "sub-01/func"
    func.mkdir(parents=True)
    series = func / "sub-01_task-rest_run-1_seg-Glasser_stat-mean_timeseries.npy"
    np.save(series, np.random.default_rng(0).normal(size=(30, 5)))
    image = func / "sub-01_task-rest_run-01_space-MNI_desc-denoised_bold.json"
    image.write_text('{"RepetitionTime": 0.8}')
    assert read_series(series)[1] == 0.8
    with pytest.raises(RecordingError, match=r"0\.8 s between volumes.*repetition_time_s 2 s"):
        read_series(series, repetition_time_s=2.0)
    series.with_suffix(".json").write_text('{"SamplingFrequency": 1.25}')
    assert read_series(series)[1] == pytest.approx(0.8)
    series.with_suffix(".json").write_text('{"SamplingFrequency": 1.0}')
    with pytest.raises(RecordingError, match="SamplingFrequency"):
        read_series(series)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_sidecar_may_begin_with_a_byte_order_mark(tmp_path, encoding):
    path = write_run(tmp_path)
    text = '{"RepetitionTime": 2.0, "Operator": "Müller"}'
    path.with_name("sub-01_task-rest_bold.json").write_bytes(text.encode(encoding))
    assert open_bold(path).tr_s == 2.0


def test_a_sidecar_in_latin_1_asks_for_utf_8(tmp_path):
    path = write_run(tmp_path)
    text = '{"RepetitionTime": 2.0, "Operator": "Müller"}'
    path.with_name("sub-01_task-rest_bold.json").write_bytes(text.encode("latin-1"))
    refused(path, "save it as UTF-8")


@pytest.mark.parametrize("name", ["sub-01_task-rest_bold.json", "../sub-01_bold.json",
                                  "../../task-rest_bold.json"])  # fmt: skip
@pytest.mark.parametrize("pointer", ["link", "/annex/objects/MD5E-s300--ab.json\n",
                                     "version https://git-lfs.github.com/spec/v1\n"])  # fmt: skip
def test_a_sidecar_without_content_is_named(tmp_path, name, pointer):
    path = write_run(tmp_path, 2.0)
    target = path.parent / name
    if pointer == "link":
        target.symlink_to(".git/annex/objects/aa/bb/MD5E-s300.json")
    else:
        target.write_text(pointer)
    refused(path, Path(name).name, "get its content")


def test_an_image_without_content_is_named(tmp_path):
    path = write_run(tmp_path, 2.0)
    path.unlink()
    path.symlink_to(".git/annex/objects/aa/bb/MD5E-s300.nii.gz")
    with pytest.raises(RecordingError, match="get its content") as caught:
        open_bold(path)
    assert caught.value.status == "unreadable"
