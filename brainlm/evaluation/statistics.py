"""How sure a figure is: participants drawn anew, one paired test, and corrections for many tests.

Values of one participant are not independent, so the unit that is resampled is the participant. A
statistic is a function of counts, how often each participant was drawn; two methods are compared
on the same draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from ..config import Evaluate

#: counts [..., S] of participants -> values [..., *U] of units (steps, networks; or none)
Statistic = Callable[[np.ndarray], np.ndarray]
#: Fewer participants than this give no interval: nothing can be said about those not seen.
MIN_PARTICIPANTS = 3


def draw_counts(participants: int, resamples: int, seed: int) -> np.ndarray:
    """[resamples, S]: how often each participant is drawn, with replacement, in each resample."""
    generator = np.random.default_rng(seed)
    even = np.full(participants, 1 / max(participants, 1))
    return generator.multinomial(participants, even, size=resamples).astype(np.float64)


@dataclass(frozen=True)
class Estimate:
    """A figure of S participants, or one figure per unit, with its bootstrap draws.

    Attributes
    ----------
    value : ndarray [*U]
    draws : ndarray [B, *U]
    participants : int
    """

    value: np.ndarray
    draws: np.ndarray
    participants: int

    def __sub__(self, other: Estimate) -> Estimate:
        """The paired difference: both were drawn from the same participants."""
        return Estimate(self.value - other.value, self.draws - other.draws, self.participants)

    @cached_property
    def interval(self) -> np.ndarray:
        """[2, *U] the middle 95 % of the draws; NaN for fewer than :data:`MIN_PARTICIPANTS`, and
        where most draws have no value (an AUC without positives)."""
        known = np.isfinite(self.draws)
        enough = np.isfinite(self.value) & (2 * known.sum(0) > len(self.draws))
        if not enough.any():
            return np.full((2, *np.shape(self.value)), np.nan)
        draws = np.where(enough, np.where(known, self.draws, np.nan), 0)
        return np.where(enough, np.nanpercentile(draws, [2.5, 97.5], 0), np.nan)

    @property
    def p(self) -> np.ndarray:
        """[*U] two-sided p of a value of 0: the paired test of this package.

        Student's t with S - 1 degrees of freedom; the standard error is that of a normal
        distribution with this interval, with n - 1 instead of n. For a mean over participants it
        is the paired t test; pooled metrics (R², AUC) have no mean over participants and are
        tested alike. No p is below 2^(1 - S), what a test of signs could reach at best.
        """
        from scipy.stats import norm, t

        low, high = self.interval
        n = self.participants
        error = (high - low) / (2 * norm.ppf(0.975)) * np.sqrt(n / max(n - 1, 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(self.value == 0, 0 * error, np.abs(self.value) / error)
        return np.maximum(2 * t.sf(ratio, max(n - 1, 1)), 2.0 ** (1 - n))


class Sample:
    """S participants and the draws that every figure of them shares."""

    def __init__(self, participants: int, options: Evaluate):
        self.participants = participants
        drawn = options.bootstrap if participants >= MIN_PARTICIPANTS else 0
        self.counts = draw_counts(participants, drawn, options.seed)

    def estimate(self, statistic: Statistic) -> Estimate:
        """A statistic of the whole sample, and of every draw."""
        once = np.asarray(statistic(np.ones((1, self.participants))))[0]
        return Estimate(once, np.asarray(statistic(self.counts)), self.participants)


def add_by_participant(values: ArrayLike, participants: ArrayLike) -> np.ndarray:
    """Add values [N, ...] of recordings of the same participant -> [S, ...], names sorted."""
    names, which = np.unique(np.asarray(participants, str), return_inverse=True)
    out = np.zeros((len(names), *np.shape(values)[1:]))
    np.add.at(out, which, values)
    return out


def holm(p: np.ndarray) -> np.ndarray:
    """Step-down correction (Holm 1979) over all finite values, in the shape given.

    The smallest of n is multiplied by n, the next by n - 1, and so on; none comes below one before
    it. statsmodels has this too, with seconds of imports and of garbage collection.
    """
    out = np.array(p, float)
    known = np.isfinite(out)
    values = out[known]
    order = np.argsort(values)
    steps = values[order] * np.arange(len(values), 0, -1)
    values[order] = np.minimum(np.maximum.accumulate(steps), 1)
    out[known] = values
    return out


def max_statistic_p(
    statistic: Callable[[np.ndarray], np.ndarray], observed: np.ndarray, draws: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Family-wise corrected p of each of many statistics, by permutation.

    The largest absolute statistic of every draw makes one null distribution for all (Nichols &
    Holmes 2002); the observed labelling counts as one draw, so p is never 0. nilearn's
    ``permuted_ols`` was not taken: it assumes one error variance for both groups and needs every
    parcel of all participants.

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
