"""Metrics as functions of sums over each participant's values, so that resampling is a product.

A resample is a vector of counts (how often each participant was drawn); all resamples together
are one matrix product with the sums (:mod:`brainlm.evaluation.statistics`).

R² is ``1 - SSE / SST``, pooled and never clipped: below zero is worse than the mean, and says so.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def sum_values(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The sums that every pooled metric is made of: n, Σy, Σy², Σp, Σp², Σyp, Σ(y-p)², Σ|y-p|.

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
        How often each participant was drawn; one AUC per leading index. Default once each.
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


def of_sums(metric: str, sums: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A pooled metric of per-participant sums [S, ..., 8] as a statistic of counts."""
    return lambda counts: POOLED[metric](np.tensordot(counts, sums, 1))
