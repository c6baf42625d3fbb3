"""What a job asks of the cluster: CPUs, memory and run time from its chunk and the attempt.

The figures behind it are in docs/scaling.md ("Chunks"). A job that ran out of memory is tried
again with twice the memory, one that ran out of time with twice the time, and one that failed
otherwise with the same.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from .cohort.index import SECONDS_PER_MB, read_sizes
from .config import Config, Pretrain
from .steps import STEPS, Cost

#: Recordings at a time in a chunk's job on a cluster; slurm/config.yaml asks for as many CPUs.
CHUNK_CPUS = int(os.environ.get("BRAINLM_CHUNK_CPUS", 8))
#: s that torchrun waits for its processes to save after a SIGTERM, before it kills them
SAVING_S = 600
#: where slurm/config.yaml keeps the logs of SLURM's jobs
_JOB_LOGS = Path(".snakemake/slurm_logs")
#: what SLURM writes there when it ends a job
_OUT_OF_MEMORY = re.compile(r"oom[-_ ]kill|oom killed|exceeded (job )?memory limit", re.I)
_OUT_OF_TIME = re.compile(r"due to time limit", re.I)
_SPARE = 2.0  # of run time: nodes differ
_START_MIN = 10  # min to start Python, to read the atlas and to compile kernels


def chunk_resources(config: Config, step: str) -> dict[str, Any]:
    """Snakemake resources of a step of a chunk, as functions of the chunk and the attempt.

    Chunks run on one CPU each on a laptop, where there are as many as cores; the cluster's
    profile gives each `CHUNK_CPUS`.
    """
    cost = STEPS[step].cost

    def mem_mb(wildcards: Any) -> int:
        _, _, largest = _measure(config, wildcards.cohort, wildcards.chunk)
        return _memory(cost, largest)

    def runtime(wildcards: Any) -> int:
        count, total, _ = _measure(config, wildcards.cohort, wildcards.chunk)
        return _minutes(cost, count, total, config.preprocess.time_limit_min)

    return {"cpus_per_task": 1, **growing(step, mem_mb, runtime)}


Amount = Callable[[Any], int]


def growing(rule: str, mem_mb: Amount, runtime: Amount) -> dict[str, Callable[..., int]]:
    """Memory, MB, and run time, min, of a rule's jobs by their wildcards: twice as much of what
    an attempt before ran out of."""

    def grow(amount: Amount, words: re.Pattern) -> Callable[..., int]:
        def needed(wildcards: Any, attempt: int) -> int:
            logs = _read_logs(rule, wildcards, attempt - 1)
            return amount(wildcards) * 2 ** sum(bool(words.search(log)) for log in logs)

        return needed

    return {"mem_mb": grow(mem_mb, _OUT_OF_MEMORY), "runtime": grow(runtime, _OUT_OF_TIME)}


def _read_logs(rule: str, wildcards: Any, count: int) -> list[str]:
    """The last `count` logs that SLURM wrote of a job, alone or in its group; those of jobs that
    succeed are removed by the executor."""
    if count < 1:
        return []
    values = dict(wildcards.items())
    alone = _JOB_LOGS / f"rule_{rule}" / "_".join(values.values()).replace("/", "_")
    found = [(int(path.stem), path.read_text(errors="replace")) for path in alone.glob("*.log")]
    line = re.compile(
        rf"^ *wildcards: {', '.join(f'{k}={re.escape(v)}' for k, v in values.items())}$", re.M
    )
    for path in _JOB_LOGS.glob("group_*/**/*.log"):
        text = path.read_text(errors="replace")
        if values and line.search(text):
            found.append((int(path.stem), text))
    return [text for _, text in sorted(found)[-count:]]


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


def training_resources(rule: str, options: Pretrain, nodes: int | None = None) -> dict[str, Any]:
    """Snakemake resources of pretraining, or with ``nodes=1`` of a job of one process.

    ``cpus_per_task``, because ``threads:`` is cut to the login node's cores. Several nodes need
    ``mpi`` so that the executor leaves the step's geometry to ``srun`` (one torchrun a node); a
    single node must not have it. Its time never grows: ``pretrain.hours`` is what the
    partition gives, and training resumes.
    """
    gpus = options.gpus if nodes is None else min(1, options.gpus)
    nodes = nodes or options.nodes
    memory = 32_000 * gpus or max(6_000, 2_000 * options.cpus)
    resources: dict[str, Any] = {
        "cpus_per_task": options.cpus,
        "runtime": math.ceil(60 * options.hours),
        "mem_mb": growing(rule, lambda wildcards: memory, lambda wildcards: 0)["mem_mb"],
    }
    kind = os.environ.get("BRAINLM_GPU_TYPE")
    if nodes > 1:
        extra = "--ntasks-per-node=1"
        if gpus:
            extra += f" --gpus-per-node={f'{kind}:' if kind else ''}{gpus}"
        resources |= {"nodes": nodes, "tasks": nodes, "mpi": "srun", "slurm_extra": f"'{extra}'"}
    elif gpus:
        resources |= {"gpu": gpus} | ({"gpu_model": kind} if kind else {})
    return resources


def launch_line(options: Pretrain, slurm: str = "slurm") -> str:
    """How the pretraining rule starts: one process, one torchrun, or one torchrun per node by the
    script in the folder `slurm`; nothing that the model depends on."""
    patient = f"env TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SAVING_S}"
    if options.nodes > 1:
        shape = f"{options.nodes} {max(1, options.gpus)} {options.cpus}"
        return f"{patient} bash {slurm}/torchrun.sh {shape} {'gpu' if options.gpus else 'cpu'}"
    if options.gpus > 1:
        return f"{patient} torchrun --standalone --nproc-per-node {options.gpus} -m brainlm"
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
