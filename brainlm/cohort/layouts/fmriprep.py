"""fMRIPrep derivatives: images in template space, with confounds next to them.

Source: fMRIPrep documentation, "Outputs of fMRIPrep". Images in the recording's own space
(``space-T1w``, or none) are not used; a recording that has no other is one that fails when it is
read, so that it is counted.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from .base import (
    DERIVED,
    OWN,
    Companions,
    Found,
    Layout,
    belonging,
    find_companion,
    found_bids,
    functional,
    is_image,
    leave,
    name_variant,
    parse_name,
    per_subject,
)

_NATIVE = ("T1w", "T2w", "func", "boldref", "individual")


def find(folder: Path, skip: Set[str]) -> list[Found]:
    """``sub-*/[ses-*/]func/*_space-<template>_[res-*_]desc-preproc_bold.nii.gz``."""
    return per_subject(folder, skip, lambda subject: _subject(folder, subject))


def _subject(folder: Path, subject: str) -> list[Found]:
    recordings: list[Found] = []
    for item, near in functional(folder, subject, recordings):
        entities, suffix = parse_name(item.name)
        space = entities.get("space", "func")
        own = space in _NATIVE
        if not is_image(item.name):
            continue
        if suffix != "bold" or item.name.endswith(".dtseries.nii"):
            recordings.append(leave(folder, item, "not BOLD volumes (by suffix or extension)"))
        elif entities.get("desc") != "preproc":
            recordings.append(leave(folder, item, "not desc-preproc"))
        elif own and "echo" in entities:
            recordings.append(leave(folder, item, "single echoes"))
        else:
            variant = OWN if own else name_variant(entities, space, "cohort", "res")
            about = belonging(folder, item.name, near)
            recordings.append(found_bids(folder, item, DERIVED, variant=variant, companions=about))
    return recordings


def companions(path: Path) -> Companions:
    """Space by its name; confounds of the same run (``_regressors`` before version 20.2)."""
    confounds = find_companion(path, ("timeseries", "regressors"), desc="confounds")
    return Companions(parse_name(path.name)[0].get("space"), confounds)


FMRIPREP = Layout(
    "fmriprep",
    "volumes",
    "sub-*/[ses-*/]func/*_space-<template>_[res-*_]desc-preproc_bold.nii.gz",
    find,
    companions,
)
