"""What frozen encoders know of participants: age, sex, diagnosis, who is who, motion.

    python benchmarks/probes.py SHARD.parquet ... --participants participants.tsv --out FOLDER
        [--models NAME=MODEL,MODEL ...]

Ridge regression on each summary, every site held out in turn, all participants; age on a
logarithm. The figures of several models of a name (seeds) are averaged. Who is who: the first
window of a recording against its last that does not overlap. Names are compared with the first
and with both connectivities, paired, 95 % bootstrap intervals over participants; `tangent + NAME`
is the mean of the two standardised predictions. FOLDER keeps predictions: what is there is not
made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from brainlm.config import Evaluate
from brainlm.evaluation.clinical.views import Tangent, connectivity_of, correlate_parcels, embed
from brainlm.evaluation.fingerprint import score_fingerprint
from brainlm.evaluation.metrics import auc, of_sums, sum_values
from brainlm.evaluation.statistics import Estimate, Sample
from brainlm.model import BrainLM
from brainlm.shards import Corpus
from brainlm.training.ridge import Ridge

POOLS = {"latent connectivity": "connectivity", "mean token": "mean", "CLS": "cls"}
COLUMNS = ("age", "sex", "diagnosis")


class Participants:
    """Participants with a recording, their labels, and summaries of them."""

    def __init__(self, shards: list[Path], participants: Path, window: int, out: Path):
        self.corpus, self.window, self.out = Corpus(shards), window, out
        self.rows = self.corpus.usable(min_timepoints=window)
        about = pd.read_table(participants).set_index("participant_id")
        about = about.loc[self.corpus.table["participant_id"][self.rows]]
        self.site, self.motion = about["site"].to_numpy(str), about["mean_fd"].to_numpy(float)
        labels = [np.log1p(about["age"].to_numpy(float))]
        labels += [about[name].to_numpy() == about[name].min() for name in COLUMNS[1:]]
        self.labels = np.stack(labels, 1).astype(float)
        lengths = self.corpus.table["num_timepoints"].to_numpy()[self.rows]
        self.twice = np.flatnonzero(lengths >= 2 * window)
        self.sample = Sample(len(self.rows), Evaluate())

    def ends(self, summarise) -> np.ndarray:
        """[S, 2, F] of the first and the last window [T, R] of those who have both."""
        series = (self.corpus.series(int(self.rows[k])) for k in self.twice)
        return np.stack([[summarise(x[: self.window]), summarise(x[-self.window :])]
                         for x in series])  # fmt: skip

    def predict(self, name: str, features) -> np.ndarray:
        """[S, 3] for each site from the others; ``features(train) -> [S, F]``."""
        path = self.out / f"{name}.npy"
        if not path.exists():
            out = np.empty_like(self.labels)
            for site in np.unique(self.site):
                test = self.site == site
                values = features(np.flatnonzero(~test))
                out[test] = Ridge.fit(values[~test], self.labels[~test])(values[test])
            np.save(path, out)
        return np.load(path)

    def estimate(self, predictions: list[np.ndarray]) -> list[Estimate]:
        """r of age, AUC of the others, the mean over seeds."""
        truth = self.labels

        def age(counts):
            sums = [np.stack([sum_values(*pair) for pair in zip(truth[:, 0], p, strict=True)])
                    for p in np.stack(predictions)[..., 0]]  # fmt: skip
            return np.mean([of_sums("r", s)(counts) for s in sums], 0)

        def of_class(k):
            return lambda counts: np.mean([auc(truth[:, k] > 0, p[:, k], counts)
                                           for p in predictions], 0)  # fmt: skip

        return [self.sample.estimate(f) for f in (age, of_class(1), of_class(2))]


def show(name: str, figures: list[Estimate]) -> None:
    """A line: value [95 % interval] of each label."""
    cells = [f"{f.value:+.3f} [{f.interval[0]:+.3f}, {f.interval[1]:+.3f}]" for f in figures]
    print(f"{name:60} {' | '.join(cells)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="+", type=Path)
    parser.add_argument("--participants", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=[], help="NAME=FOLDER,FOLDER ...")
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=["latent connectivity"])
    parser.add_argument("--window", type=int, default=80)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    participants = Participants(args.shards, args.participants, args.window, args.out)
    plain = connectivity_of(participants.corpus, participants.rows[:, None])
    found = {
        "connectivity": [participants.predict("connectivity", lambda _: plain)],
        "tangent": [participants.predict("tangent", lambda train: Tangent(plain[train])(plain))],
    }
    ends = {"connectivity": participants.ends(correlate_parcels)}
    for spec in args.models:
        name, folders = spec.split("=")
        for number, folder in enumerate(folders.split(",")):
            model = BrainLM.from_pretrained(folder)
            wanted = {f"{name}, {pool}": pool for pool in args.pools}
            whole = None
            for label, pool in wanted.items():
                if not (args.out / f"{label} {number}.npy").exists() and whole is None:
                    whole = embed(model, participants.corpus, participants.rows[:, None])

                def features(train, values=whole and whole[pool], pool=pool):
                    if pool == "latent connectivity":
                        return values
                    return (values - values[train].mean(0)) / (values[train].std(0) + 1e-9)

                predicted = participants.predict(f"{label} {number}", features)
                found.setdefault(label, []).append(predicted)

                def summarise(series, model=model, pool=pool):
                    window = torch.from_numpy(model.scaling.apply(series).T)[None].float()
                    return model.embed(window, POOLS[pool])[0].numpy()

                ends[f"{label} {number}"] = participants.ends(summarise)
    scores = {name: participants.estimate(runs) for name, runs in found.items()}
    names = list(scores)
    for name in names:
        show(name, scores[name])
    compared = [*names[2:3], "connectivity", "tangent"]
    for name in names[2:]:
        for other in compared:
            if other != name:
                gaps = [a - b for a, b in zip(scores[name], scores[other], strict=True)]
                show(f"{name} less {other}", gaps)
        both = [(p - p.mean(0)) / p.std(0) for p in found["tangent"]]
        mixed = [both[0] + (p - p.mean(0)) / p.std(0) for p in found[name]]
        gaps = [
            a - b for a, b in zip(participants.estimate(mixed), scores["tangent"], strict=True)
        ]
        show(f"tangent + {name} less tangent", gaps)
    for row in score_fingerprint(ends, participants.motion[participants.twice], {}, Evaluate()):
        if " minus " not in row.get("method", ""):
            print(row["metric"], row["method"], f"{row['value']:.3f}", flush=True)


if __name__ == "__main__":
    main()
