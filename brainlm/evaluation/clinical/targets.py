"""Predicting a column of the participants tables: the model next to every baseline.

One prediction per subject (recordings averaged), the same subjects for every method, and in every
row how many were left out and why. A method that is random is fitted once a seed: its value is
the mean over seeds of the metric (not the metric of averaged predictions, which is better than
any one fit), resampled over subjects; each seed's own value stands next to it at level ``seed``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from ...cohort.labels import Labels, LabelTransform, read_column, read_labels
from ...errors import BrainLMError
from ...model import BrainLM
from ...paths import ModelFolder, side_table
from ...shards import Corpus
from ...tables import write_parquet
from ..job import Job
from ..participants import (
    KEY,
    Population,
    Split,
    cohort_parts,
    count_absent,
    count_left_out,
    hold_out_every_group,
    hold_out_groups,
    names_of,
    read_motion,
    read_questionnaires,
    split_participants,
)
from ..tasks import QUESTIONS
from .baselines import balance
from .fine_tuned import check_fit
from .methods import Fold, Method, list_methods
from .scores import Part, score

#: Views that need no pretrained model, whose training participants can be tested, too.
_WITHOUT_MODEL = ("no features", "mean FD", "demographics", "connectivity", "tangent", "cleaned")


def evaluate_target(job: Job) -> pd.DataFrame:
    """A regression or classification task of a study."""
    task, (corpus, model) = job.task, job.open()
    labels = read_labels(
        job.config.cohorts, task.target, task.kind, task.transform, task.spellings
    )
    study = Study(job, corpus, labels, model)
    if study.shortage:
        row = {"method": "fine-tuned", "level": "pooled", "cohort": "all", "n": 0}
        row |= {"left_out": len(study.participants), "note": f"not evaluated: {study.shortage}"}
        return job.write([study.where | row])
    parts = list(study.parts())
    rows = [row for part in parts for row in score(part, study.where, job.options)]
    _save_predictions(side_table(job.out, "predictions"), parts, task)
    return job.write(rows)


@dataclass
class Study:
    """What is known before anything is fitted."""

    job: Job
    corpus: Corpus
    labels: Labels
    model: BrainLM
    cache: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.task, self.seed = self.job.task, self.job.config.evaluate.seed
        self.where = {"task": self.task.kind, "target": self.task.target}
        self.window = self.model.config.window
        roles = self.job.roles
        cohorts = self.job.config.cohorts
        self.population = Population.of(
            self.corpus, self.labels, self.window, roles=roles, motion=read_motion(cohorts)
        )
        self.labels, self.shortage = self.population.labels, self.population.shortage
        known = {self.task.target.casefold(), (self.groups or "").casefold()}
        asked = [question for question, names in QUESTIONS.items() if not known & set(names)]
        self.participants = read_questionnaires(cohorts, self.population.participants, asked)

    @property
    def groups(self) -> str | None:
        return self.task.groups

    def parts(self) -> Iterator[Part]:
        """The tables to score."""
        if self.groups is None:
            test = self._predict(
                [split_participants(self.participants)], self._methods(), fits=True
            )
            for cohort, split, table in cohort_parts(
                self.participants.reset_index(), ["test"], self.job.roles
            ):
                yield self._part(cohort, split, table.set_index(KEY), test)
            return
        known = [read_column(cohort, self.groups) for cohort in self.job.config.cohorts]
        groups = pd.concat(known).reindex(self.participants.index)
        inside = self.participants[~self.participants["external"]]
        kinds = {
            f"test, {self.groups} held out": (hold_out_groups, self._methods(), True),
            f"all, {self.groups} held out": (hold_out_every_group, [
                m for m in self._methods() if m.view in _WITHOUT_MODEL
            ], False),
        }  # fmt: skip
        for split, (hold_out, methods, fits) in kinds.items():
            test = self._predict(list(hold_out(self.participants, groups)), methods, fits=fits)
            tested = inside if not fits else inside[inside["split"] == "test"]
            lost = {f"without a {self.groups}": groups.reindex(tested.index).isna()}
            for cohort, table in tested.groupby("cohort", sort=False):
                yield self._part(str(cohort), split, table, test, lost)

    def _methods(self) -> list[Method]:
        from ...training.windows import Windows

        rows = np.array([row for some in self.participants["rows"] for row in some], int)
        assert self.model.scaling is not None
        windows = Windows(self.corpus, self.model.scaling, self.window, rows)
        self._windows = windows
        options, networks = self.job.config.finetune, self.task.networks
        return list_methods(self.task.kind, options, windows, networks)

    def _predict(self, splits: Sequence[Split], methods: list[Method], *, fits: bool) -> dict:
        """Per participant: transform and one prediction per seed by method; ``n_train`` by method.

        A fold from which nothing can be learnt is left out, and its test participants with it.
        """
        found: dict[str, list] = {"transform": [], "participants": []}
        counts: dict[str, list[int]] = {}
        values: dict[str, list[np.ndarray]] = {}
        splits = [s for s in splits if len(s.test) and not self.population.describe_lack(s)]
        seeds = tuple(self.task.seeds)
        fits_of = sum(len(seeds) if method.random else 1 for method in methods)
        told = self.job.count(fits_of * len(splits), "fits")
        methods = [replace(method, fit=told.after(method.fit)) for method in methods]
        for split in splits:
            transform = self._transform(split)
            train, validation, test = (
                self.participants.loc[keys].assign(
                    y=lambda t: transform.apply(t["label"])  # noqa: B023
                )
                for keys in (split.train, split.validation, split.test)
            )
            cache = self.cache if len(splits) > 1 else None
            fold = Fold(self.corpus, train, validation, self.model, self._windows, cache)
            for name, predicted in fold.predict(
                methods, test, len(self.labels.classes), seeds
            ).items():
                values.setdefault(name, []).append(transform.invert(predicted))
            found["participants"].append(split.test)
            found["transform"] += [transform] * len(split.test)
            for name, count in fold.count_trained_on(methods).items():
                counts.setdefault(name, []).append(count)
        if not found["participants"]:
            return {
                "participants": self.participants.index[:0],
                "transform": [],
                "n_train": {},
                "methods": {},
            }
        participants = found["participants"][0].append(found["participants"][1:])
        made = {  # a view may be known in some folds only
            name: np.concatenate(v)
            for name, v in values.items()
            if sum(map(len, v)) == len(participants)
        }
        if fits:
            fitted = self._read_fits(participants, splits)
            counts |= {name: [len(split.train) for split in splits] for name in fitted}
            made = fitted | made
        n_train = {name: round(float(np.mean(counts[name]))) for name in made}
        return {"participants": participants, "transform": found["transform"], "n_train": n_train,
                "methods": made}  # fmt: skip

    def _transform(self, split: Split) -> LabelTransform:
        train = self.participants.loc[split.train, "label"].to_numpy()
        return LabelTransform.fit(self.task.transform, train)

    def _read_fits(self, participants: pd.Index, splits: Sequence[Split]) -> dict[str, np.ndarray]:
        """Classes are weighed as the fold's own training participants have them."""
        out = {}
        for name, start in {"fine-tuned": "finetune", "from scratch": "scratch"}.items():
            for folder in self.job.fits(start):
                check_fit(self.job, folder)
            out[name] = read_predictions(self.job.fits(start), participants, self.labels)
            if self.labels.classes:
                for split in splits:
                    some, train = (
                        participants.isin(split.test),
                        self.participants.loc[split.train, "label"],
                    )
                    out[name][some] = balance(out[name][some], train.to_numpy())
        return out

    def _part(self, cohort: str, split: str, table: pd.DataFrame, test: dict,
              lost: Mapping[str, pd.Series] | None = None) -> Part:  # fmt: skip
        """Subjects that every method has a prediction for."""
        why = count_left_out(table, self.window)
        labelled = names_of(self.labels.values.dropna().index, cohort)
        why |= count_absent(labelled, names_of(self.participants.index, cohort), split)
        ready = table["ready"]
        for reason, missing in (lost or {}).items():
            missing = missing.reindex(table.index) & ready
            why[reason], ready = int(missing.sum()), ready & ~missing
        unlearnt = ready & ~table.index.isin(test["participants"])
        why["of a fold whose training participants lack a class"] = int(unlearnt.sum())
        ready = ready & ~unlearnt
        keys = table.index[ready]
        where = test["participants"].get_indexer(keys)
        of = {name: values[where] for name, values in test["methods"].items()}
        whole = np.ones(len(keys), bool)
        for name, values in of.items():
            missing = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim))) & whole
            why[f"without a prediction by {name}"] = int(missing.sum())
            whole &= ~missing
        fewest, most = (f(test["n_train"].values(), default=0) for f in (min, max))
        drawn = "" if fewest == most else f"kernels and probes fitted on {fewest} drawn at random"
        refused = self.labels.refused.get(cohort, "")
        note = "; ".join(filter(None, [drawn, self.population.describe_rare(), refused]))
        return Part(
            cohort, split, keys[whole], table.loc[keys[whole], "label"].to_numpy(float),
            [test["transform"][i] for i in where[whole]],
            {name: values[whole] for name, values in of.items()},
            why, test["n_train"], tuple(self.task.seeds), self.labels.classes, note,
        )  # fmt: skip


