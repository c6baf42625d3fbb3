"""The ``fsl`` engine: motion, normalisation and ICA by FSL's programs, through nipype.

Same functions, same arguments and same results as :mod:`.motion`, :mod:`.normalise` and
:mod:`.denoise`; FSL fits, and everything after the fit is ours (one interpolation, the
ICA-AROMA rule). FIX, where its weights are named, judges instead of that rule: :mod:`.fsl_fix`.

THIS ENGINE HAS NEVER MET A REAL FSL. It was written from FSL's documentation, and tested by the
command lines that are built, by files in FSL's formats, and against stand-ins that copy the
programs' contract. Look at the registration pictures of the first recordings that it processes.

MCFLIRT, FLIRT and FNIRT: Jenkinson et al. 2002, NeuroImage 17:825; Andersson et al. 2007, FMRIB
report TR07JA2. MELODIC: Beckmann and Smith 2004, IEEE Trans Med Imaging 23:137. FSL's licence
forbids commercial use; nothing of FSL is part of this package.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Preprocess
from ..errors import BrainLMError, RecordingError
from . import fit as fit_model
from . import fsl_formats as formats
from . import motion as own_motion
from . import normalise as own_normalise
from .denoise import Components, Grid, classify, measure_features, threshold_map, usable_points
from .derivatives import write_volume
from .filter import clean_columns, filter_basis
from .mask import brain_mask
from .motion import Motion
from .template import Template
from .warp import WarpField

#: FNIRT, level by level, as in FSL's T1_2_MNI152_2mm (whole mm: nipype takes no others).
SUBSAMPLING = [4, 4, 2, 2, 1, 1]
ITERATIONS = [5, 5, 5, 5, 5, 10]
INPUT_FWHM_MM = [8, 6, 5, 4, 3, 2]
REFERENCE_FWHM_MM = [8, 6, 5, 4, 2, 0]
STIFFNESS = [300.0, 150.0, 100.0, 50.0, 40.0, 30.0]
MATCH_INTENSITY = [1, 1, 1, 1, 1, 0]
#: Levels that an EPI image of some 3 mm supports; the last two are finer than its voxels.
EPI_LEVELS = 4
#: How far outside the template's brain an EPI image, which is zero there, is matched.
RIM_MM = 6.0


def commands_for(config: Preprocess) -> list[str]:
    """Names of the programs that a configuration calls."""
    fix = config.fix_weights is not None
    through_t1w = ["bet"] if config.use_t1w or fix else []
    ica = ["melodic"] if config.uses_ica else []
    judge = ["fix"] if fix else []
    return ["mcflirt", "flirt", "fnirt", "convertwarp", *through_t1w, *ica, *judge]


def require_commands(config: Preprocess) -> None:
    """BrainLMError, naming what is missing, unless FSL (and FIX's weights, if named) are there."""
    missing = [name for name in commands_for(config) if shutil.which(name) is None]
    if missing:
        where = os.environ.get("FSLDIR")
        raise BrainLMError(
            f"preprocess.engine: fsl needs {', '.join(missing)}, not found on PATH (FSLDIR is "
            f"{where or 'not set'}); load FSL first ('module load fsl', or the environment in "
            "envs/fsl.yaml) so that $FSLDIR/bin is on PATH, or set engine: builtin, which needs "
            "none of it"
        )
    weights = config.fix_weights
    if weights is not None and not weights.is_file():
        raise BrainLMError(
            f"preprocess.fix_weights: {weights.absolute()} is not a file; name FIX's trained "
            "weights (.pyfix_model or .RData), or leave it out for the ICA-AROMA rules"
        )


def read_version() -> str:
    """FSL's version by its own file, ``unknown`` where there is none."""
    path = Path(os.environ.get("FSLDIR", "")) / "etc" / "fslversion"
    return path.read_text().split()[0] if path.is_file() else "unknown"


@contextmanager
def workspace(status: str) -> Iterator[Path]:
    """A folder for FSL's files; what FSL does wrong is this recording's status."""
    with tempfile.TemporaryDirectory(prefix="brainlm-fsl-") as folder:
        try:
            yield Path(folder)
        except (RuntimeError, ValueError, FileNotFoundError) as error:
            words = " ".join(str(error).replace(folder, "").split())
            raise RecordingError(status, f"FSL: {words}"[:600]) from error


def command(name: str, *, images: str = "NIFTI", **inputs: Any) -> Any:
    """A nipype interface to an FSL program.

    Images are uncompressed whatever FSLOUTPUTTYPE says, as they live for a step only, unless
    `images` (its value for this program) says otherwise. One thread, as recordings are what runs
    side by side.
    """
    from nipype import config

    config.set("execution", "check_version", "false")  # nipype would ask a server otherwise
    from nipype.interfaces import fsl

    fsl.FSLCommand.set_default_output_type(images)
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    one["FSLOUTPUTTYPE"] = images  # FIX is no FSLCommand to nipype
    inputs = {k: str(v) if isinstance(v, Path) else v for k, v in inputs.items() if v is not None}
    return getattr(fsl, name)(environ=one, terminal_output="allatonce", **inputs)


def run(interface: Any, folder: Path) -> Any:
    """Outputs of a program; RuntimeError with the program's own words where it fails."""
    result = interface.run(cwd=str(folder), ignore_exception=True)  # else its words are lost
    made = result.runtime
    if result.outputs is None or made.get("returncode") != 0:
        words = made.stderr or made.stdout or made.get("traceback")
        raise RuntimeError(f"{interface.cmd} failed: {str(words).strip()[-400:]}")
    return result.outputs


# ---- motion ---------------------------------------------------------------------------------


def estimate_motion(volumes: np.ndarray, affine: np.ndarray) -> Motion:
    """Head motion by MCFLIRT, to the volume that is most like the others.

    The reference image is the mean of MCFLIRT's realigned volumes. Parameters are ours: about
    the centre of the brain, in world axes.

    Parameters
    ----------
    volumes : float32 [T, Z, Y, X]
        Volumes that are not finite or constant are given as the nearest that are.
    affine : [4, 4]
        Voxel (x, y, z) -> world mm.

    Raises
    ------
    RecordingError
        ``bad_data``: most volumes are unusable; ``motion_failed``: MCFLIRT did.
    """
    usable = np.flatnonzero(own_motion._find_usable(volumes))
    nearest = usable[np.abs(np.arange(len(volumes))[:, None] - usable).argmin(axis=1)]
    filled = volumes if len(usable) == len(volumes) else volumes[nearest]  # a copy is a gigabyte
    start = int(nearest[own_motion._most_typical(filled)])
    with workspace("motion_failed") as folder:
        write_volume(folder / "bold.nii", filled, affine, space="scanner")
        made = run(mcflirt(folder / "bold.nii", folder / "realigned.nii", start), folder)
        mats = formats.read_mats(made.mat_file)
        formats.check_par(mats, formats.read_par(made.par_file))
        scaled = formats.world_to_scaled_mm(affine, volumes.shape)
        transforms = formats.to_transforms(mats, scaled)
        reference, residual = _summarise(made.out_file, volumes.shape)
    brain = np.argwhere(brain_mask(reference, affine))[:, ::-1]
    centre = affine[:3, :3] @ brain.mean(axis=0) + affine[:3, 3]
    return Motion(
        transforms=transforms,
        parameters=own_motion.parameters_of(transforms, centre),
        centre=centre,
        reference_index=start,
        reference=reference,
        residual=np.where(np.isin(np.arange(len(volumes)), usable), residual, np.nan),
        refitted=np.zeros(len(volumes), bool),
    )


def mcflirt(bold: Path, realigned: Path, reference: int) -> Any:
    """MCFLIRT as FEAT calls it: three stages, normalised correlation, to one volume."""
    return command(
        "MCFLIRT", in_file=bold, out_file=realigned, ref_vol=reference, stages=3,
        cost="normcorr", interpolation="spline", save_mats=True, save_plots=True,
    )  # fmt: skip


def _summarise(path: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean [Z, Y, X] of the realigned volumes, and each one's distance from it [T]."""
    import nibabel as nib

    image: Any = nib.load(path)
    if image.shape != shape[::-1]:
        raise ValueError(f"{path}: expected {shape[::-1]} realigned, found {image.shape}")
    total = np.zeros(shape[:0:-1])
    for t in range(shape[0]):
        total += image.dataobj[..., t]
    mean = total / shape[0]
    apart = [np.sqrt(((image.dataobj[..., t] - mean) ** 2).mean()) for t in range(shape[0])]
    return np.ascontiguousarray(mean.T, np.float32), np.array(apart) / mean.std()


# ---- normalisation --------------------------------------------------------------------------


def normalise(
    reference: np.ndarray,
    affine: np.ndarray,
    template: Template,
    *,
    mask: np.ndarray | None = None,
    t1w: np.ndarray | None = None,
    t1w_affine: np.ndarray | None = None,
) -> WarpField:
    """FLIRT (12 parameters), then FNIRT, from the reference image or through the T1w.

    FNIRT compares intensities, so the EPI image itself is matched with the template's tissue
    maps in the EPI's contrast, and only as finely as its voxels allow. Through the T1w image the
    template's T1w is matched, and FLIRT brings the reference to it (6 parameters, no boundaries).
    Orientation and quality are checked as those of the builtin engine.

    Parameters
    ----------
    reference, affine, template, mask, t1w, t1w_affine
        As in :func:`brainlm.preprocess.normalise.normalise`.

    Raises
    ------
    RecordingError
        ``registration_failed``: empty, upside-down, not a brain, or an FSL program failed.
    """
    affine = np.asarray(affine, np.float64)
    image, mask = own_normalise._check_image(reference, affine, mask)
    own_normalise._check_pose(own_normalise._find_pose(image, mask, affine, template)[1])
    moving = fit_model.Image(image * mask, affine)
    brain = template.t1w * template.mask
    with workspace("registration_failed") as folder:
        write_volume(folder / "boldref.nii", moving.data, affine, space="scanner")
        write_volume(folder / "template.nii", brain, template.affine, space="template")
        if t1w is None:
            fit = _match_epi(folder, moving, template)
        else:
            fit = _match_t1w(folder, moving, template, np.nan_to_num(t1w), np.asarray(t1w_affine))
    fit = replace(fit, quality=_assess(fit, moving, mask, template))
    own_normalise._check_quality(fit.quality)
    return fit


def flirt(moving: Path, reference: Path, dof: int) -> Any:
    """FLIRT from where the headers put the two images, by correlation ratio."""
    return command(
        "FLIRT", in_file=moving, reference=reference, dof=dof, cost="corratio", uses_qform=True,
        out_matrix_file=moving.with_name(f"{moving.stem}_to_{reference.stem}.mat"),
        out_file=moving.with_name(f"{moving.stem}_to_{reference.stem}.nii"),
    )  # fmt: skip


def fnirt(moving: Path, reference: Path, affine: Path, mask: Path, levels: int) -> Any:
    """FNIRT with the first `levels` levels of FSL's T1_2_MNI152_2mm."""
    return command(
        "FNIRT", in_file=moving, ref_file=reference, affine_file=affine, refmask_file=mask,
        fieldcoeff_file=str(moving.with_name(f"{moving.stem}_coefficients.nii")),
        warped_file=moving.with_name(f"{moving.stem}_warped.nii"),
        log_file=moving.with_name(f"{moving.stem}_fnirt.log"),
        subsampling_scheme=SUBSAMPLING[:levels], max_nonlin_iter=ITERATIONS[:levels],
        in_fwhm=INPUT_FWHM_MM[:levels], ref_fwhm=REFERENCE_FWHM_MM[:levels],
        regularization_lambda=STIFFNESS[:levels],
        apply_intensity_mapping=MATCH_INTENSITY[:levels], warp_resolution=(10, 10, 10),
        regularization_model="bending_energy", intensity_mapping_order=5,
        intensity_mapping_model="global_non_linear_with_bias", biasfield_resolution=(50, 50, 50),
        # zero is outside the brain, and where the brain ends is what there is to match
        skip_implicit_ref_masking=True, skip_implicit_in_masking=True,
    )  # fmt: skip


def convertwarp(template: Path, coefficients: Path, rigid: Path | None) -> Any:
    """FNIRT's coefficients, and what comes before them, as one field of displacements."""
    return command(
        "ConvertWarp", reference=template, warp1=coefficients, premat=rigid, out_relwarp=True,
        out_file=template.with_name("field.nii"),
    )  # fmt: skip


def bet(head: Path) -> Any:
    """BET with its robust centre, for heads with a neck."""
    return command("BET", in_file=head, out_file=head.with_name("t1w_brain.nii"), robust=True)


def _match_epi(folder: Path, moving: Any, template: Template) -> WarpField:
    from scipy import ndimage

    boldref, reference = folder / "boldref.nii", folder / "template.nii"
    mat = run(flirt(boldref, reference, 12), folder).out_matrix_file
    bold = formats.world_to_scaled_mm(moving.affine, moving.data.shape)
    target = formats.world_to_scaled_mm(template.affine, template.t1w.shape)
    affine = formats.to_world(formats.read_matrix(mat), bold, target)
    contrast = _tissues_like(moving, template, affine)
    write_volume(folder / "contrast.nii", contrast, template.affine, space="template")
    rim = ndimage.distance_transform_edt(~template.mask) * template.affine[0, 0] <= RIM_MM
    write_volume(folder / "refmask.nii", rim, template.affine, space="template")
    bend = fnirt(boldref, folder / "contrast.nii", Path(mat), folder / "refmask.nii", EPI_LEVELS)
    coefficients = Path(run(bend, folder).fieldcoeff_file)
    field = run(convertwarp(reference, coefficients, None), folder).out_file
    return _to_field(field, template, bold, affine, "direct")


def _match_t1w(
    folder: Path, moving: Any, template: Template, t1w: np.ndarray, t1w_affine: np.ndarray
) -> WarpField:
    boldref, head, reference = (folder / f"{n}.nii" for n in ("boldref", "t1w", "template"))
    write_volume(head, t1w.astype(np.float32), t1w_affine, space="scanner")
    write_volume(folder / "refmask.nii", template.mask, template.affine, space="template")
    brain = Path(run(bet(head), folder).out_file)
    rigid = Path(run(flirt(boldref, brain, 6), folder).out_matrix_file)
    mat = Path(run(flirt(brain, reference, 12), folder).out_matrix_file)
    bend = fnirt(head, reference, mat, folder / "refmask.nii", len(SUBSAMPLING))
    coefficients = Path(run(bend, folder).fieldcoeff_file)
    field = run(convertwarp(reference, coefficients, rigid), folder).out_file
    bold = formats.world_to_scaled_mm(moving.affine, moving.data.shape)
    anatomy = formats.world_to_scaled_mm(t1w_affine, t1w.shape)
    target = formats.world_to_scaled_mm(template.affine, template.t1w.shape)
    affine = formats.to_world(formats.read_matrix(rigid), bold, anatomy)
    affine = affine @ formats.to_world(formats.read_matrix(mat), anatomy, target)
    return _to_field(field, template, bold, affine, "t1w")


def _tissues_like(moving: Any, template: Template, affine: np.ndarray) -> np.ndarray:
    """The template's tissue maps, weighted to look like the image where `affine` puts them."""
    from .sampling import sample_smooth

    inside = np.argwhere(template.mask)[::7]  # three weights need no more
    points = inside[:, ::-1] @ template.affine[:3, :3].T + template.affine[:3, 3]
    world = points @ affine[:3, :3].T + affine[:3, 3]
    values = sample_smooth(moving.data[None], moving.affine, world)[0]
    tissues = np.stack([template.grey, template.white, template.csf])
    columns = tissues[:, *inside.T].T
    seen = np.isfinite(values)
    if seen.mean() < 0.2:
        raise ValueError("FLIRT moved the image away from the template")
    weights = np.linalg.lstsq(columns[seen], values[seen], rcond=None)[0]
    return np.tensordot(weights, tissues, 1).astype(np.float32)


def _to_field(
    path: str, template: Template, bold: np.ndarray, affine: np.ndarray, method: str
) -> WarpField:
    positions = formats.read_warp(path, template.affine, template.t1w.shape, bold)
    return WarpField.from_positions(positions, template.affine, affine, method=method)


class _Placed(fit_model.Problem):
    """The builtin engine's match, at places that a warp gives: the same figures, comparable."""

    def place(self, state: Any) -> np.ndarray:
        return state(self.grid.points)


def _assess(fit: WarpField, moving: Any, mask: np.ndarray, template: Template) -> dict[str, float]:
    """Figures of quality, see :class:`brainlm.preprocess.normalise.Normalisation`."""
    still = replace(fit, displacement=np.zeros_like(fit.displacement))
    jacobian = fit.jacobian()[template.mask]
    zooms = np.linalg.svd(fit.affine[:3, :3], compute_uv=False)
    bend = fit.displacement[:, template.mask]
    return {
        "correlation": _correlate(fit, moving, template),
        "correlation_affine": _correlate(still, moving, template),
        **_overlap(fit, moving.affine, mask, template),
        "bend_rms_mm": float(np.sqrt((bend**2).sum(axis=0).mean())),
        "jacobian_min": float(jacobian.min()),
        "jacobian_max": float(jacobian.max()),
        "zoom_min": float(zooms.min()),
        "zoom_max": float(zooms.max()),
    }


def _correlate(fit: WarpField, moving: Any, template: Template) -> float:
    fwhm = own_normalise.AFFINE_FWHM_MM[-1]
    grid = fit_model.grid_of(template, 4.0, 0.0)
    columns = fit_model.tissue_columns(template, grid, fwhm)
    return _Placed(moving, fwhm, grid, columns).measure(fit).correlation  # type: ignore[arg-type]


def _overlap(fit: WarpField, affine, mask, template: Template) -> dict[str, float]:
    """Dice of the two brain masks inside the field of view, and the brain's share inside it."""
    grid = fit_model.grid_of(template, 4.0, 40.0)
    inverse = np.linalg.inv(affine)
    index = np.rint(fit(grid.points) @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
    size = np.array(mask.shape)[::-1]
    inside = ((index >= 0) & (index < size)).all(axis=1)
    found = mask[tuple(np.clip(index, 0, size - 1)[:, ::-1].T)] & inside
    brain = grid.brain & inside
    dice = 2 * (found & brain).sum() / max(1, found.sum() + brain.sum())
    return {"mask_dice": float(dice), "coverage": float(inside[grid.brain].mean())}


# ---- independent components -----------------------------------------------------------------


def fit_ica(
    samples: np.ndarray,
    tr_s: float,
    parameters: np.ndarray,
    grid: Grid,
    *,
    high_pass_hz: float,
    seed: int = 0,
) -> Components:
    """MELODIC's components, judged by the ICA-AROMA rule.

    MELODIC gets what the builtin decomposition gets (samples on the grid in template space,
    smoothed, drifts removed) and chooses the model order itself. Its random start is not ours to
    seed. High-frequency content is read from its spectra, as in the published tool.

    Parameters
    ----------
    samples, tr_s, parameters, grid, high_pass_hz
        As in :func:`brainlm.preprocess.denoise.fit_ica`.
    seed : int
        For the subsets of volumes that correlations with motion are averaged over.

    Raises
    ------
    RecordingError
        ``denoise_failed``: too few points or volumes, or MELODIC failed.
    """
    basis = filter_basis(len(samples), tr_s, high_pass_hz)
    usable = usable_points(samples, basis)
    level = samples[:, usable].mean(0)
    data = clean_columns(samples[:, usable], basis)
    inside = np.zeros(grid.mask.shape, bool)
    inside[grid.mask] = usable
    with workspace("denoise_failed") as folder:
        volumes = np.zeros((len(samples), *grid.mask.shape), np.float32)
        volumes[:, inside] = data + level  # MELODIC takes the mean out, and scales by it
        write_volume(folder / "samples.nii", volumes, grid.affine, space="template")
        write_volume(folder / "mask.nii", inside, grid.affine, space="template")
        interface = melodic(folder / "samples.nii", folder / "mask.nii", folder / "ica", tr_s)
        found = formats.read_melodic(run(interface, folder).out_dir)
        if len(found.mixing) != len(samples) or found.maps.shape[1:] != inside.shape:
            raise ValueError("MELODIC's files are not of this recording's shape")
    return judge(found, data, usable, inside, basis, tr_s, parameters, grid, seed)


def melodic(bold: Path, mask: Path, out: Path, tr_s: float) -> Any:
    """MELODIC on one run, within a mask, model order by its own estimate."""
    return command(
        "MELODIC", in_files=[str(bold)], mask=mask, out_dir=out, no_bet=True, tr_sec=tr_s
    )


def judge(
    found, data, usable, inside, basis, tr_s, parameters, grid, seed, verdicts=None
) -> Components:
    """Components, largest share of variance first, with features and verdicts.

    The ICA-AROMA rule's verdicts, or those given (bool [C], FIX's) beside the same features.
    """
    mixing = clean_columns(found.mixing, basis)
    mixing = mixing / mixing.std(0)
    scaled = data / np.maximum(data.std(0), 1e-12)
    share = ((np.linalg.pinv(mixing) @ scaled) ** 2).mean(1)
    order = np.argsort(-share, kind="stable")
    z = found.maps[order][:, inside]
    z = (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)
    maps = np.zeros((len(z), len(usable)), np.float32)
    maps[:, usable] = [threshold_map(one) for one in z]
    clean_parameters = clean_columns(parameters, basis)
    features = measure_features(mixing[:, order], maps, clean_parameters, tr_s, grid, seed=seed)
    spectrum = found.spectrum[:, order]
    features["high_frequency_content"] = formats.high_frequency_content(spectrum, tr_s)
    features.insert(0, "variance_explained", share[order])
    classify(features)
    if verdicts is not None:
        features["classification"] = np.where(verdicts[order], "rejected", "accepted")
        features["rule"] = "fix"
    noise = (features["classification"] == "rejected").to_numpy()
    return Components(mixing[:, order], maps, features, noise, found.converged, found.steps)
