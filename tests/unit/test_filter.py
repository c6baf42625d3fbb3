"""One projection: equal to least squares, orthogonal to what was filtered, linear over voxels."""

from __future__ import annotations

import numpy as np
import pytest
from nilearn.glm.first_level.design_matrix import create_cosine_drift

from brainlm.errors import RecordingError
from brainlm.preprocess.denoise.filter import clean, cosine_basis, filter_basis

T, TR_S = 180, 2.0


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def band_power(series: np.ndarray, low_hz: float, high_hz: float) -> float:
    """Share of the power between two frequencies of the cosine transform."""
    weights = cosine_basis(T, TR_S, 1e9).T @ series
    hertz = np.arange(T) / (2 * T * TR_S)
    inside = (hertz >= low_hz) & (hertz <= high_hz)
    return float((weights[inside] ** 2).sum() / (weights**2).sum())


@pytest.mark.parametrize(("high_pass", "low_pass"), [(0, None), (0.008, None), (0.01, 0.1)])
def test_basis_is_orthonormal_with_the_constant_first(high_pass, low_pass):
    basis = filter_basis(T, TR_S, high_pass, low_pass)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    assert np.ptp(basis[:, 0]) == 0


def test_high_pass_spans_the_usual_drift_model():
    ours = cosine_basis(T, TR_S, 0.0079)
    theirs = create_cosine_drift(0.0079, np.arange(T) * TR_S)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(theirs, ours @ (ours.T @ theirs), atol=1e-10)


def test_equals_least_squares_with_drift_and_confounds_in_one_model(rng):
    series, nuisance = rng.normal(size=(T, 7)), rng.normal(size=(T, 4))
    model = np.hstack([filter_basis(T, TR_S, 0.008), nuisance])
    expected = series - model @ np.linalg.lstsq(model, series, rcond=None)[0]
    found = clean(series, TR_S, high_pass_hz=0.008, nuisance=nuisance)
    np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("aggressive", [True, False])
def test_removed_frequencies_do_not_come_back(rng, aggressive):
    series = rng.normal(size=(T, 5)).cumsum(0)
    nuisance, signal = rng.normal(size=(T, 3)).cumsum(0), rng.normal(size=(T, 2)).cumsum(0)
    cleaned = clean(
        series, TR_S, high_pass_hz=0.01, low_pass_hz=0.1, nuisance=nuisance,
        signal=None if aggressive else signal,
    )  # fmt: skip
    assert band_power(cleaned, 0.01, 0.1) > 1 - 1e-12


def test_non_aggressive_equals_its_definition(rng):
    filtered = clean(rng.normal(size=(T, 9)), TR_S, high_pass_hz=0.008)
    series, noise, signal = filtered[:, :4], filtered[:, 4:6], filtered[:, 6:]
    weights = np.linalg.lstsq(np.hstack([noise, signal]), series, rcond=None)[0]
    found = clean(series, TR_S, high_pass_hz=0.008, nuisance=noise, signal=signal)
    np.testing.assert_allclose(found, series - noise @ weights[:2], atol=1e-10)


def test_confounds_are_removed_whole_and_components_in_what_is_left(rng):
    """Though a confound is nearly a component: its weights cannot cancel the component's."""
    filtered = clean(rng.normal(size=(T, 9)), TR_S, high_pass_hz=0.008)
    signal, noise = filtered[:, :3], filtered[:, 3:5]
    confound = signal[:, :1] + 0.01 * filtered[:, 5:6]
    series = np.hstack([signal @ rng.normal(size=(3, 2)), noise]) + 0.1 * filtered[:, 5:9]
    options = {"high_pass_hz": 0, "nuisance": np.hstack([confound, noise]), "signal": signal}
    found = clean(series, TR_S, **options, whole=1)
    assert np.abs(confound.T @ found).max() < 1e-10
    rest = [clean(c, TR_S, high_pass_hz=0, nuisance=confound) for c in (series, noise, signal)]
    weights = np.linalg.lstsq(np.hstack(rest[1:]), rest[0], rcond=None)[0]
    np.testing.assert_allclose(found, rest[0] - rest[1] @ weights[:2], atol=1e-9)
    assert (found**2).sum() < (series**2).sum()
    alone = clean(series, TR_S, high_pass_hz=0, nuisance=noise, signal=signal)
    empty = np.hstack([np.ones((T, 2)), noise])  # a constant, twice: the filter leaves nothing
    same = clean(series, TR_S, high_pass_hz=0, nuisance=empty, signal=signal, whole=2)
    np.testing.assert_allclose(alone, same, atol=1e-10)
    twice = np.hstack([confound, options["nuisance"]])
    again = clean(series, TR_S, **options | {"nuisance": twice}, whole=2)
    np.testing.assert_allclose(again, found, atol=1e-9)


