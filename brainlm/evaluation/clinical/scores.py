"""From predictions to rows: metrics with intervals, and paired differences to connectivity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from ...cohort.labels import LabelTransform
from ...config import Evaluate
from ..metrics import POOLED, auc, balanced_accuracy, of_sums
from ..rows import compare, describe_left_out, rows_of_units
from ..statistics import MIN_PARTICIPANTS, Sample, Statistic

#: What every method is compared with.
REFERENCE = "connectivity + ridge"
#: Does pretraining help? What the same network reaches without it.
_UNTRAINED = {
    "fine-tuned": "from scratch",
    "linear probe on latent connectivity": "linear probe on latent connectivity, untrained",
}
#: Methods that are not: one need not show that motion is worse.
_FLOOR = ("mean", "chance", "mean FD", "site", "demographics")
#: Metrics that one or two participants have.
_OF_FEW = ("mae", "mse", "scaled_mse")


@dataclass
class Part:
    """Participants of one cohort and split with what every method predicts of them.

    Attributes
    ----------
    label, scaled : ndarray [N]
        In the label's units (classes: 0, 1, ...), and as a network learns it.
    predictions : dict
        Method -> [N, seeds] in the label's units, or scores [N, seeds, C].
    n_train : dict
        Method -> training participants it was fitted on, the mean over folds.
    seeds : tuple of int
    """

    cohort: str
    split: str
    participants: pd.Index
    label: np.ndarray
    transforms: list[LabelTransform]
    predictions: dict[str, np.ndarray]
    left_out: dict[str, int]
    n_train: dict[str, int]
    seeds: tuple[int, ...]
    classes: tuple[str, ...] = ()
    note: str = ""

    def __len__(self) -> int:
        return len(self.participants)

    def scale(self, values: np.ndarray) -> np.ndarray:
        """Labels [N] or predictions [N, seeds] as a network learns them."""
        return np.array([t.apply(v) for t, v in zip(self.transforms, values, strict=True)])


def score(part: Part, where: dict, options: Evaluate) -> Iterator[dict]:
    """Rows of one cohort and split."""
    notes = [describe_left_out(part.left_out), part.note, _describe_one_class(part)]
    where = where | {
        "cohort": part.cohort, "split": part.split, "n": len(part),
        "left_out": sum(part.left_out.values()), "note": "; ".join(filter(None, notes)) or None,
    }  # fmt: skip
    if not len(part):
        yield where | {"method": "fine-tuned", "level": "pooled"}
        return
    for metric, by_method in list_statistics(part).items():
        yield from _rows(part, metric, by_method, where | {"metric": metric}, options)


def _describe_one_class(part: Part) -> str | None:
    if not part.classes or len(np.unique(part.label)) != 1:
        return None
    return f"all are {part.classes[int(part.label[0])]}, so there is no AUC"


def _rows(part: Part, metric: str, by_method: dict[str, list[Statistic]], where: dict,
          options: Evaluate) -> Iterator[dict]:  # fmt: skip
    of = {name: mean_over_seeds(seeds) for name, seeds in by_method.items()}
    if metric == "r" and "mean" in of:
        of["mean"] = _unknown  # means of folds correlate below 0
    alone = len(part) < MIN_PARTICIPANTS and metric not in _OF_FEW
    if alone:
        of = dict.fromkeys(of, _unknown)  # two participants always correlate ±1
    names = [] if alone else [name for name in of if name not in _FLOOR]
    pairs = [(name, REFERENCE) for name in names if name != REFERENCE]
    pairs += [(one, other) for one, other in _UNTRAINED.items() if {one, other} <= {*names}]
    for row in compare(Sample(len(part), options), of, where | {"level": "pooled"}, pairs):
        yield row | {"n_train": part.n_train.get(row["method"].split(" minus ")[0])}
    for name, seeds in by_method.items():
        if len(seeds) > 1 and not alone:
            row = where | {"method": name, "n_train": part.n_train.get(name)}
            values = (one(np.ones((1, len(part))))[0] for one in seeds)
            yield from rows_of_units(row, "seed", part.seeds, values)


def mean_over_seeds(statistics: list[Statistic]) -> Statistic:
    return lambda counts: np.mean([of(counts) for of in statistics], axis=0)


def list_statistics(part: Part) -> dict[str, dict[str, list[Statistic]]]:
    """{metric: {method: a statistic of counts for each seed}}."""
    if part.classes:
        return _of_classes(part)
    out: dict[str, dict[str, list[Statistic]]] = {}
    scaled = part.scale(part.label)
    for name, values in part.predictions.items():
        units = [sums_of(part.label, column) for column in values.T]
        learnt = [sums_of(scaled, column) for column in part.scale(values).T]
        for metric in POOLED:
            out.setdefault(metric, {})[name] = [of_sums(metric, sums) for sums in units]
        for metric in ("mse", "r2"):
            of = [of_sums(metric, sums) for sums in learnt]
            out.setdefault(f"scaled_{metric}", {})[name] = of
    return out


def sums_of(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """[N, 8] as :func:`~brainlm.evaluation.metrics.sum_values`, of one value per participant."""
    y, p = np.asarray(truth, float), np.asarray(predicted, float)
    return np.stack([np.ones_like(y), y, y * y, p, p * p, y * p, (y - p) ** 2, np.abs(y - p)], 1)


def _of_classes(part: Part) -> dict[str, dict[str, list[Statistic]]]:
    """Balanced accuracy of the most likely class; AUC, with several classes the mean of each
    against the rest."""
    truth = part.label.astype(int)
    present = np.unique(truth)
    positive = present[1:] if len(part.classes) == 2 else present
    out: dict[str, dict[str, list[Statistic]]] = {"auc": {}, "balanced_accuracy": {}}
    for name, values in part.predictions.items():
        out["balanced_accuracy"][name] = [
            partial(balanced_accuracy, truth, guess) for guess in values.argmax(2).T
        ]
        out["auc"][name] = [
            mean_over_seeds([partial(auc, truth == k, of[:, k]) for k in positive])
            if len(present) > 1 else _unknown
            for of in values.swapaxes(0, 1)
        ]  # fmt: skip
    return out


def _unknown(counts: np.ndarray) -> np.ndarray:
    return np.full(counts.shape[:-1], np.nan)
