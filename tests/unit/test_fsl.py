"""The FSL engine: conversions, command lines, and the stages with stand-ins for the programs."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from chain import Chain, make_place
from fsl_stand_in import fsl_matrix, par_line, scaled_to_world, world_to_scaled
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainlm.cohort.index import update_index
from brainlm.config import Preprocess, parse_config
from brainlm.errors import BrainLMError, RecordingError
from brainlm.preprocess.chunk import run_stage
from brainlm.preprocess.denoise.aroma import high_frequency_content
from brainlm.preprocess.fsl import commands as fsl_commands
from brainlm.preprocess.fsl import engine as fsl
from brainlm.preprocess.fsl import fix as fsl_fix
from brainlm.preprocess.fsl import formats
from brainlm.preprocess.io.derivatives import (
    Derivatives,
    read_table,
    read_transforms,
    read_volume,
    sidecar,
)
from brainlm.preprocess.normalise.registration import Normalisation
from brainlm.preprocess.normalise.template import load_template
from brainlm.preprocess.normalise.warp import WarpField, load_normalisation
from brainlm.preprocess.stages.context import Context
from brainlm.preprocess.stages.denoise_stage import run_denoise
from brainlm.report.methods_text import describe_methods
from brainlm.report.recording import _describe_components
from brainlm.steps import STEPS, load

PROGRAMS = ("mcflirt", "flirt", "fnirt", "convertwarp", "bet", "melodic", "fix")
CONFIG = Preprocess(engine="fsl", min_duration_s=60, use_t1w=False)


def make_image(handedness: int, shape=(20, 24, 16), zooms=(3.0, 2.0, 4.0), tilt_deg=8.0):
    """An oblique, anisotropic image; handedness is the sign of its affine's determinant."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [tilt_deg, 3, -5], degrees=True).as_matrix()
    affine[:3, :3] *= np.array(zooms) * [handedness, 1, 1]
    affine[:3, 3] = (-30, 12, 7)
    image = nib.Nifti1Image(np.zeros(shape, np.float32), affine)
    assert np.sign(np.linalg.det(image.affine[:3, :3])) == handedness
    return image


