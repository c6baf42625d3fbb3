"""Metrics from sums against scikit-learn and scipy."""

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
from brainlm.evaluation.statistics import draw_counts


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
    counts = draw_counts(40, 5, seed=1)
    assert metrics.auc(truth, score) == pytest.approx(roc_auc_score(truth, score))
    assert metrics.balanced_accuracy(truth, score > 0.5) == pytest.approx(
        balanced_accuracy_score(truth, score > 0.5)
    )
    drawn = [np.repeat(np.arange(40), row.astype(int)) for row in counts]
    expected = [roc_auc_score(truth[d], score[d]) for d in drawn]
    np.testing.assert_allclose(metrics.auc(truth, score, counts), expected)
    expected = [balanced_accuracy_score(truth[d], score[d] > 0.5) for d in drawn]
    np.testing.assert_allclose(metrics.balanced_accuracy(truth, score > 0.5, counts), expected)
