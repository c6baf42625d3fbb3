"""The FSL engine: conversions, command lines, stages; the real programs where they are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from chain import Chain, make_place
from scipy.spatial.transform import Rotation

from brainlm.cohort.index import update_index
from brainlm.config import Preprocess, parse_config
from brainlm.errors import BrainLMError, RecordingError
from brainlm.preprocess.chunk import run_stage
from brainlm.preprocess.fsl import commands, engine, formats
from brainlm.preprocess.io.derivatives import read_table, read_transforms, read_volume
from brainlm.preprocess.normalise.template import load_template
from brainlm.preprocess.normalise.warp import load_normalisation
from brainlm.preprocess.stages.context import Context
from brainlm.steps import STEPS, load

CONFIG = Preprocess(engine="fsl", min_duration_s=60, use_t1w=False)
BOTH = pytest.mark.parametrize("handedness", [-1, 1])


def change(**options) -> Preprocess:
    return CONFIG.model_copy(update=options)


def make_image(handedness: int, shape=(20, 24, 16), zooms=(3.0, 2.0, 4.0), tilt_deg=8.0):
    """An oblique, anisotropic image; handedness is the sign of its affine's determinant."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [tilt_deg, 3, -5], degrees=True).as_matrix()
    affine[:3, :3] *= np.array(zooms) * [handedness, 1, 1]
    affine[:3, 3] = (-30, 12, 7)
    return nib.Nifti1Image(np.zeros(shape, np.float32), affine)


