"""The scaling sweep: shares of participants, equal updates, one table."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from synthetic import make_job, make_study

from brainlm.cohort.splits import in_share
from brainlm.config import Config, Model, Pretrain, sweep_point
from brainlm.errors import BrainLMError
from brainlm.evaluation.model_scaling import _count_participants, evaluate_scaling
from brainlm.evaluation.tasks import ScalingTask, parse_task
from brainlm.files import read_json
from brainlm.training.pretrain import _choose_share, pretrain
from brainlm.workflow import sweep_models


def test_shares_are_nested_and_of_their_size():
    participants = [f"sub-{n:05d}" for n in range(4000)]
    tenth, third = ({p for p in participants if in_share(p, share)} for share in (0.1, 0.3))
    assert tenth < third
    assert len(tenth) == pytest.approx(400, abs=60)
    assert len(third) == pytest.approx(1200, abs=90)
    assert all(in_share(p, 1.0) for p in participants)


def test_rules_and_evaluation_agree_on_the_folders():
    task = parse_task(
        {"kind": "scaling", "presets": ["tiny", "13m"], "shares": [0.25, 1]}, "s", "s"
    )
    config = Config(cohorts=({"name": "a", "folder": "a"},))
    folders = [config.paths.sweep(*point) for point in task.points()]
    assert [path.parent for path in sweep_models(config, task)] == folders
    assert [folder.name for folder in folders] == [
        "tiny-0.25-1",
        "tiny-1-1",
        "13m-0.25-1",
        "13m-1-1",
    ]
    assert config.paths.sweep("tiny", "0.25", "1") == folders[0]  # as the rule's job names it
    changed = sweep_point(config, "tiny", "0.25", "7")
    assert (changed.model.preset, changed.pretrain.share, changed.pretrain.seed) == (
        "tiny",
        0.25,
        7,
    )
    assert changed.pretrain.epochs == config.pretrain.epochs
    with pytest.raises(BrainLMError, match=r"pretrain\.share"):
        sweep_point(config, "tiny", "1.5", "1")


def test_a_sweep_trains_as_many_updates_on_fewer_participants_and_is_scored_on_the_same(
    tmp_path, monkeypatch
):
    study = make_study(tmp_path, participants=60)
    task = {"kind": "scaling", "presets": ["tiny"], "shares": [0.3, 1.0], "seeds": [1, 2]}
    job = make_job(tmp_path / "scaling.parquet", task, model=tmp_path, shards=study.shards,
                   evaluate={"bootstrap": 100})  # fmt: skip
    points = [("tiny", 0.3, 1), ("tiny", 0.3, 2), ("tiny", 1.0, 1)]
    monkeypatch.setattr(ScalingTask, "points", lambda task: points)
    models = {}
    for _, share, seed in points:
        options = Pretrain(
            epochs=2, batch_size=8, micro_batch_size=8, cpus=1, share=share, seed=seed
        )
        out = job.config.paths.sweep("tiny", share, seed)
        pretrain(study.shards, study.scaling, out, model=Model(preset="tiny", window=40, patch=10),
                 options=options, atlas=study.atlas)  # fmt: skip
        models["tiny", share, seed] = out
    facts = [read_json(folder / "run.json") for folder in models.values()]
    assert len({fact["updates"] for fact in facts}) == 1
    few, _, all_of_them = (fact["recordings"]["train"] for fact in facts)
    assert few < all_of_them == 42
    assert facts[2]["epochs"] == pytest.approx(11 * 8 / 42, rel=1e-3)  # ceil(2 x 42 / 8) updates
    assert facts[0]["epochs"] == pytest.approx(11 * 8 / few, rel=1e-3)  # the same, more passes
    lines = [pd.read_json(folder / "metrics.jsonl", lines=True) for folder in models.values()]
    for column in ("step", "split", "lr"):  # schedule and validation do not know of the share
        assert lines[0][column].equals(lines[2][column])
    table = evaluate_scaling(job)
    pooled = table[(table["level"] == "pooled") & (table["metric"] == "r2")]
    apart = pooled["method"].str.contains(" minus ")
    gap, pooled = pooled[apart], pooled[~apart].set_index("target")
    assert gap[["method", "target"]].to_numpy().tolist() == [["tiny minus tiny on 0.3", "1"]]
    gap = gap.iloc[0]
    assert gap["value"] == pytest.approx(pooled["value"]["1"] - pooled["value"]["0.3"])
    assert gap["low"] < gap["value"] < gap["high"] and 0 < gap["p"] <= 1
    width = pooled["high"] - pooled["low"]
    assert gap["high"] - gap["low"] < np.hypot(width["1"], width["0.3"])  # paired
    assert set(pooled.index) == {"0.3", "1"} and set(pooled["n"]) == {6}
    assert pooled["n_train"].to_dict() == {"0.3": few, "1": 42}
    assert (pooled["low"] < pooled["value"]).all() and (pooled["value"] < pooled["high"]).all()
    seeds = table[(table["level"] == "seed") & (table["target"] == "0.3")]
    assert seeds["unit"].tolist() == ["1", "2"]
    assert seeds["value"].min() <= pooled["value"]["0.3"] <= seeds["value"].max()


def test_a_share_is_all_recordings_of_some_participants_whatever_the_seed():
    participants = [f"sub-{n:03d}" for n in range(200)]
    table = pd.DataFrame({"participant_id": participants * 2})
    corpus, rows = SimpleNamespace(table=table), np.arange(100, 400)
    some = _choose_share(corpus, rows, 0.3)
    assert set(some) < set(rows)
    wanted = {subject for subject in participants if in_share(subject, 0.3)}
    assert set(table["participant_id"][some]) == wanted
    assert len(some) == sum(table["participant_id"][rows].isin(wanted))
    assert np.array_equal(_choose_share(corpus, rows, 1.0), rows)


def test_participants_are_counted_as_the_training_saw_them():
    subject = next(f"sub-{n}" for n in range(99) if in_share(f"sub-{n}", 0.1))
    other = next(f"sub-{n}" for n in range(99) if not in_share(f"sub-{n}", 0.9))
    rows = [("a", subject, "train", "ok", 50), ("a", subject, "train", "ok", 50),
            ("b", subject, "train", "ok", 50), ("a", other, "train", "ok", 50),
            ("a", subject + "s", "train", "ok", 39), ("a", subject + "t", "test", "ok", 50),
            ("a", subject + "f", "train", "failed", 0), ("c", subject, "train", "ok", 50),
            ]  # fmt: skip
    names = ["cohort", "participant_id", "split", "status", "num_timepoints"]
    table, roles = pd.DataFrame(rows, columns=names), {"c": "external"}
    assert _count_participants(table, 0.1, 40, roles) == 2
    assert _count_participants(table, 1.0, 40, roles) == 3


def test_a_share_of_nobody_is_an_error(tmp_path):
    study = make_study(tmp_path, participants=10)
    options = Pretrain(epochs=1, batch_size=2, micro_batch_size=2, cpus=1, share=1e-9)
    with pytest.raises(BrainLMError, match="selects nobody"):
        pretrain(study.shards, study.scaling, tmp_path / "out", options=options,
                 model=Model(preset="tiny", window=40, patch=10), atlas=study.atlas)  # fmt: skip
