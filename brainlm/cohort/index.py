"""The index: which recordings a cohort has, and in which chunk each one lives for ever.

A chunk is the unit of work: one shard, one cluster job. A recording keeps its chunk for life and
new recordings open new chunks, so that nothing old is planned again. The index is written once
per run by the main process; jobs only read their chunk's table.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from ..config import Cohort
from ..errors import BrainLMError
from ..files import read_json, write_json, write_text
from ..paths import Results
from ..tables import format_tsv, read_tsv
from .exclusions import read_exclusions
from .layouts import Found, belongs, describe_skipped, examine_folder, find_file
from .recordings import Entry
from .watch import entries_to_check, entries_to_skip, today

COLUMNS = (
    "recording_id", "participant_id", "session_id", "task", "run",
    "source", "t1w", "size", "mtime_ns", "retry", "chunk",
)  # fmt: skip
_SOURCE, _SIZE, _MTIME, _RETRY = map(COLUMNS.index, ("source", "size", "mtime_ns", "retry"))
Row = tuple[str, ...]  # the cells of a row, in the order of COLUMNS
_LARGEST_CHUNK = 200
_FEWEST_CHUNKS = 8
_THREADS = 16
_SHARED = ("_bold.json", "_timeseries.json")
#: Preprocessing time by the size of the compressed image, one core; only sizes chunks and asks
#: for run time (docs/scaling.md, "Chunks").
SECONDS_PER_MB = 0.5
_WORK_S = 30 * 60 * 8  # half an hour on eight cores
#: More vanished recordings than this share (and than ten) look like an unmounted disk.
_VANISHED = 0.05


@dataclass(frozen=True)
class IndexChange:
    """What an update of the index found; `left_out`: which files are no recordings, and why."""

    total: int
    added: int
    changed: int
    removed: int
    chunks: int
    left_out: tuple[str, ...] = ()


def read_participant_ids(table: Path, chunks: Set[str] | None = None) -> set[str]:
    """Participants (``sub-01``) of a cohort's index, or of some of its chunks."""
    return {row[1] for row in _read_rows(table) if chunks is None or row[-1] in chunks}


def read_entries(table: Path, folder: Path) -> list[Entry]:
    """Recordings of a chunk's table or of a whole index.

    Raises
    ------
    BrainLMError
        The table is missing, or a row points outside the cohort's folder.
    """
    folder = Path(folder).absolute()
    entries = []
    for cells in _read_rows(table):
        row = dict(zip(COLUMNS, cells, strict=True))
        for key in ("source", "t1w"):
            if ".." in row[key].split("/") or row[key].startswith("/"):
                raise BrainLMError(f"{table}: {key} {row[key]!r} points outside {folder}")
        if "/" in row["recording_id"] or row["recording_id"].startswith("."):
            raise BrainLMError(f"{table}: {row['recording_id']!r} cannot name a recording's files")
        entries.append(
            Entry(
                recording_id=row["recording_id"],
                participant_id=row["participant_id"],
                session_id=row["session_id"] or None,
                task=row["task"] or None,
                run=row["run"] or None,
                path=folder / row["source"],
                source=row["source"],
                t1w=folder / row["t1w"] if row["t1w"] else None,
                size=int(row["size"]),
                mtime_ns=int(row["mtime_ns"]),
                retry=int(row["retry"]),
                chunk=row["chunk"],
            )
        )
    return entries


def read_sizes(table: Path) -> list[int]:
    """Bytes of each recording of a chunk table; -1 for a file that could not be looked at."""
    column = COLUMNS.index("size")
    return [int(cells[column]) for cells in _read_rows(table)]


