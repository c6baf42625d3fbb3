"""Clinical tasks on a small study whose truth is known: every method, the protocol, bad input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic import expected_p

from brainlm.atlas import Atlas
from brainlm.cohort.labels import LabelTransform, check_columns, read_labels
from brainlm.cohort.splits import split_of
from brainlm.config import parse_config
from brainlm.errors import BrainLMError
from brainlm.evaluation.clinical import views
from brainlm.evaluation.clinical.deep_networks import correlations
from brainlm.evaluation.clinical.fine_tuned import check_fit, fit_task
from brainlm.evaluation.job import Job, evaluate
from brainlm.evaluation.participants import fold_groups
from brainlm.evaluation.tasks import parse_task
from brainlm.model import preset
from brainlm.paths import Results
from brainlm.shards import ParcelQuantiles, Recording, ShardInfo, write_shard
from brainlm.shards.release import freeze_release

SHA, PARCELS, WINDOW = "0" * 64, 6, 40
ATLAS = Atlas("six", None, PARCELS, None, SHA, np.random.default_rng(0).uniform(-60, 60, (6, 3)),
              tuple("abcdef"), "", "")  # fmt: skip
INFO = ShardInfo("six", SHA, PARCELS, 1.0)
NETWORKS = ["meanMLP", "LSTM", "Transformer"]
ABSENT = ("nobody", "void")  # in the table, never recorded; the second is of the test split


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two cohorts: age shows in the correlation of two parcels; 2 sites; a pretrained model."""
    folder = tmp_path_factory.mktemp("clinical")
    for cohort, count in (("home", 130), ("away", 12)):
        _write_cohort(folder, cohort, count)
    shard = folder / "results/shards/home/00000.parquet"
    scaling = freeze_release([shard], [shard.with_suffix(".quantiles.parquet")],
                             Results(folder / "results", "r1"))  # fmt: skip
    model = preset("tiny", num_parcels=PARCELS, window=WINDOW, patch=10,
                   coordinates=ATLAS.coordinates)  # fmt: skip
    model.save_pretrained(folder / "results/models/r1/pretrain", scaling, "a card")
    return folder


