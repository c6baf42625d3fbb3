"""Figures that say how good a recording is. Arrays in, numbers out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import RecordingError

if TYPE_CHECKING:
    from .io.read import Bold
    from .motion.rigid import Motion

#: DVARS and tSNR are measured on a lattice of at most this many voxels of the brain mask.
QUALITY_POINTS = 20_000
#: cc; brain masks outside this range are not of a brain
BRAIN_RANGE_CC = (300.0, 3000.0)

#: A leading volume is non-steady when the brain is brighter than the rest by this share ...
NON_STEADY_RISE = 0.01
#: ... and by this many robust standard deviations of the volume means.
NON_STEADY_SD = 5.0
MAX_NON_STEADY = 10

#: Volumes alternate when every second one is brighter or darker by this share of the mean ...
ALTERNATING_STEP = 0.001
#: ... which is so many standard errors, in a run that is long enough to tell.
ALTERNATING_ERRORS, ALTERNATING_VOLUMES = 8.0, 30
_MAD_TO_SD = 1.4826


def count_non_steady(level: np.ndarray) -> int:
    """Leading volumes in which longitudinal magnetisation has not settled.

    T1 saturation makes the first volumes brighter by several percent. They are counted from the
    start while the level exceeds the median of all volumes by both 1 % and five robust standard
    deviations, at most ten and never more than a tenth of the run.

    Parameters
    ----------
    level : ndarray [T]
        As :func:`measure_level` has it.
    """
    limit = min(MAX_NON_STEADY, len(level) // 10)
    middle = np.median(level)
    spread = _MAD_TO_SD * np.median(np.abs(level - middle))
    rise = max(NON_STEADY_RISE * abs(middle), NON_STEADY_SD * spread)
    settled = level <= middle + rise
    return min(int(np.argmax(settled)) if settled.any() else 0, limit)


def check_alternation(level: np.ndarray) -> None:
    """An error if every second volume is brighter: control and label of arterial spin labelling.

    Nothing that the BOLD signal, drifts or motion do keeps in step with the volumes for a whole
    run. Shorter runs than :data:`ALTERNATING_VOLUMES` are not judged.

    Parameters
    ----------
    level : ndarray [T]
        As :func:`measure_level` has it, of steady volumes before slice times are corrected.

    Raises
    ------
    RecordingError
        ``bad_data``.
    """
    if len(level) < ALTERNATING_VOLUMES:
        return
    steps = (level[:-2] - 2 * level[1:-1] + level[2:]) / 2 / abs(level.mean())
    steps[1::2] *= -1  # in step with the volumes: all of one sign
    step, error = abs(steps.mean()), steps.std() / np.sqrt(len(steps))
    if step >= max(ALTERNATING_STEP, ALTERNATING_ERRORS * error):
        raise RecordingError(
            "bad_data",
            f"every second volume is brighter (by {100 * step:.2g} %), as in arterial spin "
            "labelling, where control and label alternate; expected BOLD: exclude it",
        )


def measure_level(volumes: np.ndarray) -> np.ndarray:
    """Mean [T] over the bright half of the voxels, or of a sample of them, of volumes [T, ...]."""
    every = max(1, volumes[0].size // 20000)
    sample = volumes.reshape(len(volumes), -1)[:, ::every]
    typical = np.median(sample, axis=0)
    return sample[:, typical > typical.mean()].mean(1, dtype=np.float64)


def measure_dvars(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """RMS over voxels of the change from the volume before.

    Parameters
    ----------
    series : ndarray [T, N]
        Brain voxels, scanner units.

    Returns
    -------
    dvars : ndarray [T]
        Percent of the brain's median intensity; the first value is NaN.
    standardised : ndarray [T]
        Divided by what independent AR(1) noise of the same robust SD would give (Nichols 2013,
        "Notes on creating a standardized version of DVARS"); 1 means nothing but noise.
    """
    change = np.diff(series, axis=0)
    dvars = np.full(len(series), np.nan)
    dvars[1:] = np.sqrt(np.einsum("tn,tn->t", change, change, dtype=np.float64) / series.shape[1])
    low, high = np.percentile(series, [25, 75], axis=0, method="lower")
    robust_sd = (high - low) / 1.349
    centred = series - series.mean(0)
    power = np.einsum("tn,tn->n", centred, centred)
    lagged = np.einsum("tn,tn->n", centred[1:], centred[:-1])
    ar1 = np.divide(lagged, power, out=np.zeros_like(power), where=power > 0)
    expected = np.sqrt(np.maximum(2 * (1 - ar1), 0)) * robust_sd
    level = np.median(series.mean(0))
    return 100 * dvars / level, dvars / max(expected.mean(), np.finfo(float).tiny)


def measure_tsnr(series: np.ndarray, drift: np.ndarray | None = None) -> np.ndarray:
    """Temporal mean / SD of each voxel [N], after `drift` columns [T, C] are removed; or NaN."""
    from .denoise.filter import clean_columns

    mean = series.mean(0, dtype=np.float64)
    residual = clean_columns(series, drift) if drift is not None else series - mean
    sd = residual.std(0, dtype=np.float64)
    usable = (sd > 0) & (mean > 0)
    return np.divide(mean, sd, out=np.full(len(mean), np.nan), where=usable)


def choose_lattice(mask: np.ndarray, affine: np.ndarray, most: int) -> tuple[int, int, int]:
    """Steps (z, y, x) of a lattice that holds at most `most` voxels of `mask` [Z, Y, X].

    The closest axis is thinned first, so the lattice is as isotropic as the voxels allow.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    steps = np.ones(3, int)
    while mask[:: steps[0], :: steps[1], :: steps[2]].sum() > most:
        steps[np.argmin(steps * spacing)] += 1
    return int(steps[0]), int(steps[1]), int(steps[2])


