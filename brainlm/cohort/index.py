"""The index: which recordings a cohort has, and in which chunk each one lives for ever.

A chunk is the unit of work: one shard, one cluster job. A recording keeps its chunk for life and
new recordings open new chunks, so that nothing old is planned again. The index is written once
per run by the main process; jobs only read their chunk's table.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

from ..config import Cohort
from ..errors import BrainLMError
from ..files import write_text
from .layouts import Found, find_recordings
from .recordings import Entry

COLUMNS = (
    "recording_id", "participant_id", "session_id", "task", "run",
    "source", "t1w", "size", "mtime_ns", "chunk",
)  # fmt: skip
_LARGEST_CHUNK = 100
#: More vanished recordings than this share (and than ten) look like an unmounted disk.
_VANISHED = 0.05


@dataclass(frozen=True)
class IndexChange:
    """What an update of the index found."""

    total: int
    added: int
    changed: int
    removed: int
    chunks: int


def index_folder(results: Path, cohort: str) -> Path:
    return Path(results) / "index" / cohort


def chunk_table(results: Path, cohort: str, chunk: str) -> Path:
    """Path of one chunk's table of recordings."""
    return index_folder(results, cohort) / "chunks" / f"{chunk}.tsv"


def list_chunks(results: Path, cohort: str) -> list[str]:
    """Chunks of an indexed cohort, in order."""
    folder = index_folder(results, cohort) / "chunks"
    return sorted(path.stem for path in folder.glob("*.tsv") if not path.name.startswith("."))


def read_entries(table: Path, folder: Path) -> list[Entry]:
    """Recordings of a chunk table or of recordings.tsv.

    Raises
    ------
    BrainLMError
        The table is missing, or a row points outside the cohort's folder.
    """
    folder = Path(folder).absolute()
    entries = []
    for row in _read_rows(table):
        for key in ("source", "t1w"):
            if ".." in Path(row[key]).parts or Path(row[key]).is_absolute():
                raise BrainLMError(f"{table}: {key} {row[key]!r} points outside {folder}")
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
                chunk=row["chunk"],
            )
        )
    return entries


def update_index(
    cohort: Cohort, results: Path, chunk_size: int | str, *, accept_removed: bool = False
) -> IndexChange:
    """Scan a cohort's folder once and bring its tables up to date.

    Tables are rewritten only where a row changed; recordings.tsv goes last, so a kill in between
    is repaired by the next update.

    Raises
    ------
    BrainLMError
        From :func:`~brainlm.cohort.layouts.find_recordings`; or when more than 5 % (and more than
        ten) of the known recordings are gone and `accept_removed` is false.
    """
    state = index_folder(results, cohort.name) / "recordings.tsv"
    known = {row["recording_id"]: row for row in _read_rows(state)} if state.exists() else {}
    found = find_recordings(cohort.folder, cohort.layout, cohort.task)
    gone = known.keys() - {item.recording_id for item in found}
    if len(gone) > max(10, _VANISHED * len(known)) and not accept_removed:
        raise BrainLMError(
            f"{cohort.folder}: {len(gone)} of {len(known)} known recordings are gone (first: "
            f"{min(gone)}); is the disk mounted? If they were removed on purpose run: "
            f"brainlm index --cohort {cohort.name} --accept-removed"
        )
    rows = _assign_chunks(found, known, chunk_size)
    _write_tables(results, cohort.name, rows)
    if list(known.values()) != rows:
        write_text(state, _as_tsv(rows))
    changed = sum(
        row["recording_id"] in known and row != known[row["recording_id"]] for row in rows
    )
    return IndexChange(
        total=len(rows),
        added=len(rows) - (len(known) - len(gone)),
        changed=changed,
        removed=len(gone),
        chunks=len({row["chunk"] for row in rows}),
    )


def _assign_chunks(
    found: list[Found], known: dict[str, dict[str, str]], chunk_size: int | str
) -> list[dict[str, str]]:
    new = [item for item in found if item.recording_id not in known]
    size = chunk_size
    if size == "auto":  # eight jobs for a small cohort, a hundred recordings in a large one
        size = min(_LARGEST_CHUNK, max(1, math.ceil(len(new) / 8)))
    first = 1 + max((int(row["chunk"]) for row in known.values()), default=-1)
    chunk_of = {item.recording_id: f"{first + k // int(size):05d}" for k, item in enumerate(new)}
    rows = []
    for item in found:
        old = known.get(item.recording_id)
        entities = item.entities
        rows.append({
            "recording_id": item.recording_id,
            "participant_id": f"sub-{entities.get('sub', '')}",
            "session_id": f"ses-{entities['ses']}" if "ses" in entities else "",
            "task": entities.get("task", ""),
            "run": entities.get("run", ""),
            "source": item.source,
            "t1w": item.t1w or "",
            "size": str(item.size),
            "mtime_ns": str(item.mtime_ns),
            "chunk": old["chunk"] if old else chunk_of[item.recording_id],
        })  # fmt: skip
    return rows


def _write_tables(results: Path, cohort: str, rows: list[dict[str, str]]) -> None:
    chunks: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        chunks.setdefault(row["chunk"], []).append(row)
    for chunk, members in chunks.items():
        path, text = chunk_table(results, cohort, chunk), _as_tsv(members)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    for chunk in set(list_chunks(results, cohort)) - chunks.keys():
        chunk_table(results, cohort, chunk).unlink()  # every recording of it was removed


def _as_tsv(rows: list[dict[str, str]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _read_rows(table: Path) -> list[dict[str, str]]:
    try:
        with open(table, newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle, delimiter="\t"))
    except FileNotFoundError:
        raise BrainLMError(f"{table}: not found; run: brainlm index") from None
    if rows and set(rows[0]) != set(COLUMNS):
        raise BrainLMError(
            f"{table}: expected columns {', '.join(COLUMNS)}; remove it and reindex"
        )
    return rows


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
    _write_tables(folder.parent.parent, folder.name, rows)
    write_text(folder / "recordings.tsv", _as_tsv(rows))
