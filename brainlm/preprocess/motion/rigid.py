"""Head motion: one rigid transform per volume, by a linearised least-squares fit.

Conventions
-----------
``transforms[t]`` maps the reference's world to the world of volume t:
``x_t = R (x - centre) + centre + (tx, ty, tz)`` with ``R = Rx(rx) @ Ry(ry) @ Rz(rz)``,
right-handed rotations about the world's x (right), y (anterior) and z (superior) axes, in rad.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import RecordingError
from ..kernels.sampling import sample
from ..kernels.spline import align_volumes, in_threads, shrink_volumes, value_and_gradient
from .brain_mask import brain_mask

RADIUS_MM = 50.0  # where a rotation counts as a displacement, as in framewise displacement
COARSE_MM = 6.0  # voxel size of the first level
POINTS = (6000, 8000, 40000)  # at the coarse level, the first pass and the second
MEAN_OF = 20  # volumes in the mean that is the second pass's reference
REFIT_ABOVE = 3.5  # robust standard deviations of the residual
# times the median residual: lost slices (10x) gain by down-weighting voxels; where a jerk only
# changed the signal at edges (3x) it costs, because edges are what motion is seen by
REFIT_TIMES = 5.0
FAILED_SHARE = 0.1  # of volumes without a fit: more is a failed recording
#: For the sidecar.
SETTINGS = {
    "CoarseVoxelMm": COARSE_MM,
    "PointsByLevel": POINTS,
    "VolumesInReference": MEAN_OF,
    "RefitAboveRobustSD": REFIT_ABOVE,
    "RefitAboveTimesMedian": REFIT_TIMES,
    "Seed": 0,
}


@dataclass(frozen=True)
class Motion:
    """What :func:`estimate_motion` found.

    Attributes
    ----------
    transforms : float64 [T, 4, 4]
        Reference world -> world of volume t.
    parameters : float64 [T, 6]
        tx, ty, tz in mm, rx, ry, rz in rad; the module's docstring has the convention.
    centre : float64 [3]
        Centre of rotation, world mm.
    reference_index : int
        The most central volume; the reference image is aligned with it.
    reference : float32 [Z, Y, X]
        Mean of realigned volumes.
    residual : float64 [T]
        RMS difference to the reference after the fit, as a share of the reference's standard
        deviation; NaN for a volume that could not be fitted.
    refitted : bool [T]
        Fitted again with outlying voxels down-weighted.
    """

    transforms: np.ndarray
    parameters: np.ndarray
    centre: np.ndarray
    reference_index: int
    reference: np.ndarray
    residual: np.ndarray
    refitted: np.ndarray


def estimate_motion(
    volumes: np.ndarray,
    affine: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    seed: int = 0,
) -> Motion:
    """Estimate head motion in two passes.

    A coarse fit to the volume most like the others finds the most central volume: the one whose
    summed displacement to all others is least, among volumes that are not outliers. The first
    pass fits to that volume, the second to the mean of volumes realigned by the first. Volumes
    whose residual is far out (dropped slices) are fitted again robustly.

    Parameters
    ----------
    volumes : float32 [T, Z, Y, X]
        Volumes that are not finite or constant get the transform of the nearest that are.
    affine : [4, 4]
        Voxel (x, y, z) -> world mm.
    mask : bool [Z, Y, X], optional
        Where the head is in most volumes; :func:`brain_mask` of a mean if not given.
    seed : int
        For the choice of points.

    Raises
    ------
    RecordingError
        ``bad_data``: fewer than four voxels along an axis, or most volumes are unusable;
        ``motion_failed``: more than a tenth of the volumes could not be fitted.
    """
    volumes = np.ascontiguousarray(volumes, np.float32)
    affine = np.asarray(affine, np.float64)
    usable = find_usable(volumes)
    kept = volumes if usable.all() else volumes[usable]
    start = most_typical(kept)
    if mask is None:
        mask = brain_mask(kept[start], affine)
    mask = _widen(mask) & ~_next_to_empty(kept)
    rng = np.random.default_rng(seed)

    factors = np.maximum(1, np.rint(COARSE_MM / _zooms(affine)).astype(int))  # x, y, z
    transforms = np.repeat(np.eye(4)[None], len(kept), axis=0)
    small, small_affine, small_mask = _shrink(kept, affine, mask, factors)
    level = _linearise(small[start], small_affine, small_mask, POINTS[0], rng)
    fit = _fit(small, level, transforms, max_steps=30, tolerance=0.05)
    central = _most_central(fit, level.centre)
    transforms = fit.transforms @ np.linalg.inv(fit.transforms[central])

    level = _linearise(kept[central], affine, mask, POINTS[1], rng)
    fit = _fit(kept, level, transforms, max_steps=12, tolerance=0.02)
    reference = _mean_realigned(kept, affine, fit)
    level = _linearise(reference, affine, mask, POINTS[2], rng)
    fit = _fit(kept, level, fit.transforms, max_steps=12, tolerance=0.004)
    fit = _refit(kept, level, fit)
    if np.mean(~fit.converged) > FAILED_SHARE:
        raise RecordingError(
            "motion_failed",
            f"{np.sum(~fit.converged)} of {len(kept)} volumes could not be aligned with the "
            f"reference (at most {FAILED_SHARE:.0%} may fail)",
        )
    return _collect(fit, level.centre, usable, central, reference)


def parameters_of(transforms: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Parameters [T, 6] (mm, rad) of rigid transforms [T, 4, 4] about `centre` [3]."""
    rotation = transforms[:, :3, :3]
    shift = transforms[:, :3, 3] + rotation @ centre - centre
    ry = np.arcsin(np.clip(rotation[:, 0, 2], -1, 1))
    rx = np.arctan2(-rotation[:, 1, 2], rotation[:, 2, 2])
    rz = np.arctan2(-rotation[:, 0, 1], rotation[:, 0, 0])
    return np.column_stack([shift, rx, ry, rz])


