"""A results folder of a small invented study, with hostile names, for tests of the pages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from study_tasks import HOSTILE, PARCELS, write_tasks

from brainlm.atlas import Atlas
from brainlm.cohort.splits import split_of
from brainlm.config import Config, Evaluate, parse_config
from brainlm.evaluation.metrics import of_sums, sum_values
from brainlm.evaluation.rows import compare, write_results
from brainlm.evaluation.statistics import Sample
from brainlm.files import write_json
from brainlm.preprocess.io.derivatives import Derivatives, sidecar, write_table, write_volume
from brainlm.preprocess.normalise.registration import Normalisation
from brainlm.preprocess.stages.products import write_filtered
from brainlm.report import build_report
from brainlm.report.recording import make_recording_page
from brainlm.report.site import write_site
from brainlm.shards import Corpus, ParcelQuantiles, Recording, Scaling, ShardInfo, write_shard

TIME = 60
SPACE = "MNI152NLin6Asym"
_INFO = ShardInfo("demo424", "ab" * 32, PARCELS, 1.0)


def make_config(folder: Path) -> Config:
    cohorts = [
        {"name": "home", "folder": str(folder / "raw"), "layout": "bids"},
        {
            "name": "away",
            "folder": str(folder / "series"),
            "layout": "parcels",
            "role": "external",
        },
    ]
    task = folder / "hostile.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    task.write_text(json.dumps({"kind": "regression", "target": HOSTILE}))
    values = {"results": str(folder / "results"), "cohorts": cohorts,
              "model": {"preset": "tiny", "window": 40},
              "tasks": ["reconstruction", "age", str(task), "forecasting", "attention", "networks",
                        "latent", "scaling"]}  # fmt: skip
    return parse_config(values)


def make_results(folder: Path, *, subjects: int = 60, evaluated: bool = True) -> Config:
    """Write a whole results folder below `folder`; returns its configuration."""
    config = make_config(folder)
    results, rng = config.results, np.random.default_rng(0)
    for cohort in config.cohorts:
        recordings = [_recording(cohort.name, i, rng) for i in range(subjects)]
        shard = results / "shards" / cohort.name / "00000.parquet"
        extra = {"dataset.doi": "10.1/home"} if cohort.name == "home" else {}
        write_shard(shard, recordings, replace(_INFO, extra=extra))
        _write_index(results, cohort.name, recordings)
    _write_derivatives(folder, config, rng)
    if evaluated:
        _write_release(results, recordings)
        _write_model(results, rng)
        _write_reconstruction(results, recordings, rng)
        _write_target(results, subjects, rng)
        write_tasks(results / "evaluation" / "r1", rng)
    return config


def _recording(cohort: str, number: int, rng) -> Recording:
    """Number 3 is unreadable, 4 too short, 5 shorter than a window, the others are whole."""
    subject = f"sub-{cohort}{number:03d}"
    facts = {"recording_id": f"{subject}_task-rest", "participant_id": subject, "cohort": cohort,
             "split": split_of(subject), "repetition_time_s": 2.0,
             "duration_s": TIME * 2.0}  # fmt: skip
    if number == 3:
        return Recording(**facts, status="unreadable", reason=HOSTILE)
    if number == 4:
        return Recording(**facts, status="too_short", reason="84 s, expected 120 s")
    length = 39 if number == 5 else TIME
    return Recording(**facts, series=rng.normal(size=(length, PARCELS)), sample_period_s=1.0,
                     units="percent", coverage=rng.uniform(0.7, 1, PARCELS),
                     mean_fd_mm=float(rng.gamma(3, 0.07)), mean_dvars=float(rng.gamma(9, 0.1)),
                     tsnr=float(rng.normal(70, 9)))  # fmt: skip


def _write_index(results: Path, cohort: str, recordings: list[Recording]) -> None:
    rows = [{"recording_id": r.recording_id, "participant_id": r.participant_id, "chunk": "00000"}
            for r in recordings]  # fmt: skip
    path = results / "index" / cohort / "recordings.tsv"
    path.parent.mkdir(parents=True)
    extra = {"recording_id": f"sub-{cohort}new_task-rest", "participant_id": f"sub-{cohort}new"}
    pd.DataFrame([*rows, extra | {"chunk": "00001"}]).to_csv(path, sep="\t", index=False)
    stage = results / "work" / cohort / "00000" / "motion.tsv"
    stage.parent.mkdir(parents=True)
    table = pd.DataFrame(rows)[["recording_id"]].assign(status="ok", reason="", seconds=12.5)
    table.to_csv(stage, sep="\t", index=False)


def make_atlas(folder: Path) -> Atlas:
    """Twelve blocks in a row from back to front."""
    path, affine = folder / "atlas.nii.gz", np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = -90, -126, -72
    labels = np.zeros((45, 54, 45), np.int16)
    labels[12:36, 3:51, 8:37] = 1 + np.arange(48)[:, None] // 4
    write_volume(path, labels, affine, space="template")
    places = np.column_stack(
        [np.zeros(PARCELS), np.linspace(-100, 60, PARCELS), np.zeros(PARCELS)]
    )
    names = tuple(f"parcel-{n}" for n in range(1, PARCELS + 1))
    return Atlas("demo424", SPACE, PARCELS, path, "ab" * 32, places, names, "made up", "none")


def build(config: Config) -> Path:
    """The whole site, with places for the invented atlas; returns the report's folder."""
    make_pages(config)
    places = np.random.default_rng(1).uniform((-60, -95, -40), (60, 60, 70), (PARCELS, 3))
    with patch("brainlm.report.facts._read_places", lambda _: places):
        build_report(config)
    return config.results / "report"


