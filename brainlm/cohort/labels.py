"""What is known of the participants: participants.tsv or any table joined by subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..config import Cohort
from ..errors import BrainLMError


def participants_path(cohort: Cohort) -> Path | None:
    """The cohort's table, or None when it has none and config.yaml names none."""
    if cohort.participants is not None:
        path = cohort.participants
        return path if path.is_absolute() or path.exists() else cohort.folder / path
    path = cohort.folder / "participants.tsv"
    return path if path.exists() else None


def read_participants(cohort: Cohort) -> pd.DataFrame:
    """The participants table indexed by participant_id (``sub-`` added where it is missing).

    ``n/a`` is missing, as BIDS says. Without a table the frame is empty.

    Raises
    ------
    BrainLMError
        The named table is missing, has no participant_id column, or names somebody twice.
    """
    path = participants_path(cohort)
    if path is None:
        return pd.DataFrame(index=pd.Index([], name="participant_id"))
    try:
        table = pd.read_csv(
            path,
            sep="," if path.suffix == ".csv" else "\t",
            dtype={"participant_id": str},
            na_values=["n/a"],
            encoding="utf-8-sig",
        )
    except FileNotFoundError:
        raise BrainLMError(f"{path}: participants table not found") from None
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise BrainLMError(f"{path}: not a readable table ({error})") from None
    if "participant_id" not in table:
        raise BrainLMError(
            f"{path}: expected a column participant_id, found: "
            + ", ".join(map(str, table.columns))
        )
    ids = table["participant_id"].astype(str)
    table["participant_id"] = ids.where(ids.str.startswith("sub-"), "sub-" + ids)
    twice = table["participant_id"][table["participant_id"].duplicated()]
    if len(twice):
        raise BrainLMError(f"{path}: {twice.iloc[0]} stands in {len(twice) + 1} rows; keep one")
    return table.set_index("participant_id")


def check_targets(cohorts: Sequence[Cohort], targets: Mapping[str, str]) -> None:
    """Refuse a task whose target no participants table has, before anything is computed."""
    columns = {cohort.name: _header(cohort) for cohort in cohorts}
    for task, target in targets.items():
        if not any(target in names for names in columns.values()):
            known = "; ".join(f"{c}: {', '.join(n) or 'no table'}" for c, n in columns.items())
            raise BrainLMError(
                f"task {task}: no participants table has a column {target!r} ({known}); name "
                "another column in the task's file, or leave the task out of tasks"
            )


def read_columns(cohorts: Sequence[Cohort]) -> set[str]:
    """Columns that any participants table has."""
    return {name for cohort in cohorts for name in _header(cohort)}


def _header(cohort: Cohort) -> list[str]:
    path = participants_path(cohort)
    if path is None:
        return []
    try:
        with open(path, encoding="utf-8-sig") as handle:
            return handle.readline().rstrip("\n").split("," if path.suffix == ".csv" else "\t")
    except (OSError, UnicodeDecodeError) as error:
        raise BrainLMError(f"{path}: participants table cannot be read ({error})") from None


def describe_shortage(labels: pd.Series, table: pd.DataFrame, least: int = 10) -> str | None:
    """Why `labels` cannot be fine-tuned on, or None: fewer than `least` training people have one.

    `table` is a corpus' table of recordings.
    """
    usable = table[(table["status"] == "ok") & (table["split"] == "train")]
    people = pd.MultiIndex.from_frame(usable[["cohort", "participant_id"]].drop_duplicates())
    known = int(labels.reindex(people).notna().sum())
    if known >= least:
        return None
    return (
        f"{known} of {len(people)} training people with a usable recording have a value; at "
        f"least {least} are needed"
    )


def read_target(cohorts: Sequence[Cohort], target: str) -> pd.Series:
    """One column over all cohorts, indexed by (cohort, participant_id), as float.

    Cohorts without the column contribute nothing.

    Raises
    ------
    BrainLMError
        No cohort has the column, or it holds something other than numbers.
    """
    parts, seen = {}, {}
    for cohort in cohorts:
        table = read_participants(cohort)
        seen[cohort.name] = list(map(str, table.columns))
        if target in table:
            values = pd.to_numeric(table[target], errors="coerce")
            bad = table[target].notna() & values.isna()
            if bad.any():
                raise BrainLMError(
                    f"{participants_path(cohort)}: {target} of {bad.idxmax()} is "
                    f"{table[target][bad.idxmax()]!r}, expected a number or n/a"
                )
            parts[cohort.name] = values.replace([np.inf, -np.inf], np.nan).astype(float)
    if not parts:
        columns = "; ".join(f"{name}: {', '.join(c) or 'no table'}" for name, c in seen.items())
        raise BrainLMError(f"no participants table has a column {target!r} ({columns})")
    return pd.concat(parts, names=["cohort", "participant_id"]).rename(target)
