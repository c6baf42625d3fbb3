"""Forecasters: what each knows, what each is given, and how they are compared."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import r2_score
from synthetic import R, expected_p, make_job, make_study, of_others, toy_atlas

from brainlm.errors import BrainLMError
from brainlm.evaluation.forecasting.autoregression import fit_autoregressions
from brainlm.evaluation.forecasting.comparison import MODEL, evaluate_forecasting, trivial
from brainlm.evaluation.forecasting.forecasters import (
    LatentODEForecaster,
    LSTMForecaster,
    NeuralODEForecaster,
    TransformerForecaster,
    forecast_error,
)
from brainlm.model import BrainLM, BrainLMConfig, preset
from brainlm.shards import Corpus, Scaling, read_info, read_shard, write_shard
from brainlm.training.loop import Budget, fit
from brainlm.training.windows import Windows

WINDOW, PATCH, AHEAD = 40, 10, 10


def _tiny(family: str = "tiny"):
    return preset(family, num_parcels=R, window=WINDOW, patch=PATCH,
                  coordinates=toy_atlas().coordinates)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forecasting")
    made = make_study(folder, participants=60, dtype="float32")
    torch.manual_seed(0)
    _tiny().save_pretrained(folder / "model", Scaling.load(made.scaling), "")
    return SimpleNamespace(
        model=folder / "model", out=folder / "forecasting.parquet", **vars(made)
    )


def _image(width: int = 16, patch: int = PATCH):
    """The image family, small."""
    return BrainLM(BrainLMConfig(
        family="image", num_parcels=R, window=WINDOW, patch=patch, width=width, depth=1, heads=2,
        ffn=16, decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_ffn=16,
        patch_parcels=4))  # fmt: skip


@pytest.mark.parametrize("family", ["tiny", "111m"])
def test_the_transformer_forecasts_from_the_past_alone_and_decodes_all_of_the_future(family):
    torch.manual_seed(0)
    forecaster = TransformerForecaster(_image() if family == "111m" else _tiny(), AHEAD)
    past = torch.randn(3, R, WINDOW - AHEAD)
    past[1, 2] = torch.nan  # a parcel without data
    calls = []
    hook = forecaster.model.register_forward_hook(lambda m, _, out: calls.append(out))
    for mode, rows in ((True, slice(0, 3)), (False, slice(0, 1)), (False, slice(1, 2))):
        forecaster.train(mode)
        ahead = forecaster(past[rows])
        assert ahead.shape == (len(past[rows]), R, AHEAD)
        output = calls[-1]
        tokens = output.mask[:, forecaster.ahead]
        assert tokens.all()  # no future token is visible
        known = ~past[rows].isnan().any(-1)
        if known[0].all():  # the newest given ones always are
            assert not output.mask[0, forecaster.newest].any()
        assert output.pixel_mask[..., -AHEAD:][known].all()  # and all of the future is decoded
        assert ahead[known].isfinite().all()
    hook.remove()
    with pytest.raises(BrainLMError, match="whole patches"):
        TransformerForecaster(_tiny(), 7)


@pytest.mark.parametrize("make", [_tiny, lambda: _image(64, patch=5)], ids=["parcels", "image"])
def test_the_newest_tokens_alone_carry_each_parcel_on(make):
    torch.manual_seed(0)
    forecaster = TransformerForecaster(make(), AHEAD)  # of the image two tokens ahead
    optimizer = torch.optim.Adam(forecaster.carry.parameters(), 3e-2)  # the rest stays random
    with torch.no_grad():
        for parameter in forecaster.model.decoder.parameters():
            parameter.zero_()

    def walk(count: int) -> torch.Tensor:
        values = [torch.randn(count, R)]
        for _ in range(WINDOW - 1):
            values.append(0.95 * values[-1] + (1 - 0.95**2) ** 0.5 * torch.randn(count, R))
        return torch.stack(values, -1)

    for _ in range(60):
        loss = forecast_error(forecaster.train(), walk(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    window = walk(32)
    with torch.no_grad():
        guess = forecaster.eval()(window[..., :-AHEAD])
    left = (guess - window[..., -AHEAD:]).square().mean((0, 1))  # of a variance of 1
    best = 1 - 0.95 ** (2 * torch.arange(1, AHEAD + 1))
    assert (left < best + 0.25).all(), left
    assert left[0] < 0.35


def test_the_transformer_learns_waves():
    torch.manual_seed(0)
    forecaster = TransformerForecaster(preset("tiny", num_parcels=6, window=40, patch=8), 8)
    optimizer = torch.optim.AdamW(forecaster.parameters(), 3e-3)
    lag = 0.5 * torch.arange(6)[None, :, None]
    for _ in range(60):
        waves = torch.sin(0.3 * torch.arange(40) + 6.28 * torch.rand(16, 1, 1) + lag)
        loss = forecast_error(forecaster.train(), waves)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(forecaster.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():  # 0.5 is their variance
        assert forecast_error(forecaster.eval(), waves) < 0.05


@pytest.mark.parametrize("network", [LSTMForecaster, NeuralODEForecaster, LatentODEForecaster])
def test_each_network_learns_a_wave_that_a_constant_cannot_follow(network, tmp_path):
    torch.manual_seed(0)
    phase = torch.rand(32, 1, 1) * 6.28
    wave = torch.sin(0.3 * torch.arange(40) + phase).expand(-1, 3, -1)
    forecaster = network(3, 8, width=24)
    optimizer = torch.optim.Adam(forecaster.parameters(), 1e-2)
    past, future = wave[..., :-8], wave[..., -8:]
    # the ODE of one moment cannot know the phase from one value: give it a quarter wave later too
    past = past.clone()
    past[:, 1] = torch.cos(0.3 * torch.arange(32) + phase[:, 0])
    for _ in range(80):
        loss = (forecaster(past)[:, 0] - future[:, 0]).square().mean() + forecaster.penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    forecaster.eval()
    assert (forecaster(past)[:, 0] - future[:, 0]).square().mean() < 0.2 * future.var()
    assert forecaster(torch.full((2, 3, 32), torch.nan)).isfinite().all()


def test_trivial_methods_on_a_line():
    past = np.tile(np.arange(30.0), (2, 3, 1))
    methods = trivial(5)
    np.testing.assert_allclose(methods["linear"](past)[0, 0], [30, 31, 32, 33, 34])
    np.testing.assert_allclose(methods["last value"](past)[0, 0], 29)
    assert not methods["zero"](past).any()


class _Series:
    """A corpus of given series [T, R] without files."""

    def __init__(self, series):
        self.all = series
        self.info = SimpleNamespace(num_parcels=series[0].shape[1])

    def scaled(self, index, scaling):
        return self.all[index]


def test_linear_methods_reach_the_best_that_is_possible():
    rng = np.random.default_rng(0)
    parcels, series = 6, []
    for _ in range(40):
        x = np.zeros((200, parcels))
        for t in range(1, 200):
            x[t] = 0.8 * x[t - 1] + rng.normal(size=parcels)
            x[t, 1:] += 0.5 * x[t - 1, :1]  # the others follow the first
        series.append(x)
    corpus = _Series(series)
    fits = fit_autoregressions(corpus, None, range(30), range(30, 35), 30, 3)
    error = {name: np.zeros((3, parcels)) for name in fits}
    for x in series[35:]:
        for start in range(0, 165, 3):
            past, future = x[start : start + 30].T, x[start + 30 : start + 33]
            for name, linear in fits.items():
                error[name] += (linear.forecast(past).T - future) ** 2
    assert error["AR"][0, 0] / (5 * 55) == pytest.approx(1, abs=0.25)  # the noise's variance
    assert error["VAR"][0, 1:].mean() < 0.9 * error["AR"][0, 1:].mean()
    assert "rank" in fits["VAR"].choice


def test_training_keeps_the_weights_that_are_best_on_validation_participants(study):
    corpus, scaling = Corpus(study.shards), Scaling.load(study.scaling)
    rows = [corpus.usable(split=s, min_timepoints=WINDOW) for s in ("train", "validation")]
    train, check = (Windows(corpus, scaling, WINDOW, r, seed=0) for r in rows)
    budget = Budget(epochs=3, batch_size=16, learning_rates=(1e-12, 1e-2))
    fits = [
        fit(lambda: LSTMForecaster(R, AHEAD, 16), forecast_error, train, check, budget)
        for _ in range(2)
    ]
    assert fits[0].learning_rate == 1e-2
    assert 1 <= fits[0].epoch <= 3
    assert fits[0].validation == fits[1].validation  # the same seed, the same training


def job_of(study, shards=None, external=(), **task):
    """One seed, one pass, one learning rate: what a budget is worth is not asked here."""
    task = {"kind": "forecasting", "epochs": 1, "learning_rates": [1e-3], "seeds": [1]} | task
    return make_job(study.out, task, model=study.model, shards=shards or study.shards,
                    external=external, evaluate={"bootstrap": 100})  # fmt: skip


def test_all_methods_are_compared_on_the_same_participants(study):
    table = evaluate_forecasting(job_of(study))
    pooled = table[(table["level"] == "pooled") & (table["metric"] == "r2")].set_index("method")
    methods = {MODEL, "from scratch", "LSTM", "Neural ODE", "Latent ODE", "AR", "VAR", "linear",
               "last value", "zero"}  # fmt: skip
    assert methods | {f"{MODEL} minus {m}" for m in methods - {MODEL}} == set(pooled.index)
    assert set(pooled["n"]) == {6}
    assert set(pooled["n_train"]) == {42}
    corpus, scaling = Corpus(study.shards), Scaling.load(study.scaling)
    truth, guess = [], []
    for index in corpus.usable(split="test", min_timepoints=WINDOW):
        series = corpus.scaled(index, scaling)[:WINDOW]
        truth.append(series[-AHEAD:])
        guess.append(np.repeat(series[-AHEAD - 1 : -AHEAD], AHEAD, 0))
    truth, guess = np.stack(truth), np.stack(guess)
    known = np.isfinite(truth)
    value = r2_score(truth[known], guess[known])
    assert pooled["value"]["last value"] == pytest.approx(value, abs=1e-5)
    steps = table[(table["level"] == "step") & (table["method"] == "last value")]
    steps = steps[steps["metric"] == "mse"].set_index("unit")["value"]
    expected = np.nanmean((truth - guess)[:, 3] ** 2)
    assert steps["4"] == pytest.approx(expected, rel=1e-5)
    tests = table[table["p"].notna()]
    assert tests["method"].str.startswith(f"{MODEL} minus ").all()
    assert {*zip(tests["metric"], tests["level"], strict=True)} == {
        (metric, level) for metric in ("r2", "r", "mse", "mae") for level in ("pooled", "step")
    }
    for _, rows in tests.groupby(["metric", "level"]):  # over methods, and over steps too
        np.testing.assert_allclose(rows["p"], expected_p(rows), rtol=1e-6)
    examples = pd.read_parquet(study.out.with_suffix(".examples.parquet"))
    assert set(examples["method"]) == methods | {"truth"}
    keys = ["recording_id", "parcel"]
    one = examples[(examples[keys] == examples[keys].iloc[0]).all(axis=1)]
    curve = {name: part.set_index("step")["value"] for name, part in one.groupby("method")}
    assert curve["truth"].index.tolist() == list(range(AHEAD + 1 - WINDOW, AHEAD + 1))
    first = corpus.usable(split="test", min_timepoints=WINDOW)[0]
    assert one["recording_id"].iloc[0] == corpus.table["recording_id"][first]
    series = corpus.scaled(first, scaling)[:WINDOW, int(one["parcel"].iloc[0]) - 1]
    np.testing.assert_allclose(curve["truth"], series, rtol=1e-5)
    np.testing.assert_allclose(curve["last value"], np.full(AHEAD, series[-AHEAD - 1]), rtol=1e-5)
    assert not curve["zero"].any()


def test_external_cohorts_are_forecast_whole_and_never_trained_on(study, tmp_path):
    away = tmp_path / "away.parquet"
    recordings = [of_others(r, "away") for r in read_shard(study.shards[0])]
    write_shard(away, recordings, read_info(study.shards[0]))
    table = evaluate_forecasting(job_of(study, [*study.shards, away], external=("away",)))
    pooled = table[(table["level"] == "pooled") & (table["metric"] == "r2")]
    found = {(r.cohort, r.split, r.n, r.n_train) for r in pooled.itertuples()}
    assert found == {("toy", "test", 6, 42), ("away", "all", 8, 42)}
    with pytest.raises(BrainLMError, match="no training recording"):
        evaluate_forecasting(job_of(study, [away], external=("away",)))


def test_a_horizon_that_the_model_cannot_forecast_is_refused(study):
    with pytest.raises(BrainLMError, match=r"multiple of the model's patch \(10\)"):
        evaluate_forecasting(job_of(study, ahead=7))
