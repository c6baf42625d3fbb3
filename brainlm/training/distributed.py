"""Processes and devices: the only place that knows about either.

The model is prepared in a stated order: attention backend → activation checkpointing →
compilation → sharding (DDP, or FSDP2 block by block).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import Pretrain
from ..model import BrainLM, set_attention
from ..model.masking import Masking
from .device import choose_device


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of the run."""

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Sum over processes; returns `value` itself, changed in place."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """True if it is on any process (waits for the device when there are several)."""
        if self.world == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        return bool(self.sum(value) > 0)

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What the first process makes, on all; also its error. The others wait for it."""
        if self.world == 1:
            return make()
        box: list[Any] = [None, None]
        if self.main:
            try:
                box[0] = make()
            except Exception as error:
                box[1] = error
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        return box[0]


@contextlib.contextmanager
def join_processes(gpus: int, cpus: int) -> Iterator[Ranks]:
    """Join the processes that torchrun started, or be the only one.

    On the CPU the processes of a machine share `cpus` threads (never more than PyTorch took).

    Raises
    ------
    BrainLMError
        `gpus` asked for and none visible.
    """
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    device = choose_device(gpus, local)
    if not gpus:
        share = cpus // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, min(torch.get_num_threads(), share)))
    else:
        torch.set_float32_matmul_precision("high")
    if world == 1:
        yield Ranks(0, 1, device)
        return
    # gloo too: checkpoints are written from the host, and so is what the first process decides
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo",
                            device_id=device if gpus else None)  # fmt: skip
    try:
        yield Ranks(dist.get_rank(), world, device)
    finally:
        dist.destroy_process_group()


class TrainingStep(nn.Module):
    """What runs on the device: a forward pass that returns plain tensors, for any wrapper."""

    def __init__(self, model: BrainLM):
        super().__init__()
        self.model = model

    def forward(self, signal: Tensor, masking: Masking) -> tuple[Tensor, ...]:
        """error_sum, count, prediction [B, R, T], pixel_mask [B, R, T], CLS [B, D]."""
        out = self.model(signal, masking)
        return out.error_sum, out.count, out.prediction, out.pixel_mask, out.latent[:, 0]


def prepare_training(model: BrainLM, options: Pretrain, ranks: Ranks) -> nn.Module:
    """The model on its device, ready to train; the order of the steps matters."""
    set_attention(model, options.attention)
    step = TrainingStep(model.to(ranks.device))
    blocks = [*model.encoder, *(model.decoder.blocks if model.decoder else ())]
    for block in blocks:
        if options.activation_checkpointing:
            block.forward = _keep_the_input_only(block.forward)
        if options.compile:
            block.compile()
    if ranks.world == 1:
        return step
    if options.sharding == "fsdp":
        return _shard(step, blocks, ranks)
    on_gpu = ranks.device.type == "cuda"
    return nn.parallel.DistributedDataParallel(step, [ranks.device] if on_gpu else None)


def _keep_the_input_only(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`forward`, computed a second time for the backward pass.

    A function of its own, and no ``functools.partial``: torch.compile looks into functions, and
    leaves a bare call of torch's `checkpoint` uncompiled without a word.
    """

    def run(*inputs) -> Tensor:
        return checkpoint(forward, *inputs, use_reentrant=False)

    return run


def _shard(step: nn.Module, blocks: list[nn.Module], ranks: Ranks) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(step, mesh=mesh)


@contextlib.contextmanager
def gradient_sync(step: nn.Module, on: bool) -> Iterator[None]:
    """Reduce gradients over processes only where `on` (the last micro-batch of an update)."""
    if hasattr(step, "set_requires_gradient_sync"):  # FSDP2
        step.set_requires_gradient_sync(on)
        yield
    elif not on and hasattr(step, "no_sync"):  # DDP
        with step.no_sync():
            yield
    else:
        yield
