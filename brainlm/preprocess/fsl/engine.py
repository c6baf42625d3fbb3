"""The ``fsl`` engine: motion, normalisation and ICA by FSL's programs, through nipype.

Same functions, same arguments and same results as the builtin engine's ``motion.rigid``,
``normalise.registration`` and ``denoise.ica``; FSL fits, and everything after the fit is ours
(one interpolation, the ICA-AROMA rule). FIX, where its weights are named, judges instead of that
rule: :mod:`.fix`.

THIS ENGINE HAS NEVER MET A REAL FSL. It was written from FSL's documentation, and tested by the
command lines that are built, by files in FSL's formats, and against stand-ins that copy the
programs' contract. Look at the registration pictures of the first recordings that it processes.

MCFLIRT, FLIRT and FNIRT: Jenkinson et al. 2002, NeuroImage 17:825; Andersson et al. 2007, FMRIB
report TR07JA2. MELODIC: Beckmann and Smith 2004, IEEE Trans Med Imaging 23:137. FSL's licence
forbids commercial use; nothing of FSL is part of this package.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..denoise.aroma import classify_components, measure_features
from ..denoise.filter import clean_columns, filter_basis
from ..denoise.ica import Components, threshold_map, usable_points
from ..denoise.ica_grid import ComponentGrid
from ..io.derivatives import write_volume
from ..motion import rigid as own_motion
from ..motion.brain_mask import brain_mask
from ..motion.rigid import Motion
from ..normalise import tissue_fit as fit_model
from ..normalise.agreement import check_image, check_pose, check_quality
from ..normalise.pose import find_pose
from ..normalise.registration import as_normalisation
from ..normalise.template import Template
from ..normalise.warp import WarpField, assess_field
from . import formats
from .commands import (
    SUBSAMPLING,
    bet,
    convertwarp,
    flirt,
    fnirt,
    mcflirt,
    melodic,
    run_program,
    workspace,
)

#: Levels that an EPI image of some 3 mm supports; the last two are finer than its voxels.
EPI_LEVELS = 4
#: How far outside the template's brain an EPI image, which is zero there, is matched.
RIM_MM = 6.0


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
    usable = np.flatnonzero(own_motion.find_usable(volumes))
    nearest = usable[np.abs(np.arange(len(volumes))[:, None] - usable).argmin(axis=1)]
    filled = volumes if len(usable) == len(volumes) else volumes[nearest]  # a copy is a gigabyte
    start = int(nearest[own_motion.most_typical(filled)])
    with workspace("motion_failed") as folder:
        write_volume(folder / "bold.nii", filled, affine, space="scanner")
        made = run_program(mcflirt(folder / "bold.nii", folder / "realigned.nii", start), folder)
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
        As in :func:`brainlm.preprocess.normalise.registration.normalise`.

    Raises
    ------
    RecordingError
        ``registration_failed``: empty, upside-down, not a brain, or an FSL program failed.
    """
    affine = np.asarray(affine, np.float64)
    image, mask = check_image(reference, affine, mask)
    pose, agreement, turned = find_pose(image, mask, affine, template)
    upright = fit_model.State(pose, np.zeros((3, *fit_model.COSINES[::-1])))
    check_pose(agreement, turned, as_normalisation(template, upright, "direct"))
    moving = fit_model.Image(image * mask, affine)
    brain = template.t1w * template.mask
    with workspace("registration_failed") as folder:
        write_volume(folder / "boldref.nii", moving.data, affine, space="scanner")
        write_volume(folder / "template.nii", brain, template.affine, space="template")
        if t1w is None:
            fit = _match_epi(folder, moving, template)
        else:
            fit = _match_t1w(folder, moving, template, np.nan_to_num(t1w), np.asarray(t1w_affine))
    fit = replace(fit, quality=assess_field(fit, moving, mask, template))
    check_quality(fit)
    return fit


