"""Read volumes at points in the world: one interpolation from raw voxels to parcel series.

A point is inside the field of view when it is no further than half a voxel outside the centres
of the outermost voxels; there the volume is mirrored. Voxels that are not finite are gaps: a
point with a gap among the (up to eight) voxels around it is NaN in that volume, and no other
point is touched (gaps are filled from their row before the spline coefficients are computed).
"""

from __future__ import annotations

import numpy as np

from .spline import in_threads, read_volumes

#: FWHM in voxels of what the spline sum over unfiltered voxels smooths.
SPLINE_FWHM = 1.36


def smooth_for_sums(image: np.ndarray, affine: np.ndarray, fwhm_mm: float) -> np.ndarray:
    """An image [Z, Y, X], float32, that has `fwhm_mm` once it is read by spline sums."""
    from scipy import ndimage

    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))[::-1]
    width = np.sqrt(np.maximum(fwhm_mm**2 - (SPLINE_FWHM * zooms) ** 2, 0)) / 2.355
    return ndimage.gaussian_filter(image, width / zooms, output=np.float32)


def sample(
    volumes: np.ndarray,
    affine: np.ndarray,
    points: np.ndarray,
    transforms: np.ndarray | None = None,
    gains: np.ndarray | None = None,
) -> np.ndarray:
    """Interpolate volumes at points by cubic B-splines.

    Parameters
    ----------
    volumes : float32 [T, Z, Y, X]
    affine : [4, 4]
        Voxel (x, y, z) -> world mm.
    points : [N, 3]
        Reference world, mm.
    transforms : [T, 4, 4], optional
        Reference world -> world of volume t; identity if not given.
    gains : [N], optional
        What the values at each point are multiplied by.

    Returns
    -------
    float32 [T, N]
        NaN outside the field of view and next to voxels that are not finite.

    Notes
    -----
    Equals ``scipy.ndimage.map_coordinates(order=3, mode="mirror")`` up to float32 rounding.
    """
    return _read(volumes, affine, points, transforms, gains, interpolate=True)


def sample_smooth(
    volumes: np.ndarray,
    affine: np.ndarray,
    points: np.ndarray,
    transforms: np.ndarray | None = None,
    gains: np.ndarray | None = None,
) -> np.ndarray:
    """As :func:`sample`, but smoothed on the way (Gaussian-like, :data:`SPLINE_FWHM`), and faster.

    The cubic B-spline sum over the voxels themselves, without the prefilter.
    """
    return _read(volumes, affine, points, transforms, gains, interpolate=False)


