"""The Gaussian predictors against numpy that spells the formulas out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brainlm.model import gaussian
from brainlm.model.gaussian import Gaussian
from brainlm.shards.moments import Moments

R, T, P = 9, 24, 4


@pytest.fixture(scope="module")
def case():
    random = np.random.default_rng(5)
    mix = random.normal(size=(R, R))
    covariance = mix @ mix.T / R
    lags = 0.7 ** np.arange(T)
    signal = np.linalg.cholesky(covariance) @ random.normal(size=(3, R, T))
    hidden = np.repeat(random.random((3, R, T // P)) < 0.6, P, axis=2)
    hidden[1, :, 8:12] = True  # nothing visible
    signal[2, 3] = np.nan  # a parcel without data
    hidden[0, :, 20:] = False  # nothing hidden
    model = Gaussian(torch.from_numpy(covariance), torch.from_numpy(lags), 0.05, 30.0)
    return covariance, lags, signal, hidden | np.isnan(signal), model


def tensors(signal, hidden):
    return torch.from_numpy(signal).float(), torch.from_numpy(hidden)


def expect(covariance, ridge, x, hidden):
    """Mean [R] and covariance [R, R] of one moment given its visible values."""
    v = ~hidden
    noise = ridge * np.diag(covariance).mean() * np.eye(v.sum())
    gain = covariance[:, v] @ np.linalg.inv(covariance[np.ix_(v, v)] + noise)
    return gain @ x[v], covariance - gain @ covariance[v]


def test_fill_is_the_conditional_expectation_at_every_moment(case):
    covariance, _, signal, hidden, model = case
    found = model.fill(*tensors(signal, hidden)).numpy()
    for b in range(3):
        for t in range(T):
            wanted, _ = expect(covariance, 0.05, signal[b, :, t], hidden[b, :, t])
            np.testing.assert_allclose(found[b, :, t], wanted, atol=2e-4)


def test_fill_own_is_expectation_maximisation_with_the_training_covariance_as_prior(case):
    covariance, _, signal, hidden, model = case
    found = model.fill_own(*tensors(signal, hidden)).numpy()
    for b in range(3):
        seen = ~hidden[b]
        size = (signal[b][seen] ** 2).sum() / (seen.sum(1) * np.diag(covariance)).sum()
        prior = own = size * covariance
        for _ in range(gaussian.EM_STEPS):
            total = np.zeros((R, R))
            for t in range(T):
                mean, spread = expect(own, 0.05, signal[b, :, t], hidden[b, :, t])
                full = np.where(hidden[b, :, t], mean, signal[b, :, t])
                total += np.outer(full, full) + spread
            own = (30 * prior + total) / (30 + T)
        wanted = [expect(own, 0.05, signal[b, :, t], hidden[b, :, t])[0] for t in range(T)]
        np.testing.assert_allclose(found[b], np.stack(wanted, 1), atol=1e-3)


def test_fill_in_time_is_the_conditional_expectation_of_the_whole_window(case):
    covariance, lags, signal, hidden, model = case
    found = model.fill_in_time(*tensors(signal, hidden)).numpy()
    step = np.arange(T)
    joint = np.kron(covariance, lags[abs(step[:, None] - step)])
    for b in range(3):
        wanted, _ = expect(joint, 0.05, signal[b].ravel(), hidden[b].ravel())
        assert np.abs(found[b].ravel() - wanted).max() < 0.03 * np.abs(wanted).max()


def test_a_window_longer_than_the_autocorrelation_is_refused(case):
    model = case[-1]
    with pytest.raises(Exception, match="25 time points: the autocorrelation has 24"):
        model.fill_in_time(torch.zeros(1, R, T + 1), torch.zeros(1, R, T + 1, dtype=torch.bool))


def test_what_is_hidden_is_not_looked_at(case):
    _, _, signal, hidden, model = case
    x, h = tensors(signal, hidden)
    other = torch.where(h, torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), x)
    for fill in (model.fill, model.fill_own, model.fill_in_time):
        torch.testing.assert_close(fill(x, h), fill(other, h))


def test_saved_and_loaded_it_is_the_same(case, tmp_path):
    model = case[-1]
    assert Gaussian.load(tmp_path) is None
    model.save(tmp_path)
    again = Gaussian.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), again.buffers(), strict=True))


def test_moments_of_parts_add_up_and_are_those_of_the_known_values():
    random = np.random.default_rng(2)
    series = [random.normal(size=(length, R)).astype(np.float32) for length in (30, 17, 50)]
    series[1][:, 4] = np.nan
    whole = Moments.of(series, R, 20)
    parts = Moments.of(series[:1], R, 20) + Moments.of(series[1:], R, 20)
    for a, b in zip(whole.parts, parts.parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-4)
    assert whole.pairs[4, 4] == 80 and whole.pairs[0, 4] == 80 and whole.pairs[0, 0] == 97
    both = np.concatenate([series[0], series[2]])
    np.testing.assert_allclose(whole.products[4, 0], both[:, 4] @ both[:, 0], rtol=1e-4)
    lag3 = sum(np.nansum(x[3:] * x[:-3]) for x in series)
    np.testing.assert_allclose(whole.lagged[3], lag3, rtol=1e-3)
    assert round(whole.lagged_pairs[19]) == R * 11 + (R - 1) * 0 + R * 31
    assert np.linalg.eigvalsh(whole.covariance()).min() > -1e-9
    step = np.arange(20)
    lags = whole.autocorrelation()
    assert lags[0] == 1 and np.linalg.eigvalsh(lags[abs(step[:, None] - step)]).min() > -1e-6
