"""The cluster for real: `snakemake --cores all --profile slurm` on a SLURM of two nodes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from local_slurm import LocalSlurm, why_not
from runs import link_data, make_clone, snakemake

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def slurm():
    reason = why_not()
    if reason:
        pytest.skip(reason)
    # munged wants a socket that everybody can reach, on a short path
    with tempfile.TemporaryDirectory(prefix="brainlm-slurm-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        with LocalSlurm(Path(folder) / "s") as cluster:
            os.environ.update(BRAINLM_POLL="5", BRAINLM_CHUNK_CPUS="1", BRAINLM_JOBS="20")
            yield cluster


def digests(folder: Path, pattern: str) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob(pattern))
    }


def small_clone(folder: Path, simulated: Path) -> Path:
    """The study with four people: enough to go through every rule."""
    clone = make_clone(folder)
    link_data(simulated, clone)
    for path in (clone / "bids").glob("sub-*"):
        if path.name not in ("sub-01", "sub-02", "sub-03", "sub-04"):
            subprocess.run(["rm", "-r", str(path)], check=True)
    config = clone / "config.yaml"
    config.write_text(config.read_text().replace("recordings: 8", "recordings: 2"))
    return clone


@pytest.fixture(scope="module")
def undisturbed(simulated, tmp_path_factory) -> Path:
    """The same study without a cluster."""
    clone = small_clone(tmp_path_factory.mktemp("local") / "clone", simulated)
    done = snakemake(clone)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return clone


def test_the_whole_pipeline_gives_the_same_bytes_on_slurm(
    slurm, simulated, undisturbed, tmp_path_factory
):
    clone = small_clone(tmp_path_factory.mktemp("cluster") / "clone", simulated)
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "all", "--profile", "slurm"],
        cwd=clone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    _kill_when_jobs_run(process, clone)
    unlock = snakemake(clone, "--unlock")
    assert unlock.returncode == 0, unlock.stderr
    done = snakemake(clone, "--profile", "slurm")
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    ours, theirs = clone / "results/shards", undisturbed / "results/shards"
    assert digests(ours, "*.parquet") == digests(theirs, "*.parquet")
    assert digests(clone / "results/models", "*.safetensors") == digests(
        undisturbed / "results/models", "*.safetensors"
    )
    assert not list((clone / "results").rglob("*.tmp*"))
    assert (clone / "results/report/index.html").exists()
    queue = subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout
    assert queue == ""


def _kill_when_jobs_run(process: subprocess.Popen, clone: Path) -> None:
    """SIGKILL Snakemake while its cluster jobs are running: they live on as orphans."""
    for _ in range(600):
        running = subprocess.run(
            ["squeue", "-h", "-t", "R"], capture_output=True, text=True, check=False
        ).stdout
        if running.strip():
            break
        assert process.poll() is None, process.stdout.read()[-3000:]
        time.sleep(0.2)
    time.sleep(3)
    process.send_signal(signal.SIGKILL)
    process.wait()
