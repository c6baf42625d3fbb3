"""Optimiser and learning rate, both decided by the configuration and the step alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..config import Pretrain


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float):
    """AdamW (betas 0.9, 0.999); matrices decay, biases, norms, tokens and places do not."""
    decayed: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = name.endswith("weight") and parameter.ndim >= 2
        (decayed if matrix else rest).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay},
              {"params": rest, "weight_decay": 0.0}]  # fmt: skip
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), fused=True)


def learning_rate_at(step: int, total: int, options: Pretrain) -> float:
    """Linear warm-up over the first updates, then half a cosine down to zero."""
    warm = max(1, math.ceil(options.warmup * total))
    if step < warm:
        return options.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, total - warm)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def rescale_gradients(model: nn.Module, factor: Tensor) -> None:
    """Multiply all gradients by `factor` (a tensor: nothing is read back from the device)."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            local = getattr(parameter.grad, "to_local", lambda grad=parameter.grad: grad)()
            local.mul_(factor)
