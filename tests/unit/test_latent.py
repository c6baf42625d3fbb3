"""The map is reproducible, and the numbers next to it tell structure from chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic import R, make_job, make_study, toy_atlas

from brainlm.errors import BrainLMError
from brainlm.evaluation import latent as module
from brainlm.evaluation.latent import evaluate_latent, map_points, nearest_of_others
from brainlm.evaluation.tasks import load_tasks
from brainlm.model import preset
from brainlm.shards import Scaling


def test_neighbours_are_other_participants():
    values = np.array([[0.0], [0.1], [0.2], [5.0], [6.0]])
    names = np.array(["a", "a", "b", "b", "c"])
    near = nearest_of_others(values, names, 2)
    assert near[0].tolist() == [2, 3]
    assert near[3].tolist() == [4, 1]


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """80 participants, two recordings each: tokens hold age and sex, and nothing of the site."""
    rng = np.random.default_rng(0)
    names = [f"sub-{n:02d}" for n in range(80)]
    age, sex = rng.uniform(20, 80, 80), rng.integers(0, 2, 80)
    table = pd.DataFrame({"participant_id": names, "age": age, "sex": np.where(sex, "F", "M"),
                          "site": rng.integers(1, 6, 80), "mean_fd": 0.1})  # fmt: skip
    table.loc[3, "age"] = None
    for name in ("sub-g1", "sub-ghost"):  # without a recording; of test and of train by the hash
        table.loc[len(table), ["participant_id", "age"]] = name, 50
    table.to_csv(tmp_path / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    points = pd.DataFrame({
        "cohort": "c", "participant_id": np.repeat(names, 2), "split": "test",
        "recording_id": [f"{p}_run-{r}" for p in names for r in (1, 2)], "mean_fd_mm": np.nan,
    })  # fmt: skip
    clear = np.stack([age / 10, 8 * sex], 1).repeat(2, 0) + 0.1 * rng.normal(size=(160, 2))
    tokens = {"cls": clear, "mean": rng.normal(size=(160, 2))}
    left_out = {("c", "test"): {"too short": 2}}
    ends = {"CLS token": np.repeat(clear[:, None], 2, 1)}
    recorded = pd.MultiIndex.from_frame(points[["cohort", "participant_id"]].drop_duplicates())
    embedded = (points, tokens, ends, left_out, recorded)
    monkeypatch.setattr(module, "_embed", lambda *_: embedded)
    read = module.read_participants

    def note(cohort, columns):
        assert set(columns) == {"age", "sex", "site", "mean_fd_mm", "mean_fd"}  # of many
        return read(cohort, columns)

    monkeypatch.setattr(module, "read_participants", note)
    monkeypatch.setattr(module, "map_points", lambda values, seed: values[:, :2])
    out = tmp_path / "latent.parquet"
    table = evaluate_latent(make_job(out, {"kind": "latent"}, model=tmp_path, shards=[],
                                     cohorts={"c": tmp_path}, evaluate={"bootstrap": 200})
                            )  # fmt: skip
    return table, pd.read_parquet(out.with_suffix(".points.parquet"))


def test_neighbourhoods_give_back_what_the_tokens_hold_and_no_more(planted):
    table, points = planted
    rows = table.set_index(["target", "method", "metric"])
    age = rows.loc[("age", "CLS token", "r2")]
    assert age["value"] > 0.9 and age["low"] < age["value"] < age["high"]
    assert age["n"] == 79 and age["left_out"] == 4
    assert age["note"] == "2 too short; 1 with a label and no recording at all; 1 without age"
    assert rows.loc[("age", "mean of the tokens", "r2"), "value"] < 0.3
    assert abs(rows.loc[("age", "chance, CLS token", "r"), "value"]) < 0.1
    assert rows.loc[("sex", "CLS token", "purity"), "value"] > 0.9
    site, chance = (rows.loc[("site", m, "purity")] for m in ("CLS token", "chance, CLS token"))
    assert site["low"] < chance["value"] < site["high"]
    assert set(table[table["target"] == "site"]["metric"]) == {"purity"}  # codes are names
    assert set(points["site"]) == set("12345")
    motion = table[(table["target"] == "mean_fd_mm") & (table["method"] == "CLS token")]
    assert "80 participants with 1 values" in motion["note"].iloc[0]
    assert set(points["token"]) == {"cls", "mean"} and len(points) == 320
    assert points["mean_fd_mm"].eq(0.1).all()  # the participants table's, where none was measured


def test_the_map_is_seeded_and_separates_what_is_far_apart():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(40, 6)) + 12 * (np.arange(40) % 2)[:, None]
    first, second = map_points(values, 1), map_points(values, 1)
    np.testing.assert_array_equal(first, second)
    even, odd = first[::2], first[1::2]
    gap = np.linalg.norm(even.mean(0) - odd.mean(0))
    assert gap > 2 * max(even.std(), odd.std())
    assert np.isnan(map_points(values[:5], 1)).all()


def test_held_out_recordings_are_embedded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "map_points", lambda values, seed: values[:, :2])
    study = make_study(tmp_path, participants=60)
    model = preset("tiny", num_parcels=R, window=40, patch=10, coordinates=toy_atlas().coordinates)
    torch.manual_seed(0)
    model.save_pretrained(tmp_path / "model", Scaling.load(study.scaling), "")
    task = load_tasks(["latent"])["latent"].model_dump(exclude={"name"})
    names = study.labels.reset_index().rename(columns={0: "age"})
    names.drop(columns="cohort").to_csv(tmp_path / "participants.tsv", sep="\t", index=False)
    job = make_job(tmp_path / "latent.parquet", task, model=tmp_path / "model",
                   shards=study.shards, evaluate={"bootstrap": 100})  # fmt: skip
    table = evaluate_latent(job)
    points = pd.read_parquet(tmp_path / "latent.points.parquet")
    assert set(points["split"]) == {"validation", "test"} and len(points) == 2 * 18
    assert set(table[table["target"] == "age"]["split"]) == {"validation", "test"}
    assert "no sex in its participants table" in set(table["note"])
    who = table[table["target"] == "who is who"]
    assert set(who["note"].str.slice(0, 40)) == {"0 participants with two windows that do "}
    (tmp_path / "model" / "scaling.json").unlink()
    with pytest.raises(BrainLMError, match="lacks its scaling"):
        evaluate_latent(job)


def test_the_embedding_stands_next_to_its_readout_without_the_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "map_points", lambda values, seed: values[:, :2])
    study = make_study(tmp_path, participants=60, timepoints=100)
    model = preset("tiny", num_parcels=R, window=40, patch=10, coordinates=toy_atlas().coordinates)
    model.save_pretrained(tmp_path / "model", Scaling.load(study.scaling), "")
    task = load_tasks(["latent"])["latent"].model_dump(exclude={"name"})
    job = make_job(tmp_path / "latent.parquet", task, model=tmp_path / "model",
                   shards=study.shards, evaluate={"bootstrap": 100})  # fmt: skip
    points, _, ends, _, _ = module._embed(job)
    corpus, model = job.open()
    names = corpus.table["recording_id"].tolist()
    up = np.triu_indices(R)
    checked = 0
    for found, name in zip(ends["embedding without the encoder"], points["recording_id"],
                           strict=True):  # fmt: skip
        series = corpus.scaled(names.index(name), model.scaling)
        if np.isnan(series).any():
            continue
        for vector, window in zip(found, (series[:40], series[-40:]), strict=True):
            apart = window - window.mean(1, keepdims=True)
            wanted = np.corrcoef(apart.T)[up] * np.where(up[0] == up[1], 1, 2**0.5)
            np.testing.assert_allclose(vector, wanted, atol=1e-4)
            checked += 1
    assert checked > 20
    who = evaluate_latent(job).query("target == 'who is who' and metric == 'identified'")
    assert {"embedding", "embedding without the encoder", "connectivity", "chance"} <= set(
        who["method"]
    )
