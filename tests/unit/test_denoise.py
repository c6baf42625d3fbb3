"""ICA on a toy brain with planted artefacts, and every feature against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage as ndi
from threadpoolctl import threadpool_limits

from brainlm.errors import RecordingError
from brainlm.preprocess.denoise import ica as denoise
from brainlm.preprocess.denoise.aroma import (
    classify_components,
    correlate_motion,
    expand_motion,
    high_frequency_content,
)
from brainlm.preprocess.denoise.confounds import (
    MOTION_NAMES,
    choose_nuisance,
    list_gone,
    motion_columns,
    nuisance_names,
    tissue_columns,
)
from brainlm.preprocess.denoise.filter import clean, clean_columns, cosine_basis, filter_basis
from brainlm.preprocess.denoise.ica import (
    choose_order,
    count_resels,
    fit_ica,
    separate,
    threshold_map,
)
from brainlm.preprocess.denoise.ica_grid import make_grid, smooth_grid
from brainlm.preprocess.normalise.template import Template, load_template

TR_S, T = 2.0, 150


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As recordings are run; matrix products that share cores with other tests crawl."""
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture(scope="module")
def grid():
    """A ball of 64 mm radius with a white core and a ventricle in the middle, at 4 mm."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -80
    distance = np.linalg.norm(np.stack(np.meshgrid(*[np.arange(-80, 84, 4)] * 3)), axis=0)
    mask = distance < 64
    csf = (distance < 14).astype(np.float32) + (mask & (distance > 60))
    white = ((distance >= 14) & (distance < 40)).astype(np.float32)
    grey = (mask & (csf == 0) & (white == 0)).astype(np.float32)
    t1w = white + 0.6 * grey
    return make_grid(Template("toy", affine, t1w, grey, white, csf, mask))


@pytest.fixture(scope="module")
def run(grid):
    """Samples [T, N] with networks and artefacts of known courses, and motion parameters."""
    rng = np.random.default_rng(5)
    slow = cosine_basis(T, TR_S, 0.1)[:, 6:]  # 0.02 to 0.1 Hz
    networks = slow @ rng.normal(size=(slow.shape[1], 4))
    motion = np.zeros((T, 6))
    motion[40:90, 0], motion[100:, 4] = 0.6, -0.01
    motion += 0.01 * rng.normal(size=(T, 6)) * [1, 1, 1, 0.02, 0.02, 0.02]
    moved = motion[:, 0] + 60 * motion[:, 4]
    pulse = rng.normal(size=T).cumsum() * 0.1 + np.sin(np.arange(T) * 0.7)
    flicker = rng.normal(size=T) * np.sign(np.sin(np.arange(T) * 2.9))
    artefacts = np.stack([moved, pulse, np.diff(flicker, prepend=0)], axis=1)
    unit = lambda x: (x - x.mean(0)) / x.std(0)  # noqa: E731
    networks, artefacts = unit(networks), unit(artefacts)
    x, y, z = grid.points.T
    centres = [(40, 0, 10), (-40, 0, 10), (0, 40, 0), (0, -40, 10)]
    blobs = [np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / 500) for a, b, c in centres]
    radius = np.linalg.norm(grid.points, axis=1)
    ring = (radius > 56) * np.sign(x)
    stripes = (np.abs(z) < 5) * 1.0
    maps = np.stack([*blobs, 1.5 * ring, 1.5 * grid.csf, 0.8 * stripes])
    noise = rng.normal(size=(T, *grid.mask.shape)).astype(np.float32)
    noise = ndi.gaussian_filter(noise, (0, 0.7, 0.7, 0.7))[:, grid.mask]
    samples = np.hstack([networks, artefacts]) @ maps + 0.3 * noise / noise.std()
    return 1000 + 10 * samples.astype(np.float32), motion, networks, artefacts


@pytest.fixture(scope="module")
def fit(grid, run):
    return fit_ica(run[0], TR_S, run[1], grid, high_pass_hz=0.008)


def explained(courses: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Share of each course's high-passed variance in the span of some columns."""
    courses = clean_columns(courses, filter_basis(T, TR_S, 0.008))
    rest = courses - by @ np.linalg.lstsq(by, courses, rcond=None)[0]
    return 1 - (rest**2).sum(0) / (courses**2).sum(0)