def make_pages(config: Config) -> None:
    """Pages of a whole recording, one with little, a failed and a short one."""
    atlas = make_atlas(config.results.parent)
    corpus = Corpus([config.results / "shards/home/00000.parquet"])
    figures = {"num_components": 6.0, "num_removed": 1.0}
    pages = [make_recording_page(config, atlas, corpus, i, figures) for i in (0, 1, 3, 5)]
    write_site(pages, config.results / "recordings")


def _write_derivatives(folder: Path, config: Config, rng) -> None:
    """What the image stages leave behind for the first recording, made up."""
    out = config.results / "derivatives" / "home"
    files = Derivatives(out, "sub-home000_task-rest", make_atlas(folder))
    columns = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    columns += ["framewise_displacement", "dvars", "std_dvars", "global_signal"]
    write_table(
        files.confounds, dict(zip(columns, rng.normal(0, 0.1, (len(columns), TIME)), strict=True))
    )
    _write_components(files, rng)
    affine = np.diag([8.0, 8, 8, 1])
    affine[:3, 3] = -80
    image = rng.random((20, 24, 20)).astype(np.float32)
    brain = np.zeros(image.shape, bool)
    brain[3:17, 3:21, 3:17] = True
    write_volume(files.boldref, image + brain, affine, space="scanner")
    write_volume(files.mask, brain, affine, space="scanner")
    write_volume(files.tsnr, np.where(brain, 50 * image, 0), affine, space="scanner")
    flat = Normalisation(np.eye(4), np.zeros((3, 2, 2, 2)), np.full(3, -100.0), np.full(3, 200.0))
    flat.save(files.normalisation)
    table = {"index": np.arange(1, PARCELS + 1), "coverage": rng.uniform(0.7, 1, PARCELS)}
    write_table(files.coverage, table)
    options = config.preprocess
    parameters = options.model_dump(exclude={"denoise"}, mode="json")
    write_filtered(files.filtered, rng.normal(size=(TIME, PARCELS)), options, parameters)
    made = {"Engine": "brainlm-pipeline", "RepetitionTime": 2.0,
            "NumberOfVolumesDiscardedByPipeline": 3, "SliceTimingCorrected": False}  # fmt: skip
    write_json(sidecar(files.boldref), made)
    fit = {"Method": "direct", "Engine": "brainlm-pipeline", "Template": SPACE,
           "TemplateImage": "MNI152NLin2009aSym"}  # fmt: skip
    write_json(sidecar(files.normalisation), fit)


def _write_components(files: Derivatives, rng) -> None:
    names = [f"component_{n:02d}" for n in range(1, 7)]
    write_table(files.mixing, dict(zip(names, rng.normal(size=(6, TIME)), strict=True)))
    write_json(sidecar(files.mixing), {"RepetitionTime": 2.0})
    measured = ("max_rp_corr", "edge_fraction", "high_frequency_content", "csf_fraction")
    features = {name: rng.random(6) for name in measured}
    verdict = {"classification": ["rejected", *["accepted"] * 5]}
    verdict["rule"] = ["csf_fraction", *["none"] * 5]
    write_table(files.metrics, {"component": np.arange(1, 7)} | features | verdict)
    write_json(sidecar(files.metrics), {"Converged": True, "Iterations": 31})
    maps = np.zeros((6, 45, 54, 45), np.int16)
    for number in range(6):
        maps[number, 20:24, 6 * number : 6 * number + 9, 15:30] = (-1) ** number * 60
    write_volume(files.maps, maps, np.diag([4.0, 4, 4, 1]), space="template")


