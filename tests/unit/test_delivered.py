"""Images and series that somebody else preprocessed, against series that are known."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from chain import make_place

from brainlm.atlas import load_atlas
from brainlm.cohort.layouts import LAYOUTS
from brainlm.cohort.recordings import Entry
from brainlm.config import Censor, Preprocess
from brainlm.errors import RecordingError
from brainlm.preprocess.delivered.movement import read_movement
from brainlm.preprocess.delivered.parcel_series import take_series
from brainlm.preprocess.delivered.volumes import take_volumes
from brainlm.preprocess.denoise.filter import clean
from brainlm.preprocess.parcellate.parcel_means import load_labels

TR, COUNT = 2.0, 80
CONFIG = Preprocess(sample_period_s=TR)
RUN = "sub-01/func/sub-01_task-rest"


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """The demo atlas on every second voxel: small images, the same code."""
    folder = tmp_path_factory.mktemp("atlas")
    fine = load_atlas("demo424", folder)
    labels, affine = load_labels(fine)
    coarse = np.ascontiguousarray(labels[::2, ::2, ::2])
    nib.save(nib.Nifti1Image(coarse.T, affine @ np.diag([2, 2, 2, 1])), folder / "coarse.nii")
    return replace(fine, image=folder / "coarse.nii", image_sha256="coarse")


@pytest.fixture(scope="module")
def truth(atlas):
    """Parcel series [T, R] around 1000, and the image [T, Z, Y, X] that has them, with motion."""
    rng = np.random.default_rng(0)
    walk = clean(rng.normal(size=(COUNT, atlas.num_parcels)), TR, high_pass_hz=0.01)
    series = 1000 * (1 + 0.02 * walk)
    labels, affine = load_labels(atlas)
    with_outside = np.column_stack([np.zeros(COUNT), series]).astype(np.float32)
    return series, with_outside[:, labels], affine


@pytest.fixture(scope="module")
def motion():
    return np.random.default_rng(1).normal(size=(COUNT, 6)).cumsum(0) * [0.1] * 6


def save(path: Path, volumes: np.ndarray, affine: np.ndarray, tr_s: float = TR) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(volumes.T, affine)
    image.header.set_zooms((*image.header.get_zooms()[:3], tr_s))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)


def write_confounds(path: Path, motion: np.ndarray, **more) -> None:
    names = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]
    rows = ["\t".join([*names, *more])]
    for t, row in enumerate(motion):
        rows.append(
            "\t".join(f"{v:.9g}" for v in [*row, *(values[t] for values in more.values())])
        )
    path.write_text("\n".join(rows) + "\n")


def take(folder: Path, layout: str, atlas, out: Path, config=CONFIG, **cohort):
    place = make_place(out, atlas, config, folder=folder, layout=layout, **cohort)
    item = LAYOUTS[layout].find(folder, set())[0]
    path = folder / item.source
    entry = Entry(
        item.recording_id, f"sub-{item.entities['sub']}", None, "rest", None, path, item.source,
        None, item.size, item.mtime_ns, "0",
    )  # fmt: skip
    if LAYOUTS[layout].enters == "series":
        return take_series(entry, place), out
    figures = take_volumes(entry, place)
    with np.load(out / "series" / f"{item.recording_id}.npz") as stored:
        return figures, dict(stored)


def expected(series: np.ndarray) -> np.ndarray:
    return 100 * clean(series, TR, high_pass_hz=CONFIG.high_pass_hz) / series.mean(0)


def fmriprep(folder: Path, name: str = "MNI152NLin2009aSym_res-4") -> Path:
    return folder / f"{RUN}_space-{name}_desc-preproc_bold.nii"


def test_the_atlas_grid_gives_the_very_means(tmp_path, atlas, truth):
    series, volumes, affine = truth
    save(fmriprep(tmp_path / "in"), volumes, affine)
    figures, stored = take(tmp_path / "in", "fmriprep", atlas, tmp_path, confounds="none")
    np.testing.assert_allclose(stored["series"], expected(series), atol=2e-4)
    np.testing.assert_allclose(stored["baseline"], series.mean(0), rtol=1e-5)
    assert (stored["coverage"] == 1).all() and figures["parcels_with_data"] == 424
    assert figures["repetition_time_s"] == TR and np.isnan(figures["mean_fd_mm"])
    said = json.loads(next(tmp_path.rglob("*_stat-coverage_bold.json")).read_text())
    assert said["Space"] == said["AtlasSpace"] == "MNI152NLin2009aSym"
    assert said["ConfoundsRemoved"] == [] and not said["DenoisedBefore"]


def test_other_axes_and_a_larger_field_of_view_change_nothing(tmp_path, atlas, truth):
    series, volumes, affine = truth
    wide = np.pad(volumes, ((0, 0), (2, 1), (0, 3), (1, 1)))[..., ::-1]
    moved = affine @ np.array([[1, 0, 0, -1], [0, 1, 0, 0], [0, 0, 1, -2], [0, 0, 0, 1]])
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = wide.shape[-1] - 1
    save(fmriprep(tmp_path / "in"), np.ascontiguousarray(wide), moved @ flip)
    _, stored = take(tmp_path / "in", "fmriprep", atlas, tmp_path, confounds="none")
    np.testing.assert_allclose(stored["series"], expected(series), atol=2e-4)


def test_another_grid_is_read_at_the_atlas_voxels(tmp_path, atlas, truth):
    """Half a voxel away: splines, not nearest neighbours; each parcel follows its own series."""
    series, volumes, affine = truth
    moved = affine.copy()
    moved[:3, 3] += 0.5 * affine[:3, :3].sum(1)
    from scipy.ndimage import shift

    soft = np.stack([shift(volume, -0.5, order=1, mode="nearest") for volume in volumes])
    save(fmriprep(tmp_path / "in"), soft, moved)
    _, stored = take(tmp_path / "in", "fmriprep", atlas, tmp_path, confounds="none")
    wanted = expected(series)
    alive = np.isfinite(stored["series"]).all(0)
    r = [np.corrcoef(stored["series"][:, k], wanted[:, k])[0, 1] for k in np.flatnonzero(alive)]
    assert alive.mean() > 0.95 and np.median(r) > 0.95


def test_confounds_are_regressed_and_displacement_is_read(tmp_path, atlas, truth, motion):
    _, volumes, affine = truth
    shaken = volumes * (1 + 0.05 * motion[:, 0])[:, None, None, None].astype(np.float32)
    save(fmriprep(tmp_path / "in"), shaken, affine)
    displacement = np.r_[np.nan, np.full(COUNT - 1, 0.25)]
    write_confounds(
        tmp_path / "in" / f"{RUN}_desc-confounds_timeseries.tsv", motion,
        framewise_displacement=displacement,
    )  # fmt: skip
    table = tmp_path / "in" / f"{RUN}_desc-confounds_timeseries.tsv"
    table.write_text(table.read_text().replace("nan", "n/a"))
    figures, stored = take(tmp_path / "in", "fmriprep", atlas, tmp_path / "a")
    assert figures["mean_fd_mm"] == pytest.approx(0.25)
    _, kept = take(tmp_path / "in", "fmriprep", atlas, tmp_path / "b", confounds="none")
    trend = clean(motion[:, :1], TR, high_pass_hz=CONFIG.high_pass_hz)[:, 0]

    def share(values):
        return np.mean([np.corrcoef(column, trend)[0, 1] ** 2 for column in values["series"].T])

    assert share(kept) > 0.5 and share(stored) < 1e-6


def test_marked_volumes_are_dropped(tmp_path, atlas, truth, motion):
    _, volumes, affine = truth
    save(fmriprep(tmp_path / "in"), volumes, affine)
    marks = {
        f"non_steady_state_outlier{k:02d}": (np.arange(COUNT) == k).astype(float)
        for k in (0, 1, 2)
    }
    write_confounds(tmp_path / "in" / f"{RUN}_desc-confounds_timeseries.tsv", motion, **marks)
    figures, stored = take(tmp_path / "in", "fmriprep", atlas, tmp_path)
    assert figures["dropped_volumes"] == 3 and len(stored["series"]) == COUNT - 3
    assert stored["start_s"] == 3 * figures["repetition_time_s"]


def test_a_warp_is_followed_to_the_image(tmp_path, atlas, truth):
    """UK Biobank: the same voxels stored mirrored, one voxel further back, elsewhere in the
    world. In FSL's coordinates only the shift along y remains."""
    series, volumes, affine = truth
    native = np.roll(volumes, 1, axis=2)[..., ::-1]
    turn = np.array([[0.9, -0.1, 0, 3], [0.1, 0.9, 0, -7], [0, 0, 0.9, 11], [0, 0, 0, 1.0]])
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(0))
    ours = turn.copy()
    ours[:3, :3] = turn[:3, :3] / np.sqrt((turn[:3, :3] ** 2).sum(0)) * sizes * [-1, 1, 1]
    ica = tmp_path / "in/1000223_20227_2_0/fMRI/rfMRI.ica"
    save(ica / "filtered_func_data_clean.nii.gz", np.ascontiguousarray(native), ours)
    shape = volumes.shape[:0:-1]
    field = np.zeros((*shape, 3), np.float32)
    field[..., 1] = sizes[1]
    (ica / "reg").mkdir()
    nib.save(nib.Nifti1Image(field, affine), ica / "reg/example_func2standard_warp.nii.gz")
    (ica / "mc").mkdir()
    motion = np.zeros((COUNT, 6))
    motion[1::2, 3] = 0.5  # mm
    np.savetxt(ica / "mc/prefiltered_func_data_mcf.par", motion)
    accept = {"space": "MNI152NLin6Asym"}  # the demo atlas is not in FSL's template
    figures, stored = take(tmp_path / "in", "ukb", atlas, tmp_path, **accept)
    np.testing.assert_allclose(stored["series"], expected(series), atol=2e-3)
    assert figures["mean_fd_mm"] == pytest.approx(0.5)
    said = json.loads(next(tmp_path.rglob("*_stat-coverage_bold.json")).read_text())
    assert (said["Space"], said["AtlasSpace"]) == ("MNI152NLin6Asym", "MNI152NLin2009aSym")
    assert said["DenoisedBefore"] and said["ConfoundsRemoved"] == []
    (ica / "reg/example_func2standard_warp.nii.gz").unlink()
    with pytest.raises(RecordingError, match="no warp") as error:
        take(tmp_path / "in", "ukb", atlas, tmp_path, **accept)
    assert error.value.status == "bad_metadata"


