"""What makes the masked autoencoder reconstruct more, next to the Gaussian predictors.

    python benchmarks/levers.py SHARD.parquet ... --scaling scaling.json --out FOLDER
        [--external COHORT] [--updates 600] [--seeds 1 2 3] [--only heads width]

`tiny`, windows of 80 points in tokens of 10, updates of 8 windows, 75 % hidden at random, learning
rate 3e-3. Each contestant is the recipe (gain, Muon, parcels that start from the covariance) with
one thing changed, or with several: see :data:`LEVERS`. The same windows and masks for all.

Prints masked R2 pooled over the windows of validation, test and external participants, less the
Gaussian and less the recipe of the same seed and number of updates, with paired bootstrap
intervals over participants. FOLDER keeps sums and models: what is there is not trained again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field, replace
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
from brainlm.model.masking import Masker, Masking
from brainlm.shards import Corpus, Scaling
from brainlm.training.covariance import fit_gaussian
from brainlm.training.distributed import Ranks
from brainlm.training.schedule import learning_rate_at, make_optimizers, update_weights
from brainlm.training.windows import Windows

WINDOW, PATCH, BATCH, RATIO = 80, 10, 8, 0.75
#: of an objective that is added to the loss
SHARE = 0.1


@dataclass(frozen=True)
class Lever:
    """What a contestant does otherwise than the recipe."""

    shape: dict = field(default_factory=dict)  # of BrainLMConfig
    options: dict = field(default_factory=dict)  # of pretrain
    mask: str = "random"
    start: bool = True  # parcels' places from the covariance
    copy: bool = False  # what attention gathers is passed on as it is, at first
    scaling: str = "robust"  # or of each recording: zscore (of parcels), frame (of moments)
    objective: str = ""

    def __or__(self, other: Lever) -> Lever:
        plain = Lever()
        changed = {name: value for name, value in vars(other).items()
                   if value != getattr(plain, name)}  # fmt: skip
        for name in ("shape", "options"):
            changed[name] = getattr(self, name) | getattr(other, name)
        return replace(self, **changed)


LEVERS = {
    "recipe": Lever(),
    "no gain": Lever({"gain": False}),
    "adamw": Lever(options={"optimizer": "adamw"}),
    "no start": Lever(start=False),
    "heads": Lever({"heads": 4, "decoder_heads": 4}),
    "one head": Lever({"heads": 1, "decoder_heads": 1}),
    "copy": Lever(copy=True),
    "depth": Lever({"depth": 4}),
    "width": Lever({"width": 128, "ffn": 512, "heads": 4}),
    "wide head": Lever({"width": 128, "ffn": 512, "heads": 2, "decoder_heads": 1}),
    "decoder depth": Lever({"decoder_depth": 2}),
    "decode all": Lever({"decode_share": 1.0}),
    "tube": Lever(mask="tube"),
    "time": Lever(mask="time"),
    "mixed": Lever(mask="mixed"),
    "zscore": Lever(scaling="zscore"),
    "frame": Lever(scaling="frame"),
    "rate 6e-3": Lever(options={"learning_rate": 6e-3}),
    "rate 1.2e-2": Lever(options={"learning_rate": 1.2e-2}),
    "rate 1.5e-3": Lever(options={"learning_rate": 1.5e-3}),
    "warmup": Lever(options={"warmup": 0.2}),
    "beta2 0.95": Lever(options={"beta2": 0.95}),
    "alike": Lever(objective="alike"),
    "connectivity": Lever(objective="connectivity"),
    "coskewness": Lever(objective="coskewness"),
}


class Standardised(Windows):
    """Windows of recordings whose parcels have mean 0 and deviation 1, each by itself."""

    axis = 0

    def whole(self, row: int) -> np.ndarray:
        series = super().whole(row)
        mean, deviation = (f(series, self.axis, keepdims=True) for f in (np.nanmean, np.nanstd))
        return (series - mean) / np.maximum(deviation, 1e-6)

    def _fill(self, out: Tensor, row: int, start: int) -> None:
        out.copy_(torch.from_numpy(self.whole(row)[start : start + self.window].T))


class Framed(Standardised):
    """Windows of recordings whose moments have mean 0 and deviation 1 over parcels."""

    axis = 1


@dataclass(frozen=True)
class Shaped(Masker):
    """Hides whole parcels (``tube``), whole moments (``time``), or each kind in a third of the
    windows (``mixed``)."""

    kind: str = "random"

    def draw(self, noise: Tensor, missing: Tensor | None = None) -> Masking:
        each = noise.unflatten(1, (self.grid.num_parcels, -1))
        kinds = {"random": each, "tube": each[:, :, :1].expand_as(each),
                 "time": each[:, :1].expand_as(each)}  # fmt: skip
        if self.kind == "mixed":
            which = (noise[:, -1] * 1e4).long() % 3
            each = torch.stack(list(kinds.values()))[which, torch.arange(len(noise))]
        return super().draw(kinds.get(self.kind, each).flatten(1), missing)


class Objective(nn.Module):
    """What is added to the loss; with what it needs to learn."""

    def __init__(self, kind: str, windows: Windows, width: int, parts: int = 32):
        super().__init__()
        self.kind = kind
        if kind != "alike":
            signal = windows.batch(windows.stream(0, 8 * BATCH * 8)).signal
            values = self.describe(signal)
            self.mean = values.mean(0)
            _, sizes, axes = torch.linalg.svd(values - self.mean, full_matrices=False)
            self.axes = axes[:parts].T / sizes[:parts] * len(values) ** 0.5
            self.read = nn.Linear(width, parts)

    def describe(self, signal: Tensor) -> Tensor:
        """[B, R (R - 1) / 2] correlations of parcels, or [B, R R] their co-skewness E[x x y]."""
        x = (signal - signal.nanmean(2, keepdim=True)).nan_to_num(0.0)
        x = F.normalize(x, dim=2)
        if self.kind == "coskewness":
            return (x.square() @ x.mT).flatten(1) * x.shape[2] ** 0.5
        rows, columns = torch.triu_indices(x.shape[1], x.shape[1], 1)
        return (x @ x.mT)[:, rows, columns]

    def forward(self, signal: Tensor, latent: Tensor) -> Tensor:
        if self.kind != "alike":
            wanted = (self.describe(signal) - self.mean) @ self.axes
            return F.mse_loss(self.read(latent[:, 0]), wanted)
        x = F.normalize(latent[:, 1:].mean(1), dim=1)  # [B, D], two windows of each in turn
        near = (x @ x.T / 0.1).fill_diagonal_(-torch.inf)
        return F.cross_entropy(near, torch.arange(len(x)) ^ 1)


def make(lever: Lever, parcels: int, gaussian: Gaussian) -> BrainLM:
    """A new model."""
    made = preset("tiny", num_parcels=parcels, window=WINDOW, patch=PATCH)
    model = BrainLM(replace(made.config, **lever.shape))
    if lever.start:
        model.start_parcels(gaussian.covariance)
    if lever.copy:
        for block in [*model.encoder, *model.decoder.blocks]:
            out = block.attention.out.weight
            nn.init.orthogonal_(out)
            block.attention.qkv.weight.data.chunk(3)[2].copy_(out.data.T)
    return model


def train(model: BrainLM, windows: Windows, lever: Lever, updates: int) -> None:
    """As brainlm.training.pretrain does."""
    options = Pretrain(**{"learning_rate": 3e-3} | lever.options).of_preset("tiny")
    trained = nn.ModuleDict({"model": model.train()})
    if lever.objective:
        trained["more"] = Objective(lever.objective, windows, model.config.width)
    optimizers = make_optimizers(trained, options)
    for step in range(updates):
        picks = windows.stream(step * BATCH, BATCH)
        if lever.objective == "alike":
            picks = [(epoch + other, row) for epoch, row in picks[::2] for other in (0, 10_000)]
        batch = windows.batch(picks)
        out = model(batch.signal, batch.masking)
        loss = out.loss
        if lever.objective:
            loss = loss + SHARE * trained["more"](batch.signal, out.latent)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        update_weights(optimizers, learning_rate_at(step, updates, options))
    model.eval()


@torch.inference_mode()
def score(predict, windows: Windows, masker: Masker) -> np.ndarray:
    """[N, 8] sums of each recording, of ``predict(signal, masking) -> prediction, hidden``."""
    sums = []
    for row in windows.rows:
        series = windows.whole(int(row))
        starts = range(0, len(series) - WINDOW + 1, WINDOW)
        signal = torch.from_numpy(np.stack([series[s : s + WINDOW].T for s in starts]))
        generator = torch.Generator().manual_seed(int(row))
        noise = torch.rand(len(signal), masker.grid.num_tokens, generator=generator)
        prediction, hidden = predict(signal, masker(noise, signal))
        sums.append(sum_values(signal[hidden].numpy(), prediction[hidden].numpy()))
    return np.stack(sums)


class Arena:
    """The data that all contestants have in common, and what is known of them."""

    def __init__(self, shards: list[Path], scaling: Path, external: str | None, out: Path):
        self.corpus, self.scaling, self.out = Corpus(shards), Scaling.load(scaling), out
        table = self.corpus.table
        ready = (table["status"] == "ok") & (table["num_timepoints"] >= WINDOW)
        away = table["cohort"] == external
        self.rows = {name: np.flatnonzero(ready & ~away & (table["split"] == name))
                     for name in ("train", "validation", "test")}  # fmt: skip
        self.rows["external"] = np.flatnonzero(ready & away)
        self.parcels = self.corpus.info.num_parcels
        self.grid = preset("tiny", num_parcels=self.parcels, window=WINDOW, patch=PATCH).grid
        self.masker = Masker(self.grid, RATIO)
        self.gaussians: dict[str, Gaussian] = {}

    def windows(self, part: str, lever: Lever, seed: int) -> Windows:
        """Those of a part of the participants, as this contestant sees them."""
        masker = Shaped(self.grid, RATIO, kind=lever.mask) if part == "train" else self.masker
        kind = {"robust": Windows, "zscore": Standardised, "frame": Framed}[lever.scaling]
        return kind(self.corpus, self.scaling, WINDOW, self.rows[part], seed=seed, masker=masker)

    def gaussian(self, lever: Lever) -> Gaussian:
        """Fitted on the series as this contestant sees them."""
        if lever.scaling not in self.gaussians:
            parts = [self.windows(part, lever, 0) for part in ("train", "validation")]
            ranks = Ranks(0, 1, torch.device("cpu"))
            self.gaussians[lever.scaling] = fit_gaussian(*parts, ranks)
        return self.gaussians[lever.scaling]

    def score(self, path: Path, predict, lever: Lever) -> dict[str, np.ndarray]:
        """Sums of each part's participants, from `path` if they are there."""
        if not path.exists():
            parts = [part for part in ("validation", "test", "external") if len(self.rows[part])]
            np.savez(path, **{part: score(predict, self.windows(part, lever, 0), self.masker)
                              for part in parts})  # fmt: skip
        names = self.corpus.table["participant_id"].to_numpy()
        return {part: add_by_participant(sums, names[self.rows[part]])
                for part, sums in np.load(path).items()}  # fmt: skip

    def lines(self, lever: Lever) -> dict[str, dict[str, np.ndarray]]:
        """Sums of the predictors without a network."""
        gaussian = self.gaussian(lever)

        def alone(fill):
            def predict(signal: Tensor, masking: Masking):
                removed = masking.mask[..., None].expand(-1, -1, PATCH)
                removed = self.grid.paste(removed) | signal.isnan()
                return fill(signal, removed), removed & ~signal.isnan()

            return predict

        fills = {"gaussian": gaussian.fill, "own": gaussian.fill_own,
                 "in time": gaussian.fill_in_time}  # fmt: skip
        more = "" if lever.scaling == "robust" else f" {lever.scaling}"
        return {name: self.score(self.out / f"{name}{more}.npz", alone(fill), lever)
                for name, fill in fills.items()}  # fmt: skip

    def contest(self, name: str, updates: int, seed: int) -> dict[str, np.ndarray]:
        """Sums of a contestant, trained if it is not there."""
        lever = LEVERS[name]
        folder = self.out / f"{name.replace(' ', '_')}-{updates}-{seed}"
        if not (folder / "config.json").exists():
            torch.manual_seed(seed)
            model = make(lever, self.parcels, self.gaussian(lever))
            began = time.process_time()
            train(model, self.windows("train", lever, seed), lever, updates)
            print(f"{folder.name}: {time.process_time() - began:.0f} s of one core", flush=True)
            model.scaling = self.scaling
            model.save_pretrained(folder)
        model = BrainLM.from_pretrained(folder)

        def predict(signal: Tensor, masking: Masking):
            out = model(signal, masking)
            return out.prediction, out.pixel_mask

        return self.score(folder / "sums.npz", predict, lever)


