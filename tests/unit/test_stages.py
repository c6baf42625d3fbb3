"""The stages of one recording: a simulated one against its truth, then what can fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from chain import Chain, make_entry, make_place
from fakes import write_parcel_run
from scipy import stats
from threadpoolctl import threadpool_limits

from brainlm.atlas import load_atlas
from brainlm.cohort.recordings import Entry
from brainlm.config import Preprocess
from brainlm.errors import BrainLMError, RecordingError
from brainlm.files import read_json
from brainlm.preprocess.delivered.parcel_series import take_series
from brainlm.preprocess.denoise import ica
from brainlm.preprocess.denoise.confounds import read_nuisance, tissue_columns
from brainlm.preprocess.denoise.filter import clean
from brainlm.preprocess.io.derivatives import (
    derivative_path,
    read_table,
    read_transforms,
    read_volume,
    sidecar,
    write_table,
    write_transforms,
)
from brainlm.preprocess.io.read import read_bold
from brainlm.preprocess.quality import (
    QUALITY_POINTS,
    check_alternation,
    choose_lattice,
    count_non_steady,
    fd_connectivity,
    measure_dvars,
    measure_level,
    measure_tsnr,
)
from brainlm.preprocess.stages import denoise_stage
from brainlm.preprocess.stages.voxels import read_parcels, shift_slices

CONFIG = Preprocess()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As recordings are run; matrix products that share cores with other tests crawl."""
    with threadpool_limits(1, user_api="blas"):
        yield


def true_series(chain: Chain) -> np.ndarray:
    return clean(100 * chain.truth.series, 2.0, high_pass_hz=CONFIG.high_pass_hz)


def column_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)])


def test_series_file_holds_what_a_shard_needs(chain):
    stored = chain.series()
    assert stored["series"].shape == (239, 424) and stored["series"].dtype == np.float32
    assert stored["baseline"].shape == stored["coverage"].shape == (424,)
    scalars = ("tr_s", "sample_period_s", "duration_s", "mean_fd_mm", "mean_dvars", "tsnr")
    assert all(stored[name].shape == () and np.isfinite(stored[name]) for name in scalars)
    assert str(stored["units"]) == "percent"
    assert stored["tr_s"] == 2 and stored["sample_period_s"] == 1 and stored["duration_s"] == 240
    assert stored["start_s"] == 2 * chain.figures["motion"]["dropped_volumes"]
    dead = np.isnan(stored["baseline"])
    np.testing.assert_array_equal(np.isnan(stored["series"]).all(0), dead)
    np.testing.assert_array_equal(np.isnan(stored["series"]).any(0), dead)


def test_what_the_page_needs_is_kept(chain):
    """The tSNR map agrees with its figure; the series before denoising fits the one after."""
    image = nib.load(chain.paths.tsnr)
    values = np.asarray(image.dataobj)
    assert np.median(values[values > 0]) == pytest.approx(chain.figures["motion"]["tsnr"], abs=0.1)
    assert 5_000 < (values > 0).sum() <= QUALITY_POINTS
    mask, affine = read_volume(chain.paths.mask)
    voxels = nib.affines.apply_affine(
        np.linalg.inv(affine) @ image.affine, np.argwhere(values > 0)
    )
    assert (mask[tuple(np.rint(voxels).astype(int).T[::-1])] > 0).all()
    with np.load(chain.paths.filtered) as kept:
        before = kept["series"].astype(float)
    after = chain.series()["series"]
    assert before.shape == after.shape
    np.testing.assert_array_equal(np.isnan(before), np.isnan(after))
    kept = np.nansum(after**2) / np.nansum(before**2)
    assert kept == pytest.approx(chain.figures["parcellate"]["variance_kept"], abs=0.05)


