"""Who is evaluated, what is known of them, and how they are split into folds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..cohort.labels import (
    SMALLEST_CLASS,
    Labels,
    describe_shortage,
    read_column,
    read_columns,
    read_target,
)
from ..cohort.splits import split_of
from ..config import Cohort
from ..errors import BrainLMError
from ..shards import Corpus
from ..shards.censored import holds_window
from .seen import SEEN
from .tasks import QUESTIONS

KEY = ["cohort", "participant_id"]
#: Why a long recording holds no window (:mod:`brainlm.shards.censored`).
CENSORED = "without a window that is half uncensored"
#: Groups (sites) are held out in at most so many folds of whole groups.
MOST_FOLDS = 5


def cohort_parts(
    table: pd.DataFrame, splits: Sequence[str], roles: Mapping[str, str]
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(cohort, name of the split, its rows): external cohorts whole, the others by split."""
    for cohort, rows in table.groupby("cohort", sort=False):
        if roles.get(str(cohort)) == "external":
            yield str(cohort), "all", rows
        else:
            for split in splits:
                yield str(cohort), split, rows[rows["split"] == split]


def long_enough(table: pd.DataFrame, window: int) -> tuple[np.ndarray, dict[str, int]]:
    """Positions of usable recordings, and how many subjects are left out for which reason."""
    ok = table["status"] == "ok"
    long, fits = ok & (table["num_timepoints"] >= window), ok & holds_window(table, window)
    subjects = table["participant_id"]
    usable, enough, kept = set(subjects[ok]), set(subjects[long]), set(subjects[fits])
    seen = set(subjects[table["status"] == SEEN])
    why = {
        SEEN: len(seen),
        "without a usable recording": subjects.nunique() - len(usable | seen),
        f"with fewer than {window} time points": len(usable) - len(enough),
        CENSORED: len(enough) - len(kept),
    }
    return table.index[fits].to_numpy(), why


def list_participants(
    corpus: Corpus,
    labels: pd.Series,
    *,
    roles: Mapping[str, str] | None = None,
    motion: pd.Series | None = None,
    min_timepoints: int = 1,
) -> pd.DataFrame:
    """One row per subject of the corpus, by (cohort, participant_id).

    Columns: ``split``, ``external``, ``label``, ``mean_fd_mm``, ``seen`` (in training), ``rows``
    (usable rows of the corpus that hold `min_timepoints`), ``recorded`` (has a usable
    recording of any length), ``long`` (one of `min_timepoints`, censored or not) and ``ready``
    (has a label and rows).
    """
    usable = corpus.table["status"] == "ok"
    fits = usable & holds_window(corpus.table, min_timepoints)
    groups = corpus.table.groupby(KEY, sort=False)
    participants = groups["split"].first().to_frame()
    participants["external"] = [
        (roles or {}).get(cohort) == "external" for cohort, _ in participants.index
    ]  # fmt: skip
    again = corpus.table["status"] == SEEN
    participants["seen"] = again.groupby([corpus.table[k] for k in KEY], sort=False).any()
    participants["recorded"] = usable.groupby([corpus.table[k] for k in KEY], sort=False).any()
    long = usable & (corpus.table["num_timepoints"] >= min_timepoints)
    participants["long"] = long.groupby([corpus.table[k] for k in KEY], sort=False).any()
    participants["rows"] = groups.apply(
        lambda g: g.index[fits[g.index]].tolist(), include_groups=False
    )
    participants["mean_fd_mm"] = corpus.table[usable].groupby(KEY)["mean_fd_mm"].mean()
    if motion is not None:
        participants["mean_fd_mm"] = participants["mean_fd_mm"].fillna(
            motion.reindex(participants.index)
        )
    participants["label"] = labels.reindex(participants.index)
    participants["ready"] = participants["label"].notna() & (participants["rows"].str.len() > 0)
    return participants


@dataclass(frozen=True)
class Population:
    """Who a clinical task is about: the same participants for every method and every fit.

    Attributes
    ----------
    participants : DataFrame
        See :func:`list_participants`; ``class left out`` names a class that is too rare.
    labels : Labels
        Without classes that are too rare.
    shortage : str or None
        Why nothing can be learnt.
    """

    participants: pd.DataFrame
    labels: Labels
    shortage: str | None

    @classmethod
    def of(cls, corpus: Corpus, labels: Labels, window: int, *,
           roles: Mapping[str, str] | None = None, motion: pd.Series | None = None
           ) -> Population:  # fmt: skip
        candidates = list_participants(corpus, labels.values, roles=roles)
        inside = candidates["recorded"] & ~candidates["external"]
        train = candidates.index[inside & (candidates["split"] == "train")]
        shortage = describe_shortage(labels, train)
        labels, rare = labels.drop_small_classes(train)
        participants = list_participants(
            corpus, labels.values, roles=roles, motion=motion, min_timepoints=window
        )
        participants["class left out"] = rare.reindex(participants.index)
        return cls(participants, labels, shortage)

    def describe_rare(self) -> str | None:
        """Classes that are too rare to be predicted."""
        names = self.participants["class left out"].dropna().value_counts()
        return "; ".join(
            f"class {name} ({count} in all) has fewer than {SMALLEST_CLASS} training participants"
            for name, count in names.items()
        ) or None  # fmt: skip

    def describe_lack(self, split: Split) -> str | None:
        """Why nothing can be learnt from a fold's training participants, or None."""
        known = self.participants.loc[split.train, "label"].astype(
            int if self.labels.classes else float
        )
        lacking = sorted(set(range(len(self.labels.classes))) - set(known))
        if lacking:
            names = ", ".join(self.labels.classes[k] for k in lacking)
            return f"no training participant is {names}"
        return None if len(known) else "no training participants"


