"""From an atlas image to parcel series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numba
import numpy as np

from ...atlas import Atlas
from ...errors import BrainLMError, RecordingError
from ..kernels.spline import in_threads

#: A parcel mean below this share of the median parcel's is outside the brain, not signal.
EMPTY_SHARE = 0.05
_POINTS: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}


def load_labels(atlas: Atlas) -> tuple[np.ndarray, np.ndarray]:
    """Open the label image of an atlas and refuse one that is not what the registry says.

    Returns
    -------
    labels : ndarray [Z, Y, X]
        int32; 0 outside all parcels, and every number of 1..R somewhere.
    affine : ndarray [4, 4]
        Voxel (x, y, z) to template mm.

    Raises
    ------
    BrainLMError
        No image, not a 3-D image of whole numbers, a missing or an extra label, or a grid that is
        not aligned with the axes of the template.
    """
    import nibabel as nib

    if atlas.image is not None and atlas.image.name.endswith(".dlabel.nii"):
        raise BrainLMError(
            f"{atlas.image}: an atlas of grayordinates parcellates dtseries.nii only (layout: "
            "cifti); for images choose an atlas with a label image"
        )
    if atlas.image is None:
        raise BrainLMError(
            f"atlas {atlas.name}: known by its time series only; images cannot be parcellated "
            "with it; choose an atlas with a label image"
        )
    try:
        image: Any = nib.load(atlas.image)
        values = np.asarray(image.dataobj).T
    except Exception as error:
        raise BrainLMError(f"{atlas.image}: not a readable NIfTI image ({error})") from None
    if values.ndim != 3:
        raise BrainLMError(f"{atlas.image}: expected a 3-D image, found {values.ndim} dimensions")
    labels = check_labels(atlas.image, atlas.name, atlas.num_parcels, values)
    _check_grid(atlas, labels, image.affine)
    return labels, np.asarray(image.affine, np.float64)


def check_labels(path: Path, name: str, count: int, values: np.ndarray) -> np.ndarray:
    """The labels as int32, which must be 0 and each of 1..`count` of the atlas `name`.

    Raises
    ------
    BrainLMError
    """
    if not np.isfinite(values).all() or (values != np.round(values)).any():
        raise BrainLMError(f"{path}: expected whole-number labels, found fractions or NaN")
    found = np.unique(values[values != 0]).astype(np.int64)
    expected = np.arange(1, count + 1)
    missing, extra = np.setdiff1d(expected, found), np.setdiff1d(found, expected)
    if len(missing) or len(extra):
        told = [f"{len(missing)} missing ({_few(missing)})"] if len(missing) else []
        told += [f"{len(extra)} unknown ({_few(extra)})"] if len(extra) else []
        raise BrainLMError(
            f"{path}: expected labels 1..{count} of atlas {name}, found "
            f"{len(found)}: {', '.join(told)}; use the complete label image"
        )
    return np.ascontiguousarray(values, np.int32)


def _few(values: np.ndarray) -> str:
    return ", ".join(str(v) for v in values[:5]) + (", ..." if len(values) > 5 else "")


def _check_grid(atlas: Atlas, labels: np.ndarray, affine: np.ndarray) -> None:
    """The grid must be aligned with the template and hold it where a head is.

    The template's corner is not known for every space; an atlas that was moved or resampled on
    an oblique grid shows by rotation terms, or by labels further out than any brain reaches.
    """
    steps = np.abs(affine[:3, :3])
    oblique = np.count_nonzero(steps > 1e-3 * steps.max()) != 3
    corners = np.argwhere(labels)[:, ::-1]
    world = corners @ affine[:3, :3].T + affine[:3, 3]
    low, high, middle = world.min(0), world.max(0), world.mean(0)
    outside = (low < (-85, -120, -80)).any() or (high > (85, 90, 95)).any()
    if oblique or outside or np.abs(middle - (0, -20, 10)).max() > 25:
        raise BrainLMError(
            f"{atlas.image}: expected labels on an upright grid in {atlas.space} (mm), found "
            f"x {low[0]:.0f}..{high[0]:.0f}, y {low[1]:.0f}..{high[1]:.0f}, "
            f"z {low[2]:.0f}..{high[2]:.0f}{', oblique' if oblique else ''}; this is not the "
            "template's grid: use the original label image"
        )


def parcel_points(atlas: Atlas) -> tuple[np.ndarray, np.ndarray]:
    """Where a parcellation has voxels (kept in memory; do not write to the arrays).

    Returns
    -------
    points : ndarray [N, 3]
        Template mm.
    labels : ndarray [N]
        int32, 1..R.

    Raises
    ------
    BrainLMError
        As :func:`load_labels`.
    """
    key = (str(atlas.image), atlas.image_sha256)
    if key not in _POINTS:
        labels, affine = load_labels(atlas)
        voxels = np.argwhere(labels)
        points = voxels[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
        _POINTS[key] = np.ascontiguousarray(points), labels[tuple(voxels.T)]
    return _POINTS[key]


def parcellate_volumes(volumes: np.ndarray, labels: np.ndarray, num_parcels: int) -> np.ndarray:
    """Mean of every parcel in volumes that are on the atlas's grid already.

    Parameters
    ----------
    volumes : ndarray [T, Z, Y, X]
        Any real type.
    labels : ndarray [Z, Y, X]
        1..R; 0 is outside.

    Returns
    -------
    series : ndarray [T, R]
        float64 (sums in double precision); NaN for a parcel without voxels.

    Raises
    ------
    BrainLMError
        The grids differ.
    """
    if volumes.shape[1:] != labels.shape:
        raise BrainLMError(
            f"volumes of shape {volumes.shape[1:]} are not on the atlas's grid {labels.shape}"
        )
    flat = labels.ravel()
    where = np.flatnonzero(flat)
    parcel = (flat[where] - 1).astype(np.int32)
    counts = np.bincount(parcel, minlength=num_parcels)
    sums = np.zeros((len(volumes), num_parcels))
    rows = np.ascontiguousarray(volumes).reshape(len(volumes), -1)
    in_threads(_add_voxels, len(rows), rows, where, parcel, sums)
    with np.errstate(invalid="ignore"):
        return sums / counts


@numba.njit(cache=True, nogil=True)
def _add_voxels(first, last, volumes, where, parcel, sums):
    for t in range(first, last):
        volume, row = volumes[t], sums[t]
        for i in range(len(where)):
            row[parcel[i]] += volume[where[i]]


def to_percent(
    series: np.ndarray, cleaned: np.ndarray, coverage: np.ndarray, min_coverage: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Percent of each parcel's mean, NaN where there is too little of a parcel.

    Parameters
    ----------
    series, cleaned : ndarray [T, R]
        Parcel means as measured, and the same after filtering and denoising (zero mean).
    coverage : ndarray [R]
        Share of each parcel with data.
    min_coverage : float
        Below this a column is NaN, never 0.

    Returns
    -------
    percent : ndarray [T, R]
    baseline : ndarray [R]
        Temporal means, scanner units; NaN where the column is.
    coverage : ndarray [R]
        0 for parcels whose mean is too low to be brain.

    Raises
    ------
    RecordingError
        ``parcellation_failed``: less than half of the parcels have data.
    """
    with np.errstate(invalid="ignore"):
        baseline = series.mean(0)
        middle = np.nanmedian(baseline) if np.isfinite(baseline).any() else np.nan
        covered = np.where(baseline > EMPTY_SHARE * middle, np.nan_to_num(coverage), 0.0)
        alive = (cleaned.std(0) > 0) & (covered >= min_coverage) & (covered > 0)
    if alive.mean() < 0.5:
        raise RecordingError(
            "parcellation_failed",
            f"{int(alive.sum())} of {len(alive)} parcels have data (coverage of at least "
            f"{min_coverage:g}), at least half needed; is this a whole-brain recording?",
        )
    percent = np.full(cleaned.shape, np.nan)
    percent[:, alive] = 100 * cleaned[:, alive] / baseline[alive]
    return percent, np.where(alive, baseline, np.nan), covered
