"""Parcel series as somebody made them: .npy, .tsv, BrainLM's .dat or CIFTI-2's .ptseries.nii."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Set
from pathlib import Path

from ...atlas import registered_files
from . import ukb
from .base import (
    DERIVED,
    ID_COLUMNS,
    NO_CONTENT,
    Found,
    Layout,
    belonging,
    files,
    found_bids,
    leave,
    make_found,
    name_variant,
    parse_name,
    per_subject,
    plain_label,
    tables,
)

#: Ends of files that hold parcel series.
EXTENSIONS = (".npy", ".tsv", ".dat", ".ptseries.nii")
_BIDS = re.compile(r"sub-[^_]+(_[a-zA-Z0-9]+-[^_]+)*(_[a-zA-Z]+)?")
_UKB = re.compile(r"(\d{7})_(\d{5})_(\d+)_(\d+)(_[a-zA-Z]\w*)?")
#: Suffixes of BIDS, fMRIPrep and XCP-D for tables about a recording.
_ABOUT = (
    "design", "events", "metrics", "mixing", "motion", "outliers", "physio", "regressors", "scans",
    "sessions", "stim",
)  # fmt: skip


def find(folder: Path, skip: Set[str]) -> list[Found]:
    """BIDS-named ``*_timeseries.{npy,tsv,dat,ptseries.nii}`` in a BIDS tree, or a flat folder."""
    named = find_named(folder, skip, EXTENSIONS, _below)
    if named or any(name.startswith("sub-") for name in os.listdir(folder) if "." not in name):
        return named
    return _flat(folder, skip)


def find_named(
    folder: Path,
    skip: Set[str],
    extensions: tuple[str, ...],
    listed: Callable[[Path, str, list[Found]], Iterator[tuple[os.DirEntry, list[os.DirEntry]]]],
) -> list[Found]:
    """Series of parcels in a BIDS tree, among the files that `listed` names of a subject."""

    def scan(subject: str) -> list[Found]:
        recordings: list[Found] = []
        for item, near in listed(folder, subject, recordings):
            entities, suffix = parse_name(item.name)
            if suffix != "timeseries" or not item.name.endswith(extensions):
                continue
            if _is_about(entities, suffix):
                recordings.append(leave(folder, item, "not a parcel series (by its name)"))
            elif variant := _variant(entities):
                about = belonging(folder, item.name, near)
                recordings.append(
                    found_bids(folder, item, DERIVED, variant=variant, companions=about)
                )
            else:
                recordings.append(leave(folder, item, "no atlas- or seg- in its name"))
        return recordings

    return per_subject(folder, skip, scan)


def _below(
    folder: Path, subject: str, left: list[Found], depth: int = 3
) -> Iterator[tuple[os.DirEntry, list[os.DirEntry]]]:
    """Files of a subject's folder and of the folders in it: in func, or wherever they are."""
    items = files(f"{folder}/{subject}")
    near = tables(items)
    for item in items:
        if item.is_dir():
            if depth > 1:
                yield from _below(folder, f"{subject}/{item.name}", left, depth - 1)
        elif item.name.endswith(EXTENSIONS):
            yield item, near
        elif item.is_symlink() and not os.path.exists(item.path) and "." not in item.name:
            left.append(leave(folder, item, NO_CONTENT, refused=True))


def _variant(entities: dict[str, str]) -> str:
    first = entities.get("seg") or entities.get("atlas")
    return name_variant(entities, first, "space", "cohort", "res", "den", "desc") if first else ""


def _is_about(entities: dict[str, str], suffix: str) -> bool:
    """A table about a recording, or another measure than the parcels' means."""
    confounds = entities.get("desc", "").startswith("confounds")
    return confounds or suffix in _ABOUT or entities.get("stat", "mean") != "mean"


# ---- a flat folder


def _flat(folder: Path, skip: Set[str]) -> list[Found]:
    of_atlases = registered_files() | {"participants.tsv"}
    recordings = []
    items = files(str(folder))
    sidecars = {item.name for item in items if item.name.endswith(".json")}
    for item in items:
        if item.name.endswith(EXTENSIONS) and item.name not in skip and not item.is_dir():
            entities = _flat_entities(item.name)
            why = "a file of an atlas" if item.name in of_atlases else _no_series(item)
            if why:
                recordings.append(leave(folder, item, why))
                continue
            own = _stem(item.name) + ".json"
            near = (own,) if own in sidecars else ()
            if _BIDS.fullmatch(item.name.split(".", 1)[0]):
                form = _variant(entities)
                recordings.append(found_bids(folder, item, DERIVED, variant=form, companions=near))
            else:
                recordings.append(make_found(folder, item.path, entities, companions=near))
    return recordings


def _stem(name: str) -> str:
    """Without the extension; a participant's id may have dots."""
    return name.removesuffix(next(end for end in EXTENSIONS if name.endswith(end)))


def _flat_entities(name: str) -> dict[str, str]:
    """Who was recorded when, by the name: all files of a participant must be of one participant.

    BIDS names and UK Biobank's ``<eid>_<field>_<instance>_<array>[_rs|_tf]`` say it. Any other
    name is a participant's id, as it may stand in a table of participants.
    """
    stem = name.split(".", 1)[0]
    if _BIDS.fullmatch(stem):
        return parse_name(name)[0]
    if match := _UKB.fullmatch(stem):
        eid, field, instance, array, _ = match.groups()
        return ukb.entities(eid, field, instance, array)
    return {"sub": plain_label(_stem(name))}


def _no_series(item: os.DirEntry) -> str:
    """Why a file is no parcel series, or nothing.

    Of a BIDS or UK Biobank name the name says it; other .tsv files are opened, as tables of
    participants end so, too.
    """
    stem = item.name.split(".", 1)[0]
    if _BIDS.fullmatch(stem):
        return "not a parcel series (by its name)" if _is_about(*parse_name(item.name)) else ""
    if not item.name.endswith(".tsv") or _UKB.fullmatch(stem):
        return ""
    if not os.path.exists(item.path):  # a link without content: it fails when it is read
        return ""
    with open(item.path, encoding="utf-8-sig", errors="replace") as handle:
        header = {name.strip() for name in handle.readline().split("\t")}
    tables = header & {*ID_COLUMNS, "recording_id", "session_id", "filename"}
    return "a table of participants or recordings" if tables else ""


PARCELS = Layout(
    "parcels",
    "series",
    "sub-*/[ses-*/][func/]*_{atlas,seg}-*_timeseries.{npy,tsv,dat,ptseries.nii}, or "
    "*.{dat,npy,tsv,ptseries.nii} in the folder",
    find,
    variants="segmentation",
)
