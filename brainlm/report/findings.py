"""What the evaluation's tasks found: each figure with its data, its command and its caption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from ..evaluation.attention.attention_text import TEXT as ATTENTION
from ..evaluation.clinical.clinical_text import TEXT as CLINICAL
from ..evaluation.forecasting.forecasting_text import TEXT as FORECASTING
from ..evaluation.latent_text import TEXT as LATENT
from ..evaluation.parcel_networks.networks_text import TEXT as NETWORKS
from ..evaluation.reconstruction_text import TEXT as RECONSTRUCTION
from ..evaluation.scaling_text import TEXT as SCALING
from ..evaluation.states.states_text import TEXT as STATES
from ..page_text import TaskText
from ..training.predictors import PREDICTORS
from . import drawings, figures
from .facts import Facts
from .outcomes import (
    METRICS,
    count_evaluated,
    describe_dots,
    explain_empty,
    make_tables,
    model_first,
    pooled,
    slug,
    source_of,
)
from .page_blocks import Choice, Figure, Section, Table, Text, count, show, show_interval
from .site import list_downloads

_EXAMPLES = 3
PROBES = ("attentive probe", "linear probe")  # of the pretrained model, not of its random weights
_MAX_LINES = 6  # with a colour, a dash and a marker of their own
_TRACE = ["measured", "hidden", "model", "linear"]
FEW = ["model", *(name for name in PREDICTORS if name != "zero")]  # zero is the axis


def describe_tasks(facts: Facts) -> list[Section]:
    """A section per task of the configuration, and one table of all clinical variables."""
    sections = []
    if len(facts.clinical) > 1:
        sections.append(Section("clinical", "Clinical variables", _describe_clinical(facts)))
    for number, (name, task) in enumerate(facts.tasks.items()):
        title = TEXTS[task.kind].title
        if title and name != task.kind:
            title = f"{title}: {name.removeprefix(task.kind).strip('-_')}"
        result = facts.results.get(name)
        if result is None:
            words = f"{title or name} was not evaluated yet."
            blocks: list[Any] = [Text([words], tone="missing")]
        elif pooled(result).empty:
            blocks = [explain_empty(result)]
        else:
            blocks = _DESCRIBE[task.kind](facts, name, result)
        sections.append(Section(f"task-{number}", title or f"Predicting {name}", blocks))
    return sections


# ---- reconstruction


def _describe_reconstruction(facts: Facts, name: str, result: pd.DataFrame) -> list[Any]:
    """Masked R² next to trivial predictors, with intervals, and examples."""
    table = pooled(result)
    r2 = table[table["metric"] == "r2"]
    shown = r2[r2["method"].isin(FEW)]
    groups = shown["target"] + ", " + shown["cohort"]
    caption = RECONSTRUCTION.caption("dots")
    svg = figures.draw_intervals(f"{slug(name)}-dots", shown.assign(group=groups), "masked R²")
    alt = describe_dots(shown)
    blocks: list[Any] = [
        Figure(f"{slug(name)}-dots", caption, svg, alt, frame=shown, **source_of(result)),
        *make_tables(slug(name), RECONSTRUCTION.caption("table"), result),
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
    caption = RECONSTRUCTION.caption("levels")
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
    hidden = wanted[0].split("/")[1].removeprefix("random ")
    number = count(len(traces), "held-out recording")
    caption = RECONSTRUCTION.caption("traces", count=number, hidden=hidden)
    svg = figures.draw_traces(traces, period)
    return [Figure("traces", caption, svg, caption, frame=frame, **source_of(result))]


# ---- clinical variables


def _describe_clinical(facts: Facts) -> list[Any]:
    """One table over all variables, the headline metric of each method."""
    rows, frames = [], []
    for name in facts.clinical:
        table = pooled(facts.results.get(name))
        metric = facts.tasks[name].metric
        part = table[(table["metric"] == metric) & ~table["method"].str.contains(" minus ")]
        frames.append(part.assign(variable=name))
        for (cohort, split), group in part.groupby(["cohort", "split"], sort=False):
            row = {"variable": name, "cohort": cohort, "split": split, "metric": METRICS[metric],
                   "participants": int(group["n"].iloc[0])}  # fmt: skip
            numbers = group[["method", "value", "low", "high"]].itertuples(index=False)
            row |= {method: show_interval(*values) for method, *values in numbers}
            rows.append(row)
    if not rows:
        return [Text(["No clinical variable was evaluated yet."], tone="missing")]
    caption = CLINICAL.caption("overview")
    shown = pd.DataFrame(rows)
    shown = shown.astype(object).where(shown.notna(), None)
    return [Table("clinical", caption, pd.concat(frames), shown, "brainlm evaluate")]


def _describe_target(facts: Facts, name: str, result: pd.DataFrame) -> list[Any]:
    """The fine-tuned model next to the baselines, on the same participants."""
    caption = CLINICAL.caption("table", name=name)
    blocks = make_tables(f"target-{slug(name)}", caption, result)
    blocks.append(count_evaluated(result))
    predictions = facts.side(name, "predictions")
    if predictions is not None and len(predictions) and predictions["label"].nunique() > 2:
        blocks.append(_draw_predictions(name, predictions, result))
    return blocks


def _draw_predictions(target: str, predictions: pd.DataFrame, result: pd.DataFrame) -> Figure:
    methods = list(dict.fromkeys(predictions["method"]))
    order = ["fine-tuned", "connectivity + ridge", "from scratch"]
    chosen = [m for m in order if m in methods] or methods[:3]
    part = predictions[predictions["method"].isin(chosen)]
    part = part.sort_values("method", key=lambda s: s.map(chosen.index))
    caption = CLINICAL.caption("scatter", name=target)
    name = f"scatter-{slug(target)}"
    svg = figures.draw_scatter(name, part, target)
    return Figure(name, caption, svg, caption, frame=predictions, **source_of(result))


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
        caption = FORECASTING.caption("steps", drawn=len(drawn) - 1)
        marks = _mark(steps[(steps["metric"] == "mse") & paired])
        marks = marks[marks["method"].isin(drawn)]
        svg = drawings.draw_steps(f"{slug(name)}-steps", lines, marks)
        alt = f"Line chart. {_describe_steps(lines)}"
        blocks.append(Figure(f"{slug(name)}-steps", caption, svg, alt, frame=steps, **made))
    blocks += make_tables(slug(name), FORECASTING.caption("table"), result)
    blocks.append(count_evaluated(result))
    examples = facts.side(name, "examples")
    if examples is not None and len(examples):
        chosen = list(dict.fromkeys(lines["method"]))[:3]
        caption = FORECASTING.caption("examples")
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


def _describe_steps(lines: pd.DataFrame) -> str:
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
        words = [
            ATTENTION.caption("map", cohort=cohort, groups=groups),
            ATTENTION.caption("contrast", differ=differ.sum(), total=len(differ))
            if len(panels) > 1 else ATTENTION.caption("means"),
        ]  # fmt: skip
        label = f"{slug(name)}-{slug(str(cohort))}"
        places = facts.places
        if places is not None and len(places) == part["parcel"].max():
            svg = drawings.draw_brains(label, panels, places, differ)
        else:
            svg = figures.draw_values(label, panels, differ)
            words.append(ATTENTION.caption("no coordinates"))
        caption = " ".join(words)
        blocks.append(Figure(label, caption, svg, caption, frame=part, **made))
    tables = make_tables(slug(name), ATTENTION.caption("table"), result)
    return [*blocks, *tables, count_evaluated(result)]


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
    """Accuracy of every method next to chance, and by network."""
    table = pooled(result)
    shown = table[~table["method"].str.contains(" minus ") & (table["metric"] == "accuracy")]
    shown = model_first(shown, table)
    caption = NETWORKS.caption("dots")
    svg = figures.draw_intervals(f"{slug(name)}-dots", shown.assign(group=shown["cohort"]),
                                 "accuracy", zero=False)  # fmt: skip
    made = source_of(result)
    blocks: list[Any] = [
        Figure(f"{slug(name)}-dots", caption, svg, describe_dots(shown), frame=shown, **made),
        *make_tables(slug(name), NETWORKS.caption("table"), result),
        count_evaluated(result),
    ]
    return blocks + _describe_parts(slug(name), result, "network", NETWORKS.caption("networks"))


def _describe_parts(name: str, result: pd.DataFrame, level: str, caption: str) -> list[Any]:
    """A row per unit of a level, a column per method."""
    parts = result[(result["level"] == level) & result["value"].notna()]
    if parts.empty:
        return []
    numbers = parts[["value", "low", "high"]].to_numpy()
    text = parts.assign(text=[show_interval(*row) for row in numbers])
    keys = ["cohort", "unit"]
    wide = text.pivot_table("text", keys, "method", aggfunc="first", sort=False).reset_index()
    wide.columns.name = None
    shown = wide.rename(columns={"unit": level})
    return [Table(f"{name}-parts", caption, parts, shown, **source_of(result))]


# ---- states


def _describe_states(facts: Facts, name: str, result: pd.DataFrame) -> list[Any]:
    """Balanced accuracy of every method, recall by condition, and what is taken for what."""
    table, made = pooled(result), source_of(result)
    single = ~table["method"].str.contains(" minus ", regex=False)
    shown = model_first(table[single & (table["metric"] == STATES.metric)], table)
    caption = STATES.caption("dots", label=facts.tasks[name].label)
    svg = figures.draw_intervals(f"{slug(name)}-dots", shown.assign(group=shown["cohort"]),
                                 METRICS[STATES.metric], zero=False)  # fmt: skip
    blocks: list[Any] = [
        Figure(f"{slug(name)}-dots", caption, svg, describe_dots(shown), frame=shown, **made),
        *make_tables(slug(name), STATES.caption("table"), result),
        count_evaluated(result),
        *_describe_parts(slug(name), result, "condition", STATES.caption("conditions")),
    ]
    confusion = facts.side(name, "confusion")
    for cohort, part in confusion.groupby("cohort") if confusion is not None else ():
        probes = shown[(shown["cohort"] == cohort) & shown["method"].isin(PROBES)]
        best = str(probes.loc[probes["value"].astype(float).idxmax(), "method"])
        label = f"{slug(name)}-confusion-{slug(str(cohort))}"
        counts = part[part["method"] == best].pivot_table("n", "true", "predicted")
        words = STATES.caption("confusion", method=best, cohort=cohort)
        svg = drawings.draw_confusion(label, counts)
        blocks.append(Figure(label, words, svg, words, frame=part, **made))
    return blocks


# ---- latent maps and scaling


def _describe_latent(facts: Facts, name: str, result: pd.DataFrame) -> list[Any]:
    """The map of recordings, coloured by a variable chosen by the reader."""
    points, made = facts.side(name, "points"), source_of(result)
    tables = make_tables(slug(name), LATENT.caption("table"), result)
    if points is None or points.empty:
        return tables
    wanted = dict.fromkeys(["cohort", "split", *facts.tasks[name].colour])
    columns = [c for c in wanted if c in points and points[c].notna().any()]
    recordings = points.drop_duplicates(["cohort", "recording_id"])
    trained = (recordings["split"] == "train").sum()
    number = count(len(recordings), "recording")
    pictures = []
    for column in columns:
        label = f"{slug(name)}-by-{slug(column)}"
        caption = LATENT.caption("map", count=number, column=column)
        if trained:
            caption += " " + LATENT.caption("seen", trained=trained)
        svg = drawings.draw_latent(label, points, column)
        pictures.append((column, Figure(label, caption, svg, caption, **made)))
    pictures[0][1].frame = points  # one file for all
    for _, picture in pictures[1:]:
        picture.files = dict(list_downloads(pictures[0][1]))
    return [Choice("Colour by", pictures), *tables]


def _describe_scaling(facts: Facts, name: str, result: pd.DataFrame) -> list[Any]:
    """R² against the number of training participants, by model size."""
    table = pooled(result)
    r2 = table[(table["metric"] == "r2") & ~table["method"].str.contains(" minus ")]
    share = pd.to_numeric(r2["target"].str.rstrip("%"), errors="coerce")
    trained = r2["n_train"].astype(float)
    lines = r2.assign(x=trained.where(trained.notna(), share))
    caption = SCALING.caption("lines")
    made = source_of(result)
    svg = drawings.draw_scaling(f"{slug(name)}-lines", lines)
    return [
        Figure(f"{slug(name)}-lines", caption, svg, describe_dots(r2), frame=r2, **made),
        *make_tables(slug(name), SCALING.caption("table"), result),
        count_evaluated(result),
    ]


_DESCRIBE: dict[str, Callable[[Facts, str, pd.DataFrame], list[Any]]] = {
    "reconstruction": _describe_reconstruction, "regression": _describe_target,
    "classification": _describe_target, "forecasting": _describe_forecasting,
    "attention": _describe_attention, "networks": _describe_networks,
    "states": _describe_states, "latent": _describe_latent, "scaling": _describe_scaling,
}  # fmt: skip
#: What pages say about each kind of task.
TEXTS: dict[str, TaskText] = {
    "reconstruction": RECONSTRUCTION, "regression": CLINICAL, "classification": CLINICAL,
    "forecasting": FORECASTING, "attention": ATTENTION, "networks": NETWORKS, "states": STATES,
    "latent": LATENT, "scaling": SCALING,
}  # fmt: skip
