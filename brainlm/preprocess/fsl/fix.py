"""FIX, FSL's trained classifier, as the judge of MELODIC's components.

FIX judges a decomposition of the run in its own space, by spatial, temporal and spectral features
that a file of weights was trained on, and reads them from a folder as FEAT leaves it. So MELODIC
is run here on the motion-corrected, high-passed, unsmoothed volumes, and not on the grid in
template space; its time courses are those that are regressed out, and its maps are brought to the
grid for the features of ICA-AROMA (kept in the table, next to FIX's verdict) and for the pages.
FIX's own cleaning is not used.

LIKE THE REST OF THE FSL ENGINE, THIS HAS NEVER MET A REAL FIX.

Salimi-Khorshidi et al. 2014, NeuroImage 90:449; Griffanti et al. 2014, NeuroImage 95:232.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...config import Preprocess
from ..denoise.filter import clean_columns, filter_basis
from ..denoise.ica import Components, usable_points
from ..denoise.ica_grid import ComponentGrid
from ..io.derivatives import write_volume
from ..io.read import Bold
from ..kernels.sampling import sample, sample_smooth
from . import formats
from .commands import bet, command, flirt, run_program, workspace
from .engine import judge

#: Median of the brain that FEAT scales a run to.
GRAND_MEDIAN = 10_000.0


@dataclass(frozen=True)
class Native:
    """A run in its own space, and what belongs to it.

    Attributes
    ----------
    bold : Bold
        As measured: [T, Z, Y, X].
    transforms : ndarray [T, 4, 4]
        Reference world -> world of volume t.
    reference, mask : ndarray [Z, Y, X]
        Reference image and its brain, on the run's grid.
    world : ndarray [N, 3]
        Where the points of the grid in template space lie, reference world mm.
    t1w, t1w_affine : ndarray
        [Z, Y, X] with skull, and voxel (x, y, z) -> world mm.
    """

    bold: Bold
    transforms: np.ndarray
    reference: np.ndarray
    mask: np.ndarray
    world: np.ndarray
    t1w: np.ndarray
    t1w_affine: np.ndarray


def fit_native_ica(
    samples: np.ndarray,
    parameters: np.ndarray,
    grid: ComponentGrid,
    native: Native,
    config: Preprocess,
    *,
    seed: int = 0,
) -> Components:
    """MELODIC's components of the run in its own space, judged by FIX.

    Parameters
    ----------
    samples, parameters, grid, seed
        As in :func:`brainlm.preprocess.fsl.engine.fit_ica`; for the features in the table.
    native : Native
    config : Preprocess
        ``fix_weights``, ``fix_threshold`` and ``high_pass_hz``.

    Raises
    ------
    RecordingError
        ``denoise_failed``: too few points or volumes, or one of the programs failed.
    """
    tr_s, shape = native.bold.tr_s, native.mask.shape
    basis = filter_basis(len(samples), tr_s, config.high_pass_hz)
    usable = usable_points(samples, basis)
    with workspace("denoise_failed") as folder:
        feat = folder / "run.ica"
        write_feat(feat, native, basis, config.high_pass_hz)
        register_anatomy(folder, feat, native)
        found = formats.read_melodic(run_program(melodic_for_fix(feat, tr_s), folder).out_dir)
        if len(found.mixing) != len(samples) or found.maps.shape[1:] != shape:
            raise ValueError("MELODIC's files are not of this recording's shape")
        noise = find_noise(feat, config, len(found.maps))
    on_grid = np.zeros((len(found.maps), *grid.mask.shape), np.float32)
    on_grid[:, grid.mask] = sample_smooth(found.maps, native.bold.affine, native.world)
    inside = np.zeros(grid.mask.shape, bool)
    inside[grid.mask] = usable
    return judge(
        replace(found, maps=np.nan_to_num(on_grid)), clean_columns(samples[:, usable], basis),
        usable, inside, basis, tr_s, parameters, grid, seed, noise,
    )  # fmt: skip


def find_noise(feat: Path, config: Preprocess, count: int) -> np.ndarray:
    """FIX's verdicts on the `count` components of a folder, bool [C]: true for noise.

    Raises
    ------
    RuntimeError, ValueError
        FIX failed, or its file is not of these components.
    """
    assert config.fix_weights is not None  # who calls has looked
    weights, threshold = config.fix_weights.absolute(), config.fix_threshold
    run_program(extract_features(feat), feat)
    run_program(classify_by_fix(feat, weights, threshold), feat)
    # named by the weights, each version of FIX in its own way
    found = sorted(feat.glob(f"fix4melview_*_thr{threshold}.txt"))
    if len(found) != 1:
        raise ValueError(
            f"expected one fix4melview_*_thr{threshold}.txt of FIX, found {len(found)}"
        )
    return formats.read_fix(found[0], count)


# ---- the folder that FIX reads


def write_feat(feat: Path, native: Native, basis: np.ndarray, high_pass_hz: float) -> None:
    """What FEAT leaves of a run, without registration and decomposition.

    Motion-corrected by one interpolation, scaled to the median that FEAT takes, high-passed with
    the filter that the series get, the mean kept.
    """
    affine, tr_s = native.bold.affine, native.bold.tr_s
    for name in ("mc", "reg"):
        (feat / name).mkdir(parents=True)
    mask, data = _correct_motion(native)
    level = data.mean(0, dtype=np.float64).astype(np.float32)
    scale = np.float32(GRAND_MEDIAN / np.median(level))
    volumes = np.zeros((len(data), *mask.shape), np.float32)
    data = clean_columns(data, basis)
    data += level
    data *= scale
    volumes[:, mask] = data
    write_volume(feat / "filtered_func_data.nii.gz", volumes, affine, space="scanner", tr_s=tr_s)
    mean = np.zeros(mask.shape, np.float32)
    mean[mask] = scale * level
    write_volume(feat / "mean_func.nii.gz", mean, affine, space="scanner")
    write_volume(feat / "mask.nii.gz", mask, affine, space="scanner")
    write_volume(feat / "reg" / "example_func.nii.gz", native.reference, affine, space="scanner")
    scaled = formats.world_to_scaled_mm(affine, mask.shape)
    mats = formats.to_mats(native.transforms, scaled)
    par = formats.to_par(mats, _centre_of_gravity(native.reference, scaled @ affine))
    formats.write_rows(feat / "mc" / "prefiltered_func_data_mcf.par", par)
    period = 1 / high_pass_hz if high_pass_hz > 0 else -1  # s; FIX: -1 is none
    (feat / "design.fsf").write_text(
        f"set fmri(tr) {tr_s:.6f}\nset fmri(npts) {len(data)}\n"
        f"set fmri(paradigm_hp) {period:.6g}\nset fmri(temphp_yn) {int(high_pass_hz > 0)}\n"
    )


def _correct_motion(native: Native) -> tuple[np.ndarray, np.ndarray]:
    """The voxels that can be decomposed, bool [Z, Y, X], and their samples [T, M]."""
    affine, mask = native.bold.affine, native.mask.copy()
    points = np.argwhere(mask)[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    data = sample(native.bold.volumes, affine, points, native.transforms)
    good = np.isfinite(data).all(0)
    good[good] = (data[:, good].std(0) > 0) & (data[:, good].mean(0) > 0)
    if not good.any():
        raise ValueError("no voxel of the brain has data in every volume")
    mask[mask] = good
    return mask, data[:, good]


def _centre_of_gravity(image: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    """Of an image [Z, Y, X] in FSL's coordinates, given voxel (x, y, z) -> those."""
    weight = np.clip(np.nan_to_num(image), 0, None)
    index = [np.tensordot(weight.sum(axes), np.arange(n), 1) for axes, n in _axes(weight)]
    return scaled[:3, :3] @ (np.array(index) / weight.sum()) + scaled[:3, 3]


