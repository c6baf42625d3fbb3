"""The page of a session: which model, which recordings, what came out, and how far to trust it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..config import Config
from ..evaluation.rows import current_command
from ..report.cohort_pages import link_pages, make_cohort_page, read_measured
from ..report.facts import read_facts
from ..report.page_blocks import Cards, Cautions, Section, Table, Text, count
from ..report.site import Page, write_site
from .vectors import IDENTITY

if TYPE_CHECKING:
    from ..model import BrainLM

_LEFT_OUT = {"level", "cohort", "vector", "start_s"}


def write_session_page(
    table: pd.DataFrame, model: BrainLM, name: str, source: str, config: Config
) -> Path:
    """Write the page of the report and the cohort's page into the session's results folder.

    Parameters
    ----------
    table : DataFrame
        Of :mod:`.vectors`: a row per window and per recording.
    name : str
        What the user called the model; `source`: and the scans.
    """
    paths = config.paths
    recordings = table[table["level"] == "recording"].reset_index(drop=True)
    (cohort,) = config.cohorts
    pages = link_pages(paths, cohort.name)
    page = Page(
        paths.report_page.name,
        Path(source).name,
        f"{count(len(recordings), 'recording')} through the model {name}",
        [
            Section("summary", "Summary", _summarise(table, recordings, model, name)),
            Section("recordings", "Recordings", [_list(recordings, pages)]),
        ],
        [],
    )
    facts = read_facts(config)
    measured = read_measured(paths, cohort.name)
    write_site([page, make_cohort_page(facts, cohort, measured, pages)], paths.report)
    return paths.report_page


def _summarise(table: pd.DataFrame, recordings: pd.DataFrame, model: BrainLM, name: str) -> list:
    made = recordings["status"] == "ok"
    windows = int((table["level"] == "window").sum())
    shape, scaling = model.config, model.scaling
    assert scaling is not None
    cards = [
        ("recordings with a result", f"{made.sum()} of {len(recordings)}", ""),
        ("windows", str(windows), f"of {shape.window * scaling.sample_period_s:g} s"),
    ]
    text = (
        f"The model {name}: {shape.preset or shape.family}, {shape.num_parcels} parcels of atlas "
        f"{scaling.atlas}, one sample every {scaling.sample_period_s:g} s, input in "
        f"{scaling.units}, scaled by release {scaling.release or '(not named)'}."
    )
    notes = recordings["warnings"].replace("", None).dropna().str.split("; ").explode()
    cautions = [f"{text}: {count(n, 'recording')}" for text, n in notes.value_counts().items()]
    cautions += [
        f"{count(n, 'recording')} without a result: {status}"
        for status, n in recordings.loc[~made, "status"].value_counts().items()
    ]
    return [
        Text([text]),
        Cards(cards),
        *([Cautions("Limitations", cautions)] if cautions else []),
    ]


def _list(recordings: pd.DataFrame, pages: dict[str, str]) -> Table:
    first = [name for name in ("recording_id", *IDENTITY) if name not in _LEFT_OUT]
    columns = list(dict.fromkeys([*first, *recordings.columns.difference(_LEFT_OUT, sort=False)]))
    frame = recordings[columns].dropna(axis="columns", how="all")
    caption = "One row per recording; its page shows motion, registration, components and parcels."
    return Table(
        "recordings", caption, frame, command=current_command(), sortable=True, links=pages
    )
