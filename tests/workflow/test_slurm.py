"""The cluster for real: `snakemake --cores all --profile slurm` on a SLURM of two nodes."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from local_slurm import LocalSlurm, describe_missing
from runs import link_data, make_clone, make_series, snakemake

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]  # alone each takes two minutes

MODEL = "results/models/r1/pretrain/model.safetensors"
SERIES = """
results: results
cohorts:
  - {name: c, folder: series, layout: parcels}
atlas: {name: demo424, folder: atlas}
chunks: {recordings: 12}
model: {preset: tiny, window: 60, patch: 20}
pretrain: {epochs: 4, batch_size: 8, micro_batch_size: 4, cpus: 1}
tasks: []
"""


@pytest.fixture(scope="module")
def slurm():
    reason = describe_missing()
    if reason:
        pytest.skip(reason)
    # munged wants a socket that everybody can reach, on a short path
    with tempfile.TemporaryDirectory(prefix="brainlm-slurm-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        with LocalSlurm(Path(folder) / "s") as cluster:
            os.environ.update(BRAINLM_POLL="5", BRAINLM_CHUNK_CPUS="1", BRAINLM_JOBS="20")
            yield cluster


def digests(folder: Path, *patterns: str) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for pattern in patterns
        for p in sorted(folder.rglob(pattern))
    }


def made(clone: Path) -> dict[str, str]:
    return digests(clone / "results", "shards/**/*.parquet", "models/**/model.safetensors")


def start(clone: Path, *options: str) -> subprocess.Popen:
    (clone / "home").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "all", *options, "--profile", "slurm"],
        cwd=clone, env={**os.environ, "HOME": str(clone / "home")},
        stdout=open(clone / "said", "ab"), stderr=subprocess.STDOUT,
    )  # fmt: skip


def said(clone: Path) -> str:
    return (clone / "said").read_text(errors="replace")


def jobs(clone: Path) -> list[dict[str, str]]:
    """What SLURM knows of the jobs of a folder, the oldest first."""
    text = subprocess.run(["scontrol", "-o", "show", "job"], capture_output=True, text=True,
                          check=False).stdout  # fmt: skip
    found = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in text.splitlines()]
    mine = [job for job in found if job.get("WorkDir") == str(clone)]
    return sorted(mine, key=lambda job: int(job["JobId"]))


def until(ready, seconds: float = 600.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = ready()
        if found:
            return found
        time.sleep(0.2)
    queue = subprocess.run(["scontrol", "-o", "show", "job"], capture_output=True, text=True,
                           check=False).stdout.splitlines()  # fmt: skip
    left = [job for job in queue if "JobState=COMPLETED" not in job]
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_text().replace("\0", " ")
            if command:
                left.append(f"{entry.name} {command[:300]}")
    raise AssertionError("\n".join([f"it did not happen in {seconds:g} s; there are", *left]))


# ---- raw images to the report


def test_the_whole_pipeline_gives_the_same_bytes_on_slurm(slurm, simulated, tmp_path):
    """Four participants through every rule, with a cluster and without."""
    clones = []
    for name in ("cluster", "local"):
        clone = make_clone(tmp_path / name)
        link_data(simulated, clone)
        kept = ("sub-01", "sub-02", "sub-03", "sub-04", "sub-101", "sub-102")
        for path in (*clone.glob("bids/sub-*"), *clone.glob("series/sub-*")):
            if path.name not in kept:
                shutil.rmtree(path)
        config = clone / "config.yaml"
        text = config.read_text().replace("recordings: 8", "recordings: 2")
        config.write_text(text.replace("batch_size: 4, micro_batch_size: 4",
                                       "batch_size: 2, micro_batch_size: 2"))  # fmt: skip
        clones.append(clone)
    process = start(clones[0])
    done = snakemake(clones[1])
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert process.wait(900) == 0, said(clones[0])[-5000:]
    assert made(clones[0]) == made(clones[1])
    assert (clones[0] / "results/report/index.html").exists()


# ---- parcel series to a model: what is done to the jobs is the test


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> Path:
    """A clone with two chunks of participants, not run yet."""
    clone = make_clone(tmp_path_factory.mktemp("series") / "clone")
    (clone / "config.yaml").write_text(SERIES)
    make_series(clone / "series", 24)
    return clone


@pytest.fixture(scope="module")
def undisturbed(series, tmp_path_factory) -> Path:
    clone = tmp_path_factory.mktemp("undisturbed") / "clone"
    shutil.copytree(series, clone)
    done = snakemake(clone, MODEL)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return clone


def test_a_job_over_its_memory_limit_is_tried_again_with_more(slurm, series, tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(series, clone)
    (clone / "sitecustomize.py").write_text(
        "import sys, time, brainlm.resources\n"
        "brainlm.resources._memory = lambda stage, largest: 250\n"
        "if sys.orig_argv[2:3] == ['series']:\n"  # needs more, for longer than SLURM looks away
        "    held = b'x' * 200_000_000\n"
        "    time.sleep(4)\n"
    )
    paths = os.pathsep.join([str(clone), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)
        process = start(clone, "results/shards/c/00000.parquet")
        assert process.wait(600) == 0, said(clone)[-5000:]
    asked = [job["MinMemoryNode"] for job in jobs(clone)]
    states = [job["JobState"] for job in jobs(clone)]
    assert asked[:2] == ["250M", "500M"]
    assert states[0] in ("FAILED", "OUT_OF_MEMORY") and states[-1] == "COMPLETED"
    assert (clone / "results/shards/c/00000.parquet").exists()


def test_a_gpu_job_asks_for_what_study_and_site_say(slurm, undisturbed, tmp_path, monkeypatch):
    """In a partition of a four-hour limit, whose node is down. The quality of service is taken;
    SLURM names it only where it has a database of accounts (what is submitted: test_plan.py)."""
    clone = tmp_path / "clone"
    shutil.copytree(undisturbed, clone)
    shutil.rmtree(clone / "results/models")
    text = (clone / "config.yaml").read_text()
    (clone / "config.yaml").write_text(text.replace(", cpus: 1", ", gpus: 2, hours: 3.5"))
    site = {"PARTITION": "gpu", "TYPE": "h100", "CONSTRAINT": "hopper", "QOS": "long"}
    for key, value in site.items():
        monkeypatch.setenv(f"BRAINLM_GPU_{key}", value)
    process = start(clone, MODEL)
    try:
        until(lambda: jobs(clone) or process.poll() is not None)
        assert jobs(clone), said(clone)[-5000:]
    finally:
        process.kill()
    (job,) = jobs(clone)
    subprocess.run(["scancel", job["JobId"]], check=True)
    assert job.items() >= {
        "JobState": "PENDING", "Partition": "gpu", "TimeLimit": "03:30:00", "Features": "hopper"
    }.items()  # fmt: skip
    assert job["NumCPUs"].startswith("24")  # twelve for each GPU
    assert re.fullmatch(r"gres.gpu:h100[:=]2", job["TresPerJob"]), job


def test_training_on_two_nodes_is_preempted_and_resumes_exactly(slurm, undisturbed, tmp_path):
    clones = [tmp_path / "whole", tmp_path / "preempted"]
    for clone in clones:
        shutil.copytree(undisturbed, clone)
        shutil.rmtree(clone / "results/models")
        text = (clone / "config.yaml").read_text()
        (clone / "config.yaml").write_text(
            text.replace("epochs: 4", "nodes: 2, epochs: 24, checkpoint_every_min: 60")
        )
    running = [start(clone, MODEL) for clone in clones]
    log = clones[1] / "results/models/r1/pretrain/metrics.jsonl"
    until(lambda: log.exists() and log.read_text().count("train") > 0)
    (job,) = [job["JobId"] for job in jobs(clones[1]) if job["JobState"] == "RUNNING"]
    subprocess.run(["scontrol", "requeue", job], check=True)
    until(lambda: jobs(clones[1])[-1]["JobState"] == "PENDING")
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    for clone, process in zip(clones, running, strict=True):
        assert process.wait(900) == 0, said(clone)[-5000:]
    text = (clones[1] / "results/logs/pretrain/r1.log").read_text()
    assert "resuming from update" in text  # where SIGTERM saved: the next checkpoint was far away
    assert [job["Restarts"] for job in jobs(clones[1])][-1] == "1"
    assert jobs(clones[0])[-1]["NumNodes"] == "2"
    whole, preempted = (digests(c / "results", "models/**/model.safetensors") for c in clones)
    assert whole == preempted


def test_twenty_kills_at_random_moments_change_nothing(slurm, series, undisturbed, tmp_path):
    """SIGKILL of Snakemake, of what a job runs and of SLURM's step daemon; all ends the same."""
    clone = tmp_path / "clone"
    shutil.copytree(series, clone)
    dice, process = random.Random(7), None
    in_jobs = dice.sample(["step", "worker", "stepd"], counts=[4, 4, 2], k=10)
    # A kill of Snakemake goes with each: a new one submits at once what the old one would have
    # noticed at its next look at the queue, and those become rare.
    pairs = [dice.sample([kind, "main"], 2) for kind in in_jobs[:-1]] + [[in_jobs[-1], "main"]]
    for kind in itertools.chain(*pairs):
        process, pid, job = meet(kind, clone, undisturbed, process, dice)
        with contextlib.suppress(ProcessLookupError):  # it ended in this very moment
            os.kill(pid, signal.SIGKILL)
        print(f"{time.monotonic():.1f} s: {kind} of job {job or '-'}")  # shown if it fails
        if kind == "stepd":
            requeue(job)
        elif kind == "main":
            process.wait()
            unlock(clone)
            process = None
    assert start(clone, MODEL).wait(900) == 0, said(clone)[-5000:]
    until(lambda: is_quiet(clone))
    assert made(clone) == made(undisturbed)
    assert not list((clone / "results").rglob("*.tmp*"))


