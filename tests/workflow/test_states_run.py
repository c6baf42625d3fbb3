"""Planted conditions, from series and their events to a table, with a model that was trained."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from fakes import write_parcel_run
from runs import make_clone, snakemake

from brainlm.cohort.splits import split_of
from brainlm.evaluation.states.decoding import LINEAR, MAJORITY, UNTRAINED
from brainlm.simulate.activity import draw_patterns, make_activity
from brainlm.tables import write_tsv

CONFIG = """
cohorts:
  - {name: c, folder: blocks, layout: parcels}
atlas: {name: demo424, folder: atlas}
chunks: {recordings: 20}
model: {preset: tiny, window: 60, patch: 20}
pretrain: {epochs: 4, batch_size: 4, micro_batch_size: 4, cpus: 2, learning_rate: 3.0e-3}
tasks: [states.yaml]
evaluate: {bootstrap: 200}
"""


def make_blocks(folder, parts: dict[str, int]) -> None:
    """So many participants of each split, each with a run of blocks of two conditions."""
    random, patterns = np.random.default_rng(5), 3 * draw_patterns(5, 2, 424)
    number = 0
    while any(parts.values()):
        number += 1
        name = f"sub-{number:02d}"
        if not parts.get(split_of(name)):
            continue
        parts[split_of(name)] -= 1
        activity = make_activity(random, np.arange(240.0), patterns)
        series = activity.series + random.standard_normal((240, 424))
        run = f"{name}_task-blocks"
        path = write_parcel_run(folder, run, series.astype(np.float32), StartTime=0)
        write_tsv(path.with_name(f"{run}_events.tsv"), ("onset", "duration", "trial_type"),
                  activity.events)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = make_clone(tmp_path_factory.mktemp("states"))
    make_blocks(folder / "blocks", {"train": 7, "validation": 2, "test": 3})
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "states.yaml").write_text("{kind: states, seeds: [1], epochs: 3, delay_s: 5}")
    done = snakemake(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def plan(folder) -> set[str]:
    planned = snakemake(folder, "--dry-run")
    assert planned.returncode == 0, planned.stderr[-2000:]
    lines = (planned.stdout + planned.stderr).splitlines()
    return {line[5:].rstrip(":") for line in lines if line.startswith("rule ")} - {"all"}


def test_planted_conditions_are_decoded_by_a_trained_model(finished):
    table = pd.read_parquet(finished / "results/evaluation/r1/states.parquet")
    wanted = (table["metric"] == "balanced_accuracy") & (table["level"] == "pooled")
    found = table[wanted].set_index("method")["value"]
    assert found[LINEAR] > 0.8 and found[MAJORITY] == 0.5
    assert {UNTRAINED, "attentive probe", "connectivity + logistic"} <= set(found.index)
    assert (table["n"] == 3).all() and (table["n_train"] == 7).all()
    assert "States" in (finished / "results/report/index.html").read_text()


def test_edited_events_repeat_their_evaluation_and_nothing_else(finished):
    assert plan(finished) == set()
    events = sorted(finished.glob("blocks/*/func/*_events.tsv"))
    text = events[0].read_text()
    events[0].write_text(text.replace("condition1", "another"))
    assert plan(finished) == {"evaluate", "report"}
    events[0].write_text(text)  # as it was, at another time
    assert plan(finished) == set()
    events[1].unlink()
    assert plan(finished) == {"evaluate", "report"}
