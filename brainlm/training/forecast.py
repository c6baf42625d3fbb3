"""Training of forecasters: the same windows, updates and choices for every network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .forecasters import Forecaster
from .schedule import make_optimizer
from .windows import Prefetch, Windows

#: updates over which the learning rate rises, as a share of all
WARMUP = 0.1


@dataclass(frozen=True)
class Budget:
    """What every trained forecaster gets.

    Attributes
    ----------
    epochs, batch_size : int
        One random window of every training recording per epoch.
    learning_rates : sequence of float
        Each is tried from the same start; the validation error decides.
    seed : int
        Of initial weights, windows and dropped tokens.
    """

    epochs: int = 10
    batch_size: int = 16
    learning_rates: Sequence[float] = (1e-3, 3e-3)
    seed: int = 1234


@dataclass(frozen=True)
class Trained:
    """A forecaster with the weights of its best epoch.

    Attributes
    ----------
    validation : float
        Mean squared error on validation windows (NaN without any).
    learning_rate : float
        The one that was chosen.
    epoch : int
        The epoch whose weights were kept, from 1; 0: the initial ones.
    """

    forecaster: Forecaster
    validation: float
    learning_rate: float
    epoch: int


def train_forecaster(build: Callable[[], Forecaster], train: Windows, check: Windows,
                     horizon: int, budget: Budget) -> Trained:  # fmt: skip
    """Train one forecaster per learning rate and keep the best on the validation windows.

    Parameters
    ----------
    build : callable
        A new forecaster; called once per learning rate, each time with the same seed.
    train, check : Windows
        Of training and validation recordings; without validation windows the first learning
        rate and the last epoch are used.
    """
    best: Trained | None = None
    rates = budget.learning_rates if len(check) else budget.learning_rates[:1]
    for rate in rates:
        torch.manual_seed(budget.seed)
        result = _train(build(), train, check, horizon, budget, rate)
        if best is None or result.validation < best.validation:
            best = result
    assert best is not None
    return best


def _train(forecaster: Forecaster, train: Windows, check: Windows, horizon: int, budget: Budget,
           rate: float) -> Trained:  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    forecaster.to(device)
    optimizer = make_optimizer(forecaster, rate, 0.05)
    total = budget.epochs * math.ceil(len(train) / budget.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, total))
    best, kept_epoch, kept = validation_error(forecaster, check, horizon), 0, _copy(forecaster)
    for epoch in range(budget.epochs):
        forecaster.train()
        torch.manual_seed(hash((budget.seed, epoch)))
        for batch in Prefetch(train, _picks(train, epoch, budget.batch_size)):
            signal = batch.signal.to(device)
            past, future = signal[..., :-horizon], signal[..., -horizon:]
            loss = _error(forecaster(past), future) + forecaster.penalty
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(forecaster.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        error = validation_error(forecaster, check, horizon)
        if not error >= best:  # NaN (nobody to validate on): the last epoch is kept
            best, kept_epoch, kept = error, epoch + 1, _copy(forecaster)
    forecaster.load_state_dict(kept)
    return Trained(forecaster.eval(), best, rate, kept_epoch)


def _share(step: int, total: int) -> float:
    """Of the learning rate: a linear rise, then half a cosine."""
    warm = max(1, math.ceil(WARMUP * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _picks(windows: Windows, epoch: int, size: int) -> Iterator[list[tuple[int, int]]]:
    order = [(epoch, int(row)) for row in windows.order(epoch)]
    for first in range(0, len(order), size):
        yield order[first : first + size]


def _error(prediction: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error over known values."""
    known = truth.isfinite()
    error = (prediction.float() - truth.nan_to_num(0.0)).square()
    return error.mul(known).sum() / known.sum().clamp(min=1)


@torch.no_grad()
def validation_error(forecaster: Forecaster, check: Windows, horizon: int) -> float:
    """Mean squared error over the middle windows of the validation recordings; NaN if none."""
    forecaster.eval()
    device = next(forecaster.parameters()).device
    total = count = 0.0
    for row in check.rows:
        signal = check.even(int(row), 3)
        signal = signal[len(signal) // 2 :][:1].to(device)
        future = signal[..., -horizon:]
        known = int(future.isfinite().sum())
        total += float(_error(forecaster(signal[..., :-horizon]), future)) * known
        count += known
    return total / count if count else math.nan


def _copy(forecaster: Forecaster) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in forecaster.state_dict().items()}
