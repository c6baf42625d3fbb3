"""Metrics from sums over subjects, and bootstrap intervals that resample subjects.

Values of one person are not independent, so the unit that is resampled is the subject. Every
metric here is a function of sums over a subject's values; a resample is then a vector of counts
(how often each subject was drawn), and all resamples together are one matrix product. Two methods
are compared on the same resamples.

R² is ``1 - SSE / SST``, pooled and never clipped: below zero is worse than the mean, and says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np

#: Fewer subjects than this give no interval.
MIN_SUBJECTS = 3
_SUMS = 8  # n, Σy, Σy², Σp, Σp², Σyp, Σ(y-p)², Σ|y-p|


def sum_values(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The sums of one subject's values that every pooled metric is made of.

    Parameters
    ----------
    truth, prediction : ndarray, same shape
        Pairs with a NaN on either side are left out.

    Returns
    -------
    ndarray [8]
    """
    y = np.asarray(truth, np.float64).ravel()
    p = np.asarray(prediction, np.float64).ravel()
    keep = np.isfinite(y) & np.isfinite(p)
    y, p = y[keep], p[keep]
    error = y - p
    return np.array([
        len(y), y.sum(), y @ y, p.sum(), p @ p, y @ p, error @ error, np.abs(error).sum(),
    ])  # fmt: skip


def r2(sums: np.ndarray) -> np.ndarray:
    """Coefficient of determination from sums [..., 8]; NaN when the truth is constant."""
    n, y, yy, *_, sse, _ = np.moveaxis(sums, -1, 0)
    return _ratio(sse, yy - _ratio(y * y, n), lambda a, b: 1 - a / b, _scale(yy))


def pearson_r(sums: np.ndarray) -> np.ndarray:
    """Correlation from sums [..., 8]; NaN when either side is constant."""
    n, y, yy, p, pp, yp, _, _ = np.moveaxis(sums, -1, 0)
    y_part, p_part = yy - _ratio(y * y, n), pp - _ratio(p * p, n)
    flat = (y_part <= _scale(yy)) | (p_part <= _scale(pp))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (yp - y * p / n) / np.sqrt(y_part * p_part)
    return np.where(flat, np.nan, np.clip(r, -1, 1))


def mse(sums: np.ndarray) -> np.ndarray:
    """Mean squared error from sums [..., 8]."""
    return _ratio(sums[..., 6], sums[..., 0])


def mae(sums: np.ndarray) -> np.ndarray:
    """Mean absolute error from sums [..., 8]."""
    return _ratio(sums[..., 7], sums[..., 0])


def _scale(squares: np.ndarray) -> np.ndarray:
    """A spread below this is rounding of the sum of squares, not variation."""
    return 1e-12 * np.asarray(squares)


def _ratio(a, b, combine: Callable = np.divide, smallest=0.0) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(b) > smallest, combine(a, b), np.nan)


POOLED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "r2": r2, "r": pearson_r, "mse": mse, "mae": mae,
}  # fmt: skip


