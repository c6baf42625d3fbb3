"""The header of a NIfTI file, read as the standard says and not as a library corrects it.

nibabel repairs what it cannot believe and only logs it; a voxel offset of 0 then makes it read the
header as voxels, an unknown code drops the orientation. Here such a header is a reason to refuse
the file, or a warning that says what was done. Source: NIfTI-1 and NIfTI-2 (nifti1.h, nifti2.h).
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import RecordingError
from ...files import describe_absent

_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8",
    1280: "u8",
}  # fmt: skip
_OTHER_TYPES = {
    1: "bits", 32: "complex64", 128: "RGB", 1536: "float128", 1792: "complex128",
    2048: "complex256", 2304: "RGBA",
}  # fmt: skip
#: Size of the header -> what follows it in a file that holds header and voxels.
_MAGIC = {348: b"n+1\0", 540: b"n+2\0\r\n\032\n"}
_TIME_UNITS = {0: (1.0, "unknown"), 8: (1.0, "s"), 16: (1e-3, "ms"), 24: (1e-6, "us")}
#: No compressed file grows more than this (deflate: 1032).
_MOST_COMPRESSED = 1040


@dataclass(frozen=True)
class Header:
    """What is needed of a header, checked.

    Attributes
    ----------
    shape : tuple of int
        (X, Y, Z, ...), all at least 1.
    dtype : dtype
        Real numbers, with the byte order of the file.
    offset : int
        Bytes before the first voxel.
    slope, inter : float
        Value = stored * slope + inter.
    sform, qform : ndarray [4, 4] or None
        None where the code is 0.
    sizes : ndarray [3]
        ``pixdim`` 1 to 3, mm.
    step_s : float
        s between volumes as the header has it; 0 where it has none.
    time_unit : str
        Of `step_s` as written; ``unknown`` where it is not said.
    warnings : list of str
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    inter: float
    sform: np.ndarray | None
    qform: np.ndarray | None
    sizes: np.ndarray
    step_s: float
    time_unit: str
    warnings: list[str]


