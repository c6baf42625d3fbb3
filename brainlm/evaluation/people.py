"""Who is evaluated, what is known of them, and how they are split into folds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..cohort.labels import read_column, read_columns, read_target
from ..cohort.splits import split_of
from ..config import Cohort
from ..shards import Corpus

KEY = ["cohort", "participant_id"]
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
    fits = ok & (table["num_timepoints"] >= window)
    subjects = table["participant_id"]
    usable, kept = set(subjects[ok]), set(subjects[fits])
    why = {
        "without a usable recording": subjects.nunique() - len(usable),
        f"with fewer than {window} time points": len(usable) - len(kept),
    }
    return table.index[fits].to_numpy(), why


def list_people(
    corpus: Corpus,
    labels: pd.Series,
    *,
    roles: Mapping[str, str] | None = None,
    motion: pd.Series | None = None,
    min_timepoints: int = 1,
) -> pd.DataFrame:
    """One row per subject of the corpus, by (cohort, participant_id).

    Columns: ``split``, ``external``, ``label``, ``mean_fd_mm``, ``rows`` (usable rows of the
    corpus with at least `min_timepoints`), ``recorded`` (has a usable recording of any length)
    and ``ready`` (has a label and rows).
    """
    usable = corpus.table["status"] == "ok"
    fits = usable & (corpus.table["num_timepoints"] >= min_timepoints)
    groups = corpus.table.groupby(KEY, sort=False)
    people = groups["split"].first().to_frame()
    people["external"] = [
        (roles or {}).get(cohort) == "external" for cohort, _ in people.index
    ]  # fmt: skip
    people["recorded"] = usable.groupby([corpus.table[k] for k in KEY], sort=False).any()
    people["rows"] = groups.apply(lambda g: g.index[fits[g.index]].tolist(), include_groups=False)
    people["mean_fd_mm"] = corpus.table[usable].groupby(KEY)["mean_fd_mm"].mean()
    if motion is not None:
        people["mean_fd_mm"] = people["mean_fd_mm"].fillna(motion.reindex(people.index))
    people["label"] = labels.reindex(people.index)
    people["ready"] = people["label"].notna() & (people["rows"].str.len() > 0)
    return people


def list_trainable(people: pd.DataFrame) -> pd.Index:
    """Training people of reference cohorts who have a usable recording, labelled or not."""
    inside = people["recorded"] & ~people["external"]
    return people.index[inside & (people["split"] == "train")]


def read_motion(cohorts: Sequence[Cohort]) -> pd.Series | None:
    """Mean framewise displacement (mm) of cohorts that enter as series, if a table has it."""
    known = "mean_fd" in read_columns(cohorts)
    return read_target(cohorts, "mean_fd") if known else None


def read_questionnaires(
    cohorts: Sequence[Cohort], people: pd.DataFrame, columns: Sequence[str]
) -> pd.DataFrame:
    """`people` with a column ``is:<name>`` for those of `columns` that a table has: numbers where
    all values are, else words."""
    known = read_columns(cohorts)
    people = people.copy()
    for name in columns:
        if name in known:
            text = pd.concat([read_column(cohort, name) for cohort in cohorts])
            text = text.reindex(people.index)
            numbers = pd.to_numeric(text, errors="coerce")
            is_number = numbers.notna().sum() == text.notna().sum() > 0
            people[f"is:{name}"] = numbers if is_number else text
    return people


def count_left_out(part: pd.DataFrame, min_timepoints: int) -> dict[str, int]:
    """Why people of a table are not ready, each counted once."""
    no_rows = part["rows"].str.len() == 0
    return {
        "without a usable recording": int((~part["recorded"]).sum()),
        f"with fewer than {min_timepoints} time points": int((no_rows & part["recorded"]).sum()),
        "without a label": int((part["label"].isna() & ~no_rows).sum()),
    }


def count_absent(labels: pd.Series, people: pd.DataFrame, cohort: str, split: str) -> int:
    """People of a cohort with a label and no recording at all, who would be in `split`: ``test``
    or ``all``, whatever follows the word."""
    known = labels.dropna().index
    absent = known[known.get_level_values("cohort") == cohort].difference(people.index)
    names = absent.get_level_values("participant_id")
    return sum(split.startswith("all") or split_of(name) == "test" for name in names)


@dataclass(frozen=True)
class Split:
    """People of one fold, as keys of the people table."""

    train: pd.Index
    validation: pd.Index
    test: pd.Index


def split_people(people: pd.DataFrame) -> Split:
    """The stable split of reference cohorts; external cohorts are tested whole."""
    inside = people["ready"] & ~people["external"]
    train = people.index[inside & (people["split"] == "train")]
    validation = people.index[inside & (people["split"] == "validation")]
    tested = people["ready"] & (people["external"] | (people["split"] == "test"))
    return Split(train, validation, people.index[tested])


def hold_out_groups(people: pd.DataFrame, groups: pd.Series) -> Iterator[Split]:
    """Folds of whole groups: nobody of a test person's group is trained or validated on.

    Within a fold the stable split holds: test people are of its test split, so that the
    pretrained model never saw them either.
    """
    inside = people.index[people["ready"] & ~people["external"] & groups.notna()]
    split = people["split"].reindex(inside)
    for held in fold_groups(groups.reindex(inside)):
        out = groups.reindex(inside).isin(held)
        yield Split(*(
            inside[(out if name == "test" else ~out) & (split == name)]
            for name in ("train", "validation", "test")
        ))  # fmt: skip


def hold_out_groups_of_everybody(people: pd.DataFrame, groups: pd.Series) -> Iterator[Split]:
    """Every group held out in turn, everybody tested: for methods that need no pretraining."""
    inside = people.index[people["ready"] & ~people["external"] & groups.notna()]
    validation = people["split"].reindex(inside) == "validation"
    known = groups.reindex(inside)
    for group in sorted(known.unique()):
        others = known != group
        yield Split(inside[others & ~validation], inside[others & validation], inside[~others])


def fold_groups(groups: pd.Series) -> list[set[str]]:
    """At most :data:`MOST_FOLDS` sets of groups of about as many people each, largest first."""
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
