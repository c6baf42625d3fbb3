"""Where recordings are in a folder: one small file per layout, listed here.

Adding a layout is adding a file and its name to the list (and to `Cohort.layout` in config.py).
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from pathlib import Path

from ...config import Cohort
from ...errors import BrainLMError
from .adni import ADNI
from .base import (
    ID_COLUMNS,
    Companions,
    Found,
    Layout,
    belongs,
    choose_variant,
    describe_skipped,
    find_file,
    parse_name,
    plain_label,
    same_run,
    select,
    settle_versions,
)
from .bids import BIDS
from .cifti import CIFTI
from .description import FILE, read_description
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
        BIDS, FMRIPREP, CIFTI, XCPD, UKB, HCP, HCP_FIX, PARCELS, ADNI, EMBARC, TOPS, YOOATTN,
    )
}  # fmt: skip


def look(cohort: Cohort, skip: Set[str] = frozenset()) -> tuple[list[Found], list[str]]:
    """As :func:`examine_folder`, with a line for each reason why files are left out."""
    found, left_out = examine_folder(cohort, skip)
    return found, describe_skipped(left_out)


def examine_folder(
    cohort: Cohort, skip: Set[str] = frozenset()
) -> tuple[list[Found], list[Found]]:
    """A cohort's recordings, sorted by name, and the files that look like some but are left out.

    What lies in an entry of `skip` is not searched.

    Raises
    ------
    BrainLMError
        The folder is missing, unreadable, a derivative under a layout of raw images, or has no
        recording of this layout; or recordings come in several forms and none is chosen.
    """
    folder, layout = cohort.folder, LAYOUTS[cohort.layout]
    listed = _list(cohort, skip)
    left_out = [item for item in listed if item.left_out]
    found = [item for item in listed if not item.left_out]
    if cohort.task:
        left_out += [_of_another_task(item, cohort.task) for item in found
                     if item.entities.get("task") != cohort.task]  # fmt: skip
        found = [item for item in found if item.entities.get("task") == cohort.task]
    found, left = select(found, dict(cohort.select))
    left_out += left
    try:
        found, left = choose_variant(found, getattr(cohort, layout.variants), layout.variants)
    except BrainLMError as error:
        raise BrainLMError(f"{folder}: {error}") from None
    left_out += left
    found, left = settle_versions(found, raw=layout.enters == "motion")
    left_out += left
    if not found and not skip:
        raise BrainLMError(
            f"{folder}: no recording found; layout {layout.name!r} expects {layout.tree}"
            + (f" with task-{cohort.task}" if cohort.task else "")
            + " (is the disk mounted?)"
            + "".join(f"; {line}" for line in describe_skipped(left_out))
        )
    found.sort(key=lambda item: item.recording_id)
    return found, left_out


def _of_another_task(item: Found, task: str) -> Found:
    other = "task" in item.entities
    return replace(item, left_out=f"not task-{task}" if other else "no task in its name")


def _list(cohort: Cohort, skip: Set[str]) -> list[Found]:
    folder = cohort.folder
    if not folder.is_dir():
        raise BrainLMError(
            f"{folder}: folder not found; set the cohort's folder in config.yaml (is the disk "
            "mounted?)"
        )
    try:
        if LAYOUTS[cohort.layout].enters == "motion":
            _check_raw(folder, cohort.layout)
        return LAYOUTS[cohort.layout].find(folder, skip)
    except PermissionError as error:
        raise BrainLMError(f"{error.filename}: no permission to read this folder") from None
    except OSError as error:
        raise BrainLMError(
            f"{error.filename or folder}: {error.strerror} while the cohort was being listed; is "
            "the disk still mounted?"
        ) from None


def _check_raw(folder: Path, layout: str) -> None:
    """Refuse a folder that says that it holds derivatives, not raw images."""
    about = read_description(folder)
    if about and about.derivative:
        other = "" if about.layout else " (or parcels, for parcel series)"
        raise BrainLMError(
            f"{folder / FILE}: the folder holds derivatives, layout {layout!r} expects raw "
            f"images; use layout: {about.layout or 'fmriprep'}{other}"
        )


__all__ = [
    "ID_COLUMNS",
    "LAYOUTS",
    "Companions",
    "Found",
    "Layout",
    "belongs",
    "describe_skipped",
    "find_file",
    "look",
    "parse_name",
    "plain_label",
    "read_description",
    "same_run",
]  # fmt: skip
