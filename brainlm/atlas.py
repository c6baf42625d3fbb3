"""What an atlas is here: a registry entry (atlases/<name>.yaml) and its checked files.

No image is opened in this module, so that modelling code can use coordinates and labels without
nibabel; :mod:`brainlm.preprocess.parcellate.parcel_means` opens the label image.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import yaml

from .downloads import download as fetch
from .errors import BrainLMError
from .files import sha256, shipped
from .tables import read_tsv

REGISTRY = shipped("atlases")


@dataclass(frozen=True)
class Atlas:
    """A parcellation.

    Attributes
    ----------
    name, space : str
        ``space`` is the TemplateFlow name of the template the label image is in; ``None`` for
        atlases known by their time series only.
    num_parcels : int
        R. Every series has exactly this many columns.
    image : Path or None
        Label image, whole numbers 1..R.
    image_sha256 : str
        Identifies the atlas in shards and models (of the registry entry if there is no image).
    coordinates : ndarray [R, 3] or None
        MNI mm, RAS.
    names : tuple of str
        R labels.
    networks : tuple of str or None, or None
        The functional network of each parcel, None where it has none; None where the atlas comes
        without a table of networks, or its file is not there.
    """

    name: str
    space: str | None
    num_parcels: int
    image: Path | None
    image_sha256: str
    coordinates: np.ndarray | None
    names: tuple[str, ...]
    source: str
    licence: str
    networks: tuple[str | None, ...] | None = None

    @property
    def own_names(self) -> tuple[str, ...]:
        """The names, where they are from a table of labels; else none."""
        return () if self.names == _numbered(self.num_parcels) else self.names


class Identity(Protocol):
    """What tells one atlas from another: all that a step's result can depend on."""

    @property
    def name(self) -> str: ...
    @property
    def space(self) -> str | None: ...
    @property
    def image_sha256(self) -> str: ...


class Registered(NamedTuple):
    """The identity of an atlas by its registry entry alone: none of its files is opened."""

    name: str
    space: str | None
    image_sha256: str


def identify_atlas(name: str) -> Registered:
    """Read a registry entry; the same identity as that of the loaded atlas."""
    check_registered(name)
    entry_path = REGISTRY / f"{name}.yaml"
    return _identify(name, entry_path, yaml.safe_load(entry_path.read_text(encoding="utf-8")))


def _identify(name: str, entry_path: Path, entry: dict) -> Registered:
    image = (entry.get("files") or {}).get("image")
    return Registered(name, entry.get("space"), image["sha256"] if image else sha256(entry_path))


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"parcel-{index:03d}" for index in range(1, count + 1))


def registered() -> list[str]:
    """Names of all registry entries."""
    return sorted(path.stem for path in REGISTRY.glob("*.yaml"))


def registered_files() -> set[str]:
    """Names of the files of all atlases: tables of parcels, not of participants or recordings."""
    entries = [yaml.safe_load(path.read_text("utf-8")) for path in REGISTRY.glob("*.yaml")]
    return {item["name"] for entry in entries for item in (entry.get("files") or {}).values()}


def check_registered(name: str) -> None:
    """Refuse a name without a registry entry, saying the nearest one."""
    names = registered()
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
        raise BrainLMError(f"atlas.name: no atlas {name!r} in {REGISTRY}; {hint}")


def load_atlas(name: str, folder: str | Path, *, download: bool = True) -> Atlas:
    """Find an atlas in `folder`, or fetch or build it there once, and check every file.

    Raises
    ------
    BrainLMError
        Unknown name; a file that is missing and cannot be had; a checksum that differs.
    """
    check_registered(name)
    entry_path = REGISTRY / f"{name}.yaml"
    entry = yaml.safe_load(entry_path.read_text(encoding="utf-8"))
    folder = Path(folder)
    if entry.get("built_by"):
        _build(entry, folder)
    files = {}
    for role, item in (entry.get("files") or {}).items():
        if role == "networks" and not (item.get("url") or (folder / item["name"]).exists()):
            continue  # only one task needs it, and says so
        files[role] = _checked_file(name, folder, item, download)
    count = int(entry["num_parcels"])
    coordinates = None
    if "coordinates" in files:
        coordinates = _read_coordinates(files["coordinates"], count)
    names = _numbered(count)
    if "labels" in files:
        names = _read_names(files["labels"], entry["files"]["labels"], count)
    networks = None
    if "networks" in files:
        item = entry["files"]["networks"]
        column, without = item.get("column", "network"), item.get("without", ())
        networks = read_networks(files["networks"], column, count, without)
    identity = _identify(name, entry_path, entry)
    return Atlas(
        **identity._asdict(),
        num_parcels=count,
        image=files.get("image"),
        coordinates=coordinates,
        names=names,
        source=entry["source"],
        licence=entry["licence"],
        networks=networks,
    )


