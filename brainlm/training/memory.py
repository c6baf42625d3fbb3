"""How many windows a GPU holds at a time, found by trying."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..model import BrainLM
from ..model.masking import Masker

#: share of the memory that a trial may leave full: fragments and other kernels need the rest
FILLED = 0.85


def largest_micro_batch(peak_of: Callable[[int], int], share: int, memory: int) -> int:
    """The most windows, of those that divide `share`, that a forward and backward pass holds.

    Parameters
    ----------
    peak_of : callable
        Bytes in use at the worst moment of training on so many windows; it may raise
        ``torch.OutOfMemoryError``.
    share : int
        Windows of an update that fall to a process.
    memory : int
        Bytes of the device.
    """
    best = 1
    for size in (n for n in range(1, share + 1) if share % n == 0):
        try:
            if peak_of(size) > FILLED * memory:
                break
        except torch.OutOfMemoryError:
            break
        best = size
    return best


def total_memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory


class TrainingTrial:
    """Forward and backward passes on noise; `__call__` gives the bytes that training would need.

    Of a model that is prepared, but not compiled or sharded, which only ever needs less; the
    optimiser's state, which is made at the first update, is added.
    """

    def __init__(self, model: BrainLM, masker: Masker):
        self.model, self.masker = model, masker

    def __call__(self, windows: int) -> int:
        device = next(self.model.parameters()).device
        c = self.model.config
        torch.cuda.empty_cache()  # of the trial before
        torch.cuda.reset_peak_memory_stats(device)
        try:
            signal = torch.randn(windows, c.num_parcels, c.window, device=device)
            masking = self.masker(torch.rand(windows, self.model.num_tokens)).to(device)
            self.model(signal, masking).loss.backward()
            return torch.cuda.max_memory_allocated(device) + optimizer_bytes(self.model)
        finally:
            self.model.zero_grad(set_to_none=True)


def optimizer_bytes(model: nn.Module) -> int:
    """Of two float32 moments a weight."""
    return sum(8 * p.numel() for p in model.parameters())
