"""From predictions to rows: metrics with intervals, and paired differences to connectivity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ...config import Evaluate
from ..metrics import (
    MIN_SUBJECTS,
    POOLED,
    auc,
    balanced_accuracy,
    bootstrap_p,
    difference,
    measure,
    of_sums,
)
from ..rows import describe_left_out
from ..significance import holm

if TYPE_CHECKING:
    from .targets import Part

Statistic = Callable[[np.ndarray], np.ndarray]  # counts [..., N] -> values [...]
#: What every method is compared with.
REFERENCE = "connectivity + ridge"
#: Does pretraining help? What the same network reaches without it.
_UNTRAINED = {
    "fine-tuned": "from scratch",
    "linear probe on latent connectivity": "linear probe on latent connectivity, untrained",
}
#: Methods that are not: one need not show that motion is worse.
_FLOOR = ("mean", "chance", "mean FD", "site", "demographics")


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
    return f"all are {part.classes[int(part.label[0])]}: there is no AUC"


def _rows(part: Part, metric: str, by_method: dict[str, list[Statistic]], where: dict,
          options: Evaluate) -> Iterator[dict]:  # fmt: skip
    count, lone = len(part), len(part) < MIN_SUBJECTS and "mae" not in metric
    means = {name: mean_over_seeds(of) for name, of in by_method.items()}
    compared = []
    for name, statistic in means.items():
        row = where | {"method": name, "level": "pooled", "n_train": part.n_train.get(name)}
        if (lone and "mse" not in metric) or (name == "mean" and metric == "r"):
            yield row | {"value": None}  # two people always correlate ±1, means of folds below 0
            continue
        yield row | measure(statistic, count, options.bootstrap, options.seed)
        if name != REFERENCE and name not in _FLOOR:
            compared.append(name)
        if len(by_method[name]) > 1:
            for seed, of in zip(part.seeds, by_method[name], strict=True):
                value = float(of(np.ones((1, count)))[0])
                yield row | {"level": "seed", "unit": str(seed), "value": value}
    pairs = [(name, REFERENCE) for name in compared]
    pairs += [(one, other) for one, other in _UNTRAINED.items() if {one, other} <= {*compared}]
    differences = [difference(means[one], means[other]) for one, other in pairs]
    p = holm(np.array([bootstrap_p(d, count, options.bootstrap, options.seed)
                       for d in differences]))  # fmt: skip
    for (one, other), statistic, chance in zip(pairs, differences, p, strict=True):
        row = where | {"method": f"{one} minus {other}", "level": "pooled", "p": chance}
        measured = measure(statistic, count, options.bootstrap, options.seed)
        yield row | measured | {"n_train": part.n_train.get(one)}


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
    """[N, 8] as :func:`~brainlm.evaluation.metrics.sum_values`, of one value per person."""
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
