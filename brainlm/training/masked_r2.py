"""Masked R² and the predictors next to it that need no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..model.gaussian import Gaussian
from .predictors import PREDICTORS


def interpolate_linear(signal: Tensor, hidden: Tensor) -> Tensor:
    """Fill hidden points of each parcel by linear interpolation between its visible ones.

    Parameters
    ----------
    signal : Tensor [B, R, T]
    hidden : Tensor [B, R, T] bool
        Points not to be looked at (points without data included).

    Returns
    -------
    Tensor [B, R, T]
        Before the first and after the last visible point its value; 0 for a parcel without any.
    """
    T = signal.shape[-1]
    time = torch.arange(T, device=signal.device).expand_as(signal)
    before = torch.where(hidden, -1, time).cummax(-1).values
    after = torch.where(hidden, T, time).flip(-1).cummin(-1).values.flip(-1)
    left, right = before.clamp(min=0), after.clamp(max=T - 1)
    known = signal.nan_to_num(0.0)
    low, high = known.gather(-1, left), known.gather(-1, right)
    low = torch.where(before < 0, high, low)
    high = torch.where(after == T, low, high)
    share = (time - left) / (right - left).clamp(min=1)
    filled = low + (high - low) * share
    return torch.where((before < 0) & (after == T), 0.0, filled)


def average_visible(signal: Tensor, hidden: Tensor) -> Tensor:
    """Mean over the visible parcels at each moment [B, R, T]; 0 where none is visible."""
    visible = ~(hidden | signal.isnan())
    total = torch.where(visible, signal, 0.0).sum(1, keepdim=True)
    return (total / visible.sum(1, keepdim=True).clamp(min=1)).expand_as(signal)


def predict_hidden(signal: Tensor, hidden: Tensor, gaussian: Gaussian | None,
                   names: Iterable[str] = PREDICTORS) -> dict[str, Tensor]:  # fmt: skip
    """What each of :data:`PREDICTORS` says of the hidden values of windows [B, R, T].

    Parameters
    ----------
    gaussian : Gaussian, optional
        Without it the predictors named after it are left out.
    names : iterable of str
        The predictors wanted.
    """
    hidden = hidden | signal.isnan()
    known: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "space": average_visible, "linear": interpolate_linear,
        "zero": lambda signal, _: torch.zeros_like(signal),
    }  # fmt: skip
    if gaussian is not None:
        known |= {"gaussian": gaussian.fill, "gaussian_own": gaussian.fill_own,
                  "gaussian_time": gaussian.fill_in_time}  # fmt: skip
    return {name: known[name](signal, hidden) for name in names if name in known}


class MaskedR2:
    """R² pooled over all masked values, unclipped: 1 - squared error / variance about the mean.

    Sums stay on the device in float64; nothing is read back before :meth:`result`.
    """

    def __init__(self, names: tuple[str, ...] = ("r2",)):
        self.names = names
        self._sums: Tensor | None = None  # count, Σy, Σy², then one squared error per name

    def add(self, target: Tensor, hidden: Tensor, *predictions: Tensor) -> None:
        """Count the values of target [B, R, T] where `hidden` is True."""
        weight = hidden.double()
        y = target.detach().nan_to_num(0.0).double()
        sums = [weight.sum(), (weight * y).sum(), (weight * y * y).sum()]
        sums += [(weight * (p.detach().double() - y) ** 2).sum() for p in predictions]
        now = torch.stack(sums)
        self._sums = now if self._sums is None else self._sums + now

    def result(self, reduce=None) -> dict[str, float | None]:
        """R² per name, None where there is nothing; `reduce` sums over processes."""
        if self._sums is None:
            return dict.fromkeys(self.names)
        sums = self._sums if reduce is None else reduce(self._sums)
        count, total, squares, *errors = sums.tolist()
        variance = squares - total * total / count if count else 0.0
        return {
            name: 1 - error / variance if variance > 0 else None
            for name, error in zip(self.names, errors, strict=True)
        }


def sums_by_window(target: Tensor, hidden: Tensor, prediction: Tensor) -> Tensor:
    """[B, 4] count, Σy, Σy² and squared error of the hidden values of each window."""
    weight = hidden.double()
    y = target.detach().nan_to_num(0.0).double()
    error = (prediction.detach().double() - y) ** 2
    return torch.stack([(weight * x).sum((1, 2)) for x in (1 + 0 * y, y, y * y, error)], 1)


def r2_interval(sums: np.ndarray, who: Sequence, draws: int = 1000) -> tuple[float, float]:
    """95 % interval of the pooled R² from sums [N, 4], over participants `who` [N] drawn again."""
    names, number = np.unique(np.asarray(who, str), return_inverse=True)
    per_participant = np.zeros((len(names), 4))
    np.add.at(per_participant, number, sums)
    random = np.random.default_rng(0)
    values = []
    for _ in range(draws):
        some = per_participant[random.integers(len(names), size=len(names))].sum(0)
        count, total, squares, error = some
        values.append(1 - error / max(squares - total * total / max(count, 1), 1e-12))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
