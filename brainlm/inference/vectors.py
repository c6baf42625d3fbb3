"""From shards to tables of embeddings and predictions: a row per window and per recording.

Nothing is dropped: a recording without a usable series is a row too, with its status and reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..errors import BrainLMError
from ..files import atomic_path
from ..shards import Corpus
from ..shards.censored import censored_shares, parcels_with_data
from ..tables import FORMATS, write_parquet, write_tsv

if TYPE_CHECKING:
    import torch

    from ..model import BrainLM

#: Columns that say which recording a row is of, and how good it is; the same in every table.
IDENTITY = [
    "level", "cohort", "participant_id", "session_id", "task", "run", "recording_id", "status",
    "reason", "start_s", "duration_s", "repetition_time_s", "coverage", "mean_fd_mm",
]  # fmt: skip
_UNSTATED = "as delivered"
_MISSING = 0.2  # share of missing values that is worth a warning
#: values of each window, and of the recording
Made = tuple[list[dict], dict]


@dataclass
class _Method:
    """What is made of windows: by the model, many at a time; of a recording's values [K, F].

    `count` windows of each recording, or as many as fit without overlap.
    """

    encode: Callable[[torch.Tensor], torch.Tensor]
    describe: Callable[[np.ndarray], Made]
    count: int | None = None


@dataclass
class _Ready:
    """A recording, and its windows; none where it has a status and a reason instead."""

    about: dict
    units: str | None = None
    windows: torch.Tensor | None = None
    starts: Sequence[int] = ()


def embed_corpus(
    model: BrainLM,
    corpus: Corpus,
    notes: Sequence[str] = (),
    progress: Callable[[int], None] = lambda done: None,
    *,
    pool: str = "auto",
    short: str = "refuse",
) -> pd.DataFrame:
    """Embed every recording of `corpus`.

    Parameters
    ----------
    model : BrainLM
        With its scaling, which the corpus must fit (atlas, sample period, units).
    notes : sequence of str
        What is true of all recordings; goes into every ``warnings``.
    progress : callable
        Told how many recordings are through.
    pool : str
        One of :data:`brainlm.model.pooling.POOLS`, or ``auto``: :func:`choose_pool`.
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

    def describe(vectors: np.ndarray) -> Made:
        mean = np.nanmean(vectors, 0).astype(np.float32)  # NaN: a parcel no window has
        return [{"vector": vector} for vector in vectors], {"vector": mean}

    method = _Method(lambda windows: model.embed(windows, pool).float(), describe)
    rows = list(_rows(model, corpus, method, short, notes, progress))
    table = pd.DataFrame(rows, columns=[*IDENTITY, "vector", "warnings"])
    table.insert(len(IDENTITY), "pool", pool)
    return table


def predict_corpus(
    model: BrainLM,
    corpus: Corpus,
    notes: Sequence[str] = (),
    progress: Callable[[int], None] = lambda done: None,
    *,
    short: str = "refuse",
) -> pd.DataFrame:
    """Predict every recording of `corpus` with a fine-tuned model.

    Returns
    -------
    DataFrame
        :data:`IDENTITY`, ``target``, ``prediction`` (in the label's units), or of a classifier
        ``predicted_class`` and ``probability_<class>``, and ``warnings``, which also name what is
        outside the range of the model's training data. A recording's prediction is the mean of
        its windows', as many and as spread out as when the model was evaluated.

    Raises
    ------
    BrainLMError
        As :func:`embed_corpus`; or the model was not fine-tuned.
    """
    from ..training.predict import WINDOWS_PER_RECORDING

    check_head(model)

    def describe(values: np.ndarray) -> Made:
        mean = decode(values.mean(0))
        outside = {"label": mean["prediction"]} if "prediction" in mean else {}
        return [decode(row) for row in values], mean | {"outside": outside}

    def decode(values: np.ndarray) -> dict:
        if not model.config.classes:
            return {"prediction": float(values[0])}
        shares = dict(zip(model.config.classes, map(float, values), strict=True))
        named = {f"probability_{name}": share for name, share in shares.items()}
        return {"predicted_class": max(shares, key=lambda name: shares[name]), **named}

    method = _Method(lambda part: model.predict(part).values, describe, WINDOWS_PER_RECORDING)
    table = pd.DataFrame(list(_rows(model, corpus, method, short, notes, progress)))
    table.insert(len(IDENTITY), "target", model.config.target)
    probabilities = [f"probability_{name}" for name in model.config.classes]
    made = ["predicted_class", *probabilities] if probabilities else ["prediction"]
    return table.reindex(columns=[*IDENTITY, "target", *made, "warnings"])


