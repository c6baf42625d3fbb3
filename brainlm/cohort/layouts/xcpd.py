"""XCP-D derivatives: parcel series, denoised by XCP-D.

Source: XCP-D documentation, "Outputs of XCP-D"; ``atlas-`` in names before version 0.7, ``seg-``
since.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from pathlib import Path

from .base import Companions, Found, Layout, find_companion, functional
from .parcels import find_named


def find(folder: Path, skip: Set[str]) -> list[Found]:
    """``sub-*/[ses-*/]func/*_{seg,atlas}-<parcellation>_[stat-mean_]timeseries.tsv``."""
    return _leave_combined(find_named(folder, skip, (".tsv",), functional))


def _leave_combined(recordings: list[Found]) -> list[Found]:
    """With ``--combine-runs`` the runs of a task are there once more as one, without ``run-`` and
    ``dir-``: the same data twice."""
    runs = set()
    for item in recordings:
        if "run" in item.entities or "dir" in item.entities:
            runs.add(_leave(item, "run", "dir"))
        if "run" in item.entities:
            runs.add(_leave(item, "run"))
    why = "combined runs that are also there singly"
    return [replace(item, left_out=why) if _leave(item) in runs else item for item in recordings]


def _leave(item: Found, *keys: str) -> tuple:
    return item.variant, *((k, v) for k, v in item.entities.items() if k not in keys)


def companions(path: Path) -> Companions:
    """Framewise displacement (``*_[desc-filtered_]motion.tsv``) and outliers of the same run."""
    motion = find_companion(path, ("motion",)) or find_companion(
        path, ("motion",), desc="filtered"
    )
    return Companions(motion=motion, outliers=find_companion(path, ("outliers",)))


XCPD = Layout(
    "xcpd",
    "series",
    "sub-*/[ses-*/]func/*_{seg,atlas}-<parcellation>_[stat-mean_]timeseries.tsv",
    find,
    companions,
    variants="segmentation",
)
