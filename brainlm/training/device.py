"""The device that models run on: chosen once per process by the verb that runs them.

A process has one device as it has one number of threads. ``pretrain.gpus: 0`` means the CPU for
everything that runs a model; a caller who chooses nothing gets a GPU where there is one.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from ..errors import BrainLMError

Network = TypeVar("Network", bound=nn.Module)
_chosen: torch.device | None = None


def choose_device(gpus: int, local: int = 0) -> torch.device:
    """Use the GPU number `local`, or with ``gpus`` 0 the CPU, from now on.

    Raises
    ------
    BrainLMError
        A GPU is asked for and none is visible.
    """
    global _chosen
    if gpus and not torch.cuda.is_available():
        raise BrainLMError(f"pretrain.gpus is {gpus}, but PyTorch sees no GPU here; set it to 0, "
                           "or run where there is one")  # fmt: skip
    _chosen = torch.device("cuda", local) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(_chosen)
        torch.set_float32_matmul_precision("high")  # TF32 in what is not half precision
    return _chosen


def get_device() -> torch.device:
    """The device that was chosen; else a GPU where there is one."""
    if _chosen is not None:
        return _chosen
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def place(network: Network) -> Network:
    """`network` on the process's device."""
    return network.to(get_device())


def device_of(network: nn.Module) -> torch.device:
    """Where a network is, and so its inputs must be."""
    return next(network.parameters()).device
