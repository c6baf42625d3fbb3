"""Read a recording to its last byte and check it before anything is computed from it.

Nothing in the ecosystem checks the checksum of a compressed image, the plausibility of its
repetition time or the presence of an orientation; each has been seen wrong in public data. Here
every such file ends with a status and a reason that says what was expected and found.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...errors import RecordingError
from ...files import describe_absent
from .metadata import check_sidecar, note_single_echo, read_affine
from .nifti_header import Header, read_header
from .series_table import check_names, load_parcel_cifti, load_table, order_parcels
from .sidecars import Sidecar, read_sidecar
from .timing import Statement, agree_repetition_time, read_statements

_BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class Bold:
    """A checked recording.

    Attributes
    ----------
    volumes : ndarray [T, Z, Y, X]
        float32, scanner units, C order.
    affine : ndarray [4, 4]
        Voxel (x, y, z) to world mm (RAS).
    tr_s : float
    sidecar : Sidecar
        All inherited BIDS metadata.
    warnings : list of str
        What was odd but usable.
    echo_times_s : tuple of float
        Of the echoes that were combined; empty for a run of one.
    """

    volumes: np.ndarray
    affine: np.ndarray
    tr_s: float
    sidecar: Sidecar = field(default_factory=Sidecar)
    warnings: list[str] = field(default_factory=list)
    echo_times_s: tuple[float, ...] = ()


def read_bold(
    path: str | Path, *, repetition_time_s: float | None = None, orientation: str | None = None
) -> Bold:
    """Read and check one 4-D NIfTI recording.

    Parameters
    ----------
    path : path
        ``.nii`` or ``.nii.gz``, any numeric type, byte order and scale slope.
    repetition_time_s : float, optional
        Of the cohort's entry: used where the data do not state it, refused where they differ.
    orientation : str, optional
        ``LAS`` and the like, of the cohort's entry; likewise.

    Raises
    ------
    RecordingError
        ``unreadable`` (truncated, corrupt, not 4-D), ``bad_metadata`` (repetition time,
        orientation, sidecar), ``too_short`` (one volume) or ``bad_data`` (NaN, constant volumes).
    """
    run = open_bold(path, repetition_time_s=repetition_time_s, orientation=orientation)
    volumes, ranges = _read_volumes(run.path, run.header, run.shape, run.warnings)
    run.check_unchanged()
    check_volumes(run.path, volumes, ranges, run.warnings)
    run.warnings.extend(note_single_echo(run.path))
    return Bold(volumes, run.affine, run.tr_s, run.sidecar, run.warnings)


@dataclass(frozen=True)
class OpenBold:
    """A recording whose header and metadata are checked, and whose voxels are still to be read.

    Attributes
    ----------
    header : Header
    shape : tuple
        (X, Y, Z, T).
    affine, tr_s, sidecar, warnings
        As in :class:`Bold`.
    """

    path: Path
    header: Header
    shape: tuple[int, int, int, int]
    affine: np.ndarray
    tr_s: float
    sidecar: Sidecar
    warnings: list[str]
    fingerprint: tuple[int, int]

    def blocks(self) -> Iterator[np.ndarray]:
        """The volumes in order, float32 [t, Z, Y, X] at a time (some 32 MB), to the last byte.

        Voxels that are not finite in the first volume are background, and 0 in all of them.

        Raises
        ------
        RecordingError
            ``unreadable`` or ``bad_data``, as :func:`read_bold`.
        """
        background: np.ndarray | None = None
        start = 0
        for block in _read_blocks(self.path, self.header, self.shape, self.warnings):
            if background is None:
                background = ~np.isfinite(block[0])
            block[:, background] = 0
            low, high = block.min((1, 2, 3)), block.max((1, 2, 3))
            odd = np.flatnonzero(~np.isfinite(low + high) | (low == high)) + start
            if len(odd):
                raise RecordingError(
                    "bad_data",
                    f"{self.path}: volumes that are empty, constant or hold NaN or infinite "
                    f"values ({_indices(odd)}); cut them off or repair the file",
                )
            start += len(block)
            yield block
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """RecordingError if the file is not the one that was opened."""
        if _fingerprint(self.path) != self.fingerprint:
            raise RecordingError(
                "unreadable",
                f"{self.path}: changed while it was read; run again when the copy is complete",
            )


def open_bold(
    path: str | Path, *, repetition_time_s: float | None = None, orientation: str | None = None
) -> OpenBold:
    """Check everything of a recording but its voxels; parameters and errors as `read_bold`."""
    path = Path(path)
    warnings: list[str] = []
    before = _fingerprint(path)
    header = read_header(path)
    warnings += header.warnings
    shape = _series_shape(path, header.shape)
    affine = read_affine(path, header, warnings, orientation)
    sidecar = read_sidecar(path)
    check_sidecar(path, sidecar)
    stated = read_statements(path, sidecar, shape[3])
    tr_s = agree_repetition_time(path, stated, repetition_time_s, header, warnings)
    return OpenBold(path, header, shape, affine, tr_s, sidecar, warnings, before)


def read_image(path: str | Path, *, average: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Read and check one 3-D image, e.g. a T1w.

    Parameters
    ----------
    average : bool
        Also take a 4-D image: the mean of its first volumes (some 32 MB of them).

    Returns
    -------
    volume : ndarray [Z, Y, X]
        float32.
    affine : ndarray [4, 4]

    Raises
    ------
    RecordingError
    """
    path = Path(path)
    header = read_header(path)
    flat = max(header.shape[3:], default=1) == 1
    if len(header.shape) < 3 or not (flat or (average and len(header.shape) == 4)):
        raise RecordingError(
            "unreadable", f"{path}: expected a 3-D image, found shape {_text(header.shape)}"
        )
    affine = read_affine(path, header, [])
    if flat:
        x, y, z = header.shape[:3]
        volumes, _ = _read_volumes(path, header, (x, y, z, 1), [])
    else:
        volumes = next(_read_blocks(path, header, header.shape, []))  # type: ignore[arg-type]
    volume = volumes[0] if len(volumes) == 1 else volumes.mean(0)
    volume = np.nan_to_num(volume, nan=0.0, posinf=0.0, neginf=0.0, copy=False)
    if volume.min() == volume.max():
        raise RecordingError("bad_data", f"{path}: every voxel is {volume.flat[0]:g}")
    return volume, affine