@pytest.mark.parametrize(
    ("change", "options", "status", "words"),
    [
        ("space", {}, "bad_metadata", "in MNI152NLin2009cAsym, atlas demo424 in MNI152NLin2009aS"),
        ("", {"confounds": "motion24"}, "bad_metadata", "no motion parameters next to it"),
        ("rows", {"confounds": "motion24"}, "bad_metadata", "40 rows, the image has 80 volumes"),
        ("columns", {"confounds": "motion24"}, "bad_metadata", "no column rot_x"),
        ("centred", {}, "bad_data", "residuals around 0"),
        ("elsewhere", {}, "bad_data", "no image content"),
        ("nan", {}, "bad_data", "index 7"),
        ("empty", {}, "bad_data", "index 5"),
        ("held", {}, "bad_data", "3 of 80 time points repeat the one before in every parcel"),
        ("burst", {}, "bad_data", "explode: at time point 30"),
        ("units", {}, "bad_data", "percent (median), expected"),
        ("cut", {}, "unreadable", "ends early"),
        ("no tr", {}, "bad_metadata", "no repetition time"),
        ("short", {"config": Preprocess(min_duration_s=200)}, "too_short", "160.0 s usable"),
    ],
)
def test_bad_images_say_why(tmp_path, atlas, truth, motion, change, options, status, words):
    _, volumes, affine = truth
    volumes, affine = volumes.copy(), affine.copy()
    folder, name = tmp_path / "in", "MNI152NLin2009aSym"
    if change == "space":
        name = "MNI152NLin2009cAsym"
    elif change == "centred":
        volumes -= volumes.mean(0)
        volumes = np.where(volumes[:1] == 0, 0, -np.abs(volumes))
    elif change == "elsewhere":
        affine[2, 3] += 300
    elif change == "nan":
        volumes[7, 20:23, 20:23, 20:23] = np.nan
    elif change == "empty":
        volumes[5] = 0
    elif change == "held":
        volumes[41:44] = volumes[40]
    elif change == "burst":
        volumes[30] *= 40
    elif change == "units":
        volumes = volumes.mean(0) + 1e-3 * (volumes - volumes.mean(0))
    path = fmriprep(folder, name)
    save(path, volumes, affine, 0.0 if change == "no tr" else TR)
    table = folder / f"{RUN}_desc-confounds_timeseries.tsv"
    if change == "rows":
        write_confounds(table, motion[:40])
    elif change == "columns":
        write_confounds(table, motion)
        table.write_text(table.read_text().replace("rot_x", "other"))
    elif change == "cut":
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(RecordingError) as error:
        take(folder, "fmriprep", atlas, tmp_path, **{"confounds": "none", **options})
    assert error.value.status == status and words in error.value.reason


