"""From shards to tables of embeddings: a row per window, a row per recording.

Nothing is dropped: a recording without a usable series is a row too, with its status and reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..errors import BrainLMError
from ..files import atomic_path
from ..shards import Corpus

if TYPE_CHECKING:
    import torch

    from ..model import BrainLM

#: Columns that say which recording a row is of, and how good it is; the same in every table.
IDENTITY = [
    "level", "cohort", "participant_id", "session_id", "task", "run", "recording_id", "status",
    "reason", "start_s", "duration_s", "repetition_time_s", "coverage", "mean_fd_mm",
]  # fmt: skip
FORMATS = ("parquet", "tsv", "npy")
_BATCH = 8  # windows in one pass of the encoder


def embed_corpus(
    model: BrainLM,
    corpus: Corpus,
    *,
    pool: str = "auto",
    short: str = "refuse",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """Embed every recording of `corpus`.

    Parameters
    ----------
    model : BrainLM
        With its scaling, which the corpus must fit (atlas, sample period, units).
    pool : str
        One of :data:`brainlm.model.pooling.POOLS`; ``auto``: that of the model's head, else the
        mean of the tokens.
    short : str
        ``refuse`` recordings shorter than a window, or ``pad`` them: what is missing is marked
        as missing and never reaches the encoder.

    Returns
    -------
    DataFrame
        :data:`IDENTITY`, ``pool``, ``vector`` (float32 [F]) and ``warnings``. A recording's
        vector is the mean of its windows'; ``start_s`` is a window's first moment. Rows without a
        vector say why in ``status`` and ``reason``.

    Raises
    ------
    BrainLMError
        A model of another atlas or sample period, or series in other units.
    """
    pool = choose_pool(model, pool)

    def run(windows: torch.Tensor) -> list[dict]:
        return [{"vector": vector} for vector in _embed(model, windows, pool)]

    rows = list(_rows(model, corpus, run, short, progress))
    table = pd.DataFrame(rows, columns=[*IDENTITY, "vector", "warnings"])
    table.insert(len(IDENTITY), "pool", pool)
    return table


def choose_pool(model: BrainLM, pool: str) -> str:
    """The pool by name; ``auto`` is the one that the model's head reads, else ``mean``."""
    from ..model.pooling import check_pool

    if pool == "auto":
        return model.config.pool if model.head is not None else "mean"
    check_pool(model.config, pool)
    return pool


def check_units(corpus: Corpus, units: str) -> None:
    """Refuse series whose units are not those that the model's scaling was fitted in."""
    found = set(corpus.table.loc[corpus.table["status"] == "ok", "units"].dropna()) - {units}
    if found:
        raise BrainLMError(
            f"{corpus.paths[0]}: the series are in {', '.join(sorted(map(repr, found)))}, the "
            f"model was trained on {units!r}; say what the series are (units: scanner for raw "
            "means, percent for percent of each parcel's mean)"
        )


def _rows(model, corpus: Corpus, run, short: str, progress) -> Iterator[dict]:
    corpus.check(model.scaling)
    check_units(corpus, model.scaling.units)
    total = len(corpus)
    for index in range(total):
        about = _identity(corpus, index)
        if about["status"] == "ok":
            yield from _recording_rows(model, corpus, index, about, run, short)
        else:
            yield {"level": "recording", **about, "vector": None, "warnings": ""}
        progress(index + 1, total)


def _identity(corpus: Corpus, index: int) -> dict:
    row = corpus.table.iloc[index]
    coverage = np.nan
    if row["status"] == "ok":
        coverage = float(np.isfinite(corpus.series(index)).any(0).mean())
    return {**{k: row[k] for k in IDENTITY if k in row}, "coverage": coverage, "start_s": None}


def _recording_rows(model, corpus: Corpus, index: int, about: dict, run, short: str):
    from ..model.own_series import cut_windows

    try:
        series = model.scaling.apply(corpus.series(index))
        model.scaling.check_amplitude(series)
        windows, starts = cut_windows(model, series, short=short)
    except BrainLMError as error:
        failed = {"status": "not_embedded", "reason": str(error)}
        yield {"level": "recording", **about, **failed, "vector": None, "warnings": ""}
        return
    found = run(windows)
    notes = "; ".join(_warnings(model, corpus, index, windows))
    for start, values in zip(starts, found, strict=True):
        at = {"start_s": start * model.scaling.sample_period_s}
        yield {"level": "window", **about, **at, **values, "warnings": notes}
    mean = np.nanmean if len(found) > 1 else np.mean
    vector = mean([values["vector"] for values in found], axis=0).astype(np.float32)
    yield {"level": "recording", **about, "vector": vector, "warnings": notes}


def _warnings(model, corpus: Corpus, index: int, windows) -> Iterator[str]:
    missing = float(windows.isnan().float().mean())
    if missing > 0.2:
        yield f"{missing:.0%} of the windows' values are missing"


def _embed(model: BrainLM, windows: torch.Tensor, pool: str) -> np.ndarray:
    """[K, F] float32."""
    import torch

    device = next(model.parameters()).device
    with torch.inference_mode():
        parts = [model.embed(part.to(device), pool).cpu() for part in windows.split(_BATCH)]
    return torch.cat(parts).float().numpy()


def write_table(table: pd.DataFrame, out: Path, form: str) -> list[Path]:
    """Write a table of embeddings; returns the files.

    ``parquet``: as it is. ``tsv``: a column per dimension. ``npy``: the vectors [rows, F] of the
    rows that have one, and their other columns in a .tsv of the same name.

    Raises
    ------
    BrainLMError
        Unknown format.
    """
    if form not in FORMATS:
        raise BrainLMError(f"no format {form!r}; one of: {', '.join(FORMATS)}")
    if form == "parquet":
        with atomic_path(out) as temporary:
            table.to_parquet(temporary)
        return [out]
    facts = table.drop(columns="vector")
    known = table["vector"].notna()
    vectors = np.stack(table.loc[known, "vector"].to_list()) if known.any() else np.empty((0, 0))
    if form == "tsv":
        wide = pd.DataFrame(vectors, index=table.index[known])
        wide.columns = [f"d{k:04d}" for k in range(wide.shape[1])]
        return [_write_tsv(facts.join(wide), out)]
    with atomic_path(out) as temporary, open(temporary, "wb") as handle:
        np.save(handle, vectors)
    return [out, _write_tsv(facts[known], out.with_suffix(".tsv"))]


def _write_tsv(table: pd.DataFrame, out: Path) -> Path:
    with atomic_path(out) as temporary:
        table.to_csv(temporary, sep="\t", index=False, na_rep="n/a")
    return out