def _write_release(results: Path, recordings: list[Recording]) -> None:
    folder = results / "releases" / "r1"
    series = [r.series for r in recordings if r.series is not None]
    facts = {"atlas": "demo424", "atlas_sha256": "ab" * 32, "sample_period_s": 1.0}
    statistics = ParcelQuantiles.of(series, PARCELS)
    Scaling.fit(statistics, release="r1", **facts).save(folder / "scaling.json")
    (folder / "shards.tsv").write_text("shard\tsize\tmtime_ns\tsha256\nx.parquet\t1\t1\tab\n")


def _write_model(results: Path, rng) -> None:
    folder = results / "models" / "r1" / "pretrain"
    folder.mkdir(parents=True)
    lines = []
    for step in range(10, 310, 10):
        score = 0.5 * (1 - np.exp(-step / 80))
        line = {"step": step, "epoch": step // 10, "split": "train", "loss": 1.1 - score,
                "r2": score, "windows_per_s": 31.0, "data_wait": 0.02,
                "seconds": step}  # fmt: skip
        lines.append(line)
        if step % 50 == 0:
            extra = {"split": "validation", "r2": score - 0.04, "r2_zero": -0.01, "r2_linear": 0.2}
            lines.append(line | extra | {"loss": 1.15 - score, "windows_per_s": None})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 31')
    run = {"updates": 300, "epochs": 30, "seconds": 411.0, "device": "CPU", "processes": 1,
           "recordings": {"train": 46, "validation": 6}, "windows_per_s": 31.0}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "config.json").write_text(json.dumps({"preset": "tiny", "window": 40, "patch": 10}))


def _rows(truth, guesses: dict, where: dict):
    sums = {
        name: np.array([sum_values(y, p) for y, p in zip(truth, guess, strict=True)])
        for name, guess in guesses.items()
    }
    sample = Sample(len(truth), Evaluate(bootstrap=200, seed=0))
    pairs = [(next(iter(sums)), other) for other in list(sums)[1:]]
    for metric in ("r2", "r", "mse", "mae"):
        statistics = {name: of_sums(metric, part) for name, part in sums.items()}
        row = where | {"level": "pooled", "metric": metric, "n": len(truth)}
        yield from compare(sample, statistics, row, pairs)


def _write_reconstruction(results: Path, recordings: list[Recording], rng) -> None:
    folder, rows, traces = results / "evaluation" / "r1", [], {}
    for cohort, split, participants in (("home", "test", 8), ("away", "all", 57)):
        for target in ("random 20%", "random 75%", "random 90%", "future 10%"):
            truth = rng.normal(size=(participants, 50))
            guesses = {"model": truth * 0.5,
                       "linear": truth * 0.3 + rng.normal(size=truth.shape) / 2,
                       "zero": truth * 0}  # fmt: skip
            where = {"task": "reconstruction", "target": target, "cohort": cohort, "split": split,
                     "left_out": 2, "note": "2 without a usable recording"}  # fmt: skip
            rows += list(_rows(truth, guesses, where))
            rows += [where | {"method": "model", "level": "recording", "unit": f"r{i}",
                              "metric": "r2", "value": rng.normal(0.4, 0.1), "n": participants}
                     for i in range(participants)]  # fmt: skip
            wave = np.sin(np.arange(TIME) / 4) + rng.normal(0, 0.3, TIME)
            hidden = (np.arange(TIME) // 10) % 2
            traces[f"{cohort}/{target}/sub-{cohort}001"] = np.stack(
                [wave, hidden, wave / 2, wave / 3]
            )
    write_results(rows, folder / "reconstruction.parquet", 1234)
    np.savez(folder / "reconstruction.traces.npz", **traces)


def _write_target(results: Path, subjects: int, rng) -> None:
    folder = results / "evaluation" / "r1"
    where = {"task": "regression", "target": "age", "cohort": "home", "split": "test",
             "left_out": 1, "note": "1 without a label", "n_train": 46}  # fmt: skip
    age = rng.uniform(20, 80, 9)
    guesses = {
        "fine-tuned": age + rng.normal(0, 9, 9), "from scratch": 50 + rng.normal(0, 9, 9),
        "connectivity + ridge": age + rng.normal(0, 7, 9), "mean FD": age / 9 + 45,
        "mean": age * 0 + 50,
    }  # fmt: skip
    rows = list(_rows(age[:, None], {k: v[:, None] for k, v in guesses.items()}, where))
    write_results(rows, folder / "age.parquet", 1234)
    facts = {"cohort": "home", "participant_id": [f"sub-{i}" for i in range(9)], "split": "test"}
    table = pd.DataFrame(facts | {"label": age} | guesses)
    long = table.melt(list(table.columns[:4]), list(guesses), "method", "prediction")
    long.to_parquet(folder / "age.predictions.parquet")
