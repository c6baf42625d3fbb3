"""Forecasting held-out participants: the fine-tuned model, other networks, and linear methods.

Paper, section 4.3: of a window's time points all but the last are given, the last are forecast.
Every trained method gets the same training windows, updates, batch size and candidate learning
rates, and its weights and learning rate are chosen on the same validation windows. R² is pooled
and unclipped; a forecast of zero (the scaled median of the training participants) has an R² near
0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from ...errors import BrainLMError
from ...shards import Corpus, Scaling
from ...shards.censored import choose_apart
from ..job import Job
from ..metrics import POOLED, of_sums, sum_values
from ..participants import long_enough
from ..rows import compare, describe_left_out, rows_of_units
from ..statistics import Sample, add_by_participant
from .autoregression import fit_autoregressions

MODEL = "fine-tuned"
_EXAMPLES = 3  # recordings per cohort, and parcels of each

#: past [K, R, G] -> forecast [K, R, H]; past is NaN where there is no data: methods that know no
#: missing values take the scaled median there, 0. What is not there is not asked for
Forecast = Callable[[np.ndarray], np.ndarray]


class FittedForecaster(NamedTuple):
    """A method that is ready to forecast, and what was chosen on validation participants."""

    method: Forecast
    choice: str | None = None


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is forecast: H of the T points of every window of a corpus, in a model's scaling."""

    corpus: Corpus
    scaling: Scaling
    window: int
    ahead: int

    def rows(self, split: str, roles: Mapping[str, str]) -> np.ndarray:
        """Usable rows of a split of the reference cohorts."""
        rows = self.corpus.usable(split=split, min_timepoints=self.window)
        cohorts = self.corpus.table["cohort"][rows]
        return rows[[roles.get(cohort) != "external" for cohort in cohorts]]

    def windows(self, index: int) -> np.ndarray:
        """[K, R, T] windows of a recording one after another, past censored time, so that every
        run sees the same."""
        series = self.corpus.scaled(int(index), self.scaling).T
        starts = choose_apart(self.corpus.starts(int(index), self.window), self.window)
        return np.stack([series[:, start : start + self.window] for start in starts])

    def sum_errors(self, indices: Sequence[int], method: Forecast) -> np.ndarray:
        """[N, H, 8] sums per recording and step; see :func:`~.metrics.sum_values`."""
        out = np.zeros((len(indices), self.ahead, 8))
        for row, index in enumerate(indices):
            signal = self.windows(index)
            guess = method(signal[..., : -self.ahead])
            for step in range(self.ahead):
                out[row, step] = sum_values(signal[..., step - self.ahead], guess[..., step])
        return out


def evaluate_forecasting(job: Job) -> pd.DataFrame:
    """R², r, MSE and MAE of all methods, overall and per step ahead, with paired tests.

    The model's window is what is given and what is forecast together; without ``ahead`` the last
    tenth of it is forecast, in whole patches (the paper: 20 of 200 time points). Every network is
    trained once per seed; its errors are pooled over the seeds. Example forecasts go next to the
    table as ``<stem>.examples.parquet``.

    Raises
    ------
    BrainLMError
        No training recording holds a window, or a horizon of no whole patches.
    """
    from ...training.loop import Budget

    (corpus, base), task, roles = job.open(), job.task, job.roles
    assert base.scaling is not None
    setting = Setting(corpus, base.scaling, base.config.window, _horizon(base.config, task.ahead))
    train, check = setting.rows("train", roles), setting.rows("validation", roles)
    if not len(train):
        raise BrainLMError(f"forecasting: no training recording has {setting.window} time points")
    builds = _networks(base, setting.ahead)
    count = job.count(len(builds) * len(task.seeds), "networks")
    fits = [_fit_linear(setting, train, check)]
    for seed in task.seeds:
        budget = Budget(task.epochs, task.batch_size, task.learning_rates, seed)
        fits.append(_fit_networks(builds, setting, train, check, budget, count.add))
    rows, examples = [], []
    for cohort, split, part in job.parts(corpus.table):
        indices, why = long_enough(part, setting.window)
        where: dict = {"task": "forecasting", "cohort": cohort, "split": split}
        where |= {"target": f"{setting.ahead} of {setting.window}", "left_out": sum(why.values())}
        where |= {"n_train": corpus.table.loc[train, "participant_id"].nunique()}
        where |= {"note": describe_left_out(why)}
        if not len(indices):
            rows.append(where | {"method": MODEL, "level": "pooled", "n": 0})
            continue
        rows += _score(setting, indices, fits, task.seeds, where, job.options)
        examples += _examples(setting, indices[:_EXAMPLES], fits[0] | fits[1])
    job.save("examples", pd.DataFrame(examples))
    return job.write(rows)


