"""Do our presets reconstruct at least as well as the published layouts, at the same steps?

    python benchmarks/presets.py SHARD.parquet ... --scaling scaling.json

Small models of equal width and depth are trained on the same windows, in the same order, for the
same number of updates:

* parcel family: our preset (pre-norm, no convolution, Fourier places where there are coordinates,
  decoder whose keys are the visible tokens), the same with a decoder over all tokens, and the
  published layers (post-norm, convolution over the values, decoder over all tokens);
* image family: our rectangular grid, of 16 x 16 patches as is the default and of 16 x 20, the same
  with a decoder whose keys are the visible tokens, of all hidden tokens or of a quarter of them,
  and the published one of 16 x 16 padded with -1 to a square. The window is chosen so that padding
  is the same share of the square as in the published 432 x 432 image.

Each has its own learning rate: the first seed tries all of them, and the best on the validation
participants is kept for the other seeds. Masked R2 is compared on the test participants, paired by
seed, with Student intervals over seeds. Cost is processor seconds per training window.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from brainlm import config
from brainlm.files import write_text
from brainlm.model import BrainLM, BrainLMConfig
from brainlm.model.masking import Masker
from brainlm.model.published import PARCEL
from brainlm.shards import Corpus, Scaling
from brainlm.training.masked_r2 import MaskedR2
from brainlm.training.schedule import learning_rate_at, make_optimizer, update_weights
from brainlm.training.windows import Windows, choose_rows

#: per family: (depth, decoder depth, time points per token)
SIZES = {"parcel": (2, 1, 24), "image": (4, 2, 16)}


def contestants(family: str, parcels: int, window: int, points: bool) -> dict[str, BrainLMConfig]:
    """By name; the first is ours, the last the published form."""
    depth, decoder_depth, patch = SIZES[family]
    ours = BrainLMConfig(
        family, parcels, window, patch, width=64, depth=depth, heads=2, ffn=256, decoder_width=64,
        decoder_depth=decoder_depth, decoder_heads=2, decoder_ffn=256, has_coordinates=points,
        decoder_context="visible" if family == "parcel" else "all",
    )  # fmt: skip
    if family == "image":
        side = -(-max(parcels, window) // 16) * 16
        square = dataclasses.replace(ours, image_size=(side, side), pad_value=-1.0)
        wide = dataclasses.replace(ours, patch=patch * 5 // 4)
        visible = dataclasses.replace(ours, decoder_context="visible")
        quarter = dataclasses.replace(visible, decode_share=0.25)
        return {"a quarter decoded": quarter, "visible keys": visible, "rectangular 16x20": wide,
                "rectangular 16x16": ours, "padded square": square}  # fmt: skip
    every = dataclasses.replace(ours, decoder_context="all")
    published = dataclasses.replace(every, **PARCEL | {"learned_parcels": not points})
    return {"visible keys": ours, "all keys": every, "published layers": published}


class Data:
    """Training windows, and the participants who are held out."""

    def __init__(self, shards: list[Path], scaling: Path, window: int, coordinates: Path | None):
        self.corpus, self.scaling, self.window = Corpus(shards), Scaling.load(scaling), window
        self.points = None if coordinates is None else np.loadtxt(coordinates)[:, 1:]
        self.rows = {s: choose_rows(self.corpus, window, s)[0]
                     for s in ("train", "validation", "test")}  # fmt: skip

    def windows(self, split: str, seed: int, model: BrainLM) -> Windows:
        return Windows(self.corpus, self.scaling, self.window, self.rows[split], seed=seed,
                       masker=Masker(model.grid, 0.75))  # fmt: skip


def train(shape: BrainLMConfig, data: Data, seed: int, options: config.Pretrain, updates: int):
    """One small model: validation R2, test R2, processor seconds per window."""
    torch.manual_seed(seed)
    model = BrainLM(shape, data.points if shape.has_coordinates else None)
    windows = data.windows("train", seed, model)
    optimizer = make_optimizer(model, options.learning_rate, options.weight_decay)
    start, size = time.process_time(), options.batch_size
    for step in range(updates):
        batch = windows.batch(windows.stream(step * size, size))
        model(batch.signal, batch.masking).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update_weights([optimizer], learning_rate_at(step, updates, options))
    cost = (time.process_time() - start) / (updates * size)
    return *(held_out(model.eval(), data, split) for split in ("validation", "test")), cost


@torch.no_grad()
def held_out(model: BrainLM, data: Data, split: str) -> float:
    """Masked R2 of one window of each participant, the same for every contestant."""
    windows, meter = data.windows(split, 0, model), MaskedR2()
    for part in np.array_split(windows.rows, -(-len(windows) // 16)):
        batch = windows.batch([(0, int(row)) for row in part])
        out = model(batch.signal, batch.masking)
        meter.add(batch.signal, out.pixel_mask, out.prediction)
    return meter.result()["r2"]


def interval(values) -> str:
    """Mean and 95 % Student interval."""
    values = np.asarray(values, float)
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{values.mean():+.3f} [{values.mean() - half:+.3f}, {values.mean() + half:+.3f}]"


def run_family(named: dict[str, BrainLMConfig], data: Data, args) -> pd.DataFrame:
    """A row per seed and contestant, each at its best rate of the first seed."""
    rows, rates = [], dict.fromkeys(named, args.rates)
    for seed in range(args.seeds):
        for name, shape in named.items():
            tried = []
            for rate in rates[name]:
                options = config.Pretrain(learning_rate=rate, batch_size=args.batch)
                found = train(shape, data, seed, options, args.updates)
                row = dict(zip(("validation", "test", "cost"), found, strict=True))
                tried.append(row | {"seed": seed, "name": name, "rate": rate})
                print(tried[-1], flush=True)
            rows.append(max(tried, key=lambda row: row["validation"]))
            rates[name] = [rows[-1]["rate"]]
    return pd.DataFrame(rows)


def summarise(runs: pd.DataFrame) -> list[str]:
    """Markdown rows of one family: each contestant next to the published form."""
    parts = dict(list(runs.groupby("name", sort=False)))
    base, lines = list(parts.values())[-1], []
    for name, part in parts.items():
        gain, speed = "", ""
        if part is not base:
            gain = interval(part["test"].to_numpy() - base["test"].to_numpy())
            speed = f"{np.median(base['cost'].to_numpy() / part['cost'].to_numpy()):.1f} ×"
        lines.append(f"| {name} | {part['rate'].iloc[0]:g} | {interval(part['test'])} | {gain} "
                     f"| {1e3 * part['cost'].median():.1f} | {speed} |")  # fmt: skip
    return lines


HEAD = ["| contestant | rate | masked R², test participants | minus the last row | ms per window "
        "| speed |", "|---|---|---|---|---|---|"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="+", type=Path)
    parser.add_argument("--scaling", type=Path, required=True)
    parser.add_argument("--coordinates", type=Path, help="index x y z, as in the atlas folder")
    parser.add_argument("--window", type=int, default=96)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--family", choices=tuple(SIZES), nargs="+", default=list(SIZES))
    parser.add_argument("--contestants", nargs="+", help="some of them; the last is the base")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="markdown file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = Data(args.shards, args.scaling, args.window, args.coordinates)
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in data.rows.items())
    text = [f"# Presets and the published forms, {datetime.date.today()}", "",
            f"`{shlex.join(['python', 'benchmarks/presets.py', *sys.argv[1:]])}`", "",
            f"{data.corpus.info.num_parcels} parcels, window {args.window}, "
        f"{counts} participants; "
            f"{args.updates} updates of {args.batch} windows, mask 0.75, {args.seeds} seeds.",
            ""]  # fmt: skip
    for family in args.family:
        named = contestants(family, data.corpus.info.num_parcels, args.window,
                            data.points is not None)  # fmt: skip
        if args.contestants:
            named = {name: named[name] for name in args.contestants}
        runs = run_family(named, data, args)
        text += [f"## {family.capitalize()} family", "", *HEAD, *summarise(runs), ""]
    print("\n".join(text))
    if args.out:
        write_text(args.out, "\n".join(text))


if __name__ == "__main__":
    main()