def _axes(image: np.ndarray) -> list[tuple[tuple[int, int], int]]:
    """What to sum over for the profile along x, y and z of [Z, Y, X], and its length."""
    depth, height, width = image.shape
    return [((0, 1), width), ((0, 2), height), ((1, 2), depth)]


def register_anatomy(folder: Path, feat: Path, native: Native) -> None:
    """``reg/highres`` (by BET) and its matrix to the run, as FEAT makes them.

    FLIRT moves the reference to the T1w (6 parameters, correlation ratio, no boundaries); FIX's
    matrix is the inverse.
    """
    import nibabel as nib

    boldref, head = folder / "boldref.nii", folder / "t1w.nii"
    brain_only = native.reference * native.mask
    write_volume(boldref, brain_only, native.bold.affine, space="scanner")
    t1w = np.nan_to_num(native.t1w).astype(np.float32)
    write_volume(head, t1w, native.t1w_affine, space="scanner")
    brain = Path(run_program(bet(head), folder).out_file)
    matrix = formats.read_matrix(run_program(flirt(boldref, brain, 6), folder).out_matrix_file)
    nib.save(nib.load(brain), feat / "reg" / "highres.nii.gz")
    formats.write_rows(feat / "reg" / "example_func2highres.mat", matrix)
    formats.write_rows(feat / "reg" / "highres2example_func.mat", np.linalg.inv(matrix))


# ---- programs


def melodic_for_fix(feat: Path, tr_s: float) -> Any:
    """MELODIC with all that it can write, as FIX reads more than maps and time courses."""
    return command(
        "MELODIC", images="NIFTI_GZ", in_files=[str(feat / "filtered_func_data.nii.gz")],
        mask=feat / "mask.nii.gz", out_dir=feat / "filtered_func_data.ica", no_bet=True,
        tr_sec=tr_s, report=True, out_all=True,
    )  # fmt: skip


def extract_features(feat: Path) -> Any:
    """FIX's features (it calls FSL's FAST and FLIRT itself).

    nipype's classes for FIX know no name of the program by themselves.
    """
    return command("FeatureExtractor", command="fix -f", images="NIFTI_GZ", mel_ica=feat)


def classify_by_fix(feat: Path, weights: Path, threshold: int) -> Any:
    """FIX's verdicts, without its cleaning."""
    return command(
        "Classifier", command="fix -c", images="NIFTI_GZ", mel_ica=feat, trained_wts_file=weights,
        thresh=threshold,
    )  # fmt: skip
