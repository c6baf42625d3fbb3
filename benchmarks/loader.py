"""Windows per second from warm shards: our loader beside Hugging Face list columns.

    python benchmarks/loader.py [--seconds 5]

The peer stores the same recordings as nested lists in an Arrow dataset, reads one row, takes a
200-step window and makes a tensor of it, as people do with `datasets` (here: the pyarrow calls
that `datasets` itself makes for a list column, so that the package is not needed). Both run in
one thread, taking turns, on the same recordings.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from brainlm.shards import Corpus, ParcelQuantiles, Recording, Scaling, ShardInfo, write_shard
from brainlm.training.windows import Windows

PARCELS, TIMEPOINTS, WINDOW = 424, 490, 200


def make(folder: Path, count: int) -> tuple[Windows, pa.Table]:
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
    lists = pa.table({"recording": [x.tolist() for x in series]})
    pq.write_table(lists, folder / "lists.parquet")
    table = pq.read_table(folder / "lists.parquet", memory_map=True)
    return Windows(corpus, scaling, WINDOW, corpus.usable(), num_tokens=4240), table


def ours(windows: Windows, number: int) -> int:
    windows.batch(windows.stream(number * 16, 16))
    return 16


def peer(table: pa.Table, number: int) -> int:
    row = table["recording"][number % len(table)].as_py()  # a list of lists
    start = number * 37 % (TIMEPOINTS - WINDOW)
    torch.tensor(row[start : start + WINDOW], dtype=torch.float32).T.contiguous()
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--recordings", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        windows, table = make(Path(folder), args.recordings)
        rates = {"ours": [], "list columns": []}
        for _ in range(3):  # in turns: the machine's mood is shared
            rates["ours"].append(measure(lambda n: ours(windows, n), args.seconds))
            rates["list columns"].append(measure(lambda n: peer(table, n), args.seconds))
    middle = {name: np.median(np.array(values), axis=0) for name, values in rates.items()}
    for name, (wall, busy) in middle.items():
        print(f"{name:14} {wall:9.1f} windows/s, {busy:9.1f} per processor second")
    ratio = np.median(np.array(rates["ours"]) / np.array(rates["list columns"]), axis=0)
    print(f"ratio: {ratio[0]:.0f} by wall time, {ratio[1]:.0f} by processor time")


if __name__ == "__main__":
    main()
