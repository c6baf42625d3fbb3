"""Methods of clinical tasks on participants made for the purpose: what goes wrong at odd sizes."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pandas as pd
import pytest

from brainlm.cohort.labels import Labels, LabelTransform
from brainlm.config import Evaluate, Finetune, parse_config
from brainlm.errors import BrainLMError
from brainlm.evaluation.clinical import methods
from brainlm.evaluation.clinical.baselines import fit_neighbours, fit_ridge
from brainlm.evaluation.clinical.deep_networks import fit_network
from brainlm.evaluation.clinical.methods import Fold, Method
from brainlm.evaluation.clinical.scores import score
from brainlm.evaluation.clinical.targets import Part
from brainlm.evaluation.participants import Population, hold_out_groups, read_questionnaires
from brainlm.evaluation.tasks import DeepNetworks
from brainlm.shards import Corpus, ParcelQuantiles, Recording, Scaling, ShardInfo, write_shard
from brainlm.training.windows import Windows

KEYS = ["cohort", "participant_id"]


def participants(count: int, **columns) -> pd.DataFrame:
    index = pd.MultiIndex.from_product(
        [["home"], [f"sub-{i:03d}" for i in range(count)]], names=KEYS
    )
    return pd.DataFrame({"rows": [[i] for i in range(count)], **columns}, index=index)


@pytest.mark.parametrize("count", [60, 200])
def test_neighbours_are_found_among_tokens_wider_than_there_are_participants(count):
    """A rotation to as many axes as participants, standardised, puts all equally far apart."""
    rng = np.random.default_rng(count)
    y = (np.arange(count + 40) % 2).astype(float)
    tokens = rng.normal(size=(len(y), 256)) + np.outer(2 * y - 1, rng.normal(size=256)) / 2
    everyone = participants(len(y), y=y)
    cache = {("CLS", key): of for key, of in zip(everyone.index, tokens, strict=True)}
    train, check, test = (everyone.iloc[a:b] for a, b in
                          ((0, count), (count, count + 20), (count + 20, None)))  # fmt: skip
    fold = Fold(None, train, check, cache=cache)
    found = fold.predict([Method("k-NN", "CLS", fit_neighbours)], test, 2, (1,))["k-NN"]
    assert (found[:, 0].argmax(1) == test["y"]).mean() > 0.9


def test_connectivity_without_known_confounds_is_no_method_of_its_own():
    rng = np.random.default_rng(0)
    everyone = participants(30, y=rng.normal(size=30), mean_fd_mm=np.nan)
    cache = {("connectivity", key): rng.normal(size=10) for key in everyone.index}
    fold = Fold(None, everyone, everyone.iloc[:0], cache=cache)
    tried = [Method(name, name, fit_ridge) for name in ("connectivity", "cleaned")]
    assert list(fold.predict(tried, everyone, 0, (1,))) == ["connectivity"]


def test_only_what_grows_with_participants_squared_is_fitted_on_a_draw(monkeypatch):
    monkeypatch.setattr(methods, "MOST_PARTICIPANTS", 20)
    rng = np.random.default_rng(0)
    everyone = participants(50, y=rng.normal(size=50))
    cache = {("connectivity", key): rng.normal(size=10) for key in everyone.index}
    fold = Fold(None, everyone, everyone.iloc[:0], cache=cache)
    seen = []

    def fit(known):
        seen.append(len(known.train))
        return lambda features: np.zeros(len(features))

    tried = [Method("ridge", "connectivity", fit), Method("LSTM", "rows", fit)]
    fold.predict(tried, everyone, 0, (1,))
    assert seen == [20, 50]
    assert fold.count_trained_on(tried) == {"ridge": 20, "LSTM": 50}


def test_participants_of_one_class_have_no_auc_and_it_is_said():
    rng = np.random.default_rng(0)
    guesses = rng.dirichlet([1, 1], size=(8, 1))
    index = participants(8).index
    both = {"connectivity + ridge": guesses, "fine-tuned": guesses}
    part = Part("away", "all", index, np.zeros(8), [LabelTransform()] * 8, both, {},
                {"fine-tuned": 40}, (1,), ("patient", "control"))  # fmt: skip
    rows = pd.DataFrame(score(part, {"task": "classification"}, Evaluate(bootstrap=100)))
    assert rows["note"].str.contains("all are patient, so there is no AUC").all()
    assert rows[rows["metric"] == "auc"]["value"].isna().all()
    assert rows[rows["metric"] == "balanced_accuracy"]["value"].notna().all()
    by = rows.drop_duplicates("method").set_index("method")["n_train"]
    assert by["fine-tuned"] == 40 and np.isnan(by["connectivity + ridge"])


@pytest.fixture
def corpus(tmp_path):
    """40 participants of 8 sites, two recordings each; of two sites half are too short."""
    rng = np.random.default_rng(0)
    recordings = []
    for i in range(40):
        length = 30 if i % 8 < 2 and i % 16 < 8 else 60
        split = "train" if i % 5 else "test"
        for run in (1, 2):
            recordings.append(Recording(f"sub-{i:03d}_run-{run}", f"sub-{i:03d}", "home", split,
                                        series=rng.normal(size=(length, 6))))  # fmt: skip
    write_shard(tmp_path / "a.parquet", recordings, ShardInfo("six", "0" * 64, 6, 1.0))
    return Corpus([tmp_path / "a.parquet"])


def test_folds_are_of_the_participants_who_are_predicted(corpus):
    index = participants(40).index
    labels = Labels(pd.Series(np.arange(40.0), index))
    population = Population.of(corpus, labels, 40)
    site = pd.Series([f"s{i % 8}" for i in range(40)], index)
    splits = list(hold_out_groups(population.participants, site))
    short = {key for i, key in enumerate(index) if i % 8 < 2 and i % 16 < 8}
    assert short
    for split in splits:
        assert not short & {*split.train, *split.validation, *split.test}
        assert not set(site[split.train]) & set(site[split.test])
    assert sum(len(split.test) for split in splits) == sum(
        key not in short for i, key in enumerate(index) if i % 5 == 0
    )


@pytest.fixture
def windows(corpus):
    scaling = Scaling.fit(ParcelQuantiles.of([corpus.series(0)], 6), atlas="six",
                          atlas_sha256="0" * 64, sample_period_s=1.0)  # fmt: skip
    return Windows(corpus, scaling, 20, np.arange(32, 48))  # eight, two recordings each


def rows_of_participants(windows, first, last):
    out = np.empty(last - first, object)
    out[:] = [windows.rows[2 * i : 2 * i + 2] for i in range(first, last)]
    return out


def test_networks_see_every_recording_once_a_pass(windows, monkeypatch):
    seen, plain = [], windows.batch
    monkeypatch.setattr(windows, "batch", lambda picks: seen.extend(picks) or plain(picks))
    train = rows_of_participants(windows, 0, 8)
    known = methods.Known(train, np.arange(8.0), train[:0], np.zeros(0))
    fit_network("meanMLP", known, windows, Finetune(epochs=1, batch_size=4))(train)
    assert sorted(row for _, row in seen) == windows.rows.tolist()


NETWORKS = get_args(get_args(get_args(DeepNetworks)[0])[0])


@pytest.mark.parametrize(("name", "classes"), [("meanMLP", 0), *((name, 3) for name in NETWORKS)])
def test_every_network_gives_the_same_of_the_same_seed(name, classes, windows):
    train, held = rows_of_participants(windows, 0, 4), rows_of_participants(windows, 4, 8)
    y = np.arange(8) % 3 + 0.0
    known = methods.Known(train, y[:4], held, y[4:], classes, 7)
    fits = 1 if name == "BolT" else 2
    guess = [fit_network(name, known, windows, Finetune(epochs=1))(held) for _ in range(fits)]
    assert guess[0].shape == ((4, 3) if classes else (4,)) and np.isfinite(guess[0]).all()
    np.testing.assert_array_equal(guess[0], guess[-1])  # of the same seed
    if classes:
        np.testing.assert_allclose(guess[0].sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["meanMLP", "LSTM"])
def test_networks_learn_what_sets_participants_apart(name, windows, monkeypatch):
    """Of one class parcel 0 lies high, of the other low: participants not trained on are told."""
    plain = windows._fill

    def planted(out, row, start):
        plain(out, row, start)
        out[0] += 2.0 * ((row - 32) // 2 % 2) - 1

    monkeypatch.setattr(windows, "_fill", planted)
    train, held = rows_of_participants(windows, 0, 5), rows_of_participants(windows, 5, 8)
    y = np.arange(8) % 2 + 0.0
    known = methods.Known(train, y[:5], held, y[5:], 2, 7)
    guess = fit_network(name, known, windows, Finetune(epochs=15, batch_size=4))(held)
    assert guess.argmax(1).tolist() == y[5:].tolist()


def test_training_that_diverges_says_so(windows):
    train = rows_of_participants(windows, 0, 8)
    known = methods.Known(train[:5], np.full(5, np.nan), train[5:], np.zeros(3))
    with pytest.raises(BrainLMError, match=r"meanMLP: training diverged .*\(0.005, 0.001\)"):
        fit_network("meanMLP", known, windows, Finetune(epochs=2, batch_size=4))


def test_questions_are_known_by_the_names_that_tables_give_them(tmp_path):
    cohorts = []
    for name, header, values in (("a", "participant_id\tGender\tAge_in_Yrs", "F\t30"),
                                 ("b", "participant_id\tsex\tage", "M\t40")):  # fmt: skip
        (tmp_path / name).mkdir()
        rows = f"{header}\nsub-{name}\t{values}\n"
        (tmp_path / name / "participants.tsv").write_text(rows)
        cohorts.append({"name": name, "folder": str(tmp_path / name)})
    index = pd.MultiIndex.from_tuples([("a", "sub-a"), ("b", "sub-b")], names=KEYS)
    known = read_questionnaires(parse_config({"cohorts": cohorts}).cohorts,
                                pd.DataFrame(index=index), ["age", "sex", "site"])  # fmt: skip
    assert known["is:age"].tolist() == [30, 40]
    assert known["is:sex"].tolist() == ["F", "M"]
    assert "is:site" not in known
