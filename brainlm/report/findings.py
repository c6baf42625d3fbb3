"""What the evaluation's tasks found: each figure with its data, its command and its caption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from ..training.predictors import EXPLAINED, PREDICTORS
from . import drawings, figures
from .blocks import Choice, Figure, Section, Table, Text, count, show, show_interval
from .facts import Facts
from .outcomes import (
    METRICS,
    make_tables,
    model_first,
    nobody,
    pooled,
    slug,
    source_of,
    speak,
    tell_left_out,
)
from .site import list_downloads

_EXAMPLES = 3
_MAX_LINES = 6  # with a colour, a dash and a marker of their own
_TRACE = ["measured", "hidden", "model", "linear"]
FEW = ["model", *(name for name in PREDICTORS if name != "zero")]  # zero is the axis


def describe_tasks(facts: Facts) -> list[Section]:
    """A section per task of the configuration, and one table of all clinical variables."""
    sections = []
    if len(facts.clinical) > 1:
        sections.append(Section("clinical", "Clinical variables", _describe_clinical(facts)))
    for number, (name, task) in enumerate(facts.tasks.items()):
        title = _TITLES.get(task.kind, f"Predicting {name}")
        if task.kind in _TITLES and name != task.kind:
            title = f"{title}: {name.removeprefix(task.kind).strip('-_')}"
        result = facts.results.get(name)
        if result is None:
            words = f"{name if title.startswith('Pred') else title} was not evaluated yet."
            blocks: list[Any] = [Text([words], tone="missing")]
        elif pooled(result).empty:
            blocks = [nobody(result)]
        else:
            blocks = _DESCRIBE[task.kind](facts, name, result)
        sections.append(Section(f"task-{number}", title, blocks))
    return sections


# ---- reconstruction


def _describe_reconstruction(facts: Facts, name: str, result: pd.DataFrame) -> list[Any]:
    """Masked R² beside trivial predictors, with intervals, and examples."""
    table = pooled(result)
    r2 = table[table["metric"] == "r2"]
    shown = r2[r2["method"].isin(FEW)]
    groups = shown["target"] + ", " + shown["cohort"]
    caption = (
        "R² on hidden points of people the model has not seen, pooled over all hidden values, "
        "unclipped: 1 is perfect, 0 is the mean, below 0 is worse. Lines are 95 % bootstrap "
        "intervals over people. " + EXPLAINED
    )
    svg = figures.draw_intervals(f"{slug(name)}-dots", shown.assign(group=groups), "masked R²")
    blocks: list[Any] = [
        Figure(f"{slug(name)}-dots", caption, svg, speak(shown), frame=shown, **source_of(result)),
        *make_tables(slug(name), "Reconstruction, value [95 % interval].", result),
    ]
    blocks += _describe_levels(slug(name), result)
    return blocks + _describe_traces(facts, result)


def _describe_levels(name: str, result: pd.DataFrame) -> list[Any]:
    """The spread of R² over recordings and over parcels."""
    part = result[result["level"].isin(["recording", "parcel"]) & result["value"].notna()]
    part = part[part["metric"] == "r2"]
    if part.empty:
        return []
    spread = part.groupby(["cohort", "target", "level", "method"], sort=False)["value"]
    table = spread.quantile([0.05, 0.5, 0.95]).unstack().reset_index()
    table.columns = ["cohort", "hidden", "per", "method", "5th percentile", "median", "95th"]
    caption = "R² of single recordings and of single parcels: how far they spread."
    return [Table(f"{name}-levels", caption, table, **source_of(result))]


def _describe_traces(facts: Facts, result: pd.DataFrame) -> list[Any]:
    period = facts.info.sample_period_s if facts.info else 1.0
    wanted = [key for key in facts.traces if "/random " in key]
    ratio = f"/random {facts.config.pretrain.mask_ratio:.0%}/"
    wanted = ([key for key in wanted if ratio in key] or wanted)[:_EXAMPLES]
    if not wanted:
        return []
    traces = {key.split("/")[-1]: facts.traces[key] for key in wanted}
    frame = pd.concat([
        pd.DataFrame(values.T, columns=_TRACE).assign(recording=k)
        for k, values in traces.items()
    ])  # fmt: skip
    caption = (
        f"Examples: one parcel of {count(len(traces), 'held-out recording')}, "
        f"{wanted[0].split('/')[1].removeprefix('random ')} hidden (grey). The parcel is the one "
        "of median spread, not one that looks good."
    )
    svg = figures.draw_traces(traces, period)
    return [Figure("traces", caption, svg, caption, frame=frame, **source_of(result))]


# ---- clinical variables


def _describe_clinical(facts: Facts) -> list[Any]:
    """One table over all variables, the headline figure of each method."""
    rows, frames = [], []
    for name in facts.clinical:
        table = pooled(facts.results.get(name))
        metric = facts.tasks[name].metric
        part = table[(table["metric"] == metric) & ~table["method"].str.contains(" minus ")]
        frames.append(part.assign(variable=name))
        for (cohort, split), group in part.groupby(["cohort", "split"], sort=False):
            row = {"variable": name, "cohort": cohort, "split": split, "metric": METRICS[metric],
                   "people": int(group["n"].iloc[0])}  # fmt: skip
            numbers = group[["method", "value", "low", "high"]].itertuples(index=False)
            row |= {method: show_interval(*values) for method, *values in numbers}
            rows.append(row)
    if not rows:
        return [Text(["No clinical variable was evaluated yet."], tone="missing")]
    caption = (
        "Every clinical variable, its headline figure by each method, value [95 % bootstrap "
        "interval over people]. Predictions are in the units of the participants table; errors "
        "and differences with their tests are in the section of each variable."
    )
    shown = pd.DataFrame(rows)
    shown = shown.astype(object).where(shown.notna(), None)
    return [Table("clinical", caption, pd.concat(frames), shown, "brainlm evaluate")]


def _describe_target(facts: Facts, name: str, result: pd.DataFrame) -> list[Any]:
    """The fine-tuned model beside the baselines, on the same people."""
    caption = (
        f"{name}: one prediction per person (recordings averaged), in the units of the "
        "participants table, value [95 % bootstrap interval over people]. 'mean FD' knows head "
        "motion only, 'mean' nothing."
    )
    blocks = make_tables(f"target-{slug(name)}", caption, result)
    blocks.append(tell_left_out(result))
    people = facts.side(name, "predictions")
    if people is not None and len(people) and people["label"].nunique() > 2:
        blocks.append(_scatter(name, people, result))
    return blocks


def _scatter(target: str, people: pd.DataFrame, result: pd.DataFrame) -> Figure:
    methods = list(dict.fromkeys(people["method"]))
    order = ["fine-tuned", "connectivity + ridge", "from scratch"]
    chosen = [m for m in order if m in methods] or methods[:3]
    part = people[people["method"].isin(chosen)]
    part = part.sort_values("method", key=lambda s: s.map(chosen.index))
    caption = f"Predicted against true {target}; a dot is a person, the line is perfection."
    name = f"scatter-{slug(target)}"
    svg = figures.draw_scatter(name, part, target)
    return Figure(name, caption, svg, caption, frame=people, **source_of(result))


# ---- forecasting


def _describe_forecasting(facts: Facts, name: str, result: pd.DataFrame) -> list[Any]:
    """R² per step with significance marks, the pooled figures, and examples."""
    steps = result[(result["level"] == "step") & result["value"].notna()]
    steps = steps.assign(step=pd.to_numeric(steps["unit"]))
    made = source_of(result)
    blocks: list[Any] = []
    paired = steps["method"].str.contains(" minus ", regex=False)
    lines = model_first(steps[(steps["metric"] == "r2") & ~paired], steps)
    if len(lines):
        drawn = list(dict.fromkeys(lines["method"]))[:_MAX_LINES]
        lines = lines[lines["method"].isin(drawn)]
        caption = (
            "Forecasting held-out people: unclipped R² of every step ahead, the band is the "
            "fine-tuned model's 95 % bootstrap interval over people. Below, steps at which its "
            "squared error differs from the method's (paired bootstrap t test over participants, "
            "Holm-corrected over methods and steps): * better, x worse. The best "
            f"{len(drawn) - 1} of the other methods are drawn; the data have all."
        )
        marks = _mark(steps[(steps["metric"] == "mse") & paired])
        marks = marks[marks["method"].isin(drawn)]
        svg = drawings.draw_steps(f"{slug(name)}-steps", lines, marks)
        alt = f"Line chart. {_speak_steps(lines)}"
        blocks.append(Figure(f"{slug(name)}-steps", caption, svg, alt, frame=steps, **made))
    caption = "Forecasting, all steps together, value [95 % interval]."
    blocks += make_tables(slug(name), caption, result)
    blocks.append(tell_left_out(result))
    examples = facts.side(name, "examples")
    if examples is not None and len(examples):
        chosen = list(dict.fromkeys(lines["method"]))[:3]
        caption = (
            "Examples: what was measured and what was forecast by the fine-tuned model and the "
            "two best other methods; parcels from the first to the third quartile of spread."
        )
        svg = drawings.draw_forecasts(f"{slug(name)}-examples", examples, chosen)
        blocks.append(Figure(f"{slug(name)}-examples", caption, svg, caption,
                             frame=examples, **made))  # fmt: skip
    return blocks


def _mark(gaps: pd.DataFrame) -> pd.DataFrame:
    """Steps where the model's error differs: method, step, better."""
    found = gaps[gaps["p"].astype(float) < 0.05]
    return found.assign(
        method=found["method"].str.split(" minus ").str[-1], better=found["value"] < 0
    )