def _horizon(config, ahead: int | None) -> int:
    ahead = ahead or config.patch * max(1, round(0.1 * config.window / config.patch))
    if ahead % config.patch or ahead >= config.window:
        raise BrainLMError(
            f"forecasting: ahead is {ahead}; expected a multiple of the model's patch "
            f"({config.patch}) below its window ({config.window})"
        )
    return ahead


# ---- methods ------------------------------------------------------------------------------------


def trivial(ahead: int) -> dict[str, Forecast]:
    """What needs no training."""

    def line(past: np.ndarray) -> np.ndarray:
        """Least squares through those of the last H given points that are there, carried on."""
        count = min(ahead, past.shape[-1])
        recent = past[..., -count:]
        known = np.isfinite(recent)
        there = np.maximum(known.sum(-1, keepdims=True), 1)
        time = np.broadcast_to(np.arange(count), known.shape)
        middle = (time * known).sum(-1, keepdims=True) / there
        mean = np.nansum(recent, -1, keepdims=True) / there
        apart = (time - middle) * known
        size = np.maximum((apart * apart).sum(-1, keepdims=True), 1e-12)
        slope = np.nansum(recent * apart, -1, keepdims=True) / size
        return mean + slope * (count + np.arange(ahead) - middle)

    return {
        "linear": line,
        "last value": lambda past: np.repeat(last_known(past), ahead, -1),
        "zero": lambda past: np.zeros((*past.shape[:-1], ahead)),
    }


def last_known(past: np.ndarray) -> np.ndarray:
    """[..., 1] the last value that is there; 0 without any."""
    known = np.isfinite(past)
    place = past.shape[-1] - 1 - known[..., ::-1].argmax(-1)
    return np.nan_to_num(np.take_along_axis(past, place[..., None], -1))


def _fit_linear(setting: Setting, train, check) -> dict[str, FittedForecaster]:
    """AR and VAR, and what needs no training."""
    given = setting.window - setting.ahead
    fits = fit_autoregressions(setting.corpus, setting.scaling, train, check, given, setting.ahead)

    def each(forecast: Callable[[np.ndarray], np.ndarray]) -> Forecast:
        return lambda past: np.stack([forecast(window) for window in past])

    out = {name: FittedForecaster(each(fit.forecast), fit.choice) for name, fit in fits.items()}
    return out | {
        name: FittedForecaster(method) for name, method in trivial(setting.ahead).items()
    }


def _networks(base, ahead: int) -> dict[str, Callable]:
    """How each network is made."""
    from ...model import BrainLM
    from . import forecasters as nets

    parcels, config = base.config.num_parcels, base.config
    points = base.coordinates.cpu() if config.has_coordinates else None

    def transformer(pretrained: bool):
        model = BrainLM(dataclasses.replace(config, head_outputs=0), points)
        if pretrained:
            model.load_state_dict(base.state_dict())
        return nets.TransformerForecaster(model, ahead)

    return {
        MODEL: lambda: transformer(True),
        "from scratch": lambda: transformer(False),
        "LSTM": lambda: nets.LSTMForecaster(parcels, ahead),
        "Neural ODE": lambda: nets.NeuralODEForecaster(parcels, ahead),
        "Latent ODE": lambda: nets.LatentODEForecaster(parcels, ahead),
    }


