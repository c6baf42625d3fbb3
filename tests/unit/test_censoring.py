"""preprocess.censor: what the volumes of moving heads hold changes nothing that comes after."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from brainlm.config import Preprocess
from brainlm.errors import RecordingError
from brainlm.preprocess.delivered.parcel_series import settle_series
from brainlm.preprocess.denoise.filter import clean, filter_basis
from brainlm.preprocess.parcellate.censoring import check_kept, choose_kept, describe_censored
from brainlm.preprocess.parcellate.resample import resample
from brainlm.preprocess.parcellate.series import make_filter, make_series

T, R, TR = 300, 8, 0.735
NAN = float("nan")


def options(**settings) -> Preprocess:
    return Preprocess(**{"censor": {"fd_mm": 0.5}, "min_duration_s": 60, **settings})


def motion(random, share: float) -> np.ndarray:
    """Framewise displacement [T] in mm, of which a share is too large."""
    found = random.uniform(0, 0.4, T)
    found[random.random(T) < share] = 2.0
    found[0] = NAN
    return found


def test_the_limit_is_of_framewise_displacement_and_the_first_volume_stays():
    kept = choose_kept(np.array([NAN, 0.4, 0.5, 0.51, 3.0]), options())
    assert kept.tolist() == [True, True, True, False, False]
    assert choose_kept(np.array([NAN, 9.0]), Preprocess()).all()
    assert describe_censored(kept, options()) == [
        "censored: 2 of 5 volumes (40.0%), framewise displacement above 0.5 mm"
    ]
    with pytest.raises(RecordingError, match=r"44.1 s of 220.5 s are left, 80% are censored") as e:
        check_kept(np.arange(T) < 60, TR, options(), duration_s=220.5)
    assert e.value.status == "too_short" and e.value.figures == {"duration_s": 220.5}
    check_kept(np.arange(T) < 90, TR, options())
    with pytest.raises(ValidationError, match="slice_timing interpolates between volumes"):
        options(slice_timing=True)


@pytest.mark.parametrize("with_signal", [False, True])
def test_filter_and_regression_are_those_of_the_kept_rows(with_signal):
    """Against least squares on the rows that are kept, written out."""
    random = np.random.default_rng(0)
    series, nuisance, signal = (random.normal(size=(T, n)) for n in (R, 4, 2))
    series += 3 * nuisance @ random.normal(size=(4, R))
    kept = random.random(T) > 0.2
    more = {"nuisance": nuisance} | ({"signal": signal} if with_signal else {})
    found = clean(series, TR, high_pass_hz=0.008, kept=kept, **more)
    basis = filter_basis(T, TR, 0.008)
    model = np.hstack([basis, *more.values()])[kept]
    weights = np.linalg.lstsq(model, series[kept], rcond=None)[0]
    if with_signal:  # what is signal stays, but for what the filter takes of it
        weights[-2:] = 0
    rest = series[kept] - model @ weights
    wanted = rest - basis[kept] @ np.linalg.lstsq(basis[kept], rest, rcond=None)[0]
    assert np.allclose(found[kept], wanted, atol=1e-6)
    assert np.isnan(found[~kept]).all()


def test_a_pass_band_with_gaps_keeps_what_lies_inside():
    """Slow confounds go, fast noise goes, a slow signal stays, as without gaps."""
    random = np.random.default_rng(0)
    time = np.arange(T)[:, None] * TR
    signal = np.sin(2 * np.pi * (0.03 * time + random.random(R)))
    confounds = np.cumsum(random.normal(size=(T, 3)), 0)
    fast = 0.5 * np.sin(2 * np.pi * 0.4 * time)
    series = signal + confounds @ random.normal(size=(3, R)) + fast
    kept = random.random(T) > 0.15
    series[~kept] = 1e9
    found = clean(series, TR, high_pass_hz=0.01, low_pass_hz=0.1, nuisance=confounds, kept=kept)
    wanted = clean(signal, TR, high_pass_hz=0.01, low_pass_hz=0.1, nuisance=confounds)
    error = (found - wanted)[kept]
    assert np.sqrt(np.mean(error**2)) < 0.15 * wanted.std()
    assert np.isnan(found[~kept]).all()


@pytest.mark.parametrize("seed", range(6))
def test_artefacts_in_censored_volumes_change_no_value(seed):
    random = np.random.default_rng(seed)
    config = options(
        low_pass_hz=[None, 0.1][seed % 2], sample_period_s=[1.0, 2.0, TR][seed % 3],
        high_pass_hz=[0.008, 0][seed % 2],
    )  # fmt: skip
    displacement = motion(random, [0.05, 0.2, 0.4][seed % 3])
    kept = choose_kept(displacement, config)
    nuisance = random.normal(size=(T, 6))
    raw = 1000 + np.cumsum(random.normal(size=(T, R)), 0) + 5 * random.normal(size=(T, R))
    coverage = np.ones(R)
    coverage[2] = 0.1

    def make(values: np.ndarray, columns: np.ndarray):
        def cleaner(x):
            return make_filter(TR, config, kept)(x, nuisance=columns)

        return make_series(values, coverage, TR, config, displacement, cleaner, kept)

    before = make(raw, nuisance)
    raw[~kept] *= random.uniform(-100, 100, size=((~kept).sum(), 1))
    nuisance[~kept] = 1e6
    after = make(raw, nuisance)
    for name in ("series", "before", "baseline", "coverage"):
        assert np.array_equal(getattr(before, name), getattr(after, name), equal_nan=True), name
    assert before.figures == after.figures
    gone = np.isnan(before.series).all(1)
    assert gone.any() and before.figures["censored_share"] == gone.mean()
    known = np.isfinite(before.series)
    assert np.array_equal(known, np.outer(~gone, known.any(0)))  # whole rows, whole columns
    assert not known[:, 2].any()


@pytest.mark.parametrize(("tr_s", "period_s"), [(0.735, 1.0), (2.0, 1.0), (3.0, 1.0), (1.0, 1.0)])
def test_time_near_a_censored_volume_is_missing_and_nothing_else(tr_s, period_s):
    series = np.random.default_rng(0).normal(size=(120, 3))
    series[[0, 40, 41, 90]] = np.nan
    found = resample(series, tr_s, period_s)
    reach = max(tr_s, period_s) / 2 if tr_s != period_s else 0
    for k, row in enumerate(found):
        near = np.abs(np.array([0, 40, 41, 90]) * tr_s - k * period_s).min() <= reach + 1e-9
        assert np.isnan(row).all() == near and np.isnan(row).any() == near


@pytest.mark.parametrize("tr_s", [0.735, 2.0])
def test_what_is_left_is_what_it_was(tr_s):
    """A slow signal keeps its values beside gaps."""
    time = np.arange(400) * tr_s
    series = np.sin(2 * np.pi * np.array([0.01, 0.03, 0.05]) * time[:, None])
    gaps = series.copy()
    gaps[np.random.default_rng(0).random(400) < 0.15] = np.nan
    whole, found = resample(series, tr_s, 1.0), resample(gaps, tr_s, 1.0)
    kept = np.isfinite(found).all(1)
    assert 0.6 < kept.mean() < 0.95
    assert np.sqrt(np.mean((found - whole)[kept] ** 2)) < 0.03  # of an amplitude of 1


def test_delivered_series_may_lack_whole_rows():
    random = np.random.default_rng(0)
    raw = 500 + np.cumsum(random.normal(size=(200, R)), 0)
    raw[:, 3] = np.nan
    gone = random.random(200) < 0.2
    gaps = raw.copy()
    gaps[gone] = np.nan
    found = settle_series(gaps, 1.0, units="scanner", num_parcels=R, sample_period_s=1.0)
    assert np.array_equal(np.isnan(found.series).all(1), gone)
    assert found.dead.tolist() == [k == 3 for k in range(R)]
    live = np.delete(raw, 3, 1)[~gone]
    wanted = 100 * (live / live.mean(0) - 1)
    assert np.allclose(np.delete(found.series, 3, 1)[~gone], wanted, atol=1e-4)
    gaps[np.flatnonzero(gone)[0], 0] = 1.0  # not whole
    with pytest.raises(RecordingError, match="missing in all parcels"):
        settle_series(gaps, 1.0, units="scanner", num_parcels=R, sample_period_s=1.0)
