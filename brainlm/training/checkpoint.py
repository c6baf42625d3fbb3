"""Checkpoints: a folder each, whole or not counted; the newest two are kept.

Tensors are saved by torch.distributed.checkpoint, in the background and by every process its own
part, as safetensors: nothing is ever unpickled, and a run may go on with another number of
processes or another kind of sharding. ``facts.json`` is written last: a folder without it was
never finished. There is no RNG state and no loader position in it: both are functions of
(seed, step), see windows.py.
"""

from __future__ import annotations

import functools
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ..files import digest, read_json, write_json
from .distributed import Ranks

Optimizers = Sequence[torch.optim.Optimizer]
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_FACTS = "facts.json"
_KEPT = 2
# one process is what we ask for
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


def collect_tensors(model: nn.Module, optimizers: Optimizers) -> dict[str, Tensor]:
    """Weights and moments by name: what a checkpoint of a training holds (each process its part).

    Numbers of the optimisers' groups (learning rates, decay) are of the configuration.
    """
    weights = get_model_state_dict(model)  # first: it gives FSDP its sharded parameters back
    moments = get_optimizer_state_dict(model, list(optimizers), options=_FLAT)
    return {f"model.{k}": v for k, v in weights.items()} | {
        f"optimizer.{k}": v for k, v in moments.items() if isinstance(v, Tensor)
    }


def collect_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights on the host, whole: of the first process only where there are several."""
    return get_model_state_dict(model, options=_WHOLE)


def put_tensors(tensors: dict[str, Tensor], model: nn.Module, optimizers: Optimizers) -> None:
    """The other way round."""

    def of(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    set_model_state_dict(model, of("model."))
    moments = get_optimizer_state_dict(model, list(optimizers), options=_FLAT)
    set_optimizer_state_dict(model, list(optimizers), moments | of("optimizer."), options=_FLAT)


class Saver:
    """Saves a run in the background, a checkpoint at a time."""

    def __init__(self, folder: Path, ranks: Ranks):
        self.folder, self.ranks = folder, ranks
        self._alone = ranks.world == 1
        # of its own: the other thread's messages must not meet those of the training
        self._group = None if self._alone else dist.new_group(backend="gloo")
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        ranks.ending.callback(self._end_writing)

    def save(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Copy `tensors` and write them to step-N in the background.

        Raises
        ------
        OSError
            The checkpoint before this one could not be written.
        """
        self.settle()
        path = self.folder / f"step-{step:08d}"
        self.ranks.from_first(lambda: _clear(path))
        writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
        writing = dcp.async_save(tensors, storage_writer=writer, process_group=self._group,
                                 no_dist=self._alone)  # fmt: skip
        self._writing = self._pool.submit(self._end, writing, path, {**facts, "step": step})

    def settle(self) -> None:
        """Wait until the checkpoint that is being written is whole."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def _end_writing(self) -> None:
        """Of a run that failed: what is being written needs the group until it is whole."""
        if self._writing:
            self._writing.exception()

    def _end(self, writing, path: Path, facts: dict[str, Any]) -> None:
        try:
            writing.result()
        except CheckpointException as error:  # no Exception: nobody would catch it
            raise OSError(f"{path}: could not be written: {_reason(error)}") from None
        if self.ranks.main:
            write_json(path / _FACTS, facts)
            whole = list_checkpoints(self.folder)
            for old in self.folder.glob("step-????????"):
                if old not in whole[:_KEPT]:
                    shutil.rmtree(old)

    def load(self, path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a checkpoint in the shape of `tensors`, which are left as they are."""
        loaded = {name: torch.empty_like(value) for name, value in tensors.items()}
        reader = _Reader(str(path), self.ranks)
        dcp.load(loaded, storage_reader=reader, process_group=self._group, no_dist=self._alone)
        return loaded

    def read_newest(self, make: Callable[[dict[str, Any]], dict[str, Tensor]],
                    say: Callable[[str], None]):  # fmt: skip
        """(facts, tensors) of the newest checkpoint that can be read, or None.

        Given the facts, `make` says which tensors, of which shape. A damaged checkpoint is named
        and skipped. The first process says which there are: listings of others may be old.
        """
        paths = self.ranks.from_first(lambda: list_checkpoints(self.folder))
        for path in paths:
            try:
                facts = self.ranks.from_first(functools.partial(read_checkpoint, path))
                return facts, self.load(path, make(facts))
            except (Exception, CheckpointException) as error:  # damaged in any way
                then = (
                    "starting from the beginning"
                    if path == paths[-1]
                    else "going back to the one before"
                )
                say(f"{path}: damaged checkpoint ({_reason(error):.80}); {then}")
        return None


class _Reader(HuggingFaceStorageReader):
    """What is in the folder is for the first process to say."""

    def __init__(self, path: str, ranks: Ranks):
        super().__init__(path)
        self._ranks = ranks

    def read_metadata(self):
        return self._ranks.from_first(super().read_metadata)


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in `folder`, newest first."""
    return sorted((path.parent for path in folder.glob(f"step-????????/{_FACTS}")), reverse=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds besides tensors."""
    return read_json(path / _FACTS)


def exchange(folder: Path, theirs: str, ours: str) -> None:
    """Move checkpoints of other settings away, and bring back those of ours that were moved."""
    for source, target in (
        (folder, folder / f"other-{digest(theirs)}"),
        (folder / f"other-{digest(ours)}", folder),
    ):
        for path in list_checkpoints(source):
            _clear(target / path.name)
            path.replace(target / path.name)


def _clear(path: Path) -> None:
    """Make room for a checkpoint: what a kill left there is not of this run's processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        shutil.rmtree(path)


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return (str(error).splitlines() or [type(error).__name__])[0]
