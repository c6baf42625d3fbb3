"""The main job on real recordings: raw BIDS with the A424 atlas, and ABIDE at the series door."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from runs import make_clone, snakemake

from brainlm.cli import main
from brainlm.evaluation.states.clips import list_clips
from brainlm.evaluation.tasks import parse_task
from brainlm.shards import Corpus

pytestmark = pytest.mark.timeout(1200)  # alone it takes minutes; other work may share the cores

#: columns of A424: FFC, then PHA1, PHA3 and PHA2, right and left
FUSIFORM_FACE = [17, 197]
PARAHIPPOCAMPAL = [125, 126, 154, 305, 306, 334]

COMMON = """
results: results
chunks: {recordings: %(chunk)d}
model: {preset: tiny, window: %(window)d, patch: 20}
pretrain: {epochs: %(epochs)d, batch_size: %(batch)d, micro_batch_size: %(batch)d, cpus: 2}
evaluate: {bootstrap: 200}
"""


def run(folder: Path, config: str, *targets: str) -> Path:
    clone = make_clone(folder)
    (clone / "config.yaml").write_text(config)
    done = snakemake(clone, *targets)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return clone


@pytest.fixture(scope="module")
def real(shared, nlin6, tmp_path_factory) -> Path:
    config = (
        COMMON % {"chunk": 1, "window": 60, "epochs": 3, "batch": 2}
        + f"""
cohorts: [{{name: real, folder: "{shared / "data/bids_real"}", layout: bids}}]
atlas: {{name: a424, folder: "{shared / "atlases"}"}}
tasks: [reconstruction, age.yaml]
finetune: {{epochs: 1}}
"""
    )
    return run(tmp_path_factory.mktemp("real") / "clone", config)


def shards(study: Path, cohort: str) -> Corpus:
    return Corpus(sorted((study / f"results/shards/{cohort}").glob("?????.parquet")))


def test_two_usable_runs_and_one_too_short(real):
    corpus = shards(real, "real")
    table = corpus.table.set_index("participant_id")
    assert table["status"].to_dict() == {"sub-01": "ok", "sub-02": "ok", "sub-03": "too_short"}
    assert "s usable" in table.loc["sub-03", "reason"]
    assert 0 < table.loc["sub-03", "duration_s"] < 60
    assert table.loc["sub-01", "repetition_time_s"] == pytest.approx(2.0)
    assert table.loc["sub-02", "repetition_time_s"] == pytest.approx(2.2)
    assert corpus.info.atlas == "a424"
    assert (table.loc[["sub-01", "sub-02"], "tsnr"] > 20).all()
    assert (table.loc[["sub-01", "sub-02"], "mean_fd_mm"] < 1).all()


def test_424_values_or_nan_with_a_coverage_figure(real):
    corpus = shards(real, "real")
    coverage = pd.read_parquet(corpus.paths[0], columns=["coverage"])["coverage"]
    for index in corpus.usable():
        series = corpus.series(index).astype(float)
        assert series.shape[1] == 424
        seen = np.asarray(pd.read_parquet(corpus.paths[corpus.table.shard[index]])
                          .coverage.iloc[corpus.table.row[index]])  # fmt: skip
        assert len(seen) == 424
        missing = np.isnan(series).all(0)
        np.testing.assert_array_equal(missing, seen < 0.5)
        assert (series[:, ~missing].std(0) > 0).all()
    assert len(coverage)


def test_homologous_areas_of_the_two_hemispheres_go_together(real):
    """Areas 1-180 are right, 181-360 the same areas left: a check of the whole chain."""
    corpus = shards(real, "real")
    for index in corpus.usable():
        connectivity = np.corrcoef(corpus.series(index)[:, :360].astype(float).T)
        block = connectivity[:180, 180:]
        same = np.nanmean(np.diag(block))
        other = np.nanmean(block[~np.eye(180, dtype=bool)])
        assert same > other + 0.15


def test_the_blocks_of_a_real_run_are_seen_in_its_series(real, shared):
    """Faces raise both fusiform face areas, scenes all six parahippocampal ones."""
    corpus, task = shards(real, "real"), parse_task({"kind": "states"}, "states", "states.yaml")
    clips = list_clips(corpus, task, 15, {"real": shared / "data/bids_real"})
    counts = clips.table["condition"].value_counts().to_dict()
    assert counts == dict.fromkeys(["body", "face", "house", "object", "scene", "scramble"], 2)
    assert clips.count_left_out(corpus.table) == {"without an events.tsv": 1,
                                                  "without a usable recording": 1}  # fmt: skip
    means = {}
    for condition, rows in clips.table.groupby("condition"):
        parts = [corpus.series(c.row)[c.start : c.stop].astype(float) for c in rows.itertuples()]
        means[condition] = np.concatenate(parts).mean(0)
    contrast = means["face"] - means["scene"]
    assert (contrast[FUSIFORM_FACE] > 0.1).all() and (contrast[PARAHIPPOCAMPAL] < -0.05).all()


def test_the_report_does_not_pretend(real):
    page = (real / "results/report/index.html").read_text()
    assert "sub-03" in page
    assert "too_short" in page
    assert "No participant could be evaluated" in page
    assert (real / "results/models/r1/pretrain/model.safetensors").exists()


def test_abide_enters_as_parcel_series(shared, tmp_path, monkeypatch):
    """To its evaluation and the study's page, without the pages of recordings."""
    source, folder = shared / "data/abide_cc200", tmp_path / "abide"
    folder.mkdir()
    os.symlink(source / "participants.tsv", folder / "participants.tsv")
    participants = sorted(p.name for p in source.glob("sub-*"))[::14]
    for name in participants:
        os.symlink(source / name, folder / name)
    config = (
        COMMON % {"chunk": 30, "window": 60, "epochs": 2, "batch": 16}
        + f"""
cohorts: [{{name: abide, folder: "{folder}", layout: parcels}}]
atlas: {{name: cc200}}
tasks: [reconstruction, age.yaml]
finetune: {{epochs: 2}}
"""
    )
    study = run(tmp_path / "clone", config, "results/evaluation/r1/age.parquet")
    monkeypatch.chdir(study)
    assert main(["report"]) == 0
    corpus = shards(study, "abide")
    assert len(corpus.table) == len(participants)
    assert (corpus.table["status"] == "ok").mean() > 0.9
    assert corpus.info.num_parcels == 200
    age = pd.read_parquet(study / "results/evaluation/r1/age.parquet")
    ridge = age[(age["method"] == "connectivity + ridge") & (age["metric"] == "mae")]
    assert ridge["n"].iloc[0] >= 5
    assert "cc200" in (study / "results/report/index.html").read_text().lower()