def check_head(model: BrainLM, form: str = "parquet") -> None:
    """Refuse a model that was not fine-tuned, and a format that holds no predictions."""
    if model.head is None:
        raise BrainLMError(
            "this model has no head, so it cannot predict; fine-tune it first (brainlm finetune)"
        )
    check_format(form, vectors=False)


def check_format(form: str, *, vectors: bool) -> None:
    """Refuse an unknown format, and one of vectors for a table without them."""
    if form not in FORMATS:
        raise BrainLMError(f"no format {form!r}; one of: {', '.join(FORMATS)}")
    if form == "npy" and not vectors:
        raise BrainLMError("format npy is for vectors; write predictions as parquet or tsv")


def choose_pool(model: BrainLM, pool: str) -> str:
    """The pool by name; ``auto`` is the one that the model's head reads, else ``components``, or
    ``mean`` of a model that has none (docs/results/abide.md: what they are worth)."""
    from ..model.pooling import check_pool

    if pool == "auto":
        if model.head is not None:
            return model.config.pool
        return "components" if model.config.components else "mean"
    check_pool(model.config, pool)
    return pool


def check_units(corpus: Corpus, units: str) -> None:
    """Refuse series that are stated to be in other units than the model's scaling was fitted in.

    ``as delivered`` states nothing: such recordings get a warning, and absurd amplitudes are
    refused one by one.
    """
    stated = set(corpus.table.loc[corpus.table["status"] == "ok", "units"].dropna())
    other = stated - {units, _UNSTATED} if units != _UNSTATED else set()
    if other:
        raise BrainLMError(
            f"{corpus.paths[0]}: the series are in {', '.join(sorted(map(repr, other)))}, the "
            f"model was trained on {units!r}; say what the series are (units: scanner for raw "
            "means, percent for percent of each parcel's mean)"
        )


def _rows(model, corpus: Corpus, method: _Method, short: str, notes, progress) -> Iterator[dict]:
    corpus.check(model.scaling)
    check_units(corpus, model.scaling.units)
    enough, held = _windows_together(model), []
    for index in range(len(corpus)):
        held.append(_read(model, corpus, index, method.count, short))
        count = sum(len(one.starts) for one in held)
        if count >= enough or index + 1 == len(corpus):
            yield from _run(model, held, method, notes)
            held = []
            progress(index + 1)


def _windows_together(model: BrainLM) -> int:
    """How many windows make a pass: on the CPU those of one recording, whose values then depend on
    nothing else; a GPU is filled."""
    from ..training.device import device_of, windows_at_once

    return 0 if device_of(model).type == "cpu" else windows_at_once(model)


def _read(model: BrainLM, corpus: Corpus, index: int, count: int | None, short: str) -> _Ready:
    from ..model.own_series import cut_windows

    assert model.scaling is not None
    about = _identity(corpus, index)
    if about["status"] != "ok":
        return _Ready(about)
    try:
        series = model.scaling.apply(corpus.series(index))
        model.scaling.check_amplitude(series)
        windows, starts = cut_windows(model, series, count=count, short=short)
    except BrainLMError as error:
        return _Ready(about | {"status": "not_embedded", "reason": str(error)})
    return _Ready(about, corpus.table["units"][index], windows, starts.tolist())


