"""Grayordinates: small CIFTI-2 files of known series, through the door for delivered images."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from chain import make_place
from fakes import plant
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, LabelAxis, SeriesAxis

from brainlm.atlas import Atlas
from brainlm.cohort.layouts import LAYOUTS, look
from brainlm.cohort.recordings import Entry
from brainlm.config import Censor, Cohort, Preprocess
from brainlm.errors import BrainLMError, RecordingError
from brainlm.preprocess.delivered.volumes import take_volumes
from brainlm.preprocess.denoise.filter import clean
from brainlm.preprocess.parcellate.dense_labels import load_dense
from brainlm.preprocess.parcellate.parcel_means import load_labels

TR, COUNT, VERTICES, R = 2.0, 90, 40, 6
LEFT, RIGHT, THALAMUS = (f"CIFTI_STRUCTURE_{s}" for s in ("CORTEX_LEFT", "CORTEX_RIGHT",
                                                          "THALAMUS_LEFT"))  # fmt: skip
AFFINE = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
WALL = np.arange(30, VERTICES)  # of the left hemisphere: in the atlas, in no run
NAME = "sub-01_task-rest_space-fsLR_den-91k_bold.dtseries.nii"


def surface(vertices, structure: str, count: int = VERTICES) -> BrainModelAxis:
    return BrainModelAxis.from_surface(np.asarray(vertices), count, structure)


def voxels(mask: np.ndarray, affine=AFFINE) -> BrainModelAxis:
    return BrainModelAxis.from_mask(mask, THALAMUS, affine)


def cube(*places) -> np.ndarray:
    mask = np.zeros((6, 6, 6), bool)
    mask[tuple(np.array(places).T)] = True
    return mask


BOX = cube((1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1))


@pytest.fixture(scope="module")
def atlas(tmp_path_factory) -> Atlas:
    """Parcels 1-3 left, 4-5 right, 6 in the thalamus; a third of parcel 3 is medial wall."""
    left, right = np.repeat([1, 2, 3], [13, 12, 15]), np.repeat([4, 0, 5], [15, 10, 15])
    path = tmp_path_factory.mktemp("atlas") / "six.dlabel.nii"
    axis = surface(range(VERTICES), LEFT) + surface(range(VERTICES), RIGHT) + voxels(BOX)
    labels = np.r_[left, right, np.full(4, 6)].astype(np.float32)
    save_labels(path, axis, labels)
    names = tuple("abcdef")
    return Atlas("six", "fsLR", R, path, "ab" * 32, None, names, "", "")


def save_labels(path: Path, axis, labels) -> None:
    table = {k: (f"parcel {k}", (0, 0, 0, 1)) for k in range(R + 1)}
    nib.save(Cifti2Image(labels[None], (LabelAxis(["six"], [table]), axis)), path)


@pytest.fixture(scope="module")
def truth():
    """Parcels' series [T, R] around 1000."""
    walk = clean(np.random.default_rng(0).normal(size=(COUNT, R)), TR, high_pass_hz=0.01)
    return 1000 * (1 + 0.02 * walk)


def save_run(path: Path, truth, *, parcels=None, axis=None, change=None, step=TR, unit="SECOND"):
    """Grayordinates in another order than the atlas's: right, voxels, left without its wall."""
    if axis is None:
        kept = np.setdiff1d(np.arange(VERTICES), WALL)[::-1]
        axis = surface(range(VERTICES), RIGHT) + voxels(BOX) + surface(kept, LEFT)
        right, left = np.repeat([4, 0, 5], [15, 10, 15]), np.repeat([1, 2, 3], [13, 12, 15])
        parcels = np.r_[right, np.full(4, 6), left[kept]]
    series = np.column_stack([np.full(len(truth), 900.0), truth])[:, parcels]
    noise = np.random.default_rng(1).normal(size=series.shape)
    for parcel in np.unique(parcels):  # none in the mean of a parcel
        noise[:, parcels == parcel] -= noise[:, parcels == parcel].mean(1, keepdims=True)
    series = (series + noise).astype(np.float32)
    series = series if change is None else change(series)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(Cifti2Image(series, (SeriesAxis(0, step, len(series), unit), axis)), path)


