"""Intervals that cover, a paired test that errs as often as it says, corrections."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel
from sklearn.metrics import r2_score

from brainlm.config import Evaluate
from brainlm.evaluation.metrics import auc, of_sums, sum_values
from brainlm.evaluation.rows import compare
from brainlm.evaluation.statistics import (
    Estimate,
    Sample,
    add_by_participant,
    draw_counts,
    holm,
    max_statistic_p,
)


def sums_of(truth, guess):
    return np.array([sum_values(y, p) for y, p in zip(truth, guess, strict=True)])


def test_an_interval_equals_a_loop_over_resampled_participants():
    rng = np.random.default_rng(3)
    truth = [rng.normal(size=7) for _ in range(9)]
    guess = [y + rng.normal(size=7) for y in truth]
    values = []
    for counts in draw_counts(9, 200, seed=4):
        drawn = np.repeat(np.arange(9), counts.astype(int))
        y = np.concatenate([truth[i] for i in drawn])
        values.append(r2_score(y, np.concatenate([guess[i] for i in drawn])))
    sample = Sample(9, Evaluate(bootstrap=200, seed=4))
    found = sample.estimate(of_sums("r2", sums_of(truth, guess)))
    np.testing.assert_allclose(found.interval, np.percentile(values, [2.5, 97.5]))
    assert found.interval[0] < found.value < found.interval[1]


def test_intervals_cover_the_true_error_about_as_often_as_they_say():
    """Participants differ, so resampling values instead would cover far too rarely."""
    rng, hits = np.random.default_rng(5), 0
    for trial in range(200):
        bias = rng.normal(0, 1, (40, 1))  # an error level each: E[error²] = 1 + 0.01
        errors = bias + rng.normal(0, 0.1, (40, 30))
        sample = Sample(40, Evaluate(bootstrap=400, seed=trial))
        low, high = sample.estimate(of_sums("mse", sums_of(np.zeros((40, 30)), errors))).interval
        hits += low <= 1.01 <= high
    assert 0.86 <= hits / 200 <= 0.99


def test_a_paired_difference_is_taken_on_the_same_resamples():
    truth = np.random.default_rng(6).normal(0, 5, 30)
    good, worse = (of_sums("mae", sums_of(truth, truth + error)) for error in (1.0, 1.5))
    sample = Sample(30, Evaluate(bootstrap=100))
    gap = sample.estimate(good) - sample.estimate(worse)
    assert gap.value == pytest.approx(-0.5)
    np.testing.assert_allclose(gap.interval, (-0.5, -0.5))


@pytest.mark.parametrize("participants", [1, 2])
def test_too_few_participants_have_no_interval_and_no_p(participants):
    one = Sample(participants, Evaluate()).estimate(of_sums("mse", np.ones((participants, 8))))
    assert one.value == 1
    assert np.isnan(one.interval).all() and np.isnan((one - one).p)


def test_a_figure_that_most_resamples_lack_has_no_interval():
    truth = np.arange(8) == 0  # one positive: a third of the resamples have none
    known = Sample(8, Evaluate(bootstrap=300)).estimate(
        lambda counts: auc(truth, np.arange(8.0), counts)
    )
    assert np.isnan(known.draws).mean() > 0.2 and np.isfinite(known.interval).all()
    lost = np.where(np.arange(300)[:, None] < [160, 100], np.nan, known.draws[:, None])
    ends = Estimate(np.ones(2), lost, 8).interval
    assert np.isnan(ends).all(0).tolist() == [True, True]
    assert np.isfinite(Estimate(np.ones(()), np.r_[np.nan, np.arange(9.0)], 8).interval).all()


@pytest.mark.parametrize("participants", [12, 40, 300])
@pytest.mark.parametrize("gap", [0.0, 0.2, 1.0])
def test_of_a_mean_over_participants_it_is_the_paired_t_test(participants, gap):
    rng = np.random.default_rng(participants)
    a, b = rng.normal(0, 1, (2, participants))
    sums = [sums_of(np.zeros(participants), np.abs(x) ** 0.5) for x in (a + gap, b)]
    sample = Sample(participants, Evaluate(bootstrap=20_000))
    one, other = (sample.estimate(of_sums("mse", s)) for s in sums)
    expected = max(ttest_rel(np.abs(a + gap), np.abs(b)).pvalue, 2.0 ** (1 - participants))
    assert np.log10((one - other).p) == pytest.approx(np.log10(expected), rel=0.1, abs=0.06)


@pytest.mark.parametrize("participants", [6, 10, 30])
@pytest.mark.parametrize("metric", ["r2", "r", "mse", "mae"])
def test_equal_methods_are_called_different_no_more_often_than_p_says(participants, metric):
    rng, found = np.random.default_rng(7), []
    for trial in range(150):
        y = rng.normal(size=participants)
        errors = rng.standard_t(4, size=(2, participants))
        sample = Sample(participants, Evaluate(bootstrap=200, seed=trial))
        one, other = (
            sample.estimate(of_sums(metric, sums_of(y, 0.6 * y + 0.8 * e))) for e in errors
        )
        found.append((one - other).p < 0.05)
    assert np.mean(found) <= 0.11  # 0.05 and three standard errors of 150 trials


def test_a_difference_without_spread_is_not_surer_than_a_test_of_signs():
    sample = Sample(5, Evaluate(bootstrap=100))
    assert sample.estimate(lambda counts: counts @ np.full(5, 0.2)).p == 2.0**-4
    assert sample.estimate(lambda counts: 0 * counts.sum(-1)).p == 1


def test_rows_of_a_comparison_are_corrected_over_pairs_and_units():
    rng = np.random.default_rng(8)
    values = {
        name: rng.normal(mean, 1, (30, 2)) for name, mean in (("a", 0.8), ("b", 0), ("c", 0))
    }
    of = {name: lambda counts, v=v: counts @ v / 30 for name, v in values.items()}
    sample = Sample(30, Evaluate(bootstrap=500))
    pairs = [("a", "b"), ("a", "c")]
    rows = list(compare(sample, of, {"metric": "mean"}, pairs, units=["x", "y"]))
    assert [(row["method"], row["unit"]) for row in rows[6:]] == [
        (f"a minus {other}", unit) for other in "bc" for unit in "xy"
    ]
    assert all("p" not in row and row["low"] < row["value"] < row["high"] for row in rows[:6])
    single = [(sample.estimate(of["a"]) - sample.estimate(of[other])).p for other in "bc"]
    np.testing.assert_allclose([row["p"] for row in rows[6:]], holm(np.array(single)).ravel())


def test_recordings_of_one_participant_are_one_unit():
    values = np.array([[1.0, 2], [1, 0], [3, 5]])
    np.testing.assert_array_equal(add_by_participant(values, ["b", "a", "b"]), [[1, 0], [4, 7]])


def test_holm_is_the_step_down_correction():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, np.nan]), [0.03, 0.06, 0.06, np.nan])
    assert holm(np.array([[0.9, 0.8]])).max() == 1
    p = np.random.default_rng(0).uniform(0, 0.05, (4, 5)).round(2)  # with ties
    smaller = p.ravel()[:, None] <= p.ravel()  # [i, j]: i is not larger than j
    rank = {value: int((p < value).sum()) for value in set(p.ravel())}
    each = np.array([min(1, (p.size - rank[value]) * value) for value in p.ravel()])
    by_definition = np.where(smaller, each[:, None], 0).max(0)  # the largest of those before it
    np.testing.assert_allclose(holm(p), by_definition.reshape(p.shape))
    assert holm(np.array([])).shape == (0,) and np.isnan(holm([np.nan])).all()


def test_the_largest_statistic_corrects_over_all_parcels():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(40, 30))
    values[:, 4] += 1.5
    signs = rng.choice([-1.0, 1.0], size=(500, 40))

    def t(sign):
        flipped = sign[:, None] * values
        return flipped.mean(0) / flipped.std(0)

    p = max_statistic_p(t, t(np.ones(40)), signs)
    assert p[4] == pytest.approx(1 / 501)
    assert (np.delete(p, 4) > 0.05).all()