def sample_parcels(
    volumes: np.ndarray,
    affine: np.ndarray,
    points: np.ndarray,
    labels: np.ndarray,
    num_parcels: int,
    transforms: np.ndarray | None = None,
    gains: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each parcel in each volume, read where the parcel's points lie.

    Interpolated values are added to their parcel in the same loop, in double precision. A point
    that leaves the field of view in any volume is left out of all of them, so that a parcel is
    the same set of points throughout; so is a point next to voxels that are not finite in any
    volume. Elsewhere a point next to a gap is left out of that volume only.

    Parameters
    ----------
    volumes, affine, points, transforms, gains
        As in :func:`sample`.
    labels : int [N]
        Parcel 1..R of each point; 0 belongs to none.
    num_parcels : int
        R.

    Returns
    -------
    series : float64 [T, R]
        NaN for a parcel with no sample (in that volume).
    coverage : float64 [R]
        Share of a parcel's points that lie inside the field of view in all volumes; NaN for a
        parcel that has no points.
    """
    labels = np.array(labels, np.int64)
    if labels.size and not (labels.min() >= 0 and labels.max() <= num_parcels):
        raise ValueError(f"labels must be 0..{num_parcels}, found {labels.min()}..{labels.max()}")
    volumes, points, grids = _prepare(volumes, affine, points, transforms)
    wanted = np.bincount(labels, minlength=num_parcels + 1)[1:]
    labels[~_inside_all(volumes, points, grids)] = 0
    kept = np.bincount(labels, minlength=num_parcels + 1)[1:]
    used = labels > 0
    sums = np.zeros((len(volumes), num_parcels))
    counts = np.zeros_like(sums)
    nothing = np.empty((len(volumes), 0), np.float32)
    if used.any():
        in_threads(
            read_volumes, len(volumes), volumes, grids, np.ascontiguousarray(points[used].T),
            np.ascontiguousarray(labels[used]), _gains(gains, len(used))[used], True, nothing,
            sums, counts,
        )  # fmt: skip
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums / counts, kept / wanted


def _read(volumes, affine, points, transforms, gains, *, interpolate: bool) -> np.ndarray:
    volumes, points, grids = _prepare(volumes, affine, points, transforms)
    values = np.empty((len(volumes), len(points)), np.float32)
    nothing = np.empty((len(volumes), 0))
    in_threads(
        read_volumes, len(volumes), volumes, grids, np.ascontiguousarray(points.T),
        np.empty(0, np.int64), _gains(gains, 0), interpolate, values, nothing, nothing,
    )  # fmt: skip
    if gains is not None:
        values *= np.asarray(gains, np.float32)
    return values


def _gains(gains: np.ndarray | None, count: int) -> np.ndarray:
    return np.ones(count, np.float32) if gains is None else np.asarray(gains, np.float32)


def _prepare(volumes, affine, points, transforms):
    """Contiguous arrays of the right types, and the world -> voxel map of each volume."""
    volumes = np.ascontiguousarray(volumes, np.float32)
    points = np.ascontiguousarray(points, np.float64)
    if volumes.ndim != 4 or points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"expected [T,Z,Y,X] and [N,3], found {volumes.shape}, {points.shape}")
    if transforms is None:
        transforms = np.broadcast_to(np.eye(4), (len(volumes), 4, 4))
    grids = np.linalg.inv(affine) @ np.asarray(transforms, np.float64)
    return volumes, points, np.ascontiguousarray(grids[:, :3])


def _inside_all(volumes: np.ndarray, points: np.ndarray, grids: np.ndarray) -> np.ndarray:
    """Which points [N] lie inside every volume and next to a finite voxel at least once."""
    size = np.array(volumes.shape[:0:-1])
    low, high = points.min(axis=0), points.max(axis=0)
    box = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, 8)
    # how far a point of the box moves between volumes, at most: as the corners of the box do
    moves = grids - grids[0]
    reach = np.abs(moves[:, :, :3] @ box + moves[:, :, 3:]).max(axis=(0, 2)) + 1e-6
    first = points @ grids[0, :, :3].T + grids[0, :, 3]
    depth = np.minimum(first + 0.5, size - 0.5 - first)  # voxels from the nearest border
    inside = (depth >= reach).all(axis=1)
    near = np.flatnonzero(~inside & (depth >= -reach).all(axis=1))
    if near.size:
        found = np.ones(near.size, bool)
        for grid in grids:
            index = points[near] @ grid[:, :3].T + grid[:, 3]
            found &= ((index >= -0.5) & (index <= size - 0.5)).all(axis=1)
        inside[near] = found
    never = _never_finite(volumes)
    if never is not None:
        index = np.rint(points @ grids[0, :, :3].T + grids[0, :, 3]).astype(int)
        index = np.clip(index, 0, size - 1)
        inside &= ~never[index[:, 2], index[:, 1], index[:, 0]]
    return inside


def _never_finite(volumes: np.ndarray) -> np.ndarray | None:
    """Voxels [Z, Y, X] that are finite in no volume; None if there are none (the usual case)."""
    if all(np.isfinite(volume.sum(dtype=np.float64)) for volume in volumes):
        return None
    ever = np.zeros(volumes.shape[1:], bool)
    for volume in volumes:
        ever |= np.isfinite(volume)
    return None if ever.all() else ~ever
