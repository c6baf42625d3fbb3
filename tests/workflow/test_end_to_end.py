"""The main job on a simulated study: raw BIDS and parcel series to the report, then one subject
more."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from runs import DAMAGE, ROOT, link_data, make_clone, snakemake

from brainlm.cli import main
from brainlm.cohort.splits import split_of
from brainlm.config import load_config
from brainlm.evaluation.job import Job
from brainlm.evaluation.tasks import find_task
from brainlm.shards import Corpus, Scaling, read_info

pytestmark = pytest.mark.timeout(1800)  # alone it takes minutes; other work may share the cores

STATUS = {"03": "unreadable", "05": "too_short", "07": "bad_metadata", "08": "bad_data"}


@pytest.fixture(scope="module")
def study(simulated, tmp_path_factory) -> Path:
    clone = make_clone(tmp_path_factory.mktemp("study") / "clone")
    link_data(simulated, clone)
    done = snakemake(clone)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return clone


def corpus(study: Path, cohort: str = "raw") -> Corpus:
    shards = sorted((study / f"results/shards/{cohort}").glob("?????.parquet"))
    return Corpus(shards)


def test_every_recording_is_a_row_with_a_status_and_a_reason(study):
    table = corpus(study).table.set_index("participant_id")
    assert len(table) == 18
    expected = {f"sub-{k:02d}": STATUS.get(f"{k:02d}", "ok") for k in range(1, 19)}
    assert table["status"].to_dict() == expected
    failed = table[table["status"] != "ok"]
    assert failed["reason"].str.len().min() > 20
    assert failed.loc["sub-05", "duration_s"] == pytest.approx(20.0)
    listed = pd.read_csv(study / "results/failures.tsv", sep="\t")
    assert len(listed) == len(DAMAGE)


def test_shards_hold_424_parcels_at_one_second(study):
    shards = corpus(study)
    assert shards.info.num_parcels == 424
    assert shards.info.sample_period_s == 1.0
    for index in shards.usable():
        series = shards.series(index)
        assert series.shape[1] == 424
        assert 200 <= len(series) <= 221
        dead = np.isnan(series).all(0)
        assert np.isfinite(series[:, ~dead]).all()
        assert not (series[:, ~dead] == 0).all(0).any()
    assert read_info(shards.paths[0]).atlas == "demo424"


def test_preprocessing_recovers_the_simulated_networks(study):
    """Connectivity of the shards against the truth's, over all parcel pairs."""
    shards, found = corpus(study), []
    for index in shards.usable():
        row = shards.table.iloc[index]
        with np.load(study / f"bids/sourcedata/truth/{row.participant_id}.npz") as kept:
            truth = np.corrcoef(kept["series"].T)
        ours = np.corrcoef(shards.series(index).astype(float).T)
        pairs = np.triu_indices(424, 1)
        good = np.isfinite(ours[pairs]) & np.isfinite(truth[pairs])
        found.append(np.corrcoef(ours[pairs][good], truth[pairs][good])[0, 1])
    assert np.mean(found) > 0.6


def test_scaling_saw_the_training_split_of_the_reference_cohort_alone(study):
    scaling = Scaling.load(study / "results/releases/r1/scaling.json")
    shards = corpus(study)
    train = [i for i in shards.usable() if split_of(shards.table.participant_id[i]) == "train"]
    assert scaling.num_recordings == len(train)
    values = np.concatenate([shards.series(i).astype(float) for i in train])
    low, median, high = np.nanquantile(values, [0.25, 0.5, 0.75], axis=0)
    np.testing.assert_allclose(scaling.iqr, high - low, rtol=0.01)
    np.testing.assert_allclose(scaling.median, median, atol=0.01 * np.median(high - low))


def test_the_model_travels_with_its_scaling(study):
    from brainlm.model import from_pretrained

    model = from_pretrained(study / "results/models/r1/pretrain")
    assert model.config.num_parcels == 424
    assert model.scaling.release == "r1"
    lines = (study / "results/models/r1/pretrain/metrics.jsonl").read_text().splitlines()
    train = [json.loads(x)["loss"] for x in lines if json.loads(x)["split"] == "train"]
    assert train[-1] < train[0]


def test_evaluation_stands_next_to_its_baselines(study, monkeypatch):
    monkeypatch.chdir(study)  # its task files are named from there
    results = study / "results/evaluation/r1"
    table = pd.read_parquet(results / "reconstruction.parquet")
    assert {"model", "zero", "linear"} <= set(table["method"])
    assert {"raw", "other"} == set(table["cohort"])
    age = pd.read_parquet(results / "age.parquet")
    assert {"fine-tuned", "from scratch", "connectivity + ridge", "mean"} <= set(age["method"])
    other = age[(age["cohort"] == "other") & (age["method"] == "fine-tuned")]
    assert (other["n"] == 6).all()
    for name in ("reconstruction", "age"):  # what made each row, and who is not in it
        table = pd.read_parquet(results / f"{name}.parquet")
        assert table["command"].str.endswith(f"evaluate --task {name}").all()
        config = load_config(study / "results/config.json")
        job = Job.of(find_task(config.tasks, name), config)
        assert (table["config"] == job.fingerprint).all()
        assert table[["seed", "n", "left_out"]].notna().all(axis=None)
        assert table["note"].notna()[table["left_out"] > 0].all()