def read_header(path: Path) -> Header:
    """Read and check the header of a ``.nii`` or ``.nii.gz`` file.

    Raises
    ------
    RecordingError
        ``unreadable``: no content, no NIfTI file, numbers that are not real, or a header that
        contradicts itself or the file.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        raise RecordingError("unreadable", f"{path}: expected a .nii or .nii.gz file")
    if absent := describe_absent(path):
        raise RecordingError("unreadable", f"{path}: {absent}")
    try:
        size = path.stat().st_size
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            start = handle.read(4096)
    except (OSError, EOFError, zlib.error) as error:
        raise RecordingError(
            "unreadable", f"{path}: not a NIfTI image, or cut off in its header ({error})"
        ) from None
    try:
        warnings: list[str] = []
        fields = _parse(start)
        shape, dtype = _shape(fields), _dtype(fields)
        offset = _offset(fields, start, warnings)
        slope, inter = _scaling(fields, warnings)
        needed = offset + dtype.itemsize * int(np.prod(np.array(shape, object)))
        if needed > size * (_MOST_COMPRESSED if path.suffix == ".gz" else 1):
            raise ValueError(f"the header promises {needed} bytes, the file ends early at {size}")
    except ValueError as error:
        raise RecordingError("unreadable", f"{path}: {error}; convert the image again") from None
    step_s, unit = _time_step(fields)
    pixdim = np.asarray(fields["pixdim"], np.float64)
    return Header(
        shape, dtype, offset, slope, inter, _sform(fields), _qform(fields, pixdim), pixdim[1:4],
        step_s, unit, warnings,
    )  # fmt: skip


def _parse(start: bytes) -> dict[str, Any]:
    from nibabel.nifti1 import header_dtype as nifti1
    from nibabel.nifti2 import header_dtype as nifti2

    for size, layout in ((348, nifti1), (540, nifti2)):
        for order in "<>":
            if len(start) >= size + 4 and int.from_bytes(
                start[:4], "little" if order == "<" else "big"
            ) == size:  # fmt: skip
                record = np.frombuffer(start[:size], layout.newbyteorder(order))[0]
                fields = {name: record[name] for name in layout.names or ()}
                magic = start[344:348] if size == 348 else start[4:12]
                if magic != _MAGIC[size]:
                    pair = " (ni1: of a pair of .hdr and .img)" if magic[:3] == b"ni1" else ""
                    raise ValueError(
                        f"not a NIfTI image in one file: its magic is {magic!r}{pair}"
                    )
                return fields | {"order": order, "size": size}
    raise ValueError("not a NIfTI image, or cut off in its header")


def _shape(fields: dict[str, Any]) -> tuple[int, ...]:
    count = int(fields["dim"][0])
    shape = tuple(int(n) for n in fields["dim"][1 : count + 1]) if 1 <= count <= 7 else ()
    if not shape or min(shape) < 1:
        raise ValueError(f"impossible dimensions ({' '.join(str(n) for n in fields['dim'])})")
    return shape


def _dtype(fields: dict[str, Any]) -> np.dtype:
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    if code not in _TYPES:
        name = _OTHER_TYPES.get(code, f"data type {code}")
        raise ValueError(f"expected real numbers, found {name}")
    dtype = np.dtype(_TYPES[code]).newbyteorder(fields["order"])
    if bits != 8 * dtype.itemsize:
        raise ValueError(f"the header says {dtype.name} and {bits} bits (bitpix) a voxel")
    return dtype


def _offset(fields: dict[str, Any], start: bytes, warnings: list[str]) -> int:
    """Where the voxels begin: behind the header, four bytes, and the extensions."""
    stated, least = float(fields["vox_offset"]), fields["size"] + 4
    extended = start[least - 4] != 0
    if stated == 0 and not extended:  # written by programs that put no extensions
        warnings.append(f"voxel offset: vox_offset is 0; voxels are read from byte {least}")
        return least
    if not stated >= least or stated != int(stated):
        raise ValueError(f"vox_offset is {stated:g}, it cannot be below {least}")
    position, offset = least, int(stated)
    while extended and position <= offset and position + 8 <= len(start):
        size, code = np.frombuffer(start, fields["order"] + "i4", 2, position).tolist()
        if size < 16 or size % 16 or not 0 <= code <= 100 or position == offset > least:
            break  # no extension, or after the last
        position += size
    if position > offset:
        raise ValueError(
            f"an extension of the header ends at byte {position}, the voxels begin at {offset}"
        )
    return offset


def _scaling(fields: dict[str, Any], warnings: list[str]) -> tuple[float, float]:
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0:
        return 1.0, 0.0
    if not np.isfinite(slope):
        warnings.append(f"scaling: scl_slope is {slope}; the values are taken as they are stored")
        return 1.0, 0.0
    if not np.isfinite(inter):
        raise ValueError(f"scl_inter is {inter}")
    return slope, inter


def _time_step(fields: dict[str, Any]) -> tuple[float, str]:
    """0 for other units than of time (Hz, ppm, rad/s), and for what cannot be a step."""
    scale, unit = _TIME_UNITS.get(int(fields["xyzt_units"]) & 0x38, (0.0, "none"))
    step = float(fields["pixdim"][4]) if fields["dim"][0] > 3 else 0.0
    seconds = round(step * scale, 6) if np.isfinite(step) else 0.0
    return max(seconds, 0.0), unit


def _sform(fields: dict[str, Any]) -> np.ndarray | None:
    if int(fields["sform_code"]) <= 0:
        return None
    rows = [fields["srow_x"], fields["srow_y"], fields["srow_z"], [0, 0, 0, 1]]
    return np.array(rows, np.float64)


def _qform(fields: dict[str, Any], pixdim: np.ndarray) -> np.ndarray | None:
    """NaN where the quaternion is none."""
    if int(fields["qform_code"]) <= 0:
        return None
    b, c, d = (float(fields[f"quatern_{name}"]) for name in "bcd")
    rest = 1 - (b * b + c * c + d * d)
    a = np.sqrt(max(rest, 0.0)) if rest > -1e-5 else np.nan
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.abs(pixdim[1:4]) * [1, 1, -1 if pixdim[0] < 0 else 1]
    affine[:3, 3] = [float(fields[f"qoffset_{name}"]) for name in "xyz"]
    return affine
