"""A study that trains nothing: a finished model, and scans to embed and predict."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import warm
from runs import make_clone, make_series, snakemake

from brainlm.atlas import load_atlas
from brainlm.model import PRESETS, BrainLM, BrainLMConfig, from_pretrained
from brainlm.shards import Scaling

CONFIG = """
cohorts:
  - {{name: scans, folder: scans, layout: parcels, role: predict}}
atlas: {{name: demo424, folder: atlas}}
model: {{preset: tiny, start: {model}}}
"""


def save_fine_tuned(folder, atlas) -> None:
    """A network as it was initialised, with the head of a classifier."""
    settings = PRESETS["tiny"] | {"width": 32, "depth": 1, "heads": 2, "ffn": 64}
    torch.manual_seed(0)
    shape = BrainLMConfig(
        num_parcels=424, window=100, patch=20, has_coordinates=True, head_outputs=1, pool="mean",
        classes=("control", "patient"), target="diagnosis",
        ranges={"repetition_time_s": (2.0, 2.0, 2.0, 2.0, 2.0)},
        **settings,
    )  # fmt: skip
    model = BrainLM(shape, atlas.coordinates)
    facts = {"atlas": "demo424", "atlas_sha256": atlas.image_sha256, "sample_period_s": 1.0}
    scaling = Scaling(
        np.zeros(424), np.full(424, 5.0), num_recordings=9, units="as delivered", release="theirs",
        **facts,
    )  # fmt: skip
    model.save_pretrained(folder, scaling, "# Their card\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = make_clone(tmp_path_factory.mktemp("given"))
    save_fine_tuned(folder / "theirs", load_atlas("demo424", folder / "atlas"))
    make_series(folder / "scans", 3)
    (folder / "config.yaml").write_text(CONFIG.format(model="theirs"))
    done = snakemake(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_a_given_model_embeds_and_predicts_and_nothing_is_trained(finished):
    results = finished / "results"
    assert not (results / "releases").exists() and not (results / "evaluation").exists()
    taken = results / "models/r1/pretrain"
    card = (taken / "README.md").read_text()
    assert card.startswith("# Their card") and "Taken as it is from `theirs`" in card
    assert from_pretrained(taken).scaling.release == "theirs"
    embedded = pd.read_parquet(results / "embeddings/r1/scans.parquet")
    recordings = embedded[embedded["level"] == "recording"]
    assert recordings["status"].to_list() == ["ok"] * 3
    assert np.isfinite(np.stack(recordings["vector"])).all()
    predicted = pd.read_parquet(results / "predictions/r1/scans.parquet")
    assert predicted["target"].unique() == ["diagnosis"] and len(predicted) == 3
    both = predicted[["probability_control", "probability_patient"]]
    np.testing.assert_allclose(both.sum(axis=1), 1)
    named = both.idxmax(axis=1).str.removeprefix("probability_")
    assert (predicted["predicted_class"] == named).all()
    assert predicted["warnings"].str.contains("repetition time 1 s is outside").all()
    assert "scans" in (results / "report/index.html").read_text()


def test_nothing_is_left_to_do_and_new_scans_are_embedded(finished):
    done = warm.snakemake(finished, "--dry-run")
    assert "Nothing to be done" in done.stdout + done.stderr
    make_series(finished / "scans", 1, first=4)
    done = warm.snakemake(finished, "--dry-run")
    lines = (done.stdout + done.stderr).splitlines()
    jobs = {line[5:].rstrip(":") for line in lines if line.startswith("rule ")}
    assert "embed" in jobs and not {"pretrain", "release", "finetune", "evaluate"} & jobs


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("start: theirs", "window: 100", "no cohort has role: reference"),
        ("start: theirs", "continue_training: true", "needs model.start"),
        ("role: predict", "role: predicted", "role"),
    ],
)
def test_a_study_that_cannot_train_is_refused_in_words(tmp_path, old, new, words):
    folder = make_clone(tmp_path)
    make_series(folder / "scans", 1)
    (folder / "config.yaml").write_text(CONFIG.format(model="theirs").replace(old, new))
    done = warm.snakemake(folder, "--dry-run")
    assert done.returncode and words in done.stderr and "Traceback" not in done.stderr