def meet(kind: str, clone: Path, undisturbed: Path, process, dice: random.Random):
    """Run until there is a victim, and a random while longer: (Snakemake, its pid, its job)."""

    def victims() -> list[tuple[int, str]]:
        return [(process.pid, "")] if kind == "main" else find_processes(clone, kind)

    def is_over() -> bool:
        return process.poll() is not None

    for _ in range(20):
        process = process or start(clone, MODEL)
        until(lambda: is_over() or victims())
        time.sleep(dice.uniform(0.0, 3.0))
        found = victims()
        if not is_over() and found:
            return process, *dice.choice(found)
        if is_over():  # it gave a job up, or came to its end: once more
            if (clone / MODEL).exists():
                until(lambda: is_quiet(clone))
                assert made(clone) == made(undisturbed)
                shutil.rmtree(clone / "results/models")
            process = None
    raise AssertionError(f"no {kind} to kill\n{said(clone)[-5000:]}")


def requeue(job: str) -> None:
    """What SLURM does when it misses the daemon, at the node's next registration."""
    subprocess.run(["scontrol", "requeue", job], check=False)  # fails if the job ended just now
    until(lambda: state_of(job) != "COMPLETING")
    if state_of(job) == "PENDING":
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)


def state_of(job: str) -> str:
    text = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True,
                          check=True).stdout  # fmt: skip
    return re.search(r"JobState=(\w+)", text)[1]