def _speak_steps(lines: pd.DataFrame) -> str:
    parts = []
    for (cohort, method), part in lines.groupby(["cohort", "method"], sort=False):
        part = part.sort_values("step")
        first, last = part["value"].iloc[0], part["value"].iloc[-1]
        parts.append(f"{cohort}, {method}: R² {show(float(first))} to {show(float(last))}")
    return "; ".join(parts)


# ---- attention and networks


def _describe_attention(facts: Facts, name: str, result: pd.DataFrame) -> list[Any]:
    """Mean maps of each group on the brain and, with a contrast, their difference."""
    maps, made = facts.side(name, "maps"), source_of(result)
    blocks: list[Any] = []
    for cohort, part in maps.groupby("cohort", sort=False) if maps is not None else ():
        panels = _attention_panels(part)
        p = part.drop_duplicates("parcel").sort_values("parcel")["p"].to_numpy(float)
        differ = np.nan_to_num(p, nan=1.0) < 0.05
        groups = ", ".join(f"{g} (n = {n})" for g, n in part.groupby("group")["n"].first().items())
        caption = (
            f"Attention of the CLS token to each parcel in {cohort}: {groups}. "
        ) + (
            f"{differ.sum()} of {len(differ)} parcels differ (permutation, largest |t|, corrected "
            "p < 0.05); they are the large dots of the difference."
            if len(panels) > 1 else "Means over people."
        )  # fmt: skip
        label = f"{slug(name)}-{slug(str(cohort))}"
        places = facts.places
        if places is not None and len(places) == part["parcel"].max():
            svg = drawings.draw_brains(label, panels, places, differ)
        else:
            svg = figures.draw_values(label, panels, differ)
            caption += " The atlas has no coordinates: parcels are in its order."
        blocks.append(Figure(label, caption, svg, caption, frame=part, **made))
    caption = "Contrasts of attention, value [95 % interval]."
    return [*blocks, *make_tables(slug(name), caption, result), tell_left_out(result)]