def compare(found: list[np.ndarray], other: list[np.ndarray]) -> str:
    """Pooled R2 (mean over seeds) less another's, and in how many participants it is more."""
    sample, r2 = Sample(len(found[0]), Evaluate()), POOLED["r2"]

    def mean(runs: list[np.ndarray]):
        return sample.estimate(lambda c: np.mean([of_sums("r2", s)(c) for s in runs], 0))

    gap = mean(found) - mean(other)
    low, high = gap.interval
    more = np.mean([r2(a) > r2(other[k % len(other)]) for k, a in enumerate(found)])
    return f"{gap.value:+.3f} [{low:+.3f}, {high:+.3f}] {more:4.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="+", type=Path)
    parser.add_argument("--scaling", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--external", help="a cohort that is tested whole")
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", default=list(LEVERS),
                        help="contestants; a+b has both levers")  # fmt: skip
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        first, *more = name.split("+")
        for other in more:
            LEVERS[name] = LEVERS.get(name, LEVERS[first]) | LEVERS[other]
    arena = Arena(args.shards, args.scaling, args.external, args.out)
    for name in args.only:
        lines = arena.lines(LEVERS[name])
        runs = [arena.contest(name, args.updates, seed) for seed in args.seeds]
        recipe = [arena.contest("recipe", args.updates, seed) for seed in args.seeds]
        for part in runs[0]:
            own = [run[part] for run in runs]
            told = [f"{name:20} n {len(runs)} {part:10} R2 "
                    f"{np.mean([POOLED['r2'](s.sum(0)) for s in own]):.3f}"]  # fmt: skip
            told += [f"less {line} {compare(own, [lines[line][part]])}"
                     for line in ("gaussian", "own")]  # fmt: skip
            if name != "recipe":
                told.append(f"less recipe {compare(own, [run[part] for run in recipe])}")
            print("; ".join(told), flush=True)


if __name__ == "__main__":
    main()
