"""Which recordings of a cohort are left out by hand: its exclusion table."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path

from ..config import Cohort
from ..tables import read_tsv


def read_exclusions(cohort: Cohort) -> dict[str, str]:
    """Reason by recording id; empty where the cohort has no table.

    Raises
    ------
    BrainLMError
        The table is missing, is no table, or has no column recording_id.
    """
    if cohort.exclude is None:
        return {}
    table = read_tsv(cohort.exclude, "recording_id", hint="it is the exclude: of a cohort")
    return {row["recording_id"]: row.get("reason", "") for row in table.records()}


def describe_strangers(cohort: Cohort, index: Path) -> str | None:
    """Rows that name no recording of the index, with the nearest ids; None where all name one."""
    rows = read_exclusions(cohort)
    if not rows:
        return None
    known = {row[0] for row in read_tsv(index).rows}
    strangers = [name for name in rows if name not in known]
    if not strangers:
        return None
    shown = "; ".join(_nearest(name, known) for name in strangers[:3])
    return (
        f"{len(strangers)} of {len(rows)} rows of {cohort.exclude} name no recording: "
        f"{shown}{'; ...' if len(strangers) > 3 else ''}; write the recording_id of the index"
    )


def _nearest(name: str, known: Collection[str]) -> str:
    """Of the same participant, if there are some: all others are many."""
    who = "sub-" + name.strip().split("_")[0].removeprefix("sub-")
    near = sorted(other for other in known if other.split("_")[0] == who)
    participants = {other.split("_")[0]: other for other in sorted(known, reverse=True)}
    if not near:
        alike = difflib.get_close_matches(who, participants, 1, 0.6)
        near = [participants[alike[0]]] if alike else []
    best = difflib.get_close_matches(name, near, 1, 0.0)
    return f"{name!r} (nearest: {best[0]})" if best else f"{name!r}"


def exclusions_by_chunk(cohort: Cohort, index: Path) -> dict[str, list[tuple[str, str]]]:
    """(recording_id, reason) of each chunk from which a recording is left out."""
    reasons = read_exclusions(cohort)
    found: dict[str, list[tuple[str, str]]] = {}
    for name, *_, chunk in read_tsv(index).rows if reasons else ():
        if name in reasons:
            found.setdefault(chunk, []).append((name, reasons[name]))
    return found
