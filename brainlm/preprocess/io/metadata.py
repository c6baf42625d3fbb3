"""What header and sidecars say of a recording, and whether it can be true."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import RecordingError

#: s; outside this range a repetition time is a mistake of units
TR_RANGE_S = (0.2, 10.0)
#: mm; voxel sizes and field of view that a whole-brain BOLD image can have
VOXEL_RANGE_MM = (0.5, 8.0)
MIN_FIELD_OF_VIEW_MM = 40.0
_TIME_UNITS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}


def read_sidecar(path: Path) -> dict[str, Any]:
    """Metadata of a file by the BIDS inheritance principle, the closest file last.

    A sidecar applies when its entities are a subset of the file's; only names that the file's
    own entities can form are looked up, so a dataset of 40,000 subjects costs no listing.
    """
    stem = path.name.removesuffix(".gz")
    stem = stem[: stem.rindex(".")] if "." in stem else stem
    *entities, suffix = stem.split("_")
    subject = next((p for p in path.parents if p.name == (entities or [""])[0]), path.parent)
    folders = [folder for folder in reversed(path.parents) if folder.is_relative_to(subject)]
    merged: dict[str, Any] = {}
    for folder in [subject.parent, *folders] if subject != path.parent else [path.parent]:
        for count in range(len(entities) + 1):
            for chosen in itertools.combinations(entities, count):
                candidate = folder / ("_".join([*chosen, suffix]) + ".json")
                if candidate.is_file():
                    merged |= _read_sidecar_file(candidate)
    return merged


def _read_sidecar_file(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordingError(
            "bad_metadata", f"{path}: expected a JSON sidecar, found something else ({error})"
        ) from None
    if not isinstance(values, dict):
        raise RecordingError(
            "bad_metadata", f"{path}: expected a JSON object, found a {type(values).__name__}"
        )
    return values


def read_affine(
    path: Path, header: Any, shape: tuple[int, ...], warnings: list[str]
) -> np.ndarray:
    """sform, else qform; checked for plausibility.

    Raises
    ------
    RecordingError
        No orientation at all, singular, or voxel sizes that no BOLD image has.
    """
    sform, s_code = header.get_sform(coded=True)
    try:
        qform, q_code = header.get_qform(coded=True)
    except (ValueError, np.linalg.LinAlgError):  # an impossible quaternion
        qform, q_code = None, 0
    if not s_code and not q_code:
        raise RecordingError(
            "bad_metadata",
            f"{path}: sform and qform codes are both 0, so left and right are unknown; write the "
            "orientation into the header",
        )
    affine = np.asarray(sform if s_code else qform, np.float64)
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(0))
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-3 * sizes.prod():
        raise RecordingError("bad_metadata", f"{path}: the orientation matrix is singular")
    _check_geometry(path, sizes, np.asarray(shape[:3]))
    if s_code and q_code:
        corners = np.array([[*c, 1] for c in itertools.product(*((0, n - 1) for n in shape[:3]))])
        apart = np.abs(corners @ (affine - qform).T).max()
        if apart > 1.0:
            warnings.append(f"sform and qform differ by up to {apart:.1f} mm; the sform is used")
    return affine


def _check_geometry(path: Path, sizes: np.ndarray, shape: np.ndarray) -> None:
    low, high = VOXEL_RANGE_MM
    if (sizes < low).any() or (sizes > high).any():
        found = " x ".join(f"{size:.3g}" for size in sizes)
        raise RecordingError(
            "bad_metadata",
            f"{path}: expected voxels of {low:g} to {high:g} mm, found {found} mm; check the "
            "header's units",
        )
    if (sizes * shape).min() < MIN_FIELD_OF_VIEW_MM or shape.min() < 4:
        found = " x ".join(f"{n}" for n in shape)
        raise RecordingError(
            "bad_data",
            f"{path}: expected a field of view of at least {MIN_FIELD_OF_VIEW_MM:g} mm in every "
            f"direction, found {found} voxels ({(sizes * shape).min():.0f} mm at the thinnest)",
        )


def check_sidecar(path: Path, sidecar: dict, warnings: list[str]) -> None:
    if "ArterialSpinLabelingType" in sidecar:
        raise RecordingError(
            "bad_metadata", f"{path}: arterial spin labelling (by its sidecar), expected BOLD"
        )
    direction = sidecar.get("PhaseEncodingDirection")
    if direction is not None and direction not in ("i", "j", "k", "i-", "j-", "k-"):
        warnings.append(f"PhaseEncodingDirection {direction!r} is not BIDS (i, j, k); not used")
    echo = next((part for part in path.name.split("_") if part.startswith("echo-")), None)
    if echo and len(list(path.parent.glob(path.name.replace(echo, "echo-*")))) > 1:
        raise RecordingError(
            "bad_metadata",
            f"{path}: one echo of a multi-echo run; combine the echoes first, or leave only the "
            "echo to use in the folder",
        )


def check_repetition_time(path: Path, value: Any, source: str) -> float:
    low, high = TR_RANGE_S
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise RecordingError("bad_metadata", f"{path}: {source} is {value!r}, expected seconds")
    if not low <= value <= high:
        hint = f"; {value:g} looks like milliseconds" if low <= value / 1000 <= high else ""
        raise RecordingError(
            "bad_metadata",
            f"{path}: {source} is {value:g}, expected {low:g} to {high:g} s{hint}; correct it",
        )
    return float(value)


def repetition_time(
    path: Path, header: Any, sidecar: dict, override: float | None, warnings: list[str]
) -> float:
    """The stated time if there is one, else the sidecar's, else the header's.

    A header of 0, of exactly 1 s (what writers put when they do not know) or of the sidecar's
    value in milliseconds is a known placeholder; any other contradiction is an error.
    """
    zooms = header.get_zooms()
    unit = header.get_xyzt_units()[1]
    in_header = float(zooms[3]) * _TIME_UNITS.get(unit, 1.0) if len(zooms) > 3 else 0.0
    stated = override if override is not None else sidecar.get("RepetitionTime")
    if stated is None:
        if in_header == 0:
            raise RecordingError(
                "bad_metadata",
                f"{path}: no repetition time: 0 in the header and none in a sidecar; add "
                "RepetitionTime (s) to the JSON file",
            )
        if unit == "unknown":
            warnings.append("the header gives no unit of time; seconds assumed")
        warnings.append("repetition time from the header; no sidecar gives it")
        return check_repetition_time(path, round(in_header, 6), "the header's repetition time")
    tr_s = check_repetition_time(path, stated, "RepetitionTime")
    if abs(in_header - tr_s) <= 0.01 * tr_s:
        return tr_s
    placeholder = in_header in (0.0, 1.0) or abs(in_header / 1000 - tr_s) <= 0.01 * tr_s
    if not placeholder and override is None:
        raise RecordingError(
            "bad_metadata",
            f"{path}: the header says {in_header:g} s between volumes, the sidecar {tr_s:g} s; "
            "correct one of them",
        )
    warnings.append(f"repetition time {tr_s:g} s as stated; the header says {in_header:g}")
    return tr_s
