"""Functional networks: can the network of a parcel be read from what a model makes of it?

Paper, section 4.5 and Table 3: in every recording 80 % of the parcels train a k-nearest-neighbour
classifier and the other 20 % are classified. Attention rows of the pretrained model are compared
with raw series, connectivity rows, codes of a VAE and a GCN trained on the same windows, and with
what a sceptic would try: the parcels' places (networks are made of neighbours, and a model that
is told where parcels are may just know that), the most frequent network, and shuffled labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ...config import Evaluate
from ...errors import BrainLMError
from ...shards import Corpus
from ...shards.censored import drop_censored
from ..job import Job
from ..participants import long_enough
from ..rows import compare, describe_left_out, rows_of_units
from ..statistics import Sample, Statistic, add_by_participant

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "attention rows"
SHUFFLED, MAJORITY = "shuffled labels", "majority class"
NEIGHBOURS = 5


def evaluate_networks(job: Job) -> pd.DataFrame:
    """Accuracy of every method, overall, per recording and per network.

    Parcels without a network are left out and counted. The VAE and the GCN are trained on windows
    of the training recordings, as many as the pretraining saw unless the task says otherwise.
    Seeds are of the 80/20 division of the parcels, of shuffled labels and of these networks.

    Raises
    ------
    BrainLMError
        No table of networks, one for another number of parcels, or one network only.
    """
    task, options, roles = job.task, job.options, job.roles
    networks, coordinates = _find_networks(job)
    batch_size = job.config.pretrain.batch_size
    epochs, seeds = task.epochs or job.config.pretrain.epochs, task.seeds
    corpus, model = job.open()
    labels = _check(networks, corpus.info.num_parcels)
    missing = describe_left_out({"parcels without a network": int((labels < 0).sum())})
    fits = job.count(2 * len(seeds), "networks").add
    kinds = [_trained(model, corpus, roles, epochs, batch_size, seed, fits) for seed in seeds]
    rows: list[dict] = []
    for cohort, split, part in job.parts(corpus.table):
        indices, why = long_enough(part, model.config.window)
        note = "; ".join(filter(None, [describe_left_out(why), missing])) or None
        where: dict = {"task": "networks", "target": f"{labels.max() + 1} networks", "note": note}
        where |= {"cohort": cohort, "split": split, "left_out": sum(why.values())}
        if not len(indices):
            rows.append(where | {"method": MODEL, "level": "pooled", "n": 0})
            continue
        right = _classify_all(model, corpus, indices, labels, coordinates, kinds, seeds,
                              job.count(len(indices), "recordings").add)  # fmt: skip
        names = sorted({name for name in networks if name})
        rows += _score(right, corpus.table.loc[indices], names, where, options)
    return job.write(rows)


def _find_networks(job: Job) -> tuple[Sequence[str | None], np.ndarray | None]:
    """Of each parcel: its network or None, and its place in MNI mm (for the baseline)."""
    from ...atlas import load_atlas, read_networks

    task, config = job.task, job.config
    atlas = load_atlas(config.atlas.name, config.atlas.folder)
    networks = atlas.networks
    if task.table is not None:
        networks = read_networks(task.table, task.column, atlas.num_parcels)
    if networks is None:
        raise BrainLMError(
            f"networks: atlas {config.atlas.name} has no table of networks in "
            f"{config.atlas.folder} (atlases/README.md says which); name one in the task: "
            "table: networks.tsv, column: network"
        )
    return networks, atlas.coordinates


def _check(networks: Sequence[str | None], parcels: int) -> np.ndarray:
    """[R] number of each parcel's network, -1 for none."""
    if len(networks) != parcels:
        raise BrainLMError(
            f"networks: a table for {len(networks)} parcels, the shards have {parcels}; is it of "
            "this atlas?"
        )
    names = sorted({name for name in networks if name})
    if len(names) < 2:
        raise BrainLMError(f"networks: the table names {len(names)} network(s); expected several")
    return np.array([names.index(name) if name else -1 for name in networks])


# ---- features -----------------------------------------------------------------------------------


def _trained(model, corpus: Corpus, roles, epochs: int, batch_size: int, seed: int,
             told: Callable[[], None]) -> dict:  # fmt: skip
    """{name: network} of the VAE and the GCN, fitted on training participants' windows; `told`
    after each."""
    import torch

    from ...training.loop import Budget, fit
    from ...training.windows import Windows
    from . import encoders as nets

    window = model.config.window

    def rows(split: str) -> np.ndarray:
        found = corpus.usable(split=split, min_timepoints=window)
        return found[[roles.get(cohort) != "external" for cohort in corpus.table["cohort"][found]]]

    train, check = (
        Windows(corpus, model.scaling, window, rows(split), seed=seed)
        for split in ("train", "validation")
    )
    if not len(train):
        raise BrainLMError(f"networks: no training recording has {window} time points")
    mean = np.mean([connectivity_rows(corpus.scaled(int(row), model.scaling).T)
                    for row in train.rows], axis=0)  # fmt: skip
    graph = nets.nearest_graph(torch.from_numpy(mean).float())
    builds = {"VAE": lambda: nets.ParcelVAE(window), "GCN": lambda: nets.ParcelGCN(window, graph)}
    budget = Budget(epochs, batch_size, (1e-3,), seed)
    loss = partial(nets.masked_error, patch=model.config.patch)
    out = {}
    for name, build in builds.items():
        fitted = fit(build, loss, train, check, budget)
        print(f"{name}, seed {seed}: validation loss {fitted.validation:.4f}, epoch "
              f"{fitted.epoch} of {epochs}", flush=True)  # fmt: skip
        out[name] = fitted.network
        told()
    return out


