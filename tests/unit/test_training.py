"""Pretraining and fine-tuning on a small study: results, exact resume, bad input."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from synthetic import make_study, small_model

from brainlm import config
from brainlm.errors import BrainLMError
from brainlm.model import BrainLM, from_pretrained, preset
from brainlm.model.gaussian import Gaussian
from brainlm.shards import Corpus, Scaling
from brainlm.training import device
from brainlm.training import finetune as finetuning
from brainlm.training import pretrain as pretraining
from brainlm.training.distributed import Ranks
from brainlm.training.finetune import FineTuning, finetune
from brainlm.training.predict import predict, predict_recordings
from brainlm.training.pretrain import EXIT_SAVED, pretrain
from brainlm.training.schedule import learning_rate_at
from brainlm.training.settings import _of_config
from brainlm.training.windows import Windows

MODEL = config.Model(preset="tiny", window=40, patch=10)
#: how the series were made
MADE = {"enters": ["parcel series"], "sample_period_s": 1.0}


@pytest.fixture(autouse=True, scope="module")
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _precision(monkeypatch):
    """A process has one; here many tests share a process."""
    monkeypatch.setattr(device, "_precision", "auto")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"))


def options(**changes):
    return config.Pretrain(**{"epochs": 6, "batch_size": 4, "micro_batch_size": 2,
                              "learning_rate": 3e-3, **changes})  # fmt: skip


def run(study, out, **changes):
    model = changes.pop("model", MODEL)
    pretrain(study.shards, study.scaling, out, model=model, options=options(**changes),
             atlas=study.atlas, preprocess=MADE)  # fmt: skip
    return out


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


#: run in another process, so that it can be killed
SCRIPT = """
import json, sys, time, torch
sys.path.insert(0, {here!r})
from pathlib import Path
from brainlm.training import device
from brainlm.training import finetune as finetuning
from brainlm.training import pretrain as pretraining
from test_training import make_study, run
torch.set_num_threads(1)
study = make_study(Path({folder!r}))
pause = {pause}
update = pretraining.Run._update
def slow(self, *args):
    update(self, *args)
    time.sleep(pause)
