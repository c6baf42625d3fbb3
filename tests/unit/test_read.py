"""Every bad recording ends with the right status and a reason; every good one with its values."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brainlm.errors import BrainLMError, RecordingError
from brainlm.preprocess.io.derivatives import read_transforms, read_volume
from brainlm.preprocess.io.read import read_bold, read_image, read_series
from brainlm.preprocess.io.sidecars import read_sidecar

AFFINE = np.diag([-4.0, 4.0, 4.0, 1.0])
TR_S = 2.0


def make_data(shape=(16, 14, 12, 8), dtype=np.int16) -> np.ndarray:
    values = np.random.default_rng(0).integers(100, 1000, shape)
    return values.astype(dtype)


def write(
    folder: Path,
    data: np.ndarray | None = None,
    *,
    affine=AFFINE,
    tr=TR_S,
    unit="sec",
    json_text: str | None = None,
    name="sub-01_task-rest_bold.nii.gz",
    codes=(1, 1),
    slope=None,
) -> Path:
    """A BOLD file with stated flaws, under <folder>/sub-01/func."""
    data = make_data() if data is None else data
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine if codes[1] else None, codes[1])
    image.header.set_xyzt_units("mm", unit)
    if data.ndim > 3:
        image.header["pixdim"][4] = tr
    if slope:
        image.header.set_slope_inter(*slope)
    path = folder / "sub-01" / "func" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    text = json.dumps({"RepetitionTime": TR_S}) if json_text is None else json_text
    if text:
        path.with_name(name.split(".")[0] + ".json").write_text(text)
    return path


def fails(path: Path, status: str, *words: str) -> None:
    with pytest.raises(RecordingError) as caught:
        read_bold(path)
    assert caught.value.status == status, caught.value.reason
    for word in words:
        assert word in caught.value.reason


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8", "int32", "float32", "float64"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_reads_every_type_as_nibabel_does(tmp_path, dtype, order, suffix):
    data = make_data().clip(0, 255)
    image = nib.Nifti1Image(data.astype(np.dtype(dtype).newbyteorder(order)), AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = TR_S
    path = tmp_path / f"x_bold{suffix}"
    swapped = nib.Nifti1Image(image.dataobj, AFFINE, image.header.as_byteswapped(order))
    nib.save(swapped, path)
    bold = read_bold(path)
    assert bold.volumes.shape == (8, 12, 14, 16)
    assert bold.volumes.dtype == np.float32 and bold.volumes.flags.c_contiguous
    np.testing.assert_array_equal(bold.volumes.T, nib.load(path).get_fdata())
    np.testing.assert_allclose(bold.affine, AFFINE)


def test_applies_scale_slopes(tmp_path):
    data = np.random.default_rng(1).normal(500, 50, (16, 14, 12, 6))
    image = nib.Nifti1Image(data, AFFINE)
    image.set_data_dtype(np.int16)  # nibabel chooses slope and intercept
    image.header["pixdim"][4] = TR_S
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "x_bold.nii.gz")
    bold = read_bold(tmp_path / "x_bold.nii.gz")
    np.testing.assert_allclose(bold.volumes.T, data, atol=0.02)


def test_reads_past_one_block(tmp_path, monkeypatch):
    path = write(tmp_path)
    whole = read_bold(path).volumes
    monkeypatch.setattr("brainlm.preprocess.io.read._BLOCK_BYTES", 3 * 16 * 14 * 12 * 2)
    np.testing.assert_array_equal(read_bold(path).volumes, whole)


@pytest.mark.parametrize("cut", [1, 5, 8, 2000])
def test_truncated_gzip(tmp_path, cut):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    fails(path, "unreadable", "8 volumes", "copy it again")


def test_flipped_byte_is_found_by_the_checksum(tmp_path):
    path = write(tmp_path)
    # A stored (uncompressed) block: the flip changes one value and nothing else.
    raw = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert nib.load(path).get_fdata().shape == (16, 14, 12, 8)  # goes unnoticed elsewhere
    fails(path, "unreadable", "corrupt")


def test_header_promises_more_than_there_is(tmp_path):
    path = write(tmp_path, name="sub-01_task-rest_bold.nii")
    path.write_bytes(path.read_bytes()[:-100])
    fails(path, "unreadable", "ends early")


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"not an image at all"])
def test_not_an_image(tmp_path, content):
    path = write(tmp_path)
    path.write_bytes(content)
    fails(path, "unreadable")


def test_missing_file(tmp_path):
    fails(tmp_path / "sub-01_bold.nii.gz", "unreadable", "No such file")
    with pytest.raises(RecordingError, match=r"b\.tsv: No such file"):
        read_series(tmp_path / "b.tsv")


@pytest.mark.parametrize(
    ("shape", "status", "words"),
    [
        ((16, 14, 12), "unreadable", "3 dimensions"),
        ((16, 14, 12, 2, 4), "unreadable", "5 dimensions"),
        ((16, 14, 12, 1), "too_short", "1 volume"),
        ((16, 14, 1, 8), "bad_data", "field of view"),
        ((64, 64, 3, 8), "bad_data", "12 mm at the thinnest"),
    ],
)
def test_shapes(tmp_path, shape, status, words):
    fails(write(tmp_path, make_data(shape)), status, words)


def test_trailing_axis_of_one_is_dropped(tmp_path):
    path = write(tmp_path, make_data((16, 14, 12, 8, 1)))
    assert read_bold(path).volumes.shape == (8, 12, 14, 16)


def test_complex_numbers(tmp_path):
    fails(write(tmp_path, make_data().astype(np.complex64)), "unreadable", "complex64")


def test_huge_and_tiny_voxels(tmp_path):
    fails(write(tmp_path, affine=np.diag([25, 25, 25, 1.0])), "bad_metadata", "25 x 25 x 25 mm")
    tiny = write(tmp_path, affine=np.diag([0.004, 0.004, 0.004, 1.0]))
    fails(tiny, "bad_metadata", "check the header's units")


def test_orientation(tmp_path):
    fails(write(tmp_path, codes=(0, 0)), "bad_metadata", "both 0")
    flat = AFFINE.copy()
    flat[:3, 2] = flat[:3, 1]
    fails(write(tmp_path, affine=flat, codes=(1, 0)), "bad_metadata", "singular")


def save_cifti(path: Path, values: np.ndarray, names, step=0.72, unit="SECOND", axes="tp"):
    from nibabel.cifti2 import Cifti2Image, ParcelsAxis, SeriesAxis

    vertices = [{"CIFTI_STRUCTURE_CORTEX_LEFT": np.array([k])} for k in range(len(names))]
    voxels = [np.empty((0, 3), int)] * len(names)
    parcels = ParcelsAxis(
        names, voxels, vertices, np.eye(4), (9, 9, 9), {"CIFTI_STRUCTURE_CORTEX_LEFT": 99}
    )
    time = SeriesAxis(0, step, values.shape[0], unit)
    order = (time, parcels) if axes == "tp" else (parcels, time)
    nib.save(Cifti2Image(values if axes == "tp" else values.T, order), path)


@pytest.mark.parametrize("axes", ["tp", "pt"])
def test_cifti_series_of_parcels(tmp_path, axes):
    values, names = np.random.default_rng(0).normal(size=(30, 5)), [f"area {k}" for k in "abcde"]
    path = tmp_path / "sub-01_task-rest_atlas-x_timeseries.ptseries.nii"
    save_cifti(path, values, names, axes=axes)
    series, tr_s = read_series(path, parcels=["Area-A", "area b", "area c", "area d", "area e"])
    np.testing.assert_allclose(series, values, rtol=1e-6)
    assert tr_s == pytest.approx(0.72)
    turned, _ = read_series(path, parcels=names[::-1])
    np.testing.assert_allclose(turned, values[:, ::-1], rtol=1e-6)
    with pytest.raises(RecordingError, match="column 1 is area a, the atlas's parcel 1 is other"):
        read_series(path, parcels=["other", *names[1:]])
    (tmp_path / "sub-01_task-rest_atlas-x_timeseries.json").write_text('{"RepetitionTime": 2}')
    with pytest.raises(RecordingError, match=r"the sidecar says 2 s .* the CIFTI header 0.72 s"):
        read_series(path)


def test_what_is_no_cifti_series_of_parcels_says_so(tmp_path):
    path = tmp_path / "x.ptseries.nii"
    nib.save(nib.Nifti1Image(make_data(), AFFINE), path)
    with pytest.raises(RecordingError, match="not a CIFTI-2 file"):
        read_series(path)
    save_cifti(path, np.ones((9, 3)), ["a", "b", "c"], unit="HERTZ")
    with pytest.raises(RecordingError, match="steps in HERTZ, expected seconds"):
        read_series(path)
    path.write_text("no")
    with pytest.raises(RecordingError, match="not a CIFTI-2 file"):
        read_series(path)


@pytest.mark.parametrize("letters", ["LAS", "RAS", "PIR", "AIL"])
def test_the_cohort_s_orientation_is_for_headers_without_one(tmp_path, letters):
    path = write(tmp_path, codes=(0, 0))
    bold = read_bold(path, orientation=letters)
    assert "".join(nib.aff2axcodes(bold.affine)) == letters
    middle = bold.affine @ [*((np.array(bold.volumes.shape[:0:-1]) - 1) / 2), 1]
    np.testing.assert_allclose(middle[:3], 0, atol=1e-9)
    assert any("from the cohort's entry" in words for words in bold.warnings)


def test_the_cohort_s_orientation_does_not_overrule_a_header(tmp_path):
    path = write(tmp_path)
    assert (read_bold(path, orientation="LAS").affine == read_bold(path).affine).all()
    with pytest.raises(RecordingError, match="the header says LAS, orientation of the cohort RAS"):
        read_bold(path, orientation="RAS")


def test_contradictory_orientation_is_a_warning_with_the_distance(tmp_path):
    path = write(tmp_path)
    image = nib.load(path)
    image = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    shifted = AFFINE.copy()
    shifted[0, 3] += 9
    image.set_sform(AFFINE, 1)
    image.set_qform(shifted, 1)
    nib.save(image, path)
    bold = read_bold(path)
    assert any("9.0 mm" in warning for warning in bold.warnings)
    np.testing.assert_allclose(bold.affine, AFFINE)


@pytest.mark.parametrize("side", [1, -1])  # right-handed voxels, and left-handed ones
def test_oblique_and_flipped_axes_are_kept(tmp_path, side):
    turn = np.array([[0, -1, 0], [0.966, 0, -0.259], [0.259, 0, 0.966]])
    affine = AFFINE.copy()
    affine[:3, :3] = 4 * turn * [1, side, 1]
    np.testing.assert_allclose(read_bold(write(tmp_path, affine=affine)).affine, affine, atol=1e-5)


@pytest.mark.parametrize(
    ("header_tr", "unit", "sidecar", "words"),
    [
        (0, "sec", "{}", "no repetition time"),
        (2000, "sec", "{}", "looks like milliseconds"),
        (2.0, "sec", '{"RepetitionTime": 2000}', "looks like milliseconds"),
        (2.0, "sec", '{"RepetitionTime": 0}', "expected 0.2 to 10 s"),
        (2.0, "sec", '{"RepetitionTime": "2"}', "expected seconds"),
        (1.794, "sec", '{"RepetitionTime": 2.0}', "2 s between volumes, the header 1.794 s"),
        (2.0, "sec", "RepetitionTime = 2", "expected a JSON sidecar"),
        (2.0, "sec", "[2.0]", "expected a JSON object"),
        (2.0, "sec", '{"ArterialSpinLabelingType": "PCASL"}', "arterial spin labelling"),
    ],
)
def test_bad_metadata(tmp_path, header_tr, unit, sidecar, words):
    path = write(tmp_path, tr=header_tr, unit=unit, json_text=sidecar)
    fails(path, "bad_metadata", words)


@pytest.mark.parametrize(
    ("header_tr", "unit", "sidecar", "warning"),
    [
        (2.0, "sec", '{"RepetitionTime": 2.0}', None),
        (2000, "msec", '{"RepetitionTime": 2.0}', None),
        (2000, "msec", "{}", "from the header"),
        (2.0, "unknown", "{}", "seconds assumed"),
        (0, "sec", '{"RepetitionTime": 2.0}', "header says 0"),
        (1.0, "sec", '{"RepetitionTime": 2.0}', "header says 1"),
        (2000, "sec", '{"RepetitionTime": 2.0}', "header says 2000"),
    ],
)
def test_usable_metadata(tmp_path, header_tr, unit, sidecar, warning):
    bold = read_bold(write(tmp_path, tr=header_tr, unit=unit, json_text=sidecar))
    assert bold.tr_s == TR_S
    assert warning is None or any(warning in text for text in bold.warnings)


def test_stated_repetition_time_wins(tmp_path):
    assert read_bold(write(tmp_path, tr=0, json_text="{}"), repetition_time_s=3.0).tr_s == 3.0


def test_sidecars_are_inherited(tmp_path):
    path = write(tmp_path, json_text="")
    (tmp_path / "task-rest_bold.json").write_text('{"RepetitionTime": 2.0, "EchoTime": 0.03}')
    (tmp_path / "task-other_bold.json").write_text('{"RepetitionTime": 9.0}')
    own = path.with_name("sub-01_task-rest_bold.json")
    own.write_text('{"EchoTime": 0.04}')
    assert read_sidecar(path) == {"RepetitionTime": 2.0, "EchoTime": 0.04}


def test_one_echo_of_several_is_used_with_a_warning(tmp_path):
    first = write(tmp_path, name="sub-01_task-rest_echo-1_bold.nii.gz")
    assert read_bold(first).warnings == []
    write(tmp_path, name="sub-01_task-rest_echo-2_bold.nii.gz")
    assert read_bold(first).warnings == ["single echo: one of 2 is used alone"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_volumes_are_named(tmp_path, value):
    data = make_data(dtype=np.float32)
    data[..., 3] = value
    data[5, 5, 5, 6] = value
    fails(write(tmp_path, data), "bad_data", "2 of 8 volumes", "index 3, 6")


def test_nan_background_is_background(tmp_path):
    data = make_data(dtype=np.float32)
    data[:4] = np.nan
    bold = read_bold(write(tmp_path, data))
    assert np.isfinite(bold.volumes).all() and (bold.volumes[..., :4] == 0).all()
    assert any("NaN in every volume" in warning for warning in bold.warnings)


def test_all_nan(tmp_path):
    fails(write(tmp_path, np.full((16, 14, 12, 8), np.nan, np.float32)), "bad_data", "8 of 8")


def test_constant_volumes_and_runs(tmp_path):
    data = make_data()
    data[..., 4] = 0
    fails(write(tmp_path, data), "bad_data", "1 of 8 volumes", "index 4")
    fails(write(tmp_path, np.zeros_like(data)), "bad_data", "same value")
    still = np.repeat(make_data((16, 14, 12, 1)), 8, axis=3)
    fails(write(tmp_path, still), "bad_data", "do not vary")


def test_volumes_that_repeat_are_named(tmp_path):
    data = make_data()
    data[..., 3:5] = data[..., 2:3]
    fails(write(tmp_path, data), "bad_data", "2 of 8 volumes repeat the one before (index 3, 4)")


@pytest.mark.parametrize("damage", ["cut", "words"])
def test_a_damaged_derivative_is_named_with_what_to_do(tmp_path, damage):
    path = tmp_path / "sub-01_desc-hmc_boldref.nii.gz"
    nib.save(nib.Nifti1Image(make_data()[..., 0], AFFINE), path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"no image")
    with pytest.raises(BrainLMError, match=r"boldref.nii.gz: damaged; delete it and run"):
        read_volume(path)
    text = tmp_path / "x_xfm.txt"
    text.write_text("Parameters: 1 2 3\n")
    with pytest.raises(BrainLMError, match=r"x_xfm.txt: damaged; delete it and run"):
        read_transforms(text)


def test_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    path = write(tmp_path)
    from brainlm.preprocess.io import read

    original = read._read_volumes

    def slow(*arguments):
        result = original(*arguments)
        path.write_bytes(path.read_bytes() + b"\0")
        return result

    monkeypatch.setattr(read, "_read_volumes", slow)
    fails(path, "unreadable", "changed while it was read")


def test_read_image(tmp_path):
    path = write(tmp_path, make_data((20, 18, 16), np.float32), json_text="")
    volume, _ = read_image(path)
    assert volume.shape == (16, 18, 20) and volume.dtype == np.float32
    with pytest.raises(RecordingError, match="3-D"):
        read_image(write(tmp_path))


def test_series_formats_agree(tmp_path):
    series = np.random.default_rng(2).normal(size=(30, 5)).astype(np.float32)
    series[:, 2] = np.nan
    np.save(tmp_path / "a.npy", series)
    rows = ["\t".join("n/a" if np.isnan(v) else repr(float(v)) for v in row) for row in series]
    (tmp_path / "b.tsv").write_text("\n".join(["p1\tp2\tp3\tp4\tp5", *rows]) + "\n")
    (tmp_path / "c.dat").write_text("\n".join(rows).replace("n/a", "nan") + "\n")
    for name in ("a.npy", "b.tsv", "c.dat"):
        read, tr_s = read_series(tmp_path / name, repetition_time_s=1.5)
        np.testing.assert_allclose(read, series, rtol=1e-6)
        assert tr_s == 1.5
    with pytest.raises(RecordingError, match="repetition_time_s"):
        read_series(tmp_path / "a.npy")
    (tmp_path / "a.json").write_text('{"RepetitionTime": 2.5}')
    assert read_series(tmp_path / "a.npy", repetition_time_s=2.5)[1] == 2.5


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.dat", b"1 2 3\n4 5\n"),
        ("a.tsv", b"a\tb\n1\tx\n"),
        ("a.dat", b""),
        ("a.npy", b"\x93NUMPY\x01"),
        ("a.dat", b"\xff\xfe\x00"),
    ],
)
def test_series_that_is_no_table(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordingError) as caught:
        read_series(tmp_path / name, repetition_time_s=1.0)
    assert caught.value.status == "unreadable"


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(("name", "between"), [("a.tsv", "\t"), ("a.dat", " ")])
def test_numbered_columns_are_a_header_and_no_time_point(tmp_path, first, name, between):
    series = np.random.default_rng(3).normal(size=(20, 4))
    header = between.join(str(first + k) for k in range(4))
    np.savetxt(tmp_path / name, series, delimiter=between, header=header, comments="")
    read, _ = read_series(tmp_path / name, repetition_time_s=1.0)
    np.testing.assert_allclose(read, series, rtol=1e-6)


def test_empty_cells_are_missing_and_nothing_moves(tmp_path):
    (tmp_path / "a.tsv").write_text("p1\tp2\tp3\n1\t\t3\n\t\t\n4\tn/a\t6\n")
    read, _ = read_series(tmp_path / "a.tsv", repetition_time_s=1.0)
    nan = np.nan
    np.testing.assert_array_equal(read, [[1, nan, 3], [nan, nan, nan], [4, nan, 6]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\t0\t1\n0\t.1\t.2\n1\t.3\t.4\n", "column 1 has no name"),
        ("\tp1\tp2\n0\t.1\t\n1\t.3\t\n", "column 1 has no name"),
        ("Unnamed: 0\tp1\n0\t.1\n1\t.3\n", "column 1 has no name"),
        ("0\t.1\t.2\n1\t.3\t.4\n2\t.5\t.6\n", "column 1 looks like row numbers"),
        ("0\t.1\t\n.72\t.3\t\n1.44\t.5\t\n2.16\t.6\t\n", "column 1 looks like row numbers"),
        ("time\tp1\tp2\n1\t.1\t.2\n2\t.3\t.4\n3\t.5\t.6\n", "column 1 looks like row numbers"),
        ("p1\tp2\n0\t.1\t.2\n1\t.3\t.4\n", "rows have [2, 3] values"),
    ],
)
def test_numbers_of_rows_are_no_parcel(tmp_path, text, words):
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(RecordingError) as caught:
        read_series(tmp_path / "a.tsv", repetition_time_s=1.0)
    assert caught.value.status == "unreadable" and words in caught.value.reason


def test_a_byte_order_mark_and_comments_cost_no_time_point(tmp_path):
    (tmp_path / "a.tsv").write_text("\ufeff0.5\t2\n3\t4\n", encoding="utf-8")
    (tmp_path / "a.dat").write_text("# two parcels of somebody\n0.5 2\n3 4\n")
    for name in ("a.tsv", "a.dat"):
        read, _ = read_series(tmp_path / name, repetition_time_s=1.0)
        np.testing.assert_array_equal(read, [[0.5, 2], [3, 4]])


def test_a_tab_may_end_every_line(tmp_path):
    (tmp_path / "a.dat").write_text(".1\t2\t\n3\t4\t\n")
    read, _ = read_series(tmp_path / "a.dat", repetition_time_s=1.0)
    np.testing.assert_allclose(read, [[0.1, 2], [3, 4]])


def test_a_header_must_name_the_parcels_where_they_are_known(tmp_path):
    (tmp_path / "a.tsv").write_text("LH_V1\tRH_V1\n1\t2\n3\t4\n")

    def read(*parcels, **more):
        return read_series(tmp_path / "a.tsv", repetition_time_s=1.0, parcels=parcels, **more)[0]

    assert read().shape == read("lh-v1", "rh-v1").shape == (2, 2)
    with pytest.raises(RecordingError, match="column 1 is LH_V1, the atlas's parcel 1 is MT"):
        read("MT", "V1")
    assert read("MT", "V1", other_names=True).shape == (2, 2)
    with pytest.raises(RecordingError, match="in another order"):
        read("RH_V1", "LH_V1", other_names=True)


def test_pickled_arrays_are_never_opened(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(RecordingError, match="a table of numbers"):
        read_series(tmp_path / "a.npy", repetition_time_s=1.0)


def test_real_recordings(shared):
    root = shared / "data" / "bids_real"
    bold = read_bold(root / "sub-02/func/sub-02_task-functionallocalizer_run-1_bold.nii.gz")
    assert bold.volumes.shape == (82, 27, 53, 53) and bold.tr_s == 2.2
    expected = nib.load(root / "sub-02/func/sub-02_task-functionallocalizer_run-1_bold.nii.gz")
    scaled = expected.dataobj[..., 40]  # by a slope and an intercept, in float64
    np.testing.assert_allclose(bold.volumes[40].T, scaled, atol=1e-7 * np.ptp(scaled))