def connectivity_rows(series: np.ndarray) -> np.ndarray:
    """[R, R] correlations of a series [R, T], 0 where either is missing or constant."""
    filled = np.nan_to_num(drop_censored(series.T).T)  # a parcel has all its values, or none
    centred = filled - filled.mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 1e-9)
    return unit @ unit.T


def _features(model, signal: Tensor, series: np.ndarray) -> dict[str, np.ndarray]:
    """{method: [R, F]} of one recording, of the methods without training here."""
    from ...model.attention_rows import parcel_attention

    rows = parcel_attention(model, signal).cpu().numpy()
    return {
        MODEL: without_diagonal(rows),
        "raw series": series,
        "connectivity rows": without_diagonal(connectivity_rows(series)),
    }


def _codes(network, signal: Tensor) -> np.ndarray:
    """[R, K D] features of a trained network, of all windows side by side."""
    import torch

    with torch.inference_mode():
        codes = network.eval().features(signal.nan_to_num(0.0))  # [K, R, D]
    return codes.transpose(0, 1).flatten(1).cpu().numpy()


def without_diagonal(rows: np.ndarray) -> np.ndarray:
    """A parcel's relation to itself says nothing of its network: set to the row's mean."""
    rows = np.nan_to_num(rows).astype(np.float64)
    np.fill_diagonal(rows, 0)
    np.fill_diagonal(rows, rows.sum(1) / max(len(rows) - 1, 1))
    return rows


# ---- classification -----------------------------------------------------------------------------


def _mix(seed: int, row: int) -> int:
    """One 32-bit seed for each pair, which is all that scikit-learn takes."""
    return int(np.random.SeedSequence([seed, row]).generate_state(1)[0])


def divide_parcels(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """80 % and 20 % of the parcels, every network in proportion where it has parcels enough."""
    from sklearn.model_selection import train_test_split

    _, counts = np.unique(labels, return_counts=True)
    both = counts.min() > 1 and 0.2 * len(labels) >= len(counts)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=seed,
                                   stratify=labels if both else None)  # fmt: skip
    return train, test


def classify_parcels(features: np.ndarray, labels: np.ndarray, train, test, metric="correlation"):
    """Labels of the test parcels by their nearest training parcels.

    Rows are standardised first, so that neighbours are those of highest correlation, for every
    method alike (``metric="euclidean"`` leaves them, for places).
    """
    from sklearn.neighbors import KNeighborsClassifier

    if metric == "correlation":
        features = features - features.mean(1, keepdims=True)
        features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    count = min(NEIGHBOURS, len(train))
    return KNeighborsClassifier(count).fit(features[train], labels[train]).predict(features[test])


def _classify_all(model, corpus: Corpus, indices, labels, coordinates, kinds, seeds,
                  told: Callable[[], None]) -> dict:  # fmt: skip
    """{method: [N, C, 2]} right and all classified parcels by network, summed over seeds; `told`
    after each recording."""
    from ...training.device import device_of
    from ...training.windows import Windows

    windows = Windows(corpus, model.scaling, model.config.window, indices)
    device = device_of(model)
    out: dict[str, np.ndarray] = {}
    for row, index in enumerate(indices):
        series = corpus.scaled(int(index), model.scaling).T
        known = np.isfinite(series).any(1) & (labels >= 0)
        truth, signal = labels[known], windows.cover(int(index)).to(device)
        own = _features(model, signal, np.nan_to_num(drop_censored(series.T).T))
        for seed, trained in zip(seeds, kinds, strict=True):
            features = own | {name: _codes(network, signal) for name, network in trained.items()}
            train, test = divide_parcels(truth, _mix(seed, row))
            guesses = {
                n: classify_parcels(f[known], truth, train, test) for n, f in features.items()
            }
            if coordinates is not None:
                guesses["places"] = classify_parcels(
                    coordinates[known], truth, train, test, "euclidean"
                )
            mixed = np.random.default_rng([seed, row]).permutation(truth)
            guesses[SHUFFLED] = classify_parcels(features[MODEL][known], mixed, train, test)
            guesses[MAJORITY] = np.full(len(test), np.bincount(truth[train]).argmax())
            for name, guess in guesses.items():
                aim = mixed[test] if name == SHUFFLED else truth[test]
                table = out.setdefault(name, np.zeros((len(indices), labels.max() + 1, 2)))
                np.add.at(table[row, :, 0], aim, guess == aim)
                np.add.at(table[row, :, 1], aim, 1)
        told()
    return out


def _score(right: dict, table: pd.DataFrame, names, where, options: Evaluate) -> Iterator[dict]:
    """Accuracy, and paired differences from the attention rows; recall of every network."""
    participants = table["participant_id"]
    sample = Sample(participants.nunique(), options)
    where = where | {"n": sample.participants, "metric": "accuracy", "level": "pooled"}
    totals = {name: add_by_participant(counts, participants) for name, counts in right.items()}
    overall = {name: _accuracy(counts.sum(1)) for name, counts in totals.items()}
    pairs = [(MODEL, other) for other in right if other != MODEL]
    yield from compare(sample, overall, where, pairs)
    recall = {name: _accuracy(counts) for name, counts in totals.items()}
    yield from compare(sample, recall, where | {"level": "network"}, units=names)
    for name, counts in right.items():
        row = where | {"method": name}
        yield from rows_of_units(row, "recording", table["recording_id"], _share(counts.sum(1)))


def _accuracy(counts: np.ndarray) -> Statistic:
    """Of right and all [S, ..., 2] of each participant."""
    return lambda drawn: _share(np.tensordot(drawn, counts, 1))


def _share(counts: np.ndarray) -> np.ndarray:
    """Right of all [..., 2]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return counts[..., 0] / counts[..., 1]
