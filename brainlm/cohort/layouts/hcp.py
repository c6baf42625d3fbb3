"""Human Connectome Project: volumes in MNINonLinear, minimally preprocessed or cleaned by FIX.

Young Adult (``100307``) and Lifespan (``HCA6002236_V1_MR``) names. MNINonLinear is MNI152NLin6Asym
(FSL's template). Source: Glasser et al. 2013, NeuroImage 80:105; HCP S1200 reference manual.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Set
from functools import partial
from pathlib import Path

from .base import (
    Companions,
    Found,
    Layout,
    files,
    is_folder,
    is_image,
    leave,
    make_found,
    per_subject,
    present,
    relative,
)

_SUBJECT = re.compile(r"([a-zA-Z0-9]+)(?:_(V\d+))?(?:_MR|_3T|_7T)?")
_RUN = re.compile(r"[rt]fMRI_([a-zA-Z]+)(\d*|\d+[a-z])(?:_(7T))?(?:_(LR|RL|AP|PA))?")
_CLEAN = re.compile(r"_hp\d+_clean(_rclean_tclean)?\.nii\.gz")


def find(folder: Path, skip: Set[str], *, clean: bool) -> list[Found]:
    """``<subject>/MNINonLinear/Results/<run>/<run>[_hp2000_clean[_rclean_tclean]].nii.gz``.

    The folder of a run (with its direction) without the image is a recording that fails when it
    is read, so that it is counted; of cleaned images only rest is expected.
    """
    scan = partial(_subject, folder, clean)
    return per_subject(folder, skip, scan, participant)


def participant(name: str) -> str | None:
    match = _SUBJECT.fullmatch(name)
    return f"sub-{match[1]}" if match else None


def list_runs(
    folder: Path, subject: str, left: list[Found]
) -> Iterator[tuple[str, dict[str, str], list[os.DirEntry], tuple[str, ...]]]:
    """(name, entities, files, companions) of each run's folder; links without content go to
    `left`."""
    results = folder / subject / "MNINonLinear" / "Results"
    for run in files(str(results)) if results.is_dir() else ():
        match = _RUN.fullmatch(run.name)
        if match and is_folder(folder, run, left):
            there = files(run.path)
            near = [item.path for item in there if item.name == "Movement_Regressors.txt"]
            about = tuple(relative(path, folder) for path in near)
            yield run.name, _entities(subject, match), there, about


def _subject(folder: Path, clean: bool, subject: str) -> list[Found]:
    recordings: list[Found] = []
    for name, entities, there, about in list_runs(folder, subject, recordings):
        items = [item for item in there if is_image(item.name)]
        paths = [item.path for item in items if _is_run(item.name, name, clean)]
        if clean:  # what was cleaned twice is there after each
            twice = {path.replace("_rclean_tclean", "") for path in paths if "_rclean" in path}
            paths = [path for path in paths if path not in twice]
        others = [item for item in items if item.path not in paths]
        recordings += [leave(folder, item, "another image of a run") for item in others]
        if not paths and "dir" in entities and (name[0] == "r" or not clean):
            run = folder / subject / "MNINonLinear" / "Results" / name
            paths = [str(run / f"{name}{'_hp2000_clean' * clean}.nii.gz")]
        recordings += [make_found(folder, path, entities, companions=about) for path in paths]
    return recordings


def _is_run(name: str, run: str, clean: bool) -> bool:
    rest = name.removeprefix(run)
    return bool(_CLEAN.fullmatch(rest)) if clean else rest == ".nii.gz"


def _entities(subject: str, run: re.Match) -> dict[str, str]:
    name = _SUBJECT.fullmatch(subject)
    assert name is not None
    entities = {
        "sub": name[1], "ses": name[2], "task": run[1], "acq": run[3], "dir": run[4],
        "run": run[2],
    }  # fmt: skip
    return {key: value for key, value in entities.items() if value}


def companions(path: Path, *, clean: bool) -> Companions:
    """``Movement_Regressors.txt`` of the run."""
    motion = path.with_name("Movement_Regressors.txt")
    return Companions("MNI152NLin6Asym", present(motion), denoised=clean)


_TREE = "<subject>/MNINonLinear/Results/<run>/<run>"
HCP = Layout(
    "hcp",
    "volumes",
    f"{_TREE}.nii.gz",
    partial(find, clean=False),
    partial(companions, clean=False),
)
HCP_FIX = Layout(
    "hcp-fix",
    "volumes",
    f"{_TREE}_hp2000_clean[_rclean_tclean].nii.gz",
    partial(find, clean=True),
    partial(companions, clean=True),
)
