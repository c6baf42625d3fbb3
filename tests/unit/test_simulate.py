"""A simulated cohort is valid raw BIDS, reproducible, and is what its truth says."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import shutil
import zlib

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from brainlm.errors import BrainLMError
from brainlm.evaluation.fingerprint import identify_participants
from brainlm.simulate import (
    DAMAGE_KINDS,
    damage_file,
    load_truth,
    simulate_cohort,
    simulate_series,
)
from brainlm.simulate.activity import draw_patterns
from brainlm.simulate.anatomy import make_head, rotation, transform
from brainlm.simulate.dataset import draw_participant
from brainlm.simulate.demo_atlas import parcellate_template
from brainlm.simulate.signals import (
    BAND_HZ,
    NEURAL_SD,
    draw_individual,
    make_motion,
    make_parcel_series,
)

SHORT = {"duration_s": 60.0, "voxel_mm": 6.0}


def bold_path(folder, stem):
    parts = [part for part in stem.split("_") if part.startswith(("sub", "ses"))]
    return folder.joinpath(*parts) / "func" / f"{stem}_task-rest_bold.nii.gz"


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Three short subjects with two sessions and anatomy."""
    folder = tmp_path_factory.mktemp("cohort")
    simulate_cohort(folder, num_subjects=3, sessions=2, with_t1w=True, **SHORT)
    return folder


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """One subject at the default size."""
    folder = tmp_path_factory.mktemp("recording")
    simulate_cohort(folder, num_subjects=1, seed=5)
    return folder


# ---------------------------------------------------------------- the dataset


def test_file_names_are_valid_bids(cohort):
    from bidsschematools.validator import validate_bids

    paths = sorted(path for path in cohort.rglob("sub-*") if path.is_file())
    raw = [str(path) for path in paths if "sourcedata" not in path.parts]
    assert len(raw) == 3 * (2 * 2 + 2)
    result = validate_bids(raw, dummy_paths=True)
    assert not result["path_tracking"], result["path_tracking"]