def test_xcpd_series_bring_their_displacement_and_no_gaps(tmp_path, atlas, truth):
    series, _, _ = truth
    path = tmp_path / "in" / f"{RUN}_space-MNI152NLin6Asym_seg-demo424_stat-mean_timeseries.tsv"
    path.parent.mkdir(parents=True)
    header = "\t".join(atlas.names)
    np.savetxt(path, series, delimiter="\t", header=header, comments="")
    path.with_suffix(".json").write_text('{"RepetitionTime": 2.0}')
    moved = path.parent / f"{path.parents[1].name}_task-rest_motion.tsv"
    moved.write_text("framewise_displacement\tx\n" + "0.1\t1\n" * COUNT)
    figures, _ = take(tmp_path / "in", "xcpd", atlas, tmp_path)
    assert figures["mean_fd_mm"] == pytest.approx(0.1) and figures["num_timepoints"] == COUNT
    moved.write_text("framewise_displacement\tx\n" + "0.1\t1\n" * (COUNT + 9))
    with pytest.raises(RecordingError, match="time has gaps"):
        take(tmp_path / "in", "xcpd", atlas, tmp_path)


def test_delivered_images_are_censored_by_their_displacement(tmp_path, atlas, truth, motion):
    series, volumes, affine = truth
    displacement = np.r_[np.nan, np.full(COUNT - 1, 0.25)]
    displacement[[20, 21, 50]] = 0.9
    kept = ~(displacement > 0.5)
    spoilt = volumes * np.where(kept, 1, 40).astype(np.float32)[:, None, None, None]
    save(fmriprep(tmp_path / "in"), spoilt, affine)
    table = tmp_path / "in" / f"{RUN}_desc-confounds_timeseries.tsv"
    write_confounds(table, motion, framewise_displacement=displacement)
    table.write_text(table.read_text().replace("nan", "n/a"))
    config = CONFIG.model_copy(update={"censor": Censor(fd_mm=0.5)})
    figures, stored = take(tmp_path / "in", "fmriprep", atlas, tmp_path, config, confounds="none")
    wanted = 100 * clean(series, TR, high_pass_hz=0.008, kept=kept) / series[kept].mean(0)
    np.testing.assert_allclose(stored["series"], wanted, atol=2e-3)
    assert figures["censored_share"] == 3 / COUNT
    assert figures["warnings"][-1].startswith("censored: 3 of 80 volumes (3.8%)")
    table.unlink()
    save(fmriprep(tmp_path / "in"), volumes, affine)
    figures, stored = take(
        tmp_path / "in", "fmriprep", atlas, tmp_path / "b",
        CONFIG.model_copy(update={"censor": Censor(fd_mm=9)}), confounds="none",
    )  # fmt: skip
    assert figures["warnings"][-1].startswith("not censored: no file")
    assert np.isfinite(stored["series"]).any(1).all()


