"""Training of the small networks that a comparison needs: the same budget and choices for each.

A network, an objective on windows, and a budget; weights and learning rate are the best on
validation participants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ..errors import BrainLMError
from .device import device_of, get_device
from .learner import Trainee
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

    def train_at(rate: float) -> Fitted[Network]:
        torch.manual_seed(budget.seed)
        return _train(build(), objective, train, check, budget, rate)

    return best_of(budget.learning_rates if len(check) else budget.learning_rates[:1], train_at)


def best_of(
    rates: Sequence[float], train_at: Callable[[float], Fitted[Network]]
) -> Fitted[Network]:
    """Train once per learning rate and keep the best on validation participants.

    Raises
    ------
    BrainLMError
        No epoch at any rate has a finite validation loss.
    """
    best = min(map(train_at, rates), key=lambda fitted: fitted.validation)
    if best.validation == math.inf:
        raise BrainLMError(
            f"{type(best.network).__name__}: training diverged at every learning rate "
            f"({', '.join(f'{rate:g}' for rate in rates)}): the validation loss was never a "
            "number; look for extreme values in labels and series, or name smaller rates"
        )
    return best


def _train(network: Network, objective: Objective, train: Windows, check: Windows, budget: Budget,
           rate: float) -> Fitted[Network]:  # fmt: skip
    device = get_device()
    network.to(device)
    optimizer = make_optimizer(network, rate, 0.05)
    total = budget.epochs * math.ceil(len(train) / budget.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, total))

    def losses(epoch: int) -> Iterator[Tensor]:
        torch.manual_seed(hash((budget.seed, epoch)))
        for batch in Prefetch(train.batch, _picks(train, epoch, budget.batch_size)):
            yield objective(network, batch.signal.to(device))
            schedule.step()

    trainee = Trainee(network, optimizer, patience=math.inf)
    return keep_best(trainee, rate, budget.epochs, losses,
                     lambda: _validate(network, objective, check))  # fmt: skip


def keep_best(trainee: Trainee, rate: float, epochs: int,
              losses: Callable[[int], Iterable[Tensor]],
              validate: Callable[[], float | None]) -> Fitted:  # fmt: skip
    """Epochs until the patience is over; the network ends with its best weights.

    Parameters
    ----------
    losses : callable
        Epoch -> losses of its batches; each is stepped on before the next is asked for.
    validate : callable
        -> validation loss; None if there is no validation participant: the last epoch is kept.
    """
    for epoch in range(epochs):
        trainee.learns.train()
        for loss in losses(epoch):
            trainee.step(loss)
        held_out = validate()
        trainee.note(epoch + 1, held_out)
        if trainee.is_over:
            break
    trainee.learns.load_state_dict(trainee.weights)
    validation = math.nan if held_out is None else trainee.loss
    return Fitted(trainee.learns.eval(), validation, rate, trainee.epoch)


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
def _validate(network: nn.Module, objective: Objective, check: Windows) -> float | None:
    """Mean loss of the middle window of every validation recording; None if there is none."""
    network.eval()
    torch.manual_seed(0)  # objectives that mask do so alike every time
    device = device_of(network)
    losses = []
    for row in check.rows:
        windows = check.even(int(row), 3)
        losses.append(float(objective(network, windows[len(windows) // 2][None].to(device))))
    return sum(losses) / len(losses) if losses else None


def squared_error(prediction: Tensor, truth: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean over known values, optionally of some only."""
    known = truth.isfinite() if where is None else truth.isfinite() & where
    error = (prediction.float() - truth.nan_to_num(0.0)).square()
    return error.mul(known).sum() / known.sum().clamp(min=1)
