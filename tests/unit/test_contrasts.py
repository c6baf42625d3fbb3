"""Differences between groups where something is held constant, against multiple regression."""

from __future__ import annotations

import numpy as np
from scipy.stats import ttest_ind

from brainlm.config import Evaluate
from brainlm.evaluation.attention.contrasts import (
    Groups,
    _test_labels,
    _test_residuals,
    coefficient,
    compare_groups,
)

OPTIONS = Evaluate(bootstrap=400)


def _groups(maps, second, strata=None, covariates=None) -> Groups:
    strata = np.zeros(len(maps), int) if strata is None else strata
    covariates = maps[:, :0] if covariates is None else covariates
    return Groups(maps, np.asarray(second, bool), ("a", "b"), strata, covariates, False, {})


def _regression(maps, second, strata, covariates) -> np.ndarray:
    """The textbook's coefficient of the group, every parcel by the participants who have it."""
    design = np.column_stack([np.eye(strata.max() + 1)[strata], covariates, second])
    known = np.isfinite(maps)
    return np.array([
        np.linalg.lstsq(design[k], column[k], rcond=None)[0][-1]
        for column, k in zip(maps.T, known.T, strict=True)
    ])  # fmt: skip


def _two_sites(seed: int, effect: float = 1.0) -> Groups:
    """60 participants, a diagnosis that 80 % have at one site, 20 % at the other. Of 20 parcels,
    the first differs between diagnoses, the second between sites, the third in both."""
    rng = np.random.default_rng(seed)
    site = np.repeat([0, 1], 30)
    second = np.r_[np.arange(30) < 24, np.arange(30) < 6]
    maps = rng.normal(size=(60, 20))
    maps[:, 0] += effect * second
    maps[:, 1] += 4 * site
    maps[:, 2] += effect * second + 4 * site
    return _groups(maps, second, site)


def test_differences_are_the_coefficients_of_a_multiple_regression():
    rng = np.random.default_rng(0)
    groups, covariates = _two_sites(0), rng.normal(size=(60, 3))
    covariates[:, 2] = groups.strata  # says nothing that the strata do not
    maps = groups.maps + covariates[:, :1]
    maps[rng.random(maps.shape) < 0.05] = np.nan
    maps[:, 5] = np.nan
    maps[groups.second, 6] = np.nan  # no one of a group has it
    groups = _groups(maps, groups.second, groups.strata, covariates)
    gap, draws = coefficient(groups, OPTIONS)
    expected = _regression(maps, groups.second, groups.strata, covariates)
    rest = np.setdiff1d(np.arange(20), [5, 6])
    np.testing.assert_allclose(gap[rest], expected[rest])
    assert np.isnan(gap[5:7]).all() and draws.shape == (400, 20)
    _, rows = compare_groups(groups, {}, 100, OPTIONS)
    unknown = [row for row in rows if row.get("unit") in ("6", "7")]
    assert all(np.isnan(row["value"]) and np.isnan(row["p"]) for row in unknown)


def test_with_nothing_held_constant_it_is_welchs_t_and_the_difference_of_means():
    rng = np.random.default_rng(1)
    second = np.arange(50) < 12
    groups = _groups(rng.normal(size=(50, 8)) * np.where(second, 3, 1)[:, None], second)
    expected = ttest_ind(groups.maps[second], groups.maps[~second], equal_var=False)
    observed, p = _test_labels(groups, 200, np.random.default_rng(0))
    same, close = _test_residuals(groups, 200, np.random.default_rng(0))
    np.testing.assert_allclose(observed, expected.statistic)
    np.testing.assert_allclose(same, expected.statistic)
    assert np.abs(p - close).max() < 0.1  # other permutations of the same kind
    gap = groups.maps[second].mean(0) - groups.maps[~second].mean(0)
    np.testing.assert_allclose(coefficient(groups, OPTIONS)[0], gap)
    _, rows = compare_groups(groups, {}, 100, OPTIONS)
    np.testing.assert_allclose([row["value"] for row in rows[2:]], gap)


def test_a_site_is_not_taken_for_a_group_and_hides_none():
    found, covered, gaps = 0, 0, []
    for seed in range(20):
        _, rows = compare_groups(_two_sites(seed, effect=1.6), {}, 200, OPTIONS)
        first, second, third = (row for row in rows if row.get("unit") in ("1", "2", "3"))
        found += int(first["p"] < 0.05) + int(third["p"] < 0.05)
        covered += second["low"] < 0 < second["high"]
        gaps += [[first["value"], second["value"], third["value"]]]
    assert found >= 30 and covered >= 17
    np.testing.assert_allclose(np.mean(gaps, 0), [1.6, 0, 1.6], atol=0.25)


def test_what_a_covariate_shares_with_the_group_is_not_taken_from_the_difference():
    gaps, found = [], 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        second = np.arange(80) % 2 == 1
        motion = 2 * second + rng.normal(size=80)  # r = .7
        maps = rng.normal(size=(80, 5)) + motion[:, None]
        maps[:, 0] += 1.5 * second
        _, rows = compare_groups(_groups(maps, second, None, motion[:, None]), {}, 200, OPTIONS)
        gaps.append([row["value"] for row in rows[2:]])
        found += rows[2]["p"] < 0.05
        assert rows[2]["low"] < rows[2]["value"] < rows[2]["high"]
    np.testing.assert_allclose(np.mean(gaps, 0), [1.5, 0, 0, 0, 0], atol=0.2)
    assert found >= 16
