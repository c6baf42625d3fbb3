"""The study report: the data, the model, the results, and their limitations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from ..config import Config
from ..errors import STATUSES
from ..shards import Scaling
from ..training.predictors import PREDICTORS
from . import figures
from .cautions import list_cautions
from .cohort_pages import PENDING, link_pages, make_cohort_page, read_measured
from .facts import Facts, read_facts, stage_seconds
from .findings import TEXTS, describe_tasks
from .outcomes import METRICS, cell, model_first, pooled
from .page_blocks import (
    Cards,
    Cautions,
    Figure,
    Section,
    Table,
    Text,
    count,
    join_words,
    show,
)  # fmt: skip
from .pretraining import describe_pretraining
from .provenance import count_cohort, describe_card, describe_provenance
from .site import Page, write_figures, write_site

QUALITY = {
    "mean_fd_mm": "mean FD (mm)", "mean_dvars": "mean DVARS (%)", "tsnr": "median tSNR",
}  # fmt: skip
_FEWEST = 10  # participants: a bootstrap over fewer says little of others
_CHANCE = {"r2": 0.0, "r": 0.0, "auc": 0.5}  # of other metrics it depends on the data


class Headline(NamedTuple):
    """A figure of the model next to that of another method; rows of one metric."""

    label: str
    rows: pd.DataFrame
    model: str
    words: str
    other: str

    @property
    def card(self) -> tuple[str, str, str]:
        """What a card shows."""
        name = PREDICTORS.get(self.other, self.other)
        other = f"{self.words} ({name}): {cell(self.rows, self.other)}"
        return self.label, cell(self.rows, self.model), other

    @property
    def says_something(self) -> bool:
        """Whether there are enough participants for an interval, and one of the two has an
        interval without the metric's chance level."""
        if self.rows["n"].max() < _FEWEST:
            return False
        part = self.rows[self.rows["method"].isin([self.model, self.other])]
        low, high = (part[name].astype(float) for name in ("low", "high"))
        chance = part["metric"].map(_CHANCE)
        return bool((low.notna() & ~((low <= chance) & (chance <= high))).any())


def build_report(config: Config) -> None:
    """Write the study report: a self-contained folder of pages, style, script and tables.

    What a stage has not written is named as missing on the page.

    Parameters
    ----------
    config : Config

    Raises
    ------
    BrainLMError
        A result file is there and cannot be read.
    """
    facts, paths = read_facts(config), config.paths
    names = join_words([cohort.name for cohort in config.cohorts])
    page = Page(
        path=paths.report_page.name,
        title=f"Study report: {names}",
        subtitle=f"Release {config.release}, model {config.model.preset}, "
        f"atlas {config.atlas.name}",
        sections=[
            Section("summary", "Summary", summarise_study(facts)),
            Section("recordings", "Recordings", describe_recordings(facts)),
            Section("pretraining", "Pretraining", describe_pretraining(facts)),
            *describe_tasks(facts),
            Section("data", "Scaling, coverage and quality", describe_data(facts)),
            Section("provenance", "Provenance", describe_provenance(facts)),
            Section("card", "Model card", describe_card(facts)),
        ],
        trail=[],
    )
    cohorts = [
        make_cohort_page(facts, cohort, read_measured(paths, cohort.name),
                         link_pages(paths, cohort.name))
        for cohort in config.cohorts
    ]  # fmt: skip
    write_figures(page, paths.report_figures)
    write_site([page, *cohorts], paths.report)


# ---- summary ------------------------------------------------------------------------------------


def summarise_study(facts: Facts) -> list[Any]:
    """The data and the model in a sentence each, headline results, limitations."""
    return [
        Text([_describe_recordings(facts), _describe_model(facts)]),
        *_headlines(facts),
        Cautions("Limitations", list_cautions(facts)),
    ]


def _describe_recordings(facts: Facts) -> str:
    table = facts.recordings
    usable = table[table["status"] == "ok"]
    left = len(table) - len(usable)
    end = f"; the {count(left, 'other')} are listed below with the reason" if left > 1 else ""
    end = "; the other one is listed below with the reason" if left == 1 else end
    return (
        f"{count(len(table), 'recording')} of {count(_participants(table), 'participant')} were "
        f"found in {count(len(facts.config.cohorts), 'cohort')}. "
        f"{count(len(usable), 'recording')} of {count(_participants(usable), 'participant')} can "
        f"be used{end}."
    )


def _describe_model(facts: Facts) -> str:
    if not facts.model:
        return "No model has been trained yet."
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
        f"taking {duration(run.get('seconds'))} on {run.get('device', 'an unknown device')}."
    )


def _headlines(facts: Facts) -> list[Any]:
    """Cards, and a sentence about those that these participants cannot tell from chance."""
    found = list(_list_headlines(facts))
    cards = [headline.card for headline in found if headline.says_something]
    unclear = [f"{headline.label} ({headline.rows['n'].max():.0f} participants)"
               for headline in found if not headline.says_something]  # fmt: skip
    blocks: list[Any] = [Cards(cards)] if cards else []
    if unclear:
        words = "Too few participants to tell from chance, so in the tables below only"
        blocks.append(Text([f"{words}: {'; '.join(unclear)}."]))
    return blocks


