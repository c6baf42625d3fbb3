"""Optimiser and learning rate, both decided by the configuration and the step alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..config import Pretrain

_BLOCK_MATRIX = re.compile(r"(^|\.)(encoder|decoder\.blocks)\.\d+\..*weight$")


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float):
    """AdamW (betas 0.9, 0.999); matrices decay, biases, norms, tokens and places do not."""
    return _adamw(model.named_parameters(), learning_rate, weight_decay)


def _adamw(named: Iterable[tuple[str, nn.Parameter]], learning_rate: float, weight_decay: float):
    decayed: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in named:
        matrix = name.endswith("weight") and parameter.ndim >= 2
        (decayed if matrix else rest).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay},
              {"params": rest, "weight_decay": 0.0}]  # fmt: skip
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), fused=True)


def make_optimizers(model: nn.Module, options: Pretrain) -> list[torch.optim.Optimizer]:
    """What pretraining learns with.

    ``muon``: the matrices of the blocks by orthogonalised momentum (Jordan et al. 2024), its steps
    made as large as AdamW's (Liu et al. 2025) so that one learning rate serves both; all other
    parameters by AdamW. ``adamw``: as published.
    """
    rate, decay = options.learning_rate, options.weight_decay
    if options.optimizer == "adamw":
        return [make_optimizer(model, rate, decay)]
    rest = dict(model.named_parameters())
    matrices = [rest.pop(name) for name, value in list(rest.items())
                if _BLOCK_MATRIX.search(name) and value.ndim == 2]  # fmt: skip
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=decay,
                            adjust_lr_fn="match_rms_adamw")  # fmt: skip
    return [muon, _adamw(rest.items(), rate, decay)]


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