pretraining.Run._update = slow
run(study, Path({out!r}), checkpoint_every_min={every_min})
"""


def start(tmp_path: Path, out: Path, pause: float, every_min: float = 1e-6) -> subprocess.Popen:
    (tmp_path / "study").mkdir(exist_ok=True)
    text = SCRIPT.format(here=str(Path(__file__).parent), folder=str(tmp_path / "study"),
                         out=str(out), pause=pause, every_min=every_min)  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    return run(study, tmp_path_factory.mktemp("finished"))


def test_pretraining_writes_a_model_that_beats_zero(tmp_path, capsys):
    study = make_study(tmp_path, participants=60)
    out = run(study, tmp_path / "out", epochs=40, batch_size=8, micro_batch_size=8)
    lines = metrics(out)
    last = [line for line in lines if line["split"] == "validation"][-1]
    assert last["r2"] > last["r2_zero"] + 0.1
    assert {"r2_linear", "r2_space", "r2_gaussian", "r2_gaussian_own"} <= set(last)
    assert last["r2_gaussian"] > last["r2_zero"]
    corpus, scaling = Corpus(study.shards), Scaling.load(study.scaling)
    series = [corpus.scaled(row, scaling) for row in corpus.usable(split="train")]
    every = np.concatenate(series)  # parcel 2 lacks data in some
    wanted = np.nanmean(every[:, :1] * every, 0)
    np.testing.assert_allclose(Gaussian.load(out).covariance[0], wanted, rtol=1e-3)
    kinds = ("starting", "training", "validation", "data", "saving")
    assert {"step", "epoch", "split", "loss", "r2", "windows_per_s", "data_wait", "lr",
            "seconds", *(f"{kind}_s" for kind in kinds)} <= set(lines[0])  # fmt: skip
    for line in lines:  # the wall clock, and nothing left out of it
        assert line["seconds"] == pytest.approx(sum(line[f"{k}_s"] for k in kinds), rel=1e-3)
    facts = json.loads((out / "run.json").read_text())
    assert facts["recordings"] == {"train": 42, "validation": 12}
    assert facts["left_out"] == {"bad_data": 1}
    text = capsys.readouterr().out
    assert text.count(f"attention {facts['attention']}") == 1
    assert re.search(r"update 210/210 epoch 40\.0 loss [\d.]+ R² [-\d.]+ [\d.e+]+ windows/s MFU – "
                     r"data-wait [\d.]+% ETA 0:00 \(starting [\d.]+% training [\d.]+% "
                     r"validation [\d.]+% data [\d.]+% saving [\d.]+%\)", text)  # fmt: skip
    assert facts["attention"].startswith("auto: ")
    model = from_pretrained(out)
    assert model.scaling.atlas == "toy"
    card = (out / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    (metric,) = header["model-index"][0]["results"][0]["metrics"]
    assert metric["value"] == pytest.approx(last["r2"], abs=1e-4)
    low, high = facts["r2_interval"]
    assert low < last["r2"] < high and f"95 % interval {low:.3f} to {high:.3f}" in metric["name"]
    for part in ("## Data\n\n* 42 training and 12 validation recordings", "* left out: 1 training",
                 "## Masked reconstruction on held-out subjects", "## Limits"):  # fmt: skip
        assert part in card


def test_finished_run_is_not_repeated(study, finished, capsys):
    before, lines = weights(finished), metrics(finished)
    run(study, finished)
    assert metrics(finished) == lines
    assert "nothing to do" in capsys.readouterr().out
    assert weights(finished) == before


def test_two_runs_are_bitwise_equal(study, finished, tmp_path):
    assert weights(run(study, tmp_path / "again")) == weights(finished)


def test_killed_at_any_moment_and_resumed_bitwise(finished, tmp_path):
    out = tmp_path / "killed"
    for wanted in (3, 11):
        process = start(tmp_path, out, 0.1)
        while not any(int(path.parent.name[5:]) >= wanted for path in saved(out)):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (out / "model.safetensors").exists()
    process = start(tmp_path, out, 0.0)
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    assert "resuming from update" in text
    assert weights(out) == weights(finished)
    steps = [line["step"] for line in metrics(out) if line["split"] == "train"]
    assert steps == sorted(set(steps))


def test_preemption_saves_and_says_so(finished, tmp_path):
    out = tmp_path / "preempted"
    process = start(tmp_path, out, 0.1)
    while not saved(out):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=240)
    assert process.returncode == EXIT_SAVED == 75
    assert "run again to resume" in text
    process = start(tmp_path, out, 0.0)
    process.communicate(timeout=240)
    assert weights(out) == weights(finished)


def saved(out: Path) -> list[Path]:
    """The last file of each whole checkpoint, oldest first."""
    return sorted(out.glob("checkpoints/step-*/facts.json"))


@pytest.mark.parametrize("lines", [1, 4, 9])
def test_sigterm_to_all_processes_of_a_job_saves(finished, tmp_path, lines):
    """The reader of what is printed dies first, as `tee` in a pipe does."""
    out, reader = tmp_path / "out", [sys.executable, "-c", "import sys; sys.stdin.read()"]
    process = start(tmp_path, out, 0.1, every_min=60)
    reading = subprocess.Popen(reader, stdin=process.stdout)
    process.stdout.close()
    journal = out / "metrics.jsonl"
    while not (journal.exists() and journal.read_text().count("\n") >= lines):
        assert process.poll() is None
        time.sleep(0.01)
    for one in (reading, process):
        one.send_signal(signal.SIGTERM)
        reading.wait()
    assert process.wait(240) == EXIT_SAVED
    assert len(saved(out)) == 1
    process = start(tmp_path, out, 0.0)
    text, _ = process.communicate(timeout=240)
    assert "resuming from update" in text
    assert weights(out) == weights(finished)


def test_damaged_checkpoint_falls_back_to_the_one_before(study, finished, tmp_path, capsys):
    out = run(study, tmp_path / "out", checkpoint_every_min=1e-6)
    (out / "model.safetensors").unlink()
    assert len(saved(out)) == 2
    assert len(list((out / "checkpoints").iterdir())) == 2
    (newest,) = saved(out)[-1].parent.glob("*.safetensors")
    newest.write_bytes(newest.read_bytes()[:-2000])
    capsys.readouterr()
    run(study, out, checkpoint_every_min=1e-6)
    assert "going back to the one before" in capsys.readouterr().out
    assert weights(out) == weights(finished)
    (out / "model.safetensors").unlink()
    for path in out.glob("checkpoints/step-*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:1000])
    run(study, out)
    assert "damaged checkpoint" in (text := capsys.readouterr().out)
    assert "starting from the beginning" in text
    assert weights(out) == weights(finished)


def test_what_a_kill_left_of_a_checkpoint_does_not_count(study, finished, tmp_path):
    """Also parts of more processes than there are now, which nobody writes over."""
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (out / "model.safetensors").unlink()
    torn = saved(out)[-1].parent
    saved(out)[-1].unlink()
    shutil.copy(next(torn.glob("*.safetensors")), torn / "shard-00009-x.safetensors")
    run(study, out)
    assert weights(out) == weights(finished)
    assert len(list(torn.glob("*.safetensors"))) == 1


def test_a_finished_model_is_not_trained_over(study, finished, tmp_path):
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(BrainLMError, match=r"epochs: 6 → 7.*release: r2"):
        run(study, out, epochs=7)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_checkpoints_of_other_settings_are_set_aside_and_taken_up_again(
    study, finished, tmp_path, capsys
):
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (out / "done.json").unlink()  # as if it had been stopped
    run(study, out, epochs=2)
    assert "epochs: 6 → 2): they are moved to" in capsys.readouterr().out
    assert [path.parent.name for path in saved(out)] == ["step-00000007"]
    assert len(list(out.glob("checkpoints/other-*/step-00000021/facts.json"))) == 1
    (out / "done.json").unlink()
    run(study, out, learning_rate=1e-3, epochs=1)
    (out / "done.json").unlink()
    capsys.readouterr()
    run(study, out)
    assert "resuming from update 21 of 21" in capsys.readouterr().out
    assert weights(out) == weights(finished)


def test_an_unfinished_training_is_extended(study, finished, tmp_path, capsys):
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (out / "done.json").unlink()  # as if it had been stopped
    run(study, out, epochs=8)
    text = capsys.readouterr().out
    assert "epochs: 6 → 8: the training is extended" in text
    assert "resuming from update 21 of 28" in text
    lines = metrics(out)
    assert lines[: len(metrics(finished))] == metrics(finished)
    assert lines[-1]["step"] == 28


def test_the_decoder_that_was_asked_for_is_trained_and_saved(study, tmp_path):
    model = MODEL.model_copy(update={"decoder_context": "all"})
    out = run(study, tmp_path / "out", model=model, epochs=1)
    assert json.loads((out / "config.json").read_text())["decoder_context"] == "all"
    assert from_pretrained(out).decoder.context == "all"


def test_a_run_of_before_a_new_optional_key_is_still_finished(study, finished, tmp_path, capsys):
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    done = json.loads((out / "done.json").read_text())
    settings = json.loads(done["settings"])
    assert settings.pop("decoder_context") is None
    assert settings.pop("optimizer") == "muon"  # of before there was a choice
    (out / "done.json").write_text(json.dumps(done | {"settings": json.dumps(settings)}))
    run(study, out)
    assert "nothing to do" in capsys.readouterr().out


def test_micro_batches_do_not_change_the_result(study, finished, tmp_path):
    out = run(study, tmp_path / "out", micro_batch_size=4)
    # Losses, not weights: Adam turns the rounding noise in the gradient of a key bias, which
    # softmax ignores, into steps of full size; Muon rounds to bf16 after sums in another order.
    for one, two in zip(metrics(finished), metrics(out), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)


def test_half_precision_gives_nearly_the_same_losses(study, finished, tmp_path):
    out = run(study, tmp_path / "out", precision="bf16")
    for one, two in zip(metrics(finished), metrics(out), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=0.02)
    assert json.loads((out / "run.json").read_text())["precision"] == "bf16"


def test_future_mask_trains(study, tmp_path):
    out = run(study, tmp_path / "out", mask="future", mask_ratio=0.25, epochs=1)
    assert metrics(out)[-1]["split"] == "validation"


def test_collapse_is_noticed(study, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pretraining, "COLLAPSED", 1e9)
    run(study, tmp_path / "out", epochs=1)
    assert "the encoder has collapsed" in capsys.readouterr().out


def test_spread_of_summaries():
    ranks = Ranks(0, 1, torch.device("cpu"))
    same = torch.ones(20, 8).double() + 1e-5 * torch.randn(20, 8).double()
    assert pretraining._spread([same[:7], same[7:]], 20, ranks) < pretraining.COLLAPSED
    apart = torch.randn(200, 8).double()
    assert pretraining._spread([apart], 200, ranks) == pytest.approx(1, abs=0.05)


def make_run(study, out, device="cpu", **changes):
    made = pretraining.Run(study.shards, study.scaling, out, MODEL, options(**changes),
                           study.atlas, Ranks(0, 1, torch.device(device)))  # fmt: skip
    made.open_journal(None)
    return made


def test_the_training_loop_never_reads_a_tensor_back(study, tmp_path, monkeypatch):
    """Reading waits for a GPU; the loader's threads may look at their batches on the host."""
    made = make_run(study, tmp_path)
    meter, batches = made.meter(), iter(made.loader)
    made._update(batches, meter)  # the optimiser's own first step makes its state

    def refuse(name):
        real = getattr(torch.Tensor, name)

        def read(tensor, *arguments):
            assert threading.current_thread() is not threading.main_thread(), name
            return real(tensor, *arguments)

        monkeypatch.setattr(torch.Tensor, name, read)

    for name in ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__"):
        refuse(name)
    made._update(batches, meter)
    monkeypatch.undo()
    assert float(meter.norm) > 0


