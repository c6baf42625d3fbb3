"""Whom the model has seen is in no figure of an external cohort."""

from __future__ import annotations

import inspect
import re
from importlib import import_module

import numpy as np
import pytest
from synthetic import SHA, R

from brainlm.evaluation.job import EVALUATORS
from brainlm.evaluation.participants import (
    cohort_parts,
    count_left_out,
    list_participants,
    long_enough,
)
from brainlm.evaluation.seen import SEEN, open_corpus
from brainlm.shards import Recording, ShardInfo, write_shard

ROLES = {"home": "reference", "away": "external"}


def series(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((40, R))


def write(path, cohort: str, *rows: tuple[str, str, int]):
    """Rows: participant, split, seed of the series."""
    recordings = [
        Recording(f"{name}_run-{k}", name, cohort, split, series=series(seed), units="percent")
        for k, (name, split, seed) in enumerate(rows)
    ]
    write_shard(path, recordings, ShardInfo("toy", SHA, R, 1.0))
    return path


def test_a_participant_of_the_training_set_is_left_out_of_an_external_cohort(tmp_path, capsys):
    home = write(
        tmp_path / "home", "home",
        ("sub-1", "train", 1), ("sub-2", "validation", 2), ("sub-3", "test", 3),
    )  # fmt: skip
    away = write(
        tmp_path / "away", "away",
        ("sub-1", "train", 11),  # the same id
        ("sub-x", "train", 2),  # the same series under another id,
        ("sub-x", "train", 12),  # and that participant's other run
        ("sub-3", "test", 13),  # was not learnt from
        ("sub-y", "test", 3), ("sub-z", "test", 14),
    )  # fmt: skip
    corpus = open_corpus([home, away], ROLES)
    seen = corpus.table[corpus.table["status"] == SEEN]
    assert sorted(seen["recording_id"]) == ["sub-1_run-0", "sub-x_run-1", "sub-x_run-2"]
    assert "2 participants of the external cohort away were trained on" in capsys.readouterr().out
    parts = {cohort: part for cohort, _, part in cohort_parts(corpus.table, ["test"], ROLES)}
    rows, why = long_enough(parts["away"], 10)
    assert len(rows) == 3
    assert {reason for reason, count in why.items() if count} == {SEEN} and why[SEEN] == 2
    labels = corpus.table.groupby(["cohort", "participant_id"]).size() * 1.0
    participants = list_participants(corpus, labels, roles=ROLES)
    participants["class left out"] = None
    left_out = count_left_out(participants.loc[["away"]], 1)
    assert {k: n for k, n in left_out.items() if n} == {SEEN: 2}
    assert sorted(participants.loc["away"].index[participants.loc["away", "ready"]]) == [
        "sub-3", "sub-y", "sub-z",
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(EVALUATORS.values())))
def test_every_evaluator_opens_its_shards_so(name):
    module = name.partition(":")[0]
    source = inspect.getsource(import_module(f"brainlm.evaluation.{module}"))
    assert re.search(r"job\.open\(\)|open_corpus\(job\.shards", source)
    assert not re.search(r"\bCorpus\(", source)


def test_without_an_external_cohort_nobody_is_left_out(tmp_path, capsys):
    home = write(tmp_path / "home", "home", ("sub-1", "train", 1), ("sub-2", "test", 1))
    assert set(open_corpus([home], None).table["status"]) == {"ok"}
    assert capsys.readouterr().out == ""
