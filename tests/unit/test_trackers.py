"""Metrics in other participants' tools: only where asked for, and equal to metrics.jsonl."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch
from synthetic import make_study
from test_training import metrics, run

from brainlm.errors import BrainLMError
from brainlm.training.trackers import open_trackers


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make_study(tmp_path_factory.mktemp("study"))
    torch.set_num_threads(before)


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)]
            for name in found.Tags()["scalars"]}  # fmt: skip


def test_tensorboard_holds_the_journal(study, tmp_path):
    out = run(study, tmp_path / "out", epochs=2, trackers=("tensorboard",))
    found, expected = scalars(out), {}
    for line in metrics(out):
        for name in set(line) - {"step", "split"}:
            if line[name] is not None:
                expected.setdefault(f"{line['split']}/{name}", []).append(
                    (line["step"], pytest.approx(line[name], rel=1e-6)))  # fmt: skip
    assert found == expected
    assert len(found["train/loss"]) == 7


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    for start, loss in ((0, 1.0), (2, 9.0)):
        (tracker,) = open_trackers(["tensorboard"], tmp_path, "{}", start)
        for step in range(start + 1, 5):
            tracker.record({"step": step, "split": "train", "loss": loss + step})
        tracker.close()
    assert scalars(tmp_path)["train/loss"] == [(1, 2.0), (2, 3.0), (3, 12.0), (4, 13.0)]


def test_weights_and_biases_is_told_every_line(study, tmp_path, monkeypatch):
    given, lines, ends = {}, [], []

    class Stand:
        def log(self, values, step):
            lines.append((step, values))

        def finish(self):
            ends.append(True)

    def init(**options):
        given.update(options)
        return Stand()

    module = types.ModuleType("wandb")
    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    out = run(study, tmp_path / "out", epochs=2, trackers=("wandb",))
    expected = [(line["step"], f"{line['split']}/loss", line["loss"]) for line in metrics(out)]
    found = [(step, name, value) for step, values in lines for name, value in values.items()]
    assert [x for x in found if x[1].endswith("loss")] == expected
    assert ends == [True]
    assert (given["project"], given["resume"]) == ("brainlm", "allow")
    assert given["config"]["epochs"] == 2
    first = given["id"]
    open_trackers(["wandb"], out, json.dumps(given["config"]), 3)
    assert given["config"]["epochs"] == 2
    assert len(first) == 16


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_absent(study, tmp_path, monkeypatch, name):
    module = "torch.utils.tensorboard" if name == "tensorboard" else "wandb"
    monkeypatch.setitem(sys.modules, module, None)
    run(study, tmp_path / "silent", epochs=1)  # nobody asked for it: nothing is imported
    with pytest.raises(BrainLMError, match=rf"{name}, which does not import .*\[track\]"):
        run(study, tmp_path / "out", epochs=1, trackers=(name,))
