"""Which images tell how a run is distorted: by their names, and by what their sidecars state.

An image is for a run if its ``IntendedFor`` names the run, or its ``B0FieldIdentifier`` is among
the run's ``B0FieldSource``. Where the configuration asks for a method by name, images of the
session that name no run at all are taken too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...cohort.layouts import parse_name
from ...cohort.layouts.field_maps import list_field_maps
from ...errors import RecordingError
from ..io.metadata import read_affine
from ..io.nifti_header import read_header
from ..io.sidecars import Sidecar, read_sidecar
from .shift import AXES

EPI = ("epi", "bold", "sbref")  # the first preferred
READOUT_S = (0.001, 0.5)
PARALLEL = 0.95  # least cosine of phase-encoding axes that are taken for one


@dataclass(frozen=True)
class Readout:
    """How an image was read out.

    Attributes
    ----------
    path : Path
    affine : float64 [4, 4]
    axis : int
        Phase encoding, of the voxels' axes x, y, z.
    sign : int
        1 along the axis, -1 against it.
    total_s : float
        TotalReadoutTime.
    """

    path: Path
    affine: np.ndarray
    axis: int
    sign: int
    total_s: float

    @property
    def mm_per_hz(self) -> float:
        """Displacement along the voxel axis for a field of 1 Hz."""
        return self.sign * self.total_s * float(np.linalg.norm(self.affine[:3, self.axis]))

    @property
    def direction(self) -> str:
        return AXES[self.axis] + "-" * (self.sign < 0)

    @property
    def vector(self) -> np.ndarray:
        """Where a positive field displaces to, unit vector [3] of the world."""
        column = self.affine[:3, self.axis]
        return self.sign * column / np.linalg.norm(column)


@dataclass(frozen=True)
class Pair:
    """Two images of opposite readout; without a `same` the run's own reference image is one."""

    opposite: Readout
    same: Readout | None

    @property
    def files(self) -> list[Path]:
        return [self.opposite.path] + ([self.same.path] if self.same else [])


@dataclass(frozen=True)
class Map:
    """Images of phase or of the field, and the magnitude that shows the head there.

    Attributes
    ----------
    kind : str
        ``phasediff``, ``phases`` or ``fieldmap``.
    """

    kind: str
    images: tuple[Path, ...]
    magnitude: Path

    @property
    def files(self) -> list[Path]:
        return [*self.images, self.magnitude]


def read_readout(path: Path) -> Readout:
    """Direction and duration of an image's readout.

    Raises
    ------
    RecordingError
        ``bad_metadata``: one of them is missing or impossible.
    """
    header, stated = read_header(path), read_sidecar(path)
    direction = stated.read("PhaseEncodingDirection")
    if direction is None:
        raise RecordingError(
            "bad_metadata",
            f"{path}: expected PhaseEncodingDirection in its JSON file, found none; add it",
        )
    axis = AXES.index(direction[0])
    total_s = stated.read("TotalReadoutTime")
    spacing_s = stated.read("EffectiveEchoSpacing")
    if total_s is None and spacing_s is not None:
        total_s = spacing_s * (header.shape[axis] - 1)
    low, high = READOUT_S
    if total_s is None or not low <= total_s <= high:
        found = "none" if total_s is None else f"{total_s:g}"
        hint = "; it looks like milliseconds" if total_s and low <= total_s / 1000 <= high else ""
        raise RecordingError(
            "bad_metadata",
            f"{path}: expected TotalReadoutTime in its JSON file, {low:g} to {high:g} s, found "
            f"{found}{hint}; correct it",
        )
    sign = -1 if direction.endswith("-") else 1
    return Readout(path, read_affine(path, header, []), axis, sign, total_s)


def find_sources(run: Path, method: str) -> tuple[list[Pair | Map], list[str]]:
    """What the dataset offers for a run, the preferred one first; and why others are not used.

    Parameters
    ----------
    method : str
        ``auto``, ``pepolar`` or ``fieldmap``.

    Raises
    ------
    RecordingError
        A sidecar is none, or none of the images there is said to be for the run.
    """
    there = list_field_maps(run)
    stated = {path: read_sidecar(path) for path in there}
    mine = [path for path in there if _is_for(run, stated[path])]
    if not mine and method != "auto":
        mine = [path for path in there if not _names_runs(stated[path])]
    epis = [path for path in mine if _is_epi(path)]
    # the images of one map go together: often only one of them says what it is for
    names = [parse_name(path.name)[0] for path in mine if not _is_epi(path)]
    maps = [path for path in there if not _is_epi(path) and parse_name(path.name)[0] in names]
    found: list[Pair | Map] = []
    refused: list[str] = []
    for wanted, files, make in (("pepolar", epis, _pair), ("fieldmap", maps, _map)):
        if files and method in ("auto", wanted):
            try:
                found.append(make(run, files))
            except RecordingError as error:
                refused.append(error.reason)
    told = [path for path in there if path.parent.name == "fmap"]
    if not (found or refused) and (told or method != "auto"):
        raise RecordingError("bad_metadata", _describe_untied(run, told, method))
    return found, refused


