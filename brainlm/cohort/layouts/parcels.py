"""Parcel series as somebody made them: .npy, .tsv or BrainLM's .dat."""

from __future__ import annotations

import os
import re
from collections.abc import Set
from pathlib import Path

from .base import (
    DERIVED,
    Found,
    Layout,
    files,
    found,
    found_bids,
    functional,
    parse_name,
    per_subject,
)


def find(folder: Path, task: str | None, skip: Set[str]) -> list[Found]:
    """BIDS-named ``*_timeseries.{npy,tsv}``, or a flat folder of .dat, .npy or .tsv files."""
    named = find_named(folder, task, skip, (".npy", ".tsv"))
    if named or any(name.startswith("sub-") for name in os.listdir(folder) if "." not in name):
        return named
    return _flat(folder, skip)


def find_named(
    folder: Path, task: str | None, skip: Set[str], extensions: tuple[str, ...]
) -> list[Found]:
    """Series of parcels in a BIDS tree."""

    def scan(subject: str) -> list[Found]:
        recordings = []
        for item in functional(folder, subject):
            entities, suffix = parse_name(item.name)
            parcellation = entities.get("seg") or entities.get("atlas")
            if (
                suffix == "timeseries"
                and item.name.endswith(extensions)
                and parcellation
                and entities.get("stat", "mean") == "mean"
                and task in (None, entities.get("task"))
            ):
                recordings.append(found_bids(folder, item, DERIVED, variant=parcellation))
        return recordings

    return per_subject(folder, skip, scan)


def _flat(folder: Path, skip: Set[str]) -> list[Found]:
    recordings = []
    for item in files(str(folder)):
        named = item.name.endswith((".dat", ".npy", ".tsv")) and item.name != "participants.tsv"
        if named and item.name not in skip and item.is_file():
            stem = re.sub(r"[^a-zA-Z0-9]+", "", item.name.rsplit(".", 1)[0])
            recordings.append(found(folder, item.path, {"sub": stem}))
    return recordings


PARCELS = Layout(
    "parcels",
    "series",
    "sub-*/[ses-*/]func/*_{atlas,seg}-*_timeseries.{npy,tsv}, or *.{dat,npy,tsv} in the folder",
    find,
    variants="segmentation",
)
