"""One stage over one chunk: every recording ends as a row, whatever happens to it.

Each recording runs in a process of its own, so that a crash, a leak or a time limit costs that
recording only. Its outcome is kept in a small file keyed by the recording's fingerprint, the
parameters and the code versions of this stage and those before it, and counts only while the files
that it stands for are there and whole: a chunk that is run again computes only what changed.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..cohort.exclusions import read_exclusions
from ..cohort.index import read_entries
from ..cohort.recordings import Entry
from ..config import Cohort
from ..errors import BrainLMError, RecordingError
from ..files import (
    describe_disk_error,
    is_disk_error,
    is_whole,
    plain_values,
    read_json,
    write_json,
)
from ..progress import Record, write_record
from ..steps import STEPS, Step, load, outcome_recipe, read_first_atlas, stages_of
from ..tables import MISSING, as_number, read_tsv, write_tsv
from .stages.context import Context

_DISK = "disk"  # said by a child instead of a status: the disk refuses, no recording is to blame
_LONGEST = 300  # characters of a reason
_WORDS = ("recording_id", "status", "reason")
_BETWEEN = " | "  # warnings in a cell
Outcome = dict[str, Any]  # recording_id, status, reason, seconds, and the stage's figures


@dataclass(frozen=True)
class BoundStep:
    """A step bound to its cohort, for each recording of a chunk.

    Attributes
    ----------
    key : callable
        What the outcome of a recording depends on, as one string.
    before : str or None
        The stage whose results this one reads.
    """

    step: Step
    context: Context
    key: Callable[[Entry], str]
    run: Callable[[Entry], dict[str, Any]]
    prepare: Callable[[], None]
    before: str | None = None

    @property
    def time_limit_s(self) -> float:
        return self.context.options.time_limit_min * 60

    def cached(self, entry: Entry) -> Outcome | None:
        """The outcome of an earlier run, if it is of the same input and its files are whole."""
        kept = self._read(self.step.name, entry)
        if kept.get("key") != self.key(entry) or kept.get("after") != self._after(entry):
            return None
        outcome = kept["outcome"]
        if outcome["status"] == "missing_input":  # not the recording's fault: it may be there now
            return None
        names = self.step.makes(self.context.options) if outcome["status"] == "ok" else ()
        return outcome if all(map(is_whole, self.context.made(entry, names))) else None

    def keep(self, entry: Entry, outcome: Outcome) -> None:
        kept = {
            "key": self.key(entry),
            "made": datetime.now(UTC).isoformat(),
            "after": self._after(entry),
            "outcome": outcome,
        }
        write_json(self._path(self.step.name, entry), kept)

    def _after(self, entry: Entry) -> str | None:
        """When the stage before was computed: it may have written other files since."""
        return self._read(self.before, entry).get("made") if self.before else None

    def _read(self, stage: str, entry: Entry) -> dict[str, Any]:
        path = self._path(stage, entry)
        return read_json(path) if path.exists() else {}

    def _path(self, stage: str, entry: Entry) -> Path:
        context = self.context
        return context.config.paths.outcome(context.cohort.name, stage, entry.recording_id)


def make_task(stage: str, context: Context) -> BoundStep:
    """Bind a stage to a cohort."""
    step, order = STEPS[stage], stages_of(context.cohort.layout)
    run, place = load(step.run), order.index(stage)
    first = read_first_atlas(context.config)
    recipe = outcome_recipe(stage, context.config, context.cohort, context.atlas, first)

    def key(entry: Entry) -> str:
        parts = [recipe, entry.source, str(entry.size), str(entry.mtime_ns), str(entry.t1w)]
        parts += [f"retry {entry.retry}"] if entry.retry else []
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    return BoundStep(
        step=step,
        context=context,
        key=key,
        run=lambda entry: run(entry, context),
        prepare=lambda: load(step.prepare)(context) if step.prepare else None,
        before=order[place - 1] if place else None,
    )


def run_stage(
    stage: str,
    chunk: str,
    context: Context,
    *,
    workers: int = 1,
    retry_failed: bool = False,
    log: Callable[[str], None] = print,
) -> list[Outcome]:
    """Run a stage over a chunk and write its stage table.

    A recording that an earlier stage gave up on keeps that status. Bad input never raises; the
    table has as many rows as the chunk has recordings.
    """
    paths, cohort = context.config.paths, context.cohort
    entries = read_entries(paths.chunk_table(cohort.name, chunk), cohort.folder)
    task = make_task(stage, context)
    outcomes: dict[str, Outcome] = {}
    warned: dict[str, list[str]] = {}
    if task.before:
        before = paths.stage_table(cohort.name, chunk, task.before)
        for row in read_stage_table(before):
            if row["status"] != "ok":
                outcomes[row["recording_id"]] = row
            elif row.get("warnings"):
                warned[row["recording_id"]] = row["warnings"]
    else:
        outcomes.update(_excluded(entries, cohort))
    return run_task(
        task, chunk, outcomes, warned, workers=workers, retry_failed=retry_failed, log=log
    )


def run_task(
    task: BoundStep,
    chunk: str,
    outcomes: dict[str, Outcome],
    warned: Mapping[str, list[str]] = MappingProxyType({}),
    *,
    workers: int = 1,
    retry_failed: bool = False,
    log: Callable[[str], None] = print,
) -> list[Outcome]:
    """Run a task for each recording of a chunk that has no outcome yet; write the chunk's table.

    What was computed from the same input is taken from the cache. `warned` has the warnings of
    earlier stages by recording.
    """
    paths, cohort = task.context.config.paths, task.context.cohort
    entries = read_entries(paths.chunk_table(cohort.name, chunk), cohort.folder)
    todo = [entry for entry in entries if entry.recording_id not in outcomes]
    fresh = []
    for entry in todo:
        kept = task.cached(entry)
        if kept is None or (retry_failed and kept["status"] != "ok"):
            fresh.append(entry)
        else:
            outcomes[entry.recording_id] = kept
    name = task.step.name
    log(f"{name} {cohort.name}/{chunk}: {len(entries)} recordings, {len(fresh)} to do")
    record = paths.chunk_record(name, cohort.name, chunk)
    write_record(record, Record(name, 0, len(fresh)), first=True)
    for count, (entry, outcome) in enumerate(_run_all(task, fresh, workers), start=1):
        task.keep(entry, outcome)
        outcomes[entry.recording_id] = outcome
        words = outcome["status"] + (f": {outcome['reason']}" if outcome["reason"] else "")
        log(f"  {count}/{len(fresh)} {entry.recording_id} {outcome['seconds']:.1f} s {words}")
        write_record(record, Record(name, count, len(fresh)))
    rows = [_warn(outcomes[entry.recording_id], warned) for entry in entries]
    write_stage_table(paths.stage_table(cohort.name, chunk, name), rows)
    return rows


def _warn(outcome: Outcome, warned: Mapping[str, list[str]]) -> Outcome:
    """An outcome with the warnings of earlier stages before its own."""
    before = warned.get(outcome["recording_id"], [])
    return {**outcome, "warnings": [*before, *outcome.get("warnings", [])]} if before else outcome


def _excluded(entries: list[Entry], cohort: Cohort) -> dict[str, Outcome]:
    reasons = read_exclusions(cohort)
    return {
        entry.recording_id: _outcome(entry, "excluded", reasons[entry.recording_id])
        for entry in entries
        if entry.recording_id in reasons
    }


def _outcome(entry: Entry, status: str, reason: str = "", seconds: float = 0.0, **figures):
    return {
        "recording_id": entry.recording_id,
        "status": status,
        "reason": _brief(reason),
        "seconds": round(seconds, 2),
        **figures,
    }


def _brief(reason: str) -> str:
    """One line of at most 300 characters; what to do is at the end, which stays."""
    words = " ".join(reason.split())
    return words if len(words) <= _LONGEST else f"{words[:150]} ... {words[150 + 5 - _LONGEST :]}"


def _run_all(task: BoundStep, entries: list[Entry], workers: int):
    """Yield (entry, outcome) as recordings finish, `workers` processes at a time."""
    # fork: a child starts in milliseconds with everything imported and the template loaded; the
    # parent runs no kernels, so it has no threads that a fork would leave behind.
    context = multiprocessing.get_context("fork")
    if entries:
        _import_kernels()
        task.prepare()
    waiting = list(reversed(entries))
    killed: set[str] = set()  # by the system, out of memory mostly: once more, at the end, alone
    running: dict[Any, tuple[Entry, Any, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < _room(waiting[-1], killed, workers):
                entry = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(task, entry, sender), daemon=True)
                process.start()
                sender.close()
                running[receiver] = (entry, process, time.monotonic())
            ready = multiprocessing.connection.wait(list(running), timeout=1.0)
            for receiver in list(running):
                entry, process, started = running[receiver]
                seconds = time.monotonic() - started
                if receiver in ready:
                    outcome = _receive(receiver, entry, process, seconds)
                    if process.exitcode == -signal.SIGKILL and entry.recording_id not in killed:
                        killed.add(entry.recording_id)
                        waiting.insert(0, entry)
                    else:
                        yield entry, outcome
                elif seconds > task.time_limit_s:
                    _stop(process)
                    yield (
                        entry,
                        _outcome(
                            entry,
                            "timeout",
                            f"took longer than {task.time_limit_s / 60:g} min",
                            seconds,
                        ),
                    )
                else:
                    continue
                receiver.close()
                del running[receiver]
    finally:
        for _, process, _ in running.values():
            _stop(process)


def _stop(process, patience_s: float = 5.0) -> None:
    """End a recording's process and the programs that it called, which are of its group.

    First asked, so that temporary files go; then killed.
    """
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:  # it ended by itself, or has no group of its own yet
            process.kill()
        process.join(patience_s)


def _room(entry: Entry, killed: set[str], workers: int) -> int:
    return 1 if entry.recording_id in killed else max(1, workers)


def _receive(receiver, entry: Entry, process, seconds: float) -> Outcome:
    try:
        status, reason, figures = receiver.recv()
    except EOFError:  # the process died without a word
        _stop(process)
        code = process.exitcode or 0
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return _outcome(entry, "crashed", f"the process ended with {name}{hint}", seconds)
    process.join()
    if status == _DISK:
        raise BrainLMError(f"{reason}; no finished work is lost: run it again")
    return _outcome(entry, status, reason, seconds, **figures)


def _child(task: BoundStep, entry: Entry, sender) -> None:
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    try:
        _use_one_thread()
        figures = plain_values(task.run(entry))
        sender.send(("ok", "", figures))
    except RecordingError as error:
        figures = plain_values(error.figures)
        # the same words wherever the cohort's folder lies: they go into the shard
        reason = error.reason.replace(f"{entry.cohort_folder}/", "")
        sender.send((error.status, reason, figures))
    except OSError as error:
        if is_disk_error(error):
            sender.send((_DISK, describe_disk_error(error), {}))
        else:
            traceback.print_exc()
            sender.send(("crashed", f"{type(error).__name__}: {error}", {}))
    except MemoryError:
        traceback.print_exc()
        sender.send(("crashed", "out of memory; give the job more, or exclude the recording", {}))
    except BrainLMError as error:
        sender.send(("missing_input", str(error), {}))
    except Exception as error:
        traceback.print_exc()
        sender.send(("crashed", f"{type(error).__name__}: {error}", {}))
    finally:
        sender.close()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _import_kernels() -> None:
    """In the parent, so that no child spends its time on it."""
    import numba  # noqa: F401
    import scipy.linalg  # noqa: F401 (carries a BLAS of its own, which is bound only once loaded)
    import threadpoolctl  # noqa: F401


def _use_one_thread() -> None:
    """Recordings are what runs in parallel; a recording is one thread."""
    import numba
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)
    numba.set_num_threads(1)


def write_stage_table(path: Path, rows: list[Outcome]) -> None:
    """One row per recording; figures that a row lacks are ``n/a``."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_tsv(path, columns, ([_cell(row.get(column)) for column in columns] for row in rows))


def _cell(value: Any) -> Any:
    """Of a list, its members in one line."""
    if isinstance(value, list):
        return _BETWEEN.join(" ".join(str(part).split()) for part in value) or None
    return value


def read_stage_table(path: Path) -> list[Outcome]:
    """Rows of a stage table; numbers as numbers, ``n/a`` as None, warnings as a list."""
    table = read_tsv(path, hint="run the stage before this one first")
    return [
        {key: _value(key, cell) for key, cell in row.items()}
        for row in table.records()
    ]  # fmt: skip


def _value(key: str, cell: str) -> Any:
    if key == "warnings":
        return [] if cell == MISSING else cell.split(_BETWEEN)
    return cell if key in _WORDS and cell != MISSING else as_number(cell)