def test_xcpd_time_is_censored_by_displacement_and_where_it_was_interpolated(
    tmp_path, atlas, truth
):
    series_table(tmp_path / "in", atlas, truth[0], "demo424")
    run = tmp_path / "in" / RUN
    moved = np.full(COUNT, 0.1)
    moved[[5, 6]] = 1.0
    rows = "\n".join(f"{value:g}" for value in moved)
    Path(f"{run}_motion.tsv").write_text(f"framewise_displacement\n{rows}\n")
    marks = "\n".join("1" if k in (6, 30) else "0" for k in range(COUNT))
    Path(f"{run}_outliers.tsv").write_text(f"framewise_displacement\n{marks}\n")
    config = CONFIG.model_copy(update={"censor": Censor(fd_mm=0.5)})
    figures, out = take(tmp_path / "in", "xcpd", atlas, tmp_path, config)
    with np.load(next((out / "series").glob("*.npz"))) as stored:
        gone = np.isnan(stored["series"]).all(1)
    assert np.flatnonzero(gone).tolist() == [5, 6, 30]
    assert figures["warnings"] == [
        "censored: 3 of 80 volumes (3.8%), framewise displacement above 0.5 mm"
    ]
    figures, _ = take(tmp_path / "in", "xcpd", atlas, tmp_path)
    assert figures["warnings"] == ["censored: 2 of 80 time points were interpolated"]
    with pytest.raises(RecordingError, match=r"154\.0 s of 160\.0 s are left, 4% are censored"):
        take(tmp_path / "in", "xcpd", atlas, tmp_path,
             config.model_copy(update={"min_duration_s": 155.0}))  # fmt: skip


