"""Sampling equals an independent implementation, and leaves out what it cannot know."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from brainlm.preprocess.kernels.sampling import sample, sample_parcels, sample_smooth

AFFINE = np.array([[-2.0, 0.1, 0, 30], [0.1, 2.5, 0.2, -20], [0, -0.2, 3.0, -15], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def volumes():
    noise = np.random.default_rng(0).normal(size=(3, 11, 13, 17))
    return (1000 + 300 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def points(volumes):
    size = np.array(volumes.shape[:0:-1])
    index = np.random.default_rng(1).uniform(0, size - 1, (5000, 3))
    return index @ AFFINE[:3, :3].T + AFFINE[:3, 3]


def _transforms():
    transforms = np.repeat(np.eye(4)[None], 3, axis=0)
    transforms[1, :3, 3] = (0.7, -0.4, 0.3)
    turn = np.deg2rad(1)
    transforms[2, :2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    return transforms


def _index(points, transform):
    world = points @ transform[:3, :3].T + transform[:3, 3]
    return (world - AFFINE[:3, 3]) @ np.linalg.inv(AFFINE[:3, :3]).T


def _expected(volumes, points, transforms):
    return np.array(
        [
            ndimage.map_coordinates(
                v.astype(float), _index(points, t).T[::-1], order=3, mode="mirror"
            )
            for v, t in zip(volumes, transforms, strict=True)
        ]
    )


def test_equals_scipy_to_a_hundredth_of_a_grey_level(volumes, points):
    values = sample(volumes, AFFINE, points, _transforms())
    inside = np.isfinite(values)
    assert inside.mean() > 0.9
    assert np.abs(values - _expected(volumes, points, _transforms()))[inside].max() < 0.01


def test_is_nan_outside_the_field_of_view(volumes):
    size = np.array(volumes.shape[:0:-1])
    index = np.array([[-0.4, 2, 2], [-0.6, 2, 2], [2, 2, size[2] - 0.6], [2, 2, size[2] - 0.4]])
    values = sample(volumes, AFFINE, index @ AFFINE[:3, :3].T + AFFINE[:3, 3])
    assert np.isfinite(values).all(axis=0).tolist() == [True, False, True, False]


def test_a_gap_spoils_its_neighbours_only(volumes, points):
    broken = volumes.copy()
    broken[1, 5, 6, 7] = np.nan
    values = sample(broken, AFFINE, points)
    near = (np.abs(_index(points, np.eye(4)) - [7, 6, 5]) < 1).all(axis=1)
    assert near.any()
    np.testing.assert_array_equal(np.isnan(values[1]), near)
    assert np.isfinite(values[[0, 2]]).all()


def test_a_volume_of_nan_is_nan(volumes, points):
    broken = volumes.copy()
    broken[1] = np.nan
    assert np.isnan(sample(broken, AFFINE, points)[1]).all()
    series, coverage = sample_parcels(broken, AFFINE, points, np.ones(len(points), int), 1)
    assert np.isnan(series[:, 0]).tolist() == [False, True, False]
    assert coverage[0] == 1


def test_parcel_means_equal_means_of_samples(volumes, points):
    labels = np.random.default_rng(2).integers(0, 8, len(points))
    series, coverage = sample_parcels(volumes, AFFINE, points, labels, 9, _transforms())
    values = sample(volumes, AFFINE, points, _transforms()).astype(float)
    everywhere = np.isfinite(values).all(axis=0)
    for parcel in range(1, 8):
        mine = labels == parcel
        expected = values[:, mine & everywhere].mean(axis=1)
        np.testing.assert_allclose(series[:, parcel - 1], expected, rtol=1e-6)
        assert coverage[parcel - 1] == everywhere[mine].mean()
    assert np.isnan(series[:, 7:]).all()  # parcels 8 and 9 have no points
    assert np.isnan(coverage[7:]).all()


def test_a_parcel_outside_is_nan_with_coverage_zero(volumes):
    points = np.array([[500.0, 0, 0], [30, -20, -15]])
    series, coverage = sample_parcels(volumes, AFFINE, points, np.array([1, 2]), 2)
    assert np.isnan(series[:, 0]).all()
    assert coverage.tolist() == [0, 1]


def test_labels_beyond_the_parcels_are_refused(volumes, points):
    with pytest.raises(ValueError, match="labels must be"):
        sample_parcels(volumes, AFFINE, points, np.full(len(points), 4), 3)


def test_smooth_sampling_is_the_unfiltered_spline_sum(volumes, points):
    index = _index(points, np.eye(4)).T[::-1]
    inner = (np.abs(index - np.array(volumes.shape[1:])[:, None] / 2) < 3).all(axis=0)
    expected = ndimage.map_coordinates(volumes[0], index[:, inner], order=3, prefilter=False)
    np.testing.assert_allclose(
        sample_smooth(volumes, AFFINE, points)[0, inner], expected, rtol=1e-5
    )


def test_the_number_of_threads_changes_nothing(volumes, points, monkeypatch):
    import numba

    both = []
    for threads in (1, 2):
        monkeypatch.setattr(numba, "get_num_threads", lambda count=threads: count)
        both.append(sample(volumes, AFFINE, points))
    np.testing.assert_array_equal(*both)