def correlate_columns(series: np.ndarray) -> np.ndarray:
    """Correlations of all pairs of columns that have data: [pairs]."""
    kept = series[:, np.isfinite(series).all(0) & (series.std(0) > 0)]
    matrix = np.corrcoef(kept.T)
    return matrix[np.triu_indices(len(matrix), 1)]


def fd_connectivity(series: np.ndarray, displacement: np.ndarray) -> float:
    """How much connectivity follows head motion within a run: 0 not at all, 1 wholly.

    The product of two standardised series is how much each time point adds to their correlation
    (co-fluctuation, Faskowitz et al. 2020, Nature Neuroscience 23:1644). Its correlation with
    framewise displacement is taken over time for every pair of parcels; the mean of the absolute
    values is returned. Independent series give about 0.8 / sqrt(T).

    Parameters
    ----------
    series : ndarray [T, R]
        Columns without data are left out.
    displacement : ndarray [T]
        mm; time points where it is NaN are left out.
    """
    known = np.isfinite(displacement)
    if not known.any():
        return float("nan")
    columns = series[known][:, np.isfinite(series).all(0) & (series.std(0) > 0)].astype(np.float64)
    motion = displacement[known] - displacement[known].mean()
    if columns.shape[1] < 2 or not motion.any():
        return float("nan")
    count = len(columns)
    scaled = (columns - columns.mean(0)) / columns.std(0)
    moved = (scaled * (motion / motion.std())[:, None]).T @ scaled / count
    spread = (scaled**2).T @ scaled**2 / count - (scaled.T @ scaled / count) ** 2
    pairs = np.triu_indices(len(moved), 1)
    return float(np.abs(moved[pairs] / np.sqrt(np.maximum(spread[pairs], 1e-12))).mean())


