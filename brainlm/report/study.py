"""The study report: what was trained on whom, what came out, and what to distrust."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from ..config import Config
from ..errors import STATUSES
from ..shards import Scaling
from . import figures
from .blocks import (
    Cards,
    Cautions,
    Details,
    Figure,
    Section,
    Table,
    Text,
    count,
    join_words,
    show,
    show_interval,
)  # fmt: skip
from .cautions import list_cautions
from .cohort import find_pages, make_cohort_page, read_measured
from .facts import Facts, code_commit, read_facts, software_versions, stage_seconds
from .site import Page, write_site

METRICS = {
    "r2": "R²", "r": "r", "mse": "MSE", "mae": "MAE",
    "auc": "AUC", "balanced_accuracy": "balanced accuracy",
}  # fmt: skip
QUALITY = {
    "mean_fd_mm": "mean FD (mm)", "mean_dvars": "mean DVARS (%)", "tsnr": "median tSNR",
}  # fmt: skip
_EXAMPLES = 3
_TRACE = ["measured", "hidden", "model", "linear"]
_FEW = ["model", "linear", "space", "zero"]


def build_report(results: Path, config: Config, out: Path) -> None:
    """Write the study report; open ``<out>/index.html``.

    What a stage has not written is named as missing on the page.

    Parameters
    ----------
    results : Path
        The results folder (docs/architecture.md has its layout).
    config : Config
    out : Path
        Self-contained folder: HTML, style, script, and every table as CSV.

    Raises
    ------
    BrainLMError
        A result file is there and cannot be read.
    """
    facts = read_facts(Path(results), config)
    names = join_words([cohort.name for cohort in config.cohorts])
    page = Page(
        path="index.html",
        title=f"Study report: {names}",
        subtitle=f"Release {config.release}, model {config.model.preset}, "
        f"atlas {config.atlas.name}",
        sections=[
            Section("summary", "Summary", summarise(facts)),
            Section("recordings", "Recordings", describe_recordings(facts, Path(results))),
            Section("pretraining", "Pretraining", describe_pretraining(facts)),
            Section("reconstruction", "Reconstruction", describe_reconstruction(facts)),
            *(
                Section(f"target-{i}", f"Predicting {t}", describe_target(facts, t))
                for i, t in enumerate(facts.clinical)
            ),
            Section("data", "Scaling, coverage and quality", describe_data(facts)),
            Section("provenance", "Provenance", describe_provenance(facts)),
        ],
        trail=[],
    )
    cohorts = [
        make_cohort_page(facts, cohort, read_measured(Path(results), cohort.name),
                         find_pages(Path(results), cohort.name))
        for cohort in config.cohorts
    ]  # fmt: skip
    write_site([page, *cohorts], Path(out))


# ---- summary ------------------------------------------------------------------------------------


def summarise(facts: Facts) -> list[Any]:
    """What was trained on whom, headline figures, what to distrust."""
    return [
        Text([_sentence_of_data(facts), _sentence_of_model(facts)]),
        *_headlines(facts),
        Cautions("What to distrust", list_cautions(facts)),
    ]


def _sentence_of_data(facts: Facts) -> str:
    table = facts.recordings
    usable = table[table["status"] == "ok"]
    left = len(table) - len(usable)
    end = f"{count(left, 'recording')} not (each is named below)" if left else "none is left out"
    return (
        f"{count(len(table), 'recording')} of {count(_people(table), 'person')} were found in "
        f"{count(len(facts.config.cohorts), 'cohort')}; {count(len(usable), 'recording')} of "
        f"{count(_people(usable), 'person')} can be used, {end}."
    )


def _sentence_of_model(facts: Facts) -> str:
    if not facts.model:
        return "No model was trained yet."
    run, size = facts.run, facts.model.get("preset") or facts.config.model.preset
    counts = run.get("recordings", {})
    roles = [c.name for c in facts.config.cohorts if c.role == "reference"]
    text = (
        f"A {size} model was pretrained on {join_words(roles)}"
        f" ({count(counts['train'], 'training recording')}," if "train" in counts
        else f"A {size} model was pretrained on {join_words(roles)} ("
    )  # fmt: skip
    return (
        f"{text} release {facts.config.release}) for {show(run.get('updates'))} updates in "
        f"{show(run.get('epochs', facts.config.pretrain.epochs))} passes over the data, "
        f"taking {_duration(run.get('seconds'))} on {run.get('device', 'an unknown device')}."
    )


def _headlines(facts: Facts) -> list[Any]:
    items = []
    table = pooled(facts.results.get("reconstruction"))
    for (cohort, target), part in table[table["metric"] == "r2"].groupby(["cohort", "target"]):
        if target.startswith("random") and _is_trained_ratio(facts, target):
            trivial = part[part["method"].isin(_FEW[1:])]
            best = trivial.loc[trivial["value"].astype(float).idxmax(), "method"]
            beside = f"best predictor without a model ({best}): {_cell(part, best)}"
            items.append((f"Masked R², {target} hidden, {cohort}", _cell(part, "model"), beside))
    for target in facts.clinical:
        scores = pooled(facts.results.get(target))
        for (cohort, _), part in scores.groupby(["cohort", "split"], sort=False):
            metric = "auc" if "auc" in set(part["metric"]) else "r"
            rows = part[part["metric"] == metric]
            methods = [m for m in rows["method"] if " minus " not in m]
            best = next((m for m in methods if m == "fine-tuned"), None)
            other = next((m for m in methods if m.startswith("connectivity")), None)
            if best and other:
                label = f"{target}, {METRICS[metric]} of the fine-tuned model, {cohort}"
                items.append((label, _cell(rows, best), f"{other} {_cell(rows, other)}"))
    return [Cards(items)] if items else []


def _is_trained_ratio(facts: Facts, target: str) -> bool:
    ratios = [f"random {ratio:.0%}" for ratio in facts.config.evaluate.mask_ratios]
    trained = f"random {facts.config.pretrain.mask_ratio:.0%}"
    return target == (trained if trained in ratios else ratios[0])


def pooled(table: pd.DataFrame | None) -> pd.DataFrame:
    """Rows of a tidy table that are over all values; an empty frame if there is no table."""
    if table is None:
        return pd.DataFrame(columns=["cohort", "target", "split", "method", "metric", "value"])
    return table[(table["level"] == "pooled") & table["metric"].notna()]


def _cell(rows: pd.DataFrame, method: str) -> str:
    row = rows[rows["method"] == method]
    return "–" if row.empty else show_interval(*row.iloc[0][["value", "low", "high"]])


def _people(table: pd.DataFrame) -> int:
    return len(table[["cohort", "participant_id"]].drop_duplicates())


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# ---- recordings ---------------------------------------------------------------------------------


def describe_recordings(facts: Facts, results: Path) -> list[Any]:
    """Counts by status, every recording that is not usable, splits, seconds per stage."""
    table, command = facts.recordings, "brainlm summary"
    if table.empty:
        return [Text(["No recording is indexed: run brainlm index."], tone="missing")]
    cohorts = pd.DataFrame([_cohort_row(facts, cohort) for cohort in facts.config.cohorts])
    links = {cohort.name: f"{cohort.name}.html" for cohort in facts.config.cohorts}
    caption = "Cohorts; each name leads to a page with the quality of every recording."
    statuses = (
        table.groupby(["cohort", "status"], sort=False).size().rename("recordings").reset_index()
    )
    meaning = STATUSES | {"pending": "no stage has finished it yet"}
    statuses["meaning"] = statuses["status"].map(meaning)
    blocks: list[Any] = [
        Table("cohorts", caption, cohorts, links=links, command="brainlm index"),
        Table("statuses", "What became of the recordings.", statuses, command=command),
    ]
    failed = table[table["status"] != "ok"][["recording_id", "cohort", "status", "reason"]]
    failed = failed.fillna({"reason": ""}).rename(columns={"recording_id": "recording"})
    if len(failed):
        caption = f"Every recording without a series, and why ({len(failed)})."
        blocks.append(Table("not-usable", caption, failed, command=command, sortable=True))
    else:
        blocks.append(Text(["Every recording is usable."]))
    usable = table[table["status"] == "ok"].copy()
    external = [cohort.name for cohort in facts.config.cohorts if cohort.role == "external"]
    usable.loc[usable["cohort"].isin(external), "split"] = "external"
    splits = usable.groupby(["cohort", "split"]).agg(
        people=("participant_id", "nunique"), recordings=("recording_id", "size")
    )
    splits = splits.reindex(
        ["train", "validation", "test", "external"], level="split"
    ).reset_index()
    caption = (
        "People and usable recordings by split: a stable hash of the participant; an external "
    )
    caption += "cohort is evaluated whole."
    blocks.append(Table("splits", caption, splits, command=command))
    seconds = stage_seconds(results)
    if len(seconds):
        shown = seconds.rename(columns={"count": "recordings", "mean": "mean seconds"})
        blocks.append(Table("stages", "Time per recording and stage, one core each.", shown))
    return blocks


# ---- pretraining --------------------------------------------------------------------------------


def describe_pretraining(facts: Facts) -> list[Any]:
    """The curve beside trivial predictors, throughput and data wait."""
    curve = facts.curve
    if curve.empty or "loss" not in curve:
        return [Text(["There is no pretraining journal (metrics.jsonl) yet."], tone="missing")]
    last = curve[curve["split"] != "train"].tail(1)
    words = "There was no validation recording, so the curve shows training only."
    if len(last):
        row = last.iloc[0]
        scores = {"model": "r2", "mean of the visible parcels": "r2_space",
                  "linear interpolation": "r2_linear", "zero": "r2_zero"}  # fmt: skip
        parts = [f"{label} {show(row.get(column))}" for label, column in scores.items()]
        words = f"At the end (update {row['step']:.0f}) masked R²: {', '.join(parts)}."
    blocks: list[Any] = [
        Figure(
            "curve",
            "Pretraining. Left: mean squared error on hidden points. Right: R² on hidden points "
            "of validation recordings, unclipped, beside predictors that need no model. " + words,
            figures.draw_curve(curve),
            "Line charts of loss and masked R² over updates. " + words,
            command="brainlm pretrain",
            frame=curve,
        )
    ]
    speed = _throughput(facts)
    if len(speed):
        blocks.append(Table("throughput", "Throughput of the training run.", speed))
    return blocks


def _throughput(facts: Facts) -> pd.DataFrame:
    curve, run = facts.curve, facts.run
    rows = [
        ("device", run.get("device")),
        ("processes", run.get("processes")),
        ("attention kernel", run.get("attention")),
        ("precision", run.get("precision")),
        ("windows per second", run.get("windows_per_s")),
        ("seconds", run.get("seconds")),
    ]
    if "data_wait" in curve:
        wait = pd.to_numeric(curve["data_wait"], errors="coerce").dropna()
        rows.append(("share of time waiting for data", float(wait.mean()) if len(wait) else None))
    if "mfu" in curve:
        rows.append(("share of the device's peak", curve["mfu"].dropna().mean()))
    return pd.DataFrame([row for row in rows if row[1] is not None], columns=["what", "value"])


# ---- reconstruction -----------------------------------------------------------------------------


def describe_reconstruction(facts: Facts) -> list[Any]:
    """Masked R² beside trivial predictors, with intervals, and examples."""
    result = facts.results.get("reconstruction")
    if result is None:
        return [Text(["Reconstruction was not evaluated yet."], tone="missing")]
    table, command = pooled(result), _command_of(result)
    if table.empty:
        return [Text([_nobody(result)], tone="missing")]
    r2 = table[table["metric"] == "r2"]
    shown = r2[r2["method"].isin(_FEW)]
    groups = shown["target"] + ", " + shown["cohort"]
    caption = (
        "R² on hidden points of people the model has not seen, pooled over all hidden values, "
        "unclipped: 1 is perfect, 0 is the mean, below 0 is worse. Lines are 95 % bootstrap "
        "intervals over people. 'linear' joins the visible points of the same parcel; 'space' is "
        "the mean of the parcels visible at that moment; 'zero' is the training median."
    )
    svg = figures.draw_intervals("reconstruction", shown.assign(group=groups), "masked R²")
    blocks: list[Any] = [
        Figure("reconstruction-figure", caption, svg, _spoken(shown), command, shown),
        *_tables("reconstruction", "Reconstruction, value [95 % interval].", result, command),
    ]  # fmt: skip
    blocks += _describe_levels(result)
    return blocks + _describe_traces(facts, command)


def _describe_levels(result: pd.DataFrame) -> list[Any]:
    """The spread of R² over recordings and over parcels."""
    part = result[result["level"].isin(["recording", "parcel"]) & result["value"].notna()]
    if part.empty:
        return []
    spread = part.groupby(["cohort", "target", "level", "method"], sort=False)["value"]
    table = spread.quantile([0.05, 0.5, 0.95]).unstack().reset_index()
    table.columns = ["cohort", "hidden", "per", "method", "5th percentile", "median", "95th"]
    caption = "R² of single recordings and of single parcels: how far they spread."
    return [Table("reconstruction-levels", caption, table)]


def _describe_traces(facts: Facts, command: str) -> list[Any]:
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
    return [Figure("traces", caption, svg, caption, command, frame)]


def _tables(name: str, caption: str, result: pd.DataFrame, command: str) -> list[Any]:
    """One table of methods, one of paired differences; the file has everything."""
    table = pooled(result)
    paired = table["method"].str.contains(" minus ", regex=False)
    blocks: list[Any] = [Table(name, caption, result, _pivot(table[~paired]), command)]
    if paired.any():
        words = (
            "Paired differences on the same resamples of people: an interval that contains 0 is "
            "no difference. Higher R² and r are better, higher errors are worse."
        )
        shown = _pivot(table[paired])
        blocks.append(Table(f"{name}-differences", words, table[paired], shown, command))
    return blocks


def _slug(text: str) -> str:
    """A file name from any text."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)[:40]


