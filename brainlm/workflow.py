"""What the Snakefile asks of the package: the checked configuration and each rule's triggers.

Imported at every parse, once per cluster job, so it imports nothing heavy.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from . import templateflow
from .atlas import check_registered, identify_atlas, registered
from .cohort.exclusions import exclusions_by_chunk
from .config import Cohort, Config, load_config, parse_config
from .errors import BrainLMError
from .evaluation.tasks import (
    CLINICAL,
    ScalingTask,
    StatesTask,
    Task,
    predicting_fits,
    tasks_of,
)
from .files import describe_disk_error, digest, read_json, remove_leftovers, write_json, write_text
from .orphans import cancel_orphans, end_with_daemon
from .paths import ModelFolder
from .progress import Progress, running_since
from .steps import STEPS, is_raw, needs_template, read_first_atlas, stages_of, trigger

_LONG_LOOK_S = 30  # a parallel file system: tell what spares the user this wait every night


def prepare_run(values: dict[str, Any], *, is_main_process: bool, root: Path = Path()) -> Config:
    """Validate Snakemake's merged configuration and, in the main process, bring the index up to
    date and store the resolved configuration next to the results. Jobs read what was stored: a
    config.yaml that is edited during a run counts for the next one.

    A run that holds the folder's lock is left alone: a second process reads what it wrote. `root`
    is the folder that the workflow is in.
    """
    try:
        if set(str(root)) & set("{}"):
            raise BrainLMError(f"{root}: Snakemake takes braces in the workflow's own path for "
                               "wildcards; move it to a folder without them")  # fmt: skip
        stored = os.environ.get("BRAINLM_CONFIG", "")
        if not is_main_process:
            end_with_daemon()
        if not is_main_process and Path(stored).is_file():
            return load_config(stored)
        config = parse_config(dict(values), "config.yaml")
        check_registered(config.atlas.name)
        tasks = tasks_of(config)
        if is_main_process:
            from .cohort.digests import note_digests
            from .cohort.labels import check_columns

            _check_release(config)
            if running_since() is None:
                _compare_settings(config, tasks)
            news = running_since() is None and _update(config)
            if running_since() is None:
                _fetch_template(config)
            check_columns(config.cohorts, {name: task.columns() for name, task in tasks.items()})
            edited = running_since() is None and note_digests(
                config, _columns(tasks), _event_folders(config, tasks)
            )
            if news or edited:
                _check_labels(config, tasks)
            os.environ["BRAINLM_CONFIG"] = str(config.paths.config.absolute())
    except BrainLMError as error:
        _stop(str(error))
    except OSError as error:  # of writing the index: the folder is read-only, full or no folder
        _stop(describe_disk_error(error))
    return config


def _compare_settings(config: Config, tasks: dict[str, Task]) -> None:
    """Where Snakemake has no records (another clone, a copy without .snakemake), settings are
    compared with the ones stored beside the results, and what depends on changed ones is planned:
    its input is made newer. Stages whose own settings are as before find their outcomes."""
    if any(Path(".snakemake/metadata").glob("*")) or not config.paths.config.exists():
        return
    try:
        stored = load_config(config.paths.config)
        before, now = Triggers(stored, tasks_of(stored)), Triggers(config, tasks)
    except BrainLMError:  # of a version that had other keys, or tasks that are gone
        return
    common = {cohort.name for cohort in stored.cohorts}
    for cohort in config.cohorts:
        steps = [*stages_of(cohort.layout), *(s.name for s in STEPS.values() if s.of == "chunk")]
        if cohort.name in common and any(
            before.of(step, cohort.name) != now.of(step, cohort.name) for step in steps
        ):
            for chunk in config.paths.list_chunks(cohort.name):
                config.paths.chunk_table(cohort.name, chunk).touch()
    weights = ModelFolder(config.paths.pretrained).weights
    if weights.exists() and any(
        before.of(step, task=name) != now.of(step, task=name)
        for name in tasks.keys() & before.tasks.keys()
        for step in ("finetune", "evaluate")
        if step == "evaluate" or is_clinical(tasks[name])
    ):
        weights.touch()


def _columns(tasks: dict[str, Task]) -> dict[str, dict[str, list[str]]]:
    """Columns of the participants tables that each step of a task reads."""
    fitted = {name: task.learns() for name, task in tasks.items() if isinstance(task, CLINICAL)}
    return {
        name: {"evaluate": task.reads()} | ({"finetune": fitted[name]} if name in fitted else {})
        for name, task in tasks.items()
        if task.reads()
    }


def _event_folders(config: Config, tasks: dict[str, Task]) -> dict[str, dict[str, Path]]:
    """For each task that reads events.tsv, where each cohort's are."""
    return {
        name: {c.name: c.folder for c in config.cohorts} | task.events
        for name, task in tasks.items()
        if isinstance(task, StatesTask) and task.label != "task"
    }


