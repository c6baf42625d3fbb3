"""Censored time: which rows of a series are missing, and where windows of the rest may begin.

Of a window, which has T time points, at least half must be there. A model's token of P time points
is visible under the same rule (:mod:`brainlm.model.grids`), so every such window has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

#: At most this share of a window, or of a token, is censored.
MOST_CENSORED = 0.5


def find_censored(series: np.ndarray) -> np.ndarray:
    """Rows of a series [T, R] in which every parcel is missing: int [C]."""
    return np.flatnonzero(np.isnan(series).all(1))


def drop_censored(series: np.ndarray) -> np.ndarray:
    """The other rows [T - C, R]: for what does not depend on the order of time."""
    gone = find_censored(series)
    return np.delete(series, gone, axis=0) if len(gone) else series


def parcels_with_data(series: np.ndarray) -> np.ndarray:
    """[R] bool: which parcels of a series [T, R] have data, from the first row that was kept."""
    for row in series:
        known = np.isfinite(row)
        if known.any():
            return known
    return np.zeros(series.shape[1], bool)


def list_starts(length: int, censored: Any, window: int) -> Sequence[int]:
    """Where windows of `window` time points may begin in a series of `length`.

    Parameters
    ----------
    censored : array of int, or None
        Time points that are missing.
    """
    starts = range(max(length - window + 1, 0))
    if not len(starts) or not is_censored(censored):
        return starts
    before = np.zeros(length + 1, int)
    before[np.asarray(censored, int) + 1] = 1
    before = before.cumsum()
    gone = before[window:] - before[:-window]
    return np.flatnonzero(gone <= MOST_CENSORED * window).tolist()


def choose_apart(starts: Sequence[int], window: int) -> list[int]:
    """The windows one after another from the left that do not overlap, of possible `starts`."""
    chosen: list[int] = []
    for start in starts:
        if not chosen or start >= chosen[-1] + window:
            chosen.append(start)
    return chosen


def spread_evenly(starts: Sequence[int], count: int) -> list[int]:
    """At most `count` of possible `starts`, the first and the last among them."""
    places = np.linspace(0, len(starts) - 1, count).round().astype(int)
    return [starts[place] for place in np.unique(places).tolist()]


def holds_window(table: pd.DataFrame, window: int) -> pd.Series:
    """Which rows of a corpus's table hold a window of `window` time points [N] bool."""
    holds = table["num_timepoints"] >= window
    if "censored" not in table:
        return holds
    rows = holds & table["censored"].notna()
    if rows.any():
        of = table[rows]
        longest = _longest_stretches(of["censored"], of["num_timepoints"].to_numpy(int), window)
        holds[rows] = longest >= window
    return holds


def _longest_stretches(lists: Iterable[Any], lengths: np.ndarray, window: int) -> np.ndarray:
    """How long each series goes on with no more censored points than a window may have [N]."""
    lists = [np.asarray(points, int) for points in lists]
    ends = np.cumsum([len(points) + 2 for points in lists]) - 1
    begins = np.r_[0, ends[:-1] + 1]
    # of each series: the point before it, the censored ones, the point after it
    points = np.concatenate(
        [part for p, n in zip(lists, lengths, strict=True) for part in ([-1], p, [n])]
    )
    owner = np.repeat(ends, ends - begins + 1)
    one_too_many = np.arange(len(points)) + int(MOST_CENSORED * window) + 1
    stretches = points[np.minimum(one_too_many, owner)] - points - 1
    return np.maximum.reduceat(stretches, begins)


def censored_shares(table: pd.DataFrame) -> np.ndarray:
    """Which share of each recording's time is censored, of a corpus's table [N]."""
    if "censored" not in table:
        return np.zeros(len(table))
    gone = np.array([len(points) if is_censored(points) else 0 for points in table["censored"]])
    return gone / np.maximum(table["num_timepoints"].to_numpy(), 1)


def is_censored(censored: Any) -> bool:
    """Whether a table's cell lists time points: else it is None, or NaN in a shard that is older
    than the column."""
    return censored is not None and not np.isscalar(censored) and len(censored) > 0
