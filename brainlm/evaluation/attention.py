"""Where the model looks: CLS-to-parcel attention, and whether it differs between groups.

Paper, section 4.4. A map is the attention of CLS to each parcel in the last layer, relative to
even attention (1), averaged over windows and recordings of a person. Two groups of people are
compared by Welch's t, two conditions of the same people by a paired t; p values come from
permutations (of group labels, or of signs) and the largest |t| over parcels, so they hold for all
parcels together. The model was pretrained without labels, so all people are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ..cohort.labels import read_participants
from ..config import Cohort, Evaluate
from ..errors import BrainLMError
from ..files import atomic_path
from ..shards import Corpus
from .job import Job, open_model
from .metrics import MIN_SUBJECTS, draw_counts, percentiles
from .people import long_enough
from .significance import max_statistic_p
from .tables import describe_left_out, write_results

#: name of the contrast between conditions: the BIDS entity of a recording
TASK = "task"
_PERSON = ["cohort", "participant_id"]


def run(job: Job) -> pd.DataFrame:
    """An attention task of a study."""
    task = job.task
    return evaluate_attention(
        job.models / "pretrain",
        job.shards,
        job.config.cohorts,
        job.out,
        options=job.config.evaluate,
        contrast=task.contrast,
        groups=task.groups,
        within=task.within,
        adjust=task.adjust,
        permutations=task.permutations,
        config=job.fingerprint,
    )


def evaluate_attention(
    model_folder: Path,
    shards: Sequence[Path],
    cohorts: Sequence[Cohort],
    out: Path,
    *,
    options: Evaluate,
    contrast: str | None = None,
    groups: Sequence[str] | None = None,
    within: str | None = None,
    adjust: Sequence[str] = (),
    permutations: int = 2000,
    config: str | None = None,
) -> pd.DataFrame:
    """Mean maps of each group and, with a contrast, their difference in every parcel.

    Parameters
    ----------
    model_folder : Path
        The pretrained model.
    contrast : str, optional
        A column of the participants tables: of two values, or of numbers (up to the median
        against above it); ``task``: two BIDS tasks of the same people.
    groups : (str, str), optional
        The two values to compare where there are more; the difference is second minus first.
    within : str, optional
        A column, such as site, within whose values labels are permuted: what differs between
        sites can then not pass for a difference between groups.
    adjust : sequence of str
        Columns of numbers, such as motion, that are regressed out of the maps of all people
        before groups are compared.
    permutations : int

    Returns
    -------
    DataFrame
        See :data:`brainlm.evaluation.tables.COLUMNS`: the largest \\|t\\| and how many parcels
        differ (corrected p < 0.05), then one difference per parcel. The maps go beside it as
        ``<stem>.maps.parquet``: cohort, target, group, parcel, n, mean, low, high, difference, p.

    Raises
    ------
    BrainLMError
        No table has the column, or it does not make two groups.
    """
    maps, left_out = attention_maps(model_folder, shards)
    rows, tables = [], []
    for cohort in cohorts:
        part = maps[maps["cohort"] == cohort.name]
        where: dict = {"task": "attention", "target": contrast, "cohort": cohort.name}
        where |= {"split": "all", "method": "CLS attention", "level": "pooled"}
        why = left_out.get(cohort.name, {})
        if not len(part):
            note = describe_left_out(why) or "no recordings"
            rows.append(where | {"n": 0, "left_out": sum(why.values()), "note": note})
            continue
        people = _assign(part, cohort, contrast, groups, within, adjust)
        if people is None:
            everybody = part["participant_id"].nunique() + sum(why.values())
            note = f"its participants table has no {contrast!r}"
            rows.append(where | {"n": 0, "left_out": everybody, "note": note})
            continue
        people = replace(people, left_out=why | people.left_out)
        table, found = _compare(people, where, permutations, options)
        tables.append(table.assign(cohort=cohort.name, target=contrast))
        rows += found
    if contrast and not tables:
        raise BrainLMError(
            f"attention: no cohort with usable recordings has a column {contrast!r}; name another "
            f"in the task's contrast, or {TASK!r}"
        )
    with atomic_path(out.with_suffix(".maps.parquet")) as temporary:
        (pd.concat(tables) if tables else pd.DataFrame()).to_parquet(temporary, index=False)
    return write_results(rows, out, options.seed, config)


def attention_maps(
    model_folder: Path, shards: Sequence[Path]
) -> tuple[pd.DataFrame, dict[str, dict[str, int]]]:
    """One row per recording that holds a window: its metadata and ``map``, an array [R]; and by
    cohort how many people have none, and why."""
    from ..model.rows import cls_attention
    from ..training.windows import Windows

    corpus = Corpus(shards)
    model = open_model(model_folder, corpus)
    assert model.scaling is not None
    device = next(model.parameters()).device
    parts = corpus.table.groupby("cohort", sort=False)
    left_out = {str(name): long_enough(part, model.config.window)[1] for name, part in parts}
    rows = corpus.usable(min_timepoints=model.config.window)
    windows = Windows(corpus, model.scaling, model.config.window, rows)
    maps = [
        cls_attention(model, windows.cover(int(row)).to(device)).mean(0).cpu().numpy()
        for row in rows
    ]
    return corpus.table.loc[rows].assign(map=maps).reset_index(drop=True), left_out


# ---- groups -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class People:
    """Maps of people (or of people and condition) with their group.

    Attributes
    ----------
    maps : ndarray [S, R]
        Paired contrasts: of the first condition, then the second, of the same people.
    second : ndarray [S] bool
        In the second group; all False without a contrast.
    names : tuple of str
        Of the groups.
    strata : ndarray [S] int
        Labels are permuted within these.
    paired : bool
    left_out : dict of reason to count of people
    """

    maps: np.ndarray
    second: np.ndarray
    names: tuple[str, ...]
    strata: np.ndarray
    paired: bool
    left_out: dict[str, int]


def _assign(part, cohort: Cohort, contrast, groups, within, adjust) -> People | None:
    """Groups of one cohort's people; None when its table lacks the column."""
    if contrast == TASK:
        return _conditions(part, groups)
    people = part.groupby("participant_id", sort=True)["map"].apply(_mean_map)
    maps = np.stack(people.to_list())
    if contrast is None:
        none = np.zeros(len(maps), bool)
        return People(maps, none, ("all",), none.astype(int), False, {})
    table = read_participants(cohort).reindex(people.index)
    if contrast not in table:
        return None
    for column in (within, *adjust):
        if column is not None and column not in table:
            raise BrainLMError(f"attention: {cohort.name} has no column {column!r}")
    labels, names = split_in_two(table[contrast], groups, f"{cohort.name}: {contrast}")
    strata = pd.factorize(table[within])[0] if within else np.zeros(len(labels), int)
    known = labels.notna().to_numpy()
    complete = (strata >= 0) & table[list(adjust)].notna().all(axis=1).to_numpy()
    keep = known & complete
    left_out = {f"without {contrast} (or of another group)": int((~known).sum())}
    left_out["without " + " or ".join(filter(None, [within, *adjust]))] = int(
        (known & ~keep).sum()
    )
    second = (labels == names[1]).to_numpy()[keep]
    cleaned = regress_out(maps[keep], table.loc[keep, list(adjust)].to_numpy(float))
    return People(cleaned, second, names, strata[keep], False, left_out)


