"""What to distrust, in plain words, found in the figures themselves."""

from __future__ import annotations

import pandas as pd

from ..training.predictors import PREDICTORS
from .blocks import count, join_words, show, show_interval
from .facts import Facts

_FEW_PEOPLE = 30
_LITTLE = 0.05  # R² below which a reconstruction is nothing to speak of
_HARMLESS = ("ok", "too_short", "excluded", "pending")


def list_cautions(facts: Facts) -> list[str]:
    """Sentences, the gravest first; empty only if there is truly nothing to say."""
    found = [
        *_about_data(facts), *_about_training(facts), *_about_reconstruction(facts),
        *_about_targets(facts), *_about_methods(facts),
    ]  # fmt: skip
    if all(cohort.role == "reference" for cohort in facts.config.cohorts):
        found.append(
            "No external cohort was evaluated: how the figures carry over to other scanners and "
            "people is not known."
        )
    return [*found, *_about_seeds(facts)]


def _about_seeds(facts: Facts) -> list[str]:
    """What was fitted once, so that nothing is known of how fits differ."""
    found = []
    if facts.model:
        found.append(
            f"One model was pretrained (seed {facts.config.pretrain.seed}): how much another "
            "pretraining would differ is not in the intervals."
        )
    once = [
        name
        for name, task in facts.tasks.items()
        if len(getattr(task, "seeds", ())) == 1 and facts.results.get(name) is not None
    ]
    if once:
        found.append(
            f"{join_words(once)}: one seed only, so how much fits differ is not in the intervals."
        )
    return found


def _about_data(facts: Facts) -> list[str]:
    found, table = [], facts.recordings
    if facts.info is not None and facts.info.atlas.startswith("demo"):
        found.append("The atlas is the demonstration's: nothing here is a finding about brains.")
    failed = table[~table["status"].isin(_HARMLESS)]
    pending = table[table["status"] == "pending"]
    if len(failed):
        share = len(failed) / max(len(table) - len(pending), 1)
        found.append(f"{count(len(failed), 'recording')} failed ({share:.0%}); see why below.")
    if facts.scaling is not None:
        other = table[table["units"].notna() & (table["units"] != facts.scaling.units)]
        for cohort, part in other.groupby("cohort", sort=False):
            found.append(
                f"Series of {cohort} are {part['units'].iloc[0]}, the model learnt series "
                f"{facts.scaling.units}: if they are not of about the same size, what it says of "
                "them means little."
            )
    window = facts.model.get("window", facts.config.model.window)
    short = (table["status"] == "ok") & (table["num_timepoints"] < window)
    if short.any():
        found.append(
            f"{count(int(short.sum()), 'usable recording')} shorter than a window of the model "
            f"({window} time points): no model is trained or evaluated on "
            f"{'it' if short.sum() == 1 else 'them'}."
        )
    if len(pending):
        found.append(f"{count(len(pending), 'recording')} were not processed yet.")
    if facts.scaling is not None and not facts.scaling.usable.all():
        lost = int((~facts.scaling.usable).sum())
        found.append(f"{count(lost, 'parcel')} never had data and are missing everywhere.")
    return found


def _about_training(facts: Facts) -> list[str]:
    curve = facts.curve
    if curve.empty or "r2" not in curve:
        return []
    last = curve[curve["split"] == "validation"].dropna(subset=["r2"]).tail(1)
    if last.empty:
        return ["No validation recording: whether the model overfits is not known."]
    row = last.iloc[0]
    columns = {name: row.get(f"r2_{name}") for name in PREDICTORS}
    scores = {name: float(value) for name, value in columns.items() if pd.notna(value)}
    best = max(scores, key=lambda name: scores[name], default=None)
    if best is not None and row["r2"] <= scores[best]:
        return [
            f"The pretrained model (masked R² {show(float(row['r2']))} on validation) does not "
            f"beat {PREDICTORS[best]} ({show(scores[best])}): it was trained too little, or on "
            "too few participants, to have learnt what that knows."
        ]
    return []


