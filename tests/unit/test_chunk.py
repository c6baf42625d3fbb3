"""The driver of a chunk, with stages that do nothing but go wrong in every way."""

import os
import signal
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from brainlm.atlas import Atlas
from brainlm.cohort.index import update_index
from brainlm.config import parse_config
from brainlm.errors import BrainLMError, RecordingError
from brainlm.preprocess.chunk import read_stage_table, run_stage
from brainlm.preprocess.collect import write_chunk_shard
from brainlm.preprocess.stages.context import Context
from brainlm.preprocess.summary import summarise_outcomes
from brainlm.shards import Corpus, read_info, read_shard
from brainlm.steps import STEPS

ATLAS = Atlas("toy", "toyspace", 3, None, "ab", None, ("a", "b", "c"), "", "")


def act(entry, context):
    """Do what the recording's file says, and leave a mark that it ran."""
    derivatives, word = context.derivatives, entry.path.read_text().split()[0]
    with open(derivatives.parent / "calls", "a") as calls:
        calls.write(f"{entry.recording_id}\n")
    if word == "short":
        reason = f"{entry.path}: 20.0 s found, 120 s needed"
        raise RecordingError("too_short", reason, duration_s=20.0)
    if word == "bug":
        raise ZeroDivisionError("a bug")
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "slow":
        with tempfile.TemporaryDirectory(dir=derivatives.parent, prefix="left-") as folder:
            program = subprocess.Popen(["sleep", "60"])
            (derivatives.parent / "program").write_text(str(program.pid))
            (Path(folder) / "large").write_text("x")
            program.wait()
            time.sleep(60)
    if word == "odd":
        raised = {"motion": ["orientation: the qform is used"], "denoise": ["ICA: not converged"]}
        stage = len(calls_of(derivatives, entry.recording_id))  # the stages run one by one
        return {"warnings": raised.get(("motion", "normalise", "denoise")[stage - 1], [])}
    if word == "wordy":
        raise RecordingError("bad_metadata", f"{entry.path}: {'much ' * 200} expected; correct it")
    if word == "broken":
        raise BrainLMError("x.json: not found; run the stage that writes it first")
    if word == "large":
        raise MemoryError
    return {"fd_mm": np.float32(0.25), "none": float("nan")}


def calls_of(derivatives: Path, recording: str) -> list[str]:
    return [
        line for line in (derivatives.parent / "calls").read_text().split() if line == recording
    ]


def write_series(entry, context):
    context.series.mkdir(parents=True, exist_ok=True)
    np.savez(
        context.series / f"{entry.recording_id}.npz",
        series=np.ones((4, 3), np.float32), coverage=np.ones(3), baseline=np.ones(3), tr_s=2.0,
        sample_period_s=1.0, duration_s=240.0, mean_fd_mm=0.1, mean_dvars=1.0, tsnr=50.0,
        units="percent",
    )  # fmt: skip
    return {"num_timepoints": 4}


@pytest.fixture
def study(tmp_path, monkeypatch):
    functions = {"motion": act, "normalise": act, "denoise": act, "parcellate": write_series}
    for name, function in functions.items():
        run = f"{__name__}:{function.__name__}"
        step = replace(STEPS[name], run=run, prepare="", makes=lambda options: ())
        monkeypatch.setitem(STEPS, name, step)
    folder, results = tmp_path / "bids", tmp_path / "results"
    for subject, word in enumerate(["ok", "short", "bug", "killed", "ok"]):
        func = folder / f"sub-{subject}" / "func"
        func.mkdir(parents=True)
        (func / f"sub-{subject}_bold.nii.gz").write_text(word)
    config = parse_config({
        "results": str(results), "chunks": {"recordings": 10},
        "cohorts": [{"name": "c", "folder": str(folder)}],
    })  # fmt: skip
    update_index(config.cohorts[0], results, 10)
    (results / "derivatives").mkdir(parents=True)
    return config


def run(config, stage="motion", **options):
    context = Context(config, config.cohorts[0], ATLAS)
    return run_stage(stage, "00000", context, workers=2, log=str, **options)


def calls(config) -> list[str]:
    path = config.results / "derivatives/calls"
    return sorted(path.read_text().split()) if path.exists() else []


def test_every_recording_ends_as_a_row(study):
    rows = {row["recording_id"]: row for row in run(study)}
    assert {k: v["status"] for k, v in rows.items()} == {
        "sub-0": "ok", "sub-1": "too_short", "sub-2": "crashed", "sub-3": "crashed", "sub-4": "ok",
    }  # fmt: skip
    assert rows["sub-1"]["duration_s"] == 20.0
    assert "ZeroDivisionError: a bug" in rows["sub-2"]["reason"]
    assert "SIGKILL" in rows["sub-3"]["reason"]
    table = read_stage_table(study.paths.stage_table("c", "00000", "motion"))
    assert [row["recording_id"] for row in table] == list(rows)
    assert table[0]["fd_mm"] == 0.25
    assert table[0]["none"] is None


def test_a_recording_over_its_time_limit_is_stopped(study):
    path = Path(study.cohorts[0].folder) / "sub-4/func/sub-4_bold.nii.gz"
    path.write_text("slow")
    short = study.preprocess.model_copy(update={"time_limit_min": 2 / 60})
    row = run(study.model_copy(update={"preprocess": short}))[4]
    assert row["status"] == "timeout"
    assert "longer than" in row["reason"]
    program = (study.results / "derivatives" / "program").read_text()
    state = ["ps", "-o", "stat=", "-p", program]  # the program that it called is gone too
    left = subprocess.run(state, capture_output=True, text=True).stdout.strip()
    assert not left or left.startswith("Z")
    assert not list((study.results / "derivatives").glob("left-*"))


