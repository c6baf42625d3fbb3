"""UK Biobank bulk folders: fields 20227 (rest, cleaned by FIX) and 20249 (task), unzipped.

Images are in their own space, with FSL's warp to MNI152 (its nonlinear 6th generation) next to
them; the warp is followed when the voxels are read, so nothing is interpolated twice. Source: UK
Biobank Brain Imaging Documentation (Alfaro-Almagro et al. 2018, NeuroImage 166:400).
"""

from __future__ import annotations

import os
import re
from collections.abc import Set
from pathlib import Path

from .base import Companions, Found, Layout, files, make_found, present, relative

_NAME = re.compile(r"(\d+)_(20227|20249)_(\d+)_(\d+)(\.zip)?")
_IMAGES = {
    "20227": "rfMRI.ica/filtered_func_data_clean.nii.gz",
    "20249": "tfMRI.feat/filtered_func_data.nii.gz",
}
_MOTION = "mc/prefiltered_func_data_mcf.par"
_WARP = "reg/example_func2standard_warp.nii.gz"
_TASKS = {"20227": "rest", "20249": "facesshapesemotion"}


def find(folder: Path, skip: Set[str]) -> list[Found]:
    """``<eid>_20227_<instance>_<array>/[fMRI/]rfMRI.ica/filtered_func_data_clean.nii.gz``, ...

    A folder without the image and a zip that is still packed are recordings that fail when they
    are read, so that they are counted.
    """
    items = files(str(folder))
    unpacked = {item.name for item in items if not item.name.endswith(".zip")}
    recordings = []
    for item in items:
        match = _NAME.fullmatch(item.name)
        if not match or (match[5] and item.name.removesuffix(".zip") in unpacked):
            continue
        eid, field, instance, array, packed = match.groups()
        if item.name not in skip:
            path = item.path if packed else _image(item.path, _IMAGES[field])
            near = [] if packed else [Path(path).parent / end for end in (_MOTION, _WARP)]
            about = tuple(relative(path, folder) for path in near)
            who = entities(eid, field, instance, array)
            recordings.append(make_found(folder, path, who, companions=about))
    return recordings


def entities(eid: str, field: str, instance: str, array: str) -> dict[str, str]:
    """Of a bulk file's name; the task of another field than 20227 and 20249 is ``f<field>``."""
    run = {} if array == "0" else {"run": str(int(array) + 1)}
    return {"sub": eid, "ses": instance, "task": _TASKS.get(field, f"f{field}")} | run


def _image(directory: str, image: str) -> str:
    inner = os.path.join(directory, "fMRI")
    return os.path.join(inner if os.path.isdir(inner) else directory, image)


def companions(path: Path) -> Companions:
    """The warp and MCFLIRT's parameters, in ``reg`` and ``mc``."""
    motion = path.parent / _MOTION
    return Companions(
        space="MNI152NLin6Asym",
        motion=present(motion),
        warp=path.parent / _WARP,
        denoised=path.name == "filtered_func_data_clean.nii.gz",
    )


UKB = Layout(
    "ukb",
    "volumes",
    "<eid>_20227_<i>_<a>/[fMRI/]rfMRI.ica/filtered_func_data_clean.nii.gz or "
    "<eid>_20249_<i>_<a>/[fMRI/]tfMRI.feat/filtered_func_data.nii.gz",
    find,
    companions,
)
