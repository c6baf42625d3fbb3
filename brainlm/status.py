"""How far a run is, from the files alone: no daemon, no database, no question to a scheduler.

What the next run would do, only Snakemake can tell; it is asked where none is running.
"""

from __future__ import annotations

import csv
import itertools
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .bids_app import snakemake_command
from .cohort.parts import list_parts
from .config import Config
from .errors import BrainLMError
from .evaluation.tasks import CLINICAL, ScalingTask, Task, tasks_of
from .paths import STARTS, ModelFolder, table_record
from .preprocess.chunk import read_stage_table
from .preprocess.summary import HARMLESS
from .progress import clock, read_record, running_since
from .steps import STEPS, stages_of


@dataclass
class CohortStatus:
    """Recordings and chunks of one cohort.

    Attributes
    ----------
    found : int
        Recordings in the index.
    statuses : Counter
        Of recordings that are through, or that an early stage gave up on.
    steps, steps_done : float
        A step is one stage of one recording; steps in running jobs count.
    steps_now : int
        Those of the run that is going on.
    running : dict
        Chunk → "stage k/n", for chunks whose job has told how far it is since its last table.
    """

    name: str
    found: int = 0
    chunks: int = 0
    chunks_done: int = 0
    statuses: Counter = field(default_factory=Counter)
    steps: int = 0
    steps_done: int = 0
    steps_now: int = 0
    running: dict[str, str] = field(default_factory=dict)
    sealed: bool = False

    @property
    def failed(self) -> Counter:
        return Counter({s: n for s, n in self.statuses.items() if s not in HARMLESS})


@dataclass(frozen=True)
class Status:
    """The whole run; `since` is when the Snakemake that holds the folder started, or None."""

    cohorts: list[CohortStatus]
    later: dict[str, bool]
    since: float | None
    failures: Path
    jobs: tuple[str, ...] = ()  # of the release, as far as each is

    def rate(self) -> float | None:
        """Steps per second of this run so far."""
        done = sum(cohort.steps_now for cohort in self.cohorts)
        return done / max(1.0, time.time() - self.since) if self.since and done else None

    def line(self) -> str:
        """One line: chunks, recordings, failures, rate and time left, and what is going on."""
        cohorts = self.cohorts
        failed = sum((cohort.failed for cohort in cohorts), Counter())
        words = [
            f"chunks {sum(c.chunks_done for c in cohorts)}/{sum(c.chunks for c in cohorts)}",
            f"recordings {sum(c.statuses.total() for c in cohorts)}/"
            f"{sum(c.found for c in cohorts)}",
            f"{failed.total()} failed",
        ]
        rate = self.rate()
        left = sum(c.steps - c.steps_done for c in cohorts)
        if rate and left:
            stages = max(
                1.0, sum(c.steps for c in cohorts) / max(1, sum(c.found for c in cohorts))
            )
            words.append(f"{rate / stages * 3600:.0f} recordings/h")
            words.append(f"preprocessing done in {clock(left / rate)}")
        running = [text for cohort in cohorts for text in cohort.running.values()]
        if running:
            stages_now = Counter(text.split()[0] for text in running)
            words.append("now " + ", ".join(f"{n} {stage}" for stage, n in stages_now.items()))
        elif self.jobs:
            words.append(f"now {'; '.join(self.jobs)}")
        elif not left:
            words.append("next: " + (next((n for n, made in self.later.items() if not made), "–")))
        return " · ".join(words)

    def text(self, plan: Sequence[str] | None = None) -> str:
        """Found, done, running, failed by reason, next: several lines.

        Next is what the `plan` says (of :func:`read_plan`); during a run, what is not there yet.
        """
        lines = list(self._cohort_lines())
        made = [name for name, there in self.later.items() if there]
        open_ = [name for name, there in self.later.items() if not there]
        lines.append("made: " + (", ".join(made) or "nothing after the shards yet"))
        todo = sum(c.chunks - c.chunks_done for c in self.cohorts)
        left = [*([f"{todo} chunks"] if todo else []), *open_]
        lines.append("next: " + (", ".join(left if plan is None else plan) or "nothing"))
        if self.failures.exists() and any(c.failed for c in self.cohorts):
            lines.append(f"what failed and why: {self.failures}")
        lines.append(self.line() if self.since else "no snakemake is running in this folder")
        return "\n".join(lines)

    def _cohort_lines(self) -> Iterator[str]:
        for cohort in self.cohorts:
            ok, failed = cohort.statuses["ok"], cohort.failed
            seal = ", sealed" if cohort.sealed else ""
            yield (
                f"{cohort.name}: found {cohort.found}, done {cohort.statuses.total()} "
                f"(ok {ok}), chunks {cohort.chunks_done}/{cohort.chunks}{seal}"
            )
            other = {s: n for s, n in cohort.statuses.items() if s in HARMLESS and s != "ok"}
            for title, counts in (("failed", failed), ("left out", other)):
                if counts:
                    yield f"  {title}: " + ", ".join(f"{n} {s}" for s, n in counts.items())
            for chunk, text in cohort.running.items():
                yield f"  running: {chunk} {text}"


@dataclass(frozen=True)
class ReleaseJob:
    """A job after the shards, and the files that it makes and tells its progress in."""

    step: str
    product: Path
    record: Path | None = None
    part: str = ""  # tells jobs of a step apart

    @property
    def name(self) -> str:
        return f"{self.step}, {self.part}" if self.part else self.step

    def read_progress(self, since: float | None) -> str | None:
        """How far it is in the run that began at `since`; None if it is not under way."""
        if self.record is None or self.product.exists():
            return None
        now = read_record(self.record, since)
        return f"{self.name}: {now.text}" if now and now.done < now.total else None