def read_series(
    path: str | Path,
    *,
    repetition_time_s: float | None = None,
    parcels: Sequence[str] = (),
    other_names: bool = False,
) -> tuple[np.ndarray, float]:
    """Read parcel series as they were delivered.

    Parameters
    ----------
    path : path
        ``.npy`` (never unpickled), ``.tsv`` (with or without a header line; n/a and nothing are
        NaN), BrainLM's ``.dat`` (blank-separated numbers), one row per time point, or CIFTI-2's
        ``.ptseries.nii``.
    repetition_time_s : float, optional
        Used where no sidecar states it, refused where one differs.
    parcels : sequence of str
        The atlas's names [R] where it has some: a header's must be these, in this order (of a
        ``ptseries.nii`` in any).
    other_names : bool
        The header may have other names (but not these in another order).

    Returns
    -------
    series : ndarray [T, R]
        float32.
    tr_s : float

    Raises
    ------
    RecordingError
    """
    path = Path(path)
    _fingerprint(path)
    cifti = path.name.endswith(".ptseries.nii")
    in_header: list[Statement] = []
    try:
        if cifti:
            series, names, step_s = load_parcel_cifti(path)
            series, names = order_parcels(series, names, parcels)
            in_header = [Statement(step_s, "the CIFTI header")]
        else:
            series, names = load_table(path)
    except (OSError, ValueError, EOFError) as error:
        raise RecordingError(
            "unreadable", f"{path}: expected a table of numbers, one row per time point ({error})"
        ) from None
    if series.ndim != 2 or min(series.shape) < 2 or series.dtype.kind not in "fiu":
        raise RecordingError(
            "unreadable",
            f"{path}: expected numbers [time, parcel], found {series.dtype} {_text(series.shape)}",
        )
    check_names(path, names, parcels, other_names)
    stated = read_statements(path, read_sidecar(path), len(series))
    seconds = agree_repetition_time(path, [*stated, *in_header], repetition_time_s)
    return series.astype(np.float32), seconds


