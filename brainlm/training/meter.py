"""Loss, masked R², rates and MFU between two log lines."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from .distributed import Ranks
from .journal import peak_flops
from .masked_r2 import MaskedR2
from .windows import Batch


class Rates(NamedTuple):
    """What a log line says of the updates since the one before.

    Attributes
    ----------
    loss : float
        Mean over all removed, known values.
    r2 : float or None
        Of the same values.
    windows_per_s : float
        While it trained: validation and saving are apart, see :class:`Spent`.
    data_wait : float
        Share of the training's time that was spent waiting for data.
    mfu : float or None
        Share of the device's peak; None where that is not known.
    """

    loss: float
    r2: float | None
    windows_per_s: float
    data_wait: float
    mfu: float | None


class Spent:
    """The wall clock of a run, from its start, by what it was spent on.

    Parameters
    ----------
    before : dict of float
        Seconds by kind of the same run before it was interrupted.
    """

    KINDS = ("starting", "training", "validation", "data", "saving")

    def __init__(self, device: torch.device, before: dict[str, float] | None = None):
        self._device, self._began = device, time.monotonic()
        self.seconds = dict.fromkeys(self.KINDS, 0.0) | (before or {})
        self._others = sum(self.seconds.values())

    def add(self, kind: str, seconds: float) -> None:
        self.seconds[kind] += seconds

    @contextlib.contextmanager
    def on(self, kind: str) -> Iterator[None]:
        """Count what is done here as `kind`."""
        if self._device.type == "cuda":  # what was asked of it before belongs to the training
            torch.cuda.synchronize(self._device)
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(kind, time.monotonic() - start)

    def total(self) -> float:
        """Seconds since the start, all interruptions left out."""
        return self._others + time.monotonic() - self._began

    def by_kind(self) -> dict[str, float]:
        """Seconds by kind; the training's are what is left, so their sum is the wall clock."""
        others = sum(s for kind, s in self.seconds.items() if kind != "training")
        return self.seconds | {"training": self.total() - others}

    def shares(self) -> str:
        """For a line of text: ``training 93% validation 4% ...``."""
        by_kind = self.by_kind()
        total = max(sum(by_kind.values()), 1e-9)
        return " ".join(f"{kind} {100 * s / total:.1f}%" for kind, s in by_kind.items())


class Meter:
    """Sums over updates; reads the device only where a line is due.

    Attributes
    ----------
    norm : Tensor []
        Of the last update's gradients.
    """

    def __init__(self, ranks: Ranks, windows_per_update: int, flops_per_window: float):
        self.ranks, self.windows_per_update = ranks, windows_per_update
        peak = peak_flops(device_name(ranks))
        self._flops_share = 3 * flops_per_window / peak / ranks.world if peak else None
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

    def end(self, waited_s: float, due: bool) -> Rates | None:
        """After each update; rates where a line is `due`."""
        sums = self.ranks.sum(self.sums).tolist() if due else []  # a GPU has caught up after this
        self.busy += time.perf_counter() - self._start
        self.windows += self.windows_per_update
        self.waited += waited_s
        if not due:
            return None
        error, known = sums
        rate = self.windows / self.busy
        mfu = None if self._flops_share is None else rate * self._flops_share
        r2 = self.r2.result(self.ranks.sum)["r2"]
        rates = Rates(error / max(known, 1), r2, rate, self.waited / self.busy, mfu)
        self._reset()
        return rates


def device_name(ranks: Ranks) -> str:
    """The GPU's name, or the processor's kind and threads."""
    if ranks.device.type == "cuda":
        return torch.cuda.get_device_name(ranks.device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
