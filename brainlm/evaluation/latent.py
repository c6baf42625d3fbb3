"""The latent space: a map of held-out recordings, and what can be read from a neighbourhood.

Paper, Fig. 5: UMAP of CLS tokens coloured by what is known of the participants. A map shows what
its algorithm likes to show, so every colour has a number next to it, taken in the token space and
not in the map: a participant's value is predicted from the nearest recordings of other
participants (the mean of a number, the share of neighbours of the same class), next to what chance
gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from ..cohort.labels import as_word, read_participants
from ..config import Cohort, Evaluate
from .clinical.views import correlate_parcels
from .fingerprint import first_recordings, score_fingerprint
from .job import Job
from .metrics import pearson_r, r2, sum_values
from .participants import KEY, count_absent, long_enough, names_of
from .rows import compare, describe_left_out
from .statistics import Sample, add_by_participant

#: columns that are names even where they are written as numbers
CLASSES = ("site", "sex")
#: token -> name in the tables
TOKENS = {"cls": "CLS token", "mean": "mean of the tokens"}
NEIGHBOURS = 10
_UNENCODED = "embedding without the encoder"
#: fewer points make no map
LEAST_POINTS = 8
_SHUFFLES = 20  # of participants, for chance


def evaluate_latent(job: Job) -> pd.DataFrame:
    """Embed held-out recordings, map them, and score the neighbourhoods.

    Of the task's columns ``mean_fd_mm`` is the recordings' own where it is known, else the table's
    ``mean_fd``. :data:`CLASSES` are classes even as numbers; of the others numbers of more than
    two values are numbers.

    Returns
    -------
    DataFrame
        Target: the column, or ``who is who`` (:mod:`brainlm.evaluation.fingerprint`). Methods:
        either token, and chance (participants shuffled). Numbers: ``r2`` and ``r``; classes:
        ``purity``, the share of neighbours of the same class. The map goes
        next to it as ``<stem>.points.parquet``: x, y, token, cohort, participant_id,
        recording_id, split and the columns.
    """
    columns, options = job.task.colour, job.options
    points, tokens, ends, left_out, recorded = _embed(job)
    embedded = set(points[["cohort", "split"]].itertuples(index=False, name=None))
    rows: list[dict] = [
        {"task": "latent", "cohort": cohort, "split": split, "n": 0,
         "left_out": sum(why.values()), "note": describe_left_out(why)}
        for (cohort, split), why in left_out.items() if (cohort, split) not in embedded
    ]  # fmt: skip
    tables = {cohort.name: _read_table(cohort, columns) for cohort in job.config.cohorts}
    points = points.assign(**_describe(points, tables, columns))
    maps = []
    for token, values in tokens.items():
        x, y = map_points(values, options.seed).T
        maps.append(points.assign(token=token, x=x, y=y))
        for (cohort, split), part in points.groupby(["cohort", "split"], sort=False):
            where = {"task": "latent", "cohort": cohort, "split": split, "level": "pooled"}
            for column in columns:
                own = where | {"target": column, "method": TOKENS[token]}
                why = left_out.get((cohort, split), {})
                if column in (table := tables.get(cohort, pd.DataFrame())):
                    labelled = table[column].dropna().index
                    why = why | count_absent(labelled, names_of(recorded, cohort), split)
                rows += _score(values[part.index], part, column, own, why, options)
    long = np.isfinite(ends["CLS token"]).all((1, 2))
    for (cohort, split), part in points.groupby(["cohort", "split"], sort=False):
        part = part.iloc[first_recordings(part, long[part.index])]
        where = {"task": "latent", "cohort": cohort, "split": split, "level": "pooled"}
        own = {name: values[part.index] for name, values in ends.items()}
        motion = pd.to_numeric(part.get("mean_fd_mm"), errors="coerce").to_numpy(float)
        rows += score_fingerprint(own, motion, where, options)
    job.save("points", pd.concat(maps))
    return job.write(rows)


def _embed(job: Job):
    """Points (one per recording), {token: [N, D]}, {summary: [N, 2, F]} of the first and last
    window (NaN where they would overlap), why participants were left out, by cohort and split, and
    (cohort, participant_id) of all who have a recording."""
    from ..model.pooling import Tokens, component_connectivity, summarise_tokens
    from ..training.device import device_of
    from ..training.windows import Windows

    corpus, model = job.open()
    assert model.scaling is not None
    points, left_out = [], {}
    for cohort, split, part in job.parts(corpus.table, job.task.splits):
        indices, left_out[cohort, split] = long_enough(part, model.config.window)
        if len(indices):
            points.append(corpus.table.loc[indices].assign(split=split, row=indices))
    columns = ["cohort", "participant_id", "recording_id", "split", "mean_fd_mm", "row"]
    table = pd.concat(points) if points else corpus.table[:0].assign(row=[])
    table = table[columns].reset_index(drop=True)
    windows = Windows(corpus, model.scaling, model.config.window, table["row"])
    device = device_of(model)
    tokens: dict[str, list[np.ndarray]] = {token: [] for token in TOKENS}
    summaries = dict(TOKENS)
    if model.config.family == "parcel":
        summaries["connectivity"] = "latent connectivity"
    if model.config.components:
        summaries["components"] = "embedding"
    names = [*summaries.values(), "connectivity"]
    if model.config.components:  # what the embedding's readout finds in the series themselves
        names.append(_UNENCODED)
    ends: dict[str, list[np.ndarray]] = {name: [] for name in names}
    count = job.count(len(table), "recordings")
    for row in table["row"]:
        both = model.embed(windows.cover(int(row)).to(device), "cls+mean").mean(0).cpu()
        for values, half in zip(tokens.values(), both.chunk(2), strict=True):
            values.append(half.numpy())
        signal = windows.even(int(row), 2)
        starts = windows.starts(int(row))
        apart = starts[-1] - starts[0] >= model.config.window
        encoded = model.tokens(signal.to(device))
        for pool, name in summaries.items():
            made = summarise_tokens(encoded, pool, model.components).cpu().numpy()
            ends[name].append(made if apart else np.full((2, made.shape[1]), np.nan))
        made = np.stack([correlate_parcels(window.numpy().T) for window in signal[[0, -1]]])
        ends["connectivity"].append(made if apart else np.full_like(made, np.nan))
        if model.config.components:
            patches, _, missing = model.grid.cut(signal.to(device))
            unencoded = Tokens(patches, ~missing, patches[:, 0])
            made = component_connectivity(unencoded, model.components).cpu().numpy()
            ends[_UNENCODED].append(made if apart else np.full_like(made, np.nan))
        count.add()
    arrays = {token: np.array(values).reshape(len(table), -1) for token, values in tokens.items()}
    recorded = pd.MultiIndex.from_frame(corpus.table[KEY].drop_duplicates())
    stacked = {name: np.stack(v) if v else np.empty((0, 2, 1)) for name, v in ends.items()}
    return table.drop(columns="row"), arrays, stacked, left_out, recorded


def _read_table(cohort: Cohort, columns: Sequence[str]) -> pd.DataFrame:
    """The wanted columns that the participants table has; motion under the wanted name."""
    table = read_participants(cohort, {*columns, "mean_fd"})
    if "mean_fd_mm" not in table and "mean_fd" in table:
        table["mean_fd_mm"] = table["mean_fd"]
    for column in set(CLASSES) & set(table):
        table[column] = table[column].map(as_word, na_action="ignore").astype(object)
    return table


def _describe(points: pd.DataFrame, tables: Mapping[str, pd.DataFrame], columns) -> dict:
    """The wanted columns of each point's participant, missing where no table has them."""
    out = {}
    for column in columns:
        known = pd.Series(np.nan, points.index, dtype=object)
        for cohort, part in points.groupby("cohort"):
            table = tables.get(cohort, pd.DataFrame())
            if column in table:
                known[part.index] = table[column].reindex(part["participant_id"]).to_numpy()
        numbers = pd.to_numeric(known, errors="coerce")
        is_number = column not in CLASSES and numbers.notna().sum() == known.notna().sum()
        values = numbers if is_number else known
        if column in points:  # the recording's own motion comes first
            values = points[column].fillna(numbers)
        out[column] = values
    return out


