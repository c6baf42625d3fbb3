"""Windows of scaled series, read from memory-mapped shards.

Everything random about a window is a function of (seed, epoch, recording): where it starts and
which of its tokens are hidden. The order of windows is a function of (seed, epoch). So neither
the number of processes nor a restart changes what the model sees.
"""

from __future__ import annotations

import functools
import mmap
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..errors import BrainLMError
from ..model.masking import Masker, Masking
from ..model.ranges import describe_range
from ..shards import Corpus, Scaling
from ..shards.censored import (
    censored_shares,
    holds_window,
    list_starts,
    parcels_with_data,
    spread_evenly,
)
from ..shards.store import locate_series

#: recordings that are opened to say what share of the parcels they have
RANGED = 2000
#: (epoch, row of the corpus) of each window of a batch
Picks = list[tuple[int, int]]


@dataclass
class Batch:
    """B windows.

    Attributes
    ----------
    signal : Tensor [B, R, T] float32
        Scaled; NaN where there is no data (a parcel, or censored time).
    noise : Tensor [B, N] float32
        One number per token, to choose tokens by; empty if N is 0.
    rows : ndarray [B]
        Rows of the corpus.
    masking : Masking, optional
        Which tokens the encoder sees, where the windows were asked for with a masker.
    """

    signal: Tensor
    noise: Tensor
    rows: np.ndarray
    masking: Masking | None = None


class MappedSeries:
    """Series of a corpus as views of the mapped files: one window costs one window.

    A shard's series column is stored plain, so a series is a run of bytes in the file. Where it
    starts the release knows; of other shards it is found on their first touch. Pages live in the
    system's file cache, not in this process. A shard that another program wrote compressed is
    read through :class:`Corpus` instead.
    """

    def __init__(self, corpus: Corpus):
        self.corpus, self.num_parcels = corpus, corpus.info.num_parcels
        table = corpus.table
        self._shard, self._row = table["shard"].to_numpy(), table["row"].to_numpy()
        self._dtype = [np.dtype(name if isinstance(name, str) else "f4")
                       for name in table["series_dtype"]]  # fmt: skip
        self.num_timepoints = table["num_timepoints"].to_numpy()
        self._places = dict(corpus.places)
        self._maps: dict[int, mmap.mmap] = {}

    def __getitem__(self, index: int) -> np.ndarray:
        """[T, R], stored dtype, read-only."""
        shard = int(self._shard[index])
        if shard not in self._maps:
            with open(self.corpus.paths[shard], "rb") as handle:
                self._maps[shard] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        if shard not in self._places:
            self._places[shard] = locate_series(self.corpus.paths[shard])
        place, dtype = int(self._places[shard][self._row[index]]), self._dtype[index]
        if place < 0:
            return self.corpus.series(index)
        count = int(self.num_timepoints[index]) * self.num_parcels
        size, mapped = count * dtype.itemsize, self._maps[shard]
        if mapped[place - 4 : place] != size.to_bytes(4, "little"):
            raise BrainLMError(f"{self.corpus.paths[shard]}: not the shard that its release was "
                               "frozen with; set a new release name in config.yaml")  # fmt: skip
        return np.frombuffer(mapped, dtype, count, place).reshape(-1, self.num_parcels)


