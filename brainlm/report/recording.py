"""One recording, to look at: motion, carpet, registration, components, coverage, connectivity."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..config import Config
from ..errors import STATUSES
from ..preprocess.derivatives import derivative_path
from ..shards import Corpus
from . import pictures
from .blocks import Cards, Details, Figure, Section, Table, Text, show
from .facts import software_versions
from .site import Page

_SHOWN = {
    "mean_fd_mm": "mean FD (mm)", "mean_dvars": "mean DVARS (%)", "tsnr": "median tSNR",
    "parcels_with_data": "parcels with data", "num_removed": "components removed",
}  # fmt: skip


@dataclass
class Files:
    """Derivatives of a recording; each may be missing."""

    confounds: Path
    boldref: Path
    mask: Path
    normalisation: Path
    metrics: Path
    mixing: Path

    @classmethod
    def of(cls, results: Path, cohort: str, recording: str, space: str | None) -> Files:
        def path(suffix: str, extension: str, **entities: str) -> Path:
            named = {key.rstrip("_"): value for key, value in entities.items()}
            return derivative_path(
                results / "derivatives" / cohort, recording, suffix, extension, named
            )

        return cls(
            confounds=path("timeseries", ".tsv", desc="confounds"),
            boldref=path("boldref", ".nii.gz", desc="hmc"),
            mask=path("mask", ".nii.gz", desc="brain"),
            normalisation=path(
                "xfm", ".npz", from_="boldref", to=space or "template", mode="image"
            ),
            metrics=path("metrics", ".tsv", desc="aroma"),
            mixing=path("mixing", ".tsv", desc="ica"),
        )


def page_path(cohort: str, recording: str) -> str:
    """Where a recording's page is in the report's folder."""
    return f"recordings/{cohort}/{recording}.html"


def make_recording_page(
    results: Path, config: Config, corpus: Corpus, index: int, figures: dict, space: str | None
) -> Page:
    """The page of row `index` of `corpus`.

    Parameters
    ----------
    figures : dict
        What the stages measured: the columns of their tables for this recording.
    space : str or None
        Template space of the atlas.
    """
    row = corpus.table.iloc[index]
    files = Files.of(results, row["cohort"], row["recording_id"], space)
    series = corpus.series(index) if row["status"] == "ok" else None
    sections = [
        Section("summary", "Summary", _summarise(row, figures, config)),
        Section("time", "Motion and signal in time", _describe_time(files, series, row)),
        Section("registration", "Registration", _describe_registration(files, space, config)),
        Section("components", "Components", _describe_components(files)),
        Section("parcels", "Parcels", _describe_parcels(series)),
        Section("files", "Files", _describe_files(results, files, row)),
    ]
    up = "../../"
    trail = [("Study report", f"{up}index.html"), (row["cohort"], f"{up}{row['cohort']}.html")]
    subtitle = f"{row['cohort']}, {row['split']}"
    path = page_path(row["cohort"], row["recording_id"])
    return Page(path, row["recording_id"], subtitle, sections, trail)


def _summarise(row: pd.Series, figures: dict, config: Config) -> list[Any]:
    if row["status"] != "ok":
        words = f"{row['status']} ({STATUSES.get(row['status'], '')}): {row['reason']}"
        return [Text([f"This recording has no series. {words}."], tone="missing")]
    items = [
        ("Duration", f"{show(float(row['duration_s']))} s",
         f"repetition time {show(row['repetition_time_s'])} s"),
        ("Series", f"{row['num_timepoints']} time points",
         f"every {show(row['sample_period_s'])} s"),
    ]  # fmt: skip
    for name, label in _SHOWN.items():
        value = figures.get(name, row.get(name))
        if value is not None and not pd.isna(value):
            total = figures.get("num_components")
            beside = f"of {show(total)}" if name == "num_removed" and total else ""
            items.append((label, show(float(value)), beside))
    return [Cards(items), Text([describe_methods(config, figures)])]


def describe_methods(config: Config, figures: dict) -> str:
    """The methods paragraph, with the engines and parameters that were used."""
    settings, versions = config.preprocess, software_versions()
    low = f" and low-pass at {settings.low_pass_hz:g} Hz" if settings.low_pass_hz else ""
    by_fsl = settings.engine == "fsl"
    ica = "spatial ICA (FSL MELODIC)" if by_fsl else "spatial ICA"
    cleaning = {
        "ica": f"{ica} with the ICA-AROMA rule (Pruim et al. 2015), non-aggressive",
        "ica-aggressive": f"{ica} with the ICA-AROMA rule (Pruim et al. 2015), aggressive",
        "motion24": "regression of 24 motion parameters (Friston et al. 1996)",
        "none": "no regression of artefacts",
    }[settings.denoise]
    method = f" ({figures['method']})" if figures.get("method") else ""
    engine = "FSL, called by brainlm-pipeline" if by_fsl else "brainlm-pipeline's own engine"
    return (
        f"Volumes were realigned rigidly and normalised{method} to the template by {engine} "
        f"(version {versions['brainlm-pipeline']}). Parcel means of atlas {config.atlas.name} "
        "were sampled once from the raw volumes, high-pass filtered at "
        f"{settings.high_pass_hz:g} Hz{low}, cleaned by {cleaning}, divided by their mean "
        "(percent) and resampled to "
        f"{settings.sample_period_s:g} s."
    )


def _describe_time(files: Files, series: np.ndarray | None, row: pd.Series) -> list[Any]:
    if not files.confounds.exists():
        return [Text(["There are no confounds: the recording came as a series, or motion "
                      "correction failed."], tone="missing")]  # fmt: skip
    confounds = pd.read_csv(files.confounds, sep="\t", na_values=["n/a"])
    svg = pictures.draw_time(confounds, float(row["repetition_time_s"]), series,
                             float(row["sample_period_s"] or 1))  # fmt: skip
    caption = (
        "From above: translation and rotation of the head; framewise displacement (FD); DVARS and "
        "global signal before denoising; below, the carpet after denoising: one line per parcel, "
        "in atlas order, grey from −3 to 3 standard deviations. Stripes across all parcels that "
        "coincide with FD peaks are motion that denoising left."
    )
    alt = f"Motion traces and carpet plot. Mean FD {show(row['mean_fd_mm'])} mm."
    columns = [c for c in confounds if not c.startswith(("cosine", "aroma"))]
    command = "brainlm motion, brainlm denoise, brainlm parcellate"
    return [Figure(f"{row['recording_id']}-confounds", caption, svg, alt, command,
                   confounds[columns])]  # fmt: skip


def _describe_registration(files: Files, space: str | None, config: Config) -> list[Any]:
    if not (files.boldref.exists() and files.normalisation.exists()):
        return [Text(["There is no registration to look at."], tone="missing")]
    svg = pictures.draw_registration(files.boldref, files.normalisation, space)
    caption = (
        f"The reference volume read through the fitted transform, in {space}. Lines: outline of "
        "the template's brain and of its white matter. They should follow the edges in the image."
    )
    return [Figure("registration", caption, svg, caption, "brainlm normalise")]


def _describe_components(files: Files) -> list[Any]:
    if not files.metrics.exists():
        return [Text(["There is no ICA for this recording."], tone="missing")]
    table = pd.read_csv(files.metrics, sep="\t", na_values=["n/a"])
    removed = int((table["classification"] == "rejected").sum())
    blocks: list[Any] = []
    if files.mixing.exists():
        mixing = pd.read_csv(files.mixing, sep="\t").to_numpy(float)
        caption = (
            f"{removed} of {len(table)} components are removed. Left: what the rule looks at, "
            "with its line; right: the power spectrum of each component, one line each, kept "
            "above removed."
        )
        svg = pictures.draw_components(table, mixing)
        blocks.append(Figure("components-figure", caption, svg, caption, "brainlm denoise"))
    words = "Features of every component, the verdict, and the rule that decided it."
    name = f"{files.metrics.name.split('_desc-')[0]}-components"
    return [*blocks, Table(name, words, table, command="brainlm denoise", sortable=True)]


def _describe_parcels(series: np.ndarray | None) -> list[Any]:
    if series is None:
        return []
    missing = int(np.isnan(series[0]).sum())
    caption = (
        f"Correlation between parcels after denoising; {missing} of {series.shape[1]} parcels "
        "have no data (blank)."
    )
    return [Figure("connectivity", caption, pictures.draw_connectivity(series), caption,
                   "brainlm parcellate")]  # fmt: skip


def _describe_files(results: Path, files: Files, row: pd.Series) -> list[Any]:
    base = results / "report" / "recordings" / row["cohort"]
    there = [path for path in vars(files).values() if path.exists()]
    if not there:
        return [Text(["No derivatives were written."], tone="missing")]
    frame = pd.DataFrame({"file": [path.name for path in there]})
    links = {path.name: os.path.relpath(path, base) for path in there}
    words = (
        "Derivatives, relative to this page (they are there while the results folder is whole)."
    )
    table = Table(f"{row['recording_id']}-files", words, frame, links=links)
    return [table, Details("Source", str(row["source"]))]