def test_grid_knows_what_lies_where(grid):
    radius = np.linalg.norm(grid.points, axis=1)
    assert grid.csf[radius < 12].all() and not grid.csf[radius > 20].any()
    assert 8 < radius[grid.fluid].max() < radius[grid.csf].max() - 1  # away from the wall
    assert (grid.fluid <= grid.csf).all()
    assert grid.edge[(radius > 59) & (radius < 63)].all()  # below the surface
    assert grid.edge[(radius > 15) & (radius < 18)].all()  # around the ventricle
    assert not grid.edge[(radius > 24) & (radius < 54)].any()
    assert not grid.brain[radius >= 64].any() and (~grid.brain).any()
    assert radius[grid.white].max() < 40


def test_tissue_signals_are_taken_where_a_coarse_voxel_holds_no_grey_matter():
    template = load_template("MNI152NLin2009aSym")
    grid, size = make_grid(template), template.affine[0, 0]
    grey = ndi.gaussian_filter(template.grey.astype(np.float32), 4 / 2.355 / size)  # 4 mm wide
    x, y, z = np.rint((grid.points - template.affine[:3, 3]) / size).astype(int).T
    share = grey[z, y, x]
    found = [share[where].mean() for where in (grid.white, grid.fluid, grid.csf)]
    assert max(found[:2]) < 0.1 < 0.5 * found[2] and grid.fluid.sum() > 40


def test_planted_artefacts_are_found_and_networks_kept(fit, run):
    _, _, networks, artefacts = run
    assert fit.converged
    assert (explained(artefacts, fit.mixing[:, fit.noise]) > 0.9).all()
    assert (explained(networks, fit.mixing[:, ~fit.noise]) > 0.9).all()
    assert (explained(networks, fit.mixing[:, fit.noise]) < 0.3).all()


def test_each_artefact_is_caught_by_its_own_rule(fit, run):
    artefacts = clean_columns(run[3], filter_basis(T, TR_S, 0.008))
    r = np.abs(np.corrcoef(fit.mixing.T, artefacts.T)[len(fit.noise) :, : len(fit.noise)])
    rules = fit.features["rule"].to_numpy()[r.argmax(1)]
    assert (r.max(1) > 0.9).all()
    assert "motion_and_edge" in rules[0]
    assert "csf_fraction" in rules[1]
    assert "high_frequency_content" in rules[2]


def test_same_seed_same_bytes(fit, grid, run):
    again = fit_ica(run[0], TR_S, run[1], grid, high_pass_hz=0.008)
    assert again.mixing.tobytes() == fit.mixing.tobytes()
    assert again.maps.tobytes() == fit.maps.tobytes()
    assert again.features.equals(fit.features)


def test_another_seed_finds_the_same_components(fit, grid, run):
    other = fit_ica(run[0], TR_S, run[1], grid, high_pass_hz=0.008, seed=9)
    assert other.mixing.shape == fit.mixing.shape
    assert (explained(other.mixing, fit.mixing) > 0.95).all()
    assert other.noise.sum() == fit.noise.sum()


def test_points_outside_the_field_of_view_have_no_map(grid, run):
    samples = run[0].copy()
    outside = grid.points[:, 2] > 30
    samples[:, outside] = np.nan
    fit = fit_ica(samples, TR_S, run[1], grid, high_pass_hz=0.008)
    assert (fit.maps[:, outside] == 0).all()
    assert np.isfinite(fit.mixing).all()
    assert (explained(run[3], fit.mixing[:, fit.noise]) > 0.9).all()


