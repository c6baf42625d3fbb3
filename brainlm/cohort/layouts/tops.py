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

import os
import re
from collections.abc import Set
from pathlib import Path

from .base import Companions, Found, Layout, found_bids, functional, is_image, leave, per_subject

_IMAGE = re.compile(r"(s?w)(?:(?!mean)[a-z_])*(sub-.+_bold)\.nii(\.gz)?")  # not SPM's mean image


def find(folder: Path, skip: Set[str]) -> list[Found]:
    """``sub-*/func/[s]w*sub-*_bold.nii[.gz]``."""
    return per_subject(folder, skip, lambda subject: _subject(folder, subject))


def _subject(folder: Path, subject: str) -> list[Found]:
    recordings: list[Found] = []
    runs: dict[str, dict[str, list[os.DirEntry]]] = {}
    for item, _ in functional(folder, subject, recordings):
        if match := _IMAGE.fullmatch(item.name):
            runs.setdefault(match[2], {}).setdefault(match[1], []).append(item)
        elif is_image(item.name):
            recordings.append(leave(folder, item, "not a normalised image (by its prefix)"))
    for name, images in runs.items():
        chosen = "w" if "w" in images else "sw"
        recordings += [found_bids(folder, item, name=name) for item in images[chosen]]
        smooth = images["sw"] if chosen == "w" and "sw" in images else []
        recordings += [
            leave(folder, item, "smoothed; the unsmoothed image is used") for item in smooth
        ]
    return recordings


TOPS = Layout(
    "tops",
    "volumes",
    "sub-*/func/[s]w*sub-*_bold.nii[.gz]",
    find,
    lambda path: Companions(space="IXI549Space"),
)