def _check_release(config: Config) -> None:
    paths = config.paths
    if paths.scaling.exists() and paths.release_shards.exists():
        from .shards.release import check_release

        train = any(cohort.role == "reference" for cohort in config.cohorts)
        names = [cohort.name for cohort in config.cohorts] if train else []
        external = [cohort.name for cohort in config.cohorts if cohort.role == "external"]
        check_release(paths, names, config.atlas.name, external)
    from .training.settings import check_finished

    check_finished(config)


def _check_labels(config: Config, tasks: dict[str, Task]) -> None:
    """What would end a task's jobs after days of preprocessing ends the planning."""
    from .cohort.labels import read_labels

    for task in tasks.values():
        if isinstance(task, CLINICAL):
            labels = read_labels(
                config.cohorts, task.target, task.kind, task.transform, task.spellings
            )
            for cohort, why in labels.refused.items():
                print(f"task {task.name}: {cohort} is not evaluated: {why}", file=sys.stderr)


def _update(config: Config) -> bool:
    """Whether anything is new: a recording, or a word of the configuration."""
    from .cohort.exclusions import describe_strangers
    from .cohort.index import read_participant_ids, update_index
    from .cohort.labels import describe_match

    news = False
    _keep_first_atlas(config)
    for cohort in config.cohorts:
        started = time.monotonic()
        change = update_index(cohort, config.results, config.chunks.recordings)
        took_s = time.monotonic() - started
        if took_s > _LONG_LOOK_S and cohort.watch == "full" and not change.added:
            print(
                f"index {cohort.name}: looking at {change.total} recordings took {took_s:.0f} s; "
                "`watch: auto` looks at what is new and at the others in turn, "
                "`watch: sealed` at nothing",
                file=sys.stderr,
            )
        if change.added or change.changed or change.removed:
            news = True
            print(
                f"index {cohort.name}: {change.total} recordings in {change.chunks} chunks "
                f"({change.added} new, {change.changed} changed, {change.removed} removed)",
                file=sys.stderr,
            )
            for line in change.left_out:
                print(f"index {cohort.name}: {line}", file=sys.stderr)
            match = describe_match(cohort, read_participant_ids(config.paths.index(cohort.name)))
            if match:
                print(f"index {cohort.name}: {match}", file=sys.stderr)
        if strangers := describe_strangers(cohort, config.paths.index(cohort.name)):
            print(f"index {cohort.name}: {strangers}", file=sys.stderr)
        _retry(config, cohort)
        _seal(config, cohort)
        _check_finished(config, cohort)
    path = config.paths.config
    text = config.model_dump_json(indent=2) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return news
    write_text(path, text)
    return True


def _fetch_template(config: Config) -> None:
    """Before any job starts, whose node may have no network."""
    if any(is_raw(cohort) for cohort in config.cohorts):
        from .preprocess.normalise.template import space_of

        chunks = open_chunks(config)
        if any(is_raw(cohort) and chunks.get(cohort.name) for cohort in config.cohorts):
            space_of(identify_atlas(config.atlas.name))
            if needs_template(config):
                templateflow.get_files()


def _retry(config: Config, cohort: Cohort) -> None:
    """Once for every new value of ``retry_failed``: failed recordings are tried again."""
    done = config.paths.last_retry(cohort.name)
    last = int(done.read_text()) if done.exists() else 0
    if cohort.watch == "sealed" or config.retry_failed <= last:
        return
    from .cohort.index import mark_retries
    from .preprocess.summary import find_failed

    failed = find_failed(config, cohort)
    count = mark_retries(config.results, cohort.name, failed, config.retry_failed)
    write_text(done, f"{config.retry_failed}\n")
    print(f"{cohort.name}: {count} failed recordings are tried again", file=sys.stderr)


