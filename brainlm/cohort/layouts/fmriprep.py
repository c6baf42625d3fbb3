"""fMRIPrep derivatives: images in template space, with confounds beside them.

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
    found_bids,
    functional,
    name_variant,
    parse_name,
    per_subject,
)

_NATIVE = ("T1w", "T2w", "func", "boldref", "individual")


def find(folder: Path, task: str | None, skip: Set[str]) -> list[Found]:
    """``sub-*/[ses-*/]func/*_space-<template>_[res-*_]desc-preproc_bold.nii.gz``."""
    return per_subject(folder, skip, lambda subject: _subject(folder, subject, task))


def _subject(folder: Path, subject: str, task: str | None) -> list[Found]:
    recordings = []
    for item in functional(folder, subject):
        entities, _ = parse_name(item.name)
        is_image = item.name.endswith(("_desc-preproc_bold.nii.gz", "_desc-preproc_bold.nii"))
        if not is_image or "echo" in entities or task not in (None, entities.get("task")):
            continue
        space = entities.get("space", "func")
        variant = OWN if space in _NATIVE else name_variant(entities, space, "cohort", "res")
        recordings.append(found_bids(folder, item, DERIVED, variant=variant))
    return recordings


def companions(path: Path) -> Companions:
    """Space by its name; confounds of the same run (``_regressors`` before version 20.2)."""
    entities, _ = parse_name(path.name)
    run = "_".join(f"{key}-{value}" for key, value in entities.items() if key not in DERIVED)
    tables = [
        path.with_name(f"{run}_desc-confounds_{suffix}.tsv")
        for suffix in ("timeseries", "regressors")
    ]
    return Companions(entities.get("space"), next((t for t in tables if t.is_file()), None))


FMRIPREP = Layout(
    "fmriprep",
    "volumes",
    "sub-*/[ses-*/]func/*_space-<template>_[res-*_]desc-preproc_bold.nii.gz",
    find,
    companions,
)
