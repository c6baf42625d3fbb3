"""Atlas images are checked; means equal nilearn's; too little data is NaN, never 0."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from nilearn.maskers import NiftiLabelsMasker

from brainlm.atlas import Atlas
from brainlm.errors import BrainLMError, RecordingError
from brainlm.preprocess.parcellate.parcel_means import (
    load_labels,
    parcel_points,
    parcellate_volumes,
    to_percent,
)

AFFINE = np.array([[-8.0, 0, 0, 72], [0, 8, 0, -112], [0, 0, 8, -56], [0, 0, 0, 1]])
SHAPE = (19, 23, 17)  # x, y, z


def make_labels(count: int = 30) -> np.ndarray:
    """[X, Y, Z]: a box of labelled voxels where a brain would be."""
    labels = np.zeros(SHAPE, np.float32)
    box = labels[2:-2, 3:-3, 2:-2]
    box[...] = 1 + np.arange(box.size).reshape(box.shape) * count // box.size
    return labels


def make_atlas(tmp_path, labels: np.ndarray, affine=AFFINE, count: int = 30) -> Atlas:
    path = tmp_path / "atlas.nii.gz"
    nib.save(nib.Nifti1Image(labels, affine), path)
    names = tuple(f"p{i}" for i in range(count))
    return Atlas("toy", "MNI152NLin6Asym", count, path, "0", None, names, "made here", "none")


def test_points_lie_where_the_image_says(tmp_path):
    labels = make_labels()
    atlas = make_atlas(tmp_path, labels)
    points, parcels = parcel_points(atlas)
    voxels = np.rint(points @ np.linalg.inv(AFFINE)[:3, :3].T + np.linalg.inv(AFFINE)[:3, 3])
    np.testing.assert_array_equal(labels[tuple(voxels.astype(int).T)], parcels)
    assert len(points) == (labels > 0).sum()
    assert set(parcels) == set(range(1, 31))


def bad_labels(kind: str) -> tuple[np.ndarray, np.ndarray]:
    labels, affine = make_labels(), AFFINE.copy()
    if kind == "missing":
        labels[labels == 12] = 0
    elif kind == "extra":
        labels[3, 3, 3] = 31
    elif kind == "fraction":
        labels[3, 3, 3] = 1.5
    elif kind == "nan":
        labels[3, 3, 3] = np.nan
    elif kind == "moved":
        affine[:3, 3] += 40
    elif kind == "oblique":
        affine[0, 1] = 1.0
    elif kind == "voxel units":
        affine = np.eye(4)
    elif kind == "4-D":
        labels = labels[..., None]
    return labels, affine


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", r"29: 1 missing \(12\)"),
        ("extra", r"1 unknown \(31\)"),
        ("fraction", "fractions"),
        ("nan", "fractions or NaN"),
        ("moved", "not the template's grid"),
        ("oblique", "oblique"),
        ("voxel units", "not the template's grid"),
        ("4-D", "4 dimensions"),
    ],
)
def test_refuses_an_atlas_that_is_not_what_it_should_be(tmp_path, kind, words):
    labels, affine = bad_labels(kind)
    with pytest.raises(BrainLMError, match=words):
        load_labels(make_atlas(tmp_path, labels, affine))


def test_refuses_an_atlas_without_an_image(tmp_path):
    atlas = replace(make_atlas(tmp_path, make_labels()), image=None)
    with pytest.raises(BrainLMError, match="time series only"):
        load_labels(atlas)


def test_real_atlas_and_the_one_with_a_missing_label(shared, tmp_path):
    atlas = make_atlas(tmp_path, make_labels(), count=424)
    whole = replace(atlas, image=shared / "atlases" / "A424+2mm.nii.gz")
    labels, affine = load_labels(whole)
    assert labels.shape == (91, 109, 91) and len(np.unique(labels)) == 425
    assert affine[0, 0] == -2
    with pytest.raises(BrainLMError, match="120"):
        load_labels(replace(atlas, image=shared / "atlases" / "A424.nii.gz"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_means_equal_nilearn(tmp_path, dtype):
    labels = make_labels()
    volumes = np.random.default_rng(0).normal(1000, 100, (*SHAPE, 7)).astype(dtype)
    found = parcellate_volumes(volumes.T, labels.T.astype(int), 30)
    image = nib.Nifti1Image(volumes, AFFINE)
    masker = NiftiLabelsMasker(
        nib.Nifti1Image(labels.astype(np.int32), AFFINE), keep_masked_labels=False
    )
    np.testing.assert_allclose(found, masker.fit_transform(image), rtol=1e-5)
    direct = [volumes[labels == k].mean(0, dtype=np.float64) for k in range(1, 31)]
    np.testing.assert_allclose(found, np.transpose(direct), rtol=1e-12)


def test_volumes_on_another_grid():
    with pytest.raises(BrainLMError, match="not on the atlas's grid"):
        parcellate_volumes(np.zeros((3, 4, 4, 4), np.float32), np.ones((4, 4, 5), int), 1)


def test_parcel_without_voxels_is_nan():
    labels = np.ones((4, 4, 4), int)
    found = parcellate_volumes(np.ones((3, 4, 4, 4), np.float32), labels, 2)
    assert (found[:, 0] == 1).all() and np.isnan(found[:, 1]).all()


def test_percent_of_the_mean_and_the_coverage_rule():
    rng = np.random.default_rng(0)
    series = 1000 * (1 + 0.01 * rng.normal(size=(100, 6)))
    series[:, 3] = np.nan  # no point in the field of view
    series[:, 4] = 3 + 0.01 * rng.normal(size=100)  # outside of a brain-masked image
    coverage = np.array([1.0, 0.5, 0.49, np.nan, 1.0, 0.9])
    cleaned = series - series.mean(0)
    percent, baseline, covered = to_percent(series, cleaned, coverage, 0.5)
    alive = np.array([True, True, False, False, False, True])
    np.testing.assert_array_equal(np.isfinite(percent).all(0), alive)
    np.testing.assert_array_equal(np.isfinite(baseline), alive)
    np.testing.assert_array_equal(np.isnan(percent).all(0), ~alive)
    np.testing.assert_allclose(covered, [1, 0.5, 0.49, 0, 0, 0.9])
    np.testing.assert_allclose(
        baseline[alive] * (1 + percent[:, alive] / 100), series[:, alive], rtol=1e-12
    )


def test_too_few_parcels_is_a_failed_recording():
    series = np.random.default_rng(0).normal(1000, 10, (50, 4))
    with pytest.raises(RecordingError) as caught:
        to_percent(series, series - series.mean(0), np.array([1, 0, 0, 0.1]), 0.5)
    assert caught.value.status == "parcellation_failed"
    assert "1 of 4" in caught.value.reason
