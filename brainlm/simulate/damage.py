"""Recordings broken on purpose, each in a way that has been seen in real data."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import BrainLMError
from ..files import atomic_path, read_json, write_json, write_text


def damage_file(path: str | Path, kind: str) -> None:
    """Break a recording in place.

    Parameters
    ----------
    path : str or Path
        A ``*_bold.nii[.gz]``; its sidecar, if there is one, is changed where `kind` says so.
    kind : str
        One of :data:`DAMAGE_KINDS`.

    Raises
    ------
    BrainLMError
        `kind` is not known.
    """
    if kind not in _DAMAGES:
        raise BrainLMError(f"unknown damage {kind!r}; one of: {', '.join(DAMAGE_KINDS)}")
    _DAMAGES[kind](Path(path))


def sidecar_path(path: Path) -> Path:
    """The JSON next to an image."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def write_image(path: Path, image) -> None:
    """Write a NIfTI image whole, and the same bytes every time (no time stamp in the gzip)."""
    with atomic_path(path) as temporary, open(temporary, "wb") as raw:
        if path.suffix != ".gz":
            raw.write(image.to_bytes())
            return
        with gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed:
            packed.write(image.to_bytes())


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    _write_bytes(path, content[: len(content) * 6 // 10])


def _corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    _write_bytes(path, bytes(content))


def _write_bytes(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _nan_volume(path: Path) -> None:
    data, image = _read(path)
    data = data.astype(np.float32)
    data[..., data.shape[3] // 2] = np.nan
    _rewrite(path, data, image)


def _empty(path: Path) -> None:
    data, image = _read(path)
    _rewrite(path, np.zeros_like(data), image)


def _keep_volumes(count: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data, image = _read(path)
        _rewrite(path, data[..., :count], image)

    return damage


def _three_d(path: Path) -> None:
    data, image = _read(path)
    _rewrite(path, data[..., 0], image)


def _wrong_tr(path: Path) -> None:
    """Milliseconds under a key that means seconds; without a sidecar, in the header."""
    sidecar = sidecar_path(path)
    if sidecar.exists():
        fields = read_json(sidecar)
        write_json(sidecar, fields | {"RepetitionTime": 1000 * fields["RepetitionTime"]})
    else:
        _set_header_tr(path, lambda tr_s: 1000 * tr_s)


def _no_tr(path: Path) -> None:
    sidecar = sidecar_path(path)
    if sidecar.exists():
        fields = read_json(sidecar)
        fields.pop("RepetitionTime", None)
        write_json(sidecar, fields)
    _set_header_tr(path, lambda tr_s: 0.0)


def _set_header_tr(path: Path, change: Callable[[float], float]) -> None:
    data, image = _read(path)
    image.header["pixdim"][4] = change(float(image.header["pixdim"][4]))
    _rewrite(path, data, image)


def _missing_sform(path: Path) -> None:
    data, image = _read(path)
    for field in ("sform_code", "qform_code"):
        image.header[field] = 0
    for field in ("srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"):
        image.header[field] = 0
    _rewrite(path, data, image)


def _not_json(path: Path) -> None:
    write_text(sidecar_path(path), '{"RepetitionTime": 2.0,\n  "TaskName" "rest"\n')


def _read(path: Path):
    import nibabel

    image = nibabel.Nifti1Image.from_filename(path)
    return np.asarray(image.dataobj).copy(), image


def _rewrite(path: Path, data: np.ndarray, image) -> None:
    """Other voxels under the same header: affines and units stay exactly as they are."""
    import nibabel

    header = image.header.copy()
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    write_image(path, nibabel.Nifti1Image(data, None, header))


_DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": _truncate,
    "corrupt": _corrupt,
    "nan_volume": _nan_volume,
    "wrong_tr": _wrong_tr,
    "no_tr": _no_tr,
    "missing_sform": _missing_sform,
    "one_volume": _keep_volumes(1),
    "three_d": _three_d,
    "short": _keep_volumes(10),
    "empty": _empty,
    "not_json": _not_json,
}
#: What :func:`damage_file` can do.
DAMAGE_KINDS = tuple(_DAMAGES)