def test_activation_checkpointing_changes_nothing_but_the_work(study, tmp_path):
    found = {}
    for on in (False, True):
        made = make_run(study, tmp_path / str(on), activation_checkpointing=on)
        calls = []
        for block in [*made.model.encoder, *made.model.decoder.blocks]:
            block.norm1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        error, known, *_ = made._forward(next(iter(made.loader)))
        (error / known).backward()
        grads = {name: p.grad for name, p in made.model.named_parameters()}
        found[on] = (error / known).detach(), grads, len(calls)
    assert torch.equal(found[False][0], found[True][0])
    assert found[False][1].keys() == found[True][1].keys()
    for name, gradient in found[False][1].items():
        assert torch.equal(gradient, found[True][1][name])
    assert found[True][2] == 2 * found[False][2] == 2 * 3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_are_compiled_with_and_without_checkpointing(
    study, tmp_path, monkeypatch, checkpointing
):
    """Captured whole, and the same; the compiler itself would take a minute here."""
    torch._dynamo.reset()
    counts = torch._dynamo.utils.counters
    counts.clear()
    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: real(block, backend="eager"))
    found = []
    for on in (False, True):
        made = make_run(study, tmp_path, activation_checkpointing=checkpointing, compile=on)
        error, *_ = made._forward(next(iter(made.loader)))
        error.backward()
        found.append((error.detach(), made.model.project.weight.grad))
    # the block that is tried, then an encoder and a decoder block; the rest alike
    assert counts["stats"]["unique_graphs"] == 3
    assert not counts["graph_break"]
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-5)
    assert set(made.model.state_dict()) == set(from_pretrained_names(made.model))


