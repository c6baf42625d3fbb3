"""The ``fsl`` engine: motion, normalisation and ICA by FSL's programs, through nipype.

Same functions, same arguments and same results as the builtin engine's ``motion.rigid``,
``normalise.registration`` and ``denoise.ica``. nipype makes the command lines and names the
files; FSL fits; here its matrices, warps and components are read (:mod:`.formats`), and
everything after the fit is ours (one interpolation, the ICA-AROMA rule).

THIS ENGINE HAS NEVER MET A REAL FSL: FSL's licence allows non-commercial use only, so it is not
run where this package is made. What is read of its files follows how its programs write them.
Look at the registration pictures of the first recordings that it processes.

MCFLIRT, FLIRT and FNIRT: Jenkinson et al. 2002, NeuroImage 17:825; Andersson et al. 2007, FMRIB
report TR07JA2. MELODIC: Beckmann and Smith 2004, IEEE Trans Med Imaging 23:137.
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
from .commands import bet, convertwarp, flirt, fnirt, mcflirt, melodic, run_program, workspace


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
        made = run_program(mcflirt(folder / "bold.nii", start), folder)
        scaled = formats.world_to_scaled_mm(affine, volumes.shape)
        transforms = formats.to_transforms(formats.read_mats(made.mat_file), scaled)
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
    mean = sum(image.dataobj[..., t].astype(np.float64) for t in range(shape[0])) / shape[0]
    apart = [np.sqrt(((image.dataobj[..., t] - mean) ** 2).mean()) for t in range(shape[0])]
    return np.ascontiguousarray(mean.T, np.float32), np.array(apart) / mean.std()


def normalise(
    reference: np.ndarray,
    affine: np.ndarray,
    template: Template,
    *,
    mask: np.ndarray | None = None,
    t1w: np.ndarray | None = None,
    t1w_affine: np.ndarray | None = None,
    insist: bool = True,
) -> WarpField:
    """FLIRT (12 parameters) from the reference image; with a T1w image, FNIRT through it.

    As in FEAT: without a T1w image the fit is affine, as FNIRT's configurations are for T1w
    images. With one, BET, FLIRT and FNIRT match it with the template, and FLIRT brings the
    reference to it (6 parameters, no boundaries). Orientation and quality are checked as those of
    the builtin engine.

    Parameters
    ----------
    reference, affine, template, mask, t1w, t1w_affine
        As in :func:`brainlm.preprocess.normalise.registration.normalise`.
    insist : bool
        Of no effect: where there is a T1w image the direct fit is not made.

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
    with workspace("registration_failed") as folder:
        boldref, target = folder / "boldref.nii", folder / "template.nii"
        write_volume(boldref, moving.data, affine, space="scanner")
        write_volume(target, template.t1w * template.mask, template.affine, space="template")
        if t1w is None:
            fit = _match_template(boldref, target, moving, template)
        else:
            fit = _match_t1w(boldref, target, moving, template, t1w, np.asarray(t1w_affine))
    fit = replace(fit, quality=assess_field(fit, moving, mask, template))
    check_quality(fit)
    return fit


def _match_template(boldref: Path, target: Path, moving: Any, template: Template) -> WarpField:
    to_target = _register(boldref, target, 12)
    affine = formats.to_world(formats.read_matrix(to_target), *_coordinates(moving, template))
    still = np.zeros((3, *template.mask.shape), np.float32)
    return WarpField(affine, template.affine, still, method="direct")


def _match_t1w(boldref, target, moving, template, t1w, t1w_affine) -> WarpField:
    folder = boldref.parent
    head, inside = folder / "t1w.nii", folder / "refmask.nii"
    write_volume(head, np.nan_to_num(t1w).astype(np.float32), t1w_affine, space="scanner")
    write_volume(inside, template.mask, template.affine, space="template")
    brain = Path(run_program(bet(head), folder).out_file)
    rigid, to_target = _register(boldref, brain, 6), _register(brain, target, 12)
    bent = run_program(fnirt(head, target, to_target, inside), folder)
    field = run_program(convertwarp(target, Path(bent.fieldcoeff_file), rigid), folder).out_file
    whole = formats.read_matrix(to_target) @ formats.read_matrix(rigid)
    source, reference = _coordinates(moving, template)
    affine = formats.to_world(whole, source, reference)
    return formats.load_warp(field, source, affine, method="t1w")


def _register(moving: Path, reference: Path, dof: int) -> Path:
    made = run_program(flirt(moving, reference, dof), moving.parent)
    return Path(made.out_matrix_file)


def _coordinates(moving: Any, template: Template) -> tuple[np.ndarray, np.ndarray]:
    """World -> FSL's coordinates of the image and of the template."""
    return (
        formats.world_to_scaled_mm(moving.affine, moving.data.shape),
        formats.world_to_scaled_mm(template.affine, template.mask.shape),
    )


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
    seed.

    Parameters
    ----------
    samples, tr_s, parameters, grid, high_pass_hz
        As in :func:`brainlm.preprocess.denoise.ica.fit_ica`.
    seed : int
        For the subsets of volumes that correlations with motion are averaged over.

    Raises
    ------
    RecordingError
        ``denoise_failed``: too few points or volumes, or MELODIC failed or did not converge.
    """
    basis = filter_basis(len(samples), tr_s, high_pass_hz)
    usable = usable_points(samples, basis)
    data = clean_columns(samples[:, usable], basis)
    inside = np.zeros(grid.mask.shape, bool)
    inside[grid.mask] = usable
    with workspace("denoise_failed") as folder:
        volumes = np.zeros((len(samples), *grid.mask.shape), np.float32)
        volumes[:, inside] = data + samples[:, usable].mean(0)  # MELODIC scales by the mean
        write_volume(folder / "samples.nii", volumes, grid.affine, space="template")
        write_volume(folder / "mask.nii", inside, grid.affine, space="template")
        program = melodic(folder / "samples.nii", folder / "mask.nii", tr_s)
        found = formats.read_melodic(run_program(program, folder).out_dir)
        if len(found.mixing) != len(samples) or found.maps.shape[1:] != inside.shape:
            raise ValueError("MELODIC's files are not of this recording's shape")
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
    features.insert(0, "variance_explained", share[order])
    classify_components(features)
    noise = (features["classification"] == "rejected").to_numpy()
    return Components(mixing[:, order], maps, features, noise, True, found.steps)