def _write_cohort(folder, cohort: str, count: int) -> None:
    rng = np.random.default_rng(count)
    recordings, participants = [], []
    for number in range(count):
        subject = f"sub-{cohort}{number:03d}"
        age = float(rng.uniform(20, 80))
        participants.append(
            {
                "participant_id": subject,
                "age": age,
                "sex": "FM"[number % 2],
                "old": "yes" if age > 50 else "no",
                "site": f"s{number % 2}",
                "third": ["low", "middle", "high"][min(2, int((age - 20) // 20))],
                "rare": "odd" if number == 5 else "FM"[age > 50],
                "same": 3,
                "camp": f"c{number % 3}",
                "kind": "z" if number % 3 == 2 else "xy"[age > 50],
                "coded": -3 if number == 4 else number,
                "Gender": "FM"[number % 2],
                "score": np.expm1(age / 20),
                "mostly": age if number % 40 == 0 else None,
            }
        )
        series = rng.normal(size=(WINDOW + 20, PARCELS))
        series[:, 1] += (age - 20) / 20 * series[:, 0]
        if number == 7:
            series[:, 4] = np.nan
        recordings.append(Recording(subject, subject, cohort, split_of(subject), series=series,
                                    mean_fd_mm=float(rng.gamma(2, 0.1))))  # fmt: skip
    where = "test" if cohort == "home" else "train"
    recordings += [
        Recording("sub-x", "sub-x", cohort, where, status="too_short", reason="9 s"),
        Recording("sub-y", "sub-y", cohort, where, series=series[:20]),
        Recording("sub-z", "sub-z", cohort, where, series=series),
    ]
    path = folder / f"results/shards/{cohort}/00000.parquet"
    path.parent.mkdir(parents=True)
    write_shard(path, recordings, INFO)
    train = [r.series for r in recordings if r.split == "train" and r.series is not None]
    ParcelQuantiles.of(train, PARCELS).save(path.with_suffix(".quantiles.parquet"))
    (folder / cohort).mkdir()
    participants += [{"participant_id": f"sub-{name}", "age": 33} for name in ABSENT]
    pd.DataFrame(participants).to_csv(
        folder / cohort / "participants.tsv", sep="\t", index=False, na_rep="n/a"
    )


def job(folder, kind="regression", target="age", external=False, **task) -> Job:
    cohorts = [{"name": "home", "folder": str(folder / "home")}]
    if external:
        cohorts.append({"name": "away", "folder": str(folder / "away"), "role": "external"})
    config = parse_config({
        "results": str(folder / "results"), "cohorts": cohorts, "evaluate": {"bootstrap": 200},
        "finetune": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3},
        "model": {"preset": "tiny", "window": WINDOW, "patch": 10},
    })  # fmt: skip
    values = {"kind": kind, "target": target, "seeds": [1], "networks": ["meanMLP"], **task}
    name = f"{target}-{len(task)}"
    shards = [folder / "results/shards/away/00000.parquet"] if external else []
    task = parse_task(values, name, name)
    home, out = folder / "results/shards/home/00000.parquet", config.paths.table(task.name)
    return Job(task, config, config.paths.pretrained, [home, *shards], out)


def run(this: Job) -> pd.DataFrame:
    from brainlm.training.predict import predict

    external = [path for path in this.shards if path.parent.name == "away"]
    for start in ("finetune", "scratch"):
        for seed, out in zip(this.task.seeds, this.fits(start), strict=True):
            fit_task(this, out, ATLAS, seed=seed, from_scratch=start == "scratch")
            if external:
                predict(out, external, out / "external.parquet")
    return evaluate(this)


def value(table, method, metric, cohort="home", level="pooled"):
    row = table[(table["method"] == method) & (table["metric"] == metric)
                & (table["cohort"] == cohort) & (table["level"] == level)]  # fmt: skip
    assert len(row) == 1
    return row.iloc[0]


@pytest.fixture(scope="module")
def age(folder):
    return run(job(folder, external=True, seeds=[1, 2], networks=NETWORKS))


def test_every_method_predicts_the_same_participants_of_both_cohorts(age, folder):
    methods = set(age["method"][~age["method"].str.contains(" minus ")])
    assert methods == {
        "fine-tuned", "from scratch", "mean", "mean FD", "site", "demographics",
        "connectivity + ridge", "connectivity + SVR",
        "tangent connectivity + ridge", "connectivity less confounds + ridge",
        "raw series + SVR", "meanMLP", "LSTM", "Transformer",
        "k-NN on CLS, zero-shot", "k-NN on mean token, zero-shot", "linear probe on CLS",
        "linear probe on mean token", "linear probe on latent connectivity",
        "connectivity and latent connectivity + ridge",
        "linear probe on latent connectivity, untrained",
    }  # fmt: skip
    tested = sum(split_of(f"sub-home{i:03d}") == "test" for i in range(130))
    assert age.groupby("cohort")["n"].unique().map(list).to_dict() == {
        "home": [tested], "away": [12]
    }  # fmt: skip
    said = "1 without a usable recording; 1 with fewer than 40 time points; 1 without a label"
    for cohort, absent in (("home", 1), ("away", 2)):  # an external cohort is tested whole
        part = age[age["cohort"] == cohort]
        assert set(part["note"]) == {f"{said}; {absent} with a label and no recording at all"}
        assert set(part["left_out"]) == {3 + absent}
    participants = pd.read_parquet(folder / "results/evaluation/r1/age-2.predictions.parquet")
    assert (participants.groupby(["method", "seed"], dropna=False).size() == tested + 12).all()


def test_an_external_cohort_in_months_is_a_row_that_says_so(age, folder, tmp_path):
    """And the other cohort is evaluated as before."""
    table = pd.read_csv(folder / "away/participants.tsv", sep="\t", na_values="n/a")
    table["age"] *= 12
    table.to_csv(tmp_path / "months.tsv", sep="\t", index=False, na_rep="n/a")
    this = job(folder, external=True, seeds=[1, 2], networks=NETWORKS)
    home, away = this.config.cohorts
    cohorts = (home, away.model_copy(update={"participants": tmp_path / "months.tsv"}))
    config = this.config.model_copy(update={"cohorts": cohorts})
    again = evaluate(dataclasses.replace(this, config=config))
    assert again["cohort"].value_counts()["away"] == 1
    row = again[again["cohort"] == "away"].iloc[0]
    assert row["n"] == 0 and "months for years?" in row["note"] and row["left_out"] >= 12
    columns = ["method", "level", "metric", "value", "n", "note"]
    before, now = (t.loc[t["cohort"] == "home", columns] for t in (age, again))
    pd.testing.assert_frame_equal(before.reset_index(drop=True), now.reset_index(drop=True))


@pytest.mark.parametrize("task", [
    None,
    {"kind": "reconstruction"},
    {"kind": "latent"},
    {"kind": "attention", "contrast": "sex", "permutations": 100},
    {"kind": "forecasting", "epochs": 1, "learning_rates": [1e-3], "seeds": [1]},
], ids=lambda task: task["kind"] if task else "regression")  # fmt: skip
def test_an_external_cohort_of_failed_recordings_is_a_row_that_says_so(
    age, folder, tmp_path, task
):
    failed = tmp_path / "failed.parquet"
    write_shard(failed, [Recording(name := f"sub-{k}", name, "away", "train", status="too_short",
                                   reason="9 s") for k in range(3)], INFO)  # fmt: skip
    this = job(folder, external=True, seeds=[1, 2], networks=NETWORKS)
    this = dataclasses.replace(this, shards=[this.shards[0], failed], out=tmp_path / "t.parquet",
                               task=parse_task(task, "t", "t") if task else this.task)  # fmt: skip
    table = evaluate(this)
    (row,) = table[table["cohort"] == "away"].itertuples()
    assert row.n == 0 and row.note.startswith("3 without a usable recording")
    assert (table.loc[table["cohort"] == "home", "n"] > 0).any()


def test_fits_to_other_labels_are_refused(age, folder, tmp_path):
    table = pd.read_csv(folder / "home/participants.tsv", sep="\t", na_values="n/a")
    this = job(folder, external=True, seeds=[1, 2], networks=NETWORKS)

    def evaluate_with(change: pd.DataFrame):
        change.to_csv(tmp_path / "t.tsv", sep="\t", index=False, na_rep="n/a")
        home, away = this.config.cohorts
        cohorts = (home.model_copy(update={"participants": tmp_path / "t.tsv"}), away)
        check_fit(
            dataclasses.replace(this, config=this.config.model_copy(update={"cohorts": cohorts})),
            this.fits("finetune")[0],
        )

    evaluate_with(table.assign(sex="F"))  # of another column
    with pytest.raises(BrainLMError, match="fitted before age changed in the participants tables"):
        evaluate_with(table.assign(age=99 - table["age"]))


def test_what_predicts_age_is_found_and_what_does_not_is_not(age):
    for method in ("connectivity + ridge", "connectivity + SVR", "tangent connectivity + ridge"):
        assert value(age, method, "r")["value"] > 0.5
        assert value(age, method, "r", "away")["value"] > 0.3
    assert value(age, "mean", "r2")["value"] <= 0
    assert not age["method"].str.startswith("mean FD minus").any()


def test_every_difference_has_the_p_of_the_one_paired_test(age):
    gaps = age[age["method"].str.contains(" minus ")]
    assert gaps["value"].notna().all() and set(gaps["level"]) == {"pooled"}
    alone = age[age["level"] == "pooled"].set_index(["cohort", "metric", "method"])["value"]
    for (cohort, metric), rows in gaps.groupby(["cohort", "metric"]):
        np.testing.assert_allclose(rows["p"], expected_p(rows), rtol=1e-6)
        for row in rows.itertuples():
            one, other = row.method.split(" minus ")
            gap = alone[cohort, metric, one] - alone[cohort, metric, other]
            assert row.value == pytest.approx(gap) and row.low < row.value < row.high
    assert {
        "fine-tuned minus from scratch",
        "k-NN on CLS, zero-shot minus connectivity + ridge",
    } < {*gaps["method"]}


def test_a_random_method_is_the_mean_of_its_seeds_which_are_in_the_table_too(age):
    rows = age[(age["method"] == "fine-tuned") & (age["metric"] == "mae")
               & (age["cohort"] == "home")].set_index("level")  # fmt: skip
    assert sorted(rows.loc["seed", "unit"]) == ["1", "2"]
    assert rows.loc["pooled", "value"] == pytest.approx(rows.loc["seed", "value"].mean())
    fixed = age[age["method"] == "connectivity + ridge"]
    assert set(fixed["level"]) == {"pooled"}
    assert rows.loc["seed", "seed"].tolist() == [1, 2]
    assert set(age["n_train"]) == {97}
    assert age["command"].notna().all()
    assert age["config"].nunique() == 1


def test_labels_are_learnt_scaled_and_scored_in_their_units_too(age, folder):
    train = [
        x
        for x in pd.read_csv(folder / "home/participants.tsv", sep="\t").itertuples()
        if split_of(x.participant_id) == "train" and x.participant_id[4:] not in ABSENT
    ]
    spread = np.std([x.age for x in train])
    units, scaled = (value(age, "LSTM", name)["value"] for name in ("mse", "scaled_mse"))
    assert units == pytest.approx(scaled * spread**2, rel=1e-6)


def test_a_logarithm_is_learnt_and_undone(folder):
    this = job(folder, target="score", transform="log_minmax")
    table = run(this)
    assert value(table, "connectivity + ridge", "r")["value"] > 0.5
    one = pd.read_parquet(this.fits("finetune")[0] / "predictions.parquet")
    train = one[one["split"] == "train"]
    assert train["prediction"].between(-1, 2 * train["label"].max()).all()
    assert value(table, "mean", "scaled_r2")["value"] <= 0


@pytest.mark.parametrize(
    ("target", "classes"), [("old", ("no", "yes")), ("third", ("high", "low", "middle"))]
)
def test_classes_keep_their_names(folder, target, classes):
    this = job(folder, "classification", target)
    table = run(this)
    assert value(table, "connectivity + logistic", "auc")["value"] > 0.65
    assert value(table, "chance", "balanced_accuracy")["value"] == pytest.approx(1 / len(classes))
    assert value(table, "chance", "auc")["value"] == 0.5
    participants = pd.read_parquet(this.out.with_suffix(".predictions.parquet"))
    assert set(participants["true_class"]) == set(classes)
    right = participants[participants["method"] == "connectivity + SVC"]
    accuracy = (right["class"] == right["true_class"]).groupby(right["true_class"]).mean().mean()
    found = value(table, "connectivity + SVC", "balanced_accuracy")["value"]
    assert accuracy == pytest.approx(found)


def test_a_class_of_one_participant_is_left_out_and_counted(folder):
    table = run(job(folder, "classification", "rare"))
    test = split_of("sub-home005") == "test"
    assert "class odd (1 in all) has fewer than 5 training participants" in table["note"].iloc[0]
    assert ("1 of class odd" in table["note"].iloc[0]) == test
    assert set(table["left_out"]) == {3 + test}
    assert value(table, "connectivity + logistic", "auc")["value"] > 0.65


def test_whole_sites_are_held_out(folder):
    this = job(folder, groups="site")
    table = run(this)
    assert set(table["split"]) == {"test, site held out", "all, site held out"}
    pooled = table[table["split"].str.startswith("all")]
    assert set(pooled["n"]) == {130}
    assert not pooled["method"].str.contains("fine-tuned|CLS|LSTM").any()
    assert "site" not in set(table["method"])  # nobody of the site was seen
    row = pooled[(pooled["method"] == "connectivity + ridge") & (pooled["metric"] == "r")]
    assert row["value"].item() > 0.5
    fits = pd.read_parquet(this.fits("finetune")[0] / "predictions.parquet")
    assert set(fits["split"]) == {"test"}
    assert len(fits) == len(set(fits["participant_id"]))
    assert len(list(this.fits("finetune")[0].glob("fold-*"))) == 2


def test_a_fold_that_lacks_a_class_is_left_out_and_counted(folder):
    """All of class z are of camp c2: who holds it out has nobody to learn z from."""
    this = job(folder, "classification", "kind", groups="camp")
    table = run(this)
    part = table[table["split"] == "test, camp held out"]
    tested = [i for i in range(130) if split_of(f"sub-home{i:03d}") == "test"]
    lost = sum(i % 3 == 2 for i in tested)
    assert lost > 0 and set(part["n"]) == {len(tested) - lost}
    words = f"{lost} of a fold whose training participants lack a class"
    assert part["note"].str.contains(words).all()
    assert set(part["left_out"]) == {3 + lost}
    assert {"fine-tuned", "connectivity + SVC", "connectivity + logistic"} <= set(part["method"])
    assert value(part, "connectivity + ridge", "auc")["value"] > 0.5
    folds = sorted(path.name for path in this.fits("finetune")[0].glob("fold-*"))
    assert len(folds) == 2


@pytest.mark.parametrize(("column", "words"), [("same", "same is 3 for all"), ("lab", "is n/a")])
def test_groups_of_one_are_refused_in_words(folder, column, words):
    this = job(folder, groups=column)
    with pytest.raises(BrainLMError, match=words):
        fit_task(this, this.fits("finetune")[0], ATLAS, seed=1, from_scratch=False)


def test_a_column_that_no_table_has_is_refused_before_anything_runs(folder):
    held_out = job(folder, groups="lab").task.columns()
    with pytest.raises(BrainLMError, match="task old: no participants table has a column 'lab'"):
        check_columns(job(folder).config.cohorts, {"age": ["age"], "old": held_out})
    attention = {"kind": "attention", "contrast": "task"}
    assert parse_task(attention, "a", "a").columns() == []
    with pytest.raises(BrainLMError, match="for groups of participants, but contrast is task"):
        parse_task(attention | {"within": "site"}, "a", "a")
    attention |= {"contrast": "sex", "adjust": ["age", "mean_fd_mm"], "within": "site"}
    assert parse_task(attention, "a", "a").columns() == ["sex", "site", "age"]


def test_a_task_s_file_is_part_of_the_configuration_s_fingerprint(folder):
    first, same = job(folder), job(folder)
    other = dataclasses.replace(first, task=first.task.model_copy(update={"transform": "minmax"}))
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_too_few_labels_are_said_in_the_table(folder):
    table = run(job(folder, target="mostly"))
    assert table["value"].isna().all()
    assert "training participants with a usable recording have a value" in table["note"].iloc[0]
    assert table["left_out"].item() == 133  # sub-x, sub-y and sub-z too


@pytest.mark.parametrize(
    ("kind", "target", "words"),
    [
        ("regression", "iq", "no participants table has a column 'iq'"),
        ("regression", "same", "same is 3 for all 130 participants"),
        ("regression", "sex", "'F', expected a number"),
        ("classification", "age", "131 different values .* use kind: regression"),
        ("classification", "same", "same is 3 for all"),
        ("regression", "coded", "coded of sub-home004 in home is -3, log_minmax needs"),
    ],
)
def test_bad_columns_are_refused_in_words(folder, kind, target, words):
    with pytest.raises(BrainLMError, match=words):
        read_labels(job(folder).config.cohorts, target, kind, "log_minmax")


def test_an_external_cohort_of_another_atlas_is_refused(folder, age, tmp_path):
    path = tmp_path / "00000.parquet"
    write_shard(path, [Recording("sub-a", "sub-a", "away", "train", series=np.ones((60, 6)))],
                ShardInfo("other", "1" * 64, PARCELS, 1.0))  # fmt: skip
    this = job(folder, external=True, seeds=[1, 2])
    this = dataclasses.replace(this, shards=[this.shards[0], path])
    with pytest.raises(BrainLMError, match=r"00000.parquet: atlas_sha256 is 111"):
        evaluate(this)


def test_transforms_come_from_training_participants_and_go_back():
    train, other = np.array([1.0, 3.0, 8.0]), np.array([2.0, 20.0])
    for name in ("zscore", "minmax", "log_minmax", "none"):
        transform = LabelTransform.fit(name, train)
        np.testing.assert_allclose(transform.invert(transform.apply(other)), other)
    assert LabelTransform.fit("minmax", train).apply(train).tolist()[::2] == [0, 1]
    with pytest.raises(BrainLMError, match="log_minmax needs labels >= 0, found -1"):
        LabelTransform.fit("log_minmax", np.array([-1.0, 2.0]))


def test_tangent_is_the_logarithm_around_the_training_mean():
    from scipy.linalg import logm, sqrtm

    rng = np.random.default_rng(0)
    z = np.array([views.correlate_parcels(rng.normal(size=(50, 5)) + rng.normal(size=(50, 1)))
                  for _ in range(8)])  # fmt: skip
    full = []
    for row in z:
        c = np.zeros((5, 5))
        c[np.triu_indices(5, 1)] = 0.8 * np.tanh(row)
        full.append(c + c.T + np.eye(5))
    whiten = np.linalg.inv(sqrtm(np.mean(full, 0)))
    expected = logm(whiten @ full[3] @ whiten)[np.triu_indices(5, 1)]
    np.testing.assert_allclose(views.Tangent(z)(z[3:4])[0], expected, atol=1e-5)


def test_cleaned_features_know_nothing_of_the_confounds():
    rng = np.random.default_rng(1)
    confounds = rng.normal(size=(40, 2))
    features = confounds @ rng.normal(size=(2, 7)) + 0.1 * rng.normal(size=(40, 7))
    clean = views.Cleaned(features, confounds)
    left = clean(features, confounds)
    assert np.abs(np.corrcoef(left.T, confounds.T)[:7, 7:]).max() < 1e-6
    unseen = rng.normal(size=(5, 2))
    assert np.abs(clean(features[:5], unseen)).max() > 1


def test_networks_see_correlations_and_0_of_what_is_missing():
    signal = torch.randn(2, 10, 30)
    signal[1, 3] = 0
    found, expected = correlations(signal), torch.stack([torch.corrcoef(x) for x in signal])
    torch.testing.assert_close(found, expected.nan_to_num(0.0))


def test_groups_are_kept_whole_in_a_few_even_folds():
    groups = pd.Series(np.repeat([f"g{i:02d}" for i in range(12)], np.arange(1, 13)))
    folds = fold_groups(groups)
    assert len(folds) == 5
    assert sorted(set().union(*folds)) == sorted(set(groups))
    sizes = [int(groups.isin(fold).sum()) for fold in folds]
    assert max(sizes) - min(sizes) <= 4