def _fingerprint(path: Path) -> tuple[int, int]:
    if absent := describe_absent(path):
        raise RecordingError("unreadable", f"{path}: {absent}")
    try:
        status = path.stat()
    except OSError as error:
        raise RecordingError("unreadable", f"{path}: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns


def _series_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """(X, Y, Z, T); trailing axes of length one are dropped."""
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 4:
        raise RecordingError(
            "unreadable",
            f"{path}: expected a 4-D image (x, y, z, time), found {len(shape)} dimensions "
            f"({_text(shape)})",
        )
    if shape[3] < 2:
        raise RecordingError("too_short", f"{path}: {shape[3]} volume, at least 2 needed")
    return shape[0], shape[1], shape[2], shape[3]


def _read_volumes(
    path: Path, header: Header, shape: tuple[int, int, int, int], warnings: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Decompress to the end (so that the gzip checksum counts), scale, and note what is odd.

    Returns
    -------
    volumes : ndarray [T, Z, Y, X]
        float32; the transposed view of a Fortran-ordered NIfTI array is C order.
    ranges : ndarray [T, 2]
        Smallest and largest value of every volume; NaN where a volume is not finite.
    """
    x, y, z, count = shape
    volumes = np.empty((count, z, y, x), np.float32)
    ranges = np.empty((count, 2))
    start = 0
    for block in _read_blocks(path, header, shape, warnings, volumes):
        stop = start + len(block)
        with np.errstate(invalid="ignore"):
            ranges[start:stop, 0] = block.min((1, 2, 3))
            ranges[start:stop, 1] = block.max((1, 2, 3))
        start = stop
    return volumes, ranges


def _read_blocks(
    path: Path,
    header: Header,
    shape: tuple[int, int, int, int],
    warnings: list[str],
    out: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Some volumes [t, Z, Y, X] at a time, in order, into `out` if it is given."""
    dtype = header.dtype
    x, y, z, count = shape
    step = max(1, _BLOCK_BYTES // (dtype.itemsize * x * y * z))
    try:
        with path.open("rb") as handle:
            stream: BinaryIO = gzip.GzipFile(fileobj=handle) if path.suffix == ".gz" else handle  # type: ignore[assignment]
            _skip(stream, header.offset)
            for start in range(0, count, step):
                size = min(step, count - start)
                empty = out is None
                block = np.empty((size, z, y, x), np.float32) if empty else out[start:][:size]  # type: ignore[index]
                _fill(stream, block, dtype, header.slope, header.inter)
                yield block
            rest = 0
            while more := stream.read(_BLOCK_BYTES):
                rest += len(more)
    except (EOFError, gzip.BadGzipFile, zlib.error, OSError) as error:
        raise RecordingError(
            "unreadable",
            f"{path}: expected {count} volumes of {x} x {y} x {z}, the file ends early or is "
            f"corrupt ({error}); copy it again",
        ) from None
    if rest >= dtype.itemsize * x * y * z:
        raise RecordingError(
            "bad_metadata",
            f"{path}: the header promises {count} volumes, the file has {rest} more bytes "
            f"({rest / (dtype.itemsize * x * y * z):.4g} volumes); convert the image again",
        )
    if rest:
        warnings.append(f"surplus bytes: {rest} bytes behind the last voxel are not read")


def _skip(stream: BinaryIO, count: int) -> None:
    if len(stream.read(count)) < count:
        raise EOFError("cut off in the header")


def _fill(stream: BinaryIO, block: np.ndarray, dtype: np.dtype, slope: float, inter: float):
    raw = np.empty(block.shape, dtype)
    view = raw.reshape(-1).view(np.uint8).data
    filled = 0
    while filled < raw.nbytes:
        got = stream.readinto(view[filled:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError("fewer bytes than the header promises")
        filled += got
    with np.errstate(over="ignore", invalid="ignore"):
        block[...] = raw
    if slope != 1:
        block *= np.float32(slope)
    if inter != 0:
        block += np.float32(inter)


def check_volumes(
    path: Path, volumes: np.ndarray, ranges: np.ndarray, warnings: list[str]
) -> None:
    """NaN background is set to 0; a volume with NaN elsewhere, or of one value, is an error."""
    odd = np.flatnonzero(~np.isfinite(ranges).all(1))
    if len(odd):
        always = ~np.isfinite(volumes).any(0)  # [Z, Y, X]
        bad = [t for t in odd if (~np.isfinite(volumes[t]) & ~always).any()]
        if bad or always.all():
            bad = bad or list(odd)
            raise RecordingError(
                "bad_data",
                f"{path}: {len(bad)} of {len(volumes)} volumes hold NaN or infinite values "
                f"({_indices(bad)}); cut them off or repair the file",
            )
        volumes[:, always] = 0
        warnings.append(f"background: {int(always.sum())} voxels are NaN in every volume")
        ranges[:, 0], ranges[:, 1] = volumes.min((1, 2, 3)), volumes.max((1, 2, 3))
    flat = np.flatnonzero(ranges[:, 0] == ranges[:, 1])
    if len(flat) == len(volumes):
        raise RecordingError("bad_data", f"{path}: every voxel of every volume is the same value")
    if len(flat):
        raise RecordingError(
            "bad_data",
            f"{path}: {len(flat)} of {len(volumes)} volumes are empty or constant "
            f"({_indices(flat)}); cut them off or repair the file",
        )
    alike = np.flatnonzero((ranges[1:] == ranges[:-1]).all(1)) + 1  # few are left to compare
    same = [int(t) for t in alike if (volumes[t] == volumes[t - 1]).all()]
    if 0 < len(same) < len(volumes) - 1:
        raise RecordingError(
            "bad_data",
            f"{path}: {len(same)} of {len(volumes)} volumes repeat the one before "
            f"({_indices(same)}): lost volumes were filled; exclude the recording",
        )
    if (volumes[0] == volumes[-1]).all() and (volumes[0] == volumes[len(volumes) // 2]).all():
        raise RecordingError("bad_data", f"{path}: the volumes do not vary in time")


def _indices(values: Any) -> str:
    shown = ", ".join(str(int(v)) for v in values[:8])
    return f"index {shown}" + (", ..." if len(values) > 8 else "")


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)
