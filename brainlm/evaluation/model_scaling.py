"""Scaling: does a larger model, or do more participants, reconstruct participants not seen better?

Paper, Fig. 4. One pretraining per size, share of the training participants and seed, all of as
many updates of as many windows; each is evaluated on the same hidden tokens of the same test
participants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from ..cohort.splits import in_share
from ..files import read_json
from ..shards.censored import holds_window
from .job import Job, open_pretrained
from .metrics import POOLED, of_sums
from .participants import long_enough
from .reconstruction import evaluate_masking
from .rows import describe_left_out, rows_of, rows_of_gaps, rows_of_units
from .seen import open_corpus
from .statistics import Sample, add_by_participant


def evaluate_scaling(job: Job) -> pd.DataFrame:
    """Masked R² (and r, MSE, MAE) of every model of a sweep, at the pretraining's mask ratio.

    Returns
    -------
    DataFrame
        Method: the preset; target: the share; ``n_train`` participants. Pooled rows take all
        seeds together, with an interval over participants; ``seed`` rows have one R² per seed;
        ``minus`` rows are every point less the first preset on its smallest share, on the same
        resamples.
    """
    models = {point: job.config.paths.sweep(*point) for point in job.task.points()}
    roles, options = job.roles, job.options
    corpus = open_corpus(job.shards, roles)
    opened = {point: open_pretrained(folder, corpus) for point, folder in models.items()}
    window = next(iter(opened.values())).config.window
    rows: list[dict] = []
    parts = list(job.parts(corpus.table))
    count = job.count(len(parts) * len(models), "models")
    for cohort, split, part in parts:
        indices, why = long_enough(part, window)
        participants = corpus.table["participant_id"][indices].to_numpy()
        points: list[tuple[dict, np.ndarray]] = []
        for preset, share in dict.fromkeys(point[:2] for point in models):
            seeds = {p[2]: p for p in models if p[:2] == (preset, share)}
            first = next(iter(seeds.values()))
            note = [describe_left_out(why), _describe(opened[first], models[first])]
            where: dict = {"task": "scaling", "cohort": cohort, "split": split, "method": preset}
            where |= {"target": f"{share:g}", "left_out": sum(why.values()), "level": "pooled"}
            where |= {"n_train": _count_participants(corpus.table, share, window, roles)}
            where |= {"note": "; ".join(filter(None, note)), "n": len(set(participants))}
            if not len(indices):
                rows.append(where)
                continue
            sums, ratio = [], job.config.pretrain.mask_ratio
            for point in seeds.values():
                found, _ = evaluate_masking(
                    opened[point], None, corpus, indices, "random", ratio, options.seed
                )
                sums.append(found["model"][0])
                count.add()
            points.append((where, add_by_participant(np.sum(sums, 0), participants)))
            by_seed = (POOLED["r2"](one.sum(0)) for one in sums)
            rows += rows_of_units(where | {"metric": "r2"}, "seed", seeds, by_seed)
        rows += _rows(points, Sample(len(set(participants)), options))
    return job.write(rows)


def _rows(points: list[tuple[dict, np.ndarray]], sample: Sample) -> Iterator[dict]:
    """Every size and share, and less the first preset on its smallest share."""
    if not points:
        return
    preset = points[0][0]["method"]
    least = min(
        (k for k, (where, _) in enumerate(points) if where["method"] == preset),
        key=lambda k: float(points[k][0]["target"]),
    )
    against = f"{preset} on {points[least][0]['target']}"
    for metric in POOLED:
        found = [
            (where | {"metric": metric}, sample.estimate(of_sums(metric, sums)))
            for where, sums in points
        ]
        for where, estimate in found:
            yield from rows_of(where, estimate)
        yield from rows_of_gaps([
            (where | {"method": f"{where['method']} minus {against}"}, one - found[least][1])
            for k, (where, one) in enumerate(found) if k != least
        ])  # fmt: skip


def _count_participants(
    table: pd.DataFrame, share: float, window: int, roles: Mapping[str, str]
) -> int:
    """Participants whom a pretraining on this share of them has seen."""
    usable = (table["status"] == "ok") & holds_window(table, window)
    inside = table["cohort"].map(lambda cohort: roles.get(cohort) != "external")
    seen = table[usable & inside & (table["split"] == "train")]
    participants = seen.drop_duplicates(["cohort", "participant_id"])["participant_id"]
    return sum(in_share(subject, share) for subject in participants)


def _describe(model, folder: Path) -> str:
    count = sum(p.numel() for p in model.parameters())
    return f"{count:,} parameters, {read_json(folder / 'run.json')['updates']:,} updates"
