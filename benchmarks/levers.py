"""What makes the masked autoencoder reconstruct more, beside the Gaussian predictors.

    python benchmarks/levers.py SHARD.parquet ... --scaling scaling.json [--external COHORT]
        [--updates 600] [--seeds 1 2 3] [--only gain muon]

`tiny`, windows of 80 points in tokens of 10, updates of 8 windows, 75 % hidden at random, learning
rate 3e-3. Each contestant is the recipe until 2026-11-29 with one thing changed, or with several:

* gain: a window is divided by the root mean square of its visible values;
* muon: the blocks' matrices learn by Muon instead of AdamW;
* path: the network adds to what the Gaussian of the training covariance says, own: to what that
  of the window's own covariance says; its last layer starts at zero;
* queries: with a path, hidden tokens ask with their completed patch and the two beside it in time.

Masked R2 pooled over the windows of test and external participants, the same windows and masks for
all, with paired bootstrap intervals over participants less the Gaussian.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brainlm.config import Evaluate, Pretrain
from brainlm.evaluation.metrics import POOLED, of_sums, sum_values
from brainlm.evaluation.statistics import Sample, add_by_participant
from brainlm.model import BrainLM, preset
from brainlm.model.gaussian import Gaussian
from brainlm.model.grids import token_grid
from brainlm.model.masking import Masker
from brainlm.shards import Corpus, Scaling
from brainlm.training.covariance import fit_gaussian
from brainlm.training.distributed import Ranks
from brainlm.training.schedule import learning_rate_at, make_optimizers
from brainlm.training.windows import Windows

WINDOW, PATCH, BATCH = 80, 10, 8
CONTESTANTS = {
    "recipe": set(), "gain": {"gain"}, "muon": {"muon"}, "both": {"gain", "muon"},
    "path": {"path"}, "path, queries": {"path", "queries"}, "own": {"own", "gain", "muon"},
    "own, queries": {"own", "queries", "gain", "muon"},
}  # fmt: skip


class Asking(nn.Module):
    """Places of the decoder's tokens, and what each token asks with beside its place."""

    def __init__(self, positions: nn.Module, width: int):
        super().__init__()
        self.positions, self.asked = positions, torch.zeros(())
        self.layers = nn.Sequential(nn.Linear(4 * PATCH, 128), nn.GELU(), nn.Linear(128, width))
        nn.init.zeros_(self.layers[-1].weight)

    def forward(self, coordinates: Tensor) -> Tensor:
        return self.positions(coordinates) + self.asked