def _seal(config: Config, cohort: Cohort) -> None:
    from .cohort.seal import seal, unseal

    if cohort.watch != "sealed":
        unseal(config.results, cohort.name)
    elif missing := seal(config.results, cohort.name):
        print(f"{cohort.name}: sealed once its last {missing} chunks are made", file=sys.stderr)


def open_chunks(config: Config, *, forced: bool = False) -> dict[str, list[str]]:
    """What the graph is made of: of every cohort that is not sealed, the chunks that are not
    through; all of them where the user forces work."""
    from .cohort.finished import read_finished
    from .cohort.seal import is_sealed

    chunks = {}
    for cohort in config.cohorts:
        if not is_sealed(config.results, cohort.name):
            through = {} if forced else read_finished(config.results, cohort.name)
            every = config.paths.list_chunks(cohort.name)
            chunks[cohort.name] = [chunk for chunk in every if chunk not in through]
    return chunks


def closed_chunks(config: Config, chunks: Mapping[str, list[str]], cohort: str) -> dict[str, int]:
    """Chunks of a cohort that are not in the graph of `chunks`, and when the shard of each
    changed, ns."""
    from .cohort.finished import read_finished
    from .cohort.seal import read_seal

    if cohort not in chunks:
        return read_seal(config.results, cohort)
    there = set(chunks[cohort])
    known = read_finished(config.results, cohort)
    return {chunk: time for chunk, time in known.items() if chunk not in there}


def shard_files(
    config: Config,
    chunks: dict[str, list[str]],
    role: str | None = None,
    cohort_name: str | None = None,
) -> list[str]:
    """Of the cohorts with this role, or of one: the shards of open chunks, and the file of each
    cohort that stands for the others."""
    paths = config.paths
    files: list[str] = []
    for cohort in config.cohorts:
        if role not in (None, cohort.role) or cohort_name not in (None, cohort.name):
            continue
        files += [str(paths.shard(cohort.name, chunk)) for chunk in chunks.get(cohort.name, [])]
        through = paths.finished(cohort.name)
        if cohort.name not in chunks:
            files.append(str(paths.seal(cohort.name)))
        elif through.exists():
            files.append(str(through))
    return files


def _check_finished(config: Config, cohort: Cohort) -> None:
    from .cohort.finished import strike_changed
    from .cohort.seal import is_sealed

    if not is_sealed(config.results, cohort.name):
        strike_changed(config.results, cohort.name, *_chunk_work(config, cohort))


def _note_finished(config: Config, dag: Any) -> None:
    """Chunks of this run's graph that have no jobs left."""
    from .cohort.finished import note_finished

    def chunk(job: Any) -> tuple[str, str]:
        return job.wildcards.get("cohort", ""), job.wildcards.get("chunk", "")

    left = {chunk(job) for job in dag.needrun_jobs()}
    through = {chunk(job) for job in dag.jobs if job.rule.name == "pages"} - left
    for cohort in config.cohorts:
        chunks = [name for owner, name in through if owner == cohort.name]
        if chunks:
            note_finished(config.results, cohort.name, *_chunk_work(config, cohort), chunks)


def _chunk_work(config: Config, cohort: Cohort) -> tuple[list[str], str]:
    """The stages of a cohort's chunks, and all settings that their jobs depend on."""
    stages, triggers = stages_of(cohort.layout), Triggers(config, {})
    every = [*stages, *(step.name for step in STEPS.values() if step.of == "chunk")]
    return stages, "\n".join(triggers.of(step, cohort.name) for step in every)


def _stop(message: str) -> None:
    """Say what is wrong in one line; Snakemake would add its own traceback to an exception."""
    print(f"brainlm: {message}", file=sys.stderr)
    raise SystemExit(1)


def is_clinical(task: Task) -> bool:
    """Whether the model is fine-tuned for this task on a column of the participants tables."""
    return isinstance(task, CLINICAL)


def sweep_models(config: Config, task: Task) -> list[Path]:
    """Weights of the pretrainings that a task needs besides the study's own."""
    points = task.points() if isinstance(task, ScalingTask) else []
    folders = (config.paths.sweep(preset, f"{share:g}", seed) for preset, share, seed in points)
    return [ModelFolder(folder).weights for folder in folders]


_progress: Progress | None = None  # of this process's run