def _build(entry: dict, folder: Path) -> None:
    if all((folder / item["name"]).exists() for item in entry["files"].values()):
        return
    if entry["built_by"] != "demo":
        raise BrainLMError(f"atlas entry: built_by {entry['built_by']!r} is not known")
    from .simulate.demo_atlas import build_demo_atlas  # opens images: only when it is needed

    build_demo_atlas(folder)


def _checked_file(atlas: str, folder: Path, item: dict, download: bool) -> Path:
    path = folder / item["name"]
    if not path.exists():
        url = item.get("url")
        if not (url and download):
            raise BrainLMError(
                f"{path}: not found; atlas {atlas!r} needs it"
                + (f": download {url} there, or set atlas.folder" if url else "")
            )
        fetch(url, path, sha256, item["sha256"])
    found = sha256(path)
    if found != item["sha256"]:
        raise BrainLMError(
            f"{path}: expected sha256 {item['sha256'][:16]}…, found {found[:16]}…: this is not "
            f"the file that atlas {atlas!r} names; remove it or point atlas.folder elsewhere"
        )
    return path


def _read_coordinates(path: Path, count: int) -> np.ndarray:
    """Whitespace-separated rows of index, x, y, z (MNI mm), as in A424_Coordinates.dat."""
    table = np.loadtxt(path)
    if table.shape != (count, 4) or not np.array_equal(table[:, 0], np.arange(1, count + 1)):
        raise BrainLMError(
            f"{path}: expected {count} rows of index (1..{count}), x, y, z; found an array of "
            f"shape {table.shape}"
        )
    return np.ascontiguousarray(table[:, 1:])


def _read_names(path: Path, item: dict, count: int) -> tuple[str, ...]:
    rows = _read_rows(path, item.get("column", "name"))
    if len(rows) != count:
        raise BrainLMError(f"{path}: expected {count} rows, found {len(rows)}")
    return tuple(name for _, name in rows)


def read_networks(
    path: Path, column: str, count: int, without: Sequence[str] = ()
) -> tuple[str | None, ...]:
    """Network names of parcels 1..`count` from a table.

    Its first column numbers the parcels, or it has a row for each. Empty, ``n/a``, ``none``, 0 and
    the names in `without` mean that a parcel has no network; so do parcels not in the table.

    Raises
    ------
    BrainLMError
        No such file or column, a parcel outside 1..`count` or named twice, or no network at all.
    """
    if not Path(path).exists():
        raise BrainLMError(f"{path}: table of networks not found")
    rows = _read_rows(path, column)
    numbers = [int(first) if first.isdigit() else None for first, _ in rows]
    if None in numbers:
        numbers = list(range(1, len(rows) + 1))
        if len(rows) != count:
            raise BrainLMError(
                f"{path}: expected {count} rows, or parcel numbers in the first column; found "
                f"{len(rows)} rows"
            )
    if len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(1, count + 1)):
        raise BrainLMError(f"{path}: expected each of the parcels 1..{count} at most once")
    nothing = {"", "n/a", "none", "0", *(name.lower() for name in without)}
    found: list[str | None] = [None] * count
    for number, (_, name) in zip(numbers, rows, strict=True):
        if name.strip().lower() not in nothing:
            found[number - 1] = name.strip()  # type: ignore[operator]
    if not any(found):
        raise BrainLMError(f"{path}: no parcel has a network in column {column!r}")
    return tuple(found)


def _read_rows(path: Path, column: str) -> list[tuple[str, str]]:
    """(first column, the named column) of a tab-separated table."""
    table = read_tsv(path, column)
    where = table.columns.index(column)
    return [(row[0], row[where]) for row in table.rows]
