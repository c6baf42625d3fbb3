"""The common sample period: no folding, no shift, nothing done where nothing is to do."""

from __future__ import annotations

import numpy as np
import pytest

from brainlm.preprocess.parcellate.resample import low_pass, resample


def band_signal(times_s: np.ndarray, low_hz: float, high_hz: float, seed: int = 0) -> np.ndarray:
    """A signal known at any time: 40 sinusoids between two frequencies, SD 1."""
    rng = np.random.default_rng(seed)
    hertz, phase = rng.uniform(low_hz, high_hz, 40), rng.uniform(0, 2 * np.pi, 40)
    waves = np.sin(2 * np.pi * times_s[:, None] * hertz + phase)
    return waves.sum(1, keepdims=True) / np.sqrt(20)


@pytest.mark.parametrize(("tr_s", "period_s"), [(0.735, 1.0), (2.0, 1.0), (0.8, 2.0), (3.0, 1.0)])
def test_recovers_a_slow_signal(tr_s, period_s):
    times = np.arange(int(360 / tr_s)) * tr_s
    found = resample(band_signal(times, 0.01, 0.08), tr_s, period_s)
    wanted = np.arange(len(found)) * period_s
    error = found - band_signal(wanted, 0.01, 0.08)
    inner = (wanted > 20) & (wanted < wanted[-1] - 20)
    assert error[inner].std() < 0.03


def test_fast_noise_does_not_fold_into_the_band():
    times = np.arange(490) * 0.735
    slow, fast = band_signal(times, 0.01, 0.08), band_signal(times, 0.60, 0.64, seed=1)
    found = resample(slow + fast, 0.735, 1.0)
    wanted = np.arange(len(found)) * 1.0
    error = (found - band_signal(wanted, 0.01, 0.08))[20:-20]
    plain = np.interp(wanted, times, (slow + fast)[:, 0])[:, None]
    assert error.std() < 0.01
    assert (plain - band_signal(wanted, 0.01, 0.08))[20:-20].std() > 0.3  # what it prevents


def test_equal_periods_change_nothing():
    series = np.random.default_rng(0).normal(size=(50, 3))
    series[:, 1] = np.nan
    np.testing.assert_array_equal(resample(series, 1.0, 1.0), series)


@pytest.mark.parametrize(
    ("count", "tr_s", "period_s", "expected"),
    [(120, 2.0, 1.0, 239), (490, 0.735, 1.0, 360), (10, 1.0, 3.0, 4), (101, 0.1, 1.0, 11)],
)
def test_samples_run_from_the_first_to_the_last(count, tr_s, period_s, expected):
    ramp = (np.arange(count) * tr_s)[:, None]
    found = resample(ramp, tr_s, period_s)
    assert len(found) == expected
    if tr_s > period_s:  # interpolation alone is exact for a straight line
        np.testing.assert_allclose(found[:, 0], np.arange(expected) * period_s, atol=1e-9)


def test_nan_columns_stay_nan():
    series = np.random.default_rng(0).normal(size=(60, 3))
    expected = resample(series, 2.0, 1.0)
    series[4, 1] = np.nan
    found = resample(series, 2.0, 1.0)
    assert np.isnan(found[:, 1]).all()
    np.testing.assert_array_equal(found[:, [0, 2]], expected[:, [0, 2]])


def test_low_pass_leaves_the_pass_band_alone():
    times = np.arange(600) * 0.5
    slow = band_signal(times, 0.01, 0.3)
    np.testing.assert_allclose(low_pass(slow, 0.5, 0.5)[30:-30], slow[30:-30], atol=0.02)
    assert low_pass(band_signal(times, 0.6, 0.9), 0.5, 0.5)[30:-30].std() < 0.02