def test_recovers_the_motion(chain):
    found = read_transforms(chain.paths.transforms)
    truth = chain.truth.transforms @ np.linalg.inv(
        chain.truth.transforms[chain.figures["motion"]["reference_volume"]]
    )
    # brain voxels, world mm
    mask, affine = read_volume(chain.paths.mask)
    points = np.argwhere(mask > 0)[::50, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    points = np.column_stack([points, np.ones(len(points))])
    error = np.einsum("tij,nj->tni", found - truth, points)[..., :3]
    assert np.sqrt((error**2).sum(-1).mean()) < 0.1


def test_recovers_the_series(chain):
    series = chain.series()["series"][::2]  # back to the volumes' times
    assert np.median(column_correlations(series, true_series(chain))) > 0.7


def test_denoising_recovers_connectivity_better_than_less(chain):
    """And keeps the networks: at most 5 % of their variance is removed with the artefacts."""
    raw, _ = read_parcels(read_bold(chain.entry.path), chain.paths, chain.atlas)
    percent, truth = 100 * raw / raw.mean(0), true_series(chain)
    pairs = np.triu_indices(424, 1)
    matrix = np.corrcoef(truth.T)[pairs]
    similarity = {}
    for option in ("none", "motion24", "ica"):
        model = read_nuisance(chain.paths, replace_option(option))
        cleaned = clean(percent, 2.0, high_pass_hz=0.008, **model)
        similarity[option] = np.corrcoef(np.corrcoef(cleaned.T)[pairs], matrix)[0, 1]
        kept = clean(truth, 2.0, high_pass_hz=0.008, **model)
        if option == "ica":
            assert (kept**2).sum() > 0.95 * (truth**2).sum()
    assert similarity["ica"] > max(similarity["none"], similarity["motion24"]) + 0.1
    assert similarity["ica"] > 0.8


def replace_option(option: str) -> Preprocess:
    return Preprocess(denoise=option)


def test_removes_the_planted_artefacts(chain):
    mixing = np.column_stack(list(read_table(chain.paths.mixing).values()))
    noise = read_table(chain.paths.metrics)["classification"] == "rejected"
    planted = clean(chain.truth.artefacts[:, :3], 2.0, high_pass_hz=CONFIG.high_pass_hz)
    rest = clean(planted, 2.0, high_pass_hz=CONFIG.high_pass_hz, nuisance=mixing[:, noise])
    assert (rest.var(0) < 0.1 * planted.var(0)).all()
    maps = np.asarray(nib.load(chain.paths.maps).dataobj)  # above threshold, one per component
    assert maps.shape[3] == mixing.shape[1] == len(noise)
    assert ((maps != 0).mean((0, 1, 2)) > 0).all() and (maps != 0).mean() < 0.5


def test_confounds_carry_the_usual_names(chain):
    confounds = read_table(chain.paths.confounds)
    wanted = {"trans_x", "rot_z_derivative1_power2", "framewise_displacement", "rmsd", "dvars"}
    wanted |= {"std_dvars", "csf", "white_matter", "global_signal", "cosine00"}
    assert wanted <= set(confounds)
    removed = [name for name in confounds if name.startswith("aroma_motion_")]
    assert len(removed) == chain.figures["denoise"]["num_removed"] > 0
    assert {len(column) for column in confounds.values()} == {120}
    assert np.isnan(confounds["framewise_displacement"][0])
    described = json.loads(sidecar(chain.paths.confounds).read_text())
    assert set(described) == set(confounds)
    assert all(item["Description"] for item in described.values())


def test_every_derivative_has_a_sidecar_and_the_dataset_a_description(chain):
    files = [p for p in chain.out.rglob("*") if p.is_file() and "sub-" in p.name]
    data = [p for p in files if p.suffix != ".json" and p.parent != chain.series_dir]
    assert [p.name for p in data if not sidecar(p).exists()] == []
    parameters = {
        path: json.loads(sidecar(path).read_text())["Parameters"]
        for path in (chain.paths.boldref, chain.paths.metrics, chain.paths.filtered)
    }
    assert parameters[chain.paths.boldref]["engine"] == "builtin"
    assert parameters[chain.paths.metrics]["HighFrequencyContent"] == 0.35
    assert parameters[chain.paths.filtered]["high_pass_hz"] == 0.008
    described = json.loads((chain.out / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative" and described["GeneratedBy"]
    assert described["SourceDatasets"] == [{"URL": chain.entry.path.parents[2].as_uri()}]
    words = read_table(chain.out / "descriptions.tsv")
    used = {desc for p in data for desc in re.findall(r"desc-[a-z]+", p.name)}
    assert used < set(words["desc_id"]) and len(words["description"]) == len(words["desc_id"])
    assert not list(chain.out.rglob("*.tmp*"))


def test_names_are_valid_bids_or_declared(chain):
    from fnmatch import fnmatch

    from bidsschematools import rules, schema

    standard = schema.load_schema()
    known = [
        rule["regex"]
        for group in standard.rules.files.deriv.values()
        for rule in rules.regexify_filename_rules(group, standard, level=1)
    ]
    declared = (chain.out / ".bidsignore").read_text().split()
    names = [str(p.relative_to(chain.out)) for p in chain.out.glob("sub-*/**/*") if p.is_file()]
    valid = [n for n in names if any(re.fullmatch(rule, n) for rule in known)]
    assert len(valid) >= 2  # the mask and its sidecar
    odd = [n for n in names if n not in valid and not any(fnmatch(n, d) for d in declared)]
    assert odd == []


AGAIN = """
import sys
from pathlib import Path

from chain import open_chain

from brainlm.preprocess.motion.compile import compile_kernels
from brainlm.preprocess.kernels import spline


def compiled():
    return {k: len(f.signatures) for k, f in vars(spline).items() if hasattr(f, "signatures")}


compile_kernels()
before = compiled()
again = open_chain(Path(sys.argv[1])).at(Path(sys.argv[2]))
again.run("motion", "normalise", "denoise", "parcellate")
assert compiled() == before, "a kernel that the installation did not compile"
"""


def test_same_input_same_bytes(chain, tmp_path):
    """In another process, and with the kernels that an installation compiles and no others."""
    again = chain.at(tmp_path / "again")
    tests = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, chain.out.parent, again.out], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{tests}:{os.environ.get('PYTHONPATH', '')}"},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert again.hashes() == chain.hashes()


def test_stages_can_be_rerun_alone_and_leave_nothing_stale(chain, tmp_path):
    shutil.copytree(chain.out, tmp_path / "out")
    other = chain.at(tmp_path / "out")
    other.run("denoise", config=Preprocess(denoise="motion24"))
    assert not other.paths.mixing.exists() and not other.paths.metrics.exists()
    assert not any(n.startswith("aroma") for n in read_table(other.paths.confounds))
    other.run("denoise")
    assert other.hashes() == chain.hashes()


def test_a_tissue_outside_the_field_of_view_is_a_warning(chain, tmp_path, monkeypatch):
    def measure(samples, grid, basis):
        samples = samples.copy()
        samples[:, grid.csf] = np.nan
        return tissue_columns(samples, grid, basis)

    shutil.copytree(chain.out, tmp_path / "out")
    other = chain.at(tmp_path / "out")
    wanted = Preprocess(denoise=("motion6", "wm-csf"))
    assert "warnings" not in other.run("denoise", config=wanted)
    monkeypatch.setattr(denoise_stage, "tissue_columns", measure)
    (warning,) = other.run("denoise", config=wanted)["warnings"]
    assert warning == "denoise: csf not removed, the tissue is outside the field of view"
    nuisance = read_nuisance(other.paths, wanted)["nuisance"]
    assert nuisance.shape[1] == 7 and np.isfinite(nuisance).all()


def test_artefacts_in_censored_volumes_change_nothing_that_is_written(chain, tmp_path):
    """The raw images of volumes that moved are replaced by noise, after the fits were made."""
    shutil.copytree(chain.out, tmp_path / "a")
    shutil.copytree(chain.out, tmp_path / "b")
    moved = read_table(chain.paths.confounds)["framewise_displacement"]
    limit = float(np.nanpercentile(moved, 85))
    gone = moved > limit
    config = Preprocess(censor={"fd_mm": limit}, outputs=("timeseries", "volumes"))

    def spoil(data):
        data[..., gone] = np.random.default_rng(0).uniform(0, 3e4, (*data.shape[:3], gone.sum()))
        return data

    clear = chain.at(tmp_path / "a")
    figures = clear.run("parcellate", config=config)
    spoilt = with_data(chain, tmp_path, spoil).at(tmp_path / "b")
    assert spoilt.run("parcellate", config=config).keys() == figures.keys()
    assert clear.hashes() == spoilt.hashes()
    share = f"({gone.mean():.1%}), framewise displacement above {limit:g} mm"
    assert figures["warnings"] == [f"censored: {gone.sum()} of {len(gone)} volumes {share}"]
    series, before = clear.series()["series"], chain.series()["series"]
    missing = np.isnan(series).all(1)
    assert figures["censored_share"] == missing.mean() and 0.1 < missing.mean() < 0.3
    known = np.isfinite(before).all(0)
    pairs = zip(series[~missing][:, known].T, before[~missing][:, known].T, strict=True)
    assert np.median([np.corrcoef(*pair)[0, 1] for pair in pairs]) > 0.95
    assert list(read_table(clear.paths.timeseries))[:1] == [chain.atlas.names[0]]
    listed = read_json(sidecar(clear.paths.volumes))["CensoredVolumes"]
    assert listed == np.flatnonzero(gone).tolist()
    image = np.asarray(nib.load(clear.paths.volumes).dataobj)
    assert (image[..., gone] == 0).all() and (image[..., ~gone] != 0).any((0, 1, 2)).all()
    short = config.model_copy(update={"min_duration_s": 230.0})
    with pytest.raises(RecordingError, match=r"are left, .* are censored") as error:
        clear.run("parcellate", config=short)
    assert error.value.status == "too_short" and error.value.figures["duration_s"] > 0


def test_an_ica_that_does_not_converge_is_a_warning(chain, tmp_path, monkeypatch):
    shutil.copytree(chain.out, tmp_path / "out")
    monkeypatch.setattr(ica, "MAX_ITERATIONS", 2)
    figures = chain.at(tmp_path / "out").run("denoise")
    assert figures["warnings"] == ["ICA: not converged after 2 iterations"]


@pytest.fixture(scope="module")
def with_outputs(chain, tmp_path_factory) -> Chain:
    out = tmp_path_factory.mktemp("outputs") / "out"
    shutil.copytree(chain.out, out)
    other = chain.at(out)
    every = ("timeseries", "volumes", "fsl-matrices")
    other.run("parcellate", config=Preprocess(outputs=every, sample_period_s=2.0))
    return other


def test_outputs_on_request(chain, with_outputs):
    """The volumes hold what the series hold: their parcel means are the denoised series."""
    from brainlm.preprocess.fsl import formats as fsl_formats
    from brainlm.preprocess.parcellate.parcel_means import parcel_points

    other = with_outputs
    stored = other.series()["series"]
    table = read_table(other.paths.timeseries)
    assert list(table) == list(chain.atlas.names)
    np.testing.assert_allclose(np.column_stack(list(table.values())), stored, rtol=1e-5)

    image = nib.load(other.paths.volumes)
    assert image.shape[3] == 120 and image.header.get_zooms()[3] == 2.0
    points, labels = parcel_points(chain.atlas)
    index = np.rint((points - image.affine[:3, 3]) / np.diag(image.affine)[:3]).astype(int)
    np.testing.assert_allclose(index * np.diag(image.affine)[:3] + image.affine[:3, 3], points)
    voxels = np.asarray(image.dataobj)[tuple(index.T)]
    for parcel in (1, 200, 424):
        inside = voxels[(labels == parcel) & (voxels > 0).all(1)].mean(0)
        percent = 100 * (inside / inside.mean() - 1)
        assert np.corrcoef(percent, stored[:, parcel - 1])[0, 1] > 0.999

    bold = read_bold(chain.entry.path)
    scaled = fsl_formats.world_to_scaled_mm(bold.affine, bold.volumes.shape)
    mats = fsl_formats.read_mats(sorted(other.paths.fsl_matrices.iterdir()))
    again = fsl_formats.to_transforms(mats, scaled)
    np.testing.assert_allclose(again, read_transforms(other.paths.transforms), atol=1e-6)


@pytest.mark.skipif(shutil.which("bids-validator-deno") is None, reason="no BIDS validator here")
def test_derivatives_pass_the_bids_validator(with_outputs, tmp_path):
    """Names that the standard lacks are in .bidsignore, which test_names_are... keeps honest."""
    shutil.copytree(
        with_outputs.out, tmp_path / "out", ignore=shutil.ignore_patterns("series"),
    )  # fmt: skip
    command = ["bids-validator-deno", "--format", "json", str(tmp_path / "out")]
    found = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    issues = [(i["severity"], i["code"], i.get("location")) for i in found["issues"]["issues"]]
    assert [issue for issue in issues if issue[0] == "error"] == []
    assert found["summary"]["totalFiles"] >= 5  # mask, denoised volumes and their sidecars


def test_outputs_that_are_no_longer_asked_for_go(chain, with_outputs, tmp_path):
    shutil.copytree(with_outputs.out, tmp_path / "out")
    other = chain.at(tmp_path / "out")
    other.run("parcellate")
    assert other.hashes() == chain.hashes()


def with_data(chain, folder: Path, change) -> Chain:
    """The chain of the recording after `change` of its data [X, Y, Z, T]."""
    image = nib.load(chain.entry.path)
    path = folder / "raw" / chain.entry.source
    path.parent.mkdir(parents=True)
    data = change(np.asarray(image.dataobj).astype(np.float32))
    nib.save(nib.Nifti1Image(data.astype(np.int16), image.affine, image.header), path)
    return chain.at(folder / "out", entry=replace(chain.entry, path=path))


def test_partial_field_of_view_is_nan_with_its_coverage(chain, tmp_path):
    cut = with_data(chain, tmp_path, lambda data: data[:, :, :-9])  # without the top of the head
    cut.run("motion")
    for path in (chain.paths.normalisation, sidecar(chain.paths.normalisation)):
        shutil.copy(path, cut.paths.normalisation.parent)  # the same head
    cut.run("denoise", "parcellate", config=Preprocess(denoise="none"))
    stored = cut.series()
    missing = stored["coverage"] < 0.5
    assert 20 < missing.sum() < 212
    np.testing.assert_array_equal(np.isnan(stored["series"]).all(0), missing)
    assert not (stored["series"] == 0).all(0).any()
    top = chain.atlas.coordinates[:, 2] > 62
    assert missing[top].all() and not missing[chain.atlas.coordinates[:, 2] < 20].any()


def test_a_brain_masked_run_is_taken_as_it_is(chain, tmp_path):
    """Grand mean 10,000 and two thirds of the voxels zero, as some archives deliver."""
    brain = nib.load(chain.paths.mask).get_fdata() > 0
    masked = with_data(chain, tmp_path, lambda data: data * brain[..., None] * (8000 / data.max()))
    figures = masked.run("motion")
    assert figures["brain_cc"] == pytest.approx(chain.figures["motion"]["brain_cc"], rel=0.05)
    assert figures["mean_fd_mm"] == pytest.approx(chain.figures["motion"]["mean_fd_mm"], rel=0.2)


def test_a_spinal_cord_is_no_brain(chain, tmp_path):
    def cord(data):
        across = np.indices(data.shape[:2]).T - (np.array(data.shape[:2]) - 1) / 2
        neck = np.hypot(*(across * 4).T)[..., None, None]
        inside = 300.0 * (neck < 55) + 600.0 * (neck < 8)
        noise = np.random.default_rng(0).normal(0, 10, (*data.shape[:3], 61))
        return np.abs(inside + noise)

    broken = with_data(chain, tmp_path, cord)
    with pytest.raises(RecordingError) as caught:
        broken.run("motion", "normalise")
    assert caught.value.status in ("bad_data", "motion_failed", "registration_failed")


def test_too_short_says_how_short(chain, tmp_path):
    with pytest.raises(RecordingError) as caught:
        chain.at(tmp_path).run("motion", config=Preprocess(min_duration_s=300))
    assert caught.value.status == "too_short"
    assert "240.0 s usable" in caught.value.reason and "300 s needed" in caught.value.reason
    assert caught.value.figures == {"repetition_time_s": 2.0, "duration_s": 240.0}


def test_a_stage_without_the_one_before_names_it(chain, tmp_path):
    bare = chain.at(tmp_path / "none")
    for stage in ("normalise", "denoise", "parcellate"):
        with pytest.raises(BrainLMError, match="not found; run the"):
            bare.run(stage)


def test_what_is_no_brain_fails(chain, tmp_path):
    def slab(data):
        data[:20], data[21:] = 0, 0  # 4 mm thick
        assert (data == 0).mean() > 0.97
        return data

    broken = with_data(chain, tmp_path, slab)
    with pytest.raises(RecordingError) as caught:
        broken.run("motion")
    assert caught.value.status in ("bad_data", "motion_failed")


def test_atlas_without_an_image_cannot_take_raw_recordings(chain, tmp_path):
    with pytest.raises(BrainLMError, match="time series only"):
        chain.at(tmp_path, atlas=replace(chain.atlas, space=None)).run("normalise")


# ---- parcel series


def take(entry: Entry, out: Path, atlas, **cohort) -> dict:
    return take_series(entry, make_place(out, atlas, CONFIG, layout="parcels", **cohort))


def write_series(folder: Path, series: np.ndarray, tr_s: float = 2.0) -> Entry:
    return make_entry(folder, write_parcel_run(folder, "sub-07_task-rest", series, tr_s=tr_s))


def test_parcel_series_are_resampled_and_otherwise_as_delivered(chain, tmp_path):
    series = 500 + np.random.default_rng(0).normal(size=(100, 424)).cumsum(0)
    series[:, 5], series[:, 6], series[:, 7] = 0, np.nan, 12.5
    entry = write_series(tmp_path, series)
    figures = take(entry, tmp_path / "out", chain.atlas)
    stored = np.load(tmp_path / "out/series" / f"{entry.recording_id}.npz")
    dead = np.isin(np.arange(424), [5, 6, 7])
    assert figures["parcels_with_data"] == 421 and str(stored["units"]) == "as delivered"
    assert stored["series"].shape == (199, 424)
    np.testing.assert_array_equal(np.isnan(stored["series"]).all(0), dead)
    np.testing.assert_array_equal(stored["coverage"], (~dead).astype(np.float32))
    mean = series[:, ~dead].mean(0)
    np.testing.assert_allclose(stored["series"][::2, ~dead], series[:, ~dead] - mean, atol=1e-4)
    np.testing.assert_allclose(stored["baseline"][~dead], mean, rtol=1e-6)
    assert np.isnan(stored["tsnr"]) and stored["duration_s"] == 200


def test_raw_means_become_percent_where_the_cohort_says_that_they_are(chain, tmp_path):
    series = 500 + np.random.default_rng(0).normal(size=(200, 424))
    entry = write_series(tmp_path, series, tr_s=CONFIG.sample_period_s)
    take(entry, tmp_path / "out", chain.atlas, units="scanner")
    stored = np.load(tmp_path / "out/series" / f"{entry.recording_id}.npz")
    assert str(stored["units"]) == "percent"
    wanted = 100 * (series / series.mean(0) - 1)
    np.testing.assert_allclose(stored["series"], wanted, atol=1e-4)
    np.testing.assert_allclose(stored["baseline"], series.mean(0), rtol=1e-6)
    series[:, 3] -= 500
    entry = write_series(tmp_path, series, tr_s=CONFIG.sample_period_s)
    with pytest.raises(RecordingError, match=r"1 parcels are not raw means \(parcel 4: mean"):
        take(entry, tmp_path / "out", chain.atlas, units="scanner")


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (
            lambda s: s[:, :200],
            "bad_data",
            "one per parcel of the atlas, found 200",
        ),
        (lambda s: s.T, "bad_data", "transposed"),
        (lambda s: s[:50], "too_short", "100.0 s usable (50 time points)"),
        (lambda s: np.where(np.arange(424) < 300, 0, s), "parcellation_failed", "300 of 424"),
        (
            lambda s: np.where((np.arange(100)[:, None] == 40) & (np.arange(424) < 9), np.nan, s),
            "bad_data",
            "first 40) in 9 parcels",
        ),
        (lambda s: np.where(np.arange(100)[:, None] == 40, np.inf, s), "bad_data", "first 40"),
        (lambda s: s[0], "unreadable", "[time, parcel]"),
        (lambda s: s.astype(complex), "unreadable", "complex128"),
    ],
)
def test_bad_parcel_series(chain, tmp_path, change, status, words):
    series = np.random.default_rng(0).normal(size=(100, 424))
    entry = write_series(tmp_path, change(series))
    with pytest.raises(RecordingError) as caught:
        take(entry, tmp_path / "out", chain.atlas)
    assert caught.value.status == status and words in caught.value.reason
    assert not list((tmp_path / "out").glob("*"))


