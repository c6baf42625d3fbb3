"""Training of the networks that a comparison needs: the same budget and choices for each.

A network, an objective on windows, and a budget; weights and learning rate are the best on
validation people.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from .device import device_of, get_device
from .schedule import make_optimizer
from .windows import Prefetch, Windows

Network = TypeVar("Network", bound=nn.Module)
#: network, windows [B, R, T] -> mean loss
Objective = Callable[[nn.Module, Tensor], Tensor]
#: updates over which the learning rate rises, as a share of all
WARMUP = 0.1


@dataclass(frozen=True)
class Budget:
    """What every trained method gets.

    Attributes
    ----------
    epochs, batch_size : int
        One random window of every training recording per epoch.
    learning_rates : sequence of float
        Each is tried from the same start; the validation loss decides.
    seed : int
        Of initial weights, windows and dropped tokens.
    """

    epochs: int = 10
    batch_size: int = 16
    learning_rates: Sequence[float] = (1e-3, 3e-3)
    seed: int = 1234


@dataclass(frozen=True)
class Fitted(Generic[Network]):
    """A network with the weights of its best epoch.

    Attributes
    ----------
    validation : float
        Mean loss on one window per validation recording (NaN without any).
    learning_rate : float
        The one that was chosen.
    epoch : int
        The epoch whose weights were kept, from 1.
    """

    network: Network
    validation: float
    learning_rate: float
    epoch: int


def fit(build: Callable[[], Network], objective: Objective, train: Windows, check: Windows,
        budget: Budget) -> Fitted[Network]:  # fmt: skip
    """Train one network per learning rate and keep the best on the validation windows.

    Parameters
    ----------
    build : callable
        A new network; called once per learning rate, each time with the same seed.
    train, check : Windows
        Of training and validation recordings; without validation windows the first learning
        rate and the last epoch are used.
    """
    best: Fitted[Network] | None = None
    rates = budget.learning_rates if len(check) else budget.learning_rates[:1]
    for rate in rates:
        torch.manual_seed(budget.seed)
        result = _train(build(), objective, train, check, budget, rate)
        if best is None or result.validation < best.validation:
            best = result
    assert best is not None
    return best


def _train(network: Network, objective: Objective, train: Windows, check: Windows, budget: Budget,
           rate: float) -> Fitted[Network]:  # fmt: skip
    device = get_device()
    network.to(device)
    optimizer = make_optimizer(network, rate, 0.05)
    total = budget.epochs * math.ceil(len(train) / budget.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, total))
    best, kept_epoch, kept = math.inf, 0, _copy(network)
    for epoch in range(budget.epochs):
        network.train()
        torch.manual_seed(hash((budget.seed, epoch)))
        for batch in Prefetch(train.batch, _picks(train, epoch, budget.batch_size)):
            loss = objective(network, batch.signal.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        loss = _validate(network, objective, check)
        if not loss >= best:  # NaN (nobody to validate on): the last epoch is kept
            best, kept_epoch, kept = loss, epoch + 1, _copy(network)
    network.load_state_dict(kept)
    return Fitted(network.eval(), best, rate, kept_epoch)


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


@torch.no_grad()
def _validate(network: nn.Module, objective: Objective, check: Windows) -> float:
    """Mean loss of the middle window of every validation recording; NaN if there is none."""
    network.eval()
    torch.manual_seed(0)  # objectives that mask do so alike every time
    device = device_of(network)
    losses = []
    for row in check.rows:
        windows = check.even(int(row), 3)
        losses.append(float(objective(network, windows[len(windows) // 2][None].to(device))))
    return sum(losses) / len(losses) if losses else math.nan


def squared_error(prediction: Tensor, truth: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean over known values, optionally of some only."""
    known = truth.isfinite() if where is None else truth.isfinite() & where
    error = (prediction.float() - truth.nan_to_num(0.0)).square()
    return error.mul(known).sum() / known.sum().clamp(min=1)


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in network.state_dict().items()}