def _describe_untied(run: Path, there: list[Path], method: str) -> str:
    what = f"{len(there)} images in fmap/ of other runs or of none" if there else "no such image"
    if method != "auto":
        return (
            f"{run}: expected images for preprocess.distortion: {method}, found {what}; add them, "
            "or set distortion: auto"
        )
    return (
        f"{run}: expected IntendedFor in the JSON files of fmap/ to name this run, or "
        f"B0FieldIdentifier there and B0FieldSource here, found {what}; add it, or set "
        "preprocess.distortion: pepolar or fieldmap to use those that name no run"
    )


def _is_epi(path: Path) -> bool:
    return parse_name(path.name)[1] in EPI


def _is_for(run: Path, stated: Sidecar) -> bool:
    sources = set(_list(read_sidecar(run).read("B0FieldSource")))
    if sources:
        return bool(sources & set(_list(stated.read("B0FieldIdentifier"))))
    own = run.as_posix().removesuffix(".gz")
    # bids::sub-1/func/..., func/..., ./func/..., func\\...
    names = (name.split(":")[-1].replace("\\", "/") for name in _list(stated.read("IntendedFor")))
    wanted = (name.removeprefix(".").lstrip("/").removesuffix(".gz") for name in names)
    return any(own.endswith(f"/{name}") for name in wanted if name)


def _names_runs(stated: Sidecar) -> bool:
    return bool(_list(stated.read("IntendedFor")) or _list(stated.read("B0FieldIdentifier")))


def _list(value: str | Sequence[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _pair(run: Path, files: list[Path]) -> Pair:
    own = read_readout(run)
    found = sorted(map(read_readout, files), key=_preference)
    along = {one.path: float(one.vector @ own.vector) for one in found}
    opposite = [one for one in found if along[one.path] < -PARALLEL]
    if not opposite:
        seen = ", ".join(f"{one.direction} ({one.path.name})" for one in found)
        raise RecordingError(
            "bad_metadata",
            f"{run}: expected an image read out against {own.direction}, found {seen}; correct "
            "PhaseEncodingDirection in the JSON files, or IntendedFor",
        )
    first = opposite[0]
    same = [one for one in found if along[one.path] > PARALLEL and _alike(one, first)]
    return Pair(first, same[0] if same else None)


def _preference(one: Readout) -> tuple[int, str]:
    return EPI.index(parse_name(one.path.name)[1]), one.path.name


def _alike(one: Readout, other: Readout) -> bool:
    """Of one acquisition: what they are and their names, but for the direction."""
    (own, suffix), (names, kind) = parse_name(one.path.name), parse_name(other.path.name)
    same_name = {k: v for k, v in own.items() if k != "dir"} == {
        k: v for k, v in names.items() if k != "dir"
    }
    return suffix == kind and same_name


def _map(run: Path, files: list[Path]) -> Map:
    read_readout(run)
    groups: dict[tuple, dict[str, Path]] = {}
    for path in files:
        entities, suffix = parse_name(path.name)
        groups.setdefault(tuple(entities.items()), {}).setdefault(suffix, path)
    for group in groups.values():
        magnitude = group.get("magnitude1") or group.get("magnitude") or group.get("magnitude2")
        for kind, names in (
            ("fieldmap", ("fieldmap",)), ("phasediff", ("phasediff",)),
            ("phases", ("phase1", "phase2")),
        ):  # fmt: skip
            if magnitude and group.keys() >= set(names):
                return Map(kind, tuple(group[name] for name in names), magnitude)
    raise RecordingError(
        "bad_metadata",
        f"{run}: expected phasediff, phase1 and phase2, or fieldmap with a magnitude image of the "
        f"same name, found {_name(files)}; add what is missing",
    )


def _name(files: Iterable[Path]) -> str:
    return ", ".join(path.name for path in files)
