"""The pretraining: curve, throughput, what it cost."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ..training.predictors import PREDICTORS
from ..training.pretraining_text import TEXT
from . import figures
from .facts import Facts
from .page_blocks import Figure, Table, Text, show

#: Board power limit of a GPU (W): an upper bound where the energy was not measured.
_POWER_W = {"H200": 700, "H100": 700, "A100": 400, "V100": 300, "L40": 300, "A40": 300, "T4": 70}


def describe_pretraining(facts: Facts) -> list[Any]:
    """The curve next to trivial predictors, throughput and data wait."""
    curve = facts.curve
    if curve.empty or "loss" not in curve:
        return [Text([TEXT.missing], tone="missing")]
    last = curve[curve["split"] != "train"].tail(1)
    words = TEXT.caption("no validation")
    if len(last):
        row = last.iloc[0]
        scores = {"the model": "r2"} | {words: f"r2_{name}" for name, words in PREDICTORS.items()}
        parts = [
            f"{label} {show(row.get(column))}"
            for label, column in scores.items()
            if pd.notna(row.get(column))
        ]
        words = TEXT.caption("end", step=row["step"], scores=", ".join(parts))
    blocks: list[Any] = [
        Figure(
            "curve",
            f"{TEXT.caption('curve')} {words}",
            figures.draw_curve(curve),
            "Line charts of loss and masked R² over updates. " + words,
            command=TEXT.command,
            frame=curve,
        )
    ]
    speed = _throughput(facts)
    if len(speed):
        blocks.append(Table("throughput", TEXT.caption("throughput"), speed))
    return blocks


def _throughput(facts: Facts) -> pd.DataFrame:
    curve, run = facts.curve, facts.run
    rows = [
        ("device", run.get("device")),
        ("processes", run.get("processes")),
        ("attention kernel", run.get("attention")),
        ("precision", run.get("precision")),
        ("windows per second", run.get("windows_per_s")),
        ("seconds", run.get("seconds")),
        *_cost(run),
    ]
    if "data_wait" in curve:
        wait = pd.to_numeric(curve["data_wait"], errors="coerce").dropna()
        rows.append(("share of time waiting for data", float(wait.mean()) if len(wait) else None))
    if "mfu" in curve:
        rows.append(("share of the device's peak", curve["mfu"].dropna().mean()))
    return pd.DataFrame([row for row in rows if pd.notna(row[1])], columns=["what", "value"])


def _cost(run: dict) -> list[tuple[str, Any]]:
    """Device hours, and the energy if it was measured or has a known bound."""
    if run.get("seconds") is None:
        return []
    device = str(run.get("device", ""))
    hours = run["seconds"] / 3600 * run.get("processes", 1)
    if "CPU" in device:
        return [("processor hours (all threads)", hours), ("energy", "not measured")]
    watt = next((power for name, power in _POWER_W.items() if name in device), None)
    energy = f"at most {show(hours * watt / 1000)} kWh (GPUs at {watt} W)" if watt else None
    measured = run.get("energy_kwh")
    return [
        ("GPU hours", hours),
        ("energy", f"{show(measured)} kWh" if measured else energy or "not measured"),
    ]
