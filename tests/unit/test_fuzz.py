"""No sidecar, header or table of motion ends in Python's own words."""

from __future__ import annotations

import json
import struct

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainlm.errors import RecordingError
from brainlm.preprocess.delivered.movement import read_movement
from brainlm.preprocess.delivered.series_checks import read_outliers
from brainlm.preprocess.io.read import open_bold
from brainlm.preprocess.stages.voxels import shift_slices

FILE = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
NUMBER = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, 1, 2.0, 0.72, 2000, -1, 1e308, 10**400])
)
VALUE = st.recursive(
    st.one_of(NUMBER, st.none(), st.booleans(), st.text(max_size=6), st.just("k")),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = [
    "RepetitionTime", "VolumeTiming", "SamplingFrequency", "SliceTiming", "SliceEncodingDirection",
    "PhaseEncodingDirection", "ArterialSpinLabelingType",
]  # fmt: skip
TIMES = st.lists(st.floats(0, 2), min_size=4, max_size=4) | st.just([2.0 * k for k in range(8)])
SIDECAR = st.dictionaries(st.sampled_from([*FIELDS, "Other"]), VALUE | TIMES, max_size=5)
SHAPE = (16, 16, 12, 8)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """An image without voxels: its file is as long as it must be."""
    affine = np.diag([4.0, 4, 4, 1])
    made = nib.Nifti1Image(np.zeros(SHAPE, np.int16), affine)
    made.set_sform(affine, 1)
    made.set_qform(affine, 1)
    made.header.set_xyzt_units("mm", "sec")
    made.header["pixdim"][4] = 2.0
    folder = tmp_path_factory.mktemp("fuzz") / "sub-01/func"
    folder.mkdir(parents=True)
    path = folder / "sub-01_task-rest_bold.nii"
    nib.save(made, path)
    return path, path.read_bytes()


def ends_in_words(function, *arguments):
    """What it returns, or None where it was refused."""
    try:
        return function(*arguments)
    except RecordingError as error:
        refused = error
    assert refused.status in ("bad_metadata", "unreadable", "too_short", "bad_data")
    assert refused.reason and "Error" not in refused.reason
    return None


@settings(max_examples=900, **FILE)
@given(SIDECAR)
def test_sidecars(image, values):
    path, raw = image
    path.write_bytes(raw)
    path.with_suffix(".json").write_text(json.dumps(values))
    run = ends_in_words(open_bold, path)
    if run is not None:
        assert 0.2 <= run.tr_s <= 10
        if run.sidecar.get("SliceTiming") is not None:
            volumes = np.zeros((5, 4, 4, 4), np.float32)
            ends_in_words(shift_slices, volumes, run.tr_s, run.sidecar)


@settings(max_examples=200, **FILE)
@given(st.binary(max_size=40) | st.text(alphabet='{}[]",:0123eE.-N', max_size=30).map(str.encode))
def test_sidecars_that_are_no_json(image, content):
    path, raw = image
    path.write_bytes(raw)
    path.with_suffix(".json").write_bytes(content)
    ends_in_words(open_bold, path)


FIELD = st.one_of(
    st.tuples(st.sampled_from([40, 42, 44, 46, 48, 50, 70, 72, 252, 254]), st.just("h"),
              st.integers(-(2**15), 2**15 - 1) | st.sampled_from([0, 1, 2, 3, 4, 5, 7, 16, 64])),
    st.tuples(st.sampled_from([76, 80, 84, 92, 108, 112, 116, 256, 260, 264, 268, 280, 284, 300]),
              st.just("f"), st.floats(width=32) | st.sampled_from([0.0, 1.0, -1.0, 352.0, 4.0])),
    st.tuples(st.sampled_from([123, 344, 345, 346, 348]), st.just("B"), st.integers(0, 255)),
    st.tuples(st.just(0), st.just("i"), st.sampled_from([0, 347, 348, 540, -1])),
)  # fmt: skip


@settings(max_examples=900, **FILE)
@given(st.lists(FIELD, min_size=1, max_size=6), st.integers(0, 400) | st.just(10**6))
def test_headers(image, changes, length):
    path, raw = image
    header = bytearray(raw)
    for offset, kind, value in changes:
        struct.pack_into("<" + kind, header, offset, value)
    path.write_bytes(header[:length])
    path.with_suffix(".json").write_text('{"RepetitionTime": 2.0}')
    run = ends_in_words(open_bold, path)
    if run is not None:
        assert np.isfinite(run.affine).all() and min(run.shape) >= 1
        assert abs(np.linalg.det(run.affine)) > 0


CELL = st.sampled_from(["0", "1", "0.1", "n/a", "", "x", "1e999", "-", '"'])


@settings(max_examples=200, **FILE)
@given(
    st.lists(st.sampled_from(["trans_x", "framewise_displacement", "a", "", "a"]), max_size=4),
    st.lists(st.lists(CELL, max_size=4), max_size=4),
    st.sampled_from(["x_motion.tsv", "x_desc-confounds_timeseries.tsv", "x.par", "x.txt"]),
)  # fmt: skip
def test_tables_of_motion(tmp_path, header, rows, name):
    path = tmp_path / name
    path.write_text("\n".join("\t".join(row) for row in [header, *rows]))
    ends_in_words(read_movement, path)
    ends_in_words(read_outliers, path, len(rows))
