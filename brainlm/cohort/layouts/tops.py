"""ToPS (tonic pain signature, Lee et al. 2021, Nature Medicine 27:174), normalised by SPM.

Folders of cocoanlab's humanfmri_preproc_bids: SPM puts a letter before the name for every step
(r realigned, dc distortion-corrected, w normalised, s smoothed). The normalised image is used;
the smoothed one only where there is no other, SPM's mean image (``wmean...``) never. SPM's tissue
maps are BIDS' IXI549Space, not an MNI152: the cohort must say ``space: IXI549Space`` to accept
that. No motion parameters are in a file that is read here, so it must say ``confounds: none`` too.

    preprocessed/ (the cohort's folder)
      sub-tops001/
        func/wdcrsub-tops001_task-caps_run-02_bold.nii
        func/swdcrsub-tops001_task-caps_run-02_bold.nii
"""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path

from .base import Companions, Found, Layout, found, functional, parse_name, per_subject

_IMAGE = re.compile(r"(s?w)(?:(?!mean)[a-z_])*(sub-.+_bold)\.nii(\.gz)?")  # not SPM's mean image


def find(folder: Path, task: str | None, skip: Set[str]) -> list[Found]:
    """``sub-*/func/[s]w*sub-*_bold.nii[.gz]``."""
    return per_subject(folder, skip, lambda subject: _subject(folder, subject, task))


def _subject(folder: Path, subject: str, task: str | None) -> list[Found]:
    runs: dict[str, dict[str, list[str]]] = {}
    for item in functional(folder, subject):
        if match := _IMAGE.fullmatch(item.name):
            runs.setdefault(match[2], {}).setdefault(match[1], []).append(item.path)
    recordings = [
        found(folder, path, parse_name(name)[0])
        for name, images in runs.items()
        for path in images.get("w") or images["sw"]  # two: the same recording, which is refused
    ]
    return [item for item in recordings if task in (None, item.entities.get("task"))]


TOPS = Layout(
    "tops",
    "volumes",
    "sub-*/func/[s]w*sub-*_bold.nii[.gz]",
    find,
    lambda path: Companions(space="IXI549Space"),
)
