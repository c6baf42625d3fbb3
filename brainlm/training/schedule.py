"""Optimiser and learning rate, both decided by the configuration and the step alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..config import Pretrain
from .muon import Muon

_BLOCK_MATRIX = re.compile(r"(^|\.)(encoder|decoder\.blocks)\.\d+\..*weight$")


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float):
    """AdamW (betas 0.9, 0.999); matrices decay, biases, norms, tokens and places do not."""
    return _adamw(model.named_parameters(), learning_rate, weight_decay, 0.999)


def _adamw(named: Iterable[tuple[str, nn.Parameter]], learning_rate: float, weight_decay: float,
           beta2: float):  # fmt: skip
    decayed: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in named:
        matrix = name.endswith("weight") and parameter.ndim >= 2
        (decayed if matrix else rest).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay},
              {"params": rest, "weight_decay": 0.0}]  # fmt: skip
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, beta2), fused=True)


def make_optimizers(model: nn.Module, options: Pretrain) -> list[torch.optim.Optimizer]:
    """What pretraining learns with.

    ``muon``: the matrices of the blocks by orthogonalised momentum (Jordan et al. 2024), its steps
    made as large as AdamW's (Liu et al. 2025) so that one learning rate serves both; all other
    parameters by AdamW. ``adamw``: as published.
    """
    assert options.learning_rate and options.beta2, "options.of_preset(...) fills them in"
    rate, decay, beta2 = options.learning_rate, options.weight_decay, options.beta2
    if options.optimizer == "adamw":
        return [_adamw(model.named_parameters(), rate, decay, beta2)]
    rest = dict(model.named_parameters())
    matrices = [rest.pop(name) for name, value in list(rest.items())
                if _BLOCK_MATRIX.search(name) and value.ndim == 2]  # fmt: skip
    return [Muon(matrices, lr=rate, weight_decay=decay), _adamw(rest.items(), rate, decay, beta2)]


def learning_rate_at(step: int, total: int, options: Pretrain) -> float:
    """Linear warm-up over the first updates, then half a cosine down to zero."""
    assert options.learning_rate is not None
    warm = max(1, math.ceil(options.warmup * total))
    if step < warm:
        return options.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, total - warm)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def update_weights(optimizers: Iterable[torch.optim.Optimizer], learning_rate: float) -> None:
    """A step of every optimiser; the gradients are gone afterwards."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def scale_gradients(model: nn.Module, factor: Tensor, most: float = 1.0) -> Tensor:
    """Multiply all gradients by `factor`, and clip them to a norm of `most`, in one pass.

    Returns
    -------
    Tensor []
        The norm before clipping. All are tensors: nothing is read back from the device.
    """
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    if isinstance(norm, DTensor):  # of sharded gradients
        norm = norm.full_tensor()
    norm = factor * norm
    local = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in grads]
    torch._foreach_mul_(local, factor * (most / (norm + 1e-6)).clamp(max=1))
    return norm
