"""Tidy tables of results as a reader wants them: the same blocks for every task."""

from __future__ import annotations

from typing import Any

import pandas as pd

from .page_blocks import Table, Text, show, show_interval

METRICS = {
    "r2": "R²", "r": "r", "mse": "MSE", "mae": "MAE", "auc": "AUC",
    "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy",
    "purity": "purity", "identified": "identified", "icc": "ICC", "motion": "|r| with motion",
    "max_t": "largest |t|", "parcels_p05": "parcels with p < 0.05",
}  # fmt: skip
_COUNTS = ("max_t", "parcels_p05")  # of one test: they have no interval


def pooled(table: pd.DataFrame | None) -> pd.DataFrame:
    """Rows of a tidy table that are over all values; an empty frame if there is no table."""
    if table is None:
        return pd.DataFrame(columns=["cohort", "target", "split", "method", "metric", "value"])
    return table[(table["level"] == "pooled") & table["metric"].notna()]


def cell(rows: pd.DataFrame, method: str) -> str:
    row = rows[rows["method"] == method]
    return "–" if row.empty else show_interval(*row.iloc[0][["value", "low", "high"]])


def model_first(table: pd.DataFrame, paired: pd.DataFrame) -> pd.DataFrame:
    """Rows sorted by method: the one that all are compared with, then by mean value downwards."""
    known = [m.split(" minus ")[0] for m in paired["method"].astype(str) if " minus " in m]
    means = table.groupby("method")["value"].mean().sort_values(ascending=False)
    order = [*known[:1], *(m for m in means.index if m not in known[:1])]
    return table.sort_values("method", key=lambda s: s.map(order.index), kind="stable")


def source_of(table: pd.DataFrame) -> dict[str, Any]:
    """Command and configuration that made a table, as a block takes them."""

    def first(name: str) -> str:
        known = table[name].dropna().tolist() if name in table else []
        return str(known[0]) if known else ""

    return {"command": first("command"), "config": first("config")}


def explain_empty(result: pd.DataFrame) -> Text:
    """Why there is no result."""
    parts = [
        f"{row.cohort}, {row.split or 'every split'}: {row.note or 'no participant'}"
        for row in result.itertuples()
    ]
    return Text(["No participant could be evaluated. " + "; ".join(parts) + "."], tone="missing")


def make_tables(name: str, caption: str, result: pd.DataFrame) -> list[Any]:
    """One table of methods, one of paired differences; the files have everything."""
    table, made = pooled(result), source_of(result)
    paired = table["method"].str.contains(" minus ", regex=False)
    blocks: list[Any] = [Table(name, caption, result, pivot(table[~paired]), **made)]
    if paired.any():
        words = (
            "Paired differences on the same resamples of participants; an interval that contains "
            "0 shows no difference. Higher R², r, AUC and accuracy are better, higher errors are "
            "worse. * marks p < 0.05, corrected for all comparisons of the table."
        )
        shown = pivot(table[paired])
        parts = shown["method"].str.split(" minus ", n=1, expand=True)
        if parts[0].nunique() == 1:  # named once, in the head, instead of in every row
            shown = shown.assign(method=parts[1]).rename(
                columns={"method": f"{parts[0][0]} minus"}
            )
        blocks.append(Table(f"{name}-differences", words, table[paired], shown, **made))
    return blocks


def slug(text: str) -> str:
    """A file name from any text."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)[:40]


def pivot(table: pd.DataFrame) -> pd.DataFrame:
    """One row per cohort, masking or split, and method; one column per metric."""
    numbers = table.reindex(columns=["value", "low", "high", "p"]).astype(float).to_numpy()
    text = table.assign(
        text=[
            (show(value) if name in _COUNTS else show_interval(value, low, high))
            + (" *" if p < 0.05 else "")
            for name, (value, low, high, p) in zip(table["metric"], numbers, strict=True)
        ],
        metric=table["metric"].map(METRICS),
        split=table["split"].fillna("all"),
        target=table["target"].fillna(""),
    )
    keys = ["cohort", "split", "target", "method", "n"]
    wide = text.pivot_table("text", keys, "metric", aggfunc="first", sort=False).reset_index()
    wide.columns.name = None
    wide = wide.astype(object).where(wide.notna(), None)
    if table["task"].iloc[0] not in ("reconstruction", "scaling", "latent"):
        wide = wide.drop(columns="target")
    names = {"target": "hidden" if table["task"].iloc[0] == "reconstruction" else "target"}
    return wide.rename(columns=names | {"n": "participants"})


def describe_dots(shown: pd.DataFrame) -> str:
    """A dot chart in words, for screen readers."""
    parts = [
        f"{row.target} in {row.cohort}, {row.method}: "
        + show_interval(row.value, row.low, row.high)
        for row in shown.itertuples()
    ]
    return "Dot chart. " + "; ".join(parts)


def count_evaluated(result: pd.DataFrame) -> Text:
    """How many participants were evaluated and left out, a line per cohort and split."""
    notes = result.drop_duplicates(["cohort", "split"])
    return Text([
        f"{row.cohort}, {row.split or 'all'}: {row.n:.0f} participants evaluated, "
        f"{0 if pd.isna(row.left_out) else row.left_out:.0f} left out"
        f"{f' ({row.note})' if row.note else ''}."
        for row in notes.itertuples()
    ])  # fmt: skip
