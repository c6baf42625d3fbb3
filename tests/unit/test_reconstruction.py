"""Reconstruction against its definition, with a stand-in for the model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import r2_score
from synthetic import make_job

from brainlm.evaluation import reconstruction
from brainlm.evaluation.reconstruction import evaluate_reconstruction, load_traces
from brainlm.model.gaussian import Gaussian
from brainlm.shards import (
    Corpus,
    ParcelQuantiles,
    Recording,
    Scaling,
    ShardInfo,
    read_info,
    read_shard,
    write_shard,
)

PARCELS, WINDOW, PATCH = 7, 40, 10


class StandIn:
    """Predicts half of the truth, so that every figure is known; hides whole patches."""

    def __init__(self, scaling):
        self.scaling = scaling
        self.config = SimpleNamespace(window=WINDOW, patch=PATCH)

    def eval(self):
        return self

    def to(self, device):
        return self

    def __call__(self, signal, *, mask_ratio, mask, generator):
        import torch

        batch, parcels, time = signal.shape
        shape = (batch, parcels, time // PATCH)
        if mask == "future":
            tokens = torch.arange(shape[2]).expand(shape) >= round(shape[2] * (1 - mask_ratio))
        else:
            tokens = torch.rand(shape, generator=generator) < mask_ratio
        return SimpleNamespace(
            prediction=torch.nan_to_num(signal) / 2,
            pixel_mask=tokens.repeat_interleave(PATCH, 2),
            loss=torch.zeros(()),
        )


@pytest.fixture
def study(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    recordings = []
    for number in range(6):
        for cohort in ("home", "away"):
            series = np.cumsum(rng.normal(size=(95, PARCELS)), axis=0)  # smooth: linear does well
            if number == 0:
                series[:, 3] = np.nan
            split = "test" if number < 4 else "train"
            name = f"sub-{number}{cohort[0]}"
            recordings.append(Recording(name, name, cohort, split, series=series))
    recordings.append(Recording("sub-s", "sub-s", "home", "test", series=series[:20]))
    recordings.append(Recording("sub-f", "sub-f", "home", "test", status="unreadable", reason="?"))
    shard = tmp_path / "00000.parquet"
    write_shard(shard, recordings, ShardInfo("seven", "0" * 64, PARCELS, 1.0), dtype="float32")
    series = [r.series for r in recordings if r.series is not None]
    facts = {"atlas": "seven", "atlas_sha256": "0" * 64, "sample_period_s": 1.0}
    scaling = Scaling.fit(ParcelQuantiles.of(series, PARCELS), **facts)
    model = SimpleNamespace(from_pretrained=lambda folder: StandIn(scaling))
    monkeypatch.setitem(__import__("sys").modules, "brainlm.model", model)
    return SimpleNamespace(shard=shard, out=tmp_path / "reconstruction.parquet", scaling=scaling)


def _run(study, model=None, external=()):
    model = model or Path("model")
    job = make_job(study.out, {"kind": "reconstruction"}, model=model, shards=[study.shard],
                   cohorts=dict.fromkeys(("home", "away"), study.out.parent), external=external,
                   evaluate={"mask_ratios": [0.5], "bootstrap": 200})  # fmt: skip
    return evaluate_reconstruction(job)


def _pooled(table, **where):
    table = table[table["level"] == "pooled"]
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_methods_are_compared_on_the_same_hidden_points_of_held_out_participants(study):
    table = _run(study)
    assert set(table["split"]) == {"test"}
    for cohort in ("home", "away"):
        for masking in ("random 50%", "future 25%"):
            where = {"cohort": cohort, "target": masking, "metric": "mse"}
            model = _pooled(table, method="model", **where)
            zero = _pooled(table, method="zero", **where)
            assert model["value"] == pytest.approx(zero["value"] / 4)  # half of the truth
            assert model["n"] == 4
            assert model["low"] < model["value"] < model["high"]
            gap = _pooled(table, method="model minus zero", **where)
            assert gap["value"] == pytest.approx(model["value"] - zero["value"])
    home = table[table["cohort"] == "home"]
    assert set(home["left_out"]) == {2}
    assert "1 with fewer than 40 time points" in home["note"].iloc[0]
    assert "1 without a usable recording" in home["note"].iloc[0]


def test_the_future_mask_scores_equal_a_direct_computation(study):
    table = _run(study)
    corpus = Corpus([study.shard])
    truth, guess = [], []
    for index in corpus.usable(split="test", min_timepoints=WINDOW):
        if corpus.table["cohort"][index] != "home":
            continue
        scaled = corpus.scaled(index, study.scaling)
        for start in (0, WINDOW):
            window = scaled[start : start + WINDOW]
            truth.append(window[-PATCH:])
            guess.append(np.broadcast_to(window[-PATCH - 1], (PATCH, PARCELS)))  # held value
    truth, guess = np.concatenate(truth).ravel(), np.concatenate(guess).ravel()
    keep = np.isfinite(truth)
    row = _pooled(table, cohort="home", target="future 25%", method="linear", metric="r2")
    assert row["value"] == pytest.approx(r2_score(truth[keep], guess[keep]), abs=1e-4)


def test_of_the_future_a_var_of_the_training_recordings_is_asked_too(study):
    from brainlm.evaluation.forecasting.autoregression import fit_autoregressions

    table, corpus = _run(study), Corpus([study.shard])
    assert "var" not in set(table[table["target"] == "random 50%"]["method"])
    train = corpus.usable(split="train", min_timepoints=WINDOW)
    var = fit_autoregressions(corpus, study.scaling, train, [], WINDOW - PATCH, PATCH)[
        "VAR"
    ].forecast
    truth, guess = [], []
    for index in corpus.usable(split="test", min_timepoints=WINDOW):
        if corpus.table["cohort"][index] != "home":
            continue
        scaled = corpus.scaled(index, study.scaling).T
        for start in (0, WINDOW):
            truth.append(scaled[:, start + WINDOW - PATCH : start + WINDOW])
            guess.append(var(scaled[:, start : start + WINDOW - PATCH]))
    truth, guess = np.concatenate(truth).ravel(), np.concatenate(guess).ravel()
    keep = np.isfinite(truth)
    row = _pooled(table, cohort="home", target="future 25%", method="var", metric="r2")
    assert row["value"] == pytest.approx(r2_score(truth[keep], guess[keep]), abs=1e-4)
    with_others = _pooled(table, cohort="home", target="future 25%", method="model minus var",
                          metric="r2")  # fmt: skip
    assert with_others["n"] == 4


def test_external_cohorts_are_evaluated_whole(study):
    table = _run(study, external=("away",))
    assert set(table[table["cohort"] == "away"]["split"]) == {"all"}
    assert set(table[table["cohort"] == "away"]["n"]) == {6}


def test_every_recording_and_parcel_has_its_own_figure(study):
    table = _run(study)
    part = table[(table["cohort"] == "home") & (table["target"] == "random 50%")]
    assert set(part["metric"]) == {"r2", "r", "mse", "mae"}
    one = part[(part["method"] == "model") & (part["metric"] == "mse")]
    assert one["level"].value_counts().to_dict() == {"pooled": 1, "recording": 4,
                                                     "parcel": PARCELS}  # fmt: skip
    future = table[(table["cohort"] == "home") & (table["target"] == "future 25%")]
    future = future[future["method"] == "model"].set_index(["metric", "level", "unit"])["value"]
    corpus = Corpus([study.shard])
    hidden = {}  # [2 windows, R, P] of each recording
    for index in corpus.usable(split="test", min_timepoints=WINDOW):
        if corpus.table["cohort"][index] == "home":
            windows = corpus.scaled(index, study.scaling)[: 2 * WINDOW].T.reshape(PARCELS, 2, -1)
            name = corpus.table["recording_id"][index]
            hidden[name] = windows[..., -PATCH:].swapaxes(0, 1)
    for name, truth in hidden.items():  # half of the truth is what the stand-in predicts
        known = truth[np.isfinite(truth)]
        assert future["mse", "recording", name] == pytest.approx((known**2).mean() / 4, rel=1e-4)
        r2 = r2_score(known, known / 2)
        assert future["r2", "recording", name] == pytest.approx(r2, abs=1e-4)
    for parcel, truth in enumerate(np.stack(list(hidden.values()), -1).swapaxes(0, 1), 1):
        half = np.nanmean(np.abs(truth)) / 2
        assert future["mae", "parcel", str(parcel)] == pytest.approx(half, rel=1e-4)
        assert future["r", "parcel", str(parcel)] == pytest.approx(1)


def test_a_split_without_participants_has_a_row_that_says_so(study):
    kept = [r for r in read_shard(study.shard) if r.split != "test"]
    write_shard(study.shard, kept, read_info(study.shard), dtype="float32")
    table = _run(study)
    assert set(table["cohort"]) == {"home", "away"}
    assert set(table["n"]) == {0}
    assert table["value"].isna().all()
    assert load_traces(study.out.with_suffix(".traces.npz")) == {}


def test_the_same_seed_gives_the_same_table_and_traces_are_kept(study):
    first, second = _run(study), _run(study)
    pd.testing.assert_frame_equal(first, second)
    traces = load_traces(study.out.with_suffix(".traces.npz"))
    assert len(traces) == 2 * 2 * 3  # cohorts, maskings, recordings
    truth, hidden, model, _ = next(iter(traces.values()))
    np.testing.assert_allclose(model, truth / 2, rtol=1e-5)
    assert 0 < hidden.mean() < 1


def test_the_gaussians_of_the_model_folder_stand_in_the_table(study, tmp_path):
    assert "no model/gaussian.safetensors" in _run(study)["note"].iloc[0]
    import torch

    lags = 0.5 ** torch.arange(WINDOW)
    Gaussian(torch.eye(PARCELS), lags).save(tmp_path)  # parcels that know nothing of each other
    table = _run(study, tmp_path)
    where = {"cohort": "home", "target": "random 50%", "metric": "mse"}
    zero = _pooled(table, method="zero", **where)["value"]
    for method in ("gaussian", "gaussian_own", "gaussian_time"):
        assert _pooled(table, method=f"model minus {method}", **where)["n"] == 4
    assert _pooled(table, method="gaussian", **where)["value"] == pytest.approx(zero)
    assert _pooled(table, method="gaussian_time", **where)["value"] < 0.9 * zero  # smooth series


def test_what_is_asked_of_a_window_does_not_depend_on_what_others_lack(study, tmp_path):
    corpus = Corpus([study.shard])
    indices = corpus.usable(min_timepoints=WINDOW)
    batches = list(reconstruction._batches(corpus, study.scaling, indices, WINDOW))
    for batch in batches:
        lacking = {np.isnan(signal).tobytes() for _, _, signal in batch}
        assert len(lacking) == 1 and len(batch) <= reconstruction._BATCH
    found = sorted((row, start) for batch in batches for row, start, _ in batch)
    assert found == [(row, start) for row in range(len(indices)) for start in (0, WINDOW)]
