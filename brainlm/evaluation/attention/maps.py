"""Where the model looks: CLS-to-parcel attention, and whether it differs between groups.

Paper, section 4.4. A map is the attention of CLS to each parcel in the last layer, relative to
even attention (1), averaged over windows and recordings of a participant. How two groups of
participants, or two conditions of the same participants, are compared: :mod:`.contrasts`. The
model was pretrained without labels, so all participants are used; of an external cohort only
those that it has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ...cohort.labels import as_word, participants_path, read_participants
from ...config import Cohort
from ...errors import BrainLMError
from ..job import Job
from ..participants import KEY, count_absent, long_enough, names_of
from ..rows import describe_left_out
from ..statistics import MIN_PARTICIPANTS
from ..tasks import refuse_held
from .contrasts import Groups, can_compare, compare_groups

#: name of the contrast between conditions: the BIDS entity of a recording
TASK = "task"
#: motion as it was measured here, a column of the recordings
_MOTION = "mean_fd_mm"


def evaluate_attention(job: Job) -> pd.DataFrame:
    """Mean maps of each group and, with a contrast, their difference in every parcel.

    ``contrast`` is a column of the participants tables: of two values, or of numbers (up to the
    median against above it); or ``task``: two BIDS tasks of the same participants. There, in
    ``within`` and in ``adjust``, ``mean_fd_mm`` is the mean over a participant's recordings where
    it was measured, else the table's ``mean_fd``. ``within`` names a column, such as site, within
    whose values groups are compared and labels permuted: what differs between sites can then not
    pass for a difference between groups.

    Returns
    -------
    DataFrame
        The largest \\|t\\| and how many parcels differ (corrected p < 0.05), then one difference
        (second group minus first) per parcel. The maps go next to it as
        ``<stem>.maps.parquet``: cohort, target, group, parcel, n, mean, low, high, difference, p.

    Raises
    ------
    BrainLMError
        Two groups can be compared in no cohort; ``within`` or ``adjust`` without groups of
        participants; ``adjust`` names a column of words.
    """
    task, options = job.task, job.options
    contrast, groups, within, adjust = task.contrast, task.groups, task.within, task.adjust
    if refusal := refuse_held(contrast, within, adjust):
        raise BrainLMError(f"attention: {refusal}")
    maps, left_out, recorded = attention_maps(job)
    refused: dict[str, str] = {}
    rows, tables = [], []
    for cohort in job.config.cohorts:
        part = maps[maps["cohort"] == cohort.name]
        where: dict = {"task": "attention", "target": contrast, "cohort": cohort.name}
        where |= {"split": "all", "method": "CLS attention", "level": "pooled"}
        why = left_out.get(cohort.name, {})
        if not len(part):
            note = describe_left_out(why) or "no recordings"
            rows.append(where | {"n": 0, "left_out": sum(why.values()), "note": note})
            continue
        names = names_of(recorded, cohort.name)
        compared = _assign(part, cohort, names, Contrast(contrast, groups, within, tuple(adjust)))
        if isinstance(compared, str):
            refused[cohort.name] = compared
            total = part["participant_id"].nunique() + sum(why.values())
            rows.append(where | {"n": 0, "left_out": total, "note": compared})
            continue
        compared = replace(compared, left_out=why | compared.left_out)
        table, found = compare_groups(compared, where, task.permutations, options)
        tables.append(table.assign(cohort=cohort.name, target=contrast))
        rows += found
    if contrast and not tables:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise BrainLMError(
            f"attention: no cohort has two groups of {contrast!r} to compare "
            f"({reasons or 'no usable recordings'}); change the task's contrast, groups or within"
        )
    job.save("maps", pd.concat(tables) if tables else pd.DataFrame())
    return job.write(rows)


def attention_maps(
    job: Job,
) -> tuple[pd.DataFrame, dict[str, dict[str, int]], pd.MultiIndex]:
    """One row per recording that holds a window: its metadata and ``map``, an array [R]; by cohort
    how many participants have none, and why; and (cohort, participant_id) of all who have a
    recording,
    usable or not."""
    from ...model.attention_rows import cls_attention
    from ...training.device import device_of
    from ...training.windows import Windows

    corpus, model = job.open()
    assert model.scaling is not None
    device = device_of(model)
    parts = corpus.table.groupby("cohort", sort=False)
    left_out = {str(name): long_enough(part, model.config.window)[1] for name, part in parts}
    rows = corpus.usable(min_timepoints=model.config.window)
    windows = Windows(corpus, model.scaling, model.config.window, rows)
    count, maps = job.count(len(rows), "recordings"), []
    for row in rows:
        maps.append(cls_attention(model, windows.cover(int(row)).to(device)).mean(0).cpu().numpy())
        count.add()
    recorded = pd.MultiIndex.from_frame(corpus.table[KEY].drop_duplicates())
    return corpus.table.loc[rows].assign(map=maps).reset_index(drop=True), left_out, recorded


# ---- groups -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """What a task compares: see :func:`evaluate_attention`."""

    column: str | None
    groups: Sequence[str] | None = None
    within: str | None = None
    adjust: tuple[str, ...] = ()

    @property
    def held(self) -> list[str]:
        """Columns that are held constant."""
        return [*([self.within] if self.within else []), *self.adjust]


def _assign(
    part: pd.DataFrame, cohort: Cohort, recorded: pd.Index, contrast: Contrast
) -> Groups | str:
    """Groups of one cohort's participants, or why they cannot be compared; `recorded` are all with
    a recording."""
    column = contrast.column
    if column == TASK:
        return _conditions(part, contrast.groups)
    participants = part.groupby("participant_id", sort=True)["map"].apply(_mean_map)
    maps = np.stack(participants.to_list())
    if column is None:
        none = np.zeros(len(maps), int)
        return Groups(maps, none.astype(bool), ("all",), none, maps[:, :0], False, {})
    table = _read_table(part, cohort, contrast)
    for name in (column, *contrast.held):
        if name not in table:
            return f"its participants table has no {name!r}"
    try:
        found = _split(maps, table.reindex(participants.index), contrast)
    except BrainLMError as error:
        return str(error)
    words = table[column].dropna().map(as_word)
    labelled = words if contrast.groups is None else words[words.isin(contrast.groups)]
    left_out = found.left_out | count_absent(labelled.index, recorded)
    if not can_compare(found):
        why = f"no two differ in {column} and share {' and '.join(contrast.held)}"
        return "; ".join(filter(None, [why, describe_left_out(left_out)]))
    return replace(found, left_out=left_out)


def _split(maps: np.ndarray, table: pd.DataFrame, contrast: Contrast) -> Groups:
    """Two groups of the participants of `maps`, all of whom have a row. Those who lack something,
    or share their stratum with none of the other group, are left out."""
    column, within = contrast.column, contrast.within
    labels, names = split_in_two(table[column], contrast.groups, str(column))
    known, second = labels.notna().to_numpy(), (labels == names[1]).to_numpy()
    covariates = table[list(contrast.adjust)].to_numpy(float)
    strata = pd.factorize(table[within])[0] if within else np.zeros(len(labels), int)
    complete = known & (strata >= 0) & np.isfinite(covariates).all(1)
    both = set(strata[complete & second]) & set(strata[complete & ~second])
    keep = complete & np.isin(strata, list(both))
    left_out = {
        f"without {column} (or of another group)": int((~known).sum()),
        "without " + " or ".join(contrast.held): int((known & ~complete).sum()),
        "without a participant of the other group"
        + (f" of the same {within}" if within else ""): int((complete & ~keep).sum()),
    }
    strata = pd.factorize(strata[keep])[0]
    return Groups(maps[keep], second[keep], names, strata, covariates[keep], False, left_out)


def _read_table(part: pd.DataFrame, cohort: Cohort, contrast: Contrast) -> pd.DataFrame:
    """The wanted columns of all participants in the table or with a map."""
    wanted = {str(contrast.column), *contrast.held}
    table = read_participants(cohort, wanted | ({"mean_fd"} if _MOTION in wanted else set()))
    if _MOTION in wanted:
        measured = part.groupby("participant_id")[_MOTION].mean()
        table = table.reindex(table.index.union(measured.index))
        source = _MOTION if _MOTION in table else "mean_fd"
        motion = measured.reindex(table.index)
        if source in table:
            motion = motion.fillna(_numbers(table[source], cohort))
        if motion.notna().any():
            table[_MOTION] = motion
    for column in set(contrast.adjust) & set(table):
        table[column] = _numbers(table[column], cohort)
    return table


def _numbers(values: pd.Series, cohort: Cohort) -> pd.Series:
    """A column as numbers, or an error that names the first word in it."""
    numbers = pd.to_numeric(values, errors="coerce")
    bad = values.notna() & numbers.isna()
    if bad.any():
        raise BrainLMError(
            f"{participants_path(cohort)} ({cohort.name}): {values.name} of {bad.idxmax()} is "
            f"{values[bad.idxmax()]!r}, expected a number or n/a; adjust takes numbers, within "
            "takes words"
        )
    return numbers


def split_in_two(
    values: pd.Series, groups: Sequence[str] | None, what: str
) -> tuple[pd.Series, tuple[str, str]]:
    """Group of each participant (missing where unknown) and the two groups' names.

    Raises
    ------
    BrainLMError
        Fewer or more than two values (numbers of more values are cut at the median).
    """
    known = values.dropna()
    words = known.map(as_word)
    found = sorted(words.unique())
    if groups is not None:
        missing = [g for g in groups if g not in found]
        if missing:
            raise BrainLMError(
                f"{what}: no participant is {', '.join(missing)}; found: {', '.join(found[:10])}"
            )
        names = (str(groups[0]), str(groups[1]))
        return words[words.isin(names)].reindex(values.index), names
    if len(found) > 2 and pd.api.types.is_numeric_dtype(known):
        middle = known.median()
        labels = pd.Series(np.where(known > middle, "high", "low"), known.index)
        found = sorted(labels.unique(), reverse=True)
        words = labels
    if len(found) != 2:
        raise BrainLMError(
            f"{what}: expected two groups, found {len(found)}: {', '.join(found[:10])}; name two "
            "of them in the task: groups: [first, second]"
        )
    return words.reindex(values.index), (found[0], found[1])


def _conditions(part: pd.DataFrame, groups) -> Groups | str:
    """Both conditions of the participants who have both, or why they cannot be compared."""
    part = part.assign(condition=part["task"].fillna("none"))
    try:
        labels, names = split_in_two(part["condition"], groups, TASK)
    except BrainLMError as error:
        return str(error)
    part = part.assign(condition=labels)
    maps = part.groupby(["participant_id", "condition"])["map"].apply(_mean_map).unstack()
    both = maps.dropna()
    if len(both) < MIN_PARTICIPANTS:
        return (
            f"{len(both)} participants have both {names[0]} and {names[1]} recordings; at least "
            f"{MIN_PARTICIPANTS} are needed"
        )
    stacked = np.concatenate([np.stack(both[name].to_list()) for name in names])
    second = np.repeat([False, True], len(both))
    left_out = {f"without both {names[0]} and {names[1]}": len(maps) - len(both)}
    pairs = np.tile(np.arange(len(both)), 2)
    return Groups(stacked, second, names, pairs, stacked[:, :0], True, left_out)


def _mean_map(maps: pd.Series) -> np.ndarray:
    """Mean over recordings, of those that have the parcel."""
    stack = np.stack(maps.to_list())
    known = np.isfinite(stack)
    total = np.where(known, stack, 0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