def _match_epi(folder: Path, moving: Any, template: Template) -> WarpField:
    from scipy import ndimage

    boldref, reference = folder / "boldref.nii", folder / "template.nii"
    mat = run_program(flirt(boldref, reference, 12), folder).out_matrix_file
    bold = formats.world_to_scaled_mm(moving.affine, moving.data.shape)
    target = formats.world_to_scaled_mm(template.affine, template.t1w.shape)
    affine = formats.to_world(formats.read_matrix(mat), bold, target)
    contrast = _tissues_like(moving, template, affine)
    write_volume(folder / "contrast.nii", contrast, template.affine, space="template")
    rim = ndimage.distance_transform_edt(~template.mask) * template.affine[0, 0] <= RIM_MM
    write_volume(folder / "refmask.nii", rim, template.affine, space="template")
    bend = fnirt(boldref, folder / "contrast.nii", Path(mat), folder / "refmask.nii", EPI_LEVELS)
    coefficients = Path(run_program(bend, folder).fieldcoeff_file)
    field = run_program(convertwarp(reference, coefficients, None), folder).out_file
    return _to_field(field, template, bold, affine, "direct")


def _match_t1w(
    folder: Path, moving: Any, template: Template, t1w: np.ndarray, t1w_affine: np.ndarray
) -> WarpField:
    boldref, head, reference = (folder / f"{n}.nii" for n in ("boldref", "t1w", "template"))
    write_volume(head, t1w.astype(np.float32), t1w_affine, space="scanner")
    write_volume(folder / "refmask.nii", template.mask, template.affine, space="template")
    brain = Path(run_program(bet(head), folder).out_file)
    rigid = Path(run_program(flirt(boldref, brain, 6), folder).out_matrix_file)
    mat = Path(run_program(flirt(brain, reference, 12), folder).out_matrix_file)
    bend = fnirt(head, reference, mat, folder / "refmask.nii", len(SUBSAMPLING))
    coefficients = Path(run_program(bend, folder).fieldcoeff_file)
    field = run_program(convertwarp(reference, coefficients, rigid), folder).out_file
    bold = formats.world_to_scaled_mm(moving.affine, moving.data.shape)
    anatomy = formats.world_to_scaled_mm(t1w_affine, t1w.shape)
    target = formats.world_to_scaled_mm(template.affine, template.t1w.shape)
    affine = formats.to_world(formats.read_matrix(rigid), bold, anatomy)
    affine = affine @ formats.to_world(formats.read_matrix(mat), anatomy, target)
    return _to_field(field, template, bold, affine, "t1w")


def _tissues_like(moving: Any, template: Template, affine: np.ndarray) -> np.ndarray:
    """The template's tissue maps, weighted to look like the image where `affine` puts them."""
    from ..kernels.sampling import sample_smooth

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


# ---- independent components -----------------------------------------------------------------


def fit_ica(
    samples: np.ndarray,
    tr_s: float,
    parameters: np.ndarray,
    grid: ComponentGrid,
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
        As in :func:`brainlm.preprocess.denoise.ica.fit_ica`.
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
        found = formats.read_melodic(run_program(interface, folder).out_dir)
        if len(found.mixing) != len(samples) or found.maps.shape[1:] != inside.shape:
            raise ValueError("MELODIC's files are not of this recording's shape")
    return judge(found, data, usable, inside, basis, tr_s, parameters, grid, seed)


def judge(
    found, data, usable, inside, basis, tr_s, parameters, grid, seed, verdicts=None
) -> Components:
    """Components, largest share of variance first, with features and verdicts.

    The ICA-AROMA rule's verdicts, or those given (bool [C], FIX's) next to the same features.
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
    features["high_frequency_content"] = formats.read_high_frequency(spectrum, tr_s)
    features.insert(0, "variance_explained", share[order])
    classify_components(features)
    if verdicts is not None:
        features["classification"] = np.where(verdicts[order], "rejected", "accepted")
        features["rule"] = "fix"
    noise = (features["classification"] == "rejected").to_numpy()
    return Components(mixing[:, order], maps, features, noise, found.converged, found.steps)
