"""Metrics from sums against scikit-learn and scipy; intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr
from sklearn.metrics import (
    balanced_accuracy_score,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)  # fmt: skip

from brainlm.evaluation import metrics


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(-50, 50))
def test_pooled_metrics_equal_independent_implementations(seed, subjects, offset):
    rng = np.random.default_rng(seed)
    truth = [rng.normal(offset, 1, rng.integers(3, 20)) for _ in range(subjects)]
    guess = [y + rng.normal(0, 2, len(y)) for y in truth]
    sums = sum(metrics.sum_values(y, p) for y, p in zip(truth, guess, strict=True))
    y, p = np.concatenate(truth), np.concatenate(guess)
    expected = {
        "r2": r2_score(y, p),
        "r": pearsonr(y, p)[0],
        "mse": mean_squared_error(y, p),
        "mae": mean_absolute_error(y, p),
    }
    for name, value in expected.items():
        assert metrics.POOLED[name](sums) == pytest.approx(value, abs=1e-6), name


def test_r2_is_not_clipped_and_undefined_without_variance():
    assert metrics.r2(metrics.sum_values([1.0, 2, 3], [3.0, 2, 1])) == pytest.approx(-3)
    constant = metrics.sum_values([5.1, 5.1, 5.1], [1.0, 2, 3])
    assert np.isnan(metrics.r2(constant))
    assert np.isnan(metrics.pearson_r(constant))
    assert np.isnan(metrics.mse(np.zeros(8)))


def test_missing_values_are_left_out_on_both_sides():
    sums = metrics.sum_values([1, np.nan, 3, 4], [1, 2, np.nan, 6])
    assert sums[0] == 2
    assert metrics.mse(sums) == 2


def test_class_metrics_equal_sklearn_and_follow_counts():
    rng = np.random.default_rng(0)
    truth = rng.random(40) < 0.4
    score = np.round(truth + rng.normal(0, 1, 40), 1)  # rounding makes ties
    counts = metrics.draw_counts(40, 5, seed=1)
    assert metrics.auc(truth, score) == pytest.approx(roc_auc_score(truth, score))
    assert metrics.balanced_accuracy(truth, score > 0.5) == pytest.approx(
        balanced_accuracy_score(truth, score > 0.5)
    )
    drawn = [np.repeat(np.arange(40), row.astype(int)) for row in counts]
    expected = [roc_auc_score(truth[d], score[d]) for d in drawn]
    np.testing.assert_allclose(metrics.auc(truth, score, counts), expected)
    expected = [balanced_accuracy_score(truth[d], score[d] > 0.5) for d in drawn]
    np.testing.assert_allclose(metrics.balanced_accuracy(truth, score > 0.5, counts), expected)


def test_bootstrap_equals_a_loop_over_resampled_subjects():
    rng = np.random.default_rng(3)
    truth = [rng.normal(size=7) for _ in range(9)]
    guess = [y + rng.normal(size=7) for y in truth]
    sums = np.array([metrics.sum_values(y, p) for y, p in zip(truth, guess, strict=True)])
    values = []
    for counts in metrics.draw_counts(9, 200, seed=4):
        drawn = np.repeat(np.arange(9), counts.astype(int))
        y = np.concatenate([truth[i] for i in drawn])
        values.append(r2_score(y, np.concatenate([guess[i] for i in drawn])))
    value, interval = metrics.bootstrap(metrics.of_sums("r2", sums), 9, 200, seed=4)
    np.testing.assert_allclose(interval, np.percentile(values, [2.5, 97.5]))
    assert interval[0] < value < interval[1]


def test_intervals_cover_the_true_error_about_as_often_as_they_say():
    """Subjects differ, so resampling values instead of subjects would cover far too rarely."""
    rng, hits = np.random.default_rng(5), 0
    for trial in range(200):
        bias = rng.normal(0, 1, (40, 1))  # one error level per subject: E[error²] = 1 + 0.01
        errors = bias + rng.normal(0, 0.1, (40, 30))
        sums = np.array([metrics.sum_values(np.zeros(30), row) for row in errors])
        _, (low, high) = metrics.bootstrap(metrics.of_sums("mse", sums), 40, 400, seed=trial)
        hits += low <= 1.01 <= high
    assert 0.86 <= hits / 200 <= 0.99


def test_paired_difference_uses_the_same_resamples():
    rng = np.random.default_rng(6)
    truth = rng.normal(0, 5, 30)
    good = np.array([metrics.sum_values(y, y + 1.0) for y in truth])
    worse = np.array([metrics.sum_values(y, y + 1.5) for y in truth])
    statistic = metrics.difference(metrics.of_sums("mae", good), metrics.of_sums("mae", worse))
    value, interval = metrics.bootstrap(statistic, 30, 100, seed=0)
    assert value == pytest.approx(-0.5)
    assert interval == pytest.approx((-0.5, -0.5))


@pytest.mark.parametrize("subjects", [0, 1, 2])
def test_too_few_subjects_have_no_interval(subjects):
    sums = np.ones((subjects, 8))
    value, interval = metrics.bootstrap(metrics.of_sums("mse", sums), subjects, 100, seed=0)
    assert interval is None
    assert value == 1 if subjects else np.isnan(value)


def test_recordings_of_one_subject_are_one_unit():
    sums = metrics.add_by_subject([np.ones(8), np.ones(8), 3 * np.ones(8)], ["b", "a", "b"])
    np.testing.assert_array_equal(sums[:, 0], [1, 4])