def from_pretrained_names(model):
    return type(model)(model.config, model.coordinates).state_dict()


@pytest.mark.parametrize("mask", ["random", "future"])
def test_masks_are_drawn_on_the_host(study, tmp_path, mask):
    """The model's tables move with it; drawing must not need them, and gives what it would."""
    made = make_run(study, tmp_path, mask=mask, mask_ratio=0.5)
    picks = made.train_set.stream(0, 8)
    batch = made.train_set.batch(picks)
    alone = small_model("parcel", num_parcels=12, window=40, patch=10)
    drawn = alone(batch.signal, mask=mask, mask_ratio=0.5, noise=batch.noise).masking
    made.model.to("meta")  # as far from the host as a GPU
    again = made.train_set.batch(picks).masking
    for one in (batch.masking, again):
        assert one.visible == drawn.visible
        assert torch.equal(one.ids_shuffle, drawn.ids_shuffle)
        assert torch.equal(one.ids_restore, drawn.ids_restore)


def test_no_validation_recordings(study, tmp_path, capsys):
    alone = make_study(tmp_path, participants=7)
    run(alone, tmp_path / "out", epochs=1)
    assert "without validation" in capsys.readouterr().out


@pytest.mark.parametrize(("changes", "word"), [
    ({"model": config.Model(preset="tiny", window=100, patch=10)}, "the longest is"),
    ({"batch_size": 5, "micro_batch_size": 2}, "must be a multiple"),
    ({"gpus": 8}, "sees no GPU"),
    ({"batch_size": 64, "micro_batch_size": 64}, r"64\) is more than the 14 training recordings"),
    ({"learning_rate": 1e30, "warmup": 0.0}, "not finite"),
    ({"learning_rate": 10.0, "warmup": 0.0}, "update .*: the loss explodes"),
])  # fmt: skip
def test_bad_input(study, tmp_path, changes, word):
    if "gpus" in changes and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BrainLMError, match=word):
        run(study, tmp_path / "out", **changes)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_shards_of_another_atlas(study, tmp_path):
    from dataclasses import replace

    other = replace(study.atlas, name="other", image_sha256="b" * 64)
    with pytest.raises(BrainLMError, match="made with atlas toy"):
        pretrain(study.shards, study.scaling, tmp_path / "out", model=MODEL, options=options(),
                 atlas=other)  # fmt: skip


