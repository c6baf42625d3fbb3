"""Linear forecasts: what a forecaster of brain activity has to beat.

* **AR**: each parcel from its own last values, one ridge regression per parcel and step ahead
  (direct multi-step forecasts: least squares is then optimal at every step).
* **VAR**: AR, plus what the last values of the leading principal components say about the AR
  error in the space of these components: a low-rank vector autoregression.

Fitted on every stretch of the training recordings; order, rank and penalty are chosen by squared
error on the validation recordings. Missing parcels count as zero, the scaled median, and so does
censored time of what is given; the fit is to pairs of time points that are both there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...shards import Corpus, Scaling

Forecast = Callable[[np.ndarray], np.ndarray]  # past [R, G] -> [R, H]

ORDERS = (1, 2, 4, 8, 16, 32)
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # multiples of the mean variance of a predictor
RANKS = (5, 20, 50)
VAR_ORDERS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Linear:
    """A fitted forecast and what was chosen for it."""

    forecast: Forecast
    choice: str


def fit_autoregressions(
    corpus: Corpus, scaling: Scaling, train: Sequence[int], check: Sequence[int], given: int,
    horizon: int,
) -> dict[str, Linear]:  # fmt: skip
    """AR and VAR for `horizon` time points from `given` ones.

    Parameters
    ----------
    train, check : sequence of int
        Rows of the corpus, each with at least ``given + horizon`` time points. Without `check`
        the choices are made on the training rows.
    """
    check = check if len(check) else train
    ar, weights = _fit_ar(corpus, scaling, train, check, given, horizon)
    return {"AR": ar, "VAR": _fit_var(corpus, scaling, train, check, horizon, weights)}


def _series(corpus: Corpus, scaling: Scaling, row: int) -> np.ndarray:
    """[R, T] scaled, zero where there is no data."""
    return np.nan_to_num(corpus.scaled(int(row), scaling)).T


def stretches(series: np.ndarray, length: int, every: int = 1) -> np.ndarray:
    """[R, n, length] overlapping stretches of a series [R, T]."""
    return np.lib.stride_tricks.sliding_window_view(series, length, axis=1)[:, ::every]


def _fit_ar(corpus, scaling, train, check, given, horizon) -> tuple[Linear, np.ndarray]:
    orders = [order for order in ORDERS if order <= given]
    most = orders[-1]
    gram = _gram(corpus, scaling, train, most + horizon)  # [R, L + H, L + H]
    held_out = _gram(corpus, scaling, check, most + horizon)
    best: tuple[float, str, np.ndarray] | None = None
    for order in orders:
        for penalty in PENALTIES:
            weights = _ridge(gram, slice(most - order, most), slice(most, None), penalty)
            full = np.zeros((len(gram), most, horizon))
            full[:, most - order :] = weights
            error = _squared_error(held_out, full, most)
            if best is None or error < best[0]:
                best = (error, f"order {order}, penalty {penalty:g}", full)
    assert best is not None
    _, choice, weights = best

    def forecast(past: np.ndarray) -> np.ndarray:
        return np.einsum("rl,rlh->rh", np.nan_to_num(past[:, -most:]), weights)

    return Linear(forecast, choice), weights


def _gram(corpus: Corpus, scaling: Scaling, rows: Sequence[int], length: int) -> np.ndarray:
    """[R, length, length] second moments of all stretches of the recordings, per parcel."""
    total, pairs = np.zeros((corpus.info.num_parcels, length, length)), _Pairs(length)
    for row in rows:
        series = _series(corpus, scaling, row)
        parts = stretches(series, length)
        total += np.einsum("rnl,rnm->rlm", parts, parts, optimize=True)
        pairs.add(series)
    return total * pairs.scale()


class _Pairs:
    """Counts in how many stretches two time points are there: moments are over those."""

    def __init__(self, length: int, every: int = 1):
        self.length, self.every = length, every
        self.all, self.there = 0, np.zeros((length, length))

    def add(self, series: np.ndarray) -> np.ndarray:
        """[n, length] which time points of stretches of a series [R, T], 0 without data."""
        kept = np.any(series, 0)[None].astype(float)
        parts = stretches(kept, self.length, self.every)[0]
        self.all += len(parts)
        self.there += parts.T @ parts
        return parts

    def scale(self) -> np.ndarray:
        """[length, length] all stretches to those with both points; 1 where none is censored."""
        return self.all / np.maximum(self.there, 1)


def _ridge(gram: np.ndarray, inputs: slice, outputs: slice, penalty: float) -> np.ndarray:
    """[..., L, H] weights; `penalty` in units of the predictors' mean variance."""
    moments = gram[..., inputs, inputs]
    size = moments.shape[-1]
    scale = np.trace(moments, axis1=-2, axis2=-1)[..., None, None] / size + 1e-12
    return np.linalg.solve(moments + penalty * scale * np.eye(size), gram[..., inputs, outputs])


