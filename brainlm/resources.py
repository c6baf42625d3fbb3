"""What a job asks of the cluster: CPUs, memory and run time from its chunk and the attempt.

The figures behind it are in docs/scaling.md ("Chunks"). A job that ran out of memory or time is
tried again with twice as much.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from .cohort.index import SECONDS_PER_MB, read_sizes
from .config import Config, Pretrain
from .steps import STEPS, Cost

#: Recordings at a time in a chunk's job on a cluster; slurm/config.yaml asks for as many CPUs.
CHUNK_CPUS = int(os.environ.get("BRAINLM_CHUNK_CPUS", 8))
_SPARE = 2.0  # of run time: nodes differ
_START_MIN = 10  # min to start Python, to read the atlas and to compile kernels


def chunk_resources(config: Config, step: str) -> dict[str, Any]:
    """Snakemake resources of a step of a chunk, as functions of the chunk and the attempt.

    Chunks run on one CPU each on a laptop, where there are as many as cores; the cluster's
    profile gives each `CHUNK_CPUS`.
    """
    cost = STEPS[step].cost

    def mem_mb(wildcards: Any, attempt: int) -> int:
        _, _, largest = _measure(config, wildcards.cohort, wildcards.chunk)
        return _memory(cost, largest) * 2 ** (attempt - 1)

    def runtime(wildcards: Any, attempt: int) -> int:
        count, total, _ = _measure(config, wildcards.cohort, wildcards.chunk)
        limit = config.preprocess.time_limit_min
        return _minutes(cost, count, total, limit) * 2 ** (attempt - 1)

    return {"cpus_per_task": 1, "mem_mb": mem_mb, "runtime": runtime}


def _measure(config: Config, cohort: str, chunk: str) -> tuple[int, float, float]:
    return _sizes(str(config.paths.chunk_table(cohort, chunk)))


@lru_cache(maxsize=1 << 16)
def _sizes(table: str) -> tuple[int, float, float]:
    """Recordings of a chunk, their MB together and of the largest."""
    sizes = [max(0, size) / 1e6 for size in read_sizes(Path(table))]
    return len(sizes), sum(sizes), max(sizes, default=0.0)


def _memory(cost: Cost, largest_mb: float) -> int:
    """MB: the job and its workers, one recording each."""
    worker = math.ceil(cost.worker_mb + cost.mb_per_file_mb * largest_mb)
    return math.ceil(cost.job_mb) + CHUNK_CPUS * worker


def _minutes(cost: Cost, count: int, total_mb: float, limit_min: float) -> int:
    seconds = cost.share * SECONDS_PER_MB * total_mb + cost.seconds * count
    waves = math.ceil(count / CHUNK_CPUS)
    return math.ceil(_START_MIN + min(_SPARE * seconds / CHUNK_CPUS / 60, waves * limit_min))


def training_resources(options: Pretrain, nodes: int | None = None) -> dict[str, Any]:
    """Snakemake resources of pretraining, or with ``nodes=1`` of a job of one process.

    ``cpus_per_task``, because ``threads:`` is cut to the login node's cores. Several nodes need
    ``mpi`` so that the executor leaves the step's geometry to ``srun`` (one torchrun a node); a
    single node must not have it.
    """
    gpus = options.gpus if nodes is None else min(1, options.gpus)
    nodes = nodes or options.nodes
    memory = 32_000 * gpus or max(6_000, 2_000 * options.cpus)
    more: Callable[..., int] = lambda wildcards, attempt: memory * 2 ** (attempt - 1)  # noqa: E731
    resources: dict[str, Any] = {
        "cpus_per_task": options.cpus,
        "mem_mb": more,
        "runtime": 24 * 60,
    }
    if nodes > 1:
        extra = "--ntasks-per-node=1"
        if gpus:
            extra += f" --gpus-per-node={gpus}"
        resources |= {"nodes": nodes, "tasks": nodes, "mpi": "srun", "slurm_extra": f"'{extra}'"}
    elif gpus:
        resources["gpu"] = gpus
    return resources


def launch_line(options: Pretrain, slurm: str = "slurm") -> str:
    """How the pretraining rule starts: one process, one torchrun, or one torchrun per node by the
    script in the folder `slurm`, which is no part of what the model depends on."""
    if options.nodes > 1:
        return (
            f"bash {slurm}/torchrun.sh {options.nodes} {max(1, options.gpus)} {options.cpus}"
            + (" gpu" if options.gpus else " cpu")
        )
    if options.gpus > 1:
        return f"torchrun --standalone --nproc-per-node {options.gpus} -m brainlm"
    return "brainlm"


def site_commands(environment: dict[str, str] | os._Environ = os.environ) -> str:
    """Shell commands before every job's own: the site's modules and its scratch folder.

    ``BRAINLM_MODULES`` (names for ``module load``) and ``BRAINLM_SCRATCH`` (a folder of the node).
    """
    commands = ""
    if modules := environment.get("BRAINLM_MODULES"):
        commands += f"module load {modules}; "
    if scratch := environment.get("BRAINLM_SCRATCH"):
        commands += f"mkdir -p {scratch}; export TMPDIR={scratch}; "
    return commands
