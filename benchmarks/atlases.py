"""What another atlas costs a model that knows parcels by their places alone.

    python benchmarks/atlases.py SHARD.parquet ... --external COHORT --places CC200_ROI_labels.csv
        [--merged 100 50] [--updates 600] [--seeds 1] [--probes]

The other atlases are the shards' own parcels, neighbours of a hemisphere put together (Ward's
clusters of their centres; means weighted by volume), so that the participants are the same. `tiny`
with `learned_parcels: false`, windows of 80 points in tokens of 10, 75 % hidden, learning rate
3e-3. Each parcellation has its own Gaussian, scaling and masks, the same for all of its rows.
"""

from __future__ import annotations

import argparse
import copy
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from brainlm.config import Evaluate, Pretrain
from brainlm.evaluation.metrics import POOLED, of_sums, sum_values
from brainlm.evaluation.statistics import Sample, add_by_participant
from brainlm.model import BrainLM, preset
from brainlm.model.gaussian import Gaussian
from brainlm.model.masking import Masker
from brainlm.model.pooling import summarise_tokens
from brainlm.shards import (
    Corpus,
    ParcelQuantiles,
    Scaling,
    ShardInfo,
    read_shard,
    write_shard,
)
from brainlm.training.covariance import fit_gaussian
from brainlm.training.distributed import Ranks
from brainlm.training.schedule import learning_rate_at, make_optimizers, update_weights
from brainlm.training.windows import Windows

WINDOW, PATCH, BATCH = 80, 10, 8
_CENTRE = re.compile(r"(\d+),\s*(\d+),\s*\((-?[\d.]+);(-?[\d.]+);(-?[\d.]+)\)")
POOL_OF = {"latent connectivity": "connectivity", "mean token": "mean"}


@dataclass
class Parcellation:
    """The same participants in one atlas; `groups` [R0] numbers the parcels' parcel here."""

    places: np.ndarray
    corpus: Corpus
    scaling: Scaling
    rows: dict[str, np.ndarray]

    @classmethod
    def make(cls, paths, places, volumes, groups, external: str, folder: Path) -> Parcellation:
        count = int(groups.max()) + 1
        belongs = np.eye(count)[groups] * volumes[:, None]  # [R0, R]
        centres = (belongs.T @ places) / belongs.sum(0)[:, None]
        info = ShardInfo(f"merged{count}", f"{count:064d}", count, 0.0)
        written = []
        for number, path in enumerate(paths):
            recordings = read_shard(path)
            info = replace(info, sample_period_s=Corpus([path]).info.sample_period_s)
            merged = [replace(r, series=r.series if r.series is None else mean(r.series, belongs))
                      for r in recordings]  # fmt: skip
            written.append(folder / f"{count}-{number:03d}.parquet")
            write_shard(written[-1], merged, info)
        corpus = Corpus(written)
        table = corpus.table
        ready = (table["status"] == "ok") & (table["num_timepoints"] >= WINDOW)
        away = table["cohort"] == external
        rows = {split: np.flatnonzero(ready & ~away & (table["split"] == split))
                for split in ("train", "validation", "test")}  # fmt: skip
        rows["external"] = np.flatnonzero(ready & away)
        quantiles = ParcelQuantiles.of((corpus.series(int(r)) for r in rows["train"]), count)
        facts = {"atlas": info.atlas, "atlas_sha256": info.atlas_sha256}
        scaling = Scaling.fit(quantiles, sample_period_s=info.sample_period_s,
                              units="as delivered", **facts)  # fmt: skip
        return cls(centres, corpus, scaling, rows)

    def new(self, **settings) -> BrainLM:
        return preset("tiny", num_parcels=len(self.places), window=WINDOW, patch=PATCH,
                      coordinates=torch.from_numpy(self.places), **settings)  # fmt: skip

    def windows(self, split: str, seed: int) -> Windows:
        masker = Masker(self.new().grid, 0.75)
        return Windows(self.corpus, self.scaling, WINDOW, self.rows[split], seed=seed,
                       masker=masker)  # fmt: skip

    def gaussian(self) -> Gaussian:
        ranks = Ranks(0, 1, torch.device("cpu"))
        return fit_gaussian(self.windows("train", 0), self.windows("validation", 0), ranks)

    @torch.inference_mode()
    def score(self, predict, split: str) -> np.ndarray:
        """[S, 8] sums of each participant; ``predict(signal, masking) -> prediction, hidden``."""
        windows, sums = self.windows(split, 0), []
        for row in self.rows[split]:
            signal = windows.cover(int(row))
            generator = torch.Generator().manual_seed(int(row))
            noise = torch.rand(len(signal), windows.num_tokens, generator=generator)
            prediction, hidden = predict(signal, windows.masker(noise, signal))
            sums.append(sum_values(signal[hidden].numpy(), prediction[hidden].numpy()))
        names = self.corpus.table["participant_id"].to_numpy()[self.rows[split]]
        return add_by_participant(np.stack(sums), names)

    def alone(self, fill):
        grid = self.new().grid

        def predict(signal, masking):
            hidden = grid.paste(masking.mask[..., None].expand(-1, -1, PATCH)) | signal.isnan()
            return fill(signal, hidden), hidden & ~signal.isnan()

        return predict

    @torch.inference_mode()
    def embed(self, model: BrainLM, split: str) -> dict[str, np.ndarray]:
        """Features [S, F] of each recording, under the names of :data:`POOL_OF`."""
        windows, found = self.windows(split, 0), []
        for row in self.rows[split]:
            tokens = model.tokens(windows.cover(int(row), 2))
            found.append([summarise_tokens(tokens, pool, model.components).nanmean(0)
                          for pool in POOL_OF.values()])  # fmt: skip
        return {name: torch.stack(each).nan_to_num().numpy()
                for name, each in zip(POOL_OF, zip(*found, strict=True), strict=True)}  # fmt: skip

    def correlate(self, split: str) -> np.ndarray:
        """Connectivity [S, R (R - 1) / 2] of the series, Fisher z."""
        upper = np.triu_indices(len(self.places), 1)
        out = []
        for row in self.rows[split]:
            with np.errstate(invalid="ignore", divide="ignore"):
                r = np.corrcoef(np.asarray(self.corpus.series(int(row)), float).T)[upper]
            out.append(np.arctanh(np.clip(np.nan_to_num(r), -0.999, 0.999)))
        return np.stack(out)