def test_non_aggressive_keeps_what_noise_and_signal_share(rng):
    network, artefact = clean(rng.normal(size=(T, 2)), TR_S, high_pass_hz=0.008).T[:, :, None]
    noise = artefact + 0.5 * network  # an artefact's time course that looks like the network
    kept = clean(network, TR_S, high_pass_hz=0, nuisance=noise, signal=network)
    lost = clean(network, TR_S, high_pass_hz=0, nuisance=noise)
    np.testing.assert_allclose(kept, network, atol=1e-10)
    assert lost.var() < 0.95 * network.var()


def test_cleaning_means_equals_the_mean_of_cleaned_voxels(rng):
    voxels, nuisance = rng.normal(size=(T, 50)), rng.normal(size=(T, 4))
    options = {"high_pass_hz": 0.008, "low_pass_hz": 0.1, "nuisance": nuisance}
    averaged = clean(voxels.mean(1, keepdims=True), TR_S, **options)
    cleaned = clean(voxels, TR_S, **options)
    np.testing.assert_allclose(averaged[:, 0], cleaned.mean(1), atol=1e-12)


def test_nan_columns_stay_nan_and_touch_no_other(rng):
    series = rng.normal(size=(T, 4))
    expected = clean(series, TR_S, high_pass_hz=0.008)
    series[7, 2] = np.nan
    found = clean(series, TR_S, high_pass_hz=0.008)
    assert np.isnan(found[:, 2]).all()
    np.testing.assert_array_equal(np.delete(found, 2, 1), np.delete(expected, 2, 1))


def test_units_and_repetition_of_confounds_do_not_matter(rng):
    series, nuisance = rng.normal(size=(T, 3)), rng.normal(size=(T, 2))
    expected = clean(series, TR_S, high_pass_hz=0.008, nuisance=nuisance)
    scaled = np.hstack([nuisance * 1e-6, nuisance[:, :1] * 1e6, np.ones((T, 1))])
    found = clean(series, TR_S, high_pass_hz=0.008, nuisance=scaled)
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_too_few_degrees_of_freedom(rng):
    with pytest.raises(RecordingError) as caught:
        clean(rng.normal(size=(T, 2)), TR_S, high_pass_hz=0.2, nuisance=rng.normal(size=(T, 30)))
    assert caught.value.status == "denoise_failed"


def test_drifts_are_gone_at_the_ends_too(rng):
    """A line and a parabola, which cosines alone leave standing at both ends of the run."""
    time = np.linspace(-1, 1, T)
    drift = 20 * time[:, None] + 10 * time[:, None] ** 2
    noise = rng.normal(size=(T, 4))
    found = clean(noise + drift, TR_S, high_pass_hz=0.008)
    np.testing.assert_allclose(found, clean(noise, TR_S, high_pass_hz=0.008), atol=1e-9)
    left = drift - cosine_basis(T, TR_S, 0.008) @ (cosine_basis(T, TR_S, 0.008).T @ drift)
    assert np.abs(left[[0, -1]]).max() > 1
    np.testing.assert_allclose(clean(drift, TR_S, high_pass_hz=0), drift - drift.mean(0))