def framewise_displacement_power(parameters: np.ndarray) -> np.ndarray:
    """Framewise displacement [T] in mm, NaN for the first volume.

    Sum of absolute differences of the six parameters [T, 6], rotations as arcs on a sphere of
    50 mm. Source: Power et al. 2012, NeuroImage 59:2142.
    """
    steps = np.abs(np.diff(parameters, axis=0)) * [1, 1, 1, RADIUS_MM, RADIUS_MM, RADIUS_MM]
    return np.concatenate([[np.nan], steps.sum(axis=1)])


def framewise_displacement_jenkinson(
    transforms: np.ndarray, centre: np.ndarray, radius: float = 80.0
) -> np.ndarray:
    """RMS displacement [T] between neighbouring volumes in mm, NaN for the first.

    Over a sphere of `radius` mm about `centre`. Source: Jenkinson 1999, FMRIB report TR99MJ1.
    """
    moves = transforms[1:] @ np.linalg.inv(transforms[:-1])
    return np.concatenate([[np.nan], _rms_displacement(moves, centre, radius)])


def _rms_displacement(moves, centre, radius=RADIUS_MM):
    """RMS over a sphere of how far each rigid move [..., 4, 4] takes a point, mm."""
    change = moves[..., :3, :3] - np.eye(3)
    shift = moves[..., :3, 3] + change @ centre
    return np.sqrt(radius**2 / 5 * (change**2).sum(axis=(-2, -1)) + (shift**2).sum(axis=-1))


@dataclass(frozen=True)
class _Level:
    """A reference image, linearised at points: all that a fit needs of it."""

    centre: np.ndarray  # world mm
    affine: np.ndarray  # voxel -> centred world
    points: np.ndarray  # [3, N] voxel positions
    target: np.ndarray  # [N]
    jacobian: np.ndarray  # [N, PARAMETERS]


@dataclass(frozen=True)
class _Fit:
    transforms: np.ndarray  # [T, 4, 4]
    converged: np.ndarray  # [T]
    residual: np.ndarray  # [T]
    refitted: np.ndarray  # [T]


def find_usable(volumes: np.ndarray) -> np.ndarray:
    if volumes.ndim != 4 or min(volumes.shape[1:]) < 4:
        raise RecordingError(
            "bad_data",
            f"volumes of {'x'.join(map(str, volumes.shape[:0:-1]))} voxels: motion needs at "
            "least four along each axis",
        )
    usable = np.array(
        [np.isfinite(v.sum(dtype=np.float64)) and v.min() < v.max() for v in volumes]
    )
    if usable.mean() <= 0.5:
        raise RecordingError(
            "bad_data", f"{np.sum(~usable)} of {len(volumes)} volumes are constant or not finite"
        )
    return usable


def most_typical(volumes: np.ndarray) -> int:
    """Of up to 15 volumes spread over the run, the one that correlates best with the others."""
    chosen = np.unique(np.linspace(0, len(volumes) - 1, 15).astype(int))
    thin = volumes[chosen, ::2, ::2, ::2].reshape(len(chosen), -1)
    with np.errstate(invalid="ignore"):
        alike = np.nan_to_num(np.corrcoef(thin)).reshape(len(chosen), len(chosen))
    return int(chosen[np.argmax(np.median(alike, axis=1))])


