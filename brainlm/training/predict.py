"""Predictions of a fine-tuned model for recordings that it was not given when it was trained."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..files import read_json, write_json
from ..model import BrainLM, BrainLMConfig, from_pretrained
from ..model.prediction import decode_outputs
from ..paths import ModelFolder
from ..shards import Corpus
from ..tables import write_parquet
from .device import device_of, prepare, windows_at_once
from .windows import Windows

#: windows averaged per recording when predicting
WINDOWS_PER_RECORDING = 3
COLUMNS = ["cohort", "participant_id", "recording_id", "split", "prediction"]
#: recordings whose summaries a head reads at a time
_HEADED = 64


def predict(folder: Path, shards: list[Path], out: Path) -> pd.DataFrame:
    """Predict every recording that is long enough; write and return the table.

    Returns
    -------
    DataFrame
        :data:`COLUMNS`, see :func:`decode_table`.

    Raises
    ------
    BrainLMError
        No fine-tuned model in `folder`, or shards of another atlas or sample period.
    """
    if why_skipped(folder):
        table = pd.DataFrame(columns=COLUMNS)
        write_parquet(out, table)
        return table
    model, corpus = prepare(from_pretrained(folder)), Corpus(shards)
    rows = corpus.usable(min_timepoints=model.config.window)
    assert model.scaling is not None
    windows = Windows(corpus, model.scaling, model.config.window, rows)
    outputs = predict_recordings(model, windows, rows)
    table = corpus.table.loc[rows, COLUMNS[:-1]].assign(**decode_table(model.config, outputs))
    write_parquet(out, table)
    return table.reset_index(drop=True)


def summarise_recordings(
    model: BrainLM, windows: Windows, rows: Sequence[int] | np.ndarray, count: int
) -> Iterator[Tensor]:
    """For each recording the summaries [K, F] that the model's head reads, on its device.

    K is at most `count` windows, spread evenly over the recording. Several recordings are encoded
    at a time, which changes nothing: a window's summary does not depend on its batch.
    """
    device, together = device_of(model), max(1, windows_at_once(model) // count)
    for first in range(0, len(rows), together):
        parts = [windows.even(int(row), count) for row in rows[first : first + together]]
        summaries = model.embed(torch.cat(parts).to(device), model.config.pool)
        yield from summaries.split([len(part) for part in parts])


@torch.no_grad()
def predict_recordings(
    model: BrainLM, windows: Windows, rows: Sequence[int] | np.ndarray
) -> Tensor:
    """[N, outputs] of the model's head, the mean over the windows of each recording."""
    head = model.eval().head
    assert head is not None
    made = summarise_recordings(model, windows, rows, WINDOWS_PER_RECORDING)
    (outputs,) = apply_heads([head], made)
    return outputs if len(rows) else torch.zeros(0, model.config.head_outputs)


@torch.no_grad()
def apply_heads(heads: Sequence[nn.Module], summaries: Iterable[Tensor]) -> list[Tensor]:
    """[N, outputs] of each head on the host: the mean over the windows [K, F] of a recording."""
    outputs: list[list[Tensor]] = [[] for _ in heads]
    left = iter(summaries)
    while some := list(itertools.islice(left, _HEADED)):
        together = torch.cat(some)
        for head, own in zip(heads, outputs, strict=True):
            parts = head(together).split([len(part) for part in some])
            own.append(torch.stack([part.mean(0) for part in parts]).cpu())
    return [torch.cat(own) if own else torch.empty(0) for own in outputs]


def decode_table(config: BrainLMConfig, outputs: Tensor) -> dict[str, np.ndarray]:
    """Columns of a table from a head's outputs [N, K]: ``prediction`` in the label's units, or
    the most probable class by name with ``probability_<class>`` for each class."""
    found = decode_outputs(config, outputs)
    if not config.classes:
        return {"prediction": found.values[:, 0].numpy()}
    shares = zip(found.names, found.values.T.numpy(), strict=True)
    return {"prediction": np.array(found.best, object),
            **{f"probability_{name}": share for name, share in shares}}  # fmt: skip


def skip_target(folder: Path, reason: str) -> None:
    """Leave a finished folder that says why a target was not trained on."""
    made = ModelFolder(Path(folder))
    write_parquet(made.predictions, pd.DataFrame(columns=[*COLUMNS, "label"]))
    write_json(made.done, {"skipped": reason})


def why_skipped(folder: Path) -> str | None:
    """The reason that :func:`skip_target` left, or None."""
    done = ModelFolder(Path(folder)).done
    return read_json(done).get("skipped") if done.exists() else None
