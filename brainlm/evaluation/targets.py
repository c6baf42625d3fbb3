"""Predicting a column of the participants tables: the model beside the baselines.

One prediction per subject (recordings averaged), the same subjects for every method, and in every
row how many were left out and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from ..cohort.labels import read_columns, read_target
from ..config import Evaluate
from ..errors import BrainLMError
from ..files import atomic_path
from ..shards import Corpus
from .baselines import connectivity_of, fit_logistic, fit_ridge
from .job import Job
from .metrics import (
    MIN_SUBJECTS,
    POOLED,
    auc,
    balanced_accuracy,
    bootstrap,
    difference,
    of_sums,
    sum_values,
)  # fmt: skip
from .reconstruction import cohort_parts
from .tables import describe_left_out, write_results

Kind = Literal["regression", "classification"]
KEY = ["cohort", "participant_id"]


def run(job: Job) -> pd.DataFrame:
    """A regression or classification task of a study."""
    from ..training.predict import why_skipped

    task, options = job.task, job.config.evaluate
    skipped = why_skipped(job.fits("finetune")[0])
    if skipped:
        row = {"task": task.kind, "target": task.target, "method": "fine-tuned", "level": "pooled"}
        note = {"cohort": "all", "n": 0, "note": f"not evaluated: {skipped}"}
        return write_results([row | note], job.out, options.seed, job.config.fingerprint())
    cohorts = job.config.cohorts
    motion = "mean_fd" in read_columns(cohorts)
    return evaluate_target(
        {"fine-tuned": job.fits("finetune"), "from scratch": job.fits("scratch")},
        job.shards,
        read_target(cohorts, task.target),
        job.out,
        target=task.target,
        options=options,
        kind=task.kind,
        roles=job.roles,
        motion=read_target(cohorts, "mean_fd") if motion else None,
        config=job.config.fingerprint(),
    )


def evaluate_target(
    predictions: Mapping[str, Sequence[Path]],
    shards: Sequence[Path],
    labels: pd.Series,
    out: Path,
    *,
    target: str,
    options: Evaluate,
    kind: Kind = "regression",
    splits: Sequence[str] = ("test",),
    roles: Mapping[str, str] | None = None,
    motion: pd.Series | None = None,
    config: str | None = None,
) -> pd.DataFrame:
    """Compare predictions with baselines fitted on the same training subjects.

    Parameters
    ----------
    predictions : mapping of method to folders that hold a ``predictions.parquet``, one per seed
        For example ``{"fine-tuned": ..., "from scratch": ...}``.
    shards : sequence of Path
    labels : Series
        Indexed by (cohort, participant_id), original units; numbers name classes.
    out : Path
        Parquet table; one row per subject and method goes beside it as
        ``<stem>.predictions.parquet``.
    kind : {"regression", "classification"}
    splits, roles
        As in :func:`~brainlm.evaluation.reconstruction.evaluate_reconstruction`.
    motion : Series, optional
        Mean framewise displacement (mm) indexed as `labels`, for cohorts that enter as series;
        default the shards' ``mean_fd_mm``.

    Returns
    -------
    DataFrame
        See :data:`brainlm.evaluation.tables.COLUMNS`.

    Raises
    ------
    BrainLMError
        No training subject has a label, or all have the same.
    """
    corpus, roles = Corpus(shards), roles or {}
    people = list_people(corpus, labels, motion)
    is_reference = people.index.get_level_values("cohort").map(
        lambda c: roles.get(c) != "external"
    )
    train = people[is_reference & (people["split"] == "train") & people["ready"]].copy()
    if train["label"].nunique() < 2:
        raise BrainLMError(
            f"{target}: {len(train)} training subjects have a label and a usable recording, with "
            f"{train['label'].nunique()} different values; at least two are needed"
        )
    classes = np.unique(train["label"])
    if kind == "classification" and len(classes) == 2:  # predictions are of the larger label
        for table in (people, train):
            table["label"] = table["label"].map({classes[0]: 0.0, classes[1]: 1.0})
    given = {name: _read_predictions(path) for name, path in predictions.items()}
    rows, kept = [], []
    parts = list(cohort_parts(people.reset_index(), splits, roles))
    tested = pd.concat([part.set_index(KEY) for *_, part in parts]) if parts else people[:0]
    given = _fit_baselines(corpus, train, tested[tested["ready"]], kind, options.seed) | given
    for cohort, split, part in parts:
        where: dict = {"task": kind, "target": target, "cohort": cohort, "split": split}
        table, why = _common_subjects(part.set_index(KEY), given)
        where |= {"n": len(table), "left_out": len(part) - len(table)}
        where["note"] = describe_left_out(why)
        if not len(table):
            rows.append(where | {"method": "connectivity", "level": "pooled"})
            continue
        rows += _score(table, list(given), where, kind, train["label"], options)
        kept.append(table.assign(split=split))
    _save_predictions(out.with_suffix(".predictions.parquet"), kept, list(given))
    return write_results(rows, out, options.seed, config)


def list_people(
    corpus: Corpus, labels: pd.Series, motion: pd.Series | None = None
) -> pd.DataFrame:
    """One row per subject of the corpus, by (cohort, participant_id).

    Columns: ``split``, ``label``, ``mean_fd_mm``, ``rows`` (usable rows of the corpus) and
    ``ready`` (has a label and a usable recording).
    """
    usable = corpus.table["status"] == "ok"
    groups = corpus.table.groupby(KEY, sort=False)
    people = groups["split"].first().to_frame()
    people["rows"] = groups.apply(
        lambda g: g.index[usable[g.index]].tolist(), include_groups=False
    )
    people["mean_fd_mm"] = corpus.table[usable].groupby(KEY)["mean_fd_mm"].mean()
    if motion is not None:
        people["mean_fd_mm"] = people["mean_fd_mm"].fillna(motion.reindex(people.index))
    people["label"] = labels.reindex(people.index)
    people["ready"] = people["label"].notna() & (people["rows"].str.len() > 0)
    return people


def _read_predictions(folders: Sequence[Path]) -> pd.Series:
    """Mean prediction per subject, by (cohort, participant_id)."""
    paths = []  # per model: the release it was trained on, and external cohorts
    for folder in folders:
        paths += [folder / "predictions.parquet", *folder.glob("external.parquet")]
    try:
        tables = [pq.read_table(p, columns=[*KEY, "prediction"]).to_pandas() for p in paths]
    except FileNotFoundError as error:
        raise BrainLMError(f"{error.filename or paths[0]}: predictions not found; run: brainlm "
                           "finetune") from None  # fmt: skip
    return pd.concat(tables).groupby(KEY)["prediction"].mean()


def _fit_baselines(
    corpus: Corpus, train: pd.DataFrame, test: pd.DataFrame, kind: Kind, seed: int
) -> dict[str, pd.Series]:
    """Predictions of the baselines for `test`, each fitted on `train`; NaN where impossible."""
    y = train["label"].to_numpy(float)
    features = {
        "connectivity": [connectivity_of(corpus, part["rows"]) for part in (train, test)],
        "mean FD": [part[["mean_fd_mm"]].to_numpy(float) for part in (train, test)],
    }
    baseline = {"mean": np.full(len(test), y.mean())}
    for name, (seen, unseen) in features.items():
        if not len(test) or not np.isfinite(seen).any():
            continue  # no motion estimate: the cohort came as parcel series
        if kind == "regression":
            values = fit_ridge(seen, y)(unseen)
        else:
            values = fit_logistic(seen, y, seed)(unseen)
            values = values[:, 1] if values.shape[1] == 2 else np.unique(y)[values.argmax(1)]
        label = f"{name} + {'ridge' if kind == 'regression' else 'logistic'}"
        baseline[label if name == "connectivity" else name] = values
    return {name: pd.Series(values, test.index) for name, values in baseline.items()}


def _common_subjects(
    part: pd.DataFrame, given: Mapping[str, pd.Series]
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Subjects that every method has a prediction for, with the predictions as columns."""
    why = {
        "without a usable recording": int((part["rows"].str.len() == 0).sum()),
        "without a label": int((part["label"].isna() & (part["rows"].str.len() > 0)).sum()),
    }
    table = part.loc[part["ready"], ["label"]]
    for name, values in given.items():
        table[name] = values.reindex(table.index)
        missing = table[name].isna()
        why[f"without a prediction by {name}"] = int(missing.sum())
        table = table[~missing]
    return table, why


