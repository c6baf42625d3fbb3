"""Loss, masked R², rates and MFU of a run between two log lines."""

from __future__ import annotations

import math
import platform
import time
from typing import TYPE_CHECKING

import torch

from ..errors import BrainLMError
from .distributed import Ranks
from .journal import clock, figure, peak_flops
from .masked_r2 import MaskedR2
from .windows import Batch, Loader

if TYPE_CHECKING:
    from .pretrain import Run


class Meter:
    """Loss, masked R² and rates between two log lines; reads the device only to log."""

    def __init__(self, run: Run):
        self.run = run
        self.every = max(1, run.steps // 200)
        flops = run.model.flops_per_window(run.options.mask_ratio)
        peak = peak_flops(device_name(run.ranks))
        self._flops_share = 3 * flops / peak / run.ranks.world if peak else None
        self.norm = torch.zeros(())
        self._reset()

    def _reset(self) -> None:
        self.r2, self.sums = MaskedR2(), 0.0
        self.busy, self.waited, self.windows = 0.0, 0.0, 0

    def begin(self) -> None:
        self._start = time.perf_counter()

    def add(self, batch: Batch, error, known, rest) -> None:
        self.r2.add(batch.signal, rest[1], rest[0])
        self.sums = self.sums + torch.stack([error.double(), known.double()])

    def end(self, loader: Loader) -> None:
        """After each update; every few of them one line."""
        run, due = self.run, self.run.step % self.every == 0 or self.run.step == self.run.steps
        sums = run.ranks.sum(self.sums).tolist() if due else []  # a GPU has caught up after this
        took = time.perf_counter() - self._start
        self.busy += took
        run.seconds += took
        self.windows += run.options.batch_size
        self.waited += loader.waited_s()
        if not due:
            return
        error, known = sums
        if not math.isfinite(error):
            raise BrainLMError(f"update {run.step}: the loss is not finite; lower "
                               "pretrain.learning_rate or look for broken series")  # fmt: skip
        loss, r2 = error / max(known, 1), self.r2.result(run.ranks.sum)["r2"]
        rate = self.windows / self.busy
        self._log(loss, r2, rate, self.waited / self.busy)
        self._reset()

    def _log(self, loss: float, r2: float | None, rate: float, waiting: float) -> None:
        run = self.run
        epoch = run.passes()
        lr = run.optimizer.param_groups[0]["lr"]
        mfu = None if self._flops_share is None else rate * self._flops_share
        run.journal.record(step=run.step, epoch=epoch, split="train", loss=loss, r2=r2,
                           windows_per_s=rate, data_wait=waiting, mfu=mfu, lr=lr,
                           seconds=run.seconds)  # fmt: skip
        left = (run.steps - run.step) * run.options.batch_size / rate
        run.journal.progress(
            run.step, run.steps,
            f"update {run.step}/{run.steps} epoch {epoch:.1f} loss {loss:.4f} R² {figure(r2)} "
            f"{rate:.3g} windows/s MFU {figure(mfu, 2)} data-wait {100 * waiting:.1f}% "
            f"ETA {clock(left)}", force=run.step == run.steps,
        )  # fmt: skip


def device_name(ranks: Ranks) -> str:
    """The GPU's name, or the processor's kind and threads."""
    if ranks.device.type == "cuda":
        return torch.cuda.get_device_name(ranks.device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