def test_a_finished_model_is_trained_on_from_its_weights_and_scaling(study, finished, tmp_path):
    given = MODEL.model_copy(update={"start": str(finished), "continue_training": True})
    out = run(study, tmp_path / "on", model=given, epochs=1)
    before, after = from_pretrained(finished), from_pretrained(out)
    assert after.config.preprocess == MADE and after.config.ranges
    np.testing.assert_array_equal(after.scaling.median, before.scaling.median)
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    with torch.no_grad():
        moved = [float((a - b).norm() / (a.norm() + 1e-9)) for a, b in pairs]
    assert max(moved) > 0 and np.median(moved) < 0.5  # it began there
    wider = given.model_copy(update={"patch": 20})
    with pytest.raises(BrainLMError, match=r"is of another shape: patch 10 \(here 20\)"):
        run(study, tmp_path / "other", model=wider)


def test_learning_rate_rises_and_falls():
    given = options(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate_at(step, 100, given) for step in range(100)]
    assert rates[9] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


# ---- fine-tuning ----------------------------------------------------------------------------


def tune(study, out, start, labels, kind="regression", **changes):
    given = config.Finetune(**{"epochs": 4, "batch_size": 4, "learning_rate": 1e-3, **changes})
    return finetune(start, study.shards, study.scaling, labels, out, target="age", kind=kind,
                    options=given, model=MODEL, atlas=study.atlas)  # fmt: skip


@pytest.mark.parametrize("scratch", [False, True])
def test_fine_tuning_predicts_everybody(study, finished, tmp_path, scratch):
    labels = study.labels.copy()
    labels.iloc[3] = np.nan
    table = tune(study, tmp_path / "out", None if scratch else finished, labels)
    assert len(table) == 20
    assert table["prediction"].notna().all()
    assert table["label"].isna().sum() == 1
    saved = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    pd.testing.assert_frame_equal(saved, table)
    assert list(saved.columns) == ["cohort", "participant_id", "recording_id", "split", "label",
                                   "prediction"]  # fmt: skip
    model = from_pretrained(tmp_path / "out")
    values, names = answer = model.predict(torch.randn(2, 12, 40))
    assert values.shape == (2, 1) and names == ("age",)
    assert float(answer.mean()) == pytest.approx(values.mean().item())
    assert model.config.ranges["label"][0] == pytest.approx(labels.iloc[:7].min(), abs=30)
    with pytest.raises(BrainLMError, match="no decoder"):
        model(torch.randn(2, 12, 40))


def test_label_transform_comes_from_training_subjects(study, finished, tmp_path):
    tune(study, tmp_path / "a", finished, study.labels, epochs=1)
    split = {f"sub-{i:03d}": i % 10 for i in range(20)}
    train = [v for (_, who), v in study.labels.items() if split[who] < 7]
    model = from_pretrained(tmp_path / "a")
    assert model.config.label_mean == pytest.approx(np.mean(train))
    assert model.config.label_std == pytest.approx(np.std(train))


def test_test_labels_change_nothing(study, finished, tmp_path):
    labels = study.labels.copy()
    labels.iloc[[9, 19]] = 1e6
    one = tune(study, tmp_path / "a", finished, study.labels, epochs=2)
    two = tune(study, tmp_path / "b", finished, labels, epochs=2)
    assert np.array_equal(one["prediction"], two["prediction"])