def _pivot(table: pd.DataFrame) -> pd.DataFrame:
    """One row per cohort, masking or split, and method; one column per metric."""
    text = table.assign(
        text=[show_interval(*row) for row in table[["value", "low", "high"]].to_numpy()],
        metric=table["metric"].map(METRICS),
    )
    keys = ["cohort", "split", "target", "method", "n"]
    wide = text.pivot_table("text", keys, "metric", aggfunc="first", sort=False).reset_index()
    wide.columns.name = None
    if table["task"].iloc[0] != "reconstruction":
        wide = wide.drop(columns="target")
    return wide.rename(columns={"target": "hidden", "n": "people"})


def _spoken(shown: pd.DataFrame) -> str:
    parts = [
        f"{row.target} in {row.cohort}, {row.method}: "
        + show_interval(row.value, row.low, row.high)
        for row in shown.itertuples()
    ]
    return "Dot chart. " + "; ".join(parts)


def _command_of(table: pd.DataFrame) -> str:
    return str(table["command"].iloc[0]) if len(table) else ""


def _nobody(result: pd.DataFrame) -> str:
    parts = [
        f"{row.cohort}, {row.split or 'every split'}: {row.note or 'no subject'}"
        for row in result.itertuples()
    ]
    return "Nobody could be evaluated. " + "; ".join(parts) + "."