class Contestant(nn.Module):
    """A tiny model with some of the levers."""

    def __init__(self, parcels: int, levers: set[str], gaussian: Gaussian):
        super().__init__()
        made = preset("tiny", num_parcels=parcels, window=WINDOW, patch=PATCH)
        shape = dataclasses.replace(made.config, gain="gain" in levers)
        self.model, self.gaussian = BrainLM(shape), gaussian
        self.fill = gaussian.fill_own if "own" in levers else gaussian.fill
        self.starts = bool({"path", "own"} & levers)
        if self.starts:
            nn.init.zeros_(self.model.decoder.predict[-1].weight)
        self.asking = None
        if "queries" in levers:
            self.asking = Asking(self.model.decoder.positions, shape.decoder_width)
            self.model.decoder.positions = self.asking

    def forward(self, signal: Tensor, masking) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, prediction and hidden [B, R, T]."""
        if not self.starts:
            out = self.model(signal, masking)
            return out.loss, out.prediction, out.pixel_mask
        grid = self.model.grid
        removed = grid.paste(masking.mask[..., None].expand(-1, -1, PATCH)) | signal.isnan()
        base = self.fill(signal, removed)
        if self.asking is not None:
            unit = signal.masked_fill(removed, 0.0).square().sum((1, 2), keepdim=True)
            unit = (unit / (~removed).sum((1, 2), keepdim=True)).sqrt().clamp(min=1e-2)
            unit = unit if self.model.config.gain else 1.0
            self.asking.asked = self.asking.layers(self._describe(signal, base, removed, unit))
        out = self.model(signal, masking)
        prediction = out.prediction + base
        error = ((prediction - signal) / out.unit)[out.pixel_mask]
        return error.square().mean(), prediction, out.pixel_mask

    @staticmethod
    def _describe(signal: Tensor, base: Tensor, removed: Tensor, unit) -> Tensor:
        """[B, N, 4 P] of each token its completed patch, those beside it, what was expected."""
        full = torch.where(removed, base, signal) / unit
        patches, said = (x.unflatten(2, (-1, PATCH)) for x in (full, base / unit))
        beside = F.pad(patches, (0, 0, 1, 1))
        return torch.cat([patches, beside[:, :, :-2], beside[:, :, 2:], said], -1).flatten(1, 2)


def train(contestant: Contestant, windows: Windows, levers: set[str], updates: int) -> None:
    """As brainlm.training.pretrain does."""
    options = Pretrain(learning_rate=3e-3, optimizer="muon" if "muon" in levers else "adamw")
    options = options.of_preset("tiny")
    optimizers = make_optimizers(contestant, options)
    for step in range(updates):
        batch = windows.batch(windows.stream(step * BATCH, BATCH))
        contestant(batch.signal, batch.masking)[0].backward()
        nn.utils.clip_grad_norm_(contestant.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, updates, options)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


@torch.inference_mode()
def score(predict, corpus: Corpus, scaling: Scaling, rows, masker: Masker) -> np.ndarray:
    """[S, 8] sums of each participant, of ``predict(signal, masking) -> prediction, hidden``."""
    sums = []
    for row in rows:
        series = corpus.scaled(int(row), scaling)
        starts = range(0, len(series) - WINDOW + 1, WINDOW)
        signal = torch.from_numpy(np.stack([series[s : s + WINDOW].T for s in starts]))
        generator = torch.Generator().manual_seed(int(row))
        noise = torch.rand(len(signal), masker.grid.num_tokens, generator=generator)
        prediction, hidden = predict(signal, masker(noise, signal))
        sums.append(sum_values(signal[hidden].numpy(), prediction[hidden].numpy()))
    return add_by_participant(np.stack(sums), corpus.table["participant_id"].to_numpy()[rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="+", type=Path)
    parser.add_argument("--scaling", type=Path, required=True)
    parser.add_argument("--external", help="a cohort that is tested whole")
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    corpus, scaling = Corpus(args.shards), Scaling.load(args.scaling)
    table = corpus.table
    ready = (table["status"] == "ok") & (table["num_timepoints"] >= WINDOW)
    away = table["cohort"] == args.external
    rows = {split: np.flatnonzero(ready & ~away & (table["split"] == split))
            for split in ("train", "validation", "test")}  # fmt: skip
    rows["external"] = np.flatnonzero(ready & away)
    rows = {split: found for split, found in rows.items() if len(found)}
    parcels = corpus.info.num_parcels
    grid = token_grid(preset("tiny", num_parcels=parcels, window=WINDOW, patch=PATCH).config,
                      torch.zeros(0, 3))  # fmt: skip
    masker = Masker(grid, 0.75)

    def windows(split: str, seed: int) -> Windows:
        return Windows(corpus, scaling, WINDOW, rows[split], seed=seed, masker=masker)

    here = torch.device("cpu")
    gaussian = fit_gaussian(windows("train", 0), windows("validation", 0), Ranks(0, 1, here))

    def alone(fill):
        def predict(signal: Tensor, masking):
            removed = grid.paste(masking.mask[..., None].expand(-1, -1, PATCH)) | signal.isnan()
            return fill(signal, removed), removed & ~signal.isnan()

        return predict

    tested = [split for split in ("test", "external") if split in rows]
    lines = {split: score(alone(gaussian.fill), corpus, scaling, rows[split], masker)
             for split in tested}  # fmt: skip

    def show(name: str, seed, split: str, sums: np.ndarray) -> None:
        sample = Sample(len(sums), Evaluate())
        gap = sample.estimate(of_sums("r2", sums)) - sample.estimate(of_sums("r2", lines[split]))
        r2 = POOLED["r2"]
        low, high = gap.interval
        print(f"{name:13} {seed!s:>4} {split:9} R2 {r2(sums.sum(0)):.4f}, less Gaussian "
              f"{gap.value:+.4f} [{low:+.4f}, {high:+.4f}], better in "
              f"{(r2(sums) > r2(lines[split])).mean():.0%}", flush=True)  # fmt: skip

    for name, fill in (("Gaussian", gaussian.fill), ("in time", gaussian.fill_in_time),
                       ("own", gaussian.fill_own)):  # fmt: skip
        for split in tested:
            sums = score(alone(fill), corpus, scaling, rows[split], masker)
            show(name, "", split, sums)
    for name in args.only:
        for seed in args.seeds:
            torch.manual_seed(seed)
            contestant = Contestant(parcels, CONTESTANTS[name], gaussian)
            train(contestant.train(), windows("train", seed), CONTESTANTS[name], args.updates)
            contestant.eval()
            for split in tested:
                sums = score(lambda *x: contestant(*x)[1:], corpus, scaling, rows[split], masker)  # noqa: B023
                show(name, seed, split, sums)


if __name__ == "__main__":
    main()
