"""Predictions of a fine-tuned model for recordings that it was not given when it was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..files import atomic_path, read_json, write_json
from ..model import from_pretrained
from ..shards import Corpus
from .windows import Windows

#: windows averaged per recording when predicting
WINDOWS_PER_RECORDING = 3
COLUMNS = ["cohort", "participant_id", "recording_id", "split", "prediction"]


def predict(folder: Path, shards: list[Path], out: Path) -> pd.DataFrame:
    """Predict every recording that is long enough; write and return :data:`COLUMNS`.

    The prediction is in the label's units, for two classes the probability of the larger label.

    Raises
    ------
    BrainLMError
        No fine-tuned model in `folder`, or shards of another atlas or sample period.
    """
    if why_skipped(folder):
        return _write(pd.DataFrame(columns=COLUMNS), out)
    model, corpus = from_pretrained(folder).eval(), Corpus(shards)
    corpus.check(model.scaling)
    classes = read_json(Path(folder) / "run.json")["classes"]
    rows = corpus.usable(min_timepoints=model.config.window)
    windows = Windows(
        corpus, model.scaling, model.config.window, rows, seed=0, num_tokens=model.num_tokens
    )
    values = [
        _value(model, windows.even(int(row), WINDOWS_PER_RECORDING), classes) for row in rows
    ]
    table = corpus.table.loc[rows, COLUMNS[:-1]].assign(prediction=np.array(values, float))
    return _write(table.reset_index(drop=True), out)


@torch.no_grad()
def _value(model, signal, classes: list[float] | None) -> float:
    """One recording's windows [K, R, T] to one number."""
    output = model.head(model.embed(signal, model.config.pool)).mean(0)
    return decode_output(output, classes, model.config.label_mean, model.config.label_std)


def decode_output(output, classes, mean: float, std: float) -> float:
    """A head's output to the label's units, a probability (two classes) or a class."""
    if classes is None:
        return float(output[0]) * std + mean
    if len(classes) == 2:
        return float(output[0].sigmoid())
    return float(classes[int(output.argmax())])


def skip_target(folder: Path, reason: str) -> None:
    """Leave a finished folder that says why a target was not trained on."""
    _write(pd.DataFrame(columns=[*COLUMNS, "label"]), Path(folder) / "predictions.parquet")
    write_json(Path(folder) / "done.json", {"skipped": reason})


def why_skipped(folder: Path) -> str | None:
    """The reason that :func:`skip_target` left, or None."""
    done = Path(folder) / "done.json"
    return read_json(done).get("skipped") if done.exists() else None


def _write(table: pd.DataFrame, out: Path) -> pd.DataFrame:
    with atomic_path(out) as temporary:
        table.to_parquet(temporary)
    return table
