"""Muon for matrices that may be divided over processes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

#: of the quintic that brings all singular values near 1 (Jordan et al. 2024), and how often
_COEFFICIENTS, _TIMES = (3.4445, -4.7750, 2.0315), 5


class Muon(torch.optim.Muon):
    """torch's Muon, whose steps are as large as AdamW's; the same to the bit where a matrix is
    whole.

    torch's sends every product of its iterations over the processes where FSDP has divided the
    matrix. Here each process gathers it once, in bf16, and keeps its own part of the result
    (Liu et al. 2025, "Muon is scalable for LLM training").
    """

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None, "the gradients are there already"
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, **group)

    def _update(self, matrix: Tensor, *, lr: float, weight_decay: float, momentum: float,
                **_) -> None:  # fmt: skip
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad)
        mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
        direction = matrix.grad.lerp(mean, momentum).bfloat16()
        if isinstance(direction, DTensor):
            whole = orthogonalise(direction.full_tensor())
            direction = distribute_tensor(
                whole, matrix.device_mesh, matrix.placements, src_data_rank=None
            )
        else:
            direction = orthogonalise(direction)
        matrix.mul_(1 - lr * weight_decay)
        matrix.add_(direction, alpha=-lr * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonalise(matrix: Tensor) -> Tensor:
    """A matrix [M, N] with the same singular vectors and singular values near 1 (about 0.7 to
    1.2), by Newton-Schulz iterations."""
    a, b, c = _COEFFICIENTS
    X = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    X = X / X.norm().clamp(min=1e-7)
    for _ in range(_TIMES):
        gram = X @ X.T
        X = torch.addmm(X, torch.addmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.T if matrix.shape[0] > matrix.shape[1] else X
