"""A cohort's quality page: every recording in one table, usable with 77,000 rows too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..config import Cohort
from ..errors import STATUSES
from ..paths import Results
from ..preprocess.chunk import read_stage_table
from . import figures
from .facts import Facts, count_warnings
from .page_blocks import Figure, PagedTable, Section, Table, Text, count, show
from .site import Page

#: Figures on the page: column -> (label, which side is bad).
FIGURES = {
    "mean_fd_mm": ("mean FD (mm)", "high"),
    "max_fd_mm": ("max FD (mm)", "high"),
    "mean_dvars": ("DVARS (%)", "high"),
    "tsnr": ("tSNR", "low"),
    "correlation": ("registration r", "low"),
    "num_removed": ("components removed", "high"),
    "parcels_with_data": ("parcels with data", "low"),
    "duration_s": ("duration (s)", "low"),
}
#: Robust standard deviations from the cohort's median beyond which a value is marked.
OUTLIER_SD = 3.5
#: What the status ``pending`` means.
PENDING = "not fully processed yet"
_MAD_TO_SD = 1.4826


def make_cohort_page(
    facts: Facts, cohort: Cohort, measured: pd.DataFrame, pages: dict[str, str]
) -> Page:
    """The page of one cohort.

    Parameters
    ----------
    measured : DataFrame
        Figures of the stage tables, one row per recording, indexed by recording_id.
    pages : dict
        Recording -> address of its page, for those that have one.
    """
    table = facts.recordings[facts.recordings["cohort"] == cohort.name]
    table = table.set_index("recording_id").combine_first(
        measured.drop(columns=["status", "reason", "warnings"], errors="ignore")
    )
    table = table.loc[facts.recordings["recording_id"][facts.recordings["cohort"] == cohort.name]]
    known = {
        name: (label, side)
        for name, (label, side) in FIGURES.items()
        if name in table and pd.to_numeric(table[name], errors="coerce").notna().any()
    }
    sections = [
        Section("counts", "Found, done, excluded", _count_statuses(table, cohort.name)),
        Section("quality", "Every recording", [_make_table(table, known, cohort.name, pages)]),
        Section("distributions", "Distributions", _draw(table, known, cohort.name)),
    ]
    trail = [("Study report", "index.html")]
    subtitle = f"{cohort.role} cohort, {count(len(table), 'recording')}"
    return Page(f"{cohort.name}.html", f"Cohort {cohort.name}", subtitle, sections, trail)


def _count_statuses(table: pd.DataFrame, cohort: str) -> list[Any]:
    """Recordings by status, and the reasons for leaving recordings out."""
    counts = table.groupby("status").size().rename("recordings").reset_index()
    counts["share"] = [f"{n / len(table):.1%}" for n in counts["recordings"]]
    counts["meaning"] = counts["status"].map(STATUSES | {"pending": PENDING})
    counts = counts.sort_values("recordings", ascending=False)
    caption = f"{count(len(table), 'recording')} found, by status."
    blocks: list[Any] = [Table(f"{cohort}-statuses", caption, counts, command="brainlm summary")]
    left = table[(table["status"] != "ok") & table["reason"].fillna("").ne("")]
    if len(left):
        # reasons that differ in their numbers only are one kind
        kind = left["reason"].str.replace(r"\d+(\.\d+)?", "#", regex=True)
        groups = left.reset_index().groupby(["status", kind.to_numpy()], sort=False)
        why = groups["recording_id"].agg(["size", "first"]).join(groups["reason"].first())
        why = why.reset_index(level=0).reset_index(drop=True).sort_values("size", ascending=False)
        why.columns = ["status", "recordings", "example", "reason"]
        words = "Why recordings were left out, the most common reason first."
        blocks.append(Table(f"{cohort}-reasons", words, why, command="brainlm summary"))
    warned = count_warnings(table)
    if len(warned):
        texts = table["warnings"].dropna()
        firsts = [texts[texts.str.contains(f"{kind}:", regex=False)] for kind in warned.index]
        shown = pd.DataFrame({
            "warning": warned.index, "recordings": warned.to_numpy(),
            "example": [first.index[0] for first in firsts], "words": [f.iloc[0] for f in firsts],
        })  # fmt: skip
        words = "What was odd but usable, by kind; a recording can have several."
        blocks.append(Table(f"{cohort}-warnings", words, shown, command="brainlm summary"))
    return blocks


def find_outliers(values: pd.Series, side: str) -> np.ndarray:
    """bool [N]: values on the bad side, more than 3.5 robust SD from the median.

    The SD is 1.4826 times the median absolute deviation; where that is 0 nothing is marked.
    """
    number = pd.to_numeric(values, errors="coerce").to_numpy(float)
    middle = np.nanmedian(number) if np.isfinite(number).any() else np.nan
    sd = _MAD_TO_SD * np.nanmedian(np.abs(number - middle)) if np.isfinite(middle) else np.nan
    distance = (number - middle) * (1 if side == "high" else -1)
    with np.errstate(invalid="ignore"):
        return (distance > OUTLIER_SD * sd) if sd > 0 else np.zeros(len(number), bool)


def _make_table(
    table: pd.DataFrame, known: dict, cohort: str, pages: dict[str, str]
) -> PagedTable:
    shown = pd.DataFrame({"recording": table.index, "status": table["status"].to_numpy()})
    for name, (label, side) in known.items():
        marks = np.where(find_outliers(table[name], side), " ▲" if side == "high" else " ▼", "")
        numbers = pd.to_numeric(table[name], errors="coerce")
        shown[label] = [show(float(v)) + m for v, m in zip(numbers, marks, strict=True)]
    shown["reason"] = table["reason"].fillna("").to_numpy()
    frame = table.reset_index()[["recording_id", "participant_id", "status", "reason", *known]]
    caption = (
        f"{count(len(table), 'recording')}. ▲ and ▼ mark values more than {OUTLIER_SD} robust "
        "standard deviations from this cohort's median, on the bad side. Flag recordings to leave "
        "out and export them: name the exported file in the cohort's 'exclude' key in config.yaml."
    )
    links = [pages.get(name, "") for name in table.index]
    return PagedTable(f"{cohort}-recordings", caption, frame, shown, links, cohort)


def _draw(table: pd.DataFrame, known: dict, cohort: str) -> list[Any]:
    columns = {
        label: pd.to_numeric(table[name], errors="coerce").reset_index(drop=True)
        for name, (label, _) in list(known.items())[:4]
        if pd.to_numeric(table[name], errors="coerce").notna().sum() > 1
    }
    if not columns:
        return [
            Text(["There is nothing to draw: no quality figures were measured."], tone="missing")
        ]
    groups = pd.Series(cohort, index=range(len(table)))
    svg = figures.draw_histograms(f"cohort-{cohort}", columns, groups)
    caption = "Distributions over the recordings of this cohort."
    frame = pd.DataFrame(columns).assign(recording_id=table.index.to_numpy())
    return [Figure(f"{cohort}-distributions", caption, svg, caption, frame=frame)]


def link_pages(paths: Results, cohort: str) -> dict[str, str]:
    """Recording -> address of its page, seen from the report's folder."""
    found = paths.list_recording_pages(cohort)
    up = Path(os.path.relpath(paths.recording_pages, paths.report))
    return {
        name: (up / page.relative_to(paths.recording_pages)).as_posix()
        for name, page in found.items()
    }


def read_measured(paths: Results, cohort: str) -> pd.DataFrame:
    """Figures of all stage tables of a cohort, one row per recording; later stages win."""
    parts = []
    for path in paths.list_stage_tables(cohort):
        table = pd.DataFrame(read_stage_table(path))
        parts.append(table.set_index("recording_id").drop(columns="seconds", errors="ignore"))
    if not parts:
        return pd.DataFrame(index=pd.Index([], name="recording_id"))
    return pd.concat(parts).groupby(level=0, sort=False).last()