def make_moves(count=12, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    moves = np.tile(np.eye(4), (count, 1, 1))
    moves[:, :3, :3] = Rotation.from_euler("xyz", rng.normal(0, 0.1, (count, 3))).as_matrix()
    moves[:, :3, 3] = rng.normal(0, 5, (count, 3))
    return moves


# ---- FSL's coordinates again, point by point, by what its guides say of them


def to_scaled(image, points):
    """World mm [N, 3] -> voxels, the first axis from its far end if so stored -> scaled mm."""
    voxels = nib.affines.apply_affine(np.linalg.inv(image.affine), points)
    if np.linalg.det(image.affine) > 0:
        voxels[:, 0] = image.shape[0] - 1 - voxels[:, 0]
    return voxels * image.header.get_zooms()[:3]


def fsl_matrix(source, reference, world):
    """The matrix that moves points as `world` (source world -> reference world) does."""
    points = np.random.default_rng(0).uniform(-80, 80, (20, 3))
    here = np.column_stack([to_scaled(source, points), np.ones(20)])
    there = to_scaled(reference, nib.affines.apply_affine(world, points))
    matrix = np.eye(4)
    matrix[:3] = np.linalg.lstsq(here, there, rcond=None)[0].T
    return matrix


def print_matrix(path: Path, matrix: np.ndarray) -> None:
    """With six decimals, as MCFLIRT prints."""
    path.write_text("".join("  ".join(f"{v:.6f}" for v in row) + "  \n" for row in matrix))


def scaled_of(image) -> np.ndarray:
    return formats.world_to_scaled_mm(image.affine, image.shape[::-1])


@BOTH
def test_a_shift_worked_out_by_hand(handedness):
    """A head 6 mm further right and 5 mm further forward is brought back by +6 and -5.

    FSL counts its first axis from right to left in either storage order.
    """
    affine = np.diag([3.0 * handedness, 3, 4, 1])
    mat, expected = np.eye(4), np.eye(4)
    mat[:2, 3], expected[:2, 3] = (6, -5), (6, 5)
    scaled = formats.world_to_scaled_mm(affine, (30, 64, 64))
    np.testing.assert_allclose(formats.to_transforms(mat[None], scaled), expected[None], atol=1e-9)


@BOTH
def test_printed_matrices_become_our_transforms_and_back(tmp_path, handedness):
    image, moves = make_image(handedness), make_moves()
    paths = [tmp_path / f"MAT_{t:04d}" for t in range(len(moves))]
    for path, move in zip(paths, moves, strict=True):
        print_matrix(path, fsl_matrix(image, image, np.linalg.inv(move)))
    mats = formats.read_mats(paths)
    found = formats.to_transforms(mats, scaled_of(image))
    points = np.random.default_rng(1).uniform(-80, 80, (50, 3))
    for mine, move in zip(found, moves, strict=True):
        true = nib.affines.apply_affine(move, points)
        np.testing.assert_allclose(nib.affines.apply_affine(mine, points), true, atol=1e-3)
    square = found[:, :3, :3] @ found[:, :3, :3].transpose(0, 2, 1)
    np.testing.assert_allclose(square, np.tile(np.eye(3), (len(moves), 1, 1)), atol=1e-12)
    np.testing.assert_allclose(formats.to_mats(found, scaled_of(image)), mats, atol=1e-3)


@pytest.mark.parametrize("source", [-1, 1])
@pytest.mark.parametrize("reference", [-1, 1])
@pytest.mark.parametrize("absolute", [False, True])
def test_matrices_and_warps_between_any_two_images(tmp_path, source, reference, absolute):
    moving = make_image(source)
    fixed = make_image(reference, shape=(30, 28, 26), zooms=(2.0, 2.0, 2.0), tilt_deg=-4.0)
    world = make_moves(1)[0] @ np.diag([1.1, 0.95, 1.02, 1])  # moving -> fixed
    matrix = fsl_matrix(moving, fixed, world)
    affine = formats.to_world(matrix, scaled_of(moving), scaled_of(fixed))
    np.testing.assert_allclose(affine, np.linalg.inv(world), atol=1e-5)

    points = nib.affines.apply_affine(fixed.affine, np.indices(fixed.shape).reshape(3, -1).T)
    bend = np.stack([np.sin(points[:, (i + 1) % 3] / 30 + i) for i in range(3)], axis=1)
    true = nib.affines.apply_affine(affine, points) + 3 * bend
    field = to_scaled(moving, true) - (0 if absolute else to_scaled(fixed, points))
    image = nib.Nifti1Image(field.reshape(*fixed.shape, 3).astype(np.float32), fixed.affine)
    image.header["intent_code"] = 2006 if absolute else 0  # fnirt --fout, convertwarp
    nib.save(image, tmp_path / "field.nii")
    fit = formats.load_warp(tmp_path / "field.nii", scaled_of(moving), affine, method="t1w")
    np.testing.assert_allclose(fit(points), true, atol=1e-3)
    assert fit.method == "t1w" and np.abs(fit.displacement).max() < 4
    image.header["intent_code"] = 2007  # FNIRT's coefficients
    nib.save(image, tmp_path / "cout.nii")
    with pytest.raises(ValueError, match="found coefficients"):
        formats.load_warp(tmp_path / "cout.nii", scaled_of(moving))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 0 0\n0 1 0\n0 0 1\n", "4 x 4"),
        ("1 0 0 0\n0 1 0 0\n0 0 nan 0\n0 0 0 1\n", "4 x 4"),
        ("1.2 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "stretches"),
        ("-1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "rigid"),
    ],
)
def test_what_is_no_motion_is_refused(tmp_path, text, words):
    (tmp_path / "MAT_0000").write_text(text)
    with pytest.raises(ValueError, match=words):
        formats.to_transforms(formats.read_mats([tmp_path / "MAT_0000"]), np.eye(4))


def write_melodic(folder: Path, mixing: np.ndarray, maps: np.ndarray) -> None:
    folder.mkdir()
    np.savetxt(folder / "melodic_mix", mixing, fmt="%.10g")
    nib.save(nib.Nifti1Image(maps, np.eye(4)), folder / "melodic_IC.nii")
    (folder / "log.txt").write_text(
        "  Step no. 30 change : 4e-06\n  Convergence after 30 steps \n"
    )


def test_melodic_folder_is_read_or_refused(tmp_path):
    rng = np.random.default_rng(3)
    mixing, maps = rng.normal(size=(40, 3)), rng.normal(size=(5, 6, 7, 3)).astype(np.float32)
    write_melodic(tmp_path / "ica", mixing, maps)
    found = formats.read_melodic(tmp_path / "ica")
    np.testing.assert_allclose(found.mixing, mixing, atol=1e-8)
    np.testing.assert_array_equal(found.maps, maps.T)
    assert found.steps == 30
    write_melodic(tmp_path / "odd", mixing[:, :2], maps)
    with pytest.raises(ValueError, match="3 maps"):
        formats.read_melodic(tmp_path / "odd")
    (tmp_path / "none").mkdir()  # MELODIC gives up, and ends with exit code 0
    with pytest.raises(ValueError, match="did not converge"):
        formats.read_melodic(tmp_path / "none")


# ---- command lines


def test_command_lines(tmp_path, monkeypatch):
    a, b, mask, mat = (tmp_path / name for name in ("a.nii", "b.nii", "mask.nii", "a.mat"))
    for path in (a, b, mask, mat):
        path.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSLOUTPUTTYPE", "NIFTI_GZ")  # as FSL's own set-up does
    here = tmp_path
    built = {
        commands.mcflirt(a, 17): (
            f"mcflirt -in {a} -cost normcorr -spline_final -out {here}/realigned.nii -refvol 17 "
            "-mats -stages 3"
        ),
        commands.flirt(a, b, 12): (
            f"flirt -in {a} -ref {b} -out {here}/a_to_b.nii -omat {here}/a_to_b.mat "
            "-cost corratio -dof 12 -usesqform"
        ),
        commands.fnirt(a, b, mat, mask): (
            f"fnirt --aff={mat} --config=T1_2_MNI152_2mm --cout={here}/coefficients.nii --in={a} "
            f"--logout={here}/fnirt.log --ref={b} --refmask={mask} --iout={here}/warped.nii"
        ),
        commands.convertwarp(b, a, mat): (
            f"convertwarp --ref={b} --relout --premat={mat} --warp1={a} --out={here}/field.nii"
        ),
        commands.bet(a): f"bet a.nii {here}/t1w_brain.nii -R",
        commands.melodic(a, mask, 0.735): (
            f"melodic -i {a} -m {mask} --nobet -o {here}/ica --tr=0.735000"
        ),
    }
    for interface, expected in built.items():
        assert interface.cmdline == expected
        environment = interface.inputs.environ
        assert (environment["FSLOUTPUTTYPE"], environment["OMP_NUM_THREADS"]) == ("NIFTI", "1")


# ---- where FSL is absent


def test_absent_fsl_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("FSLDIR", raising=False)
    for stage in ("motion", "normalise", "denoise"):
        with pytest.raises(BrainLMError) as caught:  # before a recording is looked at
            load(STEPS[stage].prepare)(make_place(Path(), None, change(use_t1w=True)))
        assert not isinstance(caught.value, RecordingError)
        for words in ("mcflirt, flirt, bet, fnirt", "melodic", "FSLDIR is not set",
                      "module load fsl", "envs/fsl.yaml", "engine: builtin"):  # fmt: skip
            assert words in str(caught.value)
    assert commands.commands_for(change(denoise="motion24")) == ["mcflirt", "flirt"]


def test_absent_fsl_stops_the_command_and_not_each_recording(chain, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = parse_config({
        "results": str(tmp_path / "results"), "preprocess": {"engine": "fsl"},
        "cohorts": [{"name": "c", "folder": str(chain.entry.path.parents[2])}],
    })  # fmt: skip
    update_index(config.cohorts[0], config.results, 10)
    context = Context(config, config.cohorts[0], chain.atlas)
    with pytest.raises(BrainLMError, match="engine: builtin"):
        run_stage("motion", "00000", context, log=lambda _: None)
    assert not list((tmp_path / "results").rglob("motion.tsv"))
    assert not list((tmp_path / "results").rglob("outcomes/**/*.json"))


def test_a_program_that_fails_is_the_recording_s_status_in_its_own_words(tmp_path, monkeypatch):
    program = tmp_path / "bet"
    program.write_text("#!/bin/sh\necho 'Image Exception : #22 :: Could not open' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    nib.save(make_image(1), tmp_path / "a.nii")
    with pytest.raises(RecordingError) as caught, commands.workspace("motion_failed") as folder:
        commands.run_program(commands.bet(tmp_path / "a.nii"), folder)
    assert caught.value.status == "motion_failed"
    assert "Image Exception : #22" in caught.value.reason and "bet" in caught.value.reason
    assert str(folder) not in caught.value.reason


# ---- the stages


class Programs:
    """What FSL's programs would write of the simulated recording: the truth, in FSL's terms."""

    def __init__(self, chain: Chain):
        self.chain, self.called = chain, []
        template = load_template(chain.atlas.space)
        index = np.argwhere(template.mask)[::40, ::-1]
        self.points = nib.affines.apply_affine(template.affine, index)
        self.head = chain.truth.placement.to_head(self.points)
        self.template = template

    def __call__(self, interface, folder):
        self.called.append(type(interface).__name__)
        return getattr(self, self.called[-1].lower())(interface.inputs, folder)

    def mcflirt(self, given, folder):
        image = nib.load(given.in_file)
        moves = self.chain.truth.transforms
        self.start = moves[given.ref_vol]
        paths = [folder / f"MAT_{t:04d}" for t in range(len(moves))]
        for path, move in zip(paths, moves, strict=True):
            move = move @ np.linalg.inv(self.start)
            print_matrix(path, fsl_matrix(image, image, np.linalg.inv(move)))
        return SimpleNamespace(mat_file=paths, out_file=given.in_file)

    def flirt(self, given, folder):
        """The head's affine fit to the template, or the head's own move."""
        source, reference = nib.load(given.in_file), nib.load(given.reference)
        home = np.linalg.inv(self.start) if "boldref" in given.in_file else np.eye(4)
        if given.dof == 12:
            ones = np.ones((len(self.head), 1))
            fit = np.linalg.lstsq(np.hstack([self.head, ones]), self.points, rcond=None)[0].T
            home = np.vstack([fit, [0, 0, 0, 1]]) @ home
        print_matrix(Path(given.out_matrix_file), fsl_matrix(source, reference, home))
        return SimpleNamespace(out_matrix_file=given.out_matrix_file)

    def bet(self, given, folder):
        shutil.copy(given.in_file, given.out_file)
        return SimpleNamespace(out_file=given.out_file)

    def fnirt(self, given, folder):
        assert given.config_file == "T1_2_MNI152_2mm" and Path(given.refmask_file).exists()
        Path(given.fieldcoeff_file).touch()
        return SimpleNamespace(fieldcoeff_file=given.fieldcoeff_file)

    def convertwarp(self, given, folder):
        image = nib.load(given.reference)
        grid = np.indices(image.shape).reshape(3, -1).T
        world = nib.affines.apply_affine(image.affine, grid)
        head = nib.affines.apply_affine(self.start, self.chain.truth.placement.to_head(world))
        field = to_scaled(nib.load(folder / "boldref.nii"), head) - to_scaled(image, world)
        field = field.reshape(*image.shape, 3).astype(np.float32)
        nib.save(nib.Nifti1Image(field, image.affine), given.out_file)
        return SimpleNamespace(out_file=given.out_file)

    def melodic(self, given, folder):
        """Principal components, in the files of independent ones."""
        image, mask = nib.load(given.in_files[0]), nib.load(given.mask).get_fdata() > 0
        data = np.asarray(image.dataobj)[mask].T
        left, size, right = np.linalg.svd(data - data.mean(0), full_matrices=False)
        maps = np.zeros((*mask.shape, 8), np.float32)
        maps[mask] = right[:8].T
        write_melodic(Path(given.out_dir), left[:, :8] * size[:8], maps)
        return SimpleNamespace(out_dir=given.out_dir)


@pytest.fixture(scope="module")
def fitted(chain, tmp_path_factory):
    """Motion and normalisation of the simulated recording, by what the programs would write."""
    t1w = next(chain.entry.path.parents[2].glob("sub-01/anat/*_T1w.nii.gz"))
    mine = chain.at(tmp_path_factory.mktemp("fsl"), entry=replace(chain.entry, t1w=t1w))
    programs = Programs(chain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "run_program", programs)
        patch.setattr(commands, "require_commands", lambda _: None)
        mine.run("motion", "normalise", "denoise", config=CONFIG)
        mine.programs = programs
        yield mine


def test_stages_call_the_programs_and_name_what_the_builtin_engine_names(fitted, chain):
    assert fitted.programs.called == ["MCFLIRT", "FLIRT", "MELODIC"]
    assert set(fitted.hashes()) <= set(chain.hashes())
    made = (fitted.paths.transforms, fitted.paths.normalisation, fitted.paths.metrics)
    assert all(path.exists() for path in made)
    for stage in ("motion", "normalise", "denoise"):
        assert set(fitted.figures[stage]) == set(chain.figures[stage])


def test_motion_is_what_mcflirt_found(fitted):
    start = fitted.figures["motion"]["reference_volume"]
    found = read_transforms(fitted.paths.transforms)
    truth = fitted.truth.transforms @ np.linalg.inv(fitted.truth.transforms[start])
    for mine, true in zip(found, truth, strict=True):
        there = nib.affines.apply_affine(true, fitted.programs.head)
        apart = nib.affines.apply_affine(mine, fitted.programs.head) - there
        assert np.abs(apart).max() < 1e-3


def test_normalisation_is_affine_directly_and_bent_through_the_t1w(fitted, tmp_path):
    programs = fitted.programs
    true = nib.affines.apply_affine(programs.start, programs.head)
    direct = load_normalisation(fitted.paths.normalisation)
    assert direct.method == "direct" and not direct.displacement.any()
    assert 0.5 < np.linalg.norm(direct(programs.points) - true, axis=1).mean() < 4  # no bend
    shutil.copytree(fitted.out, tmp_path / "out")
    there = fitted.at(tmp_path / "out")
    del programs.called[:]
    figures = there.run("normalise", config=change(use_t1w=True))
    assert programs.called == ["BET", "FLIRT", "FLIRT", "FNIRT", "ConvertWarp"]
    through = load_normalisation(there.paths.normalisation)
    assert figures["method"] == through.method == "t1w" and figures["mask_dice"] > 0.9
    np.testing.assert_allclose(through(programs.points), true, atol=0.05)  # linear in a voxel


def test_melodic_s_components_are_judged_by_the_rule(fitted):
    mixing = np.column_stack(list(read_table(fitted.paths.mixing).values()))
    metrics, figures = read_table(fitted.paths.metrics), fitted.figures["denoise"]
    assert mixing.shape == (120, 8) and figures["num_components"] == 8
    assert (figures["ica_iterations"], figures["ica_converged"]) == (30, 1)
    np.testing.assert_allclose(mixing.std(0), 1, rtol=1e-6)
    share = metrics["variance_explained"]
    assert (np.diff(share) <= 0).all() and 0 < share.sum() <= 1
    removed = [name for name in read_table(fitted.paths.confounds) if "aroma_motion_" in name]
    assert len(removed) == figures["num_removed"] == sum(metrics["classification"] == "rejected")


def test_unusable_volumes_are_given_as_their_neighbours(fitted):
    image = nib.load(fitted.entry.path)
    volumes = np.ascontiguousarray(image.get_fdata(dtype=np.float32).T)
    volumes[7], volumes[20] = np.nan, 0
    found = engine.estimate_motion(volumes, image.affine)
    assert np.isfinite(found.reference).all() and found.reference_index not in (7, 20)
    assert np.flatnonzero(np.isnan(found.residual)).tolist() == [7, 20]
    with pytest.raises(RecordingError, match="constant or not finite"):
        engine.estimate_motion(np.zeros_like(volumes), image.affine)


def test_an_upside_down_image_is_refused_before_fsl_is_called(fitted, monkeypatch):
    monkeypatch.setattr(engine, "run_program", lambda *_: pytest.fail("FSL was called"))
    reference, affine = read_volume(fitted.paths.boldref)
    mask = read_volume(fitted.paths.mask)[0] > 0
    flipped = affine @ np.diag([1, 1, -1, 1])
    flipped[:3, 3] += affine[:3, 2] * (len(mask) - 1)
    with pytest.raises(RecordingError, match="orientation is wrong"):
        engine.normalise(reference, flipped, fitted.programs.template, mask=mask)


@pytest.mark.skipif(
    any(shutil.which(name) is None for name in commands.commands_for(change(use_t1w=True))),
    reason="FSL's programs are not on PATH",
)
def test_the_real_programs_find_the_truth(chain, tmp_path):
    t1w = next(chain.entry.path.parents[2].glob("sub-01/anat/*_T1w.nii.gz"))
    mine = chain.at(tmp_path / "out", entry=replace(chain.entry, t1w=t1w))
    mine.run("motion", "normalise", "denoise", config=change(use_t1w=True))
    programs = Programs(chain)
    start = chain.truth.transforms[mine.figures["motion"]["reference_volume"]]
    truth = chain.truth.transforms @ np.linalg.inv(start)
    found = read_transforms(mine.paths.transforms)
    apart = [
        nib.affines.apply_affine(a, programs.head) - nib.affines.apply_affine(b, programs.head)
        for a, b in zip(found, truth, strict=True)
    ]
    assert np.linalg.norm(apart, axis=-1).mean() < 0.3  # mm
    fit = load_normalisation(mine.paths.normalisation)
    true = nib.affines.apply_affine(start, programs.head)
    assert np.linalg.norm(fit(programs.points) - true, axis=1).mean() < 4
    assert mine.figures["denoise"]["num_components"] > 1