def test_only_what_changed_is_computed_again(study):
    run(study)
    before = calls(study)
    run(study)
    assert calls(study) == before
    (Path(study.cohorts[0].folder) / "sub-0/func/sub-0_bold.nii.gz").write_text("ok replaced")
    update_index(study.cohorts[0], study.results, 10)
    run(study)
    assert calls(study) == sorted([*before, "sub-0"])
    run(study, retry_failed=True)
    killed = ["sub-3"] * 2  # once more, alone: it may have been another's memory
    assert calls(study) == sorted([*before, "sub-0", "sub-1", "sub-2", *killed])


def test_failures_pass_through_to_the_shard_and_the_summary(study):
    for stage in ("motion", "normalise", "denoise", "parcellate"):
        run(study, stage)
    described = study.cohorts[0].folder / "dataset_description.json"
    described.write_text('{"DatasetDOI": "doi:10.1/x"}')
    write_chunk_shard("00000", Context(study, study.cohorts[0], ATLAS), log=str)
    assert read_info(study.paths.shard("c", "00000")).extra == {"dataset.doi": "10.1/x"}
    rows = read_shard(study.paths.shard("c", "00000"))
    assert [r.status for r in rows] == ["ok", "too_short", "crashed", "crashed", "ok"]
    assert rows[1].duration_s == 20.0
    assert rows[0].series.shape == (4, 3)
    summary = summarise_outcomes(study)
    assert summary.counts["c"] == {"ok": 2, "crashed": 2, "too_short": 1}
    assert summary.failed_fraction == pytest.approx(2 / 5)
    assert "c: 5 recordings: 2 ok" in summary.text()  # without a participants table
    assert "c: 2 of the ok recordings have fewer than 200 time points" in summary.text()
    (study.cohorts[0].folder / "participants.tsv").write_text("participant_id\nsub-0\nsub-9\n")
    assert "c: 1 of 5 participants with recordings are in" in summarise_outcomes(study).text()
    reason = "sub-1/func/sub-1_bold.nii.gz: 20.0 s found, 120 s needed"  # not where it lies
    assert f"sub-1\ttoo_short\t{reason}" in summary.failures.read_text()


def test_warnings_of_all_stages_reach_the_shard_and_the_summary(study):
    for number, word in enumerate(("odd", "ok", "odd")):
        path = Path(study.cohorts[0].folder) / f"sub-{number}/func/sub-{number}_bold.nii.gz"
        path.write_text(f"{word} anew")
    update_index(study.cohorts[0], study.results, 10)
    for stage in ("motion", "normalise", "denoise", "parcellate"):
        run(study, stage)
    write_chunk_shard("00000", Context(study, study.cohorts[0], ATLAS), log=str)
    path = study.paths.shard("c", "00000")
    odd = ["orientation: the qform is used", "ICA: not converged"]
    assert [row.warnings for row in read_shard(path)] == [odd, None, odd, None, None]
    assert Corpus([path]).table["warnings"][0].tolist() == odd
    summary = summarise_outcomes(study)
    assert "recordings with warnings: orientation: 2; ICA: 2" in summary.text()
    table = study.paths.summary.read_text()
    assert "c\tok\t4\torientation: 2; ICA: 2\n" in table and "c\tcrashed\t1\tn/a\n" in table


def test_shards_of_before_the_column_of_warnings_are_read(study, tmp_path):
    for stage in ("motion", "normalise", "denoise", "parcellate"):
        run(study, stage)
    write_chunk_shard("00000", Context(study, study.cohorts[0], ATLAS), log=str)
    new, old = study.paths.shard("c", "00000"), tmp_path / "old.parquet"
    pq.write_table(pq.read_table(new).drop_columns(["warnings"]), old)
    assert len(read_shard(old)) == 5 and read_shard(old)[0].warnings is None
    assert len(Corpus([old]).table) == 5 and len(Corpus([old, new]).table) == 10


@pytest.mark.parametrize(
    ("word", "status", "start", "end"),
    [
        ("wordy", "bad_metadata", "sub-0/func/sub-0_bold.nii.gz: much", "expected; correct it"),
        ("broken", "missing_input", "x.json: not found", "that writes it first"),
        ("large", "crashed", "out of memory", "exclude the recording"),
    ],
)
def test_a_reason_is_one_short_line_that_says_what_to_do(study, word, status, start, end):
    (Path(study.cohorts[0].folder) / "sub-0/func/sub-0_bold.nii.gz").write_text(word)
    row = run(study)[0]
    assert row["status"] == status and len(row["reason"]) <= 300
    assert row["reason"].startswith(start) and row["reason"].endswith(end)


def test_what_a_step_lacked_is_looked_for_again(study):
    file = Path(study.cohorts[0].folder) / "sub-0/func/sub-0_bold.nii.gz"
    file.write_text("broken")
    before = file.stat()
    assert run(study)[0]["status"] == "missing_input"
    file.write_text("ok    ")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(study)[0]["status"] == "ok"  # the same recording: nothing of it is in the cache
    assert len(calls_of(study.results / "derivatives/c", "sub-0")) == 2


def test_excluded_recordings_are_listed_with_their_reason(study, tmp_path):
    (tmp_path / "exclude.tsv").write_text("recording_id\treason\nsub-0\tartefact seen\n")
    cohort = study.cohorts[0].model_copy(update={"exclude": tmp_path / "exclude.tsv"})
    config = study.model_copy(update={"cohorts": (cohort,)})
    row = run(config)[0]
    assert (row["status"], row["reason"]) == ("excluded", "artefact seen")
    assert "sub-0" not in calls(study)
