"""Who is who: planted participants are found, noise is not, and the figures are the textbook's."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from brainlm.config import Evaluate
from brainlm.evaluation.fingerprint import (
    _reliability,
    first_recordings,
    identify_participants,
    median_correlation,
    score_fingerprint,
)

S, F = 40, 300


@pytest.fixture(scope="module")
def scored():
    random = np.random.default_rng(3)
    own, motion = random.normal(size=(S, 1, F)), random.normal(size=S)
    ends = {
        "own": own + 0.3 * random.normal(size=(S, 2, F)),
        "noise": random.normal(size=(S, 2, F)),
        "moved": motion[:, None, None] + 0.5 * random.normal(size=(S, 2, F)),
    }
    ends["own"][4, 1, :7] = np.nan  # features that somebody lacks are left out for all
    motion[5] = np.nan
    rows = score_fingerprint(ends, motion, {"cohort": "c"}, Evaluate(bootstrap=200))
    return pd.DataFrame(rows).set_index(["metric", "method"]), ends, motion


def test_participants_are_found_by_what_is_their_own(scored):
    table, *_ = scored
    found = table.loc["identified"]
    assert found.loc["own", "value"] == 1
    assert found.loc["noise", "value"] < 0.15
    assert found.loc["chance", "value"] == 1 / S
    assert table.loc[("icc", "own"), "value"] > 0.85
    noise = table.loc[("icc", "noise")]
    assert noise["low"] < noise["value"] < noise["high"] and abs(noise["value"]) < 0.1


def test_motion_is_seen_where_it_was_planted_and_nobody_counts_without_it(scored):
    table, ends, motion = scored
    rows = table.loc["motion"]
    assert set(rows["n"]) == {S - 1}
    assert rows.loc["moved", "value"] > 0.8 > 0.3 > rows.loc["noise", "value"]
    known = np.isfinite(motion)
    mean = ends["moved"][known].mean(1)
    by_hand = [abs(np.corrcoef(mean[:, k], motion[known])[0, 1]) for k in range(F)]
    assert median_correlation(mean, motion[known]) == pytest.approx(np.median(by_hand))
    assert rows["low"].isna().all() and rows["note"].str.startswith("no interval").all()


def test_reliability_is_icc_1_1():
    values = np.random.default_rng(1).normal(size=(12, 2, 1)) + np.arange(12)[:, None, None] / 4
    grand = values.mean()
    between = 2 * ((values.mean(1) - grand) ** 2).sum() / 11
    within = ((values - values.mean(1, keepdims=True)) ** 2).sum() / 12
    found = _reliability(values)(np.ones((1, 12)))
    assert found[0] == pytest.approx((between - within) / (between + within))


def test_scale_and_offset_of_a_feature_identify_nobody():
    values = np.random.default_rng(2).normal(size=(S, 2, 5)) * [1, 1e6, 1, 1, 1] + 100
    assert identify_participants(values).mean() < 0.2


def test_few_participants_say_so_and_each_counts_once():
    rows = list(score_fingerprint({"x": np.zeros((3, 2, 4))}, np.zeros(3), {}, Evaluate()))
    assert len(rows) == 1 and "3 participants with two windows" in rows[0]["note"]
    points = pd.DataFrame({"participant_id": ["a", "a", "b", "b", "c"]})
    long = np.array([False, True, True, True, False])
    assert first_recordings(points, long).tolist() == [1, 2]
