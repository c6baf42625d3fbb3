"""The page of a recording: motion, carpets, registration, components, coverage, connectivity.

The words about a step stand in its room (``motion/motion_text.py``); this file lays them out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..atlas import Atlas
from ..config import Config
from ..errors import STATUSES
from ..files import read_json
from ..preprocess.denoise.denoise_text import TEXT as DENOISE
from ..preprocess.distortion.distortion_text import TEXT as DISTORTION
from ..preprocess.io.derivatives import Derivatives, read_own_sidecar, read_table, sidecar
from ..preprocess.motion.motion_text import IMAGE
from ..preprocess.motion.motion_text import TEXT as MOTION
from ..preprocess.normalise.normalise_text import TEXT as NORMALISE
from ..preprocess.normalise.normalise_text import describe_ways
from ..preprocess.parcellate.dense_labels import is_dense
from ..preprocess.parcellate.parcellate_text import TEXT as PARCELLATE
from ..shards import Corpus
from ..shards.censored import holds_window, is_censored, parcels_with_data
from . import pictures
from .methods_text import describe_methods
from .page_blocks import Cards, Details, Figure, Picture, Section, Table, Text, show
from .site import Page

_SHOWN = {
    "mean_fd_mm": "mean FD (mm)", "mean_dvars": "mean DVARS (%)", "tsnr": "median tSNR",
    "correlation": "registration r", "parcels_with_data": "parcels with data",
    "num_removed": "components removed",
}  # fmt: skip
_VERDICT = {"classification": "verdict", "rule": "decided by"}
_FEATURES = {
    "variance_explained": "variance", "max_rp_corr": "motion r", "edge_fraction": "edge",
    "high_frequency_content": "high freq.", "csf_fraction": "CSF",
}  # fmt: skip
_BEFORE, _AFTER = "before denoising", "after denoising"


def make_recording_page(
    config: Config, atlas: Atlas, corpus: Corpus, index: int, figures: dict
) -> Page:
    """The page of row `index` of `corpus`.

    Parameters
    ----------
    figures : dict
        What the stages measured: the columns of their tables for this recording.
    """
    row = corpus.table.iloc[index]
    paths, cohort = config.paths, row["cohort"]
    page = paths.recording_page(cohort, row["recording_id"])
    files = Derivatives(paths.derivatives(cohort), row["recording_id"], atlas)
    carpets = _read_carpets(files, corpus, index)

    def link(path: Path) -> str:
        return Path(os.path.relpath(path, page.parent)).as_posix()

    sections = [
        Section("summary", "Summary", _summarise(row, figures, config, files, atlas)),
        Section("time", MOTION.title, _describe_time(files, carpets, row, link)),
        Section("image", IMAGE.title, _describe_image(files, link)),
        Section("registration", NORMALISE.title, _describe_registration(files, atlas)),
        Section("components", DENOISE.title, _describe_components(files, link)),
        Section("parcels", PARCELLATE.title, _describe_parcels(files, carpets, atlas, link)),
        Section("files", "Files", _describe_files(files, row, link)),
    ]
    trail = [("Study report", link(paths.report_page)), (cohort, link(paths.cohort_page(cohort)))]
    role = config.cohort(cohort).role
    subtitle = f"{cohort}, {row['split'] if role == 'reference' else role}"
    path = page.relative_to(paths.recording_pages).as_posix()
    return Page(path, row["recording_id"], subtitle, sections, trail)


def _read_carpets(files: Derivatives, corpus: Corpus, index: int) -> dict[str, np.ndarray]:
    """Series [T, R] before and after denoising; only one for a recording that came as series."""
    if corpus.table["status"][index] != "ok":
        return {}
    after = corpus.series(index)
    if not files.filtered.exists():
        return {"as delivered": after}
    with np.load(files.filtered, allow_pickle=False) as kept:
        return {_BEFORE: kept["series"], _AFTER: after}


def _missing(words: str) -> list[Any]:
    return [Text([words], tone="missing")]


def _summarise(
    row: pd.Series, figures: dict, config: Config, files: Derivatives, atlas: Atlas
) -> list[Any]:
    blocks: list[Any] = []
    if row["status"] != "ok":
        words = f"{row['status']} ({STATUSES.get(row['status'], '')}): {row['reason']}"
        blocks.append(Text([f"This recording has no series. {words}."], tone="missing"))
    else:
        blocks.append(Cards(_headlines(row, figures)))
        if not holds_window(row.to_frame().T, config.model.window).all():
            short = row["num_timepoints"] < config.model.window
            what = "is shorter than a window" if short else "has no uncensored half of a window"
            words = (
                f"This series {what} of the model: {row['num_timepoints']} time points, "
                f"{config.model.window} needed (model.window when this page was drawn). No model "
                "is trained or evaluated on it."
            )
            blocks.append(Text([words], tone="missing"))
    warned = row.get("warnings")
    if warned is not None and not np.isscalar(warned) and len(warned):
        blocks.append(Text([f"Warnings. {'; '.join(warned)}."], tone="missing"))
    text, references = describe_methods(files, atlas)
    if text:
        blocks += [Text([f"Methods. {text}"]), Details("References", "\n".join(references))]
    return blocks


def _headlines(row: pd.Series, figures: dict) -> list[tuple[str, str, str]]:
    items = [
        ("Duration", f"{show(float(row['duration_s']))} s",
         f"repetition time {show(row['repetition_time_s'])} s"),
        ("Series", f"{row['num_timepoints']} time points",
         f"every {show(row['sample_period_s'])} s"),
    ]  # fmt: skip
    if is_censored(row["censored"]):
        gone = len(row["censored"])
        items.append(("Censored", f"{gone / row['num_timepoints']:.1%}", f"{gone} time points"))
    for name, label in _SHOWN.items():
        value = figures.get(name, row.get(name))
        if value is not None and not pd.isna(value):
            total = {"num_removed": figures.get("num_components")}.get(name)
            items.append((label, show(float(value)), f"of {show(total)}" if total else ""))
    return items


def _describe_time(files: Derivatives, carpets: dict, row: pd.Series, link) -> list[Any]:
    confounds, data = pd.DataFrame(), {}
    if files.confounds.exists():
        confounds = pd.DataFrame(read_table(files.confounds))
        data = {"TSV": link(files.confounds), "JSON": link(sidecar(files.confounds))}
    if confounds.empty and not carpets:
        return _missing(MOTION.missing)
    tr_s = row["repetition_time_s"]
    if pd.isna(tr_s):  # it failed, but motion correction had read it
        tr_s = read_json(sidecar(files.boldref))["RepetitionTime"]
    svg = pictures.draw_time(confounds, float(tr_s), carpets, row["sample_period_s"] or 1.0)
    captions = [
        *([MOTION.caption("traces")] if len(confounds) else []),
        *([DENOISE.caption("carpets")] if carpets else []),
        *([DENOISE.caption("denoised")] if _AFTER in carpets else []),
        *([DENOISE.caption("censored")] if is_censored(row["censored"]) else []),
    ]
    alt = f"Motion traces and carpet plots. Mean FD {show(row['mean_fd_mm'])} mm."
    return [Figure("time", " ".join(captions), svg, alt, MOTION.command, files=data)]


def _describe_image(files: Derivatives, link) -> list[Any]:
    if not (files.boldref.exists() and files.mask.exists()):
        return _missing(IMAGE.missing)
    svg = pictures.draw_scanner(files.boldref, files.mask, files.tsnr)
    caption = IMAGE.caption("mask")
    if files.tsnr.exists():
        caption += " " + IMAGE.caption("tsnr")
    there = {p.name.split("_")[-1]: link(p) for p in (files.mask, files.tsnr) if p.exists()}
    return [Figure("scanner", caption, svg, caption, IMAGE.command, files=there)]


def _describe_registration(files: Derivatives, atlas: Atlas) -> list[Any]:
    fit = files.normalisation if files.normalisation.exists() else files.refused
    if not (files.boldref.exists() and fit.exists() and atlas.space):
        return _missing(NORMALISE.missing)
    svg = pictures.draw_registration(files.boldref, fit, _fitted_to(fit) or atlas.space)
    caption = NORMALISE.caption("registration", space=atlas.space)
    if ways := describe_ways(read_own_sidecar(fit).get("Quality", {})):
        caption = f"{caption} {NORMALISE.caption('ways', ways=ways)}"
    if fit == files.refused:
        caption = f"{NORMALISE.caption('refused')} {caption}"
    return [Figure("registration", caption, svg, caption, NORMALISE.command,
                   fade="Template to recording"),
            *_describe_distortion(files, atlas.space)]  # fmt: skip


def _describe_distortion(files: Derivatives, space: str) -> list[Any]:
    made = read_own_sidecar(files.normalisation).get("Distortion")
    if not (made and files.normalisation.exists()):
        return []
    found = {key: show(value) for key, value in made["Figures"].items()}
    mean, peak = found["distortion_mean_mm"], found["distortion_peak_mm"]
    caption = DISTORTION.caption("distortion", space=space, mean=mean, peak=peak)
    if "distortion_after" in found:
        before, after = found["distortion_before"], found["distortion_after"]
        caption += " " + DISTORTION.caption("agreement", before=before, after=after)
    if "template_after" in found:
        before, after = found["template_before"], found["template_after"]
        caption += " " + DISTORTION.caption("template", before=before, after=after)
    svg = pictures.draw_distortion(files.boldref, files.normalisation)
    return [Figure("distortion", caption, svg, caption, DISTORTION.command,
                   fade="As acquired to corrected")]  # fmt: skip


def _fitted_to(fit: Path) -> str | None:
    """The space of the image that a recording was fitted to."""
    made = read_own_sidecar(fit)
    return made.get("TemplateImage", made.get("Template"))  # the former of an earlier version


def _describe_components(files: Derivatives, link) -> list[Any]:
    if not files.metrics.exists():
        return _missing(DENOISE.missing)
    table = pd.DataFrame(read_table(files.metrics))
    removed = int((table["classification"] == "rejected").sum())
    caption = DENOISE.caption("rule", removed=removed, total=len(table))
    shown = pd.DataFrame({"no.": table["component"].astype(int).astype(str)})
    if files.maps.exists():
        pictures_of = pictures.picture_maps(files.maps)
        shown["map"] = [Picture(f"map of component {i}", address=a)
                        for i, a in zip(shown["no."], pictures_of, strict=True)]  # fmt: skip
    if files.mixing.exists():
        mixing = np.column_stack([*read_table(files.mixing).values()])
        tr_s = read_json(sidecar(files.mixing)).get("RepetitionTime", 1.0)
        spectra = pictures.draw_spectra(mixing, tr_s)
        shown["spectrum"] = [
            Picture(f"power spectrum of component {i}", svg=svg)
            for i, svg in zip(shown["no."], spectra, strict=True)
        ]
    for name, label in (_VERDICT | _FEATURES).items():
        if name in table:
            shown[label] = table[name]
    if "rule" in table:
        shown["decided by"] = [_name_rule(rule) for rule in table["rule"]]
    there = [path for path in (files.metrics, files.mixing, files.maps) if path.exists()]
    made = read_own_sidecar(files.metrics)
    warning = []
    if not made.get("Converged", True):
        warning = _missing(DENOISE.caption("stopped", iterations=made["Iterations"]))
    words, drawing = DENOISE.caption("table"), pictures.draw_rule(table)
    return [
        *warning,
        Figure("components", caption, drawing, caption, DENOISE.command),
        Table("components-table", words, table, shown, DENOISE.command, sortable=True,
              files={p.name.split("_")[-1]: link(p) for p in there}, saved=False),
    ]  # fmt: skip


def _name_rule(rule: str) -> str:
    """``csf_fraction+motion_and_edge`` -> ``CSF, motion and edge``."""
    words = _FEATURES | {"motion_and_edge": "motion and edge", "none": "no rule"}
    return ", ".join(words.get(part, part) for part in rule.split("+"))


def _describe_parcels(files: Derivatives, carpets: dict, atlas: Atlas, link) -> list[Any]:
    blocks: list[Any] = []
    volume = atlas.image is not None and not is_dense(atlas)
    if files.coverage.exists() and volume and atlas.image and atlas.space:
        coverage = read_table(files.coverage)["coverage"]
        svg = pictures.draw_coverage(atlas.image, coverage, _fitted_to(files.normalisation))
        whole = int((coverage > 0.99).sum())
        caption = PARCELLATE.caption(
            "coverage", atlas=atlas.name, whole=whole, total=len(coverage)
        )
        blocks.append(Figure("coverage", caption, svg, caption, PARCELLATE.command,
                             files={"TSV": link(files.coverage)}))  # fmt: skip
    if carpets:
        series = list(carpets.values())[-1]
        missing = int((~parcels_with_data(series)).sum())
        caption = PARCELLATE.caption(
            "connectivity", series=", ".join(carpets), missing=missing, total=series.shape[1]
        )
        svg = pictures.draw_connectivity(carpets)
        blocks.append(Figure("connectivity", caption, svg, caption, PARCELLATE.command))
    return blocks or _missing(PARCELLATE.missing)


def _describe_files(files: Derivatives, row: pd.Series, link) -> list[Any]:
    there = [path for path in vars(files).values() if path.exists()]
    there += [sidecar(path) for path in there if sidecar(path).exists()]
    source = Details("Source", str(row["source"]))
    if not there:
        return [*_missing("No derivatives were written."), source]
    frame = pd.DataFrame({"file": [path.name for path in sorted(there)]})
    words = "Derivatives. The links are relative to this page and work inside the results folder."
    return [
        Table("files", words, frame, links={p.name: link(p) for p in there}, saved=False),
        source,
    ]
