"""A simulated cohort as fMRIPrep and XCP-D deliver one, through the workflow to its shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from runs import make_clone, snakemake

from brainlm.atlas import load_atlas
from brainlm.cli import main
from brainlm.model import PRESETS, BrainLM, BrainLMConfig
from brainlm.preprocess.denoise.confounds import motion_columns
from brainlm.preprocess.denoise.filter import clean
from brainlm.preprocess.io.derivatives import write_table, write_volume
from brainlm.preprocess.kernels.sampling import sample
from brainlm.preprocess.motion.rigid import framewise_displacement_power
from brainlm.shards import Corpus, Scaling
from brainlm.simulate.truth import load_truth
from brainlm.training.windows import Windows

pytestmark = pytest.mark.timeout(1200)  # alone it takes minutes; other work may share the cores

SPACE = "MNI152NLin2009aSym"
SUBJECTS = ("sub-101", "sub-102", "sub-103")
CONFIG = """
results: results
cohorts:
  - {name: images, folder: fmriprep, layout: fmriprep}
  - {name: series, folder: xcpd, layout: xcpd}
atlas: {name: demo424, folder: atlas}
chunks: {recordings: 8}
model: {preset: tiny}
tasks: [reconstruction]
"""


def normalised(raw: Path, truth) -> tuple[np.ndarray, np.ndarray]:
    """The recording on a 4 mm grid of the template, every volume moved back, by the truth."""
    image = nib.load(raw)
    volumes = np.ascontiguousarray(np.asarray(image.dataobj, np.float32).T)
    affine = np.array([[-4, 0, 0, 90], [0, 4, 0, -126], [0, 0, 4, -72], [0, 0, 0, 1.0]])
    shape = (46, 55, 46)  # z, y, x
    index = np.indices(shape).reshape(3, -1)[::-1].T
    world = truth.placement.to_head(index @ affine[:3, :3].T + affine[:3, 3])
    values = sample(volumes, image.affine, world, truth.transforms)
    return np.nan_to_num(values).reshape(-1, *shape), affine


def write_subject(folder: Path, source: Path, subject: str) -> None:
    raw = source / subject / "func" / f"{subject}_task-rest_bold.nii.gz"
    truth = load_truth(source, subject)
    func = folder / "fmriprep" / subject / "func"
    func.mkdir(parents=True)
    run = func / f"{subject}_task-rest"
    volumes, affine = normalised(raw, truth)
    path = Path(f"{run}_space-{SPACE}_res-4_desc-preproc_bold.nii.gz")
    write_volume(path, volumes, affine, space="template")
    sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
    sidecar.write_text(json.dumps({"RepetitionTime": 2.0}))
    rotation = truth.transforms[:, :3, :3]
    angles = np.stack([rotation[:, 2, 1], rotation[:, 0, 2], rotation[:, 1, 0]], 1)  # small
    parameters = np.column_stack([truth.transforms[:, :3, 3], angles])
    columns = motion_columns(parameters)
    columns["framewise_displacement"] = framewise_displacement_power(parameters)
    write_table(Path(f"{run}_desc-confounds_timeseries.tsv"), columns)
    series = folder / "xcpd" / subject / "func"
    series.mkdir(parents=True)
    table = series / f"{subject}_task-rest_space-{SPACE}_seg-demo424_stat-mean_timeseries.tsv"
    np.savetxt(table, truth.series, delimiter="\t", comments="",
               header="\t".join(f"parcel-{k}" for k in range(424)))  # fmt: skip
    table.with_suffix(".json").write_text('{"RepetitionTime": 2.0}')


@pytest.fixture(scope="module")
def study(simulated, tmp_path_factory) -> Path:
    clone = make_clone(tmp_path_factory.mktemp("delivered") / "clone")
    (clone / "config.yaml").write_text(CONFIG)
    for subject in SUBJECTS:
        write_subject(clone, simulated / "more", subject)
    shutil.copy(simulated / "more/participants.tsv", clone / "fmriprep/participants.tsv")
    files = [f"results/shards/{name}/00000.parquet" for name in ("images", "series")]
    pages = [f"results/work/{name}/00000/pages.tsv" for name in ("images", "series")]
    done = snakemake(clone, *files, *pages)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "3 of 3 participants with recordings are in" in done.stderr
    assert "3 of its 6 rows have no recording" in done.stderr
    return clone


def test_only_the_last_stages_ran(study):
    ran = {path.name for path in (study / "results/logs").iterdir()}
    assert ran & {"motion", "normalise", "denoise", "parcellate"} == set()
    assert {"volumes", "series", "shard"} <= ran


def without_mean(series: np.ndarray) -> np.ndarray:
    """Artefacts of the whole head are still there (nobody ran an ICA): the parcels' mean goes."""
    centred = series - series.mean(0)
    mean = centred.mean(1, keepdims=True)
    return centred - mean @ (mean.T @ centred) / (mean.T @ mean)


