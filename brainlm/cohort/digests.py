"""What tasks read of participants tables and of events, as digests: what used a corrected table is
repeated.

A digest is of the columns that a step uses and of the participants whose recordings it uses, or of
the events of those recordings, no more: a table that grows with its cohort repeats nothing of a
frozen release. The digests that a release's first plan found are kept; they count in a trigger
only where today's differ, so a study that is older than this file stays finished.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config import Cohort, Config
from ..files import digest, read_json, sha256, write_json
from ..tables import read_tsv
from .events import EventFiles
from .index import read_entries, read_participant_ids
from .labels import participants_path, read_column, read_columns

#: task -> step -> columns of the participants tables
Columns = Mapping[str, Mapping[str, Collection[str]]]
#: task -> cohort -> folder of the dataset that has its events
EventFolders = Mapping[str, Mapping[str, Path]]
#: Steps that see the release alone; others see external cohorts too.
_TRAINED = ("finetune",)


def digest_columns(config: Config, columns: Collection[str], *, trained: bool) -> str:
    """Of what the tables say in `columns` about those with a recording in the release, and, unless
    only what is `trained` on counts, in an external cohort."""
    parts = []
    for cohort, chunks in _cohorts_that_count(config, trained=trained):
        index = config.paths.index(cohort.name)
        participants = read_participant_ids(index, chunks) if index.exists() else None
        wanted = {column.casefold() for column in columns}
        for column in sorted(c for c in read_columns([cohort]) if c.casefold() in wanted):
            answers = read_column(cohort, column).dropna().droplevel(0)
            if known := sorted(
                a for a in answers.index if participants is None or a in participants
            ):
                parts.append([cohort.name, column, [[name, answers[name]] for name in known]])
    return digest(parts)


def note_digests(config: Config, columns: Columns, events: EventFolders) -> bool:
    """Keep today's digests for this run's jobs; whether a table or what is read of it changed."""
    if not columns and not events:
        return False
    found = {task: list(_find_events(config, folders)) for task, folders in events.items()}
    path = config.paths.label_digests
    kept: dict[str, Any] = read_json(path) if path.exists() else {"seen": "", "first": {}}
    shown = sorted({file for of in found.values() for *_, file in of})
    looks = [[str(file), _look_at(file)] for file in shown]
    seen = digest([_look(config), columns, *([looks] if events else [])])
    if kept["seen"] == seen:
        return False
    now = {
        task: {
            step: digest_columns(config, names, trained=step in _TRAINED)
            for step, names in of.items()
        }
        for task, of in columns.items()
    }
    contents = {file: sha256(file) for file in shown if file.is_file()}
    for task, of in found.items():
        said = [[cohort, recording, contents.get(file)] for cohort, recording, file in of]
        now[task] = {"evaluate": digest(said)}
    write_json(path, {"seen": seen, "first": now | kept["first"], "now": now})
    return True


def _find_events(config: Config, folders: Mapping[str, Path]) -> Iterator[tuple[str, str, Path]]:
    """(cohort, recording, its events.tsv) of what the evaluation sees."""
    for cohort, chunks in _cohorts_that_count(config, trained=False):
        index, files = config.paths.index(cohort.name), EventFiles(folders[cohort.name])
        for entry in read_entries(index, cohort.folder) if index.exists() else ():
            if chunks is None or entry.chunk in chunks:
                file = files.find(entry.recording_id, entry.source)
                if file is not None:
                    yield cohort.name, entry.recording_id, file


def changed_digest(config: Config, task: str, step: str) -> str | None:
    """Today's digest, where it is not that of the release's first plan."""
    path = config.paths.label_digests
    kept = read_json(path) if path.exists() else {}
    first, now = (kept.get(when, {}).get(task, {}).get(step) for when in ("first", "now"))
    return None if now == first else now


def released_chunks(config: Config) -> dict[str, set[str]] | None:
    """The chunks of each cohort in the release; None before it is frozen."""
    path = config.paths.release_shards
    if not path.exists():
        return None
    found: dict[str, set[str]] = {}
    for row in read_tsv(path).records():
        shard = Path(row["shard"])
        found.setdefault(shard.parent.name, set()).add(shard.stem)
    return found


def _cohorts_that_count(
    config: Config, *, trained: bool
) -> Iterator[tuple[Cohort, set[str] | None]]:
    """Each with the chunks that count, or None for all."""
    released = released_chunks(config)
    for cohort in config.cohorts:
        if cohort.role == "external":
            if not trained:
                yield cohort, None
        elif cohort.role != "reference":
            continue
        elif released is None:
            yield cohort, None
        elif cohort.name in released:
            yield cohort, released[cohort.name]


def _look(config: Config) -> list[Any]:
    """Size and time of every file that the digests are of."""
    files = [config.paths.release_shards]
    for cohort in config.cohorts:
        files += [config.paths.index(cohort.name), participants_path(cohort) or Path("-")]
    return [[cohort.name, cohort.role] for cohort in config.cohorts] + [
        _look_at(path) for path in files
    ]


def _look_at(path: Path) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
