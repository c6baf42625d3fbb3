"""Decoding what participants are doing or looking at from short clips of their runs.

Probes of the frozen model stand next to what needs no model, on the same clips of the same
participants. No participant's clips are on both sides of the split. Every method decides as if the
conditions were equally common, except the majority.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ...config import Cohort, Evaluate, Finetune
from ...errors import BrainLMError
from ...shards import Corpus
from ..clinical.baselines import Known, balance, fit_logistic
from ..job import Job, make_untrained
from ..rows import compare, describe_left_out, rows_of_units
from ..statistics import Sample, Statistic
from ..tasks import StatesTask
from .clips import Clips, clip_points, list_clips, read_clips

if TYPE_CHECKING:
    from ...model.pooling import Tokens

ATTENTIVE, LINEAR = "attentive probe", "linear probe"
UNTRAINED = "linear probe, untrained"
CONNECTIVITY, PATTERN = "connectivity + logistic", "mean pattern + logistic"
MLP, MAJORITY = "raw series + MLP", "majority"
#: Clips that methods are fitted on, at most, drawn at random: logistic regression grows with
#: their number cubed.
MOST_CLIPS = 2000
#: Training participants that a condition needs.
FEWEST = 2
_SIZE = 32  # clips in memory at a time

Scores = dict[str, np.ndarray]  # method -> [K, seeds] the condition's number


def evaluate_states(job: Job) -> pd.DataFrame:
    """Accuracy, balanced accuracy and recall of all methods, with paired tests.

    The cohorts' folders have the events, unless the task names others. What was taken for what
    goes next to the table as ``<stem>.confusion.parquet``.

    Raises
    ------
    BrainLMError
        A clip that is no patch of the model or longer than its window; events of a cohort, or in
        a folder, that is not there.
    """
    task, (corpus, model) = job.task, job.open()
    shape = model.config
    points = clip_points(task, shape.patch, shape.window, corpus.info.sample_period_s)
    clips = list_clips(corpus, task, points, _folders(task, job.config.cohorts))
    study = LabelledStudy.of(clips, job.roles)
    decoder = ClipDecoder(corpus, model, job, points, study) if study.classes else None
    rows: list[dict] = []
    confusion: list[pd.DataFrame] = []
    for cohort, split, part in job.parts(corpus.table):
        where: dict = {"task": "states", "target": task.label, "cohort": cohort, "split": split}
        tested = study.of_rows(part.index)
        seconds = points * corpus.info.sample_period_s
        where |= _describe_part(clips, cohort, part, tested, study, seconds)
        if decoder is None or tested["y"].nunique() < 2:
            rows.append(where | {"method": LINEAR, "level": "pooled", "n": 0})
            continue
        predicted = decoder.predict(tested)
        where |= {"n": tested["participant_id"].nunique(), "n_train": study.n_train}
        rows += _score(tested, predicted, study.classes, task.seeds, where, job.options)
        table = count_confusions(tested["y"].to_numpy(), predicted, study.classes)
        confusion.append(table.assign(cohort=cohort, split=split))
    columns = ["cohort", "split", "method", "true", "predicted", "n"]
    job.save("confusion", pd.concat([pd.DataFrame(columns=columns), *confusion])[columns])
    return job.write(rows)


def _folders(task: StatesTask, cohorts: Sequence[Cohort]) -> dict[str, Path]:
    """cohort -> folder of its events."""
    folders = {cohort.name: cohort.folder for cohort in cohorts}
    for name, folder in task.events.items():
        if name not in folders:
            raise BrainLMError(
                f"task {task.name}: events names the cohort {name!r}; known: " + ", ".join(folders)
            )
        if not folder.is_dir():
            raise BrainLMError(
                f"task {task.name}: events of {name}: expected the folder of a raw BIDS dataset, "
                f"found none at {folder}"
            )
    return folders | task.events


@dataclass(frozen=True)
class LabelledStudy:
    """Clips of conditions that can be learnt, and who is learnt from.

    Attributes
    ----------
    clips : DataFrame
        As :class:`.clips.Clips`, with ``y``, the condition's number.
    classes : tuple of str
        Empty where fewer than two can be learnt.
    rare : dict
        Conditions that too few training participants have -> how many have them.
    """

    clips: pd.DataFrame
    classes: tuple[str, ...]
    rare: dict[str, int]
    external: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, clips: Clips, roles: Mapping[str, str]) -> LabelledStudy:
        table = clips.table
        external = frozenset(name for name, role in roles.items() if role == "external")
        train = table[(table["split"] == "train") & ~table["cohort"].isin(external)]
        who = train.drop_duplicates(["cohort", "participant_id", "condition"])
        counts = who["condition"].value_counts()
        counts = counts.reindex(sorted(table["condition"].unique()), fill_value=0)
        classes = tuple(str(name) for name in counts.index[counts >= FEWEST])
        rare = {str(name): int(n) for name, n in counts[counts < FEWEST].items()}
        kept = table[table["condition"].isin(classes)]
        kept = kept.assign(y=[classes.index(name) for name in kept["condition"]])
        return cls(kept, classes if len(classes) > 1 else (), rare, external)

    def of_split(self, split: str) -> pd.DataFrame:
        """Clips of a split of the reference cohorts."""
        inside = ~self.clips["cohort"].isin(self.external)
        return self.clips[inside & (self.clips["split"] == split)]

    def of_rows(self, rows: pd.Index) -> pd.DataFrame:
        """Clips of rows of the corpus."""
        return self.clips[self.clips["row"].isin(rows)]

    @property
    def n_train(self) -> int:
        return len(self.of_split("train").drop_duplicates(["cohort", "participant_id"]))


def _describe_part(clips: Clips, cohort: str, part: pd.DataFrame, tested: pd.DataFrame,
                   study: LabelledStudy, seconds: float) -> dict:  # fmt: skip
    """Who is left out, and what was noticed."""
    why = clips.count_left_out(part)
    some = clips.table[clips.table["row"].isin(part.index)]
    why["only with conditions that cannot be learnt"] = len(
        set(some["participant_id"]) - set(tested["participant_id"])
    )
    notes = [describe_left_out(why), f"{len(tested)} clips of {seconds:g} s"]
    notes += [f"{count} {what}" for (name, what), count in clips.notes.items() if name == cohort]
    if cohort in clips.errors:
        notes.append(f"the first that cannot be read: {clips.errors[cohort]}")
    if study.rare:
        few = ", ".join(f"{name} ({count})" for name, count in study.rare.items())
        notes.append(f"left out, as fewer than {FEWEST} training participants have them: {few}")
    if not study.classes:
        notes.append("fewer than 2 conditions can be learnt")
    elif tested["y"].nunique() == 1:
        notes.append(f"all clips are of {study.classes[int(tested['y'].iloc[0])]}")
    return {"left_out": sum(why.values()), "note": "; ".join(filter(None, notes)) or None}


# ---- methods ------------------------------------------------------------------------------------


class ClipDecoder:
    """All methods, fitted on the training participants' clips.

    The attentive probe and the MLP keep the epoch that is best on the validation participants;
    penalties are chosen by cross-validation over training participants.
    """

    def __init__(self, corpus: Corpus, model, job: Job, points: int, study: LabelledStudy):
        self.corpus, self.model, self.points = corpus, model, points
        self.untrained = make_untrained(model)
        self.seeds, self.classes = job.task.seeds, study.classes
        self._fit(job, study)

    def _fit(self, job: Job, study: LabelledStudy) -> None:
        from .probes import TokenStore, fit_attentive, fit_mlp

        task: StatesTask = job.task
        train = _draw(study.of_split("train"), MOST_CLIPS, task.seeds[0])
        check = _draw(study.of_split("validation"), MOST_CLIPS // 4, task.seeds[0])
        both = pd.concat([train, check])
        store, told = TokenStore(job.out.parent, len(both)), job.count(len(both), "clips")
        parts: dict[str, list[np.ndarray]] = {}
        for features, tokens in self._see(both):
            store.add(tokens)
            for name, values in features.items():
                parts.setdefault(name, []).append(values)
            told(told.done + len(values))
        views = {name: np.concatenate(values) for name, values in parts.items()}
        y, count = both["y"].to_numpy(), len(train)
        groups = train["cohort"] + " " + train["participant_id"]
        self.common = int(np.bincount(y[:count]).argmax())
        self.fixed: dict[str, tuple[str, Callable]] = {}
        told = job.count(len(_FIXED) + 2 * len(self.seeds), "probes")
        for method, view in _FIXED.items():
            print(f"fitting {method} on {count} clips", flush=True)
            fit = fit_logistic(views[view][:count], y[:count], task.seeds[0], groups.to_numpy())
            self.fixed[method] = (view, fit)
            told.add()
        self.share = y[:count]
        options = Finetune(epochs=task.epochs, batch_size=task.batch_size)
        self.attentive, self.mlps = [], []
        device = self.model.cls_token.device
        for seed in self.seeds:
            print(f"fitting {ATTENTIVE} and {MLP}, seed {seed}", flush=True)

            def known(values: np.ndarray, seed: int = seed) -> Known:
                return Known(values[:count], y[:count], values[count:], y[count:],
                             len(self.classes), seed)  # fmt: skip

            places = known(np.arange(len(both)))
            self.attentive.append(fit_attentive(store, places, options, device))
            told.add()
            self.mlps.append(fit_mlp(known(views["raw"]), options, device))
            told.add()

    def _see(self, clips: pd.DataFrame) -> Iterator[tuple[dict[str, np.ndarray], Tokens]]:
        """Features and tokens of clips, some at a time, in their order."""
        from ...model.pooling import summarise_tokens
        from .probes import describe_clips, encode_clips

        for some in read_clips(self.corpus, self.model.scaling, clips, _SIZE):
            features = describe_clips(some, self.points)
            tokens = encode_clips(self.model, some)
            for name, made in (
                ("mean token", tokens),
                ("untrained mean token", encode_clips(self.untrained, some)),
            ):
                mean = summarise_tokens(made, "mean", self.model.components)
                features[name] = mean.float().cpu().numpy()
            yield features, tokens

    def predict(self, clips: pd.DataFrame) -> Scores:
        """The condition of each clip by each method."""
        parts: dict[str, list[np.ndarray]] = {}
        for features, tokens in self._see(clips):
            guesses = {
                method: [balance(fit(features[view]), self.share)]
                for method, (view, fit) in self.fixed.items()
            }
            guesses[ATTENTIVE] = [score(tokens) for score in self.attentive]
            guesses[MLP] = [fit(features["raw"]) for fit in self.mlps]
            for method, scores in guesses.items():
                parts.setdefault(method, []).append(np.stack(scores, 1).argmax(2))
        found = {name: np.concatenate(parts[name]) for name in _ORDER if name in parts}
        return found | {MAJORITY: np.full((len(clips), 1), self.common)}


#: logistic regressions and what they see
_FIXED = {
    LINEAR: "mean token",
    UNTRAINED: "untrained mean token",
    CONNECTIVITY: "connectivity",
    PATTERN: "pattern",
}
_ORDER = (ATTENTIVE, LINEAR, UNTRAINED, CONNECTIVITY, PATTERN, MLP)


def _draw(clips: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """At most so many clips, at random."""
    if len(clips) <= most:
        return clips
    return clips.sample(most, random_state=seed).sort_index()


# ---- scores -------------------------------------------------------------------------------------


def _score(tested: pd.DataFrame, predicted: Scores, classes: Sequence[str], seeds, where: dict,
           options: Evaluate) -> Iterator[dict]:  # fmt: skip
    """Rows of one cohort: pooled, per condition, per seed."""
    y = tested["y"].to_numpy()
    names, who = np.unique(tested["participant_id"].to_numpy(str), return_inverse=True)
    sample = Sample(len(names), options)
    present = np.unique(y)
    hits = {name: count_hits(y, guess, who, present) for name, guess in predicted.items()}
    pairs = [(ATTENTIVE, name) for name in predicted if name != ATTENTIVE]
    pairs += [(name, MAJORITY) for name in _ORDER[1:]]
    pairs += [(name, CONNECTIVITY) for name in _ORDER[1:] if name != CONNECTIVITY]
    pairs += [(LINEAR, UNTRAINED)]
    for metric, of in {"balanced_accuracy": _balanced, "accuracy": _accuracy}.items():
        statistics = {name: of(*sums) for name, sums in hits.items()}
        yield from compare(
            sample, statistics, where | {"level": "pooled", "metric": metric}, pairs
        )
    statistics = {name: _recall(*sums) for name, sums in hits.items()}
    units = [classes[k] for k in present]
    yield from compare(sample, statistics, where | {"level": "condition", "metric": "recall"},
                       units=units)  # fmt: skip
    once = np.ones((1, len(names)))
    for name, (right, total) in hits.items():
        if len(right) > 1:
            row = where | {"method": name, "metric": "balanced_accuracy"}
            values = (float(_balanced(one[None], total)(once)[0]) for one in right)
            yield from rows_of_units(row, "seed", seeds, values)


def count_hits(
    y: np.ndarray, guess: np.ndarray, who: np.ndarray, present: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Clips that are recognised [seeds, S, C] and all clips [S, C], by participant and condition.

    Parameters
    ----------
    y, who : ndarray [K]
        Condition and participant (0 to S - 1) of each clip.
    guess : ndarray [K, seeds]
    present : ndarray [C]
        The conditions to count.
    """
    shape = (int(who.max()) + 1, len(present))
    place = who, np.searchsorted(present, y)
    total, right = np.zeros(shape), np.zeros((guess.shape[1], *shape))
    np.add.at(total, place, 1)
    for counts, of_seed in zip(right, guess.T, strict=True):
        np.add.at(counts, place, of_seed == y)
    return right, total


def _recall(right: np.ndarray, total: np.ndarray) -> Statistic:
    """Share of each condition's clips that is recognised, the mean over seeds; NaN for a resample
    without the condition."""

    def statistic(counts: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return (counts @ right.mean(0)) / (counts @ total)

    return statistic


def _balanced(right: np.ndarray, total: np.ndarray) -> Statistic:
    recall = _recall(right, total)
    return lambda counts: recall(counts).mean(-1)


def _accuracy(right: np.ndarray, total: np.ndarray) -> Statistic:
    return _recall(right.sum(-1), total.sum(-1))


def count_confusions(y: np.ndarray, predicted: Scores, classes: Sequence[str]) -> pd.DataFrame:
    """How many clips of each condition each method takes for each, the mean over seeds."""
    rows = []
    for method, guess in predicted.items():
        counts: Counter[tuple[int, int]] = Counter()
        for of_seed in guess.T:
            counts.update(zip(y.tolist(), of_seed.tolist(), strict=True))
        rows += [
            {"method": method, "true": classes[a], "predicted": classes[b],
             "n": counts[a, b] / guess.shape[1]}
            for a in np.unique(y) for b in range(len(classes))
        ]  # fmt: skip
    return pd.DataFrame(rows)