def test_required_fields(cohort):
    description = json.loads((cohort / "dataset_description.json").read_text())
    assert {"Name", "BIDSVersion"} <= set(description)
    assert (cohort / "README").stat().st_size > 0
    sidecar = json.loads(
        bold_path(cohort, "sub-02_ses-1").with_suffix("").with_suffix(".json").read_text()
    )
    assert sidecar["RepetitionTime"] == 2.0
    assert sidecar["TaskName"] == "rest"
    with open(cohort / "participants.tsv", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert [row["participant_id"] for row in rows] == ["sub-01", "sub-02", "sub-03"]
    columns = json.loads((cohort / "participants.json").read_text())
    assert set(rows[0]) - {"participant_id"} == set(columns)


def test_images_state_orientation_units_and_time(recording):
    image = nibabel.load(bold_path(recording, "sub-01"))
    assert image.shape == (40, 48, 38, 120)
    assert image.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_allclose(image.header.get_zooms(), (4, 4, 4, 2))
    assert nibabel.aff2axcodes(image.affine) == ("L", "A", "S")
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
    assert image.header["sform_code"] == 1


def test_anatomy_and_function_share_a_world(cohort):
    """The T1w brain and the mean EPI brain lie at the same millimetres."""
    bold = nibabel.load(bold_path(cohort, "sub-01_ses-1"))
    t1w = nibabel.load(cohort / "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz")
    mean = np.asarray(bold.dataobj, dtype=np.float32).mean(axis=3)
    inside = np.argwhere(mean > 500)
    where = transform(np.linalg.inv(t1w.affine) @ bold.affine, inside).T
    values = ndimage.map_coordinates(np.asarray(t1w.dataobj, dtype=np.float32), where, order=1)
    assert np.median(values) > 300
    assert np.mean(values > 100) > 0.95


# ---------------------------------------------------------------- reproducible


def test_same_seed_same_bytes_and_subjects_are_independent(cohort, tmp_path):
    """Subject 2 made alone, later, by a worker, equals subject 2 of three."""
    simulate_cohort(
        tmp_path, num_subjects=1, first_subject=2, sessions=2, with_t1w=True, workers=2, **SHORT
    )
    again = contents(tmp_path)
    whole = contents(cohort)
    assert len(again) > 8
    for path, content in again.items():
        if path.name != "participants.tsv":
            assert content == whole[path], path


def test_planted_conditions_add_their_patterns_and_nothing_else(cohort, tmp_path):
    simulate_cohort(tmp_path, num_subjects=1, sessions=2, with_t1w=True, conditions=2, **SHORT)
    stem = "sub-01_ses-1"
    assert (tmp_path / "sub-01/ses-1/func" / f"{stem}_task-blocks_bold.nii.gz").exists()
    events = tmp_path / "sub-01/ses-1/func" / f"{stem}_task-blocks_events.tsv"
    with open(events, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert {row["trial_type"] for row in rows} == {"condition1", "condition2"}
    rest, blocks = load_truth(cohort, stem), load_truth(tmp_path, stem)
    np.testing.assert_array_equal(rest.transforms, blocks.transforms)
    np.testing.assert_array_equal(rest.networks, blocks.networks)
    added = blocks.series - rest.series
    onset = float(rows[0]["onset"])
    times = 2.0 * np.arange(len(added))
    assert not added[times <= onset].any()
    pattern = draw_patterns(0, 2, 424)[int(rows[0]["trial_type"][-1]) - 1]
    answer = added[int((onset + 14) / 2)]  # the block lasts for 16 s, its answer peaks late in it
    assert np.corrcoef(answer, pattern)[0, 1] > 0.99
    assert 0.8 < answer.std() / (NEURAL_SD * pattern.std()) <= 1.01


def test_other_seed_other_participants(cohort, tmp_path):
    simulate_cohort(tmp_path, num_subjects=1, seed=1, sessions=2, **SHORT)
    path = bold_path(tmp_path, "sub-01_ses-1")
    assert path.read_bytes() != bold_path(cohort, "sub-01_ses-1").read_bytes()


def test_adding_subjects_leaves_the_others_alone(tmp_path):
    simulate_cohort(tmp_path, num_subjects=1, **SHORT)
    before = contents(tmp_path)
    simulate_cohort(tmp_path, num_subjects=1, first_subject=2, **SHORT)
    after = contents(tmp_path)
    for path, content in before.items():
        assert path.name == "participants.tsv" or after[path] == content
    rows = (tmp_path / "participants.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows] == ["participant_id", "sub-01", "sub-02"]


def test_progress_counts_every_subject(tmp_path):
    calls = []
    simulate_cohort(tmp_path, num_subjects=2, progress=lambda *call: calls.append(call), **SHORT)
    assert calls == [(1, 2), (2, 2)]


# ---------------------------------------------------------------- the truth


def read_parcels(folder, stem, *, with_motion=True):
    """Sample the raw volumes at the true places: what a perfect pipeline would read."""
    truth, atlas = load_truth(folder, stem), parcellate_template()
    image = nibabel.load(bold_path(folder, stem))
    volumes = np.asarray(image.dataobj).T.astype(np.float32)
    voxels = np.argwhere(atlas.labels > 0)[::4]  # 80 of each parcel's 316 voxels
    labels = atlas.labels[tuple(voxels.T)]
    head = truth.placement.to_head(transform(atlas.affine, voxels))
    to_voxel, still = np.linalg.inv(image.affine), np.eye(4)
    series = np.empty((len(volumes), 424))
    for t, volume in enumerate(volumes):
        move = truth.transforms[t] if with_motion else still
        where = transform(to_voxel @ move, head).T[::-1]
        values = ndimage.map_coordinates(volume, where, order=1, mode="nearest")
        series[t] = np.bincount(labels, values, 425)[1:] / np.bincount(labels)[1:]
    return series, truth


def remove(series, columns):
    return series - columns @ np.linalg.lstsq(columns, series, rcond=None)[0]


def correlate(first, second):
    first, second = (x - x.mean(axis=0) for x in (first, second))
    scale = np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
    return (first * second).sum(axis=0) / scale


def test_true_places_and_true_artefacts_give_the_true_series(recording):
    """Measured over six seeds: median 0.84-0.87, 5th percentile 0.75-0.80."""
    series, truth = read_parcels(recording, "sub-01")
    trend = np.vander(np.linspace(-1, 1, len(series)), 3)
    cleaned = remove(series, np.hstack([trend, truth.artefacts]))
    found = correlate(cleaned, truth.series)
    assert np.median(found) > 0.8
    assert np.percentile(found, 5) > 0.6
    still, _ = read_parcels(recording, "sub-01", with_motion=False)
    ignoring_motion = correlate(remove(still, np.hstack([trend, truth.artefacts])), truth.series)
    ignoring_artefacts = correlate(remove(series, trend), truth.series)
    assert np.median(ignoring_motion) < np.median(found)
    assert np.median(ignoring_artefacts) < np.median(found) - 0.1


def test_volumes_moved_back_look_alike(recording):
    """transforms[t] leads from the reference to volume t: undoing it removes most differences."""
    truth = load_truth(recording, "sub-01")
    image = nibabel.load(bold_path(recording, "sub-01"))
    volumes = np.asarray(image.dataobj).T.astype(np.float32)
    np.testing.assert_allclose(truth.transforms[0], np.eye(4), atol=1e-12)
    corners = np.array([[x, y, z] for x in (-60, 60) for y in (-70, 70) for z in (-40, 60.0)])
    moved = [np.linalg.norm(transform(m, corners) - corners, axis=1).mean() for m in
             truth.transforms]  # fmt: skip
    far = int(np.argmax(moved))
    assert 0.5 < moved[far] < 4
    grid = np.argwhere(volumes[0] > 500)
    to_voxel = np.linalg.inv(image.affine)
    world = transform(image.affine, grid[:, ::-1])

    def difference(move):
        where = transform(to_voxel @ move, world).T[::-1]
        return np.std(ndimage.map_coordinates(volumes[far], where, order=1) - volumes[0][*grid.T])

    assert difference(truth.transforms[far]) < difference(np.eye(4))
    assert difference(truth.transforms[far]) < difference(np.linalg.inv(truth.transforms[far]))


def test_noise_is_as_stated(tmp_path):
    """In white matter, away from every source, the tSNR is near the stated one."""
    simulate_cohort(tmp_path, num_subjects=1, tsnr=40, duration_s=120, voxel_mm=6.0)
    truth = load_truth(tmp_path, "sub-01")
    data = np.asarray(nibabel.load(bold_path(tmp_path, "sub-01")).dataobj).T.astype(np.float32)
    air = data[:, :, :3, :3]  # a corner of every slice
    np.testing.assert_allclose(air.mean(), 1000 / 40 * np.sqrt(np.pi / 2), rtol=0.05)
    quiet = np.abs(truth.artefact_maps[:3].astype(float)).max(axis=0) < 0.004
    brain = quiet & (data.mean(axis=0) > 700)
    fast = np.diff(data, axis=0)[:, brain].std(axis=0) / np.sqrt(2)
    assert brain.sum() > 200
    assert 0.95 < np.median(fast) / (1000 / 40) < 1.3


def test_placement_and_its_inverse_agree():
    head = make_head(np.random.default_rng(0), 4.0)
    points = np.random.default_rng(1).uniform(-60, 60, (500, 3))
    back = head.placement.to_template(head.placement.to_head(points))
    np.testing.assert_allclose(back, points, atol=1e-3)
    voxel = np.array([[41, 30, 25]])  # x, y, z of the fine grid
    direct = head.placement.to_template(transform(head.fine_affine, voxel))[0]
    template = parcellate_template().affine
    np.testing.assert_allclose(
        transform(template, head.where[:, 25, 30, 41][None])[0], direct, atol=1e-3
    )


def test_rotation_is_right_handed():
    turned = rotation(np.deg2rad([0, 0, 90])) @ [1, 0, 0]
    np.testing.assert_allclose(turned, [0, 1, 0], atol=1e-12)
    matrices = rotation(np.random.default_rng(0).normal(size=(5, 3)))
    np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1), np.eye(3)[None] + 0 *
                               matrices, atol=1e-12)  # fmt: skip
    np.testing.assert_allclose(np.linalg.det(matrices), 1)


def test_motion_is_rigid_and_of_a_likely_size():
    sizes = []
    times = np.arange(120) * 2.0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        motion = make_motion(rng, times, rng.standard_normal(120), np.array([0, -20, -60.0]))
        np.testing.assert_allclose(np.linalg.det(motion[:, :3, :3]), 1)
        corners = np.array([[x, 0, z] for x in (-60, 60) for z in (-40, 60.0)])
        moved = [np.linalg.norm(transform(m, corners) - corners, axis=1).mean() for m in motion]
        sizes.append(max(moved))
    assert 0.5 < np.median(sizes) < 2.5
    assert max(sizes) < 8


def draw_series(count, age=None):
    times, networks = np.arange(120) * 2.0, parcellate_template().networks
    for number in range(count):
        subject = draw_participant(0, number)
        rng = np.random.default_rng([0, number])
        individual = draw_individual(rng, subject.age if age is None else age)
        yield subject, individual.coupling, *make_parcel_series(rng, times, networks, individual)


def test_series_stay_in_their_band_and_networks_are_coupled_as_stated():
    _, coupling, courses, series = next(draw_series(1))
    power = np.abs(np.fft.rfft(series * np.hanning(120)[:, None], axis=0)) ** 2
    hertz = np.fft.rfftfreq(120, 2.0)
    inside = (hertz > BAND_HZ[0] - 0.01) & (hertz < BAND_HZ[1] + 0.01)
    assert power[inside].sum() / power.sum() > 0.99
    np.testing.assert_allclose(np.corrcoef(courses.T), coupling, atol=0.02)
    within = np.corrcoef(series.T)
    same = np.equal.outer(*[parcellate_template().networks] * 2) & ~np.eye(424, dtype=bool)
    assert within[same].mean() > within[~same].mean() + 0.2


def test_masked_patches_are_predictable_from_the_past():
    """A course's next ten seconds follow from the last forty far better than chance."""
    _, _, courses, _ = next(draw_series(1))
    rows = np.array([courses[t : t + 20].T for t in range(95)])  # [time, network, 20 volumes]
    target = courses[25:120]
    train, test = slice(0, 60), slice(65, 95)
    for network in (0, 6):
        fit = np.linalg.lstsq(rows[train, network], target[train, network], rcond=None)[0]
        assert correlate(rows[test, network] @ fit, target[test, network]) > 0.3


def test_age_can_be_read_from_connectivity():
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import cross_val_predict

    upper = np.triu_indices(142, 1)
    ages, features = [], []
    for subject, _, _, series in draw_series(50):
        ages.append(subject.age)
        features.append(np.arctanh(np.corrcoef(series[:, ::3].T)[upper] * 0.999))
    ages, features = np.array(ages), np.array(features)
    predicted = cross_val_predict(RidgeCV(10.0 ** np.arange(2, 8)), features, ages, cv=5)
    assert np.corrcoef(predicted, ages)[0, 1] > 0.6
    shuffled = np.random.default_rng(0).permutation(ages)
    chance = cross_val_predict(RidgeCV(10.0 ** np.arange(2, 8)), features, shuffled, cv=5)
    assert abs(np.corrcoef(chance, shuffled)[0, 1]) < 0.5


def test_participants_are_told_apart_by_another_run():
    """By connectivity, in two noisy minutes, by more than networks and age."""
    times, networks = np.arange(55) * 2.0, parcellate_template().networks
    upper = np.triu_indices(142, 1)

    def identify(patterns: float) -> float:
        runs = [[], []]
        for number in range(20):
            rng = np.random.default_rng([0, number])
            own = draw_individual(rng, draw_participant(0, number).age)
            own = dataclasses.replace(own, patterns=patterns * own.patterns)
            for run in runs:
                _, series = make_parcel_series(rng, times, networks, own)
                series = series / series.std(0) + rng.standard_normal(series.shape)
                run.append(np.corrcoef(series[:, ::3].T)[upper])
        alike = np.corrcoef(*runs)[:20, 20:]
        return (alike.argmax(1) == np.arange(20)).mean()

    assert identify(0.0) < 0.5 < 0.6 < identify(1.0)


def test_ages_spread_evenly_even_over_few_participants():
    ages = np.sort([draw_participant(0, number).age for number in range(1, 9)])
    assert ages.min() >= 20
    assert ages.max() <= 80
    assert np.diff(ages).max() < 15


def test_a_cohort_of_series_holds_the_same_participants_without_the_scanner(tmp_path):
    simulate_series(tmp_path / "series", num_subjects=2, seed=3, first_subject=4, duration_s=120)
    simulate_cohort(tmp_path / "images", num_subjects=1, seed=3, first_subject=4, **SHORT)
    tables = [(tmp_path / name / "participants.tsv").read_text().splitlines()
              for name in ("series", "images")]  # fmt: skip
    assert tables[0][:2] == tables[1] and len(tables[0]) == 3
    paths = sorted((tmp_path / "series").rglob("*.npy"))
    assert [path.parts[-3] for path in paths] == ["sub-04", "sub-05"]
    first, second = (np.load(path) for path in paths)
    assert first.shape == (60, 424) and first.dtype == np.float32
    np.testing.assert_allclose(first.mean(0), 0, atol=0.02)  # percent of the mean, about it
    assert 0.4 < np.median(first.std(0)) < 0.65
    assert abs(np.median(correlate(first, second))) < 0.15
    simulate_series(tmp_path / "more", num_subjects=1, seed=3, first_subject=5, duration_s=120)
    np.testing.assert_array_equal(np.load(next((tmp_path / "more").rglob("*.npy"))), second)
    assert json.loads(paths[0].with_suffix(".json").read_text())["RepetitionTime"] == 2


def test_connectivity_tells_participants_apart(tmp_path):
    """As it does in real cohorts, from minutes of one recording to other minutes of it."""
    simulate_series(tmp_path, num_subjects=20, seed=5)
    series = [np.load(path) for path in sorted(tmp_path.rglob("*.npy"))]
    pairs = np.triu_indices(424, 1)
    ends = [[np.corrcoef(end.T)[pairs] for end in (one[:60], one[60:])] for one in series]
    assert identify_participants(np.array(ends)).mean() > 0.7


# ---------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact")
    simulate_cohort(folder, num_subjects=1, **SHORT)
    return bold_path(folder, "sub-01").parent


@pytest.fixture
def victim(intact, tmp_path):
    folder = shutil.copytree(intact, tmp_path / "func")
    return folder / "sub-01_task-rest_bold.nii.gz"


def read_sidecar(path):
    return json.loads(path.with_suffix("").with_suffix(".json").read_text())


@pytest.mark.parametrize("kind", DAMAGE_KINDS)
def test_damage_changes_the_recording_and_nothing_else(victim, kind):
    names = sorted(path.name for path in victim.parent.iterdir())
    before = contents(victim.parent)
    damage_file(victim, kind)
    assert sorted(path.name for path in victim.parent.iterdir()) == names
    assert contents(victim.parent) != before


def test_truncated_ends_early_and_corrupt_fails_its_checksum(victim):
    whole = victim.read_bytes()
    damage_file(victim, "corrupt")
    assert len(victim.read_bytes()) == len(whole)
    with pytest.raises((zlib.error, gzip.BadGzipFile)):
        gzip.decompress(victim.read_bytes())
    victim.write_bytes(whole)
    damage_file(victim, "truncated")
    with pytest.raises(EOFError):
        gzip.decompress(victim.read_bytes())


def test_volumes_that_are_missing_or_bad(victim, intact):
    original = np.asarray(nibabel.load(intact / victim.name).dataobj)
    shapes = {"one_volume": 1, "short": 10}
    for kind, count in shapes.items():
        shutil.copy(intact / victim.name, victim)
        damage_file(victim, kind)
        data = np.asarray(nibabel.load(victim).dataobj)
        assert data.shape == (*original.shape[:3], count)
        np.testing.assert_array_equal(data, original[..., :count])
    shutil.copy(intact / victim.name, victim)
    damage_file(victim, "three_d")
    assert nibabel.load(victim).shape == original.shape[:3]
    shutil.copy(intact / victim.name, victim)
    damage_file(victim, "nan_volume")
    lost = np.isnan(nibabel.load(victim).get_fdata()).all(axis=(0, 1, 2))
    assert lost.sum() == 1
    assert not np.isnan(nibabel.load(victim).get_fdata()[..., ~lost]).any()
    shutil.copy(intact / victim.name, victim)
    damage_file(victim, "empty")
    assert not np.asarray(nibabel.load(victim).dataobj).any()


def test_wrong_metadata(victim, intact):
    damage_file(victim, "wrong_tr")
    assert read_sidecar(victim)["RepetitionTime"] == 2000
    assert nibabel.load(victim).header.get_zooms()[3] == 2
    shutil.copytree(intact, victim.parent, dirs_exist_ok=True)
    damage_file(victim, "no_tr")
    assert "RepetitionTime" not in read_sidecar(victim)
    assert nibabel.load(victim).header.get_zooms()[3] == 0
    shutil.copytree(intact, victim.parent, dirs_exist_ok=True)
    damage_file(victim, "missing_sform")
    header = nibabel.load(victim).header
    assert header["sform_code"] == header["qform_code"] == 0
    shutil.copytree(intact, victim.parent, dirs_exist_ok=True)
    damage_file(victim, "not_json")
    with pytest.raises(json.JSONDecodeError):
        read_sidecar(victim)


def test_damage_works_on_uncompressed_files_and_without_a_sidecar(victim):
    plain = victim.with_name("plain.nii")
    plain.write_bytes(gzip.decompress(victim.read_bytes()))
    damage_file(plain, "wrong_tr")
    assert nibabel.load(plain).header.get_zooms()[3] == 2000
    damage_file(plain, "short")
    assert nibabel.load(plain).shape[3] == 10


def test_damage_is_given_per_subject(tmp_path):
    simulate_cohort(tmp_path, num_subjects=2, damage={"sub-02": "truncated"}, **SHORT)
    gzip.decompress(bold_path(tmp_path, "sub-01").read_bytes())
    with pytest.raises(EOFError):
        gzip.decompress(bold_path(tmp_path, "sub-02").read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"), [({"09": "short"}, "no subject '09'"), ({"01": "melted"}, "melted")]
)
def test_impossible_damage_is_refused_before_anything_is_written(tmp_path, damage, message):
    with pytest.raises(BrainLMError, match=message):
        simulate_cohort(tmp_path / "new", num_subjects=1, damage=damage, **SHORT)
    assert not (tmp_path / "new").exists()
    with pytest.raises(BrainLMError, match="melted"):
        damage_file(tmp_path / "x.nii.gz", "melted")


def test_too_few_volumes_are_refused(tmp_path):
    with pytest.raises(BrainLMError, match="at least 20"):
        simulate_cohort(tmp_path / "new", num_subjects=1, duration_s=10)