def start_run(config: Config, unlock: Callable[[], None]) -> None:
    """The start of a run: end what a killed one left behind, and say how it goes from now on.

    A job that is cancelled takes away what it had made, also what this run's plan found there:
    where one was left, the command begins anew, as the same process.
    """
    if cancel_orphans():
        unlock()
        print("planning again", file=sys.stderr, flush=True)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    mark = config.paths.running
    if mark.exists():
        _remove_leftovers(config)
    write_text(mark, "")
    from .status import read_status

    global _progress
    _progress = Progress(lambda: read_status(config).line())
    _progress.start()


def finish(config: Config, logs: Iterable[str] = (), dag: Any = None) -> None:
    """The end of a run: what became of every recording, and where the failures are listed.

    `logs` are Snakemake's; where they tell of a job that did not end well, temporary files of
    killed processes are looked for. Chunks in which `dag` has nothing left to do leave the graph.
    """
    from .preprocess.summary import summarise_outcomes

    if _progress:
        _progress.stop()
    try:
        if dag is not None:
            _note_finished(config, dag)
        print(summarise_outcomes(config).text(), file=sys.stderr)
        if any(_FAILED_JOB in Path(log).read_text(errors="replace") for log in logs):
            _remove_leftovers(config)
        config.paths.running.unlink(missing_ok=True)
    except (BrainLMError, OSError) as error:
        print(f"brainlm: no summary: {error}", file=sys.stderr)


_FAILED_JOB = "Error in "


def _remove_leftovers(config: Config) -> None:
    count = remove_leftovers(config.results)
    if count:
        print(f"removed {count} temporary files of killed processes", file=sys.stderr)


class Triggers:
    """For the rules' ``params``: a job runs again when its step's version or facts change."""

    def __init__(self, config: Config, tasks: dict[str, Task]):
        self.config, self.tasks = config, tasks
        self.atlas = identify_atlas(config.atlas.name)
        self.first = read_first_atlas(config)
        self._known: dict[tuple[str | None, ...], str] = {}  # a plan asks once per job

    def of(
        self,
        step: str,
        cohort: str | None = None,
        task: str | None = None,
        chunk: str | None = None,
    ) -> str:
        """The trigger of a step, for a cohort (or a chunk of it) or for a task."""
        rows = self._rows(step, cohort, task, chunk)
        asked = (step, cohort, task, *rows.values())
        if asked not in self._known:
            self._known[asked] = trigger(
                step,
                self.config,
                cohort=self.config.cohort(cohort) if cohort else None,
                atlas=self.atlas,
                first=self.first,
                task=self.tasks[task] if task else None,
                rows=rows,
            )
        return self._known[asked]

    def _rows(
        self, step: str, cohort: str | None, task: str | None, chunk: str | None
    ) -> dict[str, str]:
        """Digests of tables: who is left out of a chunk, what is known of participants or was
        shown to them."""
        if cohort:
            excluded = self._excluded(cohort, step)
            found = excluded.get(chunk) if chunk else excluded or None
            return {"exclude": digest(found)} if found else {}
        changed = self._answers(task, step) if task else None
        return {"participants": changed} if changed else {}

    @cache  # noqa: B019  a plan has one
    def _excluded(self, name: str, step: str) -> dict[str, list[tuple[str, str]]]:
        """Of a cohort's first stage: (recording_id, reason) by chunk."""
        cohort = self.config.cohort(name)
        if cohort.exclude is None or step != stages_of(cohort.layout)[0]:
            return {}
        return exclusions_by_chunk(cohort, self.config.paths.index(name))

    @cache  # noqa: B019
    def _answers(self, task: str, step: str) -> str | None:
        from .cohort.digests import changed_digest

        return changed_digest(self.config, task, "finetune" if step == "predict" else step)


def _keep_first_atlas(config: Config) -> None:
    """Before the stored configuration is replaced: of a study that is older than this file, it
    names the atlas that everything was made with."""
    path, name = config.paths.first_atlas, config.atlas.name
    if path.exists():
        return
    if config.paths.config.exists():
        name = read_json(config.paths.config)["atlas"]["name"]
    known = name if name in registered() else config.atlas.name
    write_json(path, identify_atlas(known)._asdict())


__all__ = [
    "Triggers",
    "closed_chunks",
    "finish",
    "is_clinical",
    "open_chunks",
    "predicting_fits",
    "prepare_run",
    "shard_files",
    "start_run",
    "sweep_models",
    "tasks_of",
]
