"""Predictions of a fine-tuned model for recordings that it was not given when it was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..cohort.labels import LabelTransform
from ..files import atomic_path, read_json, write_json
from ..model import from_pretrained
from ..paths import ModelFolder
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
    classes = read_json(ModelFolder(Path(folder)).run)["classes"]
    rows = corpus.usable(min_timepoints=model.config.window)
    windows = Windows(
        corpus, model.scaling, model.config.window, rows, seed=0, num_tokens=model.num_tokens
    )
    outputs = [_output(model, windows.even(int(row), WINDOWS_PER_RECORDING)) for row in rows]
    settings = model.config
    labels = LabelTransform(settings.label_log, settings.label_mean, settings.label_std)
    table = corpus.table.loc[rows, COLUMNS[:-1]].assign(**decode_outputs(outputs, classes, labels))
    return _write(table.reset_index(drop=True), out)


@torch.no_grad()
def _output(model, signal) -> torch.Tensor:
    """Head output [outputs], the mean over one recording's windows [K, R, T]."""
    return model.head(model.embed(signal, model.config.pool)).mean(0)


def decode_outputs(
    outputs: list[torch.Tensor], classes, labels: LabelTransform
) -> dict[str, np.ndarray]:
    """Columns of a table from a head's outputs: ``prediction`` in the label's units, as a
    probability (two classes), or as a class with every class' probability beside it."""
    if not outputs:
        return {"prediction": np.zeros(0)}
    raw = torch.stack(outputs).double()
    if classes is None:
        return {"prediction": labels.invert(raw[:, 0].numpy())}
    if len(classes) == 2:
        return {"prediction": raw[:, 0].sigmoid().numpy()}
    shares = raw.softmax(1).numpy()
    known = np.asarray(classes, float)
    beside = {f"probability_{name:g}": shares[:, k] for k, name in enumerate(known)}
    return {"prediction": known[shares.argmax(1)], **beside}


def skip_target(folder: Path, reason: str) -> None:
    """Leave a finished folder that says why a target was not trained on."""
    _write(pd.DataFrame(columns=[*COLUMNS, "label"]), ModelFolder(Path(folder)).predictions)
    write_json(ModelFolder(Path(folder)).done, {"skipped": reason})


def why_skipped(folder: Path) -> str | None:
    """The reason that :func:`skip_target` left, or None."""
    done = ModelFolder(Path(folder)).done
    return read_json(done).get("skipped") if done.exists() else None


def _write(table: pd.DataFrame, out: Path) -> pd.DataFrame:
    with atomic_path(out) as temporary:
        table.to_parquet(temporary)
    return table
