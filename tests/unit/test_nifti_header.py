"""A header is believed as the standard says; what a library would repair is refused or said."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brainlm.errors import RecordingError
from brainlm.preprocess.io.read import read_bold, read_image

SHAPE = (16, 14, 12, 8)
AFFINE = np.array([[-4.0, 0, 0, 30], [0, 4, 0, -20], [0, 0, 4, -10], [0, 0, 0, 1]])
#: Bytes of NIfTI-1 fields.
DIM, DATATYPE, BITPIX, PIXDIM, OFFSET, SLOPE, INTER = 40, 70, 72, 76, 108, 112, 116
UNITS, QFORM, SFORM, QUATERN, SROW, MAGIC, EXTENSION = 123, 252, 254, 256, 280, 344, 348


def make(dtype=np.int16, codes=(1, 1), sform=AFFINE, qform=AFFINE) -> bytearray:
    data = np.random.default_rng(0).integers(100, 1000, SHAPE).astype(dtype)
    image = nib.Nifti1Image(data, AFFINE)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 2.0
    return bytearray(image.to_bytes())


def put(folder: Path, raw: bytes, name="sub-01_task-rest_bold.nii.gz") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(bytes(raw), 1) if name.endswith(".gz") else bytes(raw))
    return path


def edit(raw: bytearray, *changes: tuple[int, str, object]) -> bytearray:
    for offset, kind, value in changes:
        struct.pack_into("<" + kind, raw, offset, *np.atleast_1d(value).tolist())
    return raw


def refused(path: Path, *words: str, status="unreadable") -> None:
    with pytest.raises(RecordingError) as caught:
        read_bold(path)
    assert caught.value.status == status, caught.value.reason
    for word in words:
        assert word in caught.value.reason


@pytest.mark.parametrize("name", ["a_bold.nii", "a_bold.nii.gz"])
def test_a_voxel_offset_of_zero_reads_from_the_first_voxel(tmp_path, name):
    right = read_bold(put(tmp_path, make(), name))
    bold = read_bold(put(tmp_path, edit(make(), (OFFSET, "f", 0.0)), name))
    np.testing.assert_array_equal(bold.volumes, right.volumes)
    assert any("vox_offset is 0" in text for text in bold.warnings)
    assert not any("vox_offset" in text for text in right.warnings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([(OFFSET, "f", 176.0)], "vox_offset is 176"),
        ([(OFFSET, "f", -352.0)], "cannot be below 352"),
        ([(OFFSET, "f", 352.5)], "vox_offset is 352.5"),
        ([(OFFSET, "f", np.nan)], "vox_offset is nan"),
        ([(OFFSET, "f", 1e9)], "ends early"),
        ([(DATATYPE, "h", 8)], "int32 and 16 bits"),
        ([(DATATYPE, "h", 77)], "data type 77"),
        ([(DATATYPE, "h", 128)], "found RGB"),
        ([(DATATYPE, "h", 1536)], "found float128"),
        ([(DIM, "h", 0)], "impossible dimensions"),
        ([(DIM, "h", 9)], "impossible dimensions"),
        ([(DIM + 2, "h", -16)], "impossible dimensions"),
        ([(DIM + 8, "h", 0)], "impossible dimensions"),
        ([(DIM + 2, "4h", [32767] * 4)], "ends early"),
        ([(DIM + 8, "h", 9)], "ends early"),
        ([(MAGIC, "4s", b"ni1\0")], "a pair of .hdr and .img"),
        ([(MAGIC, "4s", b"\0\0\0\0")], "not a NIfTI image in one file"),
        ([(0, "i", 347)], "not a NIfTI image"),
        ([(SLOPE, "f", 1.0), (INTER, "f", np.inf)], "scl_inter is inf"),
        ([(EXTENSION, "4B", [1, 0, 0, 0]), (352, "ii", [32, 6])], "an extension"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, changes, words):
    changes = [(o, k, list(v) if isinstance(v, bytes) and k != "4s" else v) for o, k, v in changes]
    raw = make()
    for offset, kind, value in changes:
        values = [value] if isinstance(value, bytes) else np.atleast_1d(value).tolist()
        struct.pack_into("<" + kind, raw, offset, *values)
    refused(put(tmp_path, raw), words)


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_a_slope_that_is_none_leaves_the_values_as_they_are(tmp_path, slope):
    right = read_bold(put(tmp_path, make())).volumes
    bold = read_bold(put(tmp_path, edit(make(), (SLOPE, "ff", [slope, 7.0]))))
    np.testing.assert_array_equal(bold.volumes, right)
    assert any("scl_slope" in text for text in bold.warnings) == (slope != 0)
    scaled = read_bold(put(tmp_path, edit(make(), (SLOPE, "ff", [2.0, 7.0]))))
    np.testing.assert_array_equal(scaled.volumes, right * 2 + 7)


@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_both_versions_and_byte_orders_with_extensions(tmp_path, version, order):
    data = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.dtype(order + "i2"))
    image = version(data, AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 2.0
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 100))
    swapped = version(image.dataobj, AFFINE, image.header.as_byteswapped(order))
    nib.save(swapped, tmp_path / "a_bold.nii.gz")
    bold = read_bold(tmp_path / "a_bold.nii.gz")
    np.testing.assert_array_equal(bold.volumes.T, data)
    np.testing.assert_allclose(bold.affine, AFFINE)
    assert bold.tr_s == 2.0


@pytest.mark.parametrize("name", ["a_bold.nii", "a_bold.nii.gz"])
def test_bytes_behind_the_voxels(tmp_path, name):
    bold = read_bold(put(tmp_path, make() + b"\1" * 100, name))
    assert any("100 bytes behind" in text for text in bold.warnings)
    path = put(tmp_path, edit(make(), (DIM + 8, "h", 6)), name)
    refused(path, "promises 6 volumes", "(2 volumes)", status="bad_metadata")


FLAWS = {
    "all zero": np.diag([0.0, 0, 0, 1]),
    "singular": AFFINE @ np.diag([1.0, 1, 0, 1]),
    "not finite": np.diag([np.nan, 4, 4, 1]),
    "of other voxels": np.eye(4),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_broken_sform_does_not_lose_an_image_whose_qform_is_whole(tmp_path, flaw):
    raw = edit(make(), (SROW, "12f", FLAWS[flaw][:3].ravel()))
    bold = read_bold(put(tmp_path, raw))
    np.testing.assert_allclose(bold.affine, AFFINE, atol=1e-5)
    assert any(f"the sform is {flaw}" in t and "the qform is used" in t for t in bold.warnings)
    raw = edit(raw, (QFORM, "h", 0))
    if flaw == "of other voxels":  # of 1 mm: the image is smaller than a brain
        refused(put(tmp_path, raw), "field of view", status="bad_data")
    else:
        refused(put(tmp_path, raw), f"the sform is {flaw}", status="bad_metadata")


@pytest.mark.parametrize("quaternion", [[2.0, 0, 0], [np.nan, 0, 0], [0.9, 0.9, 0.9]])
def test_a_broken_qform_next_to_a_whole_sform_is_said(tmp_path, quaternion):
    raw = edit(make(), (QUATERN, "3f", quaternion))
    bold = read_bold(put(tmp_path, raw))
    np.testing.assert_allclose(bold.affine, AFFINE)
    assert any("the qform is not finite; the sform is used" in text for text in bold.warnings)
    refused(put(tmp_path, edit(raw, (SFORM, "h", 0))), "the qform is not finite",
            status="bad_metadata")  # fmt: skip


def test_the_qform_alone_gives_the_orientation(tmp_path):
    turn = np.eye(4)
    turn[:3, :3] = [[0, -1, 0], [0.966, 0, -0.259], [0.259, 0, 0.966]]
    affine = turn @ AFFINE
    raw = make(codes=(0, 1), qform=affine)
    np.testing.assert_allclose(read_bold(put(tmp_path, raw)).affine, affine, atol=1e-4)


def test_orientations_apart_are_said_with_the_one_that_is_used(tmp_path):
    shifted = AFFINE.copy()
    shifted[0, 3] += 9
    bold = read_bold(put(tmp_path, make(qform=shifted)))
    assert any("9.0 mm; the sform is used" in text for text in bold.warnings)
    np.testing.assert_allclose(bold.affine, AFFINE)


def test_units_of_metres_are_not_taken_for_millimetres(tmp_path):
    metres = AFFINE.copy()
    metres[:3] *= 1e-3
    raw = edit(make(sform=metres, codes=(1, 0)), (PIXDIM + 4, "3f", [0.004] * 3), (UNITS, "B", 9))
    refused(put(tmp_path, raw), "check the header's units", status="bad_metadata")


def test_a_t1w_image_is_read_with_the_same_care(tmp_path):
    data = np.random.default_rng(0).normal(500, 50, (20, 18, 16)).astype(np.float32)
    raw = bytearray(nib.Nifti1Image(data, AFFINE).to_bytes())
    path = put(tmp_path, edit(raw, (OFFSET, "f", 0.0)), "a_T1w.nii.gz")
    np.testing.assert_array_equal(read_image(path)[0].T, data)
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(RecordingError, match="get its content"):
        read_image(path)
