"""Where recordings are in a folder: one small file per layout, listed here.

Adding a layout is adding a file and its name to the list (and to `Cohort.layout` in config.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Set

from ...config import Cohort
from ...errors import BrainLMError
from .adni import ADNI
from .base import (
    ID_COLUMNS,
    Companions,
    Found,
    Layout,
    choose_variant,
    describe_left_out,
    find_file,
    parse_name,
    plain_label,
    same_run,
)
from .bids import BIDS
from .embarc import EMBARC
from .fmriprep import FMRIPREP
from .hcp import HCP, HCP_FIX
from .parcels import PARCELS
from .tops import TOPS
from .ukb import UKB
from .xcpd import XCPD
from .yooattn import YOOATTN

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        BIDS, FMRIPREP, XCPD, UKB, HCP, HCP_FIX, PARCELS, ADNI, EMBARC, TOPS, YOOATTN,
    )
}  # fmt: skip


def find_recordings(cohort: Cohort, skip: Set[str] = frozenset()) -> list[Found]:
    """A cohort's recordings, sorted by name; what lies in an entry of `skip` is not looked at.

    Raises
    ------
    BrainLMError
        The folder is missing, unreadable or has no recording of this layout; recordings come in
        several forms and none is chosen; or two files are the same recording.
    """
    return look(cohort, skip)[0]


def look(cohort: Cohort, skip: Set[str] = frozenset()) -> tuple[list[Found], list[str]]:
    """As :func:`find_recordings`, and lines that say which files are left out and why."""
    folder, layout = cohort.folder, LAYOUTS[cohort.layout]
    listed = _list(cohort, skip)
    left_out = describe_left_out(item for item in listed if item.left_out)
    listed = [item for item in listed if not item.left_out]
    try:
        found = choose_variant(listed, getattr(cohort, layout.variants), layout.variants)
    except BrainLMError as error:
        raise BrainLMError(f"{folder}: {error}") from None
    if not found and not skip:
        raise BrainLMError(
            f"{folder}: no recording found; layout {layout.name!r} expects {layout.tree}"
            + (f" with task-{cohort.task}" if cohort.task else "")
            + " (is the disk mounted?)"
            + "".join(f"; {line}" for line in left_out)
        )
    found.sort(key=lambda item: item.recording_id)
    for first, second in itertools.pairwise(found):
        if first.recording_id == second.recording_id:
            raise BrainLMError(
                f"{folder}: {first.source} and {second.source} are the same recording "
                f"({first.recording_id}); remove one"
            )
    return found, left_out


def _list(cohort: Cohort, skip: Set[str]) -> list[Found]:
    folder = cohort.folder
    if not folder.is_dir():
        raise BrainLMError(
            f"{folder}: folder not found; set the cohort's folder in config.yaml (is the disk "
            "mounted?)"
        )
    try:
        return LAYOUTS[cohort.layout].find(folder, cohort.task, skip)
    except PermissionError as error:
        raise BrainLMError(f"{error.filename}: no permission to read this folder") from None
    except OSError as error:
        raise BrainLMError(
            f"{error.filename or folder}: {error.strerror} while the cohort was being listed; is "
            "the disk still mounted?"
        ) from None


__all__ = [
    "ID_COLUMNS", "LAYOUTS", "Companions", "Found", "Layout", "find_file", "find_recordings",
    "look", "parse_name", "plain_label", "same_run",
]  # fmt: skip