def _squared_error(gram: np.ndarray, weights: np.ndarray, given: int) -> float:
    """Summed squared error of ``y - w x`` from second moments."""
    xx, xy = gram[..., :given, :given], gram[..., :given, given:]
    yy = np.diagonal(gram[..., given:, given:], axis1=-2, axis2=-1).sum()
    return float(yy - 2 * (weights * xy).sum() + ((xx @ weights) * weights).sum())


def _fit_var(corpus, scaling, train, check, horizon, ar: np.ndarray) -> Linear:
    """The AR error of the leading components, from the last values of these components."""
    most = ar.shape[1]
    axes = _components(corpus, scaling, train, max(RANKS))  # [R, K]
    moments = [_error_moments(corpus, scaling, rows, axes, ar, horizon) for rows in (train, check)]
    best, rank_count = (0.0, "rank 0", np.zeros((0, 0)), 0, 0), axes.shape[1]
    for rank in sorted({min(rank, rank_count) for rank in RANKS}):
        for order in (o for o in VAR_ORDERS if o <= most):
            for penalty in PENALTIES:
                fit, held_out = (_select(m, rank, order, rank_count, most) for m in moments)
                size = rank * order
                weights = _ridge(fit, slice(0, size), slice(size, None), penalty)
                gain = _squared_error(held_out, weights, size) - _squared_error(
                    held_out, 0 * weights, size
                )
                if gain < best[0]:
                    choice = f"rank {rank}, order {order}, penalty {penalty:g}"
                    best = (gain, choice, weights, rank, order)
    _, choice, weights, rank, order = best

    def forecast(past: np.ndarray) -> np.ndarray:
        known = np.nan_to_num(past[:, -most:])
        ahead = np.einsum("rl,rlh->rh", known, ar)
        if rank:
            last = axes[:, :rank].T @ known[:, -order:]
            ahead = ahead + axes[:, :rank] @ (last.ravel() @ weights).reshape(rank, horizon)
        return ahead

    return Linear(forecast, choice)


def _components(corpus: Corpus, scaling: Scaling, rows: Sequence[int], count: int) -> np.ndarray:
    """[R, K] leading principal components of the training series."""
    total = np.zeros((corpus.info.num_parcels,) * 2)
    for row in rows:
        series = _series(corpus, scaling, row)
        total += series @ series.T
    return np.linalg.eigh(total)[1][:, ::-1][:, :count]


def _error_moments(corpus, scaling, rows, axes, ar, horizon: int) -> np.ndarray:
    """Second moments of [last values of K components, AR errors of K components], as [D, D]."""
    most = ar.shape[1]
    lags = min(most, max(VAR_ORDERS))
    size = axes.shape[1] * (lags + horizon)
    total, pairs = np.zeros((size, size)), _Pairs(most + horizon, every=4)
    for row in rows:
        series = _series(corpus, scaling, row)
        parts = stretches(series, most + horizon, every=4)  # [R, n, L + H]
        error = parts[..., most:] - np.einsum("rnl,rlh->rnh", parts[..., :most], ar, optimize=True)
        error = error * pairs.add(series)[:, most:]
        last = parts[..., most - lags : most]
        both = np.concatenate([last, error], -1)
        scores = np.einsum("rk,rnl->nkl", axes, both, optimize=True)
        table = np.concatenate(
            [
                scores[..., :lags].reshape(len(scores), -1),
                scores[..., lags:].reshape(len(scores), -1),
            ],
            axis=1,
        )
        total += table.T @ table
    place = np.arange(most - lags, most + horizon)  # of the time points, in the table's order
    place = np.concatenate([np.tile(part, axes.shape[1]) for part in np.split(place, [lags])])
    return total * pairs.scale()[np.ix_(place, place)]


def _select(moments: np.ndarray, rank: int, order: int, count: int, most: int) -> np.ndarray:
    """The moments of the first `rank` components and their last `order` values."""
    lags = min(most, max(VAR_ORDERS))
    horizon = len(moments) // count - lags
    inputs = np.arange(count * lags).reshape(count, lags)[:rank, lags - order :].ravel()
    outputs = count * lags + np.arange(count * horizon).reshape(count, horizon)[:rank].ravel()
    keep = np.concatenate([inputs, outputs])
    return moments[np.ix_(keep, keep)]
