"""Windows per second from warm shards: our loader next to Hugging Face `datasets`.

    python benchmarks/loader.py [--seconds 5] [--rate 4695 --threads 2]

The peer stores the same recordings as list columns with `datasets`, opens them memory-mapped from
disk, takes one row, cuts a 200-step window and makes a tensor of it, as the published training
code does. `with_format("torch")` is the same with the package's own conversion. Ours also scales,
and draws the noise that decides the mask. All run in one thread, in turns, on the same recordings.

`--shards 320` measures the first touch of so many shards (of 16 recordings, links to four files,
so that the disk has no part in it) instead: opening them, one window of every recording where its
place is looked for and where the release knows it, and the same once more.

The last line is the data wait: the loader feeds a consumer that does nothing but sleep for as long
as a GPU of the given rate would compute (4,695 windows/s: 111M on an H200 at MFU 0.5).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from brainlm.model import PRESETS, BrainLMConfig
from brainlm.model.grids import ImageGrid
from brainlm.model.masking import Masker
from brainlm.shards import Corpus, ParcelQuantiles, Recording, Scaling, ShardInfo, write_shard
from brainlm.shards.store import locate_series
from brainlm.training.windows import Loader, Windows

PARCELS, TIMEPOINTS, WINDOW = 424, 490, 200
TOKENS = 4240


def make(folder: Path, count: int):
    """Our windows, and the peer's dataset, of the same random recordings."""
    import datasets

    datasets.disable_progress_bars()
    random = np.random.default_rng(0)
    info = ShardInfo("bench", "0" * 64, PARCELS, 1.0)
    series = [random.standard_normal((TIMEPOINTS, PARCELS)).astype(np.float32)
              for _ in range(count)]  # fmt: skip
    rows = [Recording(f"sub-{i}", f"sub-{i}", "bench", "train", series=x, sample_period_s=1.0)
            for i, x in enumerate(series)]  # fmt: skip
    write_shard(folder / "bench.parquet", rows, info)
    scaling = Scaling.fit(ParcelQuantiles.of(series[:4], PARCELS), atlas="bench",
                          atlas_sha256="0" * 64, sample_period_s=1.0)  # fmt: skip
    corpus = Corpus([folder / "bench.parquet"])
    datasets.Dataset.from_dict({"recording": series}).save_to_disk(folder / "lists")
    lists = datasets.load_from_disk(folder / "lists")
    return Windows(corpus, scaling, WINDOW, corpus.usable(), num_tokens=TOKENS), lists


def ours(windows: Windows, number: int) -> int:
    windows.batch(windows.stream(number * 16, 16))
    return 16


def peer(lists, number: int) -> int:
    recording = lists[number % len(lists)]["recording"]  # a list of lists, or a tensor
    start = number * 37 % (TIMEPOINTS - WINDOW)
    window = torch.as_tensor(recording[start : start + WINDOW], dtype=torch.float32)
    assert window.T.contiguous().shape == (PARCELS, WINDOW)
    return 1


def measure(call, seconds: float) -> tuple[float, float]:
    """Windows per second of wall and of processor time (the second ignores other programs)."""
    for number in range(4):
        call(number)
    done, number, start, busy = 0, 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        number += 1
        done += call(number)
    return done / (time.perf_counter() - start), done / (time.process_time() - busy)


def data_wait(windows: Windows, rate: float, threads: int, seconds: float) -> float:
    """Share of its time that a consumer of `rate` windows/s waits for batches of 64."""
    shape = BrainLMConfig(num_parcels=PARCELS, window=WINDOW, patch=16, **PRESETS["111m"])
    grid = ImageGrid(shape, torch.zeros(0, 3))
    windows.num_tokens, windows.masker = grid.num_tokens, Masker(grid, 0.75)
    loader = Loader(windows, 64, 64, threads=threads)
    batches = iter(loader)
    next(batches)
    loader.waited_s()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        next(batches)
        time.sleep(64 / rate)
    return loader.waited_s() / (time.perf_counter() - start)


def first_touch(folder: Path, shards: int) -> None:
    """Processor seconds of the first window of every recording, and of the second."""
    random = np.random.default_rng(0)
    info = ShardInfo("bench", "0" * 64, PARCELS, 1.0)
    for number in range(4):
        rows = [Recording(f"sub-{i}", f"sub-{i}", "bench", "train", sample_period_s=1.0,
                          series=random.standard_normal((TIMEPOINTS, PARCELS)))
                for i in range(16)]  # fmt: skip
        write_shard(folder / f"{number:05d}.parquet", rows, info)
    for number in range(4, shards):
        os.link(folder / f"{number % 4:05d}.parquet", folder / f"{number:05d}.parquet")
    scaling = Scaling.fit(ParcelQuantiles.of([row.series for row in rows[:4]], PARCELS),
                          atlas="bench", atlas_sha256="0" * 64, sample_period_s=1.0)  # fmt: skip
    paths = sorted(folder.glob("*.parquet"))
    start = time.process_time()
    corpus = Corpus(paths)
    print(
        f"{shards} shards, {len(corpus)} recordings: {time.process_time() - start:.2f} s to open"
    )
    places = {k: locate_series(path) for k, path in enumerate(paths)}
    for name, known in (("looked for", {}), ("known to the release", places)):
        corpus.places = known
        windows = Windows(corpus, scaling, WINDOW, corpus.usable())
        took = []
        for epoch in range(2):
            start = time.process_time()
            for row in windows.order(epoch):
                windows.series[row][:1]
            took.append(time.process_time() - start)
        print(
            f"{name}: first touch {took[0]:.2f} s ({1e3 * took[0] / shards:.2f} ms a row group), "
            f"warm {took[1]:.3f} s; 61,038 recordings: {took[0] / len(corpus) * 61038:.1f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--recordings", type=int, default=32)
    parser.add_argument("--rate", type=float, default=4695.0, help="windows/s of the consumer")
    parser.add_argument("--threads", type=int, default=2, help="of the loader, for the data wait")
    parser.add_argument("--shards", type=int, default=0, help="measure their first touch instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.shards:
        with tempfile.TemporaryDirectory() as folder:
            first_touch(Path(folder), args.shards)
        return
    with tempfile.TemporaryDirectory() as folder:
        windows, lists = make(Path(folder), args.recordings)
        calls = {
            "ours": lambda n: ours(windows, n),
            "datasets, list column": lambda n: peer(lists, n),
            'datasets, with_format("torch")': lambda n: peer(lists.with_format("torch"), n),
        }
        rates: dict[str, list] = {name: [] for name in calls}
        for _ in range(3):  # in turns: the machine's mood is shared
            for name, call in calls.items():
                rates[name].append(measure(call, args.seconds))
        waiting = data_wait(windows, args.rate, args.threads, args.seconds)
    for name, values in rates.items():
        wall, busy = np.median(np.array(values), axis=0)
        ratio = np.median(np.array(rates["ours"]) / np.array(values), axis=0)
        print(f"{name:31} {wall:9.1f} windows/s, {busy:9.1f} per processor second; "
              f"ours is {ratio[0]:.0f} × by wall, {ratio[1]:.0f} × by processor time")  # fmt: skip
    print(f"data wait at {args.rate:.0f} windows/s, {args.threads} threads: {100 * waiting:.1f} %")


if __name__ == "__main__":
    main()