# ---- targets ------------------------------------------------------------------------------------


def describe_target(facts: Facts, target: str) -> list[Any]:
    """The fine-tuned model beside the baselines, on the same people."""
    result = facts.results.get(target)
    if result is None:
        return [Text([f"{target} was not evaluated yet."], tone="missing")]
    table, command = pooled(result), _command_of(result)
    if table.empty:
        return [Text([_nobody(result)], tone="missing")]
    caption = (
        f"{target}: one prediction per person (recordings averaged), in the units of the "
        "participants table, value [95 % bootstrap interval over people]. 'mean FD' knows head "
        "motion only, 'mean' nothing."
    )
    blocks = _tables(f"target-{_slug(target)}", caption, result, command)
    notes = result.drop_duplicates(["cohort", "split"])
    lines = [
        f"{row.cohort}, {row.split}: {count(int(row.n), 'person')} evaluated, "
        f"{int(row.left_out)} left out{f' ({row.note})' if row.note else ''}."
        for row in notes.itertuples()
    ]
    blocks.append(Text(lines))
    people = facts.predictions.get(target)
    if people is not None and len(people) and people["label"].nunique() > 2:
        blocks.append(_scatter(target, people, command))
    return blocks


def _scatter(target: str, people: pd.DataFrame, command: str) -> Figure:
    methods = list(dict.fromkeys(people["method"]))
    order = ["fine-tuned", "connectivity + ridge", "from scratch"]
    chosen = [m for m in order if m in methods] or methods[:3]
    part = people[people["method"].isin(chosen)]
    part = part.sort_values("method", key=lambda s: s.map(chosen.index))
    caption = f"Predicted against true {target}; a dot is a person, the line is perfection."
    name = f"scatter-{_slug(target)}"
    return Figure(
        name, caption, figures.draw_scatter(name, part, target), caption, command, people
    )