def unlock(clone: Path) -> None:
    if not (clone / "unlocked").exists():
        assert snakemake(clone, "--unlock").returncode == 0
        (clone / "unlocked").touch()
    for lock in (clone / ".snakemake/locks").glob("*.lock"):
        lock.unlink()  # what --unlock does, without seconds of Python


def is_quiet(clone: Path) -> bool:
    queue = subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout
    return not queue and not any(find_processes(clone, kind) for kind in ("step", "worker"))


def find_processes(clone: Path, kind: str) -> list[tuple[int, str]]:
    """Process and job of the Snakemakes inside jobs ("step"), of the programs that they run
    ("worker"), or of the daemons of SLURM above them ("stepd")."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not entry.name.isdigit() or os.readlink(entry / "cwd") != str(clone):
                continue
            job = re.search(rb"\0SLURM_JOB_ID=(\d+)", (entry / "environ").read_bytes())
            if not job:
                continue
            command = (entry / "cmdline").read_text().split("\0")
            parent = re.search(r"PPid:\s+(\d+)", (entry / "status").read_text())[1]
            is_kind = {
                "step": "snakemake" in command,
                "worker": any(part.endswith("/brainlm") for part in command[:2]),
                "stepd": "slurmstepd" in Path(f"/proc/{parent}/comm").read_text(),
            }
            if is_kind[kind]:
                found.add((int(parent if kind == "stepd" else entry.name), job[1].decode()))
    return sorted(found)