def read_predictions(
    folders: Sequence[Path], participants: pd.Index, labels: Labels
) -> np.ndarray:
    """Mean over each participant's recordings [N, seeds], or of the classes' probabilities
    [N, seeds, C]; NaN where none."""
    seeds = []
    for folder in folders:
        fit = ModelFolder(folder)
        paths = [fit.predictions, *([fit.external] if fit.external.exists() else [])]
        try:
            tables = [pq.read_table(path).to_pandas() for path in paths]
        except FileNotFoundError:
            raise BrainLMError(
                f"{paths[0]}: predictions not found; run: brainlm finetune"
            ) from None
        table = pd.concat(tables)
        if not labels.classes:
            columns = ["prediction"]
        else:
            columns = [f"probability_{name}" for name in labels.classes]
            if not set(columns) <= set(table):
                table = _name_classes(table, columns)
        seeds.append(table.groupby(KEY)[columns].mean().reindex(participants).to_numpy(float))
    out = np.stack(seeds, 1)
    return out if labels.classes else out[..., 0]


def _name_classes(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """A table made before classes had names: they are numbered, and of two only the second's
    probability is there, as ``prediction``."""
    if len(columns) == 2:
        shares = {columns[0]: 1 - table["prediction"], columns[1]: table["prediction"]}
        return table.assign(**shares)
    return table.rename(columns={f"probability_{k}": name for k, name in enumerate(columns)})


def _save_predictions(path: Path, parts: Sequence[Part], task) -> None:
    """One row per participant, method and seed: the value, or the class and its score."""
    tables = []
    for part in parts:
        for name, values in part.predictions.items():
            for k in range(values.shape[1]):
                of = values[:, k]
                columns = {"prediction": of}
                if part.classes:
                    guess = of.argmax(1)
                    columns = {
                        "prediction": of[:, 1] if len(part.classes) == 2 else guess.astype(float),
                        "class": np.array(part.classes, object)[guess],
                        "true_class": np.array(part.classes, object)[part.label.astype(int)],
                    }
                seed = part.seeds[k] if values.shape[1] > 1 else None
                tables.append(
                    part.participants.to_frame(index=False).assign(
                        split=part.split, label=part.label, method=name, seed=seed, **columns
                    )
                )
    empty = pd.DataFrame(columns=[*KEY, "split", "label", "method", "seed", "prediction"])
    long = pd.concat(tables) if tables else empty
    long["seed"] = long["seed"].astype("Int64")
    write_parquet(path, long)
