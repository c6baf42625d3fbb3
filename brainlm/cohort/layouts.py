"""Where recordings are in a folder. One function per layout; adding one means adding a function.

A layout is one pass over directories (``os.scandir``, in threads because parallel file systems
answer in milliseconds); no image is opened.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..errors import BrainLMError

_ENTITY = re.compile(r"([a-zA-Z0-9]+)-([^_]+)")
_THREADS = 16
_BATCH = 64  # subjects per thread's turn: handing over one by one costs more than listing it
#: Entities that say what was done to a recording, not which recording it is.
_DERIVED = ("space", "res", "den", "atlas", "seg", "stat", "desc")


@dataclass(frozen=True)
class Found:
    """A file that a layout recognises as a recording."""

    recording_id: str
    entities: dict[str, str]
    source: str
    size: int
    mtime_ns: int
    t1w: str | None = None


def parse_name(name: str) -> tuple[dict[str, str], str]:
    """BIDS entities and suffix of a file name: ``sub-1_task-x_bold.nii.gz`` -> {...}, "bold"."""
    parts = name.split(".", 1)[0].split("_")
    entities = {}
    for part in parts:
        match = _ENTITY.fullmatch(part)
        if match:
            entities[match[1]] = match[2]
    return entities, parts[-1]


def find_bids(folder: Path, task: str | None, known: Set[str]) -> list[Found]:
    """Raw BIDS: ``sub-*/[ses-*/]func/*_bold.nii[.gz]``."""
    return _per_subject(folder, known, lambda subject: _bids_subject(folder, subject, task))


def find_parcels(folder: Path, task: str | None, known: Set[str]) -> list[Found]:
    """Parcel series: BIDS-named ``*_timeseries.{npy,tsv}``, or a flat folder of .dat/.npy/.tsv."""
    found = _per_subject(folder, known, lambda subject: _series_subject(folder, subject, task))
    if found or any(name.startswith("sub-") for name in os.listdir(folder) if "." not in name):
        return found
    return _flat_series(folder, known)


LAYOUTS: dict[str, Callable[[Path, str | None, Set[str]], list[Found]]] = {
    "bids": find_bids,
    "parcels": find_parcels,
}


def find_recordings(
    folder: Path, layout: str, task: str | None = None, known: Set[str] = frozenset()
) -> list[Found]:
    """All recordings of a folder, sorted by name; those of `known` participants are not looked at.

    Raises
    ------
    BrainLMError
        The folder is missing, unreadable or has no recording of this layout, or two files are the
        same recording.
    """
    if not folder.is_dir():
        raise BrainLMError(
            f"{folder}: folder not found; set the cohort's folder in config.yaml (is the disk "
            "mounted?)"
        )
    try:
        found = sorted(LAYOUTS[layout](folder, task, known), key=lambda item: item.recording_id)
    except PermissionError as error:
        raise BrainLMError(f"{error.filename}: no permission to read this folder") from None
    except OSError as error:
        raise BrainLMError(
            f"{error.filename or folder}: {error.strerror} while the cohort was being listed; is "
            "the disk still mounted?"
        ) from None
    if not found and not known:
        wanted = {"bids": "sub-*/[ses-*/]func/*_bold.nii.gz", "parcels": "*_timeseries.npy"}
        raise BrainLMError(
            f"{folder}: no recording found; layout {layout!r} expects {wanted[layout]}"
            + (f" with task-{task}" if task else "")
        )
    for first, second in itertools.pairwise(found):
        if first.recording_id == second.recording_id:
            raise BrainLMError(
                f"{folder}: {first.source} and {second.source} are the same recording "
                f"({first.recording_id}); remove one"
            )
    return found


def _per_subject(folder: Path, known: Set[str], scan: Callable[[str], list[Found]]) -> list[Found]:
    with os.scandir(folder) as items:
        subjects = sorted(
            i.name
            for i in items
            if i.name.startswith("sub-") and i.name not in known and i.is_dir()
        )
    batches = [subjects[k : k + _BATCH] for k in range(0, len(subjects), _BATCH)]
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = pool.map(lambda batch: [f for name in batch for f in scan(name)], batches)
        return [found for part in parts for found in part]


def _sessions(folder: Path, subject: str) -> Iterator[tuple[str, os.DirEntry]]:
    """(session or "", directory entry of a datatype folder) of one subject."""
    with os.scandir(folder / subject) as items:
        for item in items:
            if item.name.startswith("ses-") and item.is_dir():
                with os.scandir(item.path) as inner:
                    yield from ((item.name, i) for i in inner if i.name in ("func", "anat"))
            elif item.name in ("func", "anat"):
                yield "", item


def _files(directory: str) -> list[os.DirEntry]:
    with os.scandir(directory) as items:
        return [item for item in items if not item.name.startswith(".")]


def _relative(item: os.DirEntry, folder: Path) -> str:
    return item.path.removeprefix(f"{folder}/")  # what os.path.relpath says, 30 times as fast


def _found(folder: Path, item: os.DirEntry, drop: tuple[str, ...] = (), t1w=None) -> Found:
    entities, _ = parse_name(item.name)
    kept = {key: value for key, value in entities.items() if key not in drop}
    try:
        status = item.stat()
        size, mtime = status.st_size, status.st_mtime_ns
    except OSError:  # a broken link is still a recording: it will be listed as unreadable
        size, mtime = -1, 0
    return Found(
        recording_id="_".join(f"{key}-{value}" for key, value in kept.items()),
        entities=kept,
        source=_relative(item, folder),
        size=size,
        mtime_ns=mtime,
        t1w=t1w,
    )


def _bids_subject(folder: Path, subject: str, task: str | None) -> list[Found]:
    runs: list[tuple[str, os.DirEntry]] = []
    anatomies: dict[str, os.DirEntry] = {}
    for session, directory in _sessions(folder, subject):
        for item in _files(directory.path):
            if directory.name == "anat" and item.name.endswith(("_T1w.nii.gz", "_T1w.nii")):
                best = anatomies.get(session)
                if best is None or item.name < best.name:
                    anatomies[session] = item
            elif directory.name == "func" and item.name.endswith(("_bold.nii.gz", "_bold.nii")):
                runs.append((session, item))
    found = []
    for session, item in runs:
        entities, _ = parse_name(item.name)
        if (task and entities.get("task") != task) or entities.get("part") == "phase":
            continue
        anatomy = anatomies.get(session) or next(
            (anatomies[key] for key in sorted(anatomies)), None
        )
        t1w = _relative(anatomy, folder) if anatomy else None
        found.append(_found(folder, item, t1w=t1w))
    return found


def _series_subject(folder: Path, subject: str, task: str | None) -> list[Found]:
    found = []
    for _, directory in _sessions(folder, subject):
        for item in _files(directory.path):
            entities, suffix = parse_name(item.name)
            is_series = suffix == "timeseries" and item.name.endswith((".npy", ".tsv"))
            of_parcels = "atlas" in entities or "seg" in entities
            of_mean = entities.get("stat", "mean") == "mean"
            wanted = task is None or entities.get("task") == task
            if is_series and of_parcels and of_mean and wanted:
                found.append(_found(folder, item, drop=_DERIVED))
    return found


def _flat_series(folder: Path, known: Set[str]) -> list[Found]:
    found = []
    for item in _files(str(folder)):
        if item.name.endswith((".dat", ".npy")) and item.is_file():
            stem = re.sub(r"[^a-zA-Z0-9]+", "", item.name.rsplit(".", 1)[0])
            if f"sub-{stem}" in known:
                continue
            status = item.stat()
            found.append(
                Found(f"sub-{stem}", {"sub": stem}, item.name, status.st_size, status.st_mtime_ns)
            )
    return found
