"""XCP-D derivatives: parcel series, denoised by XCP-D.

Source: XCP-D documentation, "Outputs of XCP-D"; ``atlas-`` in names before version 0.7, ``seg-``
since.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from .base import DERIVED, Beside, Found, Layout, functional, parse_name
from .parcels import find_named


def find(folder: Path, task: str | None, skip: Set[str]) -> list[Found]:
    """``sub-*/[ses-*/]func/*_{seg,atlas}-<parcellation>_[stat-mean_]timeseries.tsv``."""
    return find_named(folder, task, skip, (".tsv",), functional)


def beside(path: Path) -> Beside:
    """Framewise displacement: ``*_[desc-filtered_]motion.tsv`` of the same run."""
    entities, _ = parse_name(path.name)
    run = "_".join(f"{key}-{value}" for key, value in entities.items() if key not in DERIVED)
    tables = [path.with_name(f"{run}_{end}") for end in ("motion.tsv", "desc-filtered_motion.tsv")]
    return Beside(motion=next((table for table in tables if table.is_file()), None))


XCPD = Layout(
    "xcpd",
    "series",
    "sub-*/[ses-*/]func/*_{seg,atlas}-<parcellation>_[stat-mean_]timeseries.tsv",
    find,
    beside,
    variants="segmentation",
)
