"""Raw BIDS."""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path

from .base import (
    DERIVED,
    Found,
    Layout,
    belonging,
    datatypes,
    found_bids,
    is_image,
    leave,
    parse_name,
    per_subject,
    relative,
)
from .field_maps import of_other_direction


def find(folder: Path, skip: Set[str]) -> list[Found]:
    """``sub-*/[ses-*/]func/*_bold.nii[.gz]``, with a T1w image of the same participant and the
    session's field maps."""
    return per_subject(folder, skip, lambda subject: _subject(folder, subject))


def _subject(folder: Path, subject: str) -> list[Found]:
    left: list[Found] = []
    runs: list[tuple[str, os.DirEntry, list[os.DirEntry]]] = []
    beside: dict[str, list[os.DirEntry]] = {}
    anatomies: dict[str, os.DirEntry] = {}
    maps: dict[str, list[os.DirEntry]] = {}
    for session, datatype, items, near in datatypes(folder, subject, left):
        if datatype == "fmap":
            maps.setdefault(session, []).extend(items)
            continue
        if datatype == "func":
            beside[session] = items
        for item in items:
            entities, suffix = parse_name(item.name)
            if not is_image(item.name):
                continue
            if datatype == "anat" and suffix == "T1w":
                if f"sub-{entities.get('sub')}" != subject:
                    left.append(leave(folder, item, "a T1w image of another participant"))
                elif session not in anatomies or item.name < anatomies[session].name:
                    anatomies[session] = item
            elif datatype == "func" and suffix != "bold":
                left.append(leave(folder, item, "not a BOLD image (by its suffix)"))
            elif datatype == "func" and entities.keys() & DERIVED:
                left.append(leave(folder, item, "a derivative (by its name: desc-, space-, ...)"))
            elif datatype == "func":
                runs.append((session, item, near))
    for session, item, near in runs:
        anatomy = anatomies.get(session) or next(
            (anatomies[key] for key in sorted(anatomies)), None
        )
        t1w = relative(anatomy.path, folder) if anatomy else None
        about = belonging(folder, item.name, near) + ((t1w,) if t1w else ())
        others = [one for one in beside[session] if of_other_direction(one.name, item.name)]
        others += maps.get(session, [])
        about += tuple(sorted(relative(one.path, folder) for one in others))
        left.append(found_bids(folder, item, t1w=t1w, companions=about))
    return left


BIDS = Layout("bids", "motion", "sub-*/[ses-*/]func/*_bold.nii[.gz]", find)
