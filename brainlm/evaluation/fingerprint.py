"""Who is who: whether the two ends of a recording know each other, and what else tells them apart.

A summary that is worth having is a participant's own (Finn et al., Nature Neuroscience 2015), is
the same again in the next minutes, and is not head motion. Three figures per summary, of the
first and the last window of one recording per participant, which do not overlap:

* ``identified``: share of participants whose first window is nearest to their own last window
  among all participants' (correlation of standardised features), mean of both directions;
* ``icc``: intra-class correlation ICC(1,1) of the two windows, median over features;
* ``motion``: size of the correlation, over participants, of a feature (mean of both windows) with
  mean framewise displacement, median over features; 0.67 / sqrt(participants) without any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from ..config import Evaluate
from .rows import compare
from .statistics import Sample, Statistic

#: what is asked, in the column ``target``
TARGET = "who is who"
#: fewer participants with two windows say nothing
LEAST = 10
_NO_INTERVAL = "no interval: a size of r is larger in resamples than it is"
_FEATURES = 2000  # at most so many, evenly spaced, decide medians


def score_fingerprint(
    ends: Mapping[str, np.ndarray], motion: np.ndarray, where: dict, options: Evaluate
) -> Iterator[dict]:
    """Rows of the three figures for every summary, and chance.

    Parameters
    ----------
    ends : mapping of name to ndarray [S, 2, F]
        Summaries of the first and the last window of S participants; NaN is missing.
    motion : ndarray [S]
        Mean framewise displacement, mm; NaN where unknown.
    where : dict
        Columns of every row.
    """
    count = len(motion)
    where = where | {"target": TARGET, "n": count}
    if count < LEAST:
        note = f"{count} participants with two windows that do not overlap; {LEAST} are needed"
        yield where | {"note": note}
        return
    sample = Sample(count, options)
    found = {name: identify_participants(values) for name, values in ends.items()}
    share: dict[str, Statistic] = {name: _mean(hits) for name, hits in found.items()}
    yield from compare(sample, share, where | {"metric": "identified"})
    yield where | {"method": "chance", "metric": "identified", "value": 1 / count}
    thin = {name: _complete(values) for name, values in ends.items()}
    again: dict[str, Statistic] = {name: _reliability(values) for name, values in thin.items()}
    yield from compare(sample, again, where | {"metric": "icc"})
    known = np.isfinite(motion)
    if known.sum() >= LEAST and np.ptp(motion[known]) > 0:
        of_known = where | {"metric": "motion", "n": int(known.sum()), "note": _NO_INTERVAL}
        for name, values in thin.items():
            value = median_correlation(values[known].mean(1), motion[known])
            yield of_known | {"method": name, "value": value}


def identify_participants(ends: np.ndarray) -> np.ndarray:
    """[S] share of the two directions in which a participant is found, of summaries [S, 2, F]."""
    values = ends[..., np.isfinite(ends).all((0, 1))].astype(np.float64)
    spread = values.std((0, 1))
    values = (values - values.mean((0, 1))) / np.where(spread > 1e-12, spread, np.inf)
    values = values - values.mean(2, keepdims=True)
    size = np.linalg.norm(values, axis=2, keepdims=True)
    values = values / np.where(size > 0, size, np.inf)
    likeness = values[:, 0] @ values[:, 1].T
    own = np.arange(len(likeness))
    return ((likeness.argmax(1) == own) + (likeness.argmax(0) == own).astype(float)) / 2


def _complete(ends: np.ndarray) -> np.ndarray:
    """Features that all participants have and that differ, :data:`_FEATURES` at most."""
    values = ends[..., np.isfinite(ends).all((0, 1))]
    values = values[..., values.std((0, 1)) > 1e-12].astype(np.float64)
    step = max(1, -(-values.shape[2] // _FEATURES))
    return values[..., ::step]


def _mean(values: np.ndarray) -> Statistic:
    return lambda counts: counts @ values / counts.sum(-1)


def _reliability(ends: np.ndarray) -> Statistic:
    """Median over features of (MSB - MSW) / (MSB + MSW), two windows a participant."""
    mean, apart = ends.mean(1), (ends[:, 0] - ends[:, 1]) ** 2 / 2

    def statistic(counts: np.ndarray) -> np.ndarray:
        n = counts.sum(-1, keepdims=True)
        between = 2 * (counts @ mean**2 - (counts @ mean) ** 2 / n) / (n - 1)
        within = counts @ apart / n
        return np.median((between - within) / (between + within), axis=-1)

    return statistic


def median_correlation(values: np.ndarray, motion: np.ndarray) -> float:
    """Median over features [S, F] of |r| with motion [S]."""
    x, y = values - values.mean(0), motion - motion.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (y @ x) / np.sqrt((y @ y) * (x * x).sum(0))
    return float(np.nanmedian(np.abs(r)))


def first_recordings(points: pd.DataFrame, long: np.ndarray) -> np.ndarray:
    """Positions of one recording per participant: the first that is `long` [N] bool."""
    order = np.flatnonzero(long)
    return order[~points["participant_id"].iloc[order].duplicated().to_numpy()]
