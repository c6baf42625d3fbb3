"""Two groups of maps compared in every parcel, and p values that hold for all parcels together.

Groups of participants: Welch's t. Where something is held constant (strata such as sites,
covariates such as motion) it is the group's coefficient in a linear regression that holds them
too, over its standard error for unequal variances (HC2, MacKinnon & White 1985: with nothing held
constant that is Welch's t). Two conditions of the same participants: a paired t. p: permutations
of labels, of residuals within strata (Freedman & Lane 1983), or of signs, and the largest |t| over
parcels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ...config import Evaluate
from ..rows import describe_left_out, rows_of
from ..statistics import MIN_PARTICIPANTS, Estimate, draw_counts, max_statistic_p

_FLAT = 1e-8  # a share of variance below this is rounding


@dataclass(frozen=True)
class Groups:
    """Maps of participants (or of participants and condition) with their group.

    Attributes
    ----------
    maps : ndarray [S, R]
        Paired contrasts: of the first condition, then the second, of the same participants.
    second : ndarray [S] bool
        In the second group; all False without a contrast.
    names : tuple of str
        Of the groups.
    strata : ndarray [S] int
        Groups are compared, and labels permuted, within these.
    covariates : ndarray [S, C]
        Held constant when groups are compared.
    paired : bool
    left_out : dict of reason to count of participants
    """

    maps: np.ndarray
    second: np.ndarray
    names: tuple[str, ...]
    strata: np.ndarray
    covariates: np.ndarray
    paired: bool
    left_out: dict[str, int]

    @property
    def held(self) -> bool:
        """Whether anything is held constant."""
        return bool(self.strata.any() or self.covariates.size)


def can_compare(groups: Groups) -> bool:
    """Whether groups still differ where strata and covariates do not."""
    if not len(groups.second):
        return False
    label = groups.second[:, None].astype(float)
    left = residuals(label, groups.strata, groups.covariates)
    return bool((left**2).sum() > _FLAT * len(label))


def compare_groups(groups: Groups, where: dict, permutations: int, options: Evaluate):
    """The table of maps, and rows of results.

    Means and their intervals are those of the groups as they are; the difference, its interval
    and p hold strata and covariates constant.
    """
    parts = [groups.maps[~groups.second], groups.maps[groups.second]][: len(groups.names)]
    sizes = ", ".join(f"{n} {len(m)}" for n, m in zip(groups.names, parts, strict=True))
    note = "; ".join(filter(None, [sizes, describe_left_out(groups.left_out)]))
    count = len(parts[0]) if groups.paired else len(groups.maps)
    where = where | {"n": count, "left_out": sum(groups.left_out.values()), "note": note}
    draws = [_mean_draws(part, options, paired=groups.paired, group=g)
             for g, part in enumerate(parts)]  # fmt: skip
    if len(parts) == 1 or min(map(len, parts)) < MIN_PARTICIPANTS:
        gap = p = np.full(groups.maps.shape[1], np.nan)
        rows = [where]
        if len(parts) > 1:
            few = f"a group of fewer than {MIN_PARTICIPANTS} participants"
            rows = [where | {"note": f"{note}; {few}"}]
    else:
        gap, spread = _mean(parts[1]) - _mean(parts[0]), draws[1] - draws[0]
        test = _test_signs if groups.paired else _test_labels
        if groups.held and not groups.paired:
            (gap, spread), test = coefficient(groups, options), _test_residuals
        observed, p = test(groups, permutations, np.random.default_rng(options.seed))
        p = np.where(np.isfinite(gap), p, np.nan)
        rows = list(_rows(where, observed, p, gap, spread))
    tables = []
    for name, part, values in zip(groups.names, parts, draws, strict=True):
        low, high = Estimate(_mean(part), values, len(part)).interval
        tables.append(pd.DataFrame({
            "group": name, "parcel": np.arange(1, len(p) + 1), "n": len(part), "mean": _mean(part),
            "low": low, "high": high, "difference": gap, "p": p}))  # fmt: skip
    return pd.concat(tables), rows


def _rows(where: dict, observed, p, gap, draws) -> Iterator[dict]:
    """The whole-brain rows, then one per parcel."""
    yield where | {"metric": "max_t", "value": float(np.nanmax(np.abs(observed))),
                   "p": float(np.nanmin(p))}  # fmt: skip
    yield where | {"metric": "parcels_p05", "value": float((p < 0.05).sum())}
    where = where | {"level": "parcel", "metric": "difference"}
    yield from rows_of(where, Estimate(gap, draws, where["n"]), range(1, len(p) + 1), p)


# ---- tests: t of every parcel [R], and its family-wise corrected p ------------------------------


def _test_signs(groups: Groups, permutations: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Two conditions of the same participants."""
    half = len(groups.maps) // 2
    gap = groups.maps[half:] - groups.maps[:half]
    signs = rng.choice([-1.0, 1.0], size=(permutations, half))
    observed = paired_t(gap)
    return observed, max_statistic_p(lambda s: paired_t(gap * s[:, None]), observed, signs)