def read_motion(cohorts: Sequence[Cohort]) -> pd.Series | None:
    """Mean framewise displacement (mm) of cohorts that enter as series, if a table has it."""
    known = "mean_fd" in read_columns(cohorts)
    return read_target(cohorts, "mean_fd") if known else None


def read_questionnaires(
    cohorts: Sequence[Cohort], participants: pd.DataFrame, columns: Sequence[str]
) -> pd.DataFrame:
    """`participants` with a column ``is:<name>`` for each of `columns` that a table has.

    Any of :data:`QUESTIONS`' names will do. Ages are numbers where all are, else words, as sites
    are (a site's number is its name).
    """
    participants = participants.copy()
    for name in columns:
        called = [(c, column) for c in cohorts if (column := _find_question(name, c))]
        if called:
            text = pd.concat([read_column(cohort, column) for cohort, column in called])
            text = text.reindex(participants.index)
            numbers = pd.to_numeric(text, errors="coerce")
            is_number = numbers.notna().sum() == text.notna().sum() > 0
            participants[f"is:{name}"] = numbers if name == "age" and is_number else text
    return participants


def _find_question(name: str, cohort: Cohort) -> str | None:
    """The column of a cohort's table that holds the answer."""
    header = {column.casefold(): column for column in sorted(read_columns([cohort]))}
    return next((header[called] for called in QUESTIONS[name] if called in header), None)


def count_left_out(part: pd.DataFrame, min_timepoints: int) -> dict[str, int]:
    """Why participants of a table are not ready, each counted once."""
    no_rows, rare = part["rows"].str.len() == 0, part["class left out"]
    short = part["recorded"] & ~part["long"]
    return {
        SEEN: int(part["seen"].sum()),
        "without a usable recording": int((~part["recorded"] & ~part["seen"]).sum()),
        f"with fewer than {min_timepoints} time points": int((no_rows & short).sum()),
        CENSORED: int((no_rows & part["recorded"] & ~short).sum()),
        "without a label": int((part["label"].isna() & rare.isna() & ~no_rows).sum()),
        **{f"of class {k}": int(n) for k, n in rare[~no_rows].value_counts().items()},
    }


def names_of(index: pd.MultiIndex, cohort: str) -> pd.Index:
    """participant_id of a cohort's participants in an index by (cohort, participant_id)."""
    return index[index.get_level_values(0) == cohort].get_level_values(1)


def count_absent(labelled: pd.Index, recorded: pd.Index, split: str = "all") -> dict[str, int]:
    """Participants of a cohort with a label and no recording at all, by the reason's words.

    `split` is who is asked for: ``all``, or those who would be in ``test`` (or another), whatever
    follows after a comma.
    """
    wanted, names = split.partition(",")[0], labelled.difference(recorded)
    count = sum(wanted in ("all", split_of(name)) for name in names)
    return {"with a label and no recording at all": count}


@dataclass(frozen=True)
class Split:
    """Participants of one fold, as keys of the participants table."""

    train: pd.Index
    validation: pd.Index
    test: pd.Index


def split_participants(participants: pd.DataFrame) -> Split:
    """The stable split of reference cohorts; external cohorts are tested whole."""
    inside = participants["ready"] & ~participants["external"]
    train = participants.index[inside & (participants["split"] == "train")]
    validation = participants.index[inside & (participants["split"] == "validation")]
    tested = participants["ready"] & (participants["external"] | (participants["split"] == "test"))
    return Split(train, validation, participants.index[tested])


def hold_out_groups(participants: pd.DataFrame, groups: pd.Series) -> Iterator[Split]:
    """Folds of whole groups: no member of a test participant's group is trained or validated on.

    Within a fold the stable split holds: test participants are of its test split, so that the
    pretrained model never saw them either.

    Raises
    ------
    BrainLMError
        All participants are of one group.
    """
    inside = participants.index[participants["ready"] & ~participants["external"] & groups.notna()]
    split = participants["split"].reindex(inside)
    if groups.reindex(inside).nunique() < 2:
        found = ", ".join(sorted(groups.dropna().unique())) or "n/a"
        raise BrainLMError(
            f"groups: {groups.name} is {found} for all {len(inside)} participants with a label: "
            "no group can be held out; name another column, or leave groups out of the task's file"
        )
    for held in fold_groups(groups.reindex(inside)):
        out = groups.reindex(inside).isin(held)
        yield Split(*(
            inside[(out if name == "test" else ~out) & (split == name)]
            for name in ("train", "validation", "test")
        ))  # fmt: skip


def hold_out_every_group(participants: pd.DataFrame, groups: pd.Series) -> Iterator[Split]:
    """Every group held out in turn, all tested: for methods that need no pretraining."""
    inside = participants.index[participants["ready"] & ~participants["external"] & groups.notna()]
    validation = participants["split"].reindex(inside) == "validation"
    known = groups.reindex(inside)
    for group in sorted(known.unique()):
        others = known != group
        yield Split(inside[others & ~validation], inside[others & validation], inside[~others])


def fold_groups(groups: pd.Series) -> list[set[str]]:
    """At most :data:`MOST_FOLDS` sets of groups of about as many participants each.

    The largest group first, each into the smallest fold, as scikit-learn's GroupKFold does. That
    leaves the order of equally large groups to its sort; here their names decide, as fine-tuned
    models are stored by the number of their fold.
    """
    sizes = groups.value_counts().sort_index(kind="stable").sort_values(
        ascending=False, kind="stable"
    )  # fmt: skip
    folds: list[set[str]] = [set() for _ in range(min(MOST_FOLDS, len(sizes)))]
    filled = np.zeros(len(folds))
    for group, size in sizes.items():
        smallest = int(filled.argmin())
        folds[smallest].add(str(group))
        filled[smallest] += size
    return folds