def test_classification(study, finished, tmp_path):
    labels = (study.labels > study.labels.median()).astype(float)
    table = tune(study, tmp_path / "two", finished, labels, kind="classification", epochs=2,
                 pool="cls")  # fmt: skip
    assert from_pretrained(tmp_path / "two").config.pool == "cls"
    assert set(table["prediction"]) <= {"0", "1"} and set(table["label"]) == {"0", "1"}
    assert table["probability_1"].between(0, 1).all()
    labels = pd.Series(np.arange(20) % 3, study.labels.index, dtype=float)
    table = tune(study, tmp_path / "three", finished, labels, kind="classification", epochs=1)
    assert set(table["prediction"]) <= {"0", "1", "2"}
    shares = table[["probability_0", "probability_1", "probability_2"]]
    np.testing.assert_allclose(shares.sum(axis=1), 1)


def test_the_head_learns_first(study, finished, tmp_path, monkeypatch):
    """Half of the epochs leave the encoder as it was: two heads learn from the same encodings, one
    that began at random and one that began as ridge regression."""
    kept = []

    def note(task, heads):
        kept.append(copy.deepcopy((task.model.state_dict(), [h.state_dict() for h in heads])))
        return [None] * len(heads)

    monkeypatch.setattr(FineTuning, "_held_out_losses", note)
    tune(study, tmp_path / "a", finished, study.labels, epochs=4)
    start = from_pretrained(finished).state_dict()
    same = [
        all(torch.equal(w[k], start[k]) for k in w if not k.startswith("head")) for w, _ in kept
    ]
    assert same == [True] * 3 + [False] * 2  # at their start and after each epoch, then all
    assert [len(heads) for _, heads in kept] == [2, 2, 2, 1, 1]
    (random, linear), (random_later, linear_later) = kept[0][1], kept[1][1]
    assert [bool(head["skip"].any()) for head in (random, linear)] == [False, True]
    assert not linear["6.weight"].any()
    for before, after in ((random, random_later), (linear, linear_later)):
        assert not torch.equal(before["skip"], after["skip"])
    assert from_pretrained(tmp_path / "a").config.pool == "connectivity"
    assert "correlations between" in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize("once", [False, True])
def test_interrupted_fine_tuning_resumes_bitwise(
    study, finished, tmp_path, monkeypatch, capsys, once
):
    """SIGTERM after every fifth batch: while the heads learn alone, and while all learns."""
    if once:  # or the epochs are too few to encode each of three windows once
        monkeypatch.setattr(finetuning, "WINDOWS_PER_RECORDING", 1)
    whole = tmp_path / "whole"
    tune(study, whole, finished, study.labels)
    save, count = FineTuning._save_in_time, 0

    def stop_soon(self, *arguments):
        nonlocal count
        count += 1
        if count % 5 == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        save(self, *arguments)

    monkeypatch.setattr(FineTuning, "_save_in_time", stop_soon)
    out, times = tmp_path / "out", 0
    while not (out / "done.json").exists():
        with contextlib.suppress(SystemExit):
            tune(study, out, finished, study.labels)
        times += 1
    assert times >= 4
    text = capsys.readouterr().out
    assert "resuming from batch" in text and "SIGTERM: saved in epoch 4" in text
    assert weights(out) == weights(whole)
    for name in ("predictions.parquet",):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    losses = [[(x["epoch"], x["split"], x["loss"]) for x in metrics(f)] for f in (out, whole)]
    assert losses[0] == losses[1]
    assert not saved(out)
    tune(study, out, finished, study.labels)
    assert "already fitted with these settings" in capsys.readouterr().out


def test_training_that_diverges_says_so(study, finished, tmp_path):
    with pytest.raises(BrainLMError, match="lower finetune"):
        tune(study, tmp_path / "a", finished, study.labels, learning_rate=1e30)


def test_a_model_of_another_sample_period(study, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "model")
    path = tmp_path / "model" / "scaling.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_period_s": 2.0}))
    with pytest.raises(BrainLMError, match=r"sample_period_s is 1\.0, the model's scaling has 2"):
        tune(study, tmp_path / "out", tmp_path / "model", study.labels)


def test_nobody_has_a_label(study, finished, tmp_path):
    with pytest.raises(BrainLMError, match="no training subject has both"):
        tune(study, tmp_path / "out", finished, study.labels * np.nan)
    with pytest.raises(BrainLMError, match="one class"):
        tune(study, tmp_path / "out", finished, study.labels * 0, kind="classification")