def test_real_parcel_series(shared, tmp_path):
    atlas = load_atlas("cc200", tmp_path)
    root = shared / "data" / "abide_cc200"
    path = root / "sub-0050102/func/sub-0050102_task-rest_atlas-CC200_timeseries.npy"
    figures = take(make_entry(root, path), tmp_path, atlas)
    assert figures["num_timepoints"] == 308 and figures["duration_s"] == 309


# ---- pieces


def test_an_engine_that_is_not_there_is_not_replaced_in_silence(chain, tmp_path):
    with pytest.raises(BrainLMError, match="engine: fsl"):
        chain.at(tmp_path).run("motion", config=Preprocess(engine="fsl"))


def test_slices_are_moved_to_the_middle_of_the_volume():
    clock = np.arange(80) * 2.0
    starts = np.array([0, 1.0, 0.5, 1.5])
    wave = lambda t: 100 + np.sin(2 * np.pi * 0.04 * t)  # noqa: E731
    volumes = wave(clock[:, None] + starts)[:, :, None, None] * np.ones((1, 1, 3, 2))
    moved = shift_slices(volumes.astype(np.float32), 2.0, {"SliceTiming": list(starts)})
    expected = wave(clock + 0.75)[2:-2, None, None, None]
    np.testing.assert_allclose(moved[2:-2], np.broadcast_to(expected, (76, 4, 3, 2)), atol=2e-3)
    for bad in ([0, 1, 2], [0, 1, 2, 1900]):
        with pytest.raises(RecordingError, match="SliceTiming"):
            shift_slices(volumes.astype(np.float32), 2.0, {"SliceTiming": bad})