def _fit_networks(builds, setting: Setting, train, check, budget,
                  told: Callable[[], None]) -> dict[str, FittedForecaster]:  # fmt: skip
    """Every network, trained with the same budget; `told` after each."""
    from ...training.loop import fit
    from ...training.windows import Windows
    from .forecasters import forecast_error

    windows = partial(Windows, setting.corpus, setting.scaling, setting.window, seed=budget.seed)
    out = {}
    for name, build in builds.items():
        fitted = fit(build, forecast_error, windows(train), windows(check), budget)
        choice = f"learning rate {fitted.learning_rate:g}, epoch {fitted.epoch} of {budget.epochs}"
        print(f"{name}, seed {budget.seed}: validation MSE {fitted.validation:.4f}; {choice}",
              flush=True)  # fmt: skip
        out[name] = FittedForecaster(_method(fitted.network), choice)
        told()
    return out


def _method(forecaster) -> Forecast:
    import torch

    from ...training.device import device_of

    device = device_of(forecaster)

    @torch.inference_mode()
    def forecast(past: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(np.ascontiguousarray(past, np.float32)).to(device)
        alike = bool((given.isnan() == given[:1].isnan()).all())  # else each is a batch of its own
        parts = [given] if alike else given.split(1)
        return torch.cat([forecaster(part) for part in parts]).float().cpu().numpy()

    return forecast


# ---- scores -------------------------------------------------------------------------------------


def _score(
    setting: Setting, indices, fits: list[dict[str, FittedForecaster]], seeds, where, options
):
    """Rows of one cohort: pooled, per step, per seed."""
    sums: dict[str, list[np.ndarray]] = {}  # per method, [N, H, 8] of every seed
    for group in fits:
        for name, fit in group.items():
            sums.setdefault(name, []).append(setting.sum_errors(indices, fit.method))
    choices = {name: fit.choice for group in fits for name, fit in group.items()}
    if len(seeds) > 1:  # a choice per seed: the log has them
        choices = {name: fit.choice for name, fit in fits[0].items()}
    table = setting.corpus.table.loc[indices]
    totals = {
        name: add_by_participant(np.sum(parts, 0), table["participant_id"])
        for name, parts in sums.items()
    }  # {name: [S, H, 8]}
    sample = Sample(table["participant_id"].nunique(), options)
    where = where | {"n": sample.participants}
    for row in _summarise(totals, sample, where):
        notes = [row["note"], choices.get(row["method"])]
        yield row | {"note": "; ".join(filter(None, notes)) or None}
    for name in fits[1]:
        row = where | {"metric": "r2", "method": name}
        values = (POOLED["r2"](part.sum((0, 1))) for part in sums[name])
        yield from rows_of_units(row, "seed", seeds, values)


def _summarise(sums: dict, sample: Sample, where: dict) -> Iterator[dict]:
    """Metrics of sums {method: [S, H, 8]}, all steps together and one by one."""
    together = {name: values.sum(1) for name, values in sums.items()}
    steps = range(1, sums[MODEL].shape[1] + 1)
    pairs = [(MODEL, other) for other in sums if other != MODEL]
    for metric in POOLED:
        for level, of, units in (("pooled", together, None), ("step", sums, steps)):
            statistics = {name: of_sums(metric, values) for name, values in of.items()}
            row = where | {"level": level, "metric": metric}
            yield from compare(sample, statistics, row, pairs, units)


def _examples(setting: Setting, indices, fits: dict[str, FittedForecaster]) -> list[dict]:
    """Truth (steps up to 0 were given) and forecasts of a few parcels of a few recordings."""
    rows: list[dict] = []
    for index in indices:
        signal = setting.windows(index)[0]
        steps = np.arange(setting.window) - (setting.window - setting.ahead) + 1
        there = signal[:, np.isfinite(signal).any(0)]
        spread = np.where(np.isfinite(there).all(1), there.std(1), np.inf)
        known = int(np.isfinite(spread).sum())
        parcels = np.argsort(spread)[(known * np.linspace(0.25, 0.75, _EXAMPLES)).astype(int)]
        recording = setting.corpus.table.loc[index, ["cohort", "recording_id"]].to_dict()
        series = {"truth": signal}
        series |= {n: f.method(signal[None, :, : -setting.ahead])[0] for n, f in fits.items()}
        for name, values in series.items():
            for parcel in parcels:
                pairs = zip(steps[-values.shape[1] :], values[parcel], strict=True)
                rows += [recording | {"parcel": int(parcel) + 1, "step": int(step),
                                      "method": name, "value": float(value)}
                         for step, value in pairs]  # fmt: skip
    return rows
