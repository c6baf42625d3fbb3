"""Runs of grayordinates (CIFTI-2's ``dtseries.nii``): opened, checked, and averaged in parcels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...atlas import Atlas
from ...errors import RecordingError
from ...files import describe_absent
from ..io.sidecars import read_sidecar
from ..io.timing import Statement, agree_repetition_time, read_statements
from ..parcellate.dense_labels import load_dense, match_grayordinates
from ..parcellate.parcel_means import EMPTY_SHARE
from ..quality import QUALITY_POINTS

_BLOCK = 4000  # grayordinates at a time: in the file all of their time is together


@dataclass(frozen=True)
class OpenDense:
    """A run whose header and metadata are checked.

    Attributes
    ----------
    shape : tuple
        (G, 1, 1, T), as of an image.
    axis : nibabel.cifti2.BrainModelAxis
        The grayordinates [G].
    """

    path: Path
    shape: tuple[int, int, int, int]
    tr_s: float
    axis: Any
    values: Any
    warnings: list[str] = field(default_factory=list)


def open_dense(path: Path, *, repetition_time_s: float | None = None) -> OpenDense:
    """Open a ``dtseries.nii``.

    Raises
    ------
    RecordingError
        ``unreadable``: not such a file. ``bad_metadata``: no repetition time, or two.
    """
    import nibabel as nib
    from nibabel.cifti2 import BrainModelAxis, SeriesAxis
    from nibabel.filebasedimages import ImageFileError

    if absent := describe_absent(path):
        raise RecordingError("unreadable", f"{path}: {absent}")
    try:
        image: Any = nib.load(path)
        time, places = (image.header.get_axis(i) for i in range(2))
        if not (isinstance(time, SeriesAxis) and isinstance(places, BrainModelAxis)):
            kinds = f"{type(time).__name__} x {type(places).__name__}"
            raise ValueError(f"expected time x grayordinates, found {kinds}")
        if time.unit != "SECOND":
            raise ValueError(f"steps in {time.unit}, expected seconds")
    except (ImageFileError, AttributeError, ValueError, OSError) as error:
        raise RecordingError("unreadable", f"{path}: not a CIFTI-2 series ({error})") from None
    stated = read_statements(path, read_sidecar(path), len(time))
    stated = [*stated, Statement(float(time.step), "the CIFTI header")]
    seconds = agree_repetition_time(path, stated, repetition_time_s)
    shape = (len(places), 1, 1, len(time))
    return OpenDense(path, shape, seconds, places, image.dataobj)


def average_parcels(run: OpenDense, atlas: Atlas) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parcel means [T, R], coverage [R] and grayordinates [T, N] to measure quality on.

    Coverage is the share of the atlas's grayordinates of a parcel that the run has (most have no
    medial wall) and that have content: neither empty nor constant.

    Raises
    ------
    RecordingError
        ``bad_data``: values missing here and there, or series around 0, without their mean;
        ``unreadable``.
    """
    labels = load_dense(atlas)
    parcel = match_grayordinates(run.path, run.axis, labels)
    where = np.flatnonzero(parcel)
    if not len(where):
        raise RecordingError(
            "bad_data", f"{run.path}: none of its grayordinates has a parcel of {atlas.name}"
        )
    sums = np.zeros((run.shape[3], atlas.num_parcels + 1))
    counted = np.zeros(atlas.num_parcels + 1, int)
    level = _level(run, where)
    picked: list[np.ndarray] = []
    every = max(1, len(where) // QUALITY_POINTS)
    for first in range(0, run.shape[0], _BLOCK):
        own = parcel[first : first + _BLOCK]
        if not own.any():
            continue
        block = _read(run, slice(first, first + _BLOCK))[:, own > 0]
        own = own[own > 0]
        alive = (np.ptp(block, axis=0) > 0) & (np.median(block, axis=0) > EMPTY_SHARE * level)
        np.add.at(sums.T, own[alive], block[:, alive].T)
        counted += np.bincount(own[alive], minlength=len(counted))
        picked.append(block[:, alive][:, ::every])
    with np.errstate(invalid="ignore", divide="ignore"):
        series = sums[:, 1:] / counted[1:]
    return series, counted[1:] / labels.count(), np.concatenate(picked, 1).astype(np.float32)


def _level(run: OpenDense, where: np.ndarray) -> float:
    """The usual value of a grayordinate, by some of them; moments of motion count for little."""
    some = [_read(run, slice(k, k + 1)) for k in where[:: max(1, len(where) // 500)]]
    level = np.median([np.median(values) for values in some])
    if level <= np.median([np.median(np.abs(values - np.median(values))) for values in some]):
        raise RecordingError(
            "bad_data",
            f"{run.path}: series around 0 (median {level:.3g}): they are residuals; "
            "deliver them with their mean",
        )
    return float(level)


def _read(run: OpenDense, part: slice) -> np.ndarray:
    """[T, g] grayordinates, float32."""
    try:
        block = np.asarray(run.values[:, part], np.float32)
    except (OSError, EOFError, ValueError) as error:
        raise RecordingError("unreadable", f"{run.path}: {error}") from None
    missing = ~np.isfinite(block)
    if (missing.any(0) & ~missing.all(0)).any():
        raise RecordingError(
            "bad_data", f"{run.path}: NaN or infinite values at some time points; repair the file"
        )
    return np.where(missing, 0, block)