def mean(series: np.ndarray, belongs: np.ndarray) -> np.ndarray:
    """[T, R] means of merged parcels, over the members that have data."""
    weights = belongs * np.isfinite(series).any(0)[:, None]
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.asarray(series, float)) @ weights / weights.sum(0)


def cluster(places: np.ndarray, count: int) -> np.ndarray:
    """[R] which of `count` clusters of neighbours each parcel is in; hemispheres stay apart."""
    from sklearn.cluster import AgglomerativeClustering

    where = np.column_stack([places, 60 * np.sign(places[:, 0])])
    return AgglomerativeClustering(count, linkage="ward").fit_predict(where)


def train(model: BrainLM, windows: Windows, updates: int) -> BrainLM:
    """As brainlm.training.pretrain does."""
    options = Pretrain(learning_rate=3e-3).of_preset("tiny")
    optimizers = make_optimizers(model.train(), options)
    for step in range(updates):
        batch = windows.batch(windows.stream(step * BATCH, BATCH))
        model(batch.signal, batch.masking).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update_weights(optimizers, learning_rate_at(step, updates, options))
    return model.eval()


def probe(features: dict[str, np.ndarray], tables: dict, target: str) -> str:
    """Ridge of the training participants' features on those of the external ones: r, or AUC,
    with a 95 % bootstrap interval over participants."""
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    y = {}
    for split, table in tables.items():
        values = table[target]
        y[split] = (
            np.log(values.astype(float)) if target == "age" else values.eq(values_of[target])
        )
    alphas = np.logspace(0, 7, 15)
    ridge = make_pipeline(StandardScaler(), RidgeCV(alphas)).fit(
        features["train"], y["train"].to_numpy(float)
    )
    said = ridge.predict(features["external"])
    truth, random = y["external"].to_numpy(), np.random.default_rng(0)

    def measure(rows) -> float:
        if target == "age":
            return np.corrcoef(said[rows], truth[rows])[0, 1]
        return roc_auc_score(truth[rows], said[rows])

    count = len(truth)
    draws = [measure(random.integers(0, count, count)) for _ in range(500)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{measure(np.arange(count)):.3f} [{low:.3f}, {high:.3f}]"


values_of = {"sex": "F", "diagnosis": "autism"}


def identify(one: np.ndarray, other: np.ndarray) -> float:
    """Share of recordings whose nearest in the other atlas is themselves (z scored features)."""
    z = [(x - x.mean(0)) / x.std(0) for x in (one, other)]
    nearest = (z[0][:, None] - z[1][None]).__pow__(2).sum(2).argmin(1)
    return float((nearest == np.arange(len(nearest))).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="+", type=Path)
    parser.add_argument("--external", required=True, help="a cohort that is tested whole")
    parser.add_argument("--places", type=Path, required=True, help="centres (mm) and volumes")
    parser.add_argument("--participants", type=Path, help="table with age, sex and diagnosis")
    parser.add_argument("--merged", type=int, nargs="+", default=[100, 50])
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    args = parser.parse_args()
    torch.set_num_threads(1)
    facts = np.array(_CENTRE.findall(args.places.read_text()), float)
    places, volumes = facts[:, 2:], facts[:, 1]
    with tempfile.TemporaryDirectory() as folder:
        groups = {len(places): np.arange(len(places))}
        groups |= {count: cluster(places, count) for count in args.merged}
        atlases = {count: Parcellation.make(args.shards, places, volumes, which, args.external,
                                            Path(folder))
                   for count, which in groups.items()}  # fmt: skip
        compare(atlases, args)


def compare(atlases: dict[int, Parcellation], args) -> None:
    lines = {}
    own, models = next(iter(atlases)), {}

    def show(count: int, name: str, seed, predict) -> None:
        for split in ("test", "external"):
            sums = atlases[count].score(predict, split)
            lines.setdefault((count, split), sums)
            sample = Sample(len(sums), Evaluate())
            value = sample.estimate(of_sums("r2", sums))
            gap = value - sample.estimate(of_sums("r2", lines[count, split]))
            (low, high), (a, b) = gap.interval, value.interval
            better = (POOLED["r2"](sums) > POOLED["r2"](lines[count, split])).mean()
            print(f"{count:4d} {name:24} {seed!s:>2} {split:8} R2 {value.value:.3f} "
                  f"[{a:.3f}, {b:.3f}], less Gaussian {gap.value:+.3f} [{low:+.3f}, "
                  f"{high:+.3f}], better in {better:.0%}", flush=True)  # fmt: skip

    for count, atlas in atlases.items():
        gaussian = atlas.gaussian()
        show(count, "Gaussian of this atlas", "", atlas.alone(gaussian.fill))
        show(count, "own covariance", "", atlas.alone(gaussian.fill_own))
    for seed in args.seeds:
        for count, atlas in atlases.items():
            for name, settings in (("places", {"learned_parcels": False}), ("identities", {})):
                if name == "identities" and count != own:
                    continue
                torch.manual_seed(seed)
                fresh = atlas.new(**settings)
                if name == "places" and count == own:
                    models["untrained", own, own, seed] = copy.deepcopy(fresh).eval()
                models[name, count, count, seed] = train(fresh, atlas.windows("train", seed),
                                                         args.updates)  # fmt: skip
        for count, atlas in atlases.items():
            for name in ("places", "untrained"):
                model = models[name, own, own, seed]
                if count != own:
                    points = torch.from_numpy(atlas.places)
                    models[name, own, count, seed] = model.on_atlas(points, atlas.scaling)
        for (name, trained, count, made), model in models.items():
            if made == seed and name != "untrained":
                show(count, f"{name}, trained on {trained}", seed, lambda *x, m=model: _out(m(*x)))
    if args.participants:
        probe_all(atlases, {k: v for k, v in models.items() if k[3] == args.seeds[0]}, args)


def _out(made):
    return made.prediction, made.pixel_mask


def probe_all(atlases: dict[int, Parcellation], models: dict, args) -> None:
    import pandas as pd

    participants = pd.read_csv(args.participants, sep="\t").set_index("participant_id")
    splits = ("train", "external")
    means = {}

    def say(count: int, name: str, features) -> None:
        atlas = atlases[count]
        ids = atlas.corpus.table["participant_id"]
        tables = {split: participants.loc[ids.iloc[atlas.rows[split]]]
                  for split in splits}  # fmt: skip
        found = {target: probe(features, tables, target) for target in ("age", *values_of)}
        print(f"{count:4d} {name:46} " + ", ".join(f"{k} {v}" for k, v in found.items()),
              flush=True)  # fmt: skip

    for count, atlas in atlases.items():
        say(count, "connectivity", {split: atlas.correlate(split) for split in splits})
    for (name, trained, count, _), model in models.items():
        features = {split: atlases[count].embed(model, split) for split in splits}
        for pool in POOL_OF:
            say(count, f"{name}, trained on {trained}: {pool}",
                {split: features[split][pool] for split in splits})  # fmt: skip
        means[name, trained, count] = features["external"]["mean token"]
    own = next(iter(atlases))
    for (name, trained, count), other in means.items():
        if trained == own != count:
            share = identify(means[name, own, own], other)
            print(f"{count:4d} {name}: who is who by the mean token at {own}: {share:.0%}")


if __name__ == "__main__":
    main()
