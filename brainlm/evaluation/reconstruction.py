"""Masked reconstruction on held-out participants, next to predictors that need no model.

Every method predicts exactly the same hidden points, in scaled units. The predictors that need no
network (:data:`brainlm.training.predictors.PREDICTORS`) reach from the training median to Gaussian
ones fitted on the training participants (:mod:`brainlm.model.gaussian`), which stand in the
model's folder. A model that does not beat those knows less than a covariance matrix.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..config import Evaluate
from ..errors import BrainLMError
from ..files import atomic_path
from ..paths import ModelFolder, side_table
from ..shards import Corpus
from ..shards.censored import choose_apart
from .job import Job
from .metrics import POOLED, of_sums
from .participants import long_enough
from .rows import compare, describe_left_out, rows_of_units
from .statistics import Sample, add_by_participant

if TYPE_CHECKING:
    from ..model.gaussian import Gaussian

_BATCH = 8  # windows per forward pass
_FITTED = 1000  # training recordings that a VAR is fitted on, at most
_EXAMPLES = 3  # recordings kept for the figure


def evaluate_reconstruction(job: Job) -> pd.DataFrame:
    """Masked-patch R², r, MSE and MAE, pooled, per recording and per parcel.

    Example traces go next to the table as ``<stem>.traces.npz``. A cohort without anybody to
    evaluate has one row that says so.

    Raises
    ------
    BrainLMError
        The model is of another atlas or sample period than the shards.
    """
    from ..model.gaussian import Gaussian

    corpus, model = job.open()
    gaussian, missing = Gaussian.load(job.pretrained), ModelFolder(job.pretrained).gaussian
    options = job.options
    var = _fit_var(corpus, model)
    rows: list[dict] = []
    examples: dict[str, np.ndarray] = {}
    parts, maskings = list(job.parts(corpus.table)), list(_maskings(options, model))
    count = job.count(len(parts) * len(maskings), "maskings")
    for cohort, split, table in parts:
        indices, why = long_enough(table, model.config.window)
        where: dict = {"task": "reconstruction", "cohort": cohort, "split": split}
        notes = [
            describe_left_out(why),
            "" if gaussian else f"no {missing}",
            "" if var else "no training recording here to fit a VAR on",
        ]
        where |= {"left_out": int(sum(why.values())), "note": "; ".join(filter(None, notes))}
        if not len(indices):
            rows.append(where | {"method": "model", "level": "pooled", "n": 0})
        for mask, ratio in maskings if len(indices) else ():
            sums, traces = evaluate_masking(
                model, gaussian, corpus, indices, mask, ratio, options.seed, var
            )
            name = f"{mask} {ratio:.0%}"
            rows += _summarise(sums, corpus.table.iloc[indices], where | {"target": name}, options)
            examples |= {f"{cohort}/{name}/{key}": value for key, value in traces.items()}
            count.add()
    _save_traces(side_table(job.out, "traces", ".npz"), examples)
    return job.write(rows)


def _maskings(options: Evaluate, model) -> Iterator[tuple[str, float]]:
    yield from (("random", ratio) for ratio in options.mask_ratios)
    yield "future", model.config.patch / model.config.window  # the last patch, from the others


def _fit_var(corpus: Corpus, model) -> Callable[[np.ndarray], np.ndarray] | None:
    """The forecasting task's VAR [B, R, T] -> [B, R, P] of the last patch from the others; None
    without training recordings in this corpus (a model from elsewhere)."""
    from .forecasting.autoregression import fit_autoregressions

    window, ahead = model.config.window, model.config.patch
    train, check = (corpus.usable(split=split, min_timepoints=window)
                    for split in ("train", "validation"))  # fmt: skip
    if not len(train):
        return None

    def some(rows: np.ndarray, most: int) -> list[int]:
        return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)].tolist()

    some_train, some_check = some(train, _FITTED), some(check, _FITTED // 4)
    fit = fit_autoregressions(
        corpus, model.scaling, some_train, some_check, window - ahead, ahead
    )["VAR"]
    return lambda signal: np.stack([fit.forecast(one[:, :-ahead]) for one in signal])


def evaluate_masking(
    model, gaussian: Gaussian | None, corpus: Corpus, indices, mask: str, ratio: float, seed: int,
    var: Callable[[np.ndarray], np.ndarray] | None = None,
):  # fmt: skip
    """Sums per method, of recordings [N, 8] and of parcels [R, 8], and a few example traces.

    Windows are cut one after another from the start, past censored time, so that every run sees
    the same ones.
    """
    import torch

    from ..training.device import get_device
    from ..training.masked_r2 import predict_hidden

    device = get_device()
    model.to(device)
    if gaussian is not None:
        gaussian.to(device)
    generator = torch.Generator(device).manual_seed(seed)
    window, parcels = model.config.window, corpus.info.num_parcels
    sums: dict[str, tuple[np.ndarray, np.ndarray]] = defaultdict(
        lambda: (np.zeros((len(indices), 8)), np.zeros((parcels, 8)))
    )
    traces: dict[str, np.ndarray] = {}
    for batch in _batches(corpus, model.scaling, indices, window):
        signal = np.stack([signal for _, _, signal in batch])
        known = torch.from_numpy(signal).to(device)
        with torch.inference_mode():
            output = model(known, mask_ratio=ratio, mask=mask, generator=generator)
            others = predict_hidden(known, output.pixel_mask, gaussian)
        hidden = output.pixel_mask.cpu().numpy() & np.isfinite(signal)
        predictions = {"model": output.prediction.float(), **others}
        predictions = {name: values.cpu().numpy() for name, values in predictions.items()}
        if var is not None and mask == "future":
            ahead = var(signal)
            predictions["var"] = np.zeros_like(signal)
            predictions["var"][..., -ahead.shape[2] :] = ahead
        for k, (row, start, _) in enumerate(batch):
            for name, prediction in predictions.items():
                part = _sum_parcels(np.where(hidden[k], signal[k], np.nan), prediction[k])
                sums[name][0][row] += part.sum(0)
                sums[name][1][:] += part
            if row < _EXAMPLES and start == 0:
                recording = corpus.table["recording_id"][indices[row]]
                traces[recording] = _example(signal[k], hidden[k], predictions, k)
    return sums, traces


def _batches(corpus: Corpus, scaling, indices, window: int) -> Iterator[list]:
    """(row, start, window [R, T]) of windows that lack the same values: a mask hides as much of
    every window of a batch, so what is asked of one must not depend on what another lacks."""
    waiting: dict[bytes, list] = defaultdict(list)
    for row, index in enumerate(indices):
        series = corpus.scaled(index, scaling).T
        for start in choose_apart(corpus.starts(index, window), window):
            signal = series[:, start : start + window]
            batch = waiting[np.isnan(signal).tobytes()]
            batch.append((row, start, signal))
            if len(batch) == _BATCH:
                yield batch.copy()
                batch.clear()
    yield from (batch for batch in waiting.values() if batch)


def _sum_parcels(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """[R, 8] sums per parcel of one window [R, T]; NaN truth is left out."""
    keep = np.isfinite(truth)
    y = np.where(keep, truth, 0).astype(np.float64)
    p = np.where(keep, prediction, 0).astype(np.float64)
    parts = (keep, y, y * y, p, p * p, y * p, (y - p) ** 2, np.abs(y - p))
    return np.stack([part.sum(-1) for part in parts], axis=-1)


def _example(signal, hidden, predictions, k: int) -> np.ndarray:
    """[4, T]: truth, hidden, model, linear of the parcel of median spread."""
    known = np.where(np.isnan(signal).all(-1, keepdims=True), 0, signal)
    spread = np.where(hidden.any(-1), np.nanstd(known, -1), np.nan)
    parcel = int(np.nanargmin(np.abs(spread - np.nanmedian(spread))))
    rows = (signal, hidden, predictions["model"][k], predictions["linear"][k])
    return np.stack([np.asarray(row[parcel], np.float32) for row in rows])


def _save_traces(path: Path, traces: dict[str, np.ndarray]) -> None:
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **traces)  # type: ignore[arg-type]


def _summarise(sums: dict, table: pd.DataFrame, where: dict, options: Evaluate) -> Iterator[dict]:
    """Pooled rows with intervals and paired differences, then each recording and parcel."""
    participants = table["participant_id"].to_numpy()
    totals = {name: add_by_participant(of_row, participants) for name, (of_row, _) in sums.items()}
    sample = Sample(len(totals["model"]), options)
    where = where | {"n": sample.participants, "level": "pooled"}
    pairs = [("model", other) for other in totals if other != "model"]
    for metric, formula in POOLED.items():
        statistics = {name: of_sums(metric, values) for name, values in totals.items()}
        row = where | {"metric": metric}
        yield from compare(sample, statistics, row, pairs)
        for name, (of_recording, of_parcel) in sums.items():
            row = where | {"metric": metric, "method": name}
            recordings, parcels = table["recording_id"], range(1, len(of_parcel) + 1)
            yield from rows_of_units(row, "recording", recordings, formula(of_recording))
            yield from rows_of_units(row, "parcel", parcels, formula(of_parcel))


def load_traces(path: Path) -> dict[str, np.ndarray]:
    """Example traces [4, T] (truth, hidden, model, linear) by ``cohort/masking/recording``."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BrainLMError(f"{path}: not readable example traces ({error})") from None