# ---- data and provenance ------------------------------------------------------------------------


def describe_data(facts: Facts) -> list[Any]:
    """Quality distributions and what the scaling knows of each parcel."""
    usable = facts.recordings[facts.recordings["status"] == "ok"]
    known = {
        label: pd.to_numeric(usable[column]) for column, label in QUALITY.items()
        if column in usable and usable[column].notna().sum() > 1
    }  # fmt: skip
    blocks: list[Any] = []
    if known:
        frame = usable[["cohort", "recording_id", *QUALITY]]
        summary = usable.groupby("cohort")[[c for c, label in QUALITY.items() if label in known]]
        medians = summary.median().reset_index().rename(columns=QUALITY)
        svg = figures.draw_histograms("quality", known, usable["cohort"])
        caption = "Motion and quality of usable recordings, before denoising."
        alt = f"Histograms of {join_words(list(known))}."
        blocks.append(Figure("quality", caption, svg, alt, frame=frame))
        blocks.append(Table("quality-medians", "Medians by cohort.", medians))
    else:
        words = "No motion or quality figures: the recordings came as parcel series."
        blocks.append(Text([words], tone="missing"))
    if facts.scaling is not None:
        blocks += _describe_scaling(facts, facts.scaling)
    return blocks


def _describe_scaling(facts: Facts, scaling: Scaling) -> list[Any]:
    coverage = facts.coverage
    unusable = [i + 1 for i, usable in enumerate(scaling.usable) if not usable]
    words = (
        f"Scaling of release {scaling.release or facts.config.release}: median and IQR per parcel "
        f"over {count(scaling.num_recordings, 'training recording')}; {scaling.usable.sum()} of "
        f"{scaling.num_parcels} parcels can be used"
    )
    words += f", not: {', '.join(map(str, unusable))}." if unusable else "."
    frame = pd.DataFrame({
        "parcel": range(1, scaling.num_parcels + 1), "median": scaling.median, "iqr": scaling.iqr,
        "usable": scaling.usable,
    })  # fmt: skip
    if coverage is not None and len(coverage) == len(frame):
        frame["mean_coverage"] = coverage
    svg = figures.draw_parcels(scaling, coverage)
    return [Figure("parcels", words, svg, words, command="brainlm release", frame=frame)]