def make_moves(count=12, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    moves = np.tile(np.eye(4), (count, 1, 1))
    moves[:, :3, :3] = Rotation.from_euler("xyz", rng.normal(0, 0.1, (count, 3))).as_matrix()
    moves[:, :3, 3] = rng.normal(0, 5, (count, 3))
    return moves


def scaled_of(image) -> np.ndarray:
    return formats.world_to_scaled_mm(image.affine, image.shape[::-1])


# ---- conversions


@pytest.mark.parametrize("handedness", [-1, 1])
def test_scaled_mm_are_those_of_the_guide(handedness):
    image = make_image(handedness)
    points = np.random.default_rng(1).normal(0, 50, (100, 3))
    scaled = nib.affines.apply_affine(scaled_of(image), points)
    np.testing.assert_allclose(scaled, world_to_scaled(image, points), atol=1e-4)
    np.testing.assert_allclose(scaled_to_world(image, scaled), points, atol=1e-4)


@pytest.mark.parametrize("handedness", [-1, 1])
def test_a_shift_worked_out_by_hand(handedness):
    """A head 6 mm further right and 5 mm further forward is brought back by +6 and -5.

    FSL counts its first axis from right to left in either storage order.
    """
    affine = np.diag([3.0 * handedness, 3, 4, 1])
    mat = np.eye(4)
    mat[:2, 3] = 6, -5
    scaled = formats.world_to_scaled_mm(affine, (30, 64, 64))
    expected = np.eye(4)
    expected[:2, 3] = 6, 5
    np.testing.assert_allclose(formats.to_transforms(mat[None], scaled), expected[None], atol=1e-9)


@pytest.mark.parametrize("handedness", [-1, 1])
def test_mcflirt_matrices_become_our_transforms(handedness):
    image, moves = make_image(handedness), make_moves()
    mats = np.stack([fsl_matrix(image, image, np.linalg.inv(move)) for move in moves])
    np.testing.assert_allclose(formats.to_transforms(mats, scaled_of(image)), moves, atol=1e-6)


@pytest.mark.parametrize("source", [-1, 1])
@pytest.mark.parametrize("reference", [-1, 1])
def test_flirt_matrices_between_any_two_images(source, reference):
    moving = make_image(source)
    fixed = make_image(reference, shape=(30, 28, 26), zooms=(2.0, 2.0, 2.0), tilt_deg=-4.0)
    world = make_moves(1)[0] @ np.diag([1.1, 0.95, 1.02, 1])
    matrix = fsl_matrix(moving, fixed, world)
    found = formats.to_world(matrix, scaled_of(moving), scaled_of(fixed))
    np.testing.assert_allclose(found, np.linalg.inv(world), atol=1e-5)


def test_printed_matrices_are_read_as_rigid(tmp_path):
    image, moves = make_image(-1), make_moves()
    paths = []
    for t, move in enumerate(moves):
        paths.append(tmp_path / f"MAT_{t:04d}")
        rows = fsl_matrix(image, image, np.linalg.inv(move))
        paths[-1].write_text("".join("  ".join(f"{v:.6g}" for v in r) + "  \n" for r in rows))
    found = formats.to_transforms(formats.read_mats(paths), scaled_of(image))
    np.testing.assert_allclose(found, moves, atol=1e-3)
    square = found[:, :3, :3] @ found[:, :3, :3].transpose(0, 2, 1)
    np.testing.assert_allclose(square, np.tile(np.eye(3), (len(moves), 1, 1)), atol=1e-12)


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


def test_par_file_agrees_with_its_matrices_or_is_refused(tmp_path):
    moves = make_moves()
    mats = np.stack([fsl_matrix(make_image(1), make_image(1), move) for move in moves])
    centre = np.array([31.0, 24, 40])
    rows = np.stack([par_line(mat, centre) for mat in mats])
    path = tmp_path / "bold.par"
    path.write_text("".join("  ".join(f"{v:.6g}" for v in row) + "  \n" for row in rows))
    par = formats.read_par(path)
    np.testing.assert_allclose(formats.euler_angles(mats[:, :3, :3]), rows[:, :3], atol=1e-12)
    formats.check_par(mats, par)
    formats.check_par(np.eye(4)[None], np.zeros((1, 6)))
    for wrong in (par[::-1], -par, par * [1, 1, 1, 1, 1, 1.02], par[:, [1, 0, 2, 3, 4, 5]]):
        with pytest.raises(ValueError, match="disagree"):
            formats.check_par(mats, wrong)
    with pytest.raises(ValueError, match="11 rows"):
        formats.check_par(mats, par[1:])


# ---- warps


def bend_world(points: np.ndarray) -> np.ndarray:
    """A known map of template mm to reference mm: an affine part and a smooth bend."""
    waves = np.stack([np.sin(points[:, (i + 1) % 3] / 30 + i) for i in range(3)], axis=1)
    return nib.affines.apply_affine(make_moves(1, seed=4)[0], points * [1.1, 0.9, 1.0]) + 3 * waves


def write_field(path: Path, source, reference) -> None:
    """The relative warp of `bend_world`, by the guide's definition, as convertwarp writes it."""
    grid = np.indices(reference.shape).reshape(3, -1).T
    world = nib.affines.apply_affine(reference.affine, grid)
    field = world_to_scaled(source, bend_world(world)) - world_to_scaled(reference, world)
    data = field.reshape(*reference.shape, 3).astype(np.float32)
    image = nib.Nifti1Image(data, reference.affine)
    image.header["intent_code"] = 2006  # FSL's displacement field
    nib.save(image, path)


@pytest.mark.parametrize("source", [-1, 1])
@pytest.mark.parametrize("reference", [-1, 1])
def test_a_known_warp_comes_back(tmp_path, source, reference):
    moving = make_image(source)
    fixed = make_image(reference, shape=(30, 28, 26), zooms=(2.0, 2.0, 2.0), tilt_deg=0)
    write_field(tmp_path / "field.nii", moving, fixed)
    shape = fixed.shape[::-1]
    positions = formats.read_warp(tmp_path / "field.nii", fixed.affine, shape, scaled_of(moving))
    affine = make_moves(1, seed=5)[0]  # any will do: the bend makes up for it
    fit = WarpField.from_positions(positions, fixed.affine, affine)
    voxels = np.random.default_rng(2).uniform(0, np.array(fixed.shape) - 1, (500, 3))
    on_grid = nib.affines.apply_affine(fixed.affine, np.rint(voxels))
    between = nib.affines.apply_affine(fixed.affine, voxels)
    np.testing.assert_allclose(fit(on_grid), bend_world(on_grid), atol=1e-4)
    np.testing.assert_allclose(fit(between), bend_world(between), atol=0.01)


def test_a_field_on_another_grid_is_refused(tmp_path):
    fixed = make_image(1)
    write_field(tmp_path / "field.nii", make_image(-1), fixed)
    with pytest.raises(ValueError, match="expected a field"):
        formats.read_warp(tmp_path / "field.nii", fixed.affine, (5, 5, 5), np.eye(4))


def test_warp_field_is_saved_extended_and_measured(tmp_path):
    grid = np.diag([2.0, 3, 4, 1])
    stretch = np.array([[0.1, 0.02, 0], [0, -0.05, 0.03], [0.01, 0, 0.2]])
    index = np.moveaxis(np.indices((6, 7, 8))[::-1], 0, -1)
    points = index @ grid[:3, :3].T
    affine = make_moves(1)[0]
    bent = points + points @ stretch.T
    fit = WarpField.from_positions(
        bent @ affine[:3, :3].T + affine[:3, 3], grid, affine, method="t1w", quality={"a": 0.5}
    )
    np.testing.assert_allclose(fit.jacobian(), np.linalg.det(np.eye(3) + stretch), rtol=1e-4)
    fit.save(tmp_path / "xfm.npz")
    again = load_normalisation(tmp_path / "xfm.npz")
    assert isinstance(again, WarpField) and again.quality == {"a": 0.5} and again.method == "t1w"
    inside = points.reshape(-1, 3)[::5] + 0.3
    np.testing.assert_array_equal(again(inside), fit(inside))
    corner = np.array([[0.0, 0, 0]])
    np.testing.assert_allclose(fit.bend(corner - 50), fit.bend(corner), atol=1e-6)


def test_either_engine_s_file_is_loaded(tmp_path):
    still = Normalisation(np.eye(4), np.zeros((3, 1, 1, 1)), np.zeros(3), np.ones(3))
    still.save(tmp_path / "xfm.npz")
    assert isinstance(load_normalisation(tmp_path / "xfm.npz"), Normalisation)
    (tmp_path / "bad.npz").write_bytes(b"not a zip")
    with pytest.raises(BrainLMError, match="expected a saved normalisation"):
        load_normalisation(tmp_path / "bad.npz")


# ---- MELODIC's folder


def write_melodic(folder: Path, mixing: np.ndarray, maps: np.ndarray) -> None:
    folder.mkdir()
    lines = ("  ".join(f"{v:.7g}" for v in row) + "  \n" for row in mixing)
    (folder / "melodic_mix").write_text("".join(lines))
    power = np.abs(np.fft.rfft(mixing, axis=0)[1:]) ** 2
    lines = ("  ".join(f"{v:.7g}" for v in row) + "  \n" for row in power)
    (folder / "melodic_FTmix").write_text("".join(lines))
    nib.save(nib.Nifti1Image(maps, np.eye(4)), folder / "melodic_IC.nii.gz")
    (folder / "log.txt").write_text(
        "  Step no. 30 change : 4e-06\n  Convergence after 30 steps \n"
    )


def test_melodic_folder_is_read(tmp_path):
    middle = np.array([0.05, 0.3, 0.5])  # Hz; as much power a step above, so that half is there
    tones = middle[:, None] + np.arange(2) / 160
    mixing = np.sin(2 * np.pi * 0.8 * np.arange(200)[:, None, None] * tones).sum(2)
    maps = np.random.default_rng(3).normal(size=(5, 6, 7, 3)).astype(np.float32)
    write_melodic(tmp_path / "ica", mixing, maps)
    found = formats.read_melodic(tmp_path / "ica")
    np.testing.assert_allclose(found.mixing, mixing, atol=1e-6)
    np.testing.assert_array_equal(found.maps, maps.T)
    assert found.converged and found.steps == 30
    content = formats.read_high_frequency(found.spectrum, 0.8)
    np.testing.assert_allclose(content, (middle - 0.01) / (0.625 - 0.01), atol=1e-3)
    np.testing.assert_allclose(content, high_frequency_content(mixing, 0.8), atol=0.01)


def test_melodic_files_that_do_not_fit_are_refused(tmp_path):
    write_melodic(tmp_path / "ica", np.eye(20)[:, :3], np.zeros((2, 2, 2, 4), np.float32))
    with pytest.raises(ValueError, match="4 maps"):
        formats.read_melodic(tmp_path / "ica")
    (tmp_path / "ica" / "melodic_IC.nii.gz").unlink()
    with pytest.raises(ValueError, match="no melodic_IC"):
        formats.read_melodic(tmp_path / "ica")


# ---- command lines


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    for name in ("a.nii", "b.nii", "mask.nii", "a.mat"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_command_lines(files):
    a, b, mask, mat = (files / name for name in ("a.nii", "b.nii", "mask.nii", "a.mat"))
    lines = {
        fsl_commands.mcflirt(a, files / "out.nii", 17).cmdline: (
            f"mcflirt -in {a} -cost normcorr -spline_final -out {files}/out.nii -refvol 17 "
            "-mats -plots -stages 3"
        ),
        fsl_commands.flirt(a, b, 12).cmdline: (
            f"flirt -in {a} -ref {b} -out {files}/a_to_b.nii -omat {files}/a_to_b.mat "
            "-cost corratio -dof 12 -usesqform"
        ),
        fsl_commands.fnirt(a, b, mat, mask, 4).cmdline: (
            f"fnirt --aff={mat} --estint=1,1,1,1 --biasres=50,50,50 --cout={files}/a_coefficients"
            f".nii --in={a} --infwhm=8,6,5,4 --intmod=global_non_linear_with_bias --intorder=5 "
            f"--logout={files}/a_fnirt.log --miter=5,5,5,5 --ref={b} --reffwhm=8,6,5,4 "
            f"--refmask={mask} --lambda=300.0,150.0,100.0,50.0 --regmod=bending_energy --impinm=0 "
            f"--imprefm=0 --subsamp=4,4,2,2 --warpres=10,10,10 --iout={files}/a_warped.nii"
        ),
        fsl_commands.convertwarp(b, a, mat).cmdline: (
            f"convertwarp --ref={b} --relout --premat={mat} --warp1={a} --out={files}/field.nii"
        ),
        fsl_commands.convertwarp(b, a, None).cmdline: (
            f"convertwarp --ref={b} --relout --warp1={a} --out={files}/field.nii"
        ),
        fsl_commands.bet(a).cmdline: f"bet a.nii {files}/t1w_brain.nii -R",
        fsl_commands.melodic(a, mask, files / "ica", 0.735).cmdline: (
            f"melodic -i {a} -m {mask} --nobet -o {files}/ica --tr=0.735000"
        ),
    }
    for built, expected in lines.items():
        assert built == expected


def test_full_fnirt_is_the_t1_to_mni_schedule(files):
    line = fsl_commands.fnirt(
        files / "a.nii", files / "b.nii", files / "a.mat", files / "mask.nii", 6
    )
    assert "--subsamp=4,4,2,2,1,1 " in line.cmdline and "--miter=5,5,5,5,5,10 " in line.cmdline
    assert "--estint=1,1,1,1,1,0 " in line.cmdline and "--reffwhm=8,6,5,4,2,0 " in line.cmdline


@pytest.mark.parametrize("setting", [None, "NIFTI_GZ", "NIFTI_PAIR"])
def test_output_type_is_ours_whatever_the_user_has_set(files, monkeypatch, setting):
    monkeypatch.delenv("FSLOUTPUTTYPE", raising=False)
    if setting:
        monkeypatch.setenv("FSLOUTPUTTYPE", setting)
    interface = fsl_commands.flirt(files / "a.nii", files / "b.nii", 6)
    assert interface.inputs.environ["FSLOUTPUTTYPE"] == "NIFTI"
    assert interface.inputs.environ["OMP_NUM_THREADS"] == "1"


# ---- where FSL is absent


def test_absent_fsl_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("FSLDIR", raising=False)
    for stage in ("motion", "normalise", "denoise"):
        with pytest.raises(BrainLMError) as caught:  # before a recording is looked at
            prepare(stage, CONFIG)
        assert not isinstance(caught.value, RecordingError)
        for words in ("mcflirt, flirt, fnirt", "melodic", "FSLDIR is not set", "module load fsl",
                      "envs/fsl.yaml", "engine: builtin"):  # fmt: skip
            assert words in str(caught.value)
    monkeypatch.setenv("FSLDIR", "/opt/fsl")
    with pytest.raises(BrainLMError, match="FSLDIR is /opt/fsl"):
        prepare("motion", CONFIG)


def test_absent_fsl_stops_the_command_and_not_each_recording(study, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = parse_config({
        "results": str(tmp_path / "results"), "preprocess": {"engine": "fsl"},
        "cohorts": [{"name": "c", "folder": str(study.entry.path.parents[2])}],
    })  # fmt: skip
    update_index(config.cohorts[0], config.results, 10)
    said: list[str] = []
    context = Context(config, config.cohorts[0], study.atlas)
    with pytest.raises(BrainLMError, match="engine: builtin"):
        run_stage("motion", "00000", context, log=said.append)
    assert len(said) == 1 and "1 to do" in said[0]
    assert not list((tmp_path / "results").rglob("motion.tsv"))
    assert not list((tmp_path / "results").rglob("outcomes/**/*.json"))


def test_only_what_the_configuration_calls_is_asked_for():
    needed = fsl_commands.commands_for(replace_config(denoise="motion24", use_t1w=False))
    assert needed == ["mcflirt", "flirt", "fnirt", "convertwarp"]
    assert fsl_commands.commands_for(replace_config(use_t1w=True)) == [*needed, "bet", "melodic"]


def replace_config(**options) -> Preprocess:
    return CONFIG.model_copy(update=options)


def test_engine_is_part_of_every_fit_s_key():
    for stage in ("motion", "normalise", "denoise"):
        ours, theirs = parameters(stage, replace_config(engine="builtin")), parameters(stage)
        assert theirs["engine"] == "fsl" and ours != theirs


def prepare(stage: str, options: Preprocess) -> None:
    load(STEPS[stage].prepare)(make_place(Path(), None, options))


def parameters(stage: str, options: Preprocess = CONFIG) -> dict:
    return make_place(Path(), None, options).parameters(stage)


# ---- the stages, with stand-ins


class Study:
    """One simulated recording with its T1w image, and what the stand-ins shall find."""

    def __init__(self, chain: Chain, folder: Path):
        t1w = next(chain.entry.path.parents[2].glob("sub-01/anat/*_T1w.nii.gz"))
        self.chain = chain.at(folder / "out", entry=replace(chain.entry, t1w=t1w))
        self.entry, self.truth = self.chain.entry, chain.truth
        self.atlas, self.out = chain.atlas, self.chain.out
        self.finds = folder / "finds.npz"
        np.savez(self.finds, transforms=self.truth.transforms)

    def run(self, stage: str, config: Preprocess, out: Path | None = None) -> dict:
        return self.chain.at(out or self.out).run(stage, config=config)

    def paths(self, out: Path | None = None) -> Derivatives:
        return Derivatives(out or self.out, self.entry.recording_id, self.atlas)

    def names(self, out: Path) -> set[str]:
        return {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}

    def write_finds(self, reference_volume: int) -> None:
        """World maps for flirt and fnirt, from the truth, in the world of the reference volume."""
        move = self.truth.transforms[reference_volume]
        template = load_template(self.atlas.space)
        self.head = head = head_positions(self.truth, template)
        sample = head[::7, ::7, ::7].reshape(-1, 3)
        index = np.indices(head.shape[:3])[:, ::7, ::7, ::7].reshape(3, -1).T
        mni = nib.affines.apply_affine(template.affine, index)
        ones = np.ones((len(sample), 1))
        affine = np.eye(4)
        affine[:3] = np.linalg.lstsq(np.hstack([sample, ones]), mni, rcond=None)[0].T
        np.savez(
            self.finds, transforms=self.truth.transforms, t1w_brain_to_template=affine,
            boldref_to_template=affine @ np.linalg.inv(move),
            boldref_to_t1w_brain=np.linalg.inv(move), template_to_t1w=head,
            template_to_boldref=nib.affines.apply_affine(move, head),
        )  # fmt: skip


def head_positions(truth, template) -> np.ndarray:
    """Where the template's voxels lie in the head, mm [X, Y, Z, 3]: every fourth exactly."""
    shape = template.t1w.shape[::-1]
    coarse = [np.arange(0, n + 4, 4) for n in shape]
    index = np.stack(np.meshgrid(*coarse, indexing="ij"), axis=-1)
    points = nib.affines.apply_affine(template.affine, index).reshape(-1, 3)
    head = truth.placement.to_head(points).reshape(*index.shape[:3], 3)
    fine = np.indices(shape) / 4
    parts = [ndimage.map_coordinates(head[..., i], fine, order=1) for i in range(3)]
    return np.stack(parts, axis=-1)


@pytest.fixture(scope="module")
def study(chain, tmp_path_factory) -> Study:
    return Study(chain, tmp_path_factory.mktemp("fsl"))


@pytest.fixture
def stand_ins(tmp_path, monkeypatch, study):
    folder = tmp_path / "fsl" / "bin"
    (tmp_path / "fsl" / "etc").mkdir(parents=True)
    (tmp_path / "fsl" / "etc" / "fslversion").write_text("6.0.7\n")
    folder.mkdir()
    script = Path(__file__).with_name("fsl_stand_in.py")
    for program in PROGRAMS:
        path = folder / program
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" {program} "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FSLDIR", str(tmp_path / "fsl"))
    monkeypatch.setenv("FSL_STAND_IN", str(study.finds))
    monkeypatch.setenv("FSLOUTPUTTYPE", "NIFTI_GZ")  # as FSL's own set-up does


@pytest.fixture
def fitted(study, stand_ins) -> Study:
    """Motion and normalisation have been run (once)."""
    if not study.paths().normalisation.exists():
        study.motion = study.run("motion", CONFIG)
        study.write_finds(study.motion["reference_volume"])
        study.normalise = study.run("normalise", CONFIG)
    return study


def brain_points(study: Study, step: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Points of the template's brain, and where they lie in the head: mm [N, 3]."""
    template = load_template(study.atlas.space)
    index = np.argwhere(template.mask)[::step, ::-1]
    return nib.affines.apply_affine(template.affine, index), study.head[*index.T]


def test_motion_stage_recovers_what_mcflirt_found(fitted):
    assert fitted.motion["dropped_volumes"] == 0
    start = fitted.motion["reference_volume"]
    found = read_transforms(fitted.paths().transforms)
    truth = fitted.truth.transforms @ np.linalg.inv(fitted.truth.transforms[start])
    _, points = brain_points(fitted, 400)
    for mine, true in zip(found, truth, strict=True):
        there = nib.affines.apply_affine(true, points)
        assert np.abs(nib.affines.apply_affine(mine, points) - there).max() < 5e-3  # printed
    confounds = read_table(fitted.paths().confounds)
    assert {len(column) for column in confounds.values()} == {120}
    reference, _ = read_volume(fitted.paths().boldref)
    first = np.asarray(nib.load(fitted.entry.path).dataobj[..., start], np.float32).T
    assert np.corrcoef(reference.ravel(), first.ravel())[0, 1] > 0.99


def test_normalise_stage_recovers_what_fnirt_found(fitted):
    fit = load_normalisation(fitted.paths().normalisation)
    move = fitted.truth.transforms[fitted.motion["reference_volume"]]
    points, head = brain_points(fitted)
    np.testing.assert_allclose(fit(points), nib.affines.apply_affine(move, head), atol=1e-3)
    assert fitted.normalise["method"] == "direct"
    assert fitted.normalise["mask_dice"] > 0.9
    assert fitted.normalise["correlation"] > 0.7
    assert 0.2 < fitted.normalise["jacobian_min"] < 1 < fitted.normalise["jacobian_max"] < 3


def test_normalise_through_the_t1w(fitted, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(fitted.out, out)
    figures = fitted.run("normalise", replace_config(use_t1w=True), out)
    direct, through = (load_normalisation(fitted.paths(o).normalisation) for o in (None, out))
    points, _ = brain_points(fitted)
    assert figures["method"] == "t1w"
    assert np.abs(through(points) - direct(points)).max() < 0.02


def test_denoise_stage_judges_melodic_s_components(fitted, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(fitted.out, out)
    figures = fitted.run("denoise", CONFIG, out)
    paths = fitted.paths(out)
    mixing = np.column_stack(list(read_table(paths.mixing).values()))
    metrics = read_table(paths.metrics)
    assert mixing.shape == (120, 8) and len(metrics["classification"]) == 8
    assert figures["num_components"] == 8 and figures["ica_iterations"] == 31
    assert figures["ica_converged"] == 1
    np.testing.assert_allclose(mixing.std(0), 1, rtol=1e-6)
    share = metrics["variance_explained"]
    assert (np.diff(share) <= 0).all() and 0 < share.sum() <= 1
    content = high_frequency_content(mixing, 2.0)
    np.testing.assert_allclose(metrics["high_frequency_content"], content, atol=0.05)
    removed = [name for name in read_table(paths.confounds) if name.startswith("aroma_motion_")]
    rejected = metrics["classification"] == "rejected"
    assert len(removed) == figures["num_removed"] == rejected.sum()
    assert fitted.run("parcellate", CONFIG, out)["parcels_with_data"] > 380


def test_report_draws_an_fsl_normalisation(fitted):
    from brainlm.report.pictures import draw_registration

    paths = fitted.paths()
    assert "<svg" in draw_registration(paths.boldref, paths.normalisation, fitted.atlas.space)


def test_outputs_are_named_as_those_of_the_builtin_engine(fitted, tmp_path, monkeypatch):
    """The builtin normalisation itself is tested elsewhere: its checks are run on FSL's affine."""
    from brainlm.preprocess.normalise import registration as own

    def stop_early(image, template, state, levels, **_):
        fit = load_normalisation(fitted.paths().normalisation)
        return replace(state, affine=fit.affine)

    monkeypatch.setattr(own, "find_pose", lambda *_: (np.eye(4), 1.0, None))
    monkeypatch.setattr(own, "_descend", stop_early)
    for stage in ("motion", "normalise"):
        figures = fitted.run(stage, replace_config(engine="builtin"), tmp_path / "out")
        assert set(figures) == set(getattr(fitted, stage))
    assert fitted.names(tmp_path / "out") == fitted.names(fitted.out)
    mine, theirs = (
        json.loads(sidecar(fitted.paths(out).normalisation).read_text())
        for out in (fitted.out, tmp_path / "out")
    )
    assert set(mine) == set(theirs) and set(mine["Quality"]) == set(theirs["Quality"])
    assert mine["Engine"] == "FSL 6.0.7" and theirs["Engine"] == "brainlm-pipeline"


@pytest.mark.parametrize(
    ("stage", "program", "status"),
    [("motion", "mcflirt", "motion_failed"), ("normalise", "fnirt", "registration_failed"),
     ("denoise", "melodic", "denoise_failed")],
)  # fmt: skip
def test_a_program_that_fails_is_the_recording_s_status(
    fitted, tmp_path, monkeypatch, stage, program, status
):
    shutil.copytree(fitted.out, tmp_path / "out")
    monkeypatch.setenv("FSL_STAND_IN_BREAKS", program)
    with pytest.raises(RecordingError) as caught:
        fitted.run(stage, CONFIG, tmp_path / "out")
    assert caught.value.status == status
    assert "Image Exception : #22" in caught.value.reason and program in caught.value.reason
    assert str(tmp_path) not in caught.value.reason


def test_unusable_volumes_are_given_as_their_neighbours(study, stand_ins):
    image = nib.load(study.entry.path)
    volumes = np.ascontiguousarray(image.get_fdata(dtype=np.float32).T)
    volumes[7], volumes[20] = np.nan, 0
    found = fsl.estimate_motion(volumes, image.affine)
    assert np.isfinite(found.reference).all() and found.reference_index not in (7, 20)
    assert np.flatnonzero(np.isnan(found.residual)).tolist() == [7, 20]
    with pytest.raises(RecordingError, match="constant or not finite"):
        fsl.estimate_motion(np.zeros_like(volumes), image.affine)


def test_an_upside_down_image_is_refused_before_fsl_is_called(fitted, monkeypatch):
    monkeypatch.setattr(fsl, "run_program", lambda *_: pytest.fail("FSL was called"))
    reference, affine = read_volume(fitted.paths().boldref)
    mask = read_volume(fitted.paths().mask)[0] > 0
    flipped = affine @ np.diag([1, 1, -1, 1])
    flipped[:3, 3] += affine[:3, 2] * (len(mask) - 1)
    with pytest.raises(RecordingError, match="orientation is wrong"):
        fsl.normalise(reference, flipped, load_template(fitted.atlas.space), mask=mask)


VERDICTS = "run.ica\n1, Signal, False\n2, Unclassified Noise, True\n3, Unknown, False\n[2]\n"


def with_fix(weights: Path | str, **options) -> Preprocess:
    return CONFIG.model_copy(update={"fix_weights": Path(weights), **options})


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "UKBiobank.RData"
    path.write_bytes(b"trained")
    return path


# ---- FIX: its configuration


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "set engine: fsl"),
        ({"engine": "fsl", "denoise": "motion24"}, "set denoise: ica"),
        ({"engine": "fsl", "fix_threshold": 101}, "fix_threshold"),
    ],
)
def test_what_fix_cannot_judge_is_refused(tmp_path, options, words):
    values = {
        "cohorts": [{"name": "c", "folder": str(tmp_path)}],
        "preprocess": {"fix_weights": "UKBiobank.RData", **options},
    }
    with pytest.raises(BrainLMError, match=words) as caught:
        parse_config(values)
    assert "preprocess" in str(caught.value)


def test_fix_is_part_of_the_key_only_where_it_judges():
    assert parameters("denoise", Preprocess()) == {
        "engine": "builtin", "denoise": "ica", "high_pass_hz": 0.008,
    }  # fmt: skip
    keys = [
        parameters("denoise", c)
        for c in (CONFIG, with_fix("a"), with_fix("b"), with_fix("a", fix_threshold=10))
    ]
    assert len({json.dumps(key) for key in keys}) == 4


def test_absent_fix_and_absent_weights_are_said_before_a_recording(
    stand_ins,
    weights,
    monkeypatch,
):
    with pytest.raises(BrainLMError, match=r"fix_weights: .*gone.RData is not a file"):
        prepare("motion", with_fix(weights.with_name("gone.RData")))
    folder = Path(os.environ["PATH"].split(os.pathsep)[0])
    (folder / "fix").unlink()
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(BrainLMError, match=r"needs fix, not found on PATH.*module load fsl"):
        prepare("motion", with_fix(weights))
    fsl_commands.require_commands(CONFIG)


# ---- FIX: command lines


def test_fix_command_lines(tmp_path, weights):
    feat = tmp_path / "run.ica"
    feat.mkdir()
    for name in ("filtered_func_data.nii.gz", "mask.nii.gz"):
        (feat / name).touch()
    built = fsl_fix.melodic_for_fix(feat, 0.735)
    assert built.cmdline == (
        f"melodic -i {feat}/filtered_func_data.nii.gz -m {feat}/mask.nii.gz --nobet --Oall "
        f"-o {feat}/filtered_func_data.ica --report --tr=0.735000"
    )
    assert fsl_fix.extract_features(feat).cmdline == f"fix -f {feat}"
    judged = fsl_fix.classify_by_fix(feat, weights, 20)
    assert judged.cmdline == f"fix -c {feat} {weights} 20"
    for interface in (built, judged):
        assert interface.inputs.environ["FSLOUTPUTTYPE"] == "NIFTI_GZ"
    assert fsl_commands.bet(feat / "mask.nii.gz").inputs.environ["FSLOUTPUTTYPE"] == "NIFTI"


# ---- FIX: its file


def test_fix_verdicts_are_read(tmp_path):
    path = tmp_path / "fix4melview_Standard_thr20.txt"
    path.write_text(VERDICTS)
    assert formats.read_fix(path, 3).tolist() == [False, True, False]
    path.write_text(VERDICTS.replace("True", "True, 0.01").replace("[2]", "[2]\n\n"))
    assert formats.read_fix(path, 3).tolist() == [False, True, False]
    path.write_text("/a/run.ica\n1, Signal, False, 0.7\n[]\n")
    assert formats.read_fix(path, 1).tolist() == [False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "last line like"),
        (VERDICTS.replace("[2]\n", ""), "last line like .*Unknown"),
        (VERDICTS.replace("[2]", "[2, x]"), "last line like"),
        (VERDICTS.replace("[2]", "[2, 3]"), "contradict|list at the end .2, 3."),
        (VERDICTS.replace("[2]", "[2, 9]"), "list at the end"),
        (VERDICTS.replace("3, Unknown, False\n", ""), "each of 3 components"),
        (VERDICTS.replace("3, Unknown", "4, Unknown"), "each of 3 components"),
        (VERDICTS.replace("3, Unknown, False", "3, Unknown"), "lines call"),
        ("[2]\n", "each of 3 components"),
    ],
)
def test_malformed_verdicts_are_refused(tmp_path, text, words):
    path = tmp_path / "fix4melview_Standard_thr20.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        formats.read_fix(path, 3)
    assert path.name in str(caught.value)


# ---- FIX: the stage, with a stand-in


@pytest.fixture
def judged(fitted, weights, monkeypatch):
    """The stage with FIX, run once: its output folder, its figures, the folder FIX was given."""
    if not hasattr(fitted, "fix"):
        out, kept = fitted.out.with_name("out-fix"), fitted.out.with_name("kept.ica")
        shutil.copytree(fitted.out, out)
        monkeypatch.setenv("FSL_STAND_IN_KEEP", str(kept))
        fitted.fix = out, fitted.run("denoise", with_fix(weights), out), kept
        monkeypatch.delenv("FSL_STAND_IN_KEEP")
    return fitted.fix


def test_fix_judges_the_decomposition_of_the_run_s_own_space(
    fitted,
    judged,
    weights,
):
    out, figures, kept = judged
    paths = fitted.paths(out)
    mixing = np.column_stack(list(read_table(paths.mixing).values()))
    metrics = read_table(paths.metrics)
    # every third of MELODIC's, found again by time course in the order by variance
    raw = np.loadtxt(kept / "filtered_func_data.ica" / "melodic_mix")
    alike = np.abs(np.corrcoef(raw.T, mixing.T)[: raw.shape[1], raw.shape[1] :])
    assert (alike.max(1) > 0.95).all()
    rejected = metrics["classification"] == "rejected"
    assert set(alike.argmax(1)[[2, 5]]) == set(np.flatnonzero(rejected))
    assert figures["num_removed"] == 2 and set(metrics["rule"]) == {"fix"}
    assert (np.diff(metrics["variance_explained"]) <= 0).all()
    made = json.loads(sidecar(paths.metrics).read_text())
    assert made["Parameters"]["fix_weights"].endswith("UKBiobank.RData")
    assert made["Parameters"]["fix_threshold"] == 20
    assert len(made["Parameters"]["FixWeightsSHA256"]) == 64 and "FIX" in made["Description"]
    maps = np.asarray(nib.load(paths.maps).dataobj)
    assert (np.abs(maps).max((0, 1, 2)) > 10).all()  # a z of 1 somewhere, in each
    config = with_fix(weights)
    assert fitted.run("parcellate", config, out)["parcels_with_data"] > 380
    shown = _describe_components(paths, lambda path: path.name)
    assert "FSL's FIX decided" in shown[0].caption and set(shown[1].shown["decided by"]) == {"FIX"}
    text, cited = describe_methods(paths, fitted.atlas)
    assert "classified by FIX" in text and "UKBiobank.RData at threshold 20" in text
    assert any("Salimi-Khorshidi" in work for work in cited)


def test_the_folder_is_as_feat_leaves_it(fitted, judged):
    _, _, feat = judged
    image = nib.load(feat / "filtered_func_data.nii.gz")
    source = nib.load(fitted.entry.path)
    assert image.shape == source.shape and image.header.get_zooms()[3] == pytest.approx(2.0)
    np.testing.assert_allclose(image.affine, source.affine, atol=1e-5)
    data, mask = image.get_fdata(), nib.load(feat / "mask.nii.gz").get_fdata() > 0
    mean = nib.load(feat / "mean_func.nii.gz").get_fdata()
    np.testing.assert_allclose(data.mean(3)[mask], mean[mask], rtol=1e-4)
    assert np.median(mean[mask]) == pytest.approx(10_000, rel=1e-5)
    assert not data[~mask].any()
    # less motion than measured: corrected volumes are more alike
    measured = source.get_fdata()[mask]
    assert data[mask].std(1).sum() / 1e4 < 0.9 * (measured.std(1).sum() / np.median(measured))
    scaled = formats.world_to_scaled_mm(image.affine, image.shape[::-1])
    par = formats.read_par(feat / "mc" / "prefiltered_func_data_mcf.par")
    mats = formats.to_mats(read_transforms(fitted.paths().transforms), scaled)
    formats.check_par(mats, par)
    reference = nib.load(feat / "reg" / "example_func.nii.gz").get_fdata()
    centre = np.array([np.average(i, weights=reference) for i in np.indices(reference.shape)])
    if np.linalg.det(image.affine) > 0:
        centre[0] = image.shape[0] - 1 - centre[0]
    expected = [par_line(mat, centre * image.header.get_zooms()[:3]) for mat in mats]
    np.testing.assert_allclose(par, expected, atol=1e-5)
    assert (feat / "design.fsf").read_text().splitlines()[::2] == [
        "set fmri(tr) 2.000000", "set fmri(paradigm_hp) 125"
    ]  # fmt: skip


def test_highres_lands_on_the_run(fitted, judged):
    """A point of the head, through highres2example_func, where the truth has it."""
    _, _, feat = judged
    highres, example = (
        nib.load(feat / "reg" / f"{n}.nii.gz") for n in ("highres", "example_func")
    )
    matrix = formats.read_matrix(feat / "reg" / "highres2example_func.mat")
    back = formats.read_matrix(feat / "reg" / "example_func2highres.mat")
    np.testing.assert_allclose(matrix @ back, np.eye(4), atol=1e-5)
    points = np.random.default_rng(0).uniform(-50, 50, (20, 3))
    there = nib.affines.apply_affine(matrix, world_to_scaled(highres, points))
    move = fitted.truth.transforms[fitted.motion["reference_volume"]]
    expected = nib.affines.apply_affine(move, points)
    np.testing.assert_allclose(scaled_to_world(example, there), expected, atol=0.01)


def test_a_recording_without_t1w_is_named(fitted, weights):
    entry = replace(fitted.entry, t1w=None)
    with pytest.raises(RecordingError, match=r"T1w image.*FIX needs") as caught:
        run_denoise(entry, make_place(fitted.out, fitted.atlas, with_fix(weights)))
    assert caught.value.status == "denoise_failed" and entry.source in caught.value.reason


@pytest.mark.parametrize(
    ("breaks", "words"), [("fix", "Image Exception"), ("verdicts", "last line like")]
)
def test_fix_that_fails_is_the_recording_s_status(
    judged, weights, tmp_path, monkeypatch, breaks, words
):
    _, figures, kept = judged
    feat = tmp_path / "run.ica"
    shutil.copytree(kept, feat, ignore=shutil.ignore_patterns("fix"))
    monkeypatch.setenv("FSL_STAND_IN_BREAKS", breaks)
    with (
        pytest.raises(RecordingError, match=words) as caught,
        fsl_commands.workspace("denoise_failed"),
    ):
        fsl_fix.find_noise(feat, with_fix(weights), figures["num_components"])
    assert caught.value.status == "denoise_failed"