def test_what_does_not_converge_says_so(grid, run, monkeypatch):
    monkeypatch.setattr(denoise, "MAX_ITERATIONS", 1)
    fit = fit_ica(run[0], TR_S, run[1], grid, high_pass_hz=0.008)
    assert not fit.converged and fit.iterations == 1


def test_too_little_to_decompose(grid, run):
    few = np.full_like(run[0], np.nan)
    few[:, :500] = run[0][:, :500]
    for samples, motion in ((few, run[1]), (run[0][:22], run[1][:22])):
        with pytest.raises(RecordingError) as caught:
            fit_ica(samples, TR_S, motion, grid, high_pass_hz=0.05)
        assert caught.value.status == "denoise_failed"


def test_separation_agrees_with_scikit_learn():
    from sklearn.decomposition import FastICA

    rng = np.random.default_rng(0)
    sources = rng.laplace(size=(6, 20000))
    mixed = np.linalg.qr(rng.normal(size=(6, 6)))[0] @ sources / np.sqrt(2)
    mixed -= mixed.mean(1, keepdims=True)
    values, vectors = np.linalg.eigh(np.cov(mixed))
    whitened = (vectors / np.sqrt(values)).T @ mixed
    ours, converged, _ = separate(whitened)
    theirs = FastICA(whiten=False, fun="logcosh", tol=1e-6, random_state=0).fit_transform(
        whitened.T
    )
    assert converged
    for reference in (theirs.T, sources):
        r = np.abs(np.corrcoef(ours, reference)[:6, 6:])
        assert (r.max(0) > 0.99).all()


@pytest.mark.parametrize("planted", [1, 4, 12])
def test_model_order_counts_planted_components(planted):
    rng = np.random.default_rng(1)
    data = rng.normal(size=(60, 4000))
    data += rng.normal(size=(60, planted)) @ rng.normal(size=(planted, 4000))
    values = np.linalg.eigvalsh(np.cov(data))[::-1]
    assert choose_order(values, 4000, 50) == planted
    assert choose_order(values, 4000, 3) == min(planted, 3)


@pytest.mark.parametrize("fwhm_steps", [0.0, 2.0, 3.0])
def test_resolution_elements_follow_the_smoothness(grid, fwhm_steps):
    noise = np.random.default_rng(2).normal(size=(30, *grid.mask.shape))
    noise = ndi.gaussian_filter(noise, (0, *[fwhm_steps / 2.3548] * 3)) if fwhm_steps else noise
    data = noise[:, grid.mask]
    data = (data - data.mean(0)) / data.std(0)
    found = count_resels(data, grid, np.ones(data.shape[1], bool))
    # kernels of a product of two Gaussians are sqrt(2) wider: FWHM of the correlation
    assert found == pytest.approx(data.shape[1] / max(fwhm_steps, 1) ** 3, rel=0.25)


def test_smoothing_keeps_the_level_at_the_border(grid):
    flat = np.full((3, grid.mask.sum()), 7.0, np.float32)
    flat[:, :100] = np.nan
    smooth = smooth_grid(flat, grid, 5.0)
    assert np.isnan(smooth[:, :100]).all()
    np.testing.assert_allclose(smooth[:, 100:], 7.0, rtol=1e-5)


def test_threshold_keeps_the_tail_and_not_the_background():
    rng = np.random.default_rng(3)
    signal = 4 + rng.gamma(4, 0.5, 1500)
    values = np.concatenate([rng.normal(size=30000), signal])
    values = ((values - values.mean()) / values.std()).astype(np.float32)
    kept = threshold_map(values) != 0
    assert kept[30000:].mean() > 0.95
    assert kept[:30000].mean() < 0.02


def test_threshold_of_pure_noise_keeps_little():
    values = np.random.default_rng(4).normal(size=30000).astype(np.float32)
    assert (threshold_map(values) != 0).mean() < 0.02


