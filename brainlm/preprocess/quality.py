"""Figures that say how good a recording is. Arrays in, numbers out."""

from __future__ import annotations

import numpy as np

#: A leading volume is non-steady when the brain is brighter than the rest by this share ...
NON_STEADY_RISE = 0.01
#: ... and by this many robust standard deviations of the volume means.
NON_STEADY_SD = 5.0
MAX_NON_STEADY = 10
_MAD_TO_SD = 1.4826


def count_non_steady(volumes: np.ndarray) -> int:
    """Leading volumes in which longitudinal magnetisation has not settled.

    T1 saturation makes the first volumes brighter by several percent. They are counted from the
    start while the mean over the bright half of the voxels exceeds the median of all volumes by
    both 1 % and five robust standard deviations, at most ten and never more than a tenth of the
    run.

    Parameters
    ----------
    volumes : ndarray [T, Z, Y, X]
    """
    limit = min(MAX_NON_STEADY, len(volumes) // 10)
    every = max(1, volumes[0].size // 20000)
    sample = volumes.reshape(len(volumes), -1)[:, ::every]
    typical = np.median(sample, axis=0)
    level = sample[:, typical > typical.mean()].mean(1, dtype=np.float64)
    middle = np.median(level)
    spread = _MAD_TO_SD * np.median(np.abs(level - middle))
    rise = max(NON_STEADY_RISE * abs(middle), NON_STEADY_SD * spread)
    settled = level <= middle + rise
    return min(int(np.argmax(settled)) if settled.any() else 0, limit)


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
    from .filter import clean_columns

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
