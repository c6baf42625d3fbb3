"""What is known of the participants: participants.tsv or any table joined by subject."""

from __future__ import annotations

from collections.abc import Sequence
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
