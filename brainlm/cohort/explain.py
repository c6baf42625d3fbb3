"""What is made of every file of a cohort's folder, and why, before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..config import Cohort
from .labels import participants_path
from .layouts import Found, belongs, examine_folder


def explain_files(cohort: Cohort) -> Iterator[tuple[str, str]]:
    """(path below the cohort's folder, what is made of it) of every file, sorted by path.

    Raises
    ------
    BrainLMError
        As :func:`~brainlm.cohort.layouts.examine_folder`.
    """
    found, left_out = examine_folder(cohort)
    words = {item.source: _describe(item) for item in found}
    words |= {item.source: _why(item) for item in left_out}
    readers: dict[str, list[str]] = {}
    for item in found:
        for name in item.companions:
            readers.setdefault(name, []).append(item.recording_id)
    for name in os.listdir(cohort.folder):
        if name.endswith(".json") and name not in readers:
            ids = [item.recording_id for item in found if belongs(name, item.source)]
            readers |= {name: ids} if ids else {}
    for name, ids in readers.items():
        more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        words.setdefault(name, f"read with {ids[0]}{more}")
    words |= _tables(cohort)
    for name in sorted({*words, *_list_files(cohort.folder)}):
        yield name, words.get(name, f"not read: layout {cohort.layout} does not use it")


def _describe(item: Found) -> str:
    lacking = "" if item.size >= 0 else " (the file cannot be read: it will fail)"
    return f"recording {item.recording_id}{lacking}"


def _why(item: Found) -> str:
    return f"{'refused' if item.refused else 'left out'}: {item.left_out}"


def _tables(cohort: Cohort) -> dict[str, str]:
    """Tables of the cohort that lie in its folder."""
    tables = {participants_path(cohort): "participants table", cohort.exclude: "exclusion table"}
    about = {cohort.folder / "dataset_description.json": "says whether the images are raw"}
    folder = cohort.folder.absolute()
    return {
        str(path.absolute().relative_to(folder)): text
        for path, text in (tables | about).items()
        if path is not None and os.path.lexists(path) and path.absolute().is_relative_to(folder)
    }


def _list_files(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in (*names, *links):
            yield os.path.relpath(os.path.join(parent, name), folder)