class Windows:
    """Windows of some recordings of a corpus.

    Parameters
    ----------
    corpus : Corpus
    scaling : Scaling
        Of the model; applied as windows are read.
    window : int
        T, time points.
    rows : array of int
        Which recordings; each must hold a window (:func:`brainlm.shards.censored.holds_window`).
    seed : int
    num_tokens : int
        N of the model, for noise; 0 gives none.
    masker : Masker, optional
        Draws a masking for each batch, here on the host, where nothing waits for the data.
    few : int, optional
        An epoch's window is one of so many, spread evenly over its recording; else it may begin
        anywhere.
    """

    def __init__(self, corpus: Corpus, scaling: Scaling, window: int, rows, *, seed: int = 0,
                 num_tokens: int = 0, masker: Masker | None = None,
                 few: int | None = None):  # fmt: skip
        corpus.check(scaling)
        self.few = few
        self.rows = np.asarray(rows, np.int64)
        self.window, self.seed, self.masker = window, seed, masker
        self.num_tokens = masker.grid.num_tokens if masker else num_tokens
        self.series = MappedSeries(corpus)
        self._order = (-1, self.rows)
        table = corpus.table
        self._censored = table["censored"].to_numpy(object)
        names = table["cohort"].str.cat(table["recording_id"], sep="/")
        self._keys = np.array([zlib.crc32(name.encode()) for name in names], np.int64)
        usable = scaling.usable
        self._median = torch.from_numpy(np.where(usable, scaling.median, np.nan)).float()
        self._scale = torch.from_numpy(1 / np.where(usable, scaling.iqr, np.nan)).float()

    def __len__(self) -> int:
        return len(self.rows)

    def order(self, epoch: int) -> np.ndarray:
        """The recordings' rows in this epoch's order; the last one is kept, an update asks for
        a piece of it."""
        if self._order[0] != epoch:
            dice = np.random.default_rng([self.seed, epoch])
            self._order = (epoch, self.rows[dice.permutation(len(self.rows))])
        return self._order[1]

    def stream(self, first: int, count: int) -> list[tuple[int, int]]:
        """(epoch, row) of windows `first` .. `first + count` of the endless run of epochs."""
        out: list[tuple[int, int]] = []
        while len(out) < count:
            epoch, start = divmod(first + len(out), len(self))
            part = self.order(epoch)[start : start + count - len(out)]
            out.extend((epoch, int(row)) for row in part)
        return out

    def batch(self, picks: Picks, *, pin: bool = False) -> Batch:
        """Random windows of the given (epoch, row) pairs; `pin`: in page-locked memory, from
        which a GPU copies without waiting."""
        shape = (len(picks), self.series.num_parcels, self.window)
        signal = torch.empty(shape, pin_memory=pin)
        noise = torch.empty(len(picks), self.num_tokens, pin_memory=pin)
        sums = torch.empty(len(picks))
        for slot, (epoch, row) in enumerate(picks):
            random, start = self._draw(epoch, row)
            self._fill(signal[slot], row, start)
            random.random(out=noise[slot].numpy(), dtype=np.float32)
            torch.sum(signal[slot], (0, 1), out=sums[slot])  # NaN if any is, still in the cache
        rows = np.array([row for _, row in picks])
        if self.masker is None:
            return Batch(signal, noise, rows)
        masking = self.masker(noise, signal if sums.isnan().any() else None)
        return Batch(signal, noise, rows, masking.pin_memory() if pin else masking)

    def _draw(self, epoch: int, row: int) -> tuple[np.random.Generator, int]:
        """Where an epoch's window of a recording begins, and the dice that said so."""
        random = np.random.default_rng([self.seed, epoch, self._keys[row]])
        starts = self.starts(row)
        return random, int(starts[int(random.integers(len(starts)))])

    def start(self, epoch: int, row: int) -> int:
        """Where an epoch's window of a recording begins."""
        return self._draw(epoch, row)[1]

    def starts(self, row: int) -> Sequence[int]:
        """Where a recording's windows may begin."""
        possible = self._possible(row)
        return possible if self.few is None else spread_evenly(possible, self.few)

    def _possible(self, row: int) -> Sequence[int]:
        return list_starts(int(self.series.num_timepoints[row]), self._censored[row], self.window)

    def read(self, places: Sequence[tuple[int, int]]) -> Tensor:
        """[n, R, T] the windows at (row, start)."""
        signal = torch.empty(len(places), self.series.num_parcels, self.window)
        for slot, (row, start) in enumerate(places):
            self._fill(signal[slot], row, start)
        return signal

    def whole(self, row: int) -> np.ndarray:
        """[T, R] float32, one recording, scaled."""
        stored = self.series[row].astype(np.float32)
        return (stored - self._median.numpy()) * self._scale.numpy()

    def even(self, row: int, count: int) -> Tensor:
        """[count, R, T] windows spread evenly over one recording, for evaluation."""
        return self.read([(row, start) for start in spread_evenly(self._possible(row), count)])

    def cover(self, row: int, most: int = 3) -> Tensor:
        """[K, R, T] as many windows as fit without overlap, `most` at most, spread evenly (around
        censored time, where they may overlap)."""
        return self.even(row, min(most, int(self.series.num_timepoints[row]) // self.window))

    def _fill(self, out: Tensor, row: int, start: int) -> None:
        """Scale one window into `out` [R, T]."""
        stored = self.series[row][start : start + self.window]
        half = torch.from_numpy(np.array(stored.T, order="C"))  # transposed while it is small
        out.copy_(half).sub_(self._median[:, None]).mul_(self._scale[:, None])


class Prefetch:
    """Batches made ahead of time by a few threads, in order; holds at most `ahead` of them.

    Attributes
    ----------
    waited_s : float
        Time that the consumer spent waiting for data.
    """

    def __init__(self, make: Callable[[Picks], Batch], picks: Iterator[Picks], *,
                 threads: int = 1, ahead: int = 4):  # fmt: skip
        self._make, self._picks = make, picks
        self._pool = ThreadPoolExecutor(threads, "windows")
        self._queue: list[Future[Batch]] = []
        self._ahead = ahead
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[Batch]:
        try:
            while True:
                while len(self._queue) < self._ahead:
                    picks = next(self._picks, None)
                    if picks is None:
                        break
                    self._queue.append(self._pool.submit(self._make, picks))
                if not self._queue:
                    return
                start = time.perf_counter()
                batch = self._queue.pop(0).result()
                self.waited_s += time.perf_counter() - start
                yield batch
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)


class Loader:
    """The micro-batches of one process, update by update, from a position that can be saved.

    Parameters
    ----------
    windows : Windows
    size : int
        Windows per update over all processes.
    micro : int
        Windows per batch; process `rank` of `world` takes every `world`-th batch of an update.
    threads : int
    pin : bool
        See :meth:`Windows.batch`.
    """

    def __init__(self, windows: Windows, size: int, micro: int, rank: int = 0, world: int = 1, *,
                 threads: int = 1, pin: bool = False):  # fmt: skip
        self.windows, self.size, self.micro = windows, size, micro
        self.rank, self.world, self.updates = rank, world, 0
        make = functools.partial(windows.batch, pin=pin)
        self.batches = Prefetch(make, self._picks(), threads=threads)

    def state_dict(self) -> dict[str, int]:
        """Where the next update begins; nothing else is random (the order is a function)."""
        return {"seed": self.windows.seed, "recordings": len(self.windows),
                "windows": self.updates * self.size}  # fmt: skip

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved position; call it before the first batch is taken."""
        if (state["seed"], state["recordings"]) != (self.windows.seed, len(self.windows)):
            raise BrainLMError(
                f"the loader's position is in an order of {state['recordings']} recordings with "
                f"seed {state['seed']}, found {len(self.windows)} with seed {self.windows.seed}"
            )
        self.updates, rest = divmod(state["windows"], self.size)
        if rest:
            raise BrainLMError(f"the loader's position ({state['windows']} windows) is not at a "
                               f"multiple of the batch size ({self.size})")  # fmt: skip

    def __iter__(self) -> Iterator[Batch]:
        share = self.size // (self.micro * self.world)
        for number, batch in enumerate(self.batches, 1):
            if number % share == 0:
                self.updates += 1
            yield batch

    def _picks(self) -> Iterator[Picks]:
        update = self.updates
        while True:
            picks = self.windows.stream(update * self.size, self.size)
            for first in range(self.rank * self.micro, self.size, self.world * self.micro):
                yield picks[first : first + self.micro]
            update += 1

    def waited_s(self) -> float:
        """Seconds that the consumer waited for data since this was last asked."""
        waited, self.batches.waited_s = self.batches.waited_s, 0.0
        return waited


def choose_rows(corpus: Corpus, window: int, split: str) -> tuple[np.ndarray, dict[str, int]]:
    """Rows of a split that hold a window, and how many others were left out and why.

    Raises
    ------
    BrainLMError
        The split has recordings, and none is long enough.
    """
    table = corpus.table[corpus.table["split"] == split]
    rows = corpus.usable(split=split, min_timepoints=window)
    left_out = table["status"][table["status"] != "ok"].value_counts().to_dict()
    usable = table[table["status"] == "ok"]
    short = int((usable["num_timepoints"] < window).sum())
    if short:
        left_out[f"shorter than the window of {window} time points"] = short
    if censored := int((~holds_window(usable, window)).sum()) - short:
        left_out[f"without a window of {window} time points that is half uncensored"] = censored
    if len(rows) == 0 and len(usable):
        longest = usable.loc[usable["num_timepoints"].idxmax()]
        raise BrainLMError(
            f"no {split} recording has the {window} time points of a window; the longest is "
            f"{longest['recording_id']} with {longest['num_timepoints']}: set model.window to at "
            "most that (a multiple of model.patch)"
        )
    return rows, {str(k): int(v) for k, v in left_out.items()}


def training_ranges(windows: Windows, table: pd.DataFrame) -> dict[str, tuple[float, ...]]:
    """What the recordings of `windows` range over, see :class:`brainlm.model.BrainLMConfig`."""
    rows = windows.rows
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), RANGED)).astype(int)]
    found = {
        "repetition_time_s": table["repetition_time_s"][rows],
        "mean_fd_mm": table["mean_fd_mm"][rows],
        "censored_share": censored_shares(table.loc[rows]),
        "coverage": [parcels_with_data(windows.series[row]).mean() for row in some],
    }
    ranges = {name: describe_range(values) for name, values in found.items()}
    return {name: five for name, five in ranges.items() if five is not None}