def update_index(
    cohort: Cohort,
    results: Path,
    chunk_size: int | str,
    *,
    accept_removed: bool = False,
    everything: bool = False,
) -> IndexChange:
    """Bring a cohort's tables up to date with its folder, as far as ``cohort.watch`` looks.

    ``auto`` looks at what :mod:`~brainlm.cohort.watch` says, ``full`` (or `everything`) at every
    recording, ``sealed`` not at all. Tables are rewritten only where a row changed;
    recordings.tsv goes last, and a mark stands while they are being written, so a kill in between
    is repaired by the next update.

    Raises
    ------
    BrainLMError
        From :func:`~brainlm.cohort.layouts.look`; or when more than 5 % (and more than
        ten) of the known recordings are gone and `accept_removed` is false.
    """
    paths = Results(results)
    state = paths.index(cohort.name)
    if cohort.watch == "sealed" and state.exists():
        return IndexChange(0, 0, 0, 0, 0)
    known = {row[0]: row for row in _read_rows(state)} if state.exists() else {}
    day = today()
    sidecars = _shared_sidecars(cohort)
    what = _looks_for(cohort, sidecars)
    looked = None if everything or cohort.watch != "auto" else _last_look(cohort, paths, what)
    found, kept, left_out, skipped = _look(cohort, known, looked)
    closely = entries_to_check(
        [row[_SOURCE] for row in known.values()], [row[-1] for row in known.values()], looked
    )
    found = _count_edits(cohort, paths.companions(cohort.name), found, known, closely, sidecars)
    rows = _assign_chunks(found, known, chunk_size)
    rows = sorted(kept + rows, key=itemgetter(0)) if kept else rows
    gone = known.keys() - {row[0] for row in rows}
    if not accept_removed:
        _check_vanished(cohort, len(gone), len(known), min(gone, default=""))
    chunks = {row[-1] for row in rows}
    if list(known.values()) != rows or _broken(paths, cohort.name, chunks):
        _write_index(paths, cohort.name, rows, known)
    _note_refused(paths.refused(cohort.name), left_out, skipped)
    _note_look(cohort, paths, what, day)
    return IndexChange(
        total=len(rows),
        added=len(rows) - (len(known) - len(gone)),
        changed=sum(row != known.get(row[0], row) for row in rows),
        removed=len(gone),
        chunks=len(chunks),
        left_out=tuple(describe_skipped(left_out)),
    )


def _look(
    cohort: Cohort, known: dict[str, Row], looked: int | None
) -> tuple[list[Found], list[Row], list[Found], Set[str]]:
    """Recordings that were looked at, the rows of those that were not, what was left out, and the
    entries that were skipped."""
    rows = known.values()
    entries = [row[_SOURCE].partition("/")[0] for row in rows]
    skip = entries_to_skip(entries, [row[-1] for row in rows], cohort.folder, looked)
    kept = [row for row, entry in zip(rows, entries, strict=True) if entry in skip]
    if skip:
        try:
            found, left_out = examine_folder(cohort, skip)
        except BrainLMError:  # maybe of this share only: see the whole
            skip = set()
        else:
            ids = {item.recording_id for item in found}
            if any(row[0] in ids for row in kept):  # a recording has moved, or is there twice
                skip = set()
    if not skip:
        found, left_out = examine_folder(cohort)
        kept = []
    return found, kept, left_out, skip


def read_refused(path: Path) -> dict[str, str]:
    """Files that were refused as recordings when the cohort was indexed, with the reasons."""
    return read_json(path) if path.exists() else {}


def _note_refused(path: Path, left_out: Iterable[Found], skipped: Set[str]) -> None:
    """Keep what is refused where the summary finds it; of entries that were skipped, as it was."""
    before = read_refused(path)
    kept = {source: why for source, why in before.items() if source.partition("/")[0] in skipped}
    now = kept | {item.source: item.left_out for item in left_out if item.refused}
    if now != before:
        write_json(path, dict(sorted(now.items())))


