"""Do our presets reconstruct at least as well as the published layouts, at the same steps?

    python benchmarks/presets.py shards/*.parquet --scaling scaling.json --seeds 3

Trains pairs of small models on the training recordings of some shards, same width, depth, seeds,
windows, masks and updates, and compares the masked R2 on the validation recordings:

* parcel family: ours (pre-norm, Fourier places, no convolution, decoder that looks at the visible
  tokens) against the published layers (post-norm, convolution over the values, linear places);
* image family: the rectangular grid against the padded square.

Prints one line per run and, per family, the mean difference with its 95 % interval over seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch

from brainlm.model import BrainLM, BrainLMConfig
from brainlm.shards import Corpus, Scaling
from brainlm.training.metrics import MaskedR2
from brainlm.training.schedule import make_optimizer
from brainlm.training.windows import Windows, choose_rows

SMALL = {"width": 64, "depth": 2, "heads": 2, "ffn": 128, "decoder_width": 64, "decoder_depth": 1,
         "decoder_heads": 2, "decoder_ffn": 128}  # fmt: skip


def configurations(parcels: int, window: int, coordinates: bool) -> dict[str, BrainLMConfig]:
    parcel = BrainLMConfig("parcel", parcels, window, 20, **SMALL, has_coordinates=coordinates,
                           decoder_context="visible")  # fmt: skip
    image = BrainLMConfig("image", parcels, window, 20, **SMALL)
    side = -(-max(parcels, window) // 16) * 16
    return {
        "parcel ours": parcel,
        "parcel published": dataclasses.replace(
            parcel, decoder_context="all", pre_norm=False, convolution=65, fourier_places=False,
            position_dropout=0.1, coordinate_unit_mm=1.0, learned_parcels=not coordinates,
            eps=1e-12,
        ),
        "image rectangular": image,
        "image square": dataclasses.replace(
            image, patch=16, image_size=(side, side), pad_value=-1.0),
    }  # fmt: skip


def train(config: BrainLMConfig, data: tuple[Corpus, Scaling, np.ndarray | None], seed: int,
          updates: int, batch: int) -> tuple[float, float]:  # fmt: skip
    """Masked R2 on held-out recordings, and seconds."""
    corpus, scaling, points = data
    torch.manual_seed(seed)
    model = BrainLM(config, points if config.has_coordinates else None)
    rows, _ = choose_rows(corpus, config.window, "train")
    windows = Windows(corpus, scaling, config.window, rows, seed=seed,
                      num_tokens=model.num_tokens)  # fmt: skip
    optimizer = make_optimizer(model, 2e-3, 0.05)
    start = time.perf_counter()
    for step in range(updates):
        rate = min(1.0, (step + 1) / (0.1 * updates)) * 0.5 * (1 + np.cos(np.pi * step / updates))
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * rate
        part = windows.batch(windows.stream(step * batch, batch))
        model(part.signal, noise=part.noise).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - start
    return held_out(model.eval(), corpus, windows), seconds


@torch.no_grad()
def held_out(model: BrainLM, corpus: Corpus, windows: Windows) -> float:
    meter = MaskedR2()
    for row in corpus.usable(split="validation", min_timepoints=model.config.window):
        part = windows.batch([(0, int(row))])
        out = model(part.signal, noise=part.noise)
        meter.add(part.signal, out.pixel_mask, out.prediction)
    return meter.result()["r2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="+", type=Path)
    parser.add_argument("--scaling", type=Path, required=True)
    parser.add_argument("--coordinates", type=Path, help="index x y z, as in the atlas folder")
    parser.add_argument("--window", type=int, default=200)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--family", choices=("parcel", "image"), default=None)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    points = np.loadtxt(args.coordinates)[:, 1:] if args.coordinates else None
    corpus = Corpus(args.shards)
    data = (corpus, Scaling.load(args.scaling), points)
    named = configurations(corpus.info.num_parcels, args.window, points is not None)
    named = {k: v for k, v in named.items() if args.family in (None, k.split()[0])}
    scores: dict[str, list[float]] = {name: [] for name in named}
    for seed in range(args.seeds):
        for name, config in named.items():
            r2, seconds = train(config, data, seed, args.updates, args.batch)
            scores[name].append(r2)
            print(f"seed {seed} {name:18} R2 {r2:.4f} {seconds:6.1f} s", flush=True)
    names = list(named)
    for ours, other in zip(names[::2], names[1::2], strict=True):
        gain = np.array(scores[ours]) - np.array(scores[other])
        half = 1.96 * gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else float("nan")
        print(f"{ours} minus {other}: {gain.mean():+.4f} ± {half:.4f} over {len(gain)} seeds")


if __name__ == "__main__":
    main()
