"""A cohort of a study that is only predicted: by every fine-tuned model, seeds taken together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..config import Config
from ..tables import write_parquet
from .scans import open_cohort
from .session import list_differences
from .vectors import IDENTITY, predict_corpus

if TYPE_CHECKING:
    from ..model import BrainLM


def predict_cohort(config: Config, cohort: str, out: Path, part: str = "") -> pd.DataFrame:
    """Predict the recordings of `cohort`, or of a part of it, for every clinical task; write and
    return the table.

    A study without a reference cohort has no tasks: its own model predicts, if it was fine-tuned.

    Returns
    -------
    DataFrame
        A row per recording and task: the columns of :func:`.vectors.predict_corpus` at the level
        of recordings, averaged over the task's seeds, with ``seeds`` (how many) and ``seed_sd``
        (of a number, in the label's units).

    Raises
    ------
    BrainLMError
        The cohort has no shards yet, or a fit is missing.
    """
    corpus = open_cohort(config, cohort, part)
    tables = [
        combine_seeds(
            [
                predict_corpus(model, corpus, list_differences(model, config, cohort))
                for model in models
            ]
        )
        for models in _list_models(config)
    ]
    columns = [*IDENTITY, "target", "prediction", "seeds", "seed_sd", "warnings"]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    write_parquet(out, table)
    return table


def _list_models(config: Config) -> Iterator[Iterator[BrainLM]]:
    """For each target the models that predict it, one per seed, opened one at a time."""
    from ..evaluation.tasks import predicting_fits
    from ..model import from_pretrained
    from ..training.device import prepare
    from ..training.predict import why_skipped

    if not config.has_reference:
        own = from_pretrained(config.paths.pretrained)
        if own.head is not None:
            yield iter([prepare(own)])
    for folders in predicting_fits(config):
        yield (prepare(from_pretrained(f)) for f in folders if not why_skipped(f))


def combine_seeds(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Recordings' rows of the same target by several fits, as one: the mean of the fits."""
    if not tables:
        return pd.DataFrame()
    tables = [t[t["level"] == "recording"].reset_index(drop=True) for t in tables]
    first, numbers = tables[0].copy(), [c for c in tables[0] if c.startswith("probability_")]
    for name in numbers:
        first[name] = sum(table[name] for table in tables) / len(tables)
    if numbers:
        spread = float("nan")
        for row in first.index[first[numbers].notna().all(axis=1)]:
            best = first.loc[row, numbers].astype(float).idxmax()
            first.loc[row, "predicted_class"] = best.removeprefix("probability_")
    else:
        every = pd.concat([table["prediction"] for table in tables], axis=1)
        first["prediction"], spread = every.mean(axis=1), every.std(axis=1, ddof=0)
    return first.assign(seeds=len(tables), seed_sd=spread)
