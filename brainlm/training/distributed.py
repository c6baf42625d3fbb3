"""Processes: the only place that knows about them.

A model is prepared (device.py) and then shared out: DDP, or FSDP2 block by block.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..config import Pretrain
from ..model import BrainLM
from ..model.masking import Masking
from .device import choose_device, prepare


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of the run.

    Attributes
    ----------
    ending : ExitStack
        What is let go of before the processes part, however the run ends.
    """

    rank: int
    world: int
    device: torch.device
    ending: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, compare=False)

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

    def least(self, value: int) -> int:
        """The smallest over processes."""
        if self.world == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

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
def join_processes(options: Pretrain) -> Iterator[Ranks]:
    """Join the processes that torchrun started, or be the only one.

    On the CPU the processes of a machine share ``cpus`` threads (never more than PyTorch took).

    Raises
    ------
    BrainLMError
        ``gpus`` asked for and none visible.
    """
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    device = choose_device(options, local)
    if not options.gpus:
        share = options.cpus // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, min(torch.get_num_threads(), share)))
    if world == 1:
        yield Ranks(0, 1, device)
        return
    # gloo too: checkpoints are written from the host, and so is what the first process decides
    dist.init_process_group("cpu:gloo,cuda:nccl" if options.gpus else "gloo",
                            device_id=device if options.gpus else None)  # fmt: skip
    with contextlib.ExitStack() as ending:
        ending.callback(dist.destroy_process_group)
        yield Ranks(dist.get_rank(), world, device, ending)


class TrainingStep(nn.Module):
    """What runs on the device: a forward pass that returns plain tensors, for any wrapper."""

    def __init__(self, model: BrainLM):
        super().__init__()
        self.model = model

    def forward(self, signal: Tensor, masking: Masking) -> tuple[Tensor, ...]:
        """error_sum, count, prediction [B, R, T], pixel_mask [B, R, T], CLS [B, D]."""
        out = self.model(signal, masking)
        return out.error_sum, out.count, out.prediction, out.pixel_mask, out.latent[:, 0]


def prepare_training(model: BrainLM, options: Pretrain, ranks: Ranks,
                     say: Callable[[str], None] = print) -> nn.Module:  # fmt: skip
    """The model ready to train, over all processes: prepared, then sharded."""
    prepare(model, ranks.device, options.precision, options.compile, attention=options.attention,
            checkpointing=options.activation_checkpointing, say=say)  # fmt: skip
    step = TrainingStep(model)
    if ranks.world == 1:
        return step
    if options.sharding == "fsdp":
        return shard_model(step, ranks)
    # buffers are the same everywhere; gradients live in the buckets that are sent
    wrapped = nn.parallel.DistributedDataParallel(
        step, [ranks.device] if ranks.device.type == "cuda" else None,
        broadcast_buffers=False, gradient_as_bucket_view=True,
    )  # fmt: skip
    ranks.ending.callback(_release, wrapped)
    return wrapped


def _release(wrapped: nn.parallel.DistributedDataParallel) -> None:
    """Let go of DDP's reducer while the processes are still joined.

    Left alive it ends gloo's group itself: holding the interpreter's lock, it waits for a thread
    that may be waiting for that lock, and a finished run never ends (seen in 1 of 6).
    """
    del wrapped.logger, wrapped.reducer


def shard_model(step: TrainingStep, ranks: Ranks) -> nn.Module:
    """FSDP2; over several nodes the state is divided within a node and the same in each (HSDP).

    In half precision the blocks work, and are sent, in bf16: the weights that are updated are
    float32, gradients are summed in float32, and so is everything outside the blocks.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh, exact = _mesh(ranks), MixedPrecisionPolicy(cast_forward_inputs=False)
    policy = MixedPrecisionPolicy(
        step.model.matmul_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in step.model.blocks():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(step, mesh=mesh, mp_policy=exact)


def _mesh(ranks: Ranks):
    from torch.distributed.device_mesh import init_device_mesh

    of_node = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world))
    if of_node in (1, ranks.world):
        return init_device_mesh(ranks.device.type, (ranks.world,))
    return init_device_mesh(ranks.device.type, (ranks.world // of_node, of_node),
                            mesh_dim_names=("replicate", "shard"))  # fmt: skip


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