def _list_headlines(facts: Facts) -> Iterator[Headline]:
    table = pooled(facts.results.get("reconstruction"))
    for (cohort, target), part in table[table["metric"] == "r2"].groupby(["cohort", "target"]):
        if target.startswith("random") and _is_trained_ratio(facts, target):
            trivial = part[part["method"].isin(PREDICTORS)]
            best = trivial.loc[trivial["value"].astype(float).idxmax(), "method"]
            yield Headline(f"Masked R², {target} hidden, {cohort}", part, "model",
                           "best predictor without a network", best)  # fmt: skip
    for name, task in facts.tasks.items():
        metric = TEXTS[task.kind].metric
        if metric and task.kind != "reconstruction":
            yield from _compare_with_best(name, pooled(facts.results.get(name)), metric)
    for target in facts.clinical:
        scores = pooled(facts.results.get(target))
        for (cohort, _), part in scores.groupby(["cohort", "split"], sort=False):
            metric = "auc" if "auc" in set(part["metric"]) else "r"
            rows = part[part["metric"] == metric]
            methods = [m for m in rows["method"] if " minus " not in m]
            baseline = next((m for m in methods if m.startswith("connectivity")), None)
            if baseline and "fine-tuned" in methods:
                label = f"{target}, {METRICS[metric]} of the fine-tuned model, {cohort}"
                yield Headline(label, rows, "fine-tuned", "baseline", baseline)


def _compare_with_best(name: str, table: pd.DataFrame, metric: str) -> Iterator[Headline]:
    """The model next to the best other method of each cohort."""
    single = ~table["method"].astype(str).str.contains(" minus ", regex=False)
    for cohort, part in table[(table["metric"] == metric) & single].groupby("cohort", sort=False):
        part = model_first(part, table)
        model, others = part["method"].iloc[0], part.iloc[1:]
        if len(others):
            best = others.loc[others["value"].astype(float).idxmax(), "method"]
            label = f"{name}, {METRICS[metric]} of {model}, {cohort}"
            yield Headline(label, part, model, "best other", best)


def duration(seconds: float | None) -> str:
    """``45 s``, ``12 min``, ``5.1 h``."""
    if seconds is None:
        return "an unknown time"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _is_trained_ratio(facts: Facts, target: str) -> bool:
    ratios = [f"random {ratio:.0%}" for ratio in facts.config.evaluate.mask_ratios]
    trained = f"random {facts.config.pretrain.mask_ratio:.0%}"
    return target == (trained if trained in ratios else ratios[0])


def _participants(table: pd.DataFrame) -> int:
    return len(table[["cohort", "participant_id"]].drop_duplicates())


# ---- recordings ---------------------------------------------------------------------------------


def describe_recordings(facts: Facts) -> list[Any]:
    """Counts by status, every recording that cannot be used, splits, seconds per stage."""
    table, command = facts.recordings, "brainlm summary"
    if table.empty:
        return [Text(["No recordings are indexed yet: run brainlm index."], tone="missing")]
    cohorts = pd.DataFrame([count_cohort(facts, cohort) for cohort in facts.config.cohorts])
    links = {c.name: facts.config.paths.cohort_page(c.name).name for c in facts.config.cohorts}
    caption = "Cohorts. Each name links to a page with the quality of every recording."
    statuses = (
        table.groupby(["cohort", "status"], sort=False).size().rename("recordings").reset_index()
    )
    meaning = STATUSES | {"pending": PENDING}
    statuses["meaning"] = statuses["status"].map(meaning)
    blocks: list[Any] = [
        Table("cohorts", caption, cohorts, links=links, command="brainlm index"),
        Table("statuses", "Recordings by status.", statuses, command=command),
    ]
    failed = table[table["status"] != "ok"][["recording_id", "cohort", "status", "reason"]]
    failed = failed.fillna({"reason": ""}).rename(columns={"recording_id": "recording"})
    if len(failed):
        caption = f"Every recording without a series, with the reason ({len(failed)})."
        blocks.append(Table("not-usable", caption, failed, command=command, sortable=True))
    else:
        blocks.append(Text(["Every recording can be used."]))
    usable = table[table["status"] == "ok"].copy()
    external = [cohort.name for cohort in facts.config.cohorts if cohort.role == "external"]
    usable.loc[usable["cohort"].isin(external), "split"] = "external"
    splits = usable.groupby(["cohort", "split"]).agg(
        participants=("participant_id", "nunique"), recordings=("recording_id", "size")
    )
    splits = splits.reindex(
        ["train", "validation", "test", "external"], level="split"
    ).reset_index()
    caption = (
        "Participants and usable recordings by split. A hash of the participant's label decides "
        "the split; external cohorts are evaluated whole."
    )
    blocks.append(Table("splits", caption, splits, command=command))
    seconds = stage_seconds(facts.config)
    if len(seconds):
        shown = seconds.rename(columns={"count": "recordings", "mean": "mean seconds"})
        blocks.append(Table("stages", "Time per recording and stage, on one core each.", shown))
    return blocks


# ---- data and provenance ------------------------------------------------------------------------


def describe_data(facts: Facts) -> list[Any]:
    """Distributions of quality figures, and the scaling of each parcel."""
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
        words = "There are no motion or quality figures: the recordings came as parcel series."
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
    words += f"; those that cannot: {', '.join(map(str, unusable))}." if unusable else "."
    frame = pd.DataFrame({
        "parcel": range(1, scaling.num_parcels + 1), "median": scaling.median, "iqr": scaling.iqr,
        "usable": scaling.usable,
    })  # fmt: skip
    if coverage is not None and len(coverage) == len(frame):
        frame["mean_coverage"] = coverage
    svg = figures.draw_parcels(scaling, coverage)
    return [Figure("parcels", words, svg, words, command="brainlm release", frame=frame)]
