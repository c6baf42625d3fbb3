"""What a frozen encoder makes of all windows that it may be shown: made once, for all epochs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from torch import Tensor

from .windows import Picks, Windows


class EncodedWindows:
    """Summaries of every window that an epoch may draw.

    Parameters
    ----------
    windows : Windows
    encode : callable
        Windows [n, R, T] -> summaries [n, F].
    at_once : int
        n, at most. Always the same windows together: a run that is taken up again gets the same
        bits.
    """

    def __init__(self, windows: Windows, encode: Callable[[Tensor], Tensor], at_once: int):
        self.windows = windows
        places = [(int(row), start) for row in windows.rows for start in windows.starts(row)]
        self._slots = {place: slot for slot, place in enumerate(places)}
        groups = [places[first : first + at_once] for first in range(0, len(places), at_once)]
        parts = (encode(windows.read(group)) for group in groups)
        first = next(parts)  # into one tensor: a list of them would take twice the memory
        self.summaries = first.new_empty(len(places), first.shape[1])
        for low, part in zip(range(0, len(places), at_once), chain([first], parts), strict=True):
            self.summaries[low : low + len(part)] = part

    def batch(self, picks: Picks) -> Tensor:
        """[B, F] of the windows that :meth:`Windows.batch` cuts."""
        start = self.windows.start
        return self.summaries[[self._slots[row, start(epoch, row)] for epoch, row in picks]]


def count_windows(windows: Windows) -> int:
    """How many windows the epochs choose from."""
    return sum(len(windows.starts(int(row))) for row in windows.rows)