def test_images_in_template_space_give_each_parcel_its_own_series(study, simulated):
    shards = Corpus([study / "results/shards/images/00000.parquet"])
    assert list(shards.table["status"]) == ["ok"] * 3 and shards.info.sample_period_s == 1.0
    assert (shards.table["mean_fd_mm"] > 0.01).all() and (shards.table["tsnr"] > 10).all()
    for index in shards.usable():
        truth = load_truth(simulated / "more", shards.table["participant_id"][index]).series
        ours = shards.series(index).astype(float)[::2]  # the shard's rate is twice the scanner's
        truth = clean(truth, 2.0, high_pass_hz=0.008)[-len(ours) :]
        both = np.corrcoef(without_mean(ours).T, without_mean(truth).T)
        nearest = both[:424, 424:].argmax(1) == np.arange(424)
        pairs = np.triu_indices(424, 1)
        agreement = np.corrcoef(both[:424, :424][pairs], both[424:, 424:][pairs])[0, 1]
        assert nearest.mean() > 0.9 and agreement > 0.6


def test_series_keep_their_values(study, simulated):
    shards = Corpus([study / "results/shards/series/00000.parquet"])
    assert list(shards.table["status"]) == ["ok"] * 3
    series = shards.series(0).astype(float)
    truth = load_truth(simulated / "more", shards.table["participant_id"][0]).series
    np.testing.assert_allclose(series[::2][: len(truth)], truth, atol=2e-3 * np.abs(truth).max())


def test_one_image_in_template_space_is_embedded_as_its_series_are(study, tmp_path, monkeypatch):
    atlas = load_atlas("demo424", study / "atlas")
    shape = BrainLMConfig(num_parcels=424, window=60, patch=20, has_coordinates=True,
                          **PRESETS["tiny"])  # fmt: skip
    scaling = Scaling(np.zeros(424), np.ones(424), atlas.name, atlas.image_sha256, 1.0, 9,
                      units="percent")  # fmt: skip
    torch.manual_seed(0)
    model = BrainLM(shape, atlas.coordinates)
    model.save_pretrained(tmp_path / "model", scaling)
    shards = Corpus([study / "results/shards/images/00000.parquet"])
    windows = Windows(shards, scaling, 60, [0]).cover(0)
    vectors = model.embed(windows, pool="components").numpy()
    monkeypatch.chdir(tmp_path)
    image = next((study / "fmriprep/sub-101").rglob("*desc-preproc_bold.nii.gz"))
    assert main(["embed", str(image), "--model", "model", "--out", "e.parquet"]) == 0
    rows = pd.read_parquet("e.parquet").query("level == 'window'")
    np.testing.assert_allclose(np.stack(rows["vector"]), vectors, rtol=1e-3, atol=1e-4)


def test_every_recording_has_a_page_without_a_gap(study):
    for name in ("images", "series"):
        table = pd.read_csv(study / f"results/work/{name}/00000/pages.tsv", sep="\t")
        assert list(table["status"]) == ["ok"] * 3
