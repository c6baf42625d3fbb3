"""Rows of results, the same columns in every task."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import atomic_path
from .statistics import Estimate, Sample, Statistic, holm

#: column -> (type, meaning)
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "task": (pa.string(), "the task's kind: reconstruction, regression, classification, ..."),
    "target": (pa.string(), "column of the participants table; the masking for reconstruction"),
    "cohort": (pa.string(), "cohort evaluated"),
    "split": (pa.string(), "test, or all for an external cohort (never trained on)"),
    "method": (pa.string(), "what predicted; 'a minus b' is a paired difference"),
    "level": (pa.string(), "pooled over all values, or of one recording, parcel or seed"),
    "unit": (pa.string(), "the recording, parcel (1..R) or seed of the level; null when pooled"),
    "metric": (pa.string(), "r2 (unclipped), r, mse, mae, auc, ...; scaled_: of labels as learnt"),
    "value": (pa.float64(), "the metric; null where it has none, see note"),
    "low": (pa.float64(), "lower end of the 95 % interval over participants; null if none"),
    "high": (pa.float64(), "upper end"),
    "p": (pa.float64(), "p value, corrected for the comparisons of its table; null if not tested"),
    "n": (pa.int32(), "participants evaluated"),
    "n_train": (pa.int32(), "participants the method was fitted on; null if it needs none"),
    "left_out": (pa.int32(), "participants of this cohort and split that are not in n"),
    "note": (pa.string(), "why they were left out, or why there is no value"),
    "command": (pa.string(), "what made the row"),
    "config": (pa.string(), "Job.fingerprint: the resolved configuration and the task's file"),
    "seed": (pa.int64(), "of masks and resamples; at level seed, of the fit"),
}


def write_results(
    rows: Iterable[dict], path: Path, seed: int, config: str | None = None
) -> pd.DataFrame:
    """Write rows as Parquet, each with the command, configuration and seed that made it."""
    command = current_command()
    full = [
        {name: row.get(name) for name in COLUMNS}
        | {"command": command, "config": config}
        | {"seed": int(row["unit"]) if row.get("level") == "seed" else seed}
        for row in rows
    ]
    for row in full:
        for name in ("value", "low", "high", "p"):  # NaN is no measurement
            value = row[name]
            row[name] = None if value is None or value != value else float(value)
    schema = pa.schema(
        [pa.field(n, t, metadata={"description": d}) for n, (t, d) in COLUMNS.items()]
    )
    table = pa.Table.from_pylist(full, schema=schema)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return table.to_pandas()


def rows_of(
    where: dict,
    estimate: Estimate,
    units: Iterable | None = None,
    p: np.ndarray | None = None,
) -> Iterator[dict]:
    """A figure with its interval, or one row for each of its units."""
    columns = {"value": estimate.value, "p": p}
    columns |= dict(zip(("low", "high"), estimate.interval, strict=True))
    numbers = {name: np.ravel(values) for name, values in columns.items() if values is not None}
    for k, unit in enumerate([None] if units is None else units):
        row = where if unit is None else where | {"unit": str(unit)}
        yield row | {name: float(values[k]) for name, values in numbers.items()}


def rows_of_gaps(
    gaps: Sequence[tuple[dict, Estimate]], units: Iterable | None = None
) -> Iterator[dict]:
    """Paired differences with p, corrected over all of them and their units."""
    p = holm(np.array([gap.p for _, gap in gaps]))
    for (where, gap), corrected in zip(gaps, p, strict=True):
        yield from rows_of(where, gap, units, corrected)


def compare(
    sample: Sample,
    statistics: Mapping[str, Statistic],
    where: dict,
    pairs: Sequence[tuple[str, str]] = (),
    units: Iterable | None = None,
) -> Iterator[dict]:
    """Rows of one metric: each method, then each pair of methods as ``a minus b``."""
    found = {name: sample.estimate(statistic) for name, statistic in statistics.items()}
    for name, estimate in found.items():
        yield from rows_of(where | {"method": name}, estimate, units)
    named = [(where | {"method": f"{a} minus {b}"}, found[a] - found[b]) for a, b in pairs]
    yield from rows_of_gaps(named, units)


def rows_of_units(where: dict, level: str, units: Iterable, values: Iterable) -> Iterator[dict]:
    """Values without intervals: of single recordings, parcels or seeds."""
    for unit, value in zip(units, values, strict=True):
        yield where | {"level": level, "unit": str(unit), "value": float(value)}


def current_command() -> str:
    """The command line of this process, as a user would type it."""
    name = Path(sys.argv[0]).name
    line = shlex.join(["brainlm" if name == "__main__.py" else name, *sys.argv[1:]])
    stored = os.environ.get("BRAINLM_CONFIG")  # what Snakemake's jobs read instead of config.yaml
    return f"BRAINLM_CONFIG={shlex.quote(stored)} {line}" if stored else line


def describe_left_out(reasons: dict[str, int]) -> str | None:
    """``{"no age": 3, "no series": 0}`` -> ``"3 no age"``; None when none was left out."""
    return "; ".join(f"{count} {reason}" for reason, count in reasons.items() if count) or None
