"""Raw BIDS."""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path

from .base import Found, Layout, files, found, parse_name, per_subject, relative, sessions


def find(folder: Path, task: str | None, skip: Set[str]) -> list[Found]:
    """``sub-*/[ses-*/]func/*_bold.nii[.gz]``, with a T1w image of the same person."""
    return per_subject(folder, skip, lambda subject: _subject(folder, subject, task))


def _subject(folder: Path, subject: str, task: str | None) -> list[Found]:
    runs: list[tuple[str, os.DirEntry]] = []
    anatomies: dict[str, os.DirEntry] = {}
    for session, directory in sessions(folder, subject):
        for item in files(directory.path):
            if directory.name == "anat" and item.name.endswith(("_T1w.nii.gz", "_T1w.nii")):
                best = anatomies.get(session)
                if best is None or item.name < best.name:
                    anatomies[session] = item
            elif directory.name == "func" and item.name.endswith(("_bold.nii.gz", "_bold.nii")):
                runs.append((session, item))
    recordings = []
    for session, item in runs:
        entities, _ = parse_name(item.name)
        if (task and entities.get("task") != task) or entities.get("part") == "phase":
            continue
        anatomy = anatomies.get(session) or next(
            (anatomies[key] for key in sorted(anatomies)), None
        )
        t1w = relative(anatomy.path, folder) if anatomy else None
        recordings.append(found(folder, item.path, entities, t1w=t1w))
    return recordings


BIDS = Layout("bids", "motion", "sub-*/[ses-*/]func/*_bold.nii[.gz]", find)
