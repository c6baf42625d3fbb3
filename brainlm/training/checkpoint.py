"""Checkpoints: one file each, whole or absent; the newest two are kept.

A file holds full (unsharded) tensors, so a run may go on with another number of processes or
another kind of sharding. There is no RNG state and no loader position in it: both are functions
of (seed, step), see windows.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ..files import atomic_path, digest
from .distributed import Ranks

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def save(folder: Path, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer],
         facts: dict[str, Any], ranks: Ranks) -> None:  # fmt: skip
    """Write step-N.pt (every process takes part in gathering, the first one writes)."""
    weights = get_model_state_dict(model, options=_FULL)
    moments = get_optimizer_state_dict(model, optimizers, options=_FULL)
    if ranks.main:
        path = folder / f"step-{step:08d}.pt"
        with atomic_path(path) as temporary:
            torch.save({**facts, "step": step, "model": weights, "optimizer": moments}, temporary)
        for old in list_checkpoints(folder)[2:]:
            old.unlink(missing_ok=True)
    ranks.wait()


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, newest first."""
    return sorted(folder.glob("step-????????.pt"), key=lambda path: path.name, reverse=True)


def exchange(folder: Path, theirs: str, ours: str) -> None:
    """Set checkpoints of other settings aside; take up again what was set aside of ours."""
    for source, target in (
        (folder, folder / f"other-{digest(theirs)}"),
        (folder / f"other-{digest(ours)}", folder),
    ):
        for path in list_checkpoints(source):
            target.mkdir(exist_ok=True)
            path.replace(target / path.name)


def drop_others(folder: Path) -> None:
    """Remove what was set aside, once a model is whole."""
    for other in folder.glob("other-*"):
        shutil.rmtree(other)


def newest(folder: Path, say) -> dict[str, Any] | None:
    """Contents of the newest checkpoint that can be read; a damaged one is named and skipped."""
    paths = list_checkpoints(folder)
    for path in paths:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # truncated or damaged in any way: the one before will do
            then = "starting anew" if path == paths[-1] else "going back to the one before"
            say(f"{path}: damaged checkpoint ({str(error).splitlines()[0]:.80}); {then}")
    return None


def restore(
    state: dict[str, Any], model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Put a checkpoint's tensors into the model and the optimisers."""
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, state["model"], options=options)
    set_optimizer_state_dict(model, optimizers, state["optimizer"], options=options)