def describe_provenance(facts: Facts) -> list[Any]:
    """Everything that is needed to know what made these pages."""
    info, scaling, config = facts.info, facts.scaling, facts.config
    rows = [
        ("code", f"brainlm-pipeline {software_versions()['brainlm-pipeline']}"),
        ("git commit", code_commit() or "not run from a git checkout"),
        ("release", config.release),
        ("shards in the release", len(facts.release) if len(facts.release) else None),
        ("atlas", info.atlas if info else config.atlas.name),
        ("atlas sha256", info.atlas_sha256 if info else None),
        ("parcels", info.num_parcels if info else None),
        ("sample period (s)", info.sample_period_s if info else None),
        ("scaling", f"{scaling.release or config.release}, {scaling.units}" if scaling else None),
        ("engine", config.preprocess.engine),
        ("denoising", " + ".join(config.preprocess.denoise_steps) or "none"),
    ]
    versions = pd.DataFrame(software_versions().items(), columns=["software", "version"])
    facts_table = pd.DataFrame(rows, columns=["what", "value"])
    return [
        Table("provenance", "What made this.", facts_table),
        Table("software", "Software.", versions),
        Details("The configuration, resolved", config.model_dump_json(indent=2)),
    ]


def _cohort_row(facts: Facts, cohort) -> dict:
    part = facts.recordings[facts.recordings["cohort"] == cohort.name]
    usable = part[part["status"] == "ok"]
    return {
        "cohort": cohort.name, "role": cohort.role, "layout": cohort.layout,
        "people": _people(part), "recordings": len(part), "usable": len(usable),
        "folder": str(cohort.folder),
    }  # fmt: skip