def series_table(folder: Path, atlas, series, segmentation: str, names=()) -> None:
    name = f"{RUN}_space-MNI152NLin6Asym_seg-{segmentation}_stat-mean_timeseries.tsv"
    (folder / name).parent.mkdir(parents=True)
    header = "\t".join(names or atlas.names)
    np.savetxt(folder / name, series, delimiter="\t", header=header, comments="")
    (folder / name).with_suffix(".json").write_text('{"RepetitionTime": 2.0}')


def test_series_of_another_atlas_are_refused_unless_accepted(tmp_path, atlas, truth):
    series_table(tmp_path / "a", atlas, truth[0], "Schaefer424")
    with pytest.raises(RecordingError, match="of Schaefer424, the atlas is demo424") as error:
        take(tmp_path / "a", "xcpd", atlas, tmp_path)
    assert error.value.status == "bad_metadata"
    take(tmp_path / "a", "xcpd", atlas, tmp_path, segmentation="Schaefer424")

    areas = [f"{side}H_Vis_{k}" for side in "LR" for k in range(212)]
    series_table(tmp_path / "b", atlas, truth[0], "Demo424", areas)
    with pytest.raises(RecordingError, match="column 1 is LH_Vis_0, the atlas's parcel 1 is"):
        take(tmp_path / "b", "xcpd", atlas, tmp_path)
    take(tmp_path / "b", "xcpd", atlas, tmp_path, segmentation="Demo424")
    series_table(tmp_path / "d", atlas, truth[0], "demo424", [f"ROI_{k:03d}" for k in range(424)])
    take(tmp_path / "d", "xcpd", atlas, tmp_path)
    unnamed = replace(atlas, names=tuple(f"parcel-{k:03d}" for k in range(1, 425)))
    take(tmp_path / "b", "xcpd", unnamed, tmp_path)

    series_table(tmp_path / "c", atlas, truth[0], "demo424", atlas.names[::-1])
    with pytest.raises(RecordingError, match="in another order"):
        take(tmp_path / "c", "xcpd", atlas, tmp_path, segmentation="demo424")


def test_motion_files_of_other_programs(tmp_path):
    degrees = np.zeros((4, 12))
    degrees[2, 0], degrees[2, 5] = 1.0, 90.0  # mm, degrees
    np.savetxt(tmp_path / "Movement_Regressors.txt", degrees)
    hcp = read_movement(tmp_path / "Movement_Regressors.txt")
    arc = 50 * np.pi / 2
    np.testing.assert_allclose(hcp.displacement_mm[1:], [0, 1 + arc, 1 + arc])
    fsl = np.zeros((4, 6))
    fsl[2, 3], fsl[2, 2] = 1.0, np.pi / 2
    np.savetxt(tmp_path / "x.par", fsl)
    np.testing.assert_allclose(read_movement(tmp_path / "x.par").parameters, hcp.parameters)
    (tmp_path / "y.par").write_text("1 2 3\n")
    with pytest.raises(RecordingError, match="3 columns, not 6"):
        read_movement(tmp_path / "y.par")