def take(folder: Path, out: Path, atlas: Atlas, config=None, **cohort):
    config = config or Preprocess(sample_period_s=TR)
    place = make_place(out, atlas, config, folder=folder, layout="cifti", **cohort)
    (item,) = look(Cohort(name="c", folder=folder, layout="cifti", **cohort))[0]
    path = folder / item.source
    entry = Entry(item.recording_id, "sub-01", None, "rest", None, path, item.source, None,
                  item.size, item.mtime_ns, "0")  # fmt: skip
    figures = take_volumes(entry, place)
    with np.load(out / "series" / f"{item.recording_id}.npz") as stored:
        return figures, dict(stored)


def expected(truth, **more):
    return 100 * clean(truth, TR, high_pass_hz=0.008, **more) / truth.mean(0)


def test_grayordinates_are_matched_by_vertex_and_place(tmp_path, atlas, truth):
    save_run(tmp_path / "in/sub-01/func" / NAME, truth)
    little = Preprocess(sample_period_s=TR, min_coverage=0.2)
    figures, stored = take(tmp_path / "in", tmp_path, atlas, little, confounds="none")
    np.testing.assert_allclose(stored["series"], expected(truth), atol=2e-3)
    np.testing.assert_allclose(stored["coverage"], [1, 1, 1 / 3, 1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(stored["baseline"], truth.mean(0), rtol=1e-4)
    assert figures["repetition_time_s"] == TR and figures["parcels_with_data"] == R
    _, stored = take(tmp_path / "in", tmp_path / "b", atlas, confounds="none")
    assert np.isnan(stored["series"]).all(0).tolist() == [k == 2 for k in range(R)]
    said = json.loads(next(tmp_path.rglob("*_stat-coverage_bold.json")).read_text())
    assert said["Space"] == said["AtlasSpace"] == "fsLR"


def test_what_is_empty_is_not_covered(tmp_path, atlas, truth):
    def empty(series):
        series[:, :12] = 0  # of the 15 of parcel 4
        series[:, -1] = np.nan  # of the 13 of parcel 1
        return series

    save_run(tmp_path / "in/sub-01/func" / NAME, truth, change=empty)
    _, stored = take(tmp_path / "in", tmp_path, atlas, confounds="none")
    np.testing.assert_allclose(stored["coverage"], [12 / 13, 1, 1 / 3, 0.2, 1, 1], atol=1e-6)
    assert np.isnan(stored["series"][0]).tolist() == [False, False, True, True, False, False]


def test_confounds_and_censoring_are_as_of_images(tmp_path, atlas, truth):
    motion = np.random.default_rng(2).normal(size=(COUNT, 6)).cumsum(0) * 0.1
    displacement = np.where(np.arange(COUNT) % 20 == 7, 0.9, 0.1)

    def shake(series):
        return series + (20 * motion[:, :1] + 1e4 * (displacement > 0.5)[:, None])

    folder = tmp_path / "in/sub-01/func"
    save_run(folder / NAME, truth, change=lambda s: shake(s).astype(np.float32))
    names = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "framewise_displacement"]
    rows = [
        "\t".join(f"{v:.9g}" for v in [*m, d]) for m, d in zip(motion, displacement, strict=True)
    ]
    table = "\n".join(["\t".join(names), *rows]) + "\n"
    (folder / "sub-01_task-rest_desc-confounds_timeseries.tsv").write_text(table)
    config = Preprocess(sample_period_s=TR, censor=Censor(fd_mm=0.5))
    _, stored = take(tmp_path / "in", tmp_path, atlas, config, confounds="motion6")
    kept = displacement < 0.5
    assert np.array_equal(np.isnan(stored["series"]).all(1), ~kept)
    wanted = expected(truth, nuisance=motion, kept=kept)
    known = np.isfinite(stored["series"]).any(0)
    np.testing.assert_allclose(stored["series"][:, known], wanted[:, known], atol=0.05)


@pytest.mark.parametrize(
    ("change", "options", "status", "words"),
    [
        ({"unit": "HERTZ"}, {}, "unreadable", "expected seconds"),
        ({"change": lambda s: s - s.mean(0)}, {}, "bad_data", "residuals; deliver them with"),
        ({"step": 0.72}, {"repetition_time_s": 2.0}, "bad_metadata", "0.72"),
        ({"change": lambda s: s[:50]}, {}, "too_short", "100.0 s usable"),
        ({"change": lambda s: np.where(np.arange(COUNT)[:, None] == 4, np.nan, s)}, {},
         "bad_data", "NaN or infinite values at some time points"),
        ({"axis": surface(range(64), LEFT, 64), "parcels": np.arange(64) % R + 1}, {},
         "bad_metadata", "64 vertices, the atlas's has 40"),
        ({"axis": surface(range(30), LEFT) + voxels(BOX, AFFINE + 0.4 * np.eye(4, k=3)),
          "parcels": np.arange(34) % R + 1}, {}, "bad_metadata", "beside the atlas's"),
        ({"axis": surface(range(9), "CIFTI_STRUCTURE_CEREBELLUM"),
          "parcels": np.arange(9) % R + 1}, {}, "bad_data", "none of its grayordinates"),
    ],
)  # fmt: skip
def test_bad_grayordinates_say_why(tmp_path, atlas, truth, change, options, status, words):
    save_run(tmp_path / "in/sub-01/func" / NAME, truth, **change)
    with pytest.raises(RecordingError) as error:
        take(tmp_path / "in", tmp_path, atlas, **{"confounds": "none", **options})
    assert error.value.status == status and words in error.value.reason


def test_images_and_grayordinates_want_their_own_kind_of_atlas(tmp_path, atlas, truth):
    save_run(tmp_path / "in/sub-01/func" / NAME, truth)
    voxelwise = Atlas("v", "fsLR", R, tmp_path / "v.nii.gz", "cd" * 32, None, tuple("abcdef"),
                      "", "")  # fmt: skip
    with pytest.raises(RecordingError, match=r"grayordinates; atlas v has not a dlabel\.nii"):
        take(tmp_path / "in", tmp_path, voxelwise, confounds="none")
    with pytest.raises(BrainLMError, match=r"parcellates dtseries.nii only \(layout: cifti\)"):
        load_labels(atlas)


def test_an_atlas_of_other_labels_is_refused(tmp_path):
    path = tmp_path / "x.dlabel.nii"
    save_labels(path, surface(range(VERTICES), LEFT), np.arange(VERTICES, dtype=np.float32) % 4)
    atlas = Atlas("x", "fsLR", R, path, "ab" * 32, None, tuple("abcdef"), "", "")
    with pytest.raises(BrainLMError, match=r"expected labels 1\.\.6 of atlas x, found 3"):
        load_dense(atlas)
    path.write_bytes(b"no")
    other = Atlas("y", "fsLR", R, path, "ab" * 32, None, tuple("abcdef"), "", "")
    with pytest.raises(BrainLMError, match="not a readable CIFTI-2 label file"):
        load_dense(other)


def test_where_grayordinates_lie(tmp_path):
    plant(
        tmp_path / "bids", f"sub-01/func/{NAME}",
        "sub-01/func/sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz",
        "sub-01/func/sub-01_task-rest_desc-confounds_timeseries.tsv",
    )  # fmt: skip
    (found,), _ = look(Cohort(name="c", folder=tmp_path / "bids", layout="cifti"))
    assert found.recording_id == "sub-01_task-rest" and found.variant == "fsLR:den-91k"
    near = LAYOUTS["cifti"].companions(tmp_path / "bids" / found.source)
    assert near.space == "fsLR" and near.motion.name.endswith("timeseries.tsv")
    assert found.companions == ("sub-01/func/sub-01_task-rest_desc-confounds_timeseries.tsv",)

    run = "100307/MNINonLinear/Results/rfMRI_REST1_LR"
    ends = ("_Atlas", "_Atlas_MSMAll", "_Atlas_MSMAll_hp2000_clean")
    plant(tmp_path / "hcp", f"{run}/Movement_Regressors.txt", f"{run}/rfMRI_REST1_LR.nii.gz",
          *(f"{run}/rfMRI_REST1_LR{end}.dtseries.nii" for end in ends))  # fmt: skip
    with pytest.raises(BrainLMError, match="several forms"):
        look(Cohort(name="c", folder=tmp_path / "hcp", layout="cifti"))
    for space, name in (("fsLR:Atlas:MSMAll", ends[1]), ("fsLR:clean", ends[2])):
        (found,), _ = look(Cohort(name="c", folder=tmp_path / "hcp", layout="cifti", space=space))
        assert found.source == f"{run}/rfMRI_REST1_LR{name}.dtseries.nii"
        assert found.recording_id == "sub-100307_task-REST_dir-LR_run-1"
        near = LAYOUTS["cifti"].companions(tmp_path / "hcp" / found.source)
        assert near.motion.name == "Movement_Regressors.txt" and near.denoised == (
            space == "fsLR:clean"
        )