def auc(truth: np.ndarray, score: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve: how often a positive scores above a negative, ties half.

    Parameters
    ----------
    truth : ndarray [S] bool
    score : ndarray [S]
    counts : ndarray [..., S], optional
        How often each subject was drawn; one AUC per leading index. Default once each.
    """
    truth, score = np.asarray(truth, bool), np.asarray(score)
    counts = np.ones(len(truth)) if counts is None else np.asarray(counts, np.float64)
    order = np.argsort(score, kind="stable")
    ties = np.flatnonzero(np.diff(score[order], prepend=-np.inf) > 0) if len(order) else order
    positive = np.add.reduceat(counts[..., order] * truth[order], ties, -1)
    negative = np.add.reduceat(counts[..., order] * ~truth[order], ties, -1)
    wins = (positive * (negative.cumsum(-1) - negative / 2)).sum(-1)
    return _ratio(wins, positive.sum(-1) * negative.sum(-1))


def balanced_accuracy(
    truth: np.ndarray, predicted: np.ndarray, counts: np.ndarray | None = None
) -> np.ndarray:
    """Mean over classes of the share recognised; NaN for a resample that lacks a class."""
    truth = np.asarray(truth)
    counts = np.ones(len(truth)) if counts is None else np.asarray(counts, np.float64)
    right = counts * (truth == np.asarray(predicted))
    recall = [
        _ratio(right[..., truth == label].sum(-1), counts[..., truth == label].sum(-1))
        for label in np.unique(truth)
    ]
    return np.mean(recall, axis=0)


def draw_counts(num_subjects: int, resamples: int, seed: int) -> np.ndarray:
    """[resamples, S]: how often each subject is drawn, with replacement, in each resample."""
    generator = np.random.default_rng(seed)
    even = np.full(num_subjects, 1 / max(num_subjects, 1))
    return generator.multinomial(num_subjects, even, size=resamples).astype(np.float64)


def percentile_interval(values: np.ndarray) -> tuple[float, float] | None:
    """Middle 95 % of bootstrap values; None when too many resamples have no value."""
    values = values[np.isfinite(values)] if np.isfinite(values).mean() > 0.5 else values[:0]
    if not len(values):
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def percentiles(draws: np.ndarray) -> np.ndarray:
    """[2, ...] the middle 95 % of bootstrap values [B, ...]; NaN where there is no value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a metric that no resample has
        return np.nanpercentile(draws, [2.5, 97.5], axis=0)


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], num_subjects: int, resamples: int, seed: int
) -> tuple[float, tuple[float, float] | None]:
    """A statistic of counts with its 95 % interval over subjects.

    Parameters
    ----------
    statistic : callable
        counts [..., S] -> values [...].

    Returns
    -------
    value : float
        With every subject once.
    interval : (low, high) or None
        None for fewer than three subjects: nothing can be said about people not seen.
    """
    value = float(statistic(np.ones((1, num_subjects)))[0]) if num_subjects else float("nan")
    if num_subjects < MIN_SUBJECTS or not np.isfinite(value):
        return value, None
    return value, percentile_interval(statistic(draw_counts(num_subjects, resamples, seed)))


def measure(
    statistic: Callable[[np.ndarray], np.ndarray], num_subjects: int, resamples: int, seed: int
) -> dict[str, float | None]:
    """:func:`bootstrap` as the columns ``value``, ``low`` and ``high`` of a row of results."""
    value, interval = bootstrap(statistic, num_subjects, resamples, seed)
    low, high = interval or (None, None)
    return {"value": value, "low": low, "high": high}


def bootstrap_p(
    statistic: Callable[[np.ndarray], np.ndarray], num_subjects: int, resamples: int, seed: int
) -> float:
    """Two-sided p of a difference of 0, from resampled subjects; NaN where there is no interval.

    Twice the smaller share of resamples on either side of 0, the sample itself counted as one.
    """
    if num_subjects < MIN_SUBJECTS:
        return float("nan")
    values = statistic(draw_counts(num_subjects, resamples, seed))
    values = values[np.isfinite(values)]
    if len(values) <= resamples / 2:
        return float("nan")
    smaller = min((values <= 0).sum(), (values >= 0).sum())
    return float(min(1.0, 2 * (1 + smaller) / (1 + len(values))))


def of_sums(metric: str, sums: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A pooled metric of per-subject sums [S, 8] as a statistic of counts."""
    return lambda counts: POOLED[metric](counts @ sums)


def difference(first: Callable, second: Callable) -> Callable[[np.ndarray], np.ndarray]:
    """Paired: both statistics see the same resamples."""
    return lambda counts: first(counts) - second(counts)


def add_by_subject(sums: Sequence[np.ndarray], subjects: Sequence[str]) -> np.ndarray:
    """Add sums [N, 8] of recordings that belong to the same subject -> [S, 8]."""
    _, which = np.unique(np.asarray(subjects, dtype=object).astype(str), return_inverse=True)
    out = np.zeros((which.max() + 1 if len(which) else 0, _SUMS))
    np.add.at(out, which, np.asarray(sums).reshape(-1, _SUMS))
    return out