def _about_reconstruction(facts: Facts) -> list[str]:
    table = facts.results.get("reconstruction")
    if table is None:
        return ["Reconstruction on held-out people was not evaluated."]
    found = _about_people(table, "reconstruction")
    r2 = table[(table["metric"] == "r2") & (table["level"] == "pooled")]
    for (hidden, cohort), part in r2.groupby(["target", "cohort"], sort=False):
        where = f"Reconstruction, {hidden} hidden, {cohort}: the model"
        found += _compare(f"{where} is", part, "model")
        for row in part[(part["method"] == "model") & (part["value"] < _LITTLE)].itertuples():
            found.append(
                f"{where} explains almost nothing "
                f"(R² {show_interval(row.value, row.low, row.high)}), whatever it beats."
            )
    return found


def _about_methods(facts: Facts) -> list[str]:
    found = []
    models = {
        "forecasting": ("r2", "fine-tuned", "the fine-tuned model is"),
        "networks": ("accuracy", "attention rows", "attention rows are"),
    }
    for name, task in facts.tasks.items():
        table = facts.results.get(name)
        if task.kind not in models or table is None:
            continue
        metric, model, words = models[task.kind]
        rows = table[(table["metric"] == metric) & (table["level"] == "pooled")]
        for cohort, part in rows.groupby("cohort", sort=False):
            found += _compare(f"{name}, {cohort}: {words}", part, model)
    return found


def _compare(what: str, part: pd.DataFrame, model: str) -> list[str]:
    """What of a figure that should be large the model is not shown to have more of."""
    start = f"{model} minus "
    rows = part[part["method"].str.startswith(start)]
    worse = rows["high"] < 0
    level = ~(rows["low"] > 0) & ~worse
    found = []
    for which, words in ((worse, "worse than"), (level, "not shown to beat")):
        others = rows["method"][which].str.removeprefix(start)
        if len(others):
            named = join_words([PREDICTORS.get(other, other) for other in others])
            found.append(f"{what} {words} {named}.")
    return found


def _about_targets(facts: Facts) -> list[str]:
    found = []
    for target in facts.clinical:
        table = facts.results.get(target)
        if table is None:
            found.append(f"{target} was not evaluated.")
            continue
        found += _about_people(table, target)
        for row in table.itertuples():
            known = pd.notna(row.low) and pd.notna(row.high)
            if row.metric in ("mae", "auc") and str(row.method).startswith("fine-tuned minus"):
                beats = known and (row.high < 0 if row.metric == "mae" else row.low > 0)
                if not beats:
                    found.append(
                        f"{target}, {row.cohort}: the fine-tuned model is not shown to beat "
                        f"{row.method.removeprefix('fine-tuned minus ')} ({row.metric.upper()} "
                        f"difference {show_interval(row.value, row.low, row.high)})."
                    )
            chance = {"r": 0.0, "auc": 0.5}.get(row.metric)
            if row.method == "mean FD" and chance is not None and known and row.low > chance:
                found.append(
                    f"Head motion alone predicts {target} in {row.cohort} ({row.metric} "
                    f"{show_interval(row.value, row.low, row.high)}): part of any prediction "
                    "may be motion."
                )
    return found


def _about_people(table: pd.DataFrame, what: str) -> list[str]:
    found = []
    for row in table.drop_duplicates(["cohort", "split"]).itertuples():
        where = f"{row.cohort} ({row.split or 'every split'})"
        if not row.n:
            found.append(f"{what}: nobody could be evaluated in {where}.")
        elif row.n < _FEW_PEOPLE:
            size = count(int(row.n), "person")
            end = "no interval can be given" if row.n < 3 else "intervals are wide and rough"
            found.append(f"{what}: {where} has only {size}; {end}.")
    return found
