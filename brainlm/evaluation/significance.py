"""Tests over subjects, and their correction for how many there are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Fewer pairs cannot reach p < 0.05, whatever they are.
MIN_PAIRS = 6


def paired_p(differences: np.ndarray) -> float:
    """Two-sided Wilcoxon signed-rank test of one difference per subject; NaN if they are few."""
    from scipy.stats import wilcoxon

    values = np.asarray(differences, float)
    values = values[np.isfinite(values)]
    if len(values) < MIN_PAIRS or not values.any():
        return float("nan")
    return float(wilcoxon(values).pvalue)


def holm(p: np.ndarray) -> np.ndarray:
    """Step-down correction (Holm 1979) over all finite values, in the shape given."""
    values = np.asarray(p, float)
    flat = values.ravel().copy()
    known = np.flatnonzero(np.isfinite(flat))
    order = known[np.argsort(flat[known], kind="stable")]
    steps = flat[order] * np.arange(len(order), 0, -1)
    flat[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return flat.reshape(values.shape)


def max_statistic_p(
    statistic: Callable[[np.ndarray], np.ndarray], observed: np.ndarray, draws: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Family-wise corrected p of each of many statistics, by permutation.

    The largest absolute statistic of every draw makes one null distribution for all (Nichols &
    Holmes 2002); the observed labelling counts as one draw, so p is never 0.

    Parameters
    ----------
    statistic : callable
        One draw -> statistics [R]; NaN where there is none.
    observed : ndarray [R]
        Statistics of the labels as they are.
    draws : ndarray [P, ...]
        Permuted labels, or signs.

    Returns
    -------
    ndarray [R]
    """
    largest = np.array([np.nanmax(np.abs(statistic(draw))) for draw in draws])
    above = (largest[:, None] >= np.abs(observed)[None] - 1e-12).sum(0)
    p = (1 + above) / (1 + len(draws))
    return np.where(np.isfinite(observed), p, np.nan)
