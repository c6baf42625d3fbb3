"""Human Connectome Project: volumes in MNINonLinear, minimally preprocessed or cleaned by FIX.

Young Adult (``100307``) and Lifespan (``HCA6002236_V1_MR``) names. MNINonLinear is MNI152NLin6Asym
(FSL's template). Source: Glasser et al. 2013, NeuroImage 80:105; HCP S1200 reference manual.
"""

from __future__ import annotations

import re
from collections.abc import Set
from functools import partial
from pathlib import Path

from .base import Beside, Found, Layout, files, found, per_subject

_SUBJECT = re.compile(r"([a-zA-Z0-9]+)(?:_(V\d+))?(?:_MR|_3T|_7T)?")
_RUN = re.compile(r"[rt]fMRI_([a-zA-Z]+)(\d*)(?:_(7T))?(?:_(LR|RL|AP|PA))?")
_CLEAN = re.compile(r"_hp\d+_clean\.nii\.gz")


def find(folder: Path, task: str | None, skip: Set[str], *, clean: bool) -> list[Found]:
    """``<subject>/MNINonLinear/Results/<run>/<run>[_hp2000_clean].nii.gz``."""
    scan = partial(_subject, folder, task, clean)
    return per_subject(folder, skip, scan, _participant)


def _participant(name: str) -> str | None:
    match = _SUBJECT.fullmatch(name)
    return f"sub-{match[1]}" if match else None


def _subject(folder: Path, task: str | None, clean: bool, subject: str) -> list[Found]:
    results = folder / subject / "MNINonLinear" / "Results"
    if not results.is_dir():
        return []
    recordings = []
    for run in files(str(results)):
        match = _RUN.fullmatch(run.name)
        if not match or (task and match[1] != task):
            continue
        for item in files(run.path):
            rest = item.name.removeprefix(run.name)
            if _CLEAN.fullmatch(rest) if clean else rest == ".nii.gz":
                recordings.append(found(folder, item.path, _entities(subject, match)))
    return recordings


def _entities(subject: str, run: re.Match) -> dict[str, str]:
    name = _SUBJECT.fullmatch(subject)
    assert name is not None
    entities = {
        "sub": name[1], "ses": name[2], "task": run[1], "acq": run[3], "dir": run[4],
        "run": run[2],
    }  # fmt: skip
    return {key: value for key, value in entities.items() if value}


def beside(path: Path, *, clean: bool) -> Beside:
    """``Movement_Regressors.txt`` of the run."""
    motion = path.with_name("Movement_Regressors.txt")
    return Beside("MNI152NLin6Asym", motion if motion.is_file() else None, denoised=clean)


_TREE = "<subject>/MNINonLinear/Results/<run>/<run>"
HCP = Layout(
    "hcp", "volumes", f"{_TREE}.nii.gz", partial(find, clean=False), partial(beside, clean=False)
)
HCP_FIX = Layout(
    "hcp-fix",
    "volumes",
    f"{_TREE}_hp2000_clean.nii.gz",
    partial(find, clean=True),
    partial(beside, clean=True),
)