def test_fine_tuning_on_another_atlas(study, finished, tmp_path):
    """A model of 30 other parcels, known by their places, learns from this study's 12."""
    points = np.random.default_rng(1).uniform(-60, 60, (30, 3))
    model = preset("tiny", num_parcels=30, window=40, patch=10, coordinates=points,
                   learned_parcels=False)  # fmt: skip
    scaling = Scaling(np.zeros(30), np.ones(30), "other", "c" * 64, 1.0, 3)
    model.save_pretrained(tmp_path / "other", scaling)
    table = tune(study, tmp_path / "out", tmp_path / "other", study.labels, epochs=1)
    assert table["prediction"].notna().all()
    tuned = from_pretrained(tmp_path / "out")
    assert tuned.scaling.atlas == "toy" and len(tuned.coordinates) == 12
    model = preset("tiny", num_parcels=30, window=40, patch=10, coordinates=points)
    model.save_pretrained(tmp_path / "own", scaling)
    with pytest.raises(BrainLMError, match="knows the parcels of its own atlas only"):
        tune(study, tmp_path / "out", tmp_path / "own", study.labels)


@pytest.mark.parametrize("gpus", [0, 1])
def test_one_device_for_all(study, finished, tmp_path, monkeypatch, gpus):
    """With pretrain.gpus 0 nothing goes to a GPU though there is one."""
    monkeypatch.setattr(device, "_chosen", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda chosen: None)
    assert device.get_device() == torch.device("cuda")
    chosen = device.choose_device(config.Pretrain(gpus=gpus))
    assert chosen == (torch.device("cuda", 0) if gpus else torch.device("cpu"))
    assert device.get_device().type == ("cuda" if gpus else "cpu")
    if not gpus:
        tune(study, tmp_path / "out", finished, study.labels, epochs=1)


def test_recordings_are_predicted_alike_alone_and_together(study, finished, tmp_path):
    first = tune(study, tmp_path / "out", finished, study.labels, epochs=1)
    again = predict(tmp_path / "out", study.shards, tmp_path / "again.parquet")
    np.testing.assert_allclose(again["prediction"], first["prediction"], rtol=1e-5)
    model = from_pretrained(tmp_path / "out")
    corpus = Corpus(study.shards)
    rows = corpus.usable(min_timepoints=40)
    windows = Windows(corpus, model.scaling, 40, rows)
    alone = torch.cat([predict_recordings(model, windows, [row]) for row in rows])
    torch.testing.assert_close(predict_recordings(model, windows, rows), alone)


@pytest.mark.parametrize("name", ["tiny", "650m"])
def test_a_finished_model_is_of_its_configuration_whether_or_not_the_preset_filled_it_in(name):
    model, given = config.Model(preset=name), config.Pretrain()
    assert _of_config(model, given) == _of_config(model, given.of_preset(name))
    other = config.Pretrain(beta2=0.9)
    assert _of_config(model, given) != _of_config(model, other)


def test_a_frozen_encoder_sees_each_window_once(study, finished, tmp_path, monkeypatch):
    """The result is that of encoding in every epoch anew."""
    given = {"epochs": 14}
    embed, passes = BrainLM.summarise, []

    def count(model, *arguments):
        passes.append(torch.is_grad_enabled())
        return embed(model, *arguments)

    monkeypatch.setattr(BrainLM, "summarise", count)
    once = tune(study, tmp_path / "once", finished, study.labels, **given)
    scale = -(-14 // 4)  # batches that the head's scale is taken from
    assert passes.count(False) == scale
    monkeypatch.setattr(finetuning, "KEPT_BYTES", 0)
    passes.clear()
    anew = tune(study, tmp_path / "anew", finished, study.labels, **given)
    assert passes.count(False) == scale + 7 * scale
    np.testing.assert_allclose(once["prediction"], anew["prediction"], rtol=1e-3)


def test_fine_tuning_in_half_precision_follows_float32(study, finished, tmp_path, monkeypatch):
    """Predictions apart by a tenth of what the participants' labels spread, on average."""
    exact = tune(study, tmp_path / "exact", finished, study.labels, epochs=8)
    monkeypatch.setattr(device, "_precision", "bf16")
    half = tune(study, tmp_path / "half", finished, study.labels, epochs=8)
    apart = (half["prediction"] - exact["prediction"]).abs()
    assert 0 < apart.mean() < 0.1 * study.labels.std()
    losses = [metrics(tmp_path / name)[-1]["loss"] for name in ("exact", "half")]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
