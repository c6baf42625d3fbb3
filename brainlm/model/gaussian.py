"""What a covariance matrix knows: hidden values given the visible ones.

Three Gaussian predictors of the hidden values of a window [B, R, T], none of which is trained:

* :meth:`Gaussian.fill`: E[hidden parcels | visible parcels at the same moment] under the second
  moments of the training participants.
* :meth:`Gaussian.fill_own`: the same under the window's own covariance, which expectation-
  maximisation finds with the training participants' as prior (an inverse Wishart).
* :meth:`Gaussian.fill_in_time`: E[hidden | all visible values of the window] under covariance in
  space ⊗ autocorrelation in time.

Legend: B batch, R parcels, T time points, K visible parcels.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import BrainLMError
from ..files import atomic_path
from ..paths import ModelFolder

#: steps of expectation-maximisation, and of conjugate gradients
EM_STEPS, CG_STEPS = 6, 20


class Gaussian(nn.Module):
    """The predictors above; see the module.

    Parameters
    ----------
    covariance : Tensor [R, R]
        Second moments of scaled values.
    autocorrelation : Tensor [L]
        1 at lag 0; windows of up to L time points can be filled in time.
    ridge : float
        Noise variance of a visible value, in units of the parcels' mean variance.
    weight : float
        How many time points the training covariance counts for against a window's own.
    """

    covariance: Tensor
    autocorrelation: Tensor
    ridge: Tensor
    weight: Tensor

    def __init__(self, covariance: Tensor, autocorrelation: Tensor, ridge: float = 0.01,
                 weight: float = 50.0):  # fmt: skip
        super().__init__()
        self.register_buffer("covariance", covariance.float())
        self.register_buffer("autocorrelation", autocorrelation.float())
        self.register_buffer("ridge", torch.tensor(float(ridge)))
        self.register_buffer("weight", torch.tensor(float(weight)))

    @torch.no_grad()
    def fill(self, signal: Tensor, hidden: Tensor) -> Tensor:
        """[B, R, T] expected values of all parcels; where nothing is visible, 0.

        Parameters
        ----------
        signal : Tensor [B, R, T]
        hidden : Tensor [B, R, T] bool
            Values not to be looked at; those without data (NaN) never are. The cost is a
            Cholesky factor of K × K per sample and stretch of time with the same hidden parcels.
        """
        hidden = hidden | signal.isnan()
        covariance = self.covariance.expand(len(signal), -1, -1)
        return self._expect(signal, hidden, covariance)[0]

    @torch.no_grad()
    def fill_own(self, signal: Tensor, hidden: Tensor) -> Tensor:
        """As :meth:`fill`, under each window's own covariance.

        With training covariance Σ scaled to the window's variance, m and C the conditional mean
        and covariance of a moment: S = (weight Σ + Σ_t (m m' + C)) / (weight + T), six times.
        """
        hidden = hidden | signal.isnan()
        seen = (~hidden).sum(2) * self.covariance.diagonal()
        power = signal.masked_fill(hidden, 0.0).square().sum((1, 2))
        size = power / seen.sum(1).clamp(min=1e-12)  # of the window's variance to Σ
        prior = own = self.covariance * size[:, None, None]
        for _ in range(EM_STEPS):
            mean, spread = self._expect(signal, hidden, own, spread=True)
            full = torch.where(hidden, mean, signal)
            total = full @ full.transpose(1, 2) + spread
            own = (self.weight * prior + total) / (self.weight + signal.shape[2])
        return self._expect(signal, hidden, own)[0]

    def _expect(self, signal: Tensor, hidden: Tensor, covariance: Tensor, *,
                spread: bool = False) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Conditional means [B, R, T] and, if asked for, conditional covariances [B, R, R]
        summed over time, under `covariance` [B, R, R]."""
        mean, total = torch.zeros_like(signal), torch.zeros_like(covariance)
        size = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
        for start, stop in _stretches(hidden):
            visible = ~hidden[:, :, start]
            order = visible.byte().argsort(dim=1, descending=True, stable=True)
            order = order[:, : int(visible.sum(1).max())]  # [B, K], padded by hidden parcels
            real = visible.gather(1, order)[..., None]
            rows = _rows(covariance, order) * real
            noise = torch.where(real[..., 0], self.ridge * size[:, None], size[:, None])
            inner = _rows(rows.transpose(1, 2), order) * real + torch.diag_embed(noise)
            factor = torch.linalg.cholesky(inner)
            values = _rows(signal[:, :, start:stop], order).masked_fill(~real, 0.0)
            solved = torch.cholesky_solve(values, factor)
            mean[:, :, start:stop] = rows.transpose(1, 2) @ solved
            if spread:
                known = rows.transpose(1, 2) @ torch.cholesky_solve(rows, factor)
                total += (stop - start) * (covariance - known)
        return mean, total

    @torch.no_grad()
    def fill_in_time(self, signal: Tensor, hidden: Tensor) -> Tensor:
        """[B, R, T] expected values given every visible value of the window.

        Solved by conjugate gradients, preconditioned with the inverse for a window in which
        nothing is hidden: about 160 R² T operations per window (R > T).

        Raises
        ------
        BrainLMError
            A window longer than the autocorrelation.
        """
        time = signal.shape[2]
        if time > len(self.autocorrelation):
            raise BrainLMError(f"a window of {time} time points: the autocorrelation has "
                               f"{len(self.autocorrelation)} lags")  # fmt: skip
        visible = (~(hidden | signal.isnan())).to(signal.dtype)
        step = torch.arange(time, device=signal.device)
        temporal = self.autocorrelation[(step[:, None] - step).abs()]
        noise = self.ridge * self.covariance.diagonal().mean() + 1e-12
        (a, U), (b, V) = torch.linalg.eigh(self.covariance), torch.linalg.eigh(temporal)
        joint = a.clamp(min=0)[:, None] * b.clamp(min=0)

        def inverse(x: Tensor) -> Tensor:
            return U @ ((U.T @ x @ V) / (joint + noise)) @ V.T * visible

        def forward(x: Tensor) -> Tensor:
            return self.covariance @ x @ temporal

        left = signal.nan_to_num(0.0) * visible
        weights, step_to = torch.zeros_like(left), inverse(left)
        size = (left * step_to).sum((1, 2), keepdim=True)
        for _ in range(CG_STEPS):
            moved = forward(step_to) * visible + noise * step_to
            rate = size / (step_to * moved).sum((1, 2), keepdim=True).clamp(min=1e-20)
            weights, left = weights + rate * step_to, left - rate * moved
            turned = inverse(left)
            before, size = size, (left * turned).sum((1, 2), keepdim=True)
            step_to = turned + size / before.clamp(min=1e-20) * step_to
        return forward(weights)

    def save(self, folder: Path) -> None:
        """Write ``gaussian.safetensors`` into a model's folder."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.named_buffers()}
        with atomic_path(ModelFolder(Path(folder)).gaussian) as temporary:
            save_file(tensors, temporary)

    @classmethod
    def load(cls, folder: Path) -> Gaussian | None:
        """From a model's folder; None if it has none (made before there was one)."""
        path = ModelFolder(Path(folder)).gaussian
        if not path.exists():
            return None
        return cls(**load_file(path))


def decompose(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [R] and -vectors [R, R] (columns) of a covariance, largest first, float64; the
    vectors have the same signs on every machine."""
    values, vectors = torch.linalg.eigh(covariance.double().cpu())
    largest = vectors.gather(0, vectors.abs().argmax(0)[None])
    return values.flip(0), (vectors * largest.sign()).flip(1)


def _rows(values: Tensor, order: Tensor) -> Tensor:
    """Rows `order` [B, K] of `values` [B, R, ...]."""
    return values.gather(1, order[..., None].expand(-1, -1, values.shape[2]))


def _stretches(hidden: Tensor) -> Iterator[tuple[int, int]]:
    """Start and end of the stretches of time in which the hidden parcels stay the same."""
    change = (hidden[..., 1:] != hidden[..., :-1]).flatten(0, 1).any(0)
    cuts = [0, *(change.nonzero()[:, 0] + 1).tolist(), hidden.shape[-1]]
    return pairwise(cuts)
