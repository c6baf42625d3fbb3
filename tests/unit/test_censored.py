"""Censored time: rows of NaN in a shard, which nothing downstream fills, closes up or counts."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from synthetic import R, make_job, make_study, toy_atlas

from brainlm.errors import BrainLMError
from brainlm.evaluation import latent
from brainlm.evaluation.clinical.deep_networks import correlations
from brainlm.evaluation.clinical.views import correlate_parcels, raw_series
from brainlm.evaluation.forecasting.autoregression import fit_autoregressions
from brainlm.evaluation.forecasting.comparison import evaluate_forecasting, trivial
from brainlm.evaluation.parcel_networks.readout import connectivity_rows
from brainlm.evaluation.participants import CENSORED, long_enough
from brainlm.evaluation.reconstruction import evaluate_reconstruction
from brainlm.evaluation.states.clips import drop_censored_clips
from brainlm.inference.vectors import embed_corpus
from brainlm.model import BrainLM, BrainLMConfig, make_windows, preset
from brainlm.model.attention_rows import cls_attention
from brainlm.model.gaussian import Gaussian
from brainlm.shards import (
    Corpus,
    ParcelQuantiles,
    Recording,
    Scaling,
    ShardInfo,
    read_shard,
    write_shard,
)
from brainlm.shards.censored import (
    choose_apart,
    drop_censored,
    holds_window,
    list_starts,
    parcels_with_data,
    spread_evenly,
)
from brainlm.shards.moments import Moments
from brainlm.training.windows import Windows, choose_rows, training_ranges

WINDOW, PATCH = 40, 10
NAN = float("nan")


def tiny() -> BrainLM:
    torch.manual_seed(0)
    return preset("tiny", num_parcels=R, window=WINDOW, patch=PATCH,
                  coordinates=toy_atlas().coordinates)  # fmt: skip


def image() -> BrainLM:
    """Tokens of 5 parcels, with padding, in 5 columns of which the outer two are cut."""
    torch.manual_seed(0)
    return BrainLM(BrainLMConfig(
        family="image", num_parcels=R, window=WINDOW, patch=9, width=16, depth=1, heads=2, ffn=16,
        decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_ffn=16, patch_parcels=5,
    ))  # fmt: skip


# ---- the contract


@pytest.mark.parametrize("seed", range(20))
def test_where_windows_begin_is_where_half_of_one_is_there(seed):
    random = np.random.default_rng(seed)
    length, window = int(random.integers(1, 60)), int(random.integers(1, 30))
    gone = np.flatnonzero(random.random(length) < random.choice([0.1, 0.5, 0.7]))
    there = ~np.isin(np.arange(length), gone)
    wanted = [s for s in range(length - window + 1) if 2 * there[s : s + window].sum() >= window]
    found = list_starts(length, gone, window)
    assert list(found) == wanted
    assert list(list_starts(length, None, window)) == list(range(length - window + 1))
    apart = choose_apart(found, window)
    assert all(b - a >= window for a, b in itertools.pairwise(apart))
    assert bool(apart) == bool(wanted)
    if wanted:
        some = spread_evenly(found, 3)
        assert set(some) <= set(wanted) and {wanted[0], wanted[-1]} >= {some[0], some[-1]}


@pytest.mark.parametrize("seed", range(10))
def test_recordings_that_hold_a_window_are_those_in_which_one_may_begin(seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 40, 200)
    lists = [np.flatnonzero(random.random(n) < random.choice([0, 0.3, 0.6, 1])) for n in lengths]
    cells = [points if len(points) else random.choice([None, np.nan]) for points in lists]
    table = pd.DataFrame({"num_timepoints": lengths, "censored": pd.Series(cells, dtype=object)})
    table.index = random.permutation(1000)[:200]
    for window in (1, 2, 9, 20, 39):
        wanted = [len(list_starts(n, cell, window)) > 0
                  for n, cell in zip(lengths.tolist(), cells, strict=True)]  # fmt: skip
        found = holds_window(table, window)
        assert found.tolist() == wanted and found.index.equals(table.index)
    assert not holds_window(table[:0], 5).any()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_shard_keeps_censored_rows_and_names_them(tmp_path, dtype):
    series = np.random.default_rng(0).normal(size=(30, 4))
    series[:, 1] = np.nan
    series[[3, 17]] = np.nan
    rows = [Recording("a", "sub-a", "c", "train", series=series),
            Recording("b", "sub-b", "c", "train", series=series[4:17]),
            Recording("f", "sub-f", "c", "train", status="bad_data", reason="?")]  # fmt: skip
    path = tmp_path / "s.parquet"
    write_shard(path, rows, ShardInfo("four", "0" * 64, 4, 1.0), dtype=dtype)
    first, second, failed = read_shard(path)
    assert first.censored.tolist() == [3, 17] and second.censored is failed.censored is None
    assert np.array_equal(np.isnan(first.series), np.isnan(series))
    assert np.allclose(first.series, series, rtol=1e-3, atol=1e-3, equal_nan=True)
    table = Corpus([path]).table
    assert holds_window(table[:2], 13).tolist() == [True, True]
    older = tmp_path / "older.parquet"  # a shard without the column
    pq.write_table(pq.read_table(path).drop_columns("censored"), older)
    assert holds_window(Corpus([older]).table[:2], 14).tolist() == [True, False]
    assert read_shard(older)[0].censored is None
    both = [ParcelQuantiles.of([part], 4) for part in (series, drop_censored(series))]
    assert np.array_equal(both[0].counts, both[1].counts)


def test_which_parcels_have_data_is_asked_of_a_row_that_is_there():
    series = np.array([[NAN, NAN], [NAN, 1.0], [NAN, 2.0]])
    assert parcels_with_data(series).tolist() == [False, True]
    assert parcels_with_data(series[:1]).tolist() == [False, False]


def test_moments_count_what_is_there():
    random = np.random.default_rng(1)
    x = random.normal(size=(50, 3))
    gaps = x.copy()
    gaps[random.random(50) < 0.3] = np.nan
    kept = drop_censored(gaps)
    found = Moments.of([gaps], 3, 5)
    assert (
        np.allclose(found.products, kept.T @ kept, rtol=1e-5) and (found.pairs == len(kept)).all()
    )
    known = np.isfinite(gaps[:, 0])
    for lag in range(5):
        both = known[lag:] & known[: len(known) - lag]
        products = (gaps[lag:] * gaps[: len(gaps) - lag])[both]
        assert np.isclose(found.lagged[lag], products.sum(), atol=1e-4)
        assert np.isclose(found.lagged_pairs[lag], 3 * both.sum())


# ---- the model


@pytest.mark.parametrize("make", [tiny, image])
def test_a_token_is_shown_if_half_of_its_time_is_there(make):
    model = make()
    times = model.grid.times.numpy()
    inside = (times >= 0) & (times < WINDOW)
    random = np.random.default_rng(0)
    for share in (0.3, 0.5, 0.6):
        gone = random.random(WINDOW) < share
        signal = torch.randn(1, R, WINDOW)
        signal[:, :, gone] = torch.nan
        patches, known, missing = model.grid.cut(signal)
        assert patches.isfinite().all()
        there = inside & ~gone[np.clip(times, 0, WINDOW - 1)]
        if make is tiny:
            wanted = 2 * there.sum(1) < inside.sum(1)
        else:  # of columns: rows of a token lie behind each other
            columns = [x.reshape(len(x), 5, 9).any(1).sum(1) for x in (there, inside)]
            wanted = 2 * columns[0] < columns[1]
        assert missing[0].numpy().tolist() == wanted.tolist()
        known_again = model.grid.paste(known.float())[0].bool()
        assert torch.equal(known_again, signal[0].isfinite())


@pytest.mark.parametrize("make", [tiny, image])
@pytest.mark.parametrize("mask", ["random", "future", "future-exact"])
def test_the_loss_is_over_what_is_there(make, mask):
    model = make()
    signal = torch.randn(4, R, WINDOW)
    signal[:, 3] = torch.nan
    for row, gone in enumerate(np.random.default_rng(2).random((4, WINDOW)) < 0.25):
        signal[row, :, gone] = torch.nan
    out = model(signal, mask_ratio=0.25, mask=mask, generator=torch.Generator().manual_seed(0))
    assert not out.pixel_mask[signal.isnan()].any() and out.prediction.isfinite().all()
    missing = model.grid.cut(signal)[2]
    assert out.mask[missing].all()  # never shown
    error = (out.prediction - signal) / out.unit
    assert torch.isclose(out.loss, error[out.pixel_mask].square().mean(), rtol=1e-4)
    out.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    for pool in ("cls", "mean"):
        made = model.embed(signal, pool)
        assert made.isfinite().all()
        alone = torch.cat([model.embed(one[None], pool) for one in signal])
        assert torch.allclose(made, alone, atol=1e-5)  # whatever the others of the batch lack


def test_pooling_and_attention_leave_censored_tokens_out():
    model = tiny().eval()
    signal = torch.randn(2, R, WINDOW)
    signal[0, :, 8:20] = torch.nan  # the second token is gone, the first is not
    made = model.embed(signal, "connectivity")
    assert made.isfinite().all()
    attention = cls_attention(model, signal)
    assert attention.isfinite().all()
    assert torch.allclose(attention.mean(1), torch.ones(2), atol=1e-5)


def test_gaussians_take_no_heed_of_moments_without_data():
    random = torch.Generator().manual_seed(0)
    mix = torch.randn(R, R, generator=random)
    gaussian = Gaussian(mix @ mix.T / R, torch.tensor([0.7**k for k in range(WINDOW)]))
    signal = torch.randn(2, R, WINDOW, generator=random)
    hidden = torch.zeros(2, R, WINDOW, dtype=torch.bool)
    hidden[:, :4, 5:25] = True
    gone = torch.zeros(WINDOW, dtype=torch.bool)
    gone[[7, 8, 30]] = True
    gaps = signal.masked_fill(gone, torch.nan)
    there = gaussian.fill(gaps, hidden)[..., ~gone]
    assert torch.allclose(there, gaussian.fill(signal[..., ~gone], hidden[..., ~gone]), atol=1e-5)
    for fill in (gaussian.fill_own, gaussian.fill_in_time):
        assert fill(gaps, hidden).isfinite().all()


# ---- windows


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("censored")
    made = make_study(folder, participants=40, dtype="float32", censor=0.3)
    model = tiny()
    model.save_pretrained(folder / "model", Scaling.load(made.scaling), "")
    return SimpleNamespace(folder=folder, model=folder / "model", **vars(made))


def test_windows_are_half_there_and_a_recording_without_one_is_named(study, tmp_path):
    corpus, scaling = Corpus(study.shards), Scaling.load(study.scaling)
    rows, why = choose_rows(corpus, WINDOW, "train")
    windows = Windows(corpus, scaling, WINDOW, rows, num_tokens=8)
    censored = corpus.table["censored"].notna()
    assert censored[rows].any() and not why.keys() - {"bad_data"}
    for epoch in range(5):
        signal = windows.batch([(epoch, int(row)) for row in rows]).signal
        assert (signal.isnan().all(1).float().mean(1) <= 0.5).all()
    ranges = training_ranges(windows, corpus.table)
    assert ranges["coverage"][-1] == 1.0
    missing = [np.isnan(corpus.series(int(row))).all(1).mean() for row in rows]
    assert ranges["censored_share"][-1] == pytest.approx(max(missing), rel=1e-5)
    bad = np.random.default_rng(0).normal(size=(60, R))
    bad[5:50] = np.nan
    path = tmp_path / "s.parquet"
    write_shard(path, [Recording("a", "sub-a", "c", "train", series=bad, units="percent")],
                ShardInfo("toy", corpus.info.atlas_sha256, R, 1.0))  # fmt: skip
    lone = Corpus([path])
    assert not len(lone.usable(min_timepoints=WINDOW)) and len(lone.usable())
    rows, why = long_enough(lone.table, WINDOW)
    assert not len(rows) and why[CENSORED] == 1
    model = tiny()
    model.scaling = scaling
    reason = embed_corpus(model, lone)["reason"][0]
    assert "45 of 60 time points are censored" in reason
    model.config = dataclasses.replace(model.config, ranges={"censored_share": (0.0,) * 5})
    table = embed_corpus(model, corpus).query("level == 'recording' and status == 'ok'")
    table = table.set_index("recording_id")
    for place, row in corpus.table.iterrows():
        if row["recording_id"] in table.index:
            share = np.isnan(corpus.series(int(place))).all(1).mean()
            says = f"share of censored time {share:.3g} is outside" if share else ""
            found = table.at[row["recording_id"], "warnings"]
            assert says in found and bool(share) == ("censored" in found)
    series = np.random.default_rng(0).normal(size=(60, R))
    series[10] = np.nan
    assert make_windows(model, series, tr_s=1.0).isnan().all(1).sum() == 1


# ---- what needs no model


def test_correlations_are_over_the_time_that_is_there():
    random = np.random.default_rng(0)
    series = random.normal(3, 1, size=(80, 5)) + random.normal(size=(80, 1))
    series[:, 2] = np.nan
    gaps = series.copy()
    gaps[random.random(80) < 0.3] = np.nan
    kept = drop_censored(gaps)
    assert np.allclose(correlate_parcels(gaps), correlate_parcels(kept), equal_nan=True)
    wanted = np.nan_to_num(np.corrcoef(kept.T))
    assert np.allclose(connectivity_rows(gaps.T), wanted, atol=1e-6)
    found = correlations(torch.from_numpy(gaps.T[None]))[0]
    assert np.allclose(found, wanted, atol=1e-6)


def test_trivial_forecasts_start_from_what_is_there():
    line = 2.0 + 0.5 * np.arange(12)
    past = np.stack([line, np.where(np.isin(np.arange(12), [6, 8, 11]), np.nan, line)])[None]
    methods = trivial(6)
    ahead = methods["linear"](past)
    assert np.allclose(ahead, 2.0 + 0.5 * np.arange(12, 18))
    assert methods["last value"](past)[0, :, 0].tolist() == [line[11], line[10]]
    assert (methods["last value"](np.full((1, 1, 4), np.nan)) == 0).all()


def test_autoregressions_learn_from_the_values_that_are_there(tmp_path):
    """Of a process with a known rule, steps that are censored must not pull forecasts to zero."""
    random = np.random.default_rng(0)
    errors = {}
    info, one = ShardInfo("toy", "a" * 64, R, 1.0), np.ones(R)
    scaling = Scaling(0 * one, one, "toy", "a" * 64, 1.0, 1)
    rows = []
    for _ in range(6):
        x = np.zeros((400, R))
        for t in range(1, 400):
            x[t] = 0.9 * x[t - 1] + random.normal(size=R)
        rows.append(x)
    for name, share in (("whole", 0.0), ("censored", 0.3)):
        made = [x.copy() for x in rows]
        for x in made:
            x[np.repeat(random.random(80) < share, 5)] = np.nan
        path = tmp_path / f"{name}.parquet"
        write_shard(path, [Recording(f"r{k}", f"sub-{k}", "c", "train", series=x)
                           for k, x in enumerate(made)], info, dtype="float32")  # fmt: skip
        fits = fit_autoregressions(Corpus([path]), scaling, range(4), range(4, 6), 20, 5)
        for method, fit in fits.items():
            test = np.stack([rows[5][s : s + 25].T for s in range(0, 370, 5)])
            ahead = np.stack([fit.forecast(past) for past in test[..., :20]])
            errors[name, method] = float(np.mean((ahead[..., 0] - test[..., 20]) ** 2))
    for method in ("AR", "VAR"):
        assert errors["whole", method] < 1.1  # the innovation's variance is 1
        assert errors["censored", method] < 1.1 * errors["whole", method]


def test_clips_of_censored_time_are_left_out():
    clips = [(0, 10, "a"), (10, 20, "b"), (20, 30, "a")]
    assert drop_censored_clips(clips, None) == clips
    assert drop_censored_clips(clips, np.arange(5, 16)) == [clips[0], clips[2]]


@pytest.mark.parametrize("kind", ["reconstruction", "forecasting", "latent"])
def test_every_figure_of_a_censored_study_is_a_number(study, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(latent, "map_points", lambda values, seed: values[:, :2])
    task = {"forecasting": {"seeds": [1], "epochs": 1, "learning_rates": [1e-3]}}.get(kind, {})
    evaluate = {"forecasting": evaluate_forecasting, "latent": latent.evaluate_latent,
                "reconstruction": evaluate_reconstruction}[kind]  # fmt: skip
    job = make_job(tmp_path / f"{kind}.parquet", {"kind": kind, **task}, model=study.model,
                   shards=study.shards, evaluate={"bootstrap": 100})  # fmt: skip
    table = evaluate(job)
    whole = table[table["level"].isin(["pooled", "step"])]
    measured = whole[whole["metric"] == "r2"]  # r of constants is no number
    if kind == "latent":
        points = pd.read_parquet(tmp_path / "latent.points.parquet")
        assert len(points) and np.isfinite(points[["x", "y"]]).all(axis=None)
    else:
        assert len(measured)
        assert not measured[~np.isfinite(measured["value"].astype(float))].index.size


def test_the_first_window_of_raw_series_is_one_that_is_there(study):
    corpus, scaling = Corpus(study.shards), Scaling.load(study.scaling)
    row = int(corpus.usable(min_timepoints=WINDOW)[1])
    found = raw_series(corpus, scaling, WINDOW, [[row]]).reshape(R, WINDOW)
    start = corpus.starts(row, WINDOW)[0]
    whole = corpus.scaled(row, scaling)
    assert np.array_equal(found, whole[start : start + WINDOW].T, equal_nan=True)


def test_too_much_censored_is_an_error_of_arrays_too():
    model = tiny()
    one = np.ones(R)
    model.scaling = Scaling(0 * one, one, "toy", "a" * 64, 1.0, 1)
    series = np.random.default_rng(0).normal(size=(60, R))
    series[5:50] = np.nan
    with pytest.raises(BrainLMError, match="censored: no window of 40 has half"):
        make_windows(model, series, tr_s=1.0)
