"""Limitations of a study, in plain words, read from its results."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from ..page_text import TaskText
from ..shards.censored import censored_shares, holds_window
from ..steps import describe_series, list_other_settings
from ..training.predictors import PREDICTORS
from .facts import Facts, count_warnings
from .findings import TEXTS
from .outcomes import pooled
from .page_blocks import count, join_words, show, show_interval

_FEW_PARTICIPANTS = 30
_NOT_FAILED = ("ok", "too_short", "excluded", "pending")
_LOWER_IS_BETTER = ("mae", "mse")


def list_cautions(facts: Facts) -> list[str]:
    """Sentences, the most serious first."""
    found = [*_about_data(facts), *_about_training(facts)]
    missing = [name for name in facts.tasks if facts.results.get(name) is None]
    if missing:
        found.append(f"Not evaluated: {join_words(missing)}.")
    for name, task in facts.tasks.items():
        table = facts.results.get(name)
        if table is None:
            continue
        found += _about_size(table, name)
        if name in facts.clinical:
            found += _about_target(table, name)
        elif TEXTS[task.kind].metric:
            found += _about_model(pooled(table), name, TEXTS[task.kind])
    if all(cohort.role == "reference" for cohort in facts.config.cohorts):
        found.append(
            "No external cohort was evaluated, so it is not known how the results carry over to "
            "other scanners and populations."
        )
    return [*found, *_about_seeds(facts)]


def _about_data(facts: Facts) -> list[str]:
    found, table = [], facts.recordings
    if facts.info is not None and facts.info.atlas.startswith("demo"):
        found.append(
            "This study uses the demonstration atlas: nothing here is a finding about brains."
        )
    failed = table[~table["status"].isin(_NOT_FAILED)]
    pending = table[table["status"] == "pending"]
    if len(failed):
        share = len(failed) / max(len(table) - len(pending), 1)
        found.append(f"{count(len(failed), 'recording')} failed ({share:.0%}); see below why.")
    warned = count_warnings(table)
    if len(warned):
        kinds = join_words([f"{kind} ({n})" for kind, n in warned.items()])
        few = count(int(table["warnings"].notna().sum()), "recording")
        found.append(f"{few} with warnings: {kinds}; the cohorts' pages say which.")
    if facts.scaling is not None:
        other = table[table["units"].notna() & (table["units"] != facts.scaling.units)]
        for cohort, part in other.groupby("cohort", sort=False):
            found.append(
                f"Series of {cohort} are {part['units'].iloc[0]}, but the model was trained on "
                f"series {facts.scaling.units}: unless the two are of similar size, results for "
                f"{cohort} mean little."
            )
    for cohort in facts.config.cohorts:
        own = describe_series(facts.config, [cohort])
        if other := list_other_settings(facts.model.get("preprocess", {}), own):
            found.append(
                f"Series of {cohort.name} are made otherwise than those that the model was "
                f"trained on: {'; '.join(other)}."
            )
    window = facts.model.get("window", facts.config.model.window)
    usable = table[table["status"] == "ok"]
    shares = pd.Series(censored_shares(usable), usable.index)
    if facts.model.get("ranges", {}).get("censored_share", [1])[-1] == 0:  # trained on none
        for cohort, part in shares[shares > 0].groupby(usable["cohort"], sort=False):
            found.append(
                f"{count(len(part), 'recording')} of {cohort} have censored time (up to "
                f"{part.max():.0%}); the model was trained on none that had."
            )
    short = int((usable["num_timepoints"] < window).sum())
    censored = int((~holds_window(usable, window)).sum()) - short
    for number, what in (
        (short, f"shorter than a window of the model ({window} time points)"),
        (censored, f"censored so far that no window of {window} time points is half there"),
    ):
        if number:
            one = number == 1
            found.append(
                f"{count(number, 'usable recording')} {'is' if one else 'are'} {what}: no model "
                f"is trained or evaluated on {'it' if one else 'them'}."
            )
    if len(pending):
        verb = "was" if len(pending) == 1 else "were"
        found.append(f"{count(len(pending), 'recording')} {verb} not processed yet.")
    if facts.scaling is not None and not facts.scaling.usable.all():
        lost = int((~facts.scaling.usable).sum())
        verb = "is" if lost == 1 else "are"
        found.append(f"{count(lost, 'parcel')} never had data and {verb} missing everywhere.")
    return found


def _about_training(facts: Facts) -> list[str]:
    curve = facts.curve
    if curve.empty or "r2" not in curve:
        return []
    last = curve[curve["split"] == "validation"].dropna(subset=["r2"]).tail(1)
    if last.empty:
        return [
            "There was no validation recording, so it is not known whether the model overfits."
        ]
    row = last.iloc[0]
    columns = {name: row.get(f"r2_{name}") for name in PREDICTORS}
    scores = {name: float(value) for name, value in columns.items() if pd.notna(value)}
    best = max(scores, key=lambda name: scores[name], default=None)
    if best is not None and row["r2"] <= scores[best]:
        return [
            f"The pretrained model (masked R² {show(float(row['r2']))} on validation recordings) "
            f"does not beat {PREDICTORS[best]} ({show(scores[best])}): it was trained too little, "
            "or on too few participants, to learn more than that."
        ]
    return []


def _about_size(table: pd.DataFrame, name: str) -> Iterator[str]:
    """Cohorts and splits with no or few participants."""
    for row in table.drop_duplicates(["cohort", "split"]).itertuples():
        where = f"{row.cohort} ({row.split or 'every split'})"
        if not row.n:
            yield f"{name}: no participant could be evaluated in {where}."
        elif row.n < _FEW_PARTICIPANTS:
            size = count(int(row.n), "participant")
            end = "there is no interval" if row.n < 3 else "intervals are wide and approximate"
            yield f"{name}: {where} has only {size}; {end}."


def _about_model(table: pd.DataFrame, name: str, text: TaskText) -> Iterator[str]:
    """What the model is not shown to beat, and where it explains almost nothing."""
    rows = table[table["metric"] == text.metric].fillna({"target": ""})
    start = f"{text.model} minus "
    for (target, cohort), part in rows.groupby(["target", "cohort"], sort=False):
        where = text.where.format(name=name, target=target, cohort=cohort)
        gaps = part[part["method"].str.startswith(start)]
        worse = gaps["high"] < 0
        level = ~(gaps["low"] > 0) & ~worse
        for which, words in ((worse, "worse than"), (level, "not shown to beat")):
            others = gaps["method"][which].str.removeprefix(start)
            if len(others):
                named = join_words([text.names.get(other, other) for other in others])
                yield f"{where}: {text.subject} {words} {named}."
        if text.negligible is not None:
            low = (part["method"] == text.model) & (part["value"] < text.negligible)
            for row in part[low].itertuples():
                yield (
                    f"{where}: the model explains almost nothing "
                    f"(R² {show_interval(row.value, row.low, row.high)}), whatever it beats."
                )


def _about_target(table: pd.DataFrame, name: str) -> Iterator[str]:
    """Baselines that a fine-tuned model is not shown to beat, and what head motion predicts."""
    for row in table.itertuples():
        known = pd.notna(row.low) and pd.notna(row.high)
        interval = show_interval(row.value, row.low, row.high)
        if row.metric in ("mae", "auc") and str(row.method).startswith("fine-tuned minus"):
            better = row.high < 0 if row.metric in _LOWER_IS_BETTER else row.low > 0
            if not (known and better):
                yield (
                    f"{name}, {row.cohort}: the fine-tuned model is not shown to beat "
                    f"{row.method.removeprefix('fine-tuned minus ')} ({row.metric.upper()} "
                    f"difference {interval})."
                )
        chance = {"r": 0.0, "auc": 0.5}.get(row.metric)
        if row.method == "mean FD" and chance is not None and known and row.low > chance:
            yield (
                f"Head motion alone predicts {name} in {row.cohort} ({row.metric} {interval}): "
                "part of any prediction may be motion."
            )


def _about_seeds(facts: Facts) -> Iterator[str]:
    """What was fitted only once, so that nothing is known about how fits differ."""
    if facts.model:
        yield (
            f"One model was pretrained (seed {facts.config.pretrain.seed}): how much another "
            "pretraining would differ is not in the intervals."
        )
    once = [
        name
        for name, task in facts.tasks.items()
        if len(getattr(task, "seeds", ())) == 1 and facts.results.get(name) is not None
    ]
    if once:
        names = join_words(once)
        yield f"{names}: one seed only, so how much fits differ is not in the intervals."