@pytest.mark.parametrize("hertz", [0.03, 0.1, 0.2])
def test_high_frequency_content_of_a_narrow_band(hertz):
    lines = hertz + np.linspace(-0.005, 0.005, 7)
    course = np.sin(2 * np.pi * np.outer(np.arange(300) * TR_S, lines)).sum(1, keepdims=True)
    expected = (hertz - 0.01) / (0.25 - 0.01)
    assert high_frequency_content(course, TR_S)[0] == pytest.approx(expected, abs=0.01)


def test_motion_model_and_its_correlation_follow_the_definition():
    rng = np.random.default_rng(6)
    motion, mixing = rng.normal(size=(T, 6)).cumsum(0), rng.normal(size=(T, 5))
    mixing[:, 0] = np.roll(motion[:, 3], 1)
    models = expand_motion(motion)
    assert models.shape == (T, 36)
    np.testing.assert_array_equal(models[1:, 12:18], motion[:-1])
    np.testing.assert_array_equal(models[:-1, 24:30], motion[1:])
    assert (models[0, 6:12] == 0).all() and (models[0, 12:24] == 0).all()
    found = correlate_motion(mixing, motion, seed=3)
    draws = np.random.default_rng(3).random((1000, T)).argsort(1) < round(0.9 * T)
    naive = []
    for chosen in draws[:200]:
        x, y = mixing[chosen], models[chosen]
        plain = np.abs(np.corrcoef(x.T, y.T)[:5, 5:]).max(1)
        squared = np.abs(np.corrcoef(x.T**2, y.T**2)[:5, 5:]).max(1)
        naive.append(np.maximum(plain, squared))
    np.testing.assert_allclose(found, np.mean(naive, 0), atol=0.01)  # 200 of 1000 splits
    assert found[0] > 0.95


@pytest.mark.parametrize(
    ("rp", "edge", "hfc", "csf", "rule"),
    [
        (0.2, 0.3, 0.1, 0.02, "none"),
        (0.2, 0.3, 0.36, 0.02, "high_frequency_content"),
        (0.2, 0.3, 0.1, 0.11, "csf_fraction"),
        (0.5, 0.61, 0.1, 0.02, "motion_and_edge"),  # -19.975 + 4.976 + 15.148 > 0
        (0.5, 0.60, 0.1, 0.02, "none"),  # -19.975 + 4.976 + 14.900 < 0
        (0.9, 0.9, 0.5, 0.2, "csf_fraction+high_frequency_content+motion_and_edge"),
    ],
)
def test_published_rule(rp, edge, hfc, csf, rule):
    import pandas as pd

    names = ("max_rp_corr", "edge_fraction", "high_frequency_content", "csf_fraction")
    table = pd.DataFrame([dict(zip(names, (rp, edge, hfc, csf), strict=True))], index=[1])
    classify_components(table)
    assert table["rule"][1] == rule
    assert table["classification"][1] == ("accepted" if rule == "none" else "rejected")


def test_motion_columns_carry_the_usual_names():
    motion = np.random.default_rng(0).normal(size=(T, 6))
    columns = motion_columns(motion)
    assert len(columns) == 24 and set(MOTION_NAMES) < set(columns)
    assert np.isnan(columns["rot_z_derivative1"][0])
    np.testing.assert_allclose(columns["rot_z_derivative1"][1:], np.diff(motion[:, 5]))
    np.testing.assert_allclose(
        columns["trans_x_derivative1_power2"][1:], np.diff(motion[:, 0]) ** 2
    )


def test_nuisance_by_option():
    rng = np.random.default_rng(0)
    columns, mixing = motion_columns(rng.normal(size=(T, 6))), rng.normal(size=(T, 5))
    noise = np.array([True, False, False, True, False])

    def choose(*steps, noise=noise):
        chosen = choose_nuisance(steps, columns, mixing, noise)
        return chosen["nuisance"], chosen["signal"]

    assert choose() == (None, None)
    nuisance, signal = choose("motion24")
    assert nuisance.shape == (T, 24) and np.isfinite(nuisance).all() and signal is None
    nuisance, signal = choose("ica")
    np.testing.assert_array_equal(nuisance, mixing[:, [0, 3]])
    np.testing.assert_array_equal(signal, mixing[:, [1, 2, 4]])
    assert choose("ica-aggressive")[1] is None
    assert choose("ica", noise=noise & False) == (None, None)


