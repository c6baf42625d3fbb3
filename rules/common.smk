# Shared by all files of rules: the checked configuration, the index, and the lists made from it.
# Logic lives in the package; this file only calls it.
import functools
import gc
import shlex
import sys
from pathlib import Path

# A quarter of the time of planning went into looking for garbage among jobs and rows, of which
# there is none; a run that begins turns it on again (onstart).
gc.disable()

ROOT = Path(workflow.basedir).parent
sys.path.insert(0, str(ROOT))

from brainlm.cohort.parts import list_part_inputs, list_parts
from brainlm.paths import STARTS, ModelFolder
from brainlm.resources import (
    chunk_resources,
    growing,
    launch_line,
    site_commands,
    training_resources,
)
from brainlm.steps import stages_of
from brainlm.workflow import (
    Triggers,
    closed_chunks,
    finish,
    is_clinical,
    tasks_of,
    open_chunks,
    predicting_fits,
    prepare_run,
    shard_files,
    start_run,
    sweep_models,
)

# The main process validates, scans the cohorts once and keeps the resolved configuration for
# the jobs; jobs only read what it wrote.
CONFIG = prepare_run(config, is_main_process=workflow.is_main_process, root=ROOT)
PATHS = CONFIG.paths
CHUNK = ("{cohort}", "{chunk}")  # the wildcards of all rules that work on a chunk
PART = ("{cohort}", "{part}")  # and of those that work on a part of a large cohort

# Jobs read the stored configuration, and find `brainlm` next to this Python (a conda environment's
# own comes first).
shell.prefix(
    "set -euo pipefail; "
    + site_commands()
    + f"export BRAINLM_CONFIG={shlex.quote(str(PATHS.config))}"
    f' PATH="$PATH":{shlex.quote(str(Path(sys.executable).parent))}; '
)

TASKS = tasks_of(CONFIG)
TRIGGERS = Triggers(CONFIG, TASKS)
RESULT_TABLES = [PATHS.table(task) for task in TASKS]
EMBEDDINGS = [PATHS.embeddings(cohort.name) for cohort in CONFIG.cohorts]
PREDICTED = [PATHS.predicted(c.name) for c in CONFIG.cohorts if c.role == "predict"]


wildcard_constraints:
    cohort="|".join(c.name for c in CONFIG.cohorts),
    chunk=r"\d+",
    part=r"\d+",
    start="finetune|scratch",
    task="|".join(TASKS) or "none",
    seed=r"\d+",
    preset=r"[a-z0-9]+",
    share=r"[\d.]+",


@functools.cache
def chunks():
    """Of cohorts that are not sealed, what is not through; everything where work is forced (-F,
    -R), which Snakemake says after it has read this file only."""
    options = workflow.dag_settings
    return open_chunks(CONFIG, forced=bool(options.forceall or options.forcerun))


def all_shards(wildcards):
    return shard_files(CONFIG, chunks())


def external_shards(wildcards):
    return shard_files(CONFIG, chunks(), "external")


def cohort_shards(wildcards):
    return shard_files(CONFIG, chunks(), cohort_name=wildcards.cohort)


@functools.cache
def parts(cohort):
    return list_parts(PATHS.list_chunks(cohort))


@functools.cache
def through(cohort):
    return closed_chunks(CONFIG, chunks(), cohort)


def parts_of(table):
    """Tables of a large cohort's parts; `table` is a method of PATHS."""
    return lambda wildcards: [
        table(wildcards.cohort, part) for part in parts(wildcards.cohort)
    ]


def part_shards(wildcards):
    cohort, part = wildcards.cohort, wildcards.part
    made = PATHS.embeddings(cohort, part)
    return list_part_inputs(PATHS, cohort, parts(cohort)[part], through(cohort), made)


def cohort_fits(wildcards):
    """Every fine-tuned model that can predict anybody."""
    return [
        ModelFolder(f).predictions for seeds in predicting_fits(CONFIG) for f in seeds
    ]


def all_pages(wildcards):
    return [PATHS.stage_table(c, k, "pages") for c, ks in chunks().items() for k in ks]


def all_stages(wildcards):
    return [
        PATHS.stage_table(cohort, chunk, stage)
        for cohort, some in chunks().items()
        for stage in stages_of(CONFIG.cohort(cohort).layout)
        for chunk in some
    ]


def all_models(wildcards):
    """The pretrained model, and what each task is evaluated from besides."""
    of_tasks = [fit for task in TASKS for fit in fits_of(TASKS[task])]
    return [ModelFolder(PATHS.pretrained).weights] + of_tasks


def settings(step):
    """All that makes a job run again, besides newer input: its step's version and facts."""
    return lambda wildcards: TRIGGERS.of(
        step,
        cohort=wildcards.get("cohort"),
        task=wildcards.get("task"),
        chunk=wildcards.get("chunk"),
    )


def last_stage(wildcards):
    layout = CONFIG.cohort(wildcards.cohort).layout
    return PATHS.stage_table(*CHUNK, stages_of(layout)[-1])


def unfrozen(wildcards):
    if PATHS.scaling.exists():
        return []
    found = shard_files(CONFIG, chunks(), "reference")
    return found + [path.replace(".parquet", ".quantiles.parquet") for path in found]


def fits(wildcards):
    return fits_of(TASKS[wildcards.task])


def fits_of(task):
    """What a task is evaluated from besides the pretrained model: a sweep, or every seed's fit."""
    if not is_clinical(task):
        return sweep_models(CONFIG, task)
    apart = external_shards(None) and not task.groups
    made = [
        ModelFolder(PATHS.fit(start, task.name, seed))
        for start in STARTS
        for seed in task.seeds
    ]
    return [fit.predictions for fit in made] + [fit.external for fit in made if apart]