def regress_out(maps: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Maps [S, R] without what is linear in the columns [S, C]; means are kept."""
    if not columns.shape[1]:
        return maps
    mean = _mean(maps)
    filled = np.where(np.isfinite(maps), maps, mean) - mean
    centred = columns - columns.mean(0)
    weights = np.linalg.lstsq(centred, filled, rcond=None)[0]
    return maps - centred @ weights


def split_in_two(
    values: pd.Series, groups: Sequence[str] | None, what: str
) -> tuple[pd.Series, tuple[str, str]]:
    """Group of each person (missing where unknown) and the two groups' names.

    Raises
    ------
    BrainLMError
        Fewer or more than two values (numbers of more values are cut at the median).
    """
    known = values.dropna()
    words = known.map(lambda v: f"{v:g}" if isinstance(v, int | float) else str(v))
    found = sorted(words.unique())
    if groups is not None:
        missing = [g for g in groups if g not in found]
        if missing:
            raise BrainLMError(
                f"{what}: no one is {', '.join(missing)}; found: {', '.join(found[:10])}"
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


def _conditions(part: pd.DataFrame, groups) -> People:
    """Both conditions of the people who have both."""
    part = part.assign(condition=part["task"].fillna("none"))
    labels, names = split_in_two(part["condition"], groups, "task")
    part = part.assign(condition=labels)
    maps = part.groupby(["participant_id", "condition"])["map"].apply(_mean_map).unstack()
    both = maps.dropna()
    if len(both) < MIN_SUBJECTS:
        raise BrainLMError(
            f"attention: {len(both)} people have both {names[0]} and {names[1]} recordings; at "
            f"least {MIN_SUBJECTS} are needed"
        )
    stacked = np.concatenate([np.stack(both[name].to_list()) for name in names])
    second = np.repeat([False, True], len(both))
    left_out = {f"without both {names[0]} and {names[1]}": len(maps) - len(both)}
    return People(stacked, second, names, np.tile(np.arange(len(both)), 2), True, left_out)


def _mean_map(maps: pd.Series) -> np.ndarray:
    """Mean over recordings, of those that have the parcel."""
    stack = np.stack(maps.to_list())
    known = np.isfinite(stack)
    total = np.where(known, stack, 0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


# ---- comparison ---------------------------------------------------------------------------------


def _compare(people: People, where: dict, permutations: int, options: Evaluate):
    """The table of maps, and rows of results."""
    parts = [people.maps[~people.second], people.maps[people.second]][: len(people.names)]
    sizes = ", ".join(f"{n} {len(m)}" for n, m in zip(people.names, parts, strict=True))
    note = "; ".join(filter(None, [sizes, describe_left_out(people.left_out)]))
    count = len(parts[0]) if people.paired else len(people.maps)
    where = where | {"n": count, "left_out": sum(people.left_out.values()), "note": note}
    draws = [_mean_draws(part, options, paired=people.paired, group=g)
             for g, part in enumerate(parts)]  # fmt: skip
    if len(parts) == 1 or min(map(len, parts)) < MIN_SUBJECTS:
        gap = p = np.full(people.maps.shape[1], np.nan)
        rows = [where]
        if len(parts) > 1:
            rows = [where | {"note": f"{note}; a group of fewer than {MIN_SUBJECTS} people"}]
    else:
        observed, p = _test(people, permutations, options.seed)
        gap = _mean(parts[1]) - _mean(parts[0])
        rows = list(_rows(where, observed, p, gap, draws[1] - draws[0]))
    tables = []
    for name, part, values in zip(people.names, parts, draws, strict=True):
        low, high = _interval(values, len(part))
        tables.append(pd.DataFrame({
            "group": name, "parcel": np.arange(1, len(p) + 1), "n": len(part), "mean": _mean(part),
            "low": low, "high": high, "difference": gap, "p": p}))  # fmt: skip
    return pd.concat(tables), rows


def _rows(where: dict, observed, p, gap, draws) -> Iterator[dict]:
    """The whole-brain rows, then one per parcel."""
    yield where | {"metric": "max_t", "value": float(np.nanmax(np.abs(observed))),
                   "p": float(np.nanmin(p))}  # fmt: skip
    yield where | {"metric": "parcels_p05", "value": float((p < 0.05).sum())}
    low, high = _interval(draws, where["n"])
    for parcel in range(len(p)):
        yield where | {"level": "parcel", "unit": str(parcel + 1), "metric": "difference",
                       "value": gap[parcel], "low": low[parcel], "high": high[parcel],
                       "p": p[parcel]}  # fmt: skip


def _test(people: People, permutations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """t of every parcel [R], and its family-wise corrected p."""
    rng = np.random.default_rng(seed)
    if people.paired:
        half = len(people.maps) // 2
        gap = people.maps[half:] - people.maps[:half]
        signs = rng.choice([-1.0, 1.0], size=(permutations, half))
        observed = paired_t(gap)
        return observed, max_statistic_p(lambda s: paired_t(gap * s[:, None]), observed, signs)
    keys = rng.random((permutations, len(people.maps)))
    order = np.argsort(people.strata, kind="stable")
    labels = people.second[order]  # grouped by stratum; permuted inside by sorting random keys
    places = np.stack([np.lexsort((key, people.strata)) for key in keys])
    shuffled = np.empty((permutations, len(order)), bool)
    np.put_along_axis(shuffled, places, np.broadcast_to(labels, places.shape), 1)
    observed = welch_t(people.maps, people.second)
    return observed, max_statistic_p(lambda g: welch_t(people.maps, g), observed, shuffled)


def welch_t(maps: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[R] t of the second group's mean minus the first's, unequal variances; NaN left out."""
    mean, error = [], []
    known = np.isfinite(maps)
    filled = np.where(known, maps, 0)
    for group in (~second, second):
        weight = group.astype(float)
        n = weight @ known
        with np.errstate(invalid="ignore", divide="ignore"):
            mean.append(weight @ filled / n)
            spread = weight @ filled**2 / n - mean[-1] ** 2
            error.append(np.where(n > 1, spread / (n - 1), np.nan))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (mean[1] - mean[0]) / np.sqrt(error[0] + error[1])


def paired_t(gap: np.ndarray) -> np.ndarray:
    """[R] one-sample t of differences [S, R]; NaN left out."""
    n = np.isfinite(gap).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _mean(gap) / (np.sqrt(_mean(gap**2) - _mean(gap) ** 2) / np.sqrt(n - 1))


def _mean(maps: np.ndarray) -> np.ndarray:
    """[R] of the people who have the parcel."""
    known = np.isfinite(maps)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, maps, 0).sum(0) / known.sum(0)


def _mean_draws(maps: np.ndarray, options: Evaluate, *, paired: bool, group: int) -> np.ndarray:
    """[B, R] bootstrap means over people; the same people are drawn for both conditions."""
    counts = draw_counts(len(maps), options.bootstrap, options.seed + (0 if paired else group))
    known = np.isfinite(maps)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (counts @ np.where(known, maps, 0)) / (counts @ known)


def _interval(draws: np.ndarray, people: int) -> np.ndarray:
    """[2, R] the middle 95 % of bootstrap values [B, R]; NaN for fewer than three people."""
    if people < MIN_SUBJECTS:
        return np.full((2, draws.shape[1]), np.nan)
    return percentiles(draws)
