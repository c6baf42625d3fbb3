"""The time between volumes: believed only from something that states it.

A folder can state it in many places: the sidecars of the file and of other files of the same run,
the header of the image, the cohort's entry in config.yaml. All that state it must agree to 1 %. A
header of 0, of exactly 1 s (what many writers put when they do not know) or of another statement
in milliseconds states nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...cohort.layouts import parse_name, same_run
from ...errors import RecordingError
from .nifti_header import Header
from .sidecars import Sidecar

#: s; outside this range a repetition time is a mistake of units
TR_RANGE_S = (0.2, 10.0)
_TOLERANCE = 0.01
#: Suffixes of files whose sidecars say how often a run was sampled; physio's is of a belt.
_OF_THE_RUN = ("bold", "timeseries", "motion", "outliers")


@dataclass(frozen=True)
class Statement:
    """s between volumes, and who states it (for messages).

    `sparse`: by ``VolumeTiming``, so the scanner may rest between volumes, and a header may have
    the shorter time in which a volume is acquired. `least`: by the last of the slice times, so
    volumes are no closer than this.
    """

    seconds: float
    source: str
    sparse: bool = False
    least: bool = False


def agree_repetition_time(
    path: Path,
    statements: Sequence[Statement],
    cohort_s: float | None,
    header: Header | None = None,
    warnings: list[str] | None = None,
) -> float:
    """s between volumes, on which everything that states it agrees.

    Parameters
    ----------
    path : Path
        The recording, for messages.
    statements : sequence of Statement
        Of sidecars (:func:`read_statements`), the closest first.
    cohort_s : float or None
        ``repetition_time_s`` of the cohort.
    header : Header, optional
        Of the image.
    warnings : list of str, optional
        Gets a line where the header had to be believed, or could not be.

    Raises
    ------
    RecordingError
        ``bad_metadata``: nothing states it, or two statements differ by more than 1 %.
    """
    warnings = [] if warnings is None else warnings
    stated = [s for s in statements if not s.least]
    if cohort_s is not None:
        stated.append(Statement(cohort_s, "the cohort's repetition_time_s"))
    in_header = header.step_s if header else 0.0
    acquisition = any(s.sparse and in_header < s.seconds for s in stated)
    mistaken = acquisition or any(_mistaken(in_header, s.seconds) for s in stated)
    if in_header not in (0.0, 1.0) and not mistaken:
        stated.append(Statement(in_header, "the header"))
        if len(stated) == 1:
            if header and header.time_unit == "unknown":
                warnings.append("unit of time: the header gives none; seconds assumed")
            warnings.append("time from the header: no sidecar gives the repetition time")
    elif stated and header is not None and not _agree(in_header, stated[0].seconds):
        warnings.append(
            f"placeholder in the header: repetition time {stated[0].seconds:g} s as stated; the "
            f"header says {in_header:g}"
        )
    if not stated:
        says = "" if header is None else f": the header says {in_header:g} s"
        says += ", which many programs write when they do not know" if in_header else ""
        raise RecordingError(
            "bad_metadata",
            f"{path}: no repetition time{says}, and nothing else states it; add RepetitionTime "
            "(s) to the JSON file, or set repetition_time_s for the cohort (--tr on the command "
            "line)",
        )
    first = stated[0]
    seconds = check_repetition_time(path, first.seconds, f"the repetition time of {first.source}")
    for other in stated[1:]:
        if not _agree(other.seconds, seconds):
            raise RecordingError(
                "bad_metadata",
                f"{path}: {first.source} says {seconds:g} s between volumes, {other.source} "
                f"{other.seconds:g} s; correct RepetitionTime or the cohort's repetition_time_s",
            )
    for slices in (s for s in statements if s.least and s.seconds > (1 + _TOLERANCE) * seconds):
        told = (
            f"{slices.source} has a slice at {slices.seconds:g} s, but volumes are {seconds:g} s "
            "apart"
        )
        if len(stated) == 1:
            raise RecordingError(
                "bad_metadata",
                f"{path}: {told} by {first.source}, and nothing else states the repetition time; "
                "correct whichever is wrong, or confirm it as repetition_time_s of the cohort",
            )
        warnings.append(f"slice times: {told}; they are not used")
    return seconds


def check_repetition_time(path: Path, value: float, source: str) -> float:
    """`value`, if a BOLD run can have it; RecordingError otherwise."""
    low, high = TR_RANGE_S
    if not low <= value <= high:
        hint = f"; {value:g} looks like milliseconds" if low <= value / 1000 <= high else ""
        raise RecordingError(
            "bad_metadata",
            f"{path}: {source} is {value:g}, expected {low:g} to {high:g} s{hint}; correct "
            "RepetitionTime",
        )
    return float(value)


def read_statements(path: Path, sidecar: Sidecar, count: int) -> list[Statement]:
    """What sidecars say: the file's own, then those of other files of the same run next to it.

    Parameters
    ----------
    path : Path
        The recording; other files are looked for where it lies in a folder of its participant.
    sidecar : Sidecar
        Its inherited metadata.
    count : int
        Volumes, or time points.
    """
    own = _statements_of(sidecar, "the sidecar", count)
    return own + [s for other in _others(path) for s in _statements_of(*other)]


def _statements_of(sidecar: Sidecar, name: str, count: int | None = None) -> list[Statement]:
    found = []
    if (seconds := sidecar.read("RepetitionTime")) is not None:
        check_repetition_time(sidecar.sources["RepetitionTime"], seconds, "RepetitionTime")
        found.append(Statement(seconds, name))
    if (starts := sidecar.read("VolumeTiming")) is not None:
        step = _equal_step(sidecar.sources["VolumeTiming"], starts, count)
        found.append(Statement(step, f"VolumeTiming of {name}", sparse=True))
    frequency = sidecar.read("SamplingFrequency")
    if isinstance(frequency, float):
        found.append(Statement(1 / frequency, f"SamplingFrequency of {name}"))
    with contextlib.suppress(RecordingError):  # only who corrects slice times needs them whole
        if (slices := sidecar.read("SliceTiming")) is not None:
            found.append(Statement(max(slices), f"SliceTiming of {name}", least=True))
    return found


def _equal_step(path: Path, starts: list[float], count: int | None) -> float:
    steps = np.diff(starts)
    step = float(np.median(steps))
    if count is not None and len(starts) != count:
        raise RecordingError(
            "bad_metadata",
            f"{path}: VolumeTiming has {len(starts)} times, the recording {count} volumes; "
            "correct it",
        )
    if step <= 0 or np.abs(steps - step).max() > _TOLERANCE * step:
        raise RecordingError(
            "bad_metadata",
            f"{path}: VolumeTiming has steps of {steps.min():g} to {steps.max():g} s; only runs "
            "with equal steps can be used: exclude the recording",
        )
    return step


def _others(path: Path) -> list[tuple[Sidecar, str]]:
    """Sidecars of other files of the run in the same folder, each with its name."""
    entities, _ = parse_name(path.name)
    subject = f"sub-{entities.get('sub')}"
    if not any(folder.name == subject for folder in path.parents):
        return []  # a flat folder of a whole cohort
    own = path.name.split(".", 1)[0] + ".json"
    found = []
    for name in sorted(os.listdir(path.parent)):
        others, suffix = parse_name(name)
        is_sidecar = name.endswith(".json") and name != own and suffix in _OF_THE_RUN
        if is_sidecar and same_run(entities, others):
            sidecar = Sidecar()
            sidecar.add(path.with_name(name))
            found.append((sidecar, name))
    return found


def _agree(first: float, second: float) -> bool:
    return abs(first - second) <= _TOLERANCE * second


def _mistaken(in_header: float, stated: float) -> bool:
    """The stated time in milliseconds under a unit of seconds, or the reverse."""
    return _agree(in_header / 1000, stated) or _agree(in_header * 1000, stated)