def _score(
    table: pd.DataFrame, methods: list[str], where: dict, kind: Kind, train: pd.Series,
    options: Evaluate,
) -> Iterator[dict]:  # fmt: skip
    statistics = _statistics(table, methods, kind, train)
    reference = next(name for name in methods if name.startswith("connectivity"))
    for metric, by_method in statistics.items():
        for name in methods:
            if name not in ("mean", "mean FD", reference):
                by_method[f"{name} minus {reference}"] = difference(
                    by_method[name], by_method[reference]
                )
        for name, statistic in by_method.items():
            row = where | {
                "method": name,
                "level": "pooled",
                "metric": metric,
                "n_train": len(train),
            }
            if len(table) < MIN_SUBJECTS and metric not in ("mae", "mse"):
                yield row | {"value": None}  # a correlation of two people is always ±1
                continue
            value, interval = bootstrap(statistic, len(table), options.bootstrap, options.seed)
            low, high = interval or (None, None)
            yield row | {"value": value, "low": low, "high": high}


def _statistics(
    table: pd.DataFrame, methods: list[str], kind: Kind, train: pd.Series
) -> dict[str, dict]:
    """{metric: {method: statistic of counts}}."""
    truth = table["label"].to_numpy(float)
    if kind == "regression":
        sums = {
            name: np.array([sum_values(y, p) for y, p in zip(truth, table[name], strict=True)])
            .reshape(-1, 8)
            for name in methods
        }  # fmt: skip
        return {m: {name: of_sums(m, values) for name, values in sums.items()} for m in POOLED}
    scores = {name: table[name].to_numpy(float) for name in methods}
    two = set(np.unique(train)) == {0.0, 1.0}
    cut = train.mean()  # as many are called positive as in training: fair to the rarer class
    out = {
        "balanced_accuracy": {
            name: lambda c, p=(s >= cut if two else s): balanced_accuracy(truth, p, c)
            for name, s in scores.items()
        }
    }
    if two:
        out["auc"] = {name: lambda c, s=s: auc(truth == 1, s, c) for name, s in scores.items()}
    return out


def _save_predictions(path: Path, tables: list[pd.DataFrame], methods: list[str]) -> None:
    wide = pd.concat(tables).reset_index() if tables else pd.DataFrame()
    if len(wide):
        wide = wide.melt([*KEY, "split", "label"], methods, "method", "prediction")
    with atomic_path(path) as temporary:
        wide.to_parquet(temporary, index=False)