def _zooms(affine: np.ndarray) -> np.ndarray:
    return np.sqrt((affine[:3, :3] ** 2).sum(axis=0))


def _widen(mask: np.ndarray) -> np.ndarray:
    """The mask and two voxels around it: the edge of the brain is where motion shows."""
    from scipy import ndimage

    return ndimage.binary_dilation(mask, iterations=2)


def _next_to_empty(volumes: np.ndarray) -> np.ndarray:
    """Voxels whose spline touches one that is always 0: the border of a mask that stays put.

    A run that was masked after its acquisition has an edge that does not move with the head.
    """
    from scipy import ndimage

    chosen = np.unique(np.linspace(0, len(volumes) - 1, 15).astype(int))
    empty = ~np.logical_or.reduce([volumes[t] != 0 for t in chosen])
    return ndimage.binary_dilation(empty, np.ones((3, 3, 3)), iterations=2)


def _shrink(volumes, affine, mask, factors):
    """Block means over `factors` (x, y, z) voxels, and the affine and mask that belong to them."""
    fx, fy, fz = np.minimum(factors, np.maximum(1, np.array(volumes.shape[:0:-1]) // 8))
    if fx == fy == fz == 1:
        return volumes, affine, mask
    shape = [n // f for n, f in zip(volumes.shape[1:], (fz, fy, fx), strict=True)]
    small = np.empty((len(volumes), *shape), np.float32)
    in_threads(shrink_volumes, len(volumes), volumes, fz, fy, fx, small)
    to_full = np.diag([fx, fy, fz, 1.0])
    to_full[:3, 3] = (np.array([fx, fy, fz]) - 1) / 2
    return (
        small,
        affine @ to_full,
        mask[fz // 2 :: fz, fy // 2 :: fy, fx // 2 :: fx][: shape[0], : shape[1], : shape[2]],
    )


def _linearise(reference, affine, mask, count, rng) -> _Level:
    """Values, gradients and Jacobian of a reference at up to `count` points in the mask.

    Points are drawn with a probability that grows with the gradient: flat regions say nothing
    about motion. The last four columns let the gain differ, and change linearly over the head
    (the receive field stays with the scanner while the head moves).
    """
    inner = np.zeros_like(mask)
    inner[1:-2, 1:-2, 1:-2] = mask[1:-2, 1:-2, 1:-2]
    points = np.ascontiguousarray(np.argwhere(inner)[:, ::-1], np.float32)
    if len(points) < 200:
        raise RecordingError("motion_failed", f"only {len(points)} voxels of brain to align")
    to_mm = np.linalg.inv(affine[:3, :3])
    if len(points) > count:
        rough = np.stack([one[inner] for one in np.gradient(reference)[::-1]], axis=1) @ to_mm
        steepness = np.sqrt((rough**2).sum(axis=1))
        chance = steepness / steepness.mean() + 0.3
        chosen = np.sort(rng.choice(len(points), count, replace=False, p=chance / chance.sum()))
        points = points[chosen]
    values = np.empty(len(points), np.float32)
    gradients = np.empty((len(points), 3), np.float32)
    value_and_gradient(np.ascontiguousarray(reference), points, values, gradients)
    slopes = gradients @ to_mm  # per mm of world
    centre = affine[:3, :3] @ points.mean(axis=0) + affine[:3, 3]
    centred = affine.copy()
    centred[:3, 3] -= centre
    world = points @ centred[:3, :3].T + centred[:3, 3]
    columns = [slopes, np.cross(world, slopes), values[:, None], values[:, None] * world / 50]
    jacobian = np.hstack(columns).astype(np.float32)
    return _Level(
        centre, centred, np.ascontiguousarray(points.T), values, np.ascontiguousarray(jacobian)
    )


def _fit(volumes, level, transforms, *, max_steps, tolerance, robust=None) -> _Fit:
    """Fit every volume from the given transforms [T, 4, 4] (world of the reference -> of t)."""
    count = len(volumes)
    to_centre, back = np.eye(4), np.eye(4)
    to_centre[:3, 3], back[:3, 3] = -level.centre, level.centre
    current = np.ascontiguousarray(to_centre @ transforms @ back)
    robust = np.zeros(count, bool) if robust is None else robust
    steps, residual = np.zeros(count, np.int64), np.full(count, np.nan)
    normal = level.jacobian.astype(np.float64)
    normal = normal.T @ normal
    in_threads(
        align_volumes, count, volumes, level.affine, np.linalg.inv(level.affine), level.points,
        level.target, level.jacobian, normal, robust, max_steps, tolerance, RADIUS_MM, current,
        steps, residual,
    )  # fmt: skip
    converged = (steps > 0) & (steps <= max_steps) & np.isfinite(current).all(axis=(1, 2))
    residual = np.where(steps > 0, residual / level.target.std(), np.nan)
    return _Fit(back @ current @ to_centre, converged, residual, robust)


def _outliers(residual: np.ndarray) -> np.ndarray:
    """Residuals that are far above the rest, or not known."""
    middle = np.nanmedian(residual)
    spread = 1.4826 * np.nanmedian(np.abs(residual - middle)) + 0.02 * middle
    return ~(residual <= middle + REFIT_ABOVE * spread)


def _most_central(fit: _Fit, centre: np.ndarray) -> int:
    """The volume with the least summed displacement to all others, outliers left out."""
    able = np.flatnonzero(fit.converged & ~_outliers(fit.residual))
    if able.size == 0:
        raise RecordingError("motion_failed", "no two volumes could be aligned")
    # points on a sphere carry the whole rigid transform: distances between them are cheap
    corners = RADIUS_MM * np.vstack([np.eye(3), -np.eye(3)]) + centre
    moved = corners @ fit.transforms[able, :3, :3].transpose(0, 2, 1)
    moved += fit.transforms[able, None, :3, 3]
    moved = moved.reshape(len(able), -1)
    total = [np.sqrt(((moved - one) ** 2).sum(axis=1)).sum() for one in moved]
    return int(able[np.argmin(total)])


def _mean_realigned(volumes, affine, fit: _Fit) -> np.ndarray:
    """Mean of up to MEAN_OF good volumes, each read where the reference's voxels lie in it."""
    good = np.flatnonzero(fit.converged & ~_outliers(fit.residual))
    if good.size == 0:
        raise RecordingError("motion_failed", "no volume could be aligned with the reference")
    good = good[np.unique(np.linspace(0, len(good) - 1, MEAN_OF).astype(int))]
    shape = volumes.shape[1:]
    points = np.indices(shape).reshape(3, -1).T[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    total, count = np.zeros(len(points)), np.zeros(len(points))
    for block in np.array_split(good, max(1, len(good) // 8)):  # few at a time: memory
        values = sample(volumes[block], affine, points, fit.transforms[block])
        total += np.nansum(values, axis=0)
        count += np.isfinite(values).sum(axis=0)
    mean = total / np.maximum(count, 1)
    return np.ascontiguousarray(mean.reshape(shape), np.float32)


def _refit(volumes, level, fit: _Fit) -> _Fit:
    """Fit outlying volumes again: robustly, and from a good neighbour if they did not converge."""
    lost = _outliers(fit.residual) & (fit.residual > REFIT_TIMES * np.nanmedian(fit.residual))
    again = np.flatnonzero(lost | ~fit.converged)
    if again.size == 0:
        return fit
    good = np.setdiff1d(np.arange(len(volumes)), np.flatnonzero(~fit.converged))
    if good.size == 0:
        raise RecordingError("motion_failed", "no volume could be aligned with the reference")
    nearest = good[np.argmin(np.abs(again[:, None] - good), axis=1)]
    new = _fit(
        volumes[again],
        level,
        fit.transforms[nearest],
        max_steps=40,
        tolerance=0.01,
        robust=np.ones(len(again), bool),
    )
    transforms, converged = fit.transforms.copy(), fit.converged.copy()
    residual, refitted = fit.residual.copy(), fit.refitted.copy()
    transforms[again], converged[again] = new.transforms, new.converged
    refitted[again] = True
    transforms[again[~new.converged]] = fit.transforms[nearest[~new.converged]]
    residual[again[~new.converged]] = np.nan
    return _Fit(transforms, converged, residual, refitted)


def _collect(fit: _Fit, centre, usable, central, reference) -> Motion:
    """Put back the volumes that were unusable, with the transform of the nearest usable one."""
    indices = np.flatnonzero(usable)
    nearest = np.argmin(np.abs(np.arange(len(usable))[:, None] - indices), axis=1)
    transforms = fit.transforms[nearest]
    return Motion(
        transforms=transforms,
        parameters=parameters_of(transforms, centre),
        centre=centre,
        reference_index=int(indices[central]),
        reference=reference,
        residual=np.where(usable, fit.residual[nearest], np.nan),
        refitted=usable & fit.refitted[nearest],
    )
