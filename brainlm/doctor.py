"""``brainlm doctor``: what this machine lacks for this configuration, and what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from . import templateflow
from .config import Config
from .errors import BrainLMError
from .files import write_text
from .progress import running_since
from .steps import needs_template

#: What a recording leaves in results/, MB (docs/scaling.md, "Disk"); to judge the free space.
MB_PER_RECORDING = {"motion": 8.0, "volumes": 2.0, "series": 2.0}
_PACKAGES = ("snakemake", "snakemake-executor-plugin-slurm", "numpy", "numba", "nibabel",
             "pyarrow", "torch")  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One check: `ok` is True, False (the run would fail) or None (worth knowing)."""

    name: str
    ok: bool | None
    found: str
    advice: str = ""

    def __str__(self) -> str:
        mark = {True: "ok  ", False: "FAIL", None: "note"}[self.ok]
        return f"{mark} {self.name}: {self.found}" + (f"; {self.advice}" if self.advice else "")


def examine_setup(config: Config, folder: Path = Path()) -> Iterator[Finding]:
    """Check everything that this configuration needs; `folder` is where Snakemake runs."""
    checks: tuple[Callable[..., Iterator[Finding]], ...] = (
        _environment, _cohorts, _atlas, _template, _results, _fsl, _gpu, _loader, _slurm,
        _deployment,
    )  # fmt: skip
    for check in checks:
        yield from check(config)
    yield from _lock(folder)


def _environment(config: Config) -> Iterator[Finding]:
    versions, missing = [f"Python {sys.version.split()[0]}"], []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding(
            "environment", False, f"not installed: {', '.join(missing)}", "run: make env"
        )
    else:
        yield Finding("environment", True, ", ".join(versions))
    cores = len(os.sched_getaffinity(0))
    yield Finding("cores", True, f"{cores} for this process")


def _cohorts(config: Config) -> Iterator[Finding]:
    for cohort in config.cohorts:
        name = f"cohort {cohort.name}"
        try:
            count = len(os.listdir(cohort.folder))
        except OSError as error:
            advice = "set its folder in config.yaml; is the disk mounted?"
            yield Finding(name, False, f"{cohort.folder}: {error.strerror}", advice)
        else:
            yield Finding(name, True, f"{cohort.folder}: {count} entries, watch {cohort.watch}")


def _atlas(config: Config) -> Iterator[Finding]:
    from .atlas import load_atlas

    try:
        atlas = load_atlas(config.atlas.name, config.atlas.folder, download=False)
    except BrainLMError as error:
        advice = "the first run downloads it, if this machine has a network"
        yield Finding("atlas", None, str(error), advice)
    else:
        text = f"{atlas.name}: {atlas.num_parcels} parcels, space {atlas.space}, checksums right"
        yield Finding("atlas", True, text)


def _template(config: Config) -> Iterator[Finding]:
    if not needs_template(config):
        return
    try:
        t1w, _ = templateflow.get_files(download=False)
    except BrainLMError as error:
        advice = "the next run does so too, if this machine has a network"
        yield Finding("template", None, str(error), advice)
    else:
        yield Finding("template", True, f"{templateflow.SPACE}: {t1w.parent}, checksums right")


def _results(config: Config) -> Iterator[Finding]:
    from .cohort.layouts import LAYOUTS

    probe = config.results / ".doctor"
    try:
        write_text(probe, "")
        probe.unlink()
    except OSError as error:
        advice = "choose another folder (results:) or get permission to write there"
        yield Finding("results", False, f"{config.results}: {error.strerror}", advice)
        return
    need, known = 0.0, 0
    for cohort in config.cohorts:
        state = config.paths.index(cohort.name)
        count = state.read_bytes().count(b"\n") - 1 if state.exists() else 0
        need += count * MB_PER_RECORDING[LAYOUTS[cohort.layout].enters] / 1000
        known += count
    free = shutil.disk_usage(config.results).free / 1e9
    text = f"{config.results}: writable, {free:.1f} GB free, about {need:.1f} GB for {known} "
    advice = "free some space, or put results on another disk" if free < need else ""
    yield Finding("results", free >= need, text + "recordings in the index", advice)