def _count_edits(
    cohort: Cohort,
    path: Path,
    found: list[Found],
    known: dict[str, Row],
    closely: Set[str] | None,
    shared: dict[str, str],
) -> list[Found]:
    """The recordings, with a time that counts the edits of their companions.

    The first look notes what they are. A change later adds a nanosecond to the recording's time,
    which makes it another input: nothing else of rows and tables changes.

    Parameters
    ----------
    closely : set of str or None
        Entries of the folder whose companions are looked at now; None: all.
    """
    before: dict[str, list] = read_json(path) if path.exists() else {}
    reasons = read_exclusions(cohort)

    def look(item: Found) -> list:
        state, edits = before.get(item.recording_id, ["", 0])
        row = known.get(item.recording_id)
        own = (item.source, str(item.size), str(item.mtime_ns + edits))
        same = row is not None and (row[_SOURCE], row[_SIZE], row[_MTIME]) == own
        if same and closely is not None and item.source.partition("/")[0] not in closely:
            return [state, edits]
        files = [_fingerprint(cohort.folder / name) for name in item.companions]
        above = [text for name, text in shared.items() if belongs(name, item.source)]
        said = reasons.get(item.recording_id, "")
        words = "\n".join([*item.companions, *files, *above, said])
        now = hashlib.blake2b(words.encode(), digest_size=8).hexdigest()
        return [now, edits + (same and state not in ("", now))]

    with ThreadPoolExecutor(_THREADS) as pool:
        states = dict(zip((i.recording_id for i in found), pool.map(look, found), strict=True))
    after = {name: before[name] for name in known if name in before} | states
    if after != before:
        write_json(path, after)
    edits = [states[item.recording_id][1] for item in found]
    return [replace(i, mtime_ns=i.mtime_ns + n) if n else i
            for i, n in zip(found, edits, strict=True)]  # fmt: skip


def _shared_sidecars(cohort: Cohort) -> dict[str, str]:
    """Sidecars in the cohort's folder itself, which its recordings inherit."""
    try:
        names = [name for name in os.listdir(cohort.folder) if name.endswith(_SHARED)]
    except OSError:  # looking at the recordings says what is wrong
        return {}
    return {name: _fingerprint(cohort.folder / name) for name in sorted(names)}


def _fingerprint(path: Path) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return "-"
    return f"{status.st_size}:{status.st_mtime_ns}"


def _last_look(cohort: Cohort, paths: Results, looks_for: dict[str, Any]) -> int | None:
    """The day; None if there was none, or another kind of recording was looked for."""
    try:
        day, what = json.loads(paths.last_look(cohort.name).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return day if what == looks_for else None


def _looks_for(cohort: Cohort, sidecars: dict[str, str]) -> dict[str, Any]:
    """What decides, besides the recordings' own folders, what is found there."""
    keys = ("folder", "layout", "task", "space", "segmentation")
    chosen = {"select": dict(cohort.select)} if cohort.select else {}
    shared: dict[str, Any] = {}
    if cohort.exclude is not None:
        shared["exclude"] = _fingerprint(cohort.exclude)
    if sidecars:  # edited, all recordings are looked at
        shared["sidecars"] = sidecars
    return cohort.model_dump(mode="json", include=set(keys)) | chosen | shared


def _note_look(cohort: Cohort, paths: Results, looks_for: dict[str, Any], day: int) -> None:
    """The day, and what the cohort's entry said then of its files."""
    if _last_look(cohort, paths, looks_for) != day:
        # without the right to write here, the same ones are looked at again
        with contextlib.suppress(PermissionError):
            write_text(paths.last_look(cohort.name), json.dumps([day, looks_for]) + "\n")


def mark_retries(results: Path, cohort: str, failed: Set[str], number: int) -> int:
    """Give failed recordings another try: their rows change, so their chunks are planned again.

    A recording is tried once for each `number`; returns how many are tried now.
    """
    paths = Results(results)
    known = {row[0]: row for row in _read_rows(paths.index(cohort))}
    rows = [
        (*row[:_RETRY], str(number), *row[_RETRY + 1 :])
        if row[0] in failed and int(row[_RETRY]) < number
        else row
        for row in known.values()
    ]
    changed = sum(row != known[row[0]] for row in rows)
    if changed:
        _write_index(paths, cohort, rows, known)
    return changed


def _broken(paths: Results, cohort: str, chunks: set[str]) -> bool:
    """An update was killed, or chunk tables were deleted."""
    return paths.index_mark(cohort).exists() or set(paths.list_chunks(cohort)) != chunks


def _check_vanished(cohort: Cohort, gone: int, known: int, first: str) -> None:
    if gone > max(10, _VANISHED * known):
        raise BrainLMError(
            f"{cohort.folder}: {gone} of {known} known recordings are gone (first: {first}); is "
            "the disk mounted? If they were removed on purpose run: "
            f"brainlm index --cohort {cohort.name} --accept-removed"
        )


def _assign_chunks(found: list[Found], known: dict[str, Row], chunk_size: int | str) -> list[Row]:
    new = [item for item in found if item.recording_id not in known]
    size = choose_chunk_size(new) if chunk_size == "auto" else int(chunk_size)
    first = 1 + max((int(row[-1]) for row in known.values()), default=-1)
    chunk_of = {item.recording_id: f"{first + k // size:05d}" for k, item in enumerate(new)}
    rows: list[Row] = []
    for item in found:
        old = known.get(item.recording_id)
        entities = item.entities
        row = (
            item.recording_id,
            f"sub-{entities.get('sub', '')}",
            f"ses-{entities['ses']}" if "ses" in entities else "",
            entities.get("task", ""),
            entities.get("run", ""),
            item.source,
            item.t1w or "",
            str(item.size),
            str(item.mtime_ns),
            old[_RETRY] if old else "0",
            old[-1] if old else chunk_of[item.recording_id],
        )
        rows.append(old if row == old else row)
    return rows


def choose_chunk_size(new: list[Found]) -> int:
    """Recordings per chunk: enough chunks for every core, else about half an hour of work.

    The work is judged from the files' sizes (see :data:`SECONDS_PER_MB`).
    """
    cores = max(_FEWEST_CHUNKS, os.cpu_count() or 1)
    each_mb = sum(max(0, item.size) for item in new) / 1e6 / max(1, len(new))
    by_work = _WORK_S / max(1.0, SECONDS_PER_MB * each_mb)
    return max(1, min(math.ceil(len(new) / cores), _LARGEST_CHUNK, int(by_work)))


def _write_index(paths: Results, cohort: str, rows: list[Row], known: dict[str, Row]) -> None:
    """Write the tables of chunks in which a row changed or that are not there (all after a kill),
    then the table of all; a mark stands while they are being written."""
    there, mark = set(paths.list_chunks(cohort)), paths.index_mark(cohort)
    interrupted = mark.exists()
    write_text(mark, "")
    chunks: dict[str, list[Row]] = {}
    for row in rows:
        chunks.setdefault(row[-1], []).append(row)
    before: dict[str, list[Row]] = {}
    for row in known.values():
        before.setdefault(row[-1], []).append(row)

    def write(item: tuple[str, list[Row]]) -> None:
        path, text = paths.chunk_table(cohort, item[0]), _as_tsv(item[1])
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)

    with ThreadPoolExecutor(_THREADS) as pool:  # each waits for its file to reach the disk
        changed = (
            item
            for item in chunks.items()
            if interrupted or item[0] not in there or before.get(item[0]) != item[1]
        )
        for _ in pool.map(write, changed):
            pass
    if known or interrupted:  # all rows are here: the other chunks lost their last recording
        for chunk in there - chunks.keys():
            paths.chunk_table(cohort, chunk).unlink(missing_ok=True)
    write_text(paths.index(cohort), _as_tsv(rows))
    mark.unlink()


