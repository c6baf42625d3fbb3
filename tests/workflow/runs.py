"""How the slow tests run the workflow: as a user does, from a clone's root, with an empty home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from fakes import write_parcel_run

ROOT = Path(__file__).resolve().parents[2]
DAMAGE = {"03": "truncated", "05": "short", "07": "no_tr", "08": "nan_volume"}
CONFIG = """
results: results
release: r1
cohorts:
  - {name: raw, folder: bids, layout: bids, role: reference}
  - {name: other, folder: series, layout: parcels, role: external}
atlas: {name: demo424, folder: atlas}
chunks: {recordings: 8}
model: {preset: tiny, window: 60, patch: 20}
pretrain: {epochs: 3, batch_size: 4, micro_batch_size: 4, cpus: 2}
tasks: [reconstruction, age.yaml]
finetune: {epochs: 2, batch_size: 4}
evaluate: {bootstrap: 200}
max_failed_fraction: 0.5
"""


def make_clone(folder: Path) -> Path:
    """The files of a clone that a run needs; the package itself is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("workflow", "rules", "slurm", "envs"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "age.yaml").write_text("{kind: regression, target: age, seeds: [1]}")
    return folder


def snakemake(folder: Path, *options: str, timeout: int = 1500) -> subprocess.CompletedProcess:
    """Exactly as a user runs it, from the clone's root, with an empty home."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("XDG_")}
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "all", *options],
        cwd=folder, env={**environment, "HOME": str(home)},
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def link_data(simulated: Path, clone: Path) -> None:
    for name in ("bids", "series"):
        shutil.copytree(simulated / name, clone / name)


def make_series(folder: Path, count: int, *, first: int = 1, seed: int = 7) -> Path:
    """A cohort of parcel series of the demo atlas: smooth noise with networks, seconds to make."""
    random = np.random.default_rng(seed)
    networks = random.standard_normal((8, 424))
    for number in range(first, first + count):
        sources = np.cumsum(random.standard_normal((240, 8)), axis=0)
        sources -= np.linspace(sources[0], sources[-1], 240)
        series = sources @ networks + 3 * random.standard_normal((240, 424))
        write_parcel_run(folder, f"sub-{number:02d}_task-rest", series.astype(np.float32))
    return folder