def _fsl(config: Config) -> Iterator[Finding]:
    if config.preprocess.engine != "fsl":
        yield Finding("FSL", True, "not needed (preprocess.engine: builtin)")
        return
    from .preprocess.fsl import commands as fsl_commands

    try:
        fsl_commands.require_commands(config.preprocess)
    except BrainLMError as error:
        yield Finding("FSL", False, str(error))
    else:
        yield Finding("FSL", True, f"version {fsl_commands.read_version()}")


def _gpu(config: Config) -> Iterator[Finding]:
    wanted = config.pretrain.gpus
    names = _ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    here = ", ".join(names.splitlines()) if names else "none on this machine"
    if not wanted and (partition := os.environ.get("BRAINLM_GPU_PARTITION")):
        found = f"BRAINLM_GPU_PARTITION={partition}, but no job asks for a GPU (pretrain.gpus: 0)"
        yield Finding("GPU", None, found, "set pretrain.gpus: 1 or more to train on them")
    elif not wanted:
        yield Finding("GPU", True, f"{here}; training runs on the CPU (pretrain.gpus: 0)")
    elif names:
        import torch

        ok = torch.cuda.is_available()
        advice = "" if ok else "this torch was built without CUDA: envs/training-cuda.yaml"
        yield Finding("GPU", ok, f"{here}; torch {torch.__version__}", advice)
    else:
        advice = "right for a login node; else set pretrain.gpus: 0"
        yield Finding("GPU", None, f"{here}, pretrain.gpus is {wanted}", advice)


def _loader(config: Config) -> Iterator[Finding]:
    options = config.pretrain
    if not options.gpus:
        return
    threads, cores = options.gpus * options.loader_threads, len(os.sched_getaffinity(0))
    text = (
        f"{threads} threads read windows for {options.gpus} GPUs, on {options.cpus} CPUs of a job"
    )
    if threads + options.gpus > options.cpus:
        advice = f"set pretrain.cpus to {12 * options.gpus} (12 for each GPU), or leave it out"
        yield Finding("loader", None, text, advice)
    elif options.cpus > cores:
        advice = "right for a login node; else set pretrain.cpus to what a node has"
        yield Finding("loader", None, f"{text}; this machine has {cores}", advice)
    else:
        yield Finding("loader", True, text)


def _slurm(config: Config) -> Iterator[Finding]:
    if shutil.which("sbatch") is None:
        yield Finding("SLURM", None, "no sbatch here", "only --profile slurm needs it")
        return
    settings = _ask("scontrol", "show", "config")
    if settings is None:
        advice = "run on a login node of the cluster, or ask its operators"
        yield Finding("SLURM", None, "installed, but slurmctld does not answer", advice)
        return
    partitions = (_ask("sinfo", "--noheader", "--format=%P") or "").split()
    accounting = _ask("sacct", "--noheader", "--jobs=1") is not None
    text = f"partitions {' '.join(partitions)}; accounting {'on' if accounting else 'off'}"
    default = any(name.endswith("*") for name in partitions)
    named = os.environ.get("BRAINLM_PARTITION")
    if named and named not in {name.rstrip("*") for name in partitions}:
        advice = f"BRAINLM_PARTITION={named} is not one of them"
        yield Finding("SLURM", False, text, advice)
    elif not default and not named:
        yield Finding("SLURM", False, text, "there is no default partition: set BRAINLM_PARTITION")
    else:
        yield Finding("SLURM", True, text)


def _deployment(config: Config) -> Iterator[Finding]:
    there = [name for name in ("conda", "apptainer", "singularity") if shutil.which(name)]
    text = f"{', '.join(there) or 'neither conda nor apptainer'} on PATH"
    yield Finding("deployment", True, text, "" if there else "--sdm needs one; make env does not")


def _lock(folder: Path) -> Iterator[Finding]:
    if running_since(folder) is not None:
        advice = "if no snakemake is running here (one was killed): snakemake --unlock"
        yield Finding("lock", None, "a snakemake holds this folder", advice)


def _ask(*command: str) -> str | None:
    """Output of a command; None if it is missing or fails."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=15, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
