"""What the participant who runs it every night sees: progress, summaries, exit codes, and hostile
conditions. A small cohort of parcel series goes through for real."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from runs import make_clone, make_series, snakemake

from brainlm.config import load_config, parse_config
from brainlm.doctor import examine_setup
from brainlm.evaluation.job import Job
from brainlm.evaluation.tasks import tasks_of
from brainlm.paths import ModelFolder, Results
from brainlm.progress import Record, read_record, write_record
from brainlm.status import read_status
from brainlm.training.journal import Journal

CONFIG = """
results: results
cohorts:
  - {name: c, folder: "ein Ordner ü/c", layout: parcels}
atlas: {name: demo424, folder: atlas}
chunks: {recordings: 6}
tasks: []
max_failed_fraction: 0.2
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Twelve participants in two chunks, one with NaN; up to the shards and the summary."""
    clone = make_clone(tmp_path_factory.mktemp("operations") / "clone")
    (clone / "config.yaml").write_text(CONFIG)
    make_series(clone / "ein Ordner ü/c", 12)
    spoil(clone, "sub-03")
    done = run(clone)
    assert done.returncode == 0, done.stderr[-4000:]
    return clone, done.stderr


def spoil(clone: Path, name: str) -> None:
    path = next((clone / f"ein Ordner ü/c/{name}").rglob("*.npy"))
    series = np.load(path)
    series[50, 7] = np.nan
    np.save(path, series)


def run(clone: Path, *options: str):
    return snakemake(clone, "--", "results/summary.tsv") if not options else snakemake(
        clone, *options)  # fmt: skip


@pytest.fixture
def clone(finished, tmp_path) -> Path:
    folder = tmp_path / "clone"
    shutil.copytree(finished[0], folder)  # copy2: times are kept
    return folder


def status_of(clone: Path):
    config = load_config(clone / "config.yaml")
    absolute = config.model_copy(update={"results": clone / "results"})
    return read_status(absolute, clone)


def test_a_run_ends_with_counts_and_the_table_of_failures(finished):
    clone, said = finished
    assert "c: 12 recordings: 11 ok, 1 bad_data" in said
    assert "what failed and why: results/failures.tsv" in said
    assert "progress: chunks " in said
    assert "sub-03_task-rest\tbad_data" in (clone / "results/failures.tsv").read_text()


def test_status_answers_from_the_files(finished):
    status = status_of(finished[0])
    text = status.text()
    assert "c: found 12, done 12 (ok 11), chunks 2/2" in text
    assert "failed: 1 bad_data" in text
    assert "next: release r1, pretrain, embed c, report" in text
    assert "no snakemake is running" in text


def test_status_tells_of_the_last_run_whatever_its_configuration_file(
    tmp_path, monkeypatch, capsys
):
    """As after `make demo`, whose cohort is not the one in config.yaml."""
    from brainlm.cli import main

    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("cohorts: [{name: study, folder: bids}]\ntasks: []\n")
    demo = parse_config({"cohorts": [{"name": "demo", "folder": "data/demo"}], "tasks": []})
    assert main(["status"]) == 0
    assert "study: found 0" in capsys.readouterr().out
    demo.paths.config.parent.mkdir(exist_ok=True)
    demo.paths.config.write_text(demo.model_dump_json())
    assert main(["status"]) == 0
    said = capsys.readouterr().out
    assert "demo: found 0" in said and "study: " not in said and "results/config.json" in said
    assert main(["status", "--config", "config.yaml"]) == 0
    assert "study: found 0" in capsys.readouterr().out


def test_status_of_a_run_that_is_under_way(clone):
    results = clone / "results"
    (results / "work/c/00001/series.tsv").unlink()
    (results / "shards/c/00001.parquet").unlink()
    (clone / ".snakemake/locks").mkdir(exist_ok=True)
    lock = clone / ".snakemake/locks/0.input.lock"
    lock.touch()
    ago = time.time() - 60
    os.utime(lock, (ago, ago))
    record = Results(results).chunk_record("series", "c", "00001")
    assert read_record(record, 0.0) == Record("series", 6, 6)  # of the run that made it
    write_record(record, Record("series", 0, 6), first=True)
    write_record(record, Record("series", 4, 6))
    with open(record, "a") as handle:
        handle.write('{"stage": "series", "do')  # not whole yet
    status = status_of(clone)
    assert "running: 00001 series 4/6" in status.text()
    assert "recordings 6/12" in status.line()
    assert "now 1 series" in status.line()
    # 4 steps of this run, and the other chunk's 6 if its table is newer than the lock
    assert status.rate() == pytest.approx(sum(c.steps_now for c in status.cohorts) / 60, rel=0.1)


def test_status_says_how_far_every_job_after_the_shards_is(clone, monkeypatch):
    tasks = clone / "config.yaml"
    tasks.write_text(tasks.read_text().replace("tasks: []", "tasks: [age, reconstruction, sizes]"))
    for name, text in {
        "age": "{kind: regression, target: age, seeds: [3, 4]}",
        "sizes": "{kind: scaling, presets: [tiny], shares: [0.5], seeds: [1]}",
    }.items():
        (clone / f"{name}.yaml").write_text(text)
    tasks.write_text(tasks.read_text().replace("age,", "age.yaml,").replace("sizes", "sizes.yaml"))
    (clone / ".snakemake/locks").mkdir(exist_ok=True)
    (clone / ".snakemake/locks/0.input.lock").touch()
    monkeypatch.chdir(clone)
    config = load_config("config.yaml")
    paths = Results(clone / "results", config.release)
    for folder, done in (
        (paths.pretrained, 7), (paths.fit("finetune", "age", 3), 2),
        (paths.fit("scratch", "age", 4), 1), (paths.sweep("tiny", 0.5, 1), 90),
    ):  # fmt: skip
        journal = Journal(ModelFolder(folder).metrics, "", quiet=False)
        journal.progress(done - 1, 90, "before", force=True)
        journal.progress(done, 90, f"{done}/90 ETA 0:37", force=True)
    for name, done in (("age", 0), ("reconstruction", 4)):
        job = Job(tasks_of(config)[name], config, paths.pretrained, [], paths.table(name))
        job.count(4, "fits")(done)
    text = status_of(clone).line()
    assert "now pretrain: 7/90 ETA 0:37; finetune age, seed 3: 2/90 ETA 0:37; " in text
    assert "; finetune age, from scratch, seed 4: 1/90 ETA 0:37; evaluate age: 0/4 fits" in text
    assert "sweep" not in text and "reconstruction" not in text  # they are through
    paths.table("age").touch()
    assert "evaluate age" not in status_of(clone).line()


def test_more_failures_than_allowed_end_with_an_error_and_everything_else_done(clone):
    for name in ("sub-01", "sub-02", "sub-04"):
        spoil(clone, name)
    done = run(clone)
    assert done.returncode != 0
    assert "4 bad_data" in done.stderr
    assert "33% of the recordings failed, max_failed_fraction is 20%" in done.stdout + done.stderr
    assert len(list((clone / "results/shards/c").glob("?????.parquet"))) == 2


def test_clock_skew_and_touched_tables_repeat_nothing(clone):
    ahead = time.time() + 86_400
    for path in clone.glob("results/index/c/chunks/*.tsv"):
        os.utime(path, (ahead, ahead))
    assert "Nothing to be done" in run(clone).stderr


def test_a_second_snakemake_says_so_and_leaves(clone):
    spoil(clone, "sub-05")
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "results/summary.tsv"]
    first = subprocess.Popen(
        command, cwd=clone, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        locks = clone / ".snakemake/locks"
        until(lambda: first.poll() is not None or any(locks.glob("*.lock")))
        assert first.poll() is None
        second = run(clone)
        assert second.returncode != 0
        assert "cannot be locked" in second.stdout + second.stderr
    finally:
        assert first.wait(300) == 0


def test_what_a_killed_run_left_on_the_cluster_ends_before_the_plan_is_made(
    clone, tmp_path, monkeypatch
):
    """A job that is cancelled takes away what it had made, also what the plan counted on."""
    series, shard = (
        clone / "results/work/c/00001/series.tsv",
        clone / "results/shards/c/00001.parquet",
    )
    shard.unlink()
    queue = tmp_path / "queue"
    queue.write_text(f"7|brainlm-c|{clone}\n8|other|{clone}\n9|brainlm-c|/elsewhere\n")
    commands = {
        "squeue": f'cat "{queue}"',
        "scancel": f'echo "$@" >> "{tmp_path}/cancelled"; sed -i /^7/d "{queue}"; rm "{series}"',
    }
    for name, line in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    done = run(clone, str(shard.relative_to(clone)))
    assert done.returncode == 0, done.stderr[-4000:]
    assert "cancelling 1 jobs left by an earlier run\nplanning again" in done.stderr
    assert (tmp_path / "cancelled").read_text() == "7\n"
    assert series.exists() and shard.exists()


def until(ready, seconds: float = 300.0) -> None:
    for _ in range(int(20 * seconds)):
        if ready():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def test_doctor_says_what_is_missing_and_what_to_do(clone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(clone / "config.yaml")
    results = config.model_copy(update={"results": clone / "results"})
    found = {finding.name: finding for finding in examine_setup(results, clone)}
    assert found["environment"].ok
    assert found["results"].ok
    assert found["cohort c"].ok is False
    assert "is the disk mounted" in str(found["cohort c"])  # relative to another folder: not there


@pytest.mark.parametrize(("partition", "ok"), [("gpu", None), ("", True)])
def test_doctor_says_that_a_gpu_partition_is_named_and_no_gpu_asked_for(
    tmp_path, monkeypatch, partition, ok
):
    monkeypatch.setenv("BRAINLM_GPU_PARTITION", partition)
    cohort = {"name": "c", "folder": str(tmp_path), "layout": "parcels"}
    values = {"results": str(tmp_path), "cohorts": [cohort]}
    found = {f.name: f for f in examine_setup(parse_config(values, "config.yaml"), tmp_path)}[
        "GPU"
    ]
    assert found.ok is ok
    assert ("set pretrain.gpus: 1" in str(found)) == (ok is None)