def standardise(values: np.ndarray) -> np.ndarray:
    """[N, D] each dimension with mean 0 and SD 1 (constant ones 0)."""
    spread = values.std(0) if len(values) else 1.0
    centre = values.mean(0) if len(values) else 0.0
    return (values - centre) / np.where(spread > 1e-9, spread, np.inf)


def map_points(values: np.ndarray, seed: int) -> np.ndarray:
    """[N, 2] UMAP (McInnes et al. 2018) of standardised tokens; NaN for too few points."""
    if len(values) < LEAST_POINTS:
        return np.full((len(values), 2), np.nan)
    from umap import UMAP

    return UMAP(
        n_neighbors=min(15, len(values) - 1), random_state=seed, n_jobs=1,
        init="spectral" if len(values) > 20 else "random",
    ).fit_transform(standardise(values))  # fmt: skip


# ---- neighbourhoods -----------------------------------------------------------------------------


def _score(values: np.ndarray, part: pd.DataFrame, column: str, where: dict,
           why: dict[str, int], options: Evaluate) -> Iterator[dict]:  # fmt: skip
    """Rows of one token, column, cohort and split; `why` others were left out before."""
    total = part["participant_id"].nunique()
    if not part[column].notna().any():
        where["left_out"] = total + sum(why.values())
        yield where | {"n": 0, "note": f"no {column} in its participants table"}
        return
    known = part[column].notna().to_numpy()
    labels, participants = part[column][known], part["participant_id"][known].to_numpy(str)
    count = len(np.unique(participants))
    why = why | {f"without {column}": total - count}
    where = where | {"n": count, "left_out": sum(why.values()), "note": describe_left_out(why)}
    if count <= NEIGHBOURS or labels.nunique() < 2:
        values = labels.nunique()
        note = f"{count} participants with {values} values; more than {NEIGHBOURS} are needed"
        yield where | {"note": "; ".join(filter(None, [note, where["note"]]))}
        return
    near = nearest_of_others(standardise(values)[known], participants)
    numeric = pd.api.types.is_numeric_dtype(labels) and labels.nunique() > 2
    sample = Sample(count, options)
    for metric, formula, sums in _statistics(labels, near, participants, numeric):
        of = {where["method"]: lambda counts: formula(counts @ sums)}  # noqa: B023
        yield from compare(sample, of, where | {"metric": metric})
    rng = np.random.default_rng(options.seed)
    chance: dict[str, list[float]] = {}
    for _ in range(_SHUFFLES):
        mixed = labels.iloc[rng.permutation(len(labels))]
        for metric, formula, sums in _statistics(mixed, near, participants, numeric):
            chance.setdefault(metric, []).append(float(formula(sums.sum(0))))
    for metric, draws in chance.items():
        low, high = np.percentile(draws, [2.5, 97.5])
        note = f"labels shuffled {_SHUFFLES} times; the interval is over shuffles"
        yield where | {"method": f"chance, {where['method']}", "metric": metric, "note": note,
                       "value": float(np.mean(draws)), "low": low, "high": high}  # fmt: skip


def nearest_of_others(values: np.ndarray, participants: np.ndarray, count: int = NEIGHBOURS):
    """[N, k] the nearest points that are of another participant."""
    squares = (values**2).sum(1)
    distance = squares[:, None] + squares - 2 * values @ values.T
    distance[participants[:, None] == participants] = np.inf
    return np.argsort(distance, axis=1, kind="stable")[:, :count]


def _statistics(labels: pd.Series, near: np.ndarray, participants: np.ndarray, numeric: bool):
    """(metric, formula of sums, sums per participant [S, ...]) of the neighbours' prediction."""
    values = labels.to_numpy()
    if numeric:
        guess = values[near].astype(float).mean(1)
        pairs = zip(values.astype(float), guess, strict=True)
        sums = add_by_participant([sum_values(truth, one) for truth, one in pairs], participants)
        return [("r2", r2, sums), ("r", pearson_r, sums)]
    same = (values[near] == values[:, None]).mean(1)
    sums = add_by_participant(np.stack([same, np.ones(len(same))], 1), participants)
    return [("purity", lambda s: s[..., 0] / s[..., 1], sums)]