def _attention_panels(part: pd.DataFrame) -> dict[str, np.ndarray]:
    """Title -> values [R] in the order of the parcels."""
    groups = list(dict.fromkeys(part["group"]))
    panels = {}
    for group in groups:
        rows = part[part["group"] == group].sort_values("parcel")
        panels[str(group)] = rows["mean"].to_numpy(float)
    if len(groups) == 2:
        rows = part.drop_duplicates("parcel").sort_values("parcel")
        if rows["difference"].notna().any():
            panels[f"{groups[1]} minus {groups[0]}"] = rows["difference"].to_numpy(float)
    return panels


def _describe_networks(facts: Facts, name: str, result: pd.DataFrame) -> list[Any]:
    """Accuracy of every method with chance beside it, and by network."""
    table = pooled(result)
    shown = table[~table["method"].str.contains(" minus ") & (table["metric"] == "accuracy")]
    shown = model_first(shown, table)
    caption = (
        "Share of left-out parcels whose functional network is found from their neighbours, by "
        "features of the parcels; 95 % bootstrap intervals over people. 'majority' always says "
        "the largest network, 'shuffled' is trained on permuted labels."
    )
    svg = figures.draw_intervals(f"{slug(name)}-dots", shown.assign(group=shown["cohort"]),
                                 "accuracy", zero=False)  # fmt: skip
    made = source_of(result)
    blocks: list[Any] = [
        Figure(f"{slug(name)}-dots", caption, svg, speak(shown), frame=shown, **made),
        *make_tables(slug(name), "Network accuracy, value [95 % interval].", result),
        tell_left_out(result),
    ]
    parts = result[(result["level"] == "network") & result["value"].notna()]
    if len(parts):
        numbers = parts[["value", "low", "high"]].to_numpy()
        text = parts.assign(text=[show_interval(*row) for row in numbers])
        keys = ["cohort", "unit"]
        wide = text.pivot_table("text", keys, "method", aggfunc="first", sort=False).reset_index()
        wide.columns.name = None
        words = "Share of each network's parcels that are found."
        blocks.append(Table(f"{slug(name)}-parts", words, parts,
                            wide.rename(columns={"unit": "network"}), **made))  # fmt: skip
    return blocks