def read_status(config: Config, folder: Path = Path()) -> Status:
    """Look at the results; `folder` is where Snakemake runs.

    A chunk costs a few file operations; nothing is written.
    """
    since = running_since(folder)
    cohorts = [_cohort_status(config, cohort, since) for cohort in config.cohorts]
    made: dict[str, bool] = {}
    going = []
    for job in _release_jobs(config):
        made[job.step] = made.get(job.step, True) and job.product.exists()
        if since and (now := job.read_progress(since)):
            going.append(now)
    return Status(cohorts, made, since, config.paths.failures, tuple(going))


def read_plan(files: Sequence[Path] = (), folder: Path = Path()) -> list[str]:
    """The rules that ``snakemake --cores all`` would run now, in their order.

    Parameters
    ----------
    files : sequence of Path
        Configuration files; without any, the one that Snakemake finds in `folder`.

    Raises
    ------
    BrainLMError
        It would refuse to start.
    """
    named = [f"--configfile={path.absolute()}" for path in files]
    done = subprocess.run([*snakemake_command(), "--summary", *named], cwd=folder,
                          capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        raise BrainLMError(done.stderr.strip().removeprefix("brainlm: "))
    rows = csv.DictReader(done.stdout.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    pending = {row["rule"] for row in rows if row["plan"] == "update pending"}
    places = {name: place for place, name in enumerate(STEPS)}
    return sorted(pending, key=lambda rule: (places.get(rule, len(STEPS)), rule))


def _release_jobs(config: Config) -> Iterator[ReleaseJob]:
    """Every job after the shards, in the order in which they can run."""
    paths = config.paths
    yield ReleaseJob(f"release {config.release}", paths.scaling)
    pretrained = ModelFolder(paths.pretrained)
    yield ReleaseJob("pretrain", pretrained.weights, pretrained.record)
    for cohort in config.cohorts:
        step, table = f"embed {cohort.name}", paths.embeddings(cohort.name)
        yield ReleaseJob(step, table, paths.release_record("embed", cohort.name))
        for part in list_parts(paths.list_chunks(cohort.name)):
            record = paths.release_record("embed", cohort.name, part)
            yield ReleaseJob(step, table, record, f"part {part}")
    for task in tasks_of(config).values():
        yield from _task_jobs(config, task)
    for cohort in config.cohorts:
        if cohort.role == "predict":
            yield ReleaseJob(f"predict {cohort.name}", paths.predicted(cohort.name))
    yield ReleaseJob("report", paths.report_page)


def _task_jobs(config: Config, task: Task) -> Iterator[ReleaseJob]:
    """Fits and sweeps, and the table."""
    paths = config.paths
    if isinstance(task, CLINICAL):
        for start, seed in itertools.product(STARTS, task.seeds):
            fit = ModelFolder(paths.fit(start, task.name, seed))
            part = f"{'from scratch, ' if start == 'scratch' else ''}seed {seed}"
            yield ReleaseJob(f"finetune {task.name}", fit.predictions, fit.record, part)
            if any(c.role == "external" for c in config.cohorts) and not task.groups:
                yield ReleaseJob(f"predict {task.name}", fit.external)
    if isinstance(task, ScalingTask):
        for preset, share, seed in task.points():
            point = ModelFolder(paths.sweep(preset, share, seed))
            part = f"{preset}, {share:.0%}, seed {seed}"
            yield ReleaseJob("sweep", point.weights, point.record, part)
    table = paths.table(task.name)
    yield ReleaseJob(f"evaluate {task.name}", table, table_record(table))


def _cohort_status(config: Config, cohort, since: float | None) -> CohortStatus:
    paths, stages = config.paths, stages_of(cohort.layout)
    status = CohortStatus(cohort.name, sealed=paths.seal(cohort.name).exists())
    for chunk in paths.list_chunks(cohort.name):
        table = paths.chunk_table(cohort.name, chunk)
        count = table.read_bytes().count(b"\n") - 1
        status.found += count
        status.chunks += 1
        status.steps += count * len(stages)
        indexed = table.stat().st_mtime
        rows: dict[str, str] = {}
        for stage in stages:
            path = paths.stage_table(cohort.name, chunk, stage)
            made = path.stat().st_mtime if path.exists() else 0.0
            if made < indexed:  # not there, or of the chunk as it was
                now = read_record(paths.chunk_record(stage, cohort.name, chunk), since)
                if now is not None:
                    status.running[chunk] = f"{now.stage} {now.done}/{now.total}"
                    status.steps_done += now.done
                    status.steps_now += now.done
                rows = {key: s for key, s in rows.items() if s != "ok"}
                break
            indexed = made
            rows.update((row["recording_id"], row["status"]) for row in read_stage_table(path))
            status.steps_done += count
            status.steps_now += count if since and made > since else 0
        else:
            shard = paths.shard(cohort.name, chunk)
            status.chunks_done += shard.exists() and shard.stat().st_mtime >= indexed
        status.statuses.update(rows.values())
    return status


def watch(config: Config, every_s: float = 2.0, folder: Path = Path()) -> None:
    """Redraw the status until the run ends; on a terminal in place, elsewhere line by line."""
    lines = 0
    while True:
        status = read_status(config, folder)
        if sys.stdout.isatty():
            text = status.text()
            up = f"\x1b[{lines}A" if lines else ""
            print(up + "\n".join(f"{line}\x1b[K" for line in text.split("\n")), "\x1b[J", end="\n")
            lines = text.count("\n") + 1
        else:
            print(status.line(), flush=True)
        if status.since is None:
            return
        time.sleep(every_s)