def _run(model: BrainLM, recordings: list[_Ready], method: _Method, notes) -> Iterator[dict]:
    """Rows of some recordings, whose windows go through the model together."""
    import torch

    windows = [one.windows for one in recordings if one.windows is not None]
    values = iter(_encode(model, torch.cat(windows), method.encode).split([*map(len, windows)])
                  if windows else ())  # fmt: skip
    for one in recordings:
        if one.windows is None:
            yield {"level": "recording", **one.about, "warnings": ""}
        else:
            yield from _recording_rows(model, one, *method.describe(next(values).numpy()), notes)


def _encode(model: BrainLM, windows: torch.Tensor, encode) -> torch.Tensor:
    """Values [n, F] on the host, as many windows at a time as the device takes."""
    import torch

    from ..training.device import windows_at_once

    with torch.inference_mode():
        return torch.cat([encode(part).cpu() for part in windows.split(windows_at_once(model))])


def _identity(corpus: Corpus, index: int) -> dict:
    row = corpus.table.iloc[index]
    known = {k: row[k] for k in IDENTITY if k in row} | {"coverage": np.nan, "start_s": None}
    if row["status"] == "ok":
        known["coverage"] = float(parcels_with_data(corpus.series(index)).mean())
        known["censored_share"] = censored_shares(corpus.table.iloc[[index]])[0]
    return known


def _recording_rows(
    model: BrainLM, one: _Ready, each: list[dict], together: dict, common: Sequence[str]
) -> Iterator[dict]:
    assert model.scaling is not None and one.windows is not None
    about = one.about | together.pop("outside", {})
    notes = "; ".join([*common, *_warn(model, about, one.windows, one.units)])
    for start, values in zip(one.starts, each, strict=True):
        at = {"start_s": start * model.scaling.sample_period_s}
        yield {"level": "window", **one.about, **at, **values, "warnings": notes}
    yield {"level": "recording", **one.about, **together, "warnings": notes}


def _warn(model: BrainLM, about: dict, windows: torch.Tensor, units: str | None) -> Iterator[str]:
    """What is unlike the model's training data, or missing."""
    from ..model.ranges import list_outside

    assert model.scaling is not None
    if units != model.scaling.units:
        yield f"units {units!r}, the model was trained on {model.scaling.units!r}"
    known = ("label", "repetition_time_s", "coverage", "mean_fd_mm", "censored_share")
    yield from list_outside(model.config.ranges, {k: about[k] for k in known if k in about})
    missing = float(windows.isnan().float().mean())
    if missing > _MISSING:
        yield f"{missing:.0%} of the windows' values are missing"


def write_vectors(table: pd.DataFrame, out: Path, form: str) -> list[Path]:
    """Write a table of embeddings; returns the files.

    ``parquet``: as it is. ``tsv``: a column per dimension. ``npy``: the vectors [rows, F] of the
    rows that have one, and their other columns in a .tsv of the same name.

    Raises
    ------
    BrainLMError
        As :func:`check_format`.
    """
    check_format(form, vectors="vector" in table)
    if form == "parquet":
        write_parquet(out, table)
        return [out]
    if "vector" not in table:
        return [_write_tsv(table, out)]
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


def gather_parts(parts: Sequence[Path], out: Path) -> pd.DataFrame:
    """Write the tables of a cohort's parts as the one that a single job would have written.

    Of predictions, which have a row per recording and task, all rows of a task stand together.
    """
    # as rows: a column that is empty in one part has no type there
    rows = [row for part in parts for row in pd.read_parquet(part).to_dict("records")]
    table = pd.DataFrame(rows)
    if "target" in table:
        task = table.groupby("recording_id", sort=False).cumcount()
        table = table.loc[task.sort_values(kind="stable").index]
    write_parquet(out, table)
    return table


def _write_tsv(table: pd.DataFrame, out: Path) -> Path:
    text = table.astype(object).where(table.notna(), None)
    write_tsv(out, list(table), text.itertuples(index=False, name=None))
    return out