def check_duration(count: int, tr_s: float, least_s: float, acquired: dict) -> None:
    """An error, with the figures in `acquired`, if `count` volumes are too few."""
    if count * tr_s < least_s:
        raise RecordingError(
            "too_short",
            f"{count * tr_s:.1f} s usable ({count} volumes of {tr_s:g} s), at least {least_s:g} s "
            "needed",
            **acquired,
        )


def check_brain(mask: np.ndarray, affine: np.ndarray, acquired: dict) -> None:
    """An error, with the figures in `acquired`, if a mask is not of a brain's size."""
    volume_cc = float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
    low, high = BRAIN_RANGE_CC
    if not low <= volume_cc <= high:
        raise RecordingError(
            "bad_data",
            f"nothing that looks like a whole brain: the brain mask holds {volume_cc:.0f} cc, "
            f"expected {low:g} to {high:g}",
            **acquired,
        )


def measure_run(
    bold: Bold, estimate: Motion, mask: np.ndarray
) -> tuple[dict, dict[str, Any], tuple]:
    """Confound columns, figures and the tSNR map with its affine that motion correction yields."""
    from .denoise.confounds import motion_columns
    from .denoise.filter import filter_basis
    from .kernels.sampling import sample
    from .motion.rigid import framewise_displacement_jenkinson, framewise_displacement_power

    steps = choose_lattice(mask, bold.affine, QUALITY_POINTS)
    lattice = mask[:: steps[0], :: steps[1], :: steps[2]].copy()
    affine = bold.affine @ np.diag([*steps[::-1], 1])
    points = np.argwhere(lattice)[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    series = sample(bold.volumes, bold.affine, points, estimate.transforms)
    inside = np.isfinite(series).all(0)
    series = series[:, inside]
    lattice[lattice] = inside
    dvars, std_dvars = measure_dvars(series)
    fd = framewise_displacement_power(estimate.parameters)
    rmsd = framewise_displacement_jenkinson(estimate.transforms, estimate.centre)
    columns = motion_columns(estimate.parameters)
    columns |= {
        "framewise_displacement": _first_missing(fd),
        "rmsd": _first_missing(rmsd),
        "dvars": 10 * dvars,
        "std_dvars": std_dvars,
    }
    tsnr = measure_tsnr(series, filter_basis(len(series), bold.tr_s, 0.008))
    tsnr_map = np.zeros(lattice.shape, np.float32)
    tsnr_map[lattice] = np.round(np.nan_to_num(tsnr), 1)
    figures = {
        "mean_fd_mm": float(np.nanmean(columns["framewise_displacement"])),
        "max_fd_mm": float(np.nanmax(columns["framewise_displacement"])),
        "mean_dvars": float(np.nanmean(dvars)),
        "tsnr": float(np.nanmedian(tsnr)) if np.isfinite(tsnr).any() else np.nan,
        "brain_cc": float(mask.sum() * abs(np.linalg.det(bold.affine[:3, :3])) / 1000),
        "reference_volume": int(estimate.reference_index),
    }
    return columns, figures, (tsnr_map, affine)


def _first_missing(values: np.ndarray) -> np.ndarray:
    """Displacement of the first volume is unknown, not 0."""
    values = np.asarray(values, np.float64).copy()
    values[0] = np.nan
    return values


def compare_series(
    before: np.ndarray, after: np.ndarray, displacement: np.ndarray
) -> dict[str, Any]:
    """What denoising changed, from filtered and denoised percent series [T, covered parcels]."""
    return {
        "parcel_tsnr_before": float(np.median(100 / before.std(0))),
        "parcel_tsnr_after": float(np.median(100 / after.std(0))),
        "mean_abs_r_before": float(np.abs(correlate_columns(before)).mean()),
        "mean_abs_r_after": float(np.abs(correlate_columns(after)).mean()),
        "fd_connectivity_before": fd_connectivity(before, displacement),
        "fd_connectivity_after": fd_connectivity(after, displacement),
        "variance_kept": float(np.sum(after**2) / np.sum(before**2)),
    }
