"""What learns, and the weights that predicted the validation participants best."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import collect_tensors, put_tensors

#: epochs without a better validation loss before training stops
PATIENCE = 8


class Trainee:
    """A module that learns, and its weights of the best epoch so far.

    Attributes
    ----------
    learns : Module
    loss : float
        The validation participants', of the best weights; infinite before the first.
    epoch : int
        When those were reached; 0 is before the first epoch.
    """

    def __init__(
        self,
        learns: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: float = math.inf,
        epoch: int = 0,
        patience: float = PATIENCE,
    ):
        self.learns, self.optimizer, self.patience = learns, optimizer, patience
        self.loss, self.epoch, self.weights = loss, epoch, _copy(learns)
        self._waited = 0

    def step(self, loss: Tensor) -> Tensor:
        """One update; returns the norm of the gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.learns.parameters(), 1.0)
        self.optimizer.step()
        return norm

    def note(self, epoch: int, held_out: float | None) -> None:
        """Keep the weights if they are the best so far, or the latest if nothing can tell."""
        self._waited += 1
        if held_out is None or held_out < self.loss:
            self.weights, self.epoch, self._waited = _copy(self.learns), epoch, 0
            self.loss = self.loss if held_out is None else held_out

    def collect_tensors(self) -> dict[str, Tensor]:
        """What it needs to go on: weights, moments, the best weights."""
        best = {f"best.{name}": value for name, value in self.weights.items()}
        return collect_tensors(self.learns, [self.optimizer]) | best

    def facts(self) -> dict[str, Any]:
        """The rest of what it needs, as plain values."""
        loss = None if math.isinf(self.loss) else self.loss
        return {"loss": loss, "epoch": self.epoch, "waited": self._waited}

    def put(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go on from what :meth:`collect_tensors` and :meth:`facts` gave."""
        put_tensors(tensors, self.learns, [self.optimizer])
        self.weights = {name: tensors[f"best.{name}"] for name in self.weights}
        self.loss = math.inf if facts["loss"] is None else facts["loss"]
        self.epoch, self._waited = facts["epoch"], facts["waited"]

    @property
    def is_over(self) -> bool:
        return self._waited >= self.patience


class Learner(Trainee):
    """A head that learns, alone or with the encoder below it.

    Attributes
    ----------
    start : str
        How the head began: at random, or as ridge regression.
    """

    def __init__(
        self,
        start: str,
        head: nn.Module,
        learns: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: float = math.inf,
        epoch: int = 0,
    ):
        super().__init__(learns, optimizer, loss, epoch)
        self.start, self.head = start, head

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"start": self.start}

    def put(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        super().put(tensors, facts)
        self.start = facts["start"]


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}
