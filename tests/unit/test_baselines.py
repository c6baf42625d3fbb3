"""Baselines against independent fits, the protocol, and the known figures of real data."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, LeaveOneOut, cross_val_predict

from brainlm.cohort.splits import split_of
from brainlm.config import Evaluate
from brainlm.errors import BrainLMError
from brainlm.evaluation import baselines
from brainlm.evaluation.targets import evaluate_target
from brainlm.shards import Recording, ShardInfo, write_shard

OPTIONS = Evaluate(bootstrap=200)


def test_connectivity_is_fisher_z_of_the_upper_triangle_with_missing_parcels_missing():
    rng = np.random.default_rng(0)
    series = rng.normal(size=(50, 5)) + rng.normal(size=(50, 1))
    series[:, 2] = np.nan
    series[:, 4] = 7.0  # constant
    z = baselines.connectivity(series)
    whole = np.corrcoef(series[:, [0, 1, 3]].T)
    assert z.shape == (10,)
    np.testing.assert_allclose(z[[0, 2, 5]], np.arctanh(whole[np.triu_indices(3, 1)]), atol=1e-5)
    assert np.isnan(z[[1, 3, 4, 6, 7, 8, 9]]).all()


def test_ridge_chooses_the_penalty_that_leave_one_out_chooses():
    rng = np.random.default_rng(1)
    x, unseen = rng.normal(3, 1, (24, 40)), rng.normal(3, 1, (6, 40))
    y = x[:, :5].sum(1) + rng.normal(0, 2, 24)
    scale = np.linalg.eigvalsh((x - x.mean(0)) @ (x - x.mean(0)).T).mean()
    models = [Ridge(alpha=a) for a in baselines.PENALTIES * scale]
    errors = [np.mean((cross_val_predict(m, x, y, cv=LeaveOneOut()) - y) ** 2) for m in models]
    best = models[int(np.argmin(errors))].fit(x, y)
    predict = baselines.fit_ridge(x, y)
    np.testing.assert_allclose(predict(unseen), best.predict(unseen), rtol=1e-6)


def test_ridge_imputes_with_training_means_only():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(20, 6))
    predict = baselines.fit_ridge(x, x[:, 0])
    holes = x[:3].copy()
    holes[:, 4] = np.nan
    filled = holes.copy()
    filled[:, 4] = x[:, 4].mean()
    np.testing.assert_allclose(predict(holes), predict(filled), rtol=1e-5)
    assert np.isfinite(baselines.fit_ridge(np.where(x > 1, np.nan, x), x[:, 0])(holes)).all()


def test_logistic_on_the_kernel_axes_is_logistic_on_the_features():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(30, 8))
    y = (x[:, 0] + rng.normal(size=30) > 0).astype(float)
    centred = x - x.mean(0)
    unit = np.linalg.eigvalsh(centred @ centred.T).mean()
    best = min(
        np.abs(
            LogisticRegression(C=c / unit, max_iter=5000, tol=1e-8).fit(centred, y)
            .predict_proba(centred) - baselines.fit_logistic(x, y, seed=0)(x)
        ).max()
        for c in np.logspace(-2, 2, 9)
    )  # fmt: skip
    assert best < 2e-3


@pytest.fixture
def cohort(tmp_path):
    """120 people whose age moves the coupling of two parcels; their shard and labels."""
    rng = np.random.default_rng(4)
    recordings, ages = [], {}
    for number in range(120):
        person = f"sub-{number:03d}"
        age = float(rng.uniform(20, 80))
        ages["home", person] = age
        series = rng.normal(size=(150, 6))
        series[:, 1] += (age - 20) / 30 * series[:, 0]
        recordings.append(Recording(person, person, "home", split_of(person), series=series,
                                    mean_fd_mm=float(rng.gamma(2, 0.1))))  # fmt: skip
    recordings.append(
        Recording("sub-x", "sub-x", "home", "test", status="too_short", reason="9 s")
    )
    path = tmp_path / "00000.parquet"
    write_shard(path, recordings, ShardInfo("six", "0" * 64, 6, 1.0))
    index = pd.MultiIndex.from_tuples(ages, names=["cohort", "participant_id"])
    return SimpleNamespace(shard=path, ages=pd.Series(list(ages.values()), index), folder=tmp_path)


def _predict(cohort, noise: float):
    rng = np.random.default_rng(5)
    table = cohort.ages.rename("prediction").reset_index()
    table["prediction"] += rng.normal(0, noise, len(table))
    path = cohort.folder / f"{noise}" / "predictions.parquet"
    path.parent.mkdir()
    table.to_parquet(path)
    return [path.parent]


def _value(table, method, metric):
    row = table[(table["method"] == method) & (table["metric"] == metric)]
    assert len(row) == 1
    return row.iloc[0]


def test_a_target_is_compared_on_the_same_people_with_intervals_and_counts(cohort):
    out = cohort.folder / "age.parquet"
    ages = cohort.ages.copy()
    person = next(p for _, p in ages.index if split_of(p) == "test")
    ages["home", person] = np.nan
    table = evaluate_target(
        {"fine-tuned": _predict(cohort, 2.0)}, [cohort.shard], ages, out,
        target="age", options=OPTIONS,
    )  # fmt: skip
    assert _value(table, "connectivity + ridge", "r")["value"] > 0.6
    assert _value(table, "mean", "r2")["value"] <= 0
    assert _value(table, "mean FD", "mae")["value"] > _value(table, "fine-tuned", "mae")["value"]
    paired = _value(table, "fine-tuned minus connectivity + ridge", "mae")
    assert paired["low"] < paired["value"] < paired["high"] < 0
    assert table["n"].nunique() == 1
    assert set(table["left_out"]) == {2}
    assert set(table["note"]) == {"1 without a usable recording; 1 without a label"}
    people = pd.read_parquet(out.with_suffix(".predictions.parquet"))
    assert set(people["method"]) >= {"fine-tuned", "connectivity + ridge", "mean"}
    assert person not in set(people["participant_id"])


def test_an_external_cohort_is_evaluated_whole_and_never_trained_on(cohort):
    with pytest.raises(BrainLMError, match="0 training subjects"):
        evaluate_target({}, [cohort.shard], cohort.ages, cohort.folder / "t.parquet",
                        target="age", options=OPTIONS, roles={"home": "external"})  # fmt: skip


def test_a_constant_target_is_refused_in_words(cohort):
    with pytest.raises(BrainLMError, match=r"age: .* 1 different values"):
        evaluate_target({}, [cohort.shard], cohort.ages * 0, cohort.folder / "t.parquet",
                        target="age", options=OPTIONS)  # fmt: skip


def test_two_classes_have_auc_and_balanced_accuracy(cohort):
    old = (cohort.ages > 50).astype(float) + 1  # coded 1 and 2
    table = evaluate_target({}, [cohort.shard], old, cohort.folder / "t.parquet",
                            target="old", options=OPTIONS, kind="classification")  # fmt: skip
    assert _value(table, "connectivity + logistic", "auc")["value"] > 0.7
    assert _value(table, "mean", "auc")["value"] == 0.5


def test_a_rare_class_is_cut_at_its_share_in_training(cohort):
    old = (cohort.ages > 70).astype(float)
    table = evaluate_target({}, [cohort.shard], old, cohort.folder / "t.parquet", target="old",
                            options=OPTIONS, kind="classification", splits=("train",))  # fmt: skip
    assert old.mean() < 0.3
    assert _value(table, "connectivity + logistic", "balanced_accuracy")["value"] > 0.65
    assert _value(table, "mean", "balanced_accuracy")["value"] == 0.5


def test_few_test_subjects_give_no_interval_and_no_correlation(cohort):
    test = [key for key in cohort.ages.index if split_of(key[1]) == "test"]
    few = cohort.ages.drop(test[2:])
    table = evaluate_target({}, [cohort.shard], few, cohort.folder / "t.parquet",
                            target="age", options=OPTIONS)  # fmt: skip
    assert set(table["n"]) == {2}
    assert table["low"].isna().all()
    assert np.isnan(_value(table, "mean FD", "r")["value"])
    assert _value(table, "mean FD", "mae")["value"] > 0


def test_age_from_connectivity_in_real_data(shared):
    """804 people of 15 sites: r about .77 over five folds, the mean predictor's MAE is 5.9 y."""
    root = shared / "data" / "abide_cc200"
    people = pd.read_csv(root / "participants.tsv", sep="\t", dtype={"participant_id": str})
    people = people.iloc[::2]  # every second one: a test, not the benchmark
    files = (next((root / p / "func").glob("*.npy")) for p in people["participant_id"])
    features = np.array([baselines.connectivity(np.load(path)) for path in files])
    age = people["age"].to_numpy(float)
    predicted = np.empty(len(age))
    for seen, unseen in KFold(5, shuffle=True, random_state=0).split(features):
        predicted[unseen] = baselines.fit_ridge(features[seen], age[seen])(features[unseen])
    assert np.corrcoef(predicted, age)[0, 1] > 0.65