def test_confounds_combine_in_one_model():
    rng = np.random.default_rng(5)
    columns, mixing = motion_columns(rng.normal(size=(T, 6))), rng.normal(size=(T, 5))
    columns |= {name: rng.normal(size=T) for name in nuisance_names("wm-csf")}
    noise = np.array([True, False, False, True, False])
    chosen = choose_nuisance(("ica", "wm-csf"), columns, mixing, noise)
    expected = np.column_stack([columns["csf"], columns["white_matter"], mixing[:, noise]])
    np.testing.assert_array_equal(chosen["nuisance"], expected)
    np.testing.assert_array_equal(chosen["signal"], mixing[:, ~noise])
    assert chosen["whole"] == 2
    both = choose_nuisance(("motion6", "motion24"), columns, mixing, noise)["nuisance"]
    assert both.shape == (T, 24)
    columns["csf"] = np.full(T, np.nan)  # outside the field of view
    assert list_gone(("ica", "wm-csf"), columns) == ["csf"] and not list_gone(("ica",), columns)
    chosen = choose_nuisance(("ica", "wm-csf"), columns, mixing, noise)
    np.testing.assert_array_equal(chosen["nuisance"], expected[:, 1:])
    assert chosen["whole"] == 1
    columns["white_matter"] = columns["csf"]
    with pytest.raises(RecordingError, match="csf, white_matter: not measured"):
        choose_nuisance(("ica", "wm-csf"), columns, mixing, noise)
    columns["trans_x"][7] = np.nan
    with pytest.raises(RecordingError, match="trans_x: not measured"):
        choose_nuisance(("motion6",), columns, mixing, noise)


@pytest.mark.filterwarnings("ignore:.*confounds will be standardized:DeprecationWarning")
def test_regression_equals_nilearn():
    """The same model as nilearn.signal.clean's, with what our filter removes as confounds too."""
    from nilearn.signal import clean as clean_by_nilearn

    rng = np.random.default_rng(6)
    series, confounds = rng.normal(size=(T, 9)).cumsum(0), rng.normal(size=(T, 24)).cumsum(0)
    ours = clean(series, TR_S, high_pass_hz=0.008, nuisance=confounds)
    model = np.hstack([filter_basis(T, TR_S, 0.008)[:, 1:], confounds])
    theirs = clean_by_nilearn(
        series, confounds=model, detrend=False, standardize=None, standardize_confounds=True
    )
    np.testing.assert_allclose(ours, theirs - theirs.mean(0), atol=1e-8)


def test_compcor_finds_what_a_tissue_shares(grid):
    rng = np.random.default_rng(7)
    noise = rng.normal(size=(T, 2)).cumsum(0)
    samples = 1000 + rng.normal(size=(T, len(grid.points)))
    samples[:, grid.csf] += 3 * noise[:, :1]
    samples[:, grid.white] += 3 * noise[:, 1:]
    basis = filter_basis(T, TR_S, 0.008)
    found = tissue_columns(samples.astype(np.float32), grid, basis)
    for name, column in (("c_comp_cor_00", 0), ("w_comp_cor_00", 1)):
        planted = clean_columns(noise[:, column : column + 1], basis)[:, 0]
        assert abs(np.corrcoef(found[name], planted)[0, 1]) > 0.95
    assert all(np.isfinite(found[name]).all() for name in nuisance_names("acompcor"))
    samples[:, grid.csf] = np.nan
    found = tissue_columns(samples.astype(np.float32), grid, basis)
    assert np.isnan(found["c_comp_cor_00"]).all() and np.isnan(found["csf"]).all()
    assert np.isfinite(found["w_comp_cor_00"]).all()