def test_a_saved_model_predicts_what_it_predicted_when_it_was_trained(study, tmp_path):
    from brainlm.training.predict import predict

    folder = study / "results/models/r1/finetune-age/seed-1"
    again = predict(folder, corpus(study).paths, tmp_path / "again.parquet")
    first = pd.read_parquet(folder / "predictions.parquet")
    both = first.merge(again, on="recording_id", suffixes=("", "_again"))
    assert len(both) == len(first) > 10
    np.testing.assert_allclose(both["prediction"], both["prediction_again"], rtol=1e-4)


def test_scans_outside_of_any_study_get_what_their_study_gave_them(study, tmp_path, monkeypatch):
    """One raw image, then its folder, through a model folder and without a config.yaml."""
    name, models = "sub-01_task-rest", study / "results/models/r1"
    func = tmp_path / "bids/sub-01/func"
    func.mkdir(parents=True)
    for path in (study / "bids/sub-01/func").glob(f"{name}_bold.*"):
        shutil.copy(path, func)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    image, folder = str(func / f"{name}_bold.nii.gz"), str(tmp_path / "bids")
    assert main(["embed", image, "--model", str(models / "pretrain"), "--out", "e.parquet"]) == 0
    ours = pd.read_parquet("e.parquet")
    theirs = pd.read_parquet(study / "results/embeddings/r1/raw.parquet")
    theirs = theirs[theirs["recording_id"] == name]
    assert ours["level"].tolist() == theirs["level"].tolist() and set(ours["status"]) == {"ok"}
    for own, given in zip(ours["vector"], theirs["vector"], strict=True):
        np.testing.assert_allclose(own, given, rtol=1e-3, atol=1e-4)
    fit = models / "finetune-age/seed-1"
    assert main(["predict", folder, "--model", str(fit), "--out", "p.parquet"]) == 0
    found = pd.read_parquet("p.parquet").query("level == 'recording'")["prediction"].item()
    known = pd.read_parquet(fit / "predictions.parquet").set_index("recording_id")["prediction"]
    assert found == pytest.approx(known[name], rel=1e-3)
    for source in (f"{name}_bold", "bids"):
        assert name in Path(f"{source}_files/report/index.html").read_text()


def test_the_report_says_what_happened(study):
    page = (study / "results/report/index.html").read_text()
    for words in ("sub-03", "too_short", "connectivity + ridge", "demo424", "release"):
        assert words.lower() in page.lower()
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_every_recording_has_a_page(study):
    rows = pd.read_csv(study / "results/work/raw/00000/pages.tsv", sep="\t")
    assert (rows["status"] == "ok").all()
    pages = {p.stem for p in (study / "results/recordings").glob("*/*.html")}
    assert len(pages) == 18 + 6
    whole = (study / "results/recordings/raw/sub-01_task-rest.html").read_text()
    for part in ("time", "scanner", "registration", "components", "coverage", "connectivity"):
        assert f'id="{part}-figure_1"' in whole, part
    assert "FastICA (Hyvärinen 1999)" in whole
    failed = (study / "results/recordings/raw/sub-03_task-rest.html").read_text()
    assert "This recording has no series. unreadable" in failed


def test_derivatives_are_bids(study):
    folder = study / "results/derivatives/raw"
    description = json.loads((folder / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"]
    confounds = pd.read_csv(
        next(folder.rglob("sub-01_*desc-confounds_timeseries.tsv")), sep="\t", na_values="n/a"
    )
    wanted = {"trans_x", "rot_z", "framewise_displacement", "dvars", "std_dvars", "csf"}
    assert wanted <= set(confounds.columns)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("01_from_bids_to_report", "connectivity against the truth: r = 0."),
        ("02_pretrained_model_from_python", "finetune-age/seed-1: age"),
    ],
)
def test_the_tutorials_run(study, name, words):
    """On this study, which is through: a tutorial keeps a configuration that is there."""
    shutil.copy(study / "config.yaml", study / "tutorial.yaml")
    done = subprocess.run(
        [sys.executable, ROOT / f"docs/tutorials/{name}.py"],
        cwd=study, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert words in done.stdout


def test_one_subject_more_touches_only_its_chunk(study, simulated):
    """Runs last: nothing to do, then a new subject."""
    assert "Nothing to be done" in (lambda d: d.stdout + d.stderr)(snakemake(study))
    shards = sorted((study / "results/shards").rglob("*.parquet"))
    models = sorted((study / "results/models").rglob("*.safetensors"))
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (*shards, *models)}
    shutil.copytree(simulated / "more/sub-101", study / "bids/sub-101")
    done = snakemake(study)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    for path, kept in before.items():
        assert (path.read_bytes(), path.stat().st_mtime_ns) == kept, path
    new = corpus(study)
    assert list(new.table[new.table["participant_id"] == "sub-101"]["status"]) == ["ok"]
    # the one chunk's five stages and its pages, the cohort's embeddings, summary, report, `all`
    assert (done.stdout + done.stderr).count("Finished jobid") == 10