def _test_labels(groups: Groups, permutations: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Two groups as they are."""
    orders = _shuffle(groups.strata, permutations, rng)
    observed = welch_t(groups.maps, groups.second)
    return observed, max_statistic_p(
        lambda order: welch_t(groups.maps, groups.second[order]), observed, orders
    )


def _test_residuals(groups: Groups, permutations: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Two groups with strata and covariates held constant (Freedman & Lane 1983)."""
    strata, covariates = groups.strata, groups.covariates
    left, _ = _residuals_where_known(groups)
    label = residuals(groups.second[:, None].astype(float), strata, covariates)[:, 0]
    directions, size = _directions(covariates, strata), label @ label
    weight = label**2 / np.maximum(1 - _leverage(groups), _FLAT)

    def statistic(order: np.ndarray) -> np.ndarray:
        mixed = left[order]  # within strata: their means stay 0
        mixed = mixed - directions @ (directions.T @ mixed)
        gap = label @ mixed / size
        error = np.sqrt(weight @ (mixed - np.outer(label, gap)) ** 2) / size
        with np.errstate(invalid="ignore", divide="ignore"):
            return gap / error

    observed = statistic(np.arange(len(label)))
    return observed, max_statistic_p(statistic, observed, _shuffle(strata, permutations, rng))


def _shuffle(strata: np.ndarray, permutations: int, rng) -> np.ndarray:
    """[P, S] orders of participants that leave each in their stratum, by sorting random keys."""
    keys = rng.random((permutations, len(strata)))
    places = np.stack([np.lexsort((key, strata)) for key in keys])
    own = np.broadcast_to(np.argsort(strata, kind="stable"), places.shape)
    orders = np.empty_like(places)
    np.put_along_axis(orders, places, own, 1)
    return orders


def welch_t(maps: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[R] t of the second group's mean minus the first's, unequal variances; NaN left out."""
    mean, error = [], []
    known = np.isfinite(maps)
    filled = np.where(known, maps, 0)
    for group in (~second, second):
        weight = group.astype(float)
        n = weight @ known
        with np.errstate(invalid="ignore", divide="ignore"):
            mean.append(weight @ filled / n)
            spread = weight @ filled**2 / n - mean[-1] ** 2
            error.append(np.where(n > 1, spread / (n - 1), np.nan))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (mean[1] - mean[0]) / np.sqrt(error[0] + error[1])


def paired_t(gap: np.ndarray) -> np.ndarray:
    """[R] one-sample t of differences [S, R]; NaN left out."""
    n = np.isfinite(gap).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _mean(gap) / (np.sqrt(_mean(gap**2) - _mean(gap) ** 2) / np.sqrt(n - 1))


# ---- regression ---------------------------------------------------------------------------------


def coefficient(groups: Groups, options: Evaluate) -> tuple[np.ndarray, np.ndarray]:
    """[R] second group minus first at the same stratum and covariates, and its bootstrap [B, R].

    Residuals of maps on residuals of the label (Frisch & Waugh 1933). Participants are drawn anew
    to first order, without fitting again; a residual is divided by √(1 - leverage), since a fit
    follows the participants that it is made of.
    """
    left, label = _residuals_where_known(groups)
    size = (label**2).sum(0)
    size = np.where(size > _FLAT * len(label), size, np.nan)  # a parcel that one group lacks
    gap = (label * left).sum(0) / size
    spare = np.sqrt(np.maximum(1 - _leverage(groups), _FLAT))[:, None]
    pull = label * (left - label * np.nan_to_num(gap)) / spare
    counts = draw_counts(len(label), options.bootstrap, options.seed)
    return gap, gap + (counts - 1) @ pull / size


def residuals(values: np.ndarray, strata: np.ndarray, covariates: np.ndarray) -> np.ndarray:
    """What the strata's means and a linear effect of covariates [S, C] leave of values [S, K]."""
    directions, centred = _directions(covariates, strata), _centre(values, strata)
    return centred - directions @ (directions.T @ centred)


def _residuals_where_known(groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """Residuals of maps and of the same participants' label: [S, R] each; 0 where missing."""
    left, label = np.zeros((2, *groups.maps.shape))
    patterns, which = np.unique(np.isfinite(groups.maps), axis=1, return_inverse=True)
    for number, known in enumerate(patterns.T):
        if not known.any():
            continue
        where = np.ix_(known, np.flatnonzero(which.ravel() == number))
        both = np.column_stack([groups.maps[where], groups.second[known]])
        both = residuals(both, groups.strata[known], groups.covariates[known])
        left[where], label[where] = both[:, :-1], both[:, -1:]
    return left, label


def _leverage(groups: Groups) -> np.ndarray:
    """[S] how far the fit of strata, covariates and group follows each participant, 0..1."""
    label = residuals(groups.second[:, None].astype(float), groups.strata, groups.covariates)
    directions = _directions(groups.covariates, groups.strata)
    share = 1 / np.bincount(groups.strata)[groups.strata]
    return share + (directions**2).sum(1) + (label**2 / (label**2).sum())[:, 0]


def _directions(covariates: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """[S, K] orthonormal: the covariates within strata, without those that do not vary there."""
    size = np.linalg.norm(covariates - covariates.mean(0), axis=0)
    centred = _centre(covariates, strata)[:, size > 0] / size[size > 0]
    vectors, values, _ = np.linalg.svd(centred, full_matrices=False)
    return vectors[:, values > np.sqrt(_FLAT)]


def _centre(values: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Values [S, K] less their stratum's mean."""
    member = np.eye(strata.max() + 1)[strata]
    return values - member @ (member.T @ values / np.maximum(member.sum(0), 1)[:, None])


# ---- means --------------------------------------------------------------------------------------


def _mean(maps: np.ndarray) -> np.ndarray:
    """[R] of the participants who have the parcel."""
    known = np.isfinite(maps)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, maps, 0).sum(0) / known.sum(0)


def _mean_draws(maps: np.ndarray, options: Evaluate, *, paired: bool, group: int) -> np.ndarray:
    """[B, R] bootstrap means; the same participants are drawn for both conditions."""
    counts = draw_counts(len(maps), options.bootstrap, options.seed + (0 if paired else group))
    known = np.isfinite(maps)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (counts @ np.where(known, maps, 0)) / (counts @ known)