def _as_tsv(rows: list[Row]) -> str:
    return format_tsv(COLUMNS, rows, "index")


def _read_rows(table: Path) -> list[Row]:
    found = read_tsv(table, hint="run: brainlm index")
    if found.columns != COLUMNS:
        raise BrainLMError(
            f"{table}: expected columns {', '.join(COLUMNS)}; remove it and reindex"
        )
    return [tuple(row) for row in found.rows]


def index_file(cohort: Cohort, results: Path, file: Path) -> None:
    """Make the index of a cohort of one recording: `file`, below the cohort's folder."""
    paths = Results(results)
    state = paths.index(cohort.name)
    rows = _assign_chunks([find_file(cohort.folder, file)], {}, 1)
    if not state.exists() or _read_rows(state) != rows:
        _write_index(paths, cohort.name, rows, {})


def simulate_index(folder: Path, num_recordings: int, chunk_size: int = 100) -> None:
    """Write the index of a cohort that does not exist, for planning tests.

    Parameters
    ----------
    folder : Path
        ``<results>/index/<cohort>``.
    """
    folder = Path(folder)
    found = []
    for number in range(num_recordings):
        subject = f"{number:07d}"
        name = f"sub-{subject}_task-rest"
        source = f"sub-{subject}/func/{name}_bold.nii.gz"
        found.append(Found(name, {"sub": subject, "task": "rest"}, source, 1, 1))
    rows = _assign_chunks(found, {}, chunk_size)
    _write_index(Results(folder.parents[1]), folder.name, rows, {})