# ---- latent maps and scaling


def _describe_latent(facts: Facts, name: str, result: pd.DataFrame) -> list[Any]:
    """The map of recordings, coloured by a variable that the reader chooses."""
    points, made = facts.side(name, "points"), source_of(result)
    tables = make_tables(slug(name), "Figures of the map.", result)
    if points is None or points.empty:
        return tables
    wanted = dict.fromkeys(["cohort", "split", *facts.tasks[name].colour])
    columns = [c for c in wanted if c in points and points[c].notna().any()]
    recordings = points.drop_duplicates(["cohort", "recording_id"])
    trained_on = (recordings["split"] == "train").sum()
    seen = f" The model was trained on {trained_on} of them." if trained_on else ""
    pictures = []
    for column in columns:
        label = f"{slug(name)}-by-{slug(column)}"
        caption = (
            f"{count(len(recordings), 'recording')} in two dimensions (UMAP), from the CLS token "
            f"and from the mean of all tokens, coloured by {column}. Distances between far groups "
            f"mean nothing.{seen}"
        )
        svg = drawings.draw_latent(label, points, column)
        pictures.append((column, Figure(label, caption, svg, caption, **made)))
    pictures[0][1].frame = points  # one file for all
    for _, picture in pictures[1:]:
        picture.files = dict(list_downloads(pictures[0][1]))
    return [Choice("Colour by", pictures), *tables]


def _describe_scaling(facts: Facts, name: str, result: pd.DataFrame) -> list[Any]:
    """R² against the people trained on, by model size."""
    table = pooled(result)
    r2 = table[(table["metric"] == "r2") & ~table["method"].str.contains(" minus ")]
    share = pd.to_numeric(r2["target"].str.rstrip("%"), errors="coerce")
    people = r2["n_train"].astype(float)
    lines = r2.assign(x=people.where(people.notna(), share))
    caption = (
        "Masked R² on held-out people by model size and number of people trained on; 95 % "
        "bootstrap intervals over people. Every point is a model trained anew with the same "
        "budget."
    )
    made = source_of(result)
    svg = drawings.draw_scaling(f"{slug(name)}-lines", lines)
    return [
        Figure(f"{slug(name)}-lines", caption, svg, speak(r2), frame=r2, **made),
        *make_tables(slug(name), "Scaling, value [95 % interval].", result),
        tell_left_out(result),
    ]


_DESCRIBE: dict[str, Callable[[Facts, str, pd.DataFrame], list[Any]]] = {
    "reconstruction": _describe_reconstruction, "regression": _describe_target,
    "classification": _describe_target, "forecasting": _describe_forecasting,
    "attention": _describe_attention, "networks": _describe_networks,
    "latent": _describe_latent, "scaling": _describe_scaling,
}  # fmt: skip
_TITLES = {
    "reconstruction": "Reconstruction", "forecasting": "Forecasting", "attention": "Attention",
    "networks": "Functional networks", "latent": "Latent space", "scaling": "Scaling",
}  # fmt: skip