@pytest.mark.parametrize("extra", [[], [0.3], [0.3, 0.1, 0.03], [0.3] * 30])
def test_non_steady_volumes_are_counted(extra):
    rng = np.random.default_rng(0)
    volumes = np.full((100, 10, 10, 10), 1000.0, np.float32)
    volumes[:, :, :, :4] = 10
    volumes += 5 * rng.normal(size=volumes.shape).astype(np.float32)
    for t, rise in enumerate(extra):
        volumes[t] *= 1 + rise
    assert count_non_steady(measure_level(volumes)) == min(len(extra), 10)


@pytest.mark.parametrize(
    ("label", "count", "refused"),
    [(0.005, 60, True), (-0.02, 31, True), (0, 60, False), (0.02, 20, False), (0.0005, 60, False)],
)
def test_alternating_volumes_are_arterial_spin_labelling(label, count, refused):
    """With a drift and blocks of a task that light up the whole brain, and noise."""
    rng = np.random.default_rng(0)
    volumes = 1000 + 20 * rng.normal(size=(count, 10, 10, 10)).astype(np.float32)
    time = np.arange(count)
    gain = (1 - label * (time % 2)) * (1 + 0.02 * time / count) * (1 + 0.003 * (time // 8 % 2))
    volumes *= gain[:, None, None, None]
    volumes[:, :, :, :4] = 10
    if not refused:
        check_alternation(measure_level(volumes))
        return
    with pytest.raises(RecordingError, match="every second volume is brighter") as error:
        check_alternation(measure_level(volumes))
    assert error.value.status == "bad_data"


def test_dvars_follows_its_definition():
    rng = np.random.default_rng(1)
    series = (1000 + 10 * rng.normal(size=(200, 3000))).astype(np.float32)
    series[100:] += 20
    dvars, standardised = measure_dvars(series)
    expected = np.sqrt((np.diff(series, axis=0) ** 2).mean(1))
    assert np.isnan(dvars[0]) and np.isnan(standardised[0])
    np.testing.assert_allclose(dvars[1:], 100 * expected / np.median(series.mean(0)), rtol=1e-4)
    assert dvars[100] == np.nanmax(dvars)
    white = (1000 + 10 * rng.normal(size=(200, 3000))).astype(np.float32)
    assert np.nanmean(measure_dvars(white)[1]) == pytest.approx(1, abs=0.03)


def test_tsnr_of_known_noise():
    series = 1000 + 20 * np.random.default_rng(2).normal(size=(500, 400))
    assert np.median(measure_tsnr(series.astype(np.float32))) == pytest.approx(50, rel=0.02)
    series[:, 3] = 7  # a constant voxel has none
    assert np.flatnonzero(np.isnan(measure_tsnr(series))).tolist() == [3]


def test_a_lattice_is_as_isotropic_as_the_voxels_allow():
    mask, thick = np.ones((40, 80, 80), bool), np.diag([2.0, 2.0, 4.0, 1.0])
    assert choose_lattice(mask, thick, 10**6) == (1, 1, 1)
    assert choose_lattice(mask, thick, 64_000) == (1, 2, 2)
    z, y, x = choose_lattice(mask, thick, 20_000)
    assert mask[::z, ::y, ::x].sum() <= 20_000
    assert 0.5 <= z * 4 / (y * 2) <= 2 and 0.5 <= y / x <= 2


def test_connectivity_that_follows_motion_is_seen():
    rng = np.random.default_rng(2)
    motion = rng.gamma(2.0, 0.1, 300)
    series = rng.normal(size=(300, 40))
    assert fd_connectivity(series, motion) == pytest.approx(0.8 / np.sqrt(300), rel=0.15)
    burst = (motion > 0.4)[:, None] * rng.normal(size=(300, 1)) * 3
    assert fd_connectivity(series + burst, motion) > 0.3
    by_hand = np.corrcoef(stats.zscore(series[:, 0]) * stats.zscore(series[:, 1]), motion)[0, 1]
    assert fd_connectivity(series[:, :2], motion) == pytest.approx(abs(by_hand))
    assert np.isnan(fd_connectivity(series, np.zeros(300)))


def test_transforms_survive_the_file_exactly(tmp_path):
    rng = np.random.default_rng(3)
    transforms = np.tile(np.eye(4), (5, 1, 1))
    transforms[:, :3, :3] = np.linalg.qr(rng.normal(size=(5, 3, 3)))[0]
    transforms[:, :3, 3] = rng.normal(size=(5, 3))
    write_transforms(tmp_path / "x.txt", transforms)
    np.testing.assert_array_equal(read_transforms(tmp_path / "x.txt"), transforms)
    assert (tmp_path / "x.txt").read_text().startswith("#Insight Transform File V1.0")


def test_itk_reads_our_transforms(tmp_path):
    ants = pytest.importorskip("ants", reason="antspyx is a development dependency")
    turn = np.array([[0.8, -0.6, 0, 3], [0.6, 0.8, 0, -2], [0, 0, 1, 5], [0, 0, 0, 1.0]])
    write_transforms(tmp_path / "x.txt", turn[None])
    point = np.array([10.0, 20, 30])
    found = ants.read_transform(str(tmp_path / "x.txt")).apply_to_point([-10.0, -20, 30])
    np.testing.assert_allclose(np.array(found) * [-1, -1, 1], turn[:3, :3] @ point + turn[:3, 3])


def test_names_are_built_from_entities(tmp_path):
    path = derivative_path(
        tmp_path, "sub-01_ses-b_task-rest_run-2", "xfm", ".txt",
        {"desc": "hmc", "mode": "image", "from": "orig", "to": "boldref"},
    )  # fmt: skip
    name = "sub-01_ses-b_task-rest_run-2_from-orig_to-boldref_mode-image_desc-hmc_xfm.txt"
    assert path == tmp_path / "sub-01" / "ses-b" / "func" / name
    with pytest.raises(ValueError, match="unknown entities"):
        derivative_path(tmp_path, "sub-01", "x", ".txt", {"colour": "red"})


def test_tables_round_trip(tmp_path):
    write_table(tmp_path / "x.tsv", {"a": np.array([1.5, np.nan]), "b": np.array(["x", "y"])})
    assert (tmp_path / "x.tsv").read_text() == "a\tb\n1.5\tx\nn/a\ty\n"
    found = read_table(tmp_path / "x.tsv")
    np.testing.assert_array_equal(found["a"], [1.5, np.nan])
    assert list(found["b"]) == ["x", "y"]


def test_the_short_real_run(shared, tmp_path):
    root = shared / "data" / "bids_real"
    path = root / "sub-03/func/sub-03_task-faces_run-1_bold.nii.gz"
    entry = make_entry(root, path)
    atlas = load_atlas("a424", shared / "atlases", download=False)
    with pytest.raises(RecordingError, match=r"15\.0 s usable") as caught:
        Chain(entry, atlas, tmp_path).run("motion")
    assert caught.value.status == "too_short"
