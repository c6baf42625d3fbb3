"""Grayordinates that others preprocessed: CIFTI-2's ``dtseries.nii``, of surfaces and voxels.

In a BIDS tree (fMRIPrep's ``--cifti-output``) or in HCP's. Sources: fMRIPrep documentation,
"Outputs of fMRIPrep"; Glasser et al. 2013, NeuroImage 80:105.
"""

from __future__ import annotations

import re
from collections.abc import Set
from functools import partial
from pathlib import Path

from . import hcp
from .base import (
    DERIVED,
    Companions,
    Found,
    Layout,
    belonging,
    find_companion,
    found_bids,
    functional,
    leave,
    make_found,
    name_variant,
    parse_name,
    per_subject,
    present,
)

#: End of files of grayordinates over time.
DENSE = ".dtseries.nii"
#: What follows the run's name: which alignment of surfaces, and whether FIX has cleaned it.
_ATLAS = re.compile(r"_Atlas(_MSM\w*?)?(_hp\d+)?(_clean)?(_rclean_tclean)?")


def find(folder: Path, skip: Set[str]) -> list[Found]:
    """``sub-*/[ses-*/]func/*_bold.dtseries.nii``, or
    ``<subject>/MNINonLinear/Results/<run>/<run>_Atlas*.dtseries.nii``."""
    bids = per_subject(folder, skip, partial(_bids, folder))
    return bids + per_subject(folder, skip, partial(_hcp, folder), _participant)


def _participant(name: str) -> str | None:
    """Folders of HCP, which have no ``sub-``."""
    return None if name.startswith("sub-") else hcp.participant(name)


def _bids(folder: Path, subject: str) -> list[Found]:
    recordings: list[Found] = []
    for item, near in functional(folder, subject, recordings):
        entities, suffix = parse_name(item.name)
        if not item.name.endswith(DENSE):
            continue
        if suffix != "bold":
            recordings.append(leave(folder, item, "not BOLD (by suffix)"))
            continue
        variant = name_variant(entities, entities.get("space", "fsLR"), "den", "desc")
        about = belonging(folder, item.name, near)
        recordings.append(found_bids(folder, item, DERIVED, variant=variant, companions=about))
    return recordings


def _hcp(folder: Path, subject: str) -> list[Found]:
    recordings: list[Found] = []
    for run, entities, there, about in hcp.list_runs(folder, subject, recordings):
        for item in there:
            rest = item.name.removeprefix(run).removesuffix(DENSE)
            if not item.name.endswith(DENSE) or not (match := _ATLAS.fullmatch(rest)):
                continue
            variant = ":".join(["fsLR", *re.findall("[^_]+", match[0])])
            recordings.append(
                make_found(folder, item.path, entities, variant=variant, companions=about)
            )
    return recordings


def companions(path: Path) -> Companions:
    """Confounds of the same run (fMRIPrep), or ``Movement_Regressors.txt`` (HCP)."""
    entities = parse_name(path.name)[0]
    regressors = present(path.with_name("Movement_Regressors.txt"))
    if regressors or "sub" not in entities:
        return Companions("fsLR", regressors, denoised="_clean" in path.name)
    confounds = find_companion(path, ("timeseries", "regressors"), desc="confounds")
    return Companions(entities.get("space", "fsLR"), confounds)


CIFTI = Layout(
    "cifti",
    "volumes",
    f"sub-*/[ses-*/]func/*_space-fsLR_den-91k_bold{DENSE} or <subject>/MNINonLinear/Results/<run>/"
    f"<run>_Atlas*{DENSE}",
    find,
    companions,
)
