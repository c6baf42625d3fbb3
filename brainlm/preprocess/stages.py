"""The stages of one recording. Each reads what the one before wrote, so each can be rerun alone.

motion -> normalise -> denoise -> parcellate, for raw images; `delivered` and `delivered_series`
have those of cohorts that enter later. A stage writes small fits as BIDS derivatives and returns
figures for the stage table. What it writes depends on its input and its parameters only, byte for
byte; times are in the figures alone.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..atlas import Atlas
from ..cohort.recordings import Entry
from ..config import Preprocess
from ..errors import RecordingError
from ..files import plain_values, read_json, write_json
from .denoise.confounds import (
    MOTION_NAMES,
    describe_confounds,
    motion_part,
    read_nuisance,
    tissue_columns,
)
from .io.derivatives import (
    Derivatives,
    bids_uri,
    describe_dataset,
    read_table,
    read_transforms,
    read_volume,
    sidecar,
    write_table,
)
from .io.products import (
    write_components,
    write_coverage,
    write_filtered,
    write_motion,
    write_series,
)
from .io.read import read_bold, read_image
from .io.voxels import (
    corrects_slices,
    read_grid,
    read_parcels,
    read_prepared,
    settle,
    smooth_for_ica,
)
from .motion.quality import check_brain, check_duration, count_non_steady, measure_run
from .normalise.agreement import RefusedFit
from .normalise.template import load_template, space_of
from .parcellate.outputs import write_outputs
from .parcellate.series import make_filter, make_series
from .registry import PARAMETERS, STAGE_VERSIONS, state_parameters
from .stage import Figures, Stage, reproducible, timed


def prepare(stage: str, config: Preprocess, atlas: Atlas) -> None:
    """Load what all recordings of a stage share, before a chunk is forked into processes.

    Raises
    ------
    BrainLMError
        The programs of the configured engine are not there.
    """
    from .denoise import ica as denoise  # noqa: F401
    from .denoise import ica_grid as grid
    from .kernels import sampling  # noqa: F401
    from .motion import brain_mask as mask  # noqa: F401
    from .motion import rigid as motion  # noqa: F401
    from .normalise import registration as normalise  # noqa: F401
    from .parcellate import parcel_means as parcellate

    if config.engine == "fsl" and stage in ("motion", "normalise", "denoise"):
        _engine(config, None)
    if stage == "normalise":
        load_template(space_of(atlas))
    elif stage == "denoise":
        grid.load_grid(space_of(atlas))
    elif stage in ("parcellate", "volumes"):
        parcellate.parcel_points(atlas)


@reproducible
def motion(entry: Entry, out: Path, series_dir: Path, config: Preprocess, atlas: Atlas) -> Figures:
    """Read, check, drop non-steady volumes, correct slice times if asked, estimate motion.

    Raises
    ------
    RecordingError
        ``unreadable``, ``bad_metadata``, ``bad_data``, ``too_short`` or ``motion_failed``.
    """
    from .motion import rigid as builtin
    from .motion.brain_mask import brain_mask

    engine = _engine(config, builtin)
    figures: Figures = {}
    with timed(figures, "read"):
        bold = read_bold(entry.path)
    count, tr_s = len(bold.volumes), bold.tr_s
    acquired = {"repetition_time_s": tr_s, "duration_s": count * tr_s}
    dropped = count_non_steady(bold.volumes)
    check_duration(count - dropped, tr_s, config.min_duration_s, acquired)
    bold = settle(bold, dropped, config)
    with timed(figures, "motion"):
        estimate = engine.estimate_motion(bold.volumes, bold.affine)
        mask = brain_mask(estimate.reference, bold.affine)
    check_brain(mask, bold.affine, acquired)
    with timed(figures, "quality"):
        columns, measured, tsnr = measure_run(bold, estimate, mask)
    stated = acquired | {"num_volumes": count, "dropped_volumes": dropped} | measured
    describe_dataset(out, entry.cohort_folder)
    about = {
        "RepetitionTime": tr_s,
        "NumberOfVolumesDiscardedByPipeline": dropped,
        "SliceTimingCorrected": corrects_slices(bold, config),
        "Engine": _engine_name(config),
        "Parameters": state_parameters("motion", config, engine),
        "Warnings": bold.warnings,
        "Figures": plain_values(stated),
    }
    write_motion(out, entry, atlas, bold.affine, estimate, mask, tsnr, columns, about)
    return figures | stated


@reproducible
def normalise(
    entry: Entry, out: Path, series_dir: Path, config: Preprocess, atlas: Atlas
) -> Figures:
    """Fit template space to the reference image, through the T1w where there is one.

    Raises
    ------
    RecordingError
        ``registration_failed``.
    """
    from .normalise import registration as builtin

    engine = _engine(config, builtin)
    figures: Figures = {}
    paths = Derivatives(out, entry.recording_id, atlas)
    template = load_template(space_of(atlas))
    reference, affine = read_volume(paths.boldref)
    mask = read_volume(paths.mask)[0] > 0
    t1w = t1w_affine = None
    if config.use_t1w and entry.t1w is not None:
        with timed(figures, "read"):
            t1w, t1w_affine = read_image(entry.t1w)
    for stale in (paths.normalisation, sidecar(paths.normalisation), paths.refused):
        stale.unlink(missing_ok=True)
    try:
        with timed(figures, "normalise"):
            fit = engine.normalise(
                reference, affine, template, mask=mask, t1w=t1w, t1w_affine=t1w_affine
            )
    except RefusedFit as error:
        error.fit.save(paths.refused)
        raise
    fit.save(paths.normalisation)
    quality = {key: value for key, value in dict(fit.quality).items() if np.isscalar(value)}
    write_json(
        sidecar(paths.normalisation),
        {
            "Description": "Template mm -> reference world mm",
            "Sources": [bids_uri(out, paths.boldref)],
            "Method": fit.method,
            "Engine": _engine_name(config),
            "Parameters": state_parameters("normalise", config, engine),
            "Template": template.space,
            "TemplateImage": template.image_space,
            "TemplateNote": template.note,
            "Quality": plain_values(quality),
        },
    )
    return figures | {"method": fit.method, **quality}


@reproducible
def denoise(
    entry: Entry, out: Path, series_dir: Path, config: Preprocess, atlas: Atlas
) -> Figures:
    """Tissue signals, and by configuration an ICA with its verdicts, into the confounds table.

    Raises
    ------
    RecordingError
        ``denoise_failed``.
    """
    from .denoise import ica as builtin
    from .denoise.filter import cosine_basis, filter_basis
    from .denoise.ica_grid import load_grid

    engine = _engine(config, builtin)
    _check_t1w(entry, config)
    figures: Figures = {}
    paths = Derivatives(out, entry.recording_id, atlas)
    with timed(figures, "read"):
        bold = read_prepared(entry, paths, config)
    grid = load_grid(space_of(atlas))
    with timed(figures, "sample"):
        samples = read_grid(bold, paths, grid)
    confounds = motion_part(read_table(paths.confounds))
    parameters = np.column_stack([confounds[name] for name in MOTION_NAMES])
    whole = filter_basis(len(samples), bold.tr_s, config.high_pass_hz)
    confounds |= tissue_columns(samples, grid, whole)
    basis = cosine_basis(len(samples), bold.tr_s, config.high_pass_hz)
    confounds |= {f"cosine{k:02d}": basis[:, k + 1] for k in range(basis.shape[1] - 1)}
    if config.uses_ica:
        with timed(figures, "ica"):
            samples = smooth_for_ica(samples, bold.affine, grid)
            fit = _fit_ica(engine, entry, bold, paths, samples, parameters, grid, config)
        numbers = np.flatnonzero(fit.noise) + 1
        confounds |= {f"aroma_motion_{n:02d}": fit.mixing[:, n - 1] for n in numbers}
        figures |= {
            "num_components": len(fit.noise),
            "num_removed": int(fit.noise.sum()),
            "ica_iterations": fit.iterations,
            "ica_converged": int(fit.converged),
        }
        write_components(paths, fit, grid, bold.tr_s, config, engine)
    else:
        for stale in (paths.mixing, paths.metrics, paths.maps):
            stale.unlink(missing_ok=True)
            sidecar(stale).unlink(missing_ok=True)
    write_table(paths.confounds, confounds)
    write_json(sidecar(paths.confounds), describe_confounds(confounds))
    return figures


@reproducible
def parcellate(
    entry: Entry, out: Path, series_dir: Path, config: Preprocess, atlas: Atlas
) -> Figures:
    """The only interpolation: raw volumes to parcel means; then clean, percent, resample.

    Raises
    ------
    RecordingError
        ``parcellation_failed`` or ``denoise_failed``.
    """
    figures: Figures = {}
    paths = Derivatives(out, entry.recording_id, atlas)
    with timed(figures, "read"):
        bold = read_prepared(entry, paths, config)
    with timed(figures, "sample"):
        raw, coverage = read_parcels(bold, paths, atlas)
    with timed(figures, "clean"):
        nuisance, signal = read_nuisance(paths, config)
        cleaner = partial(make_filter(bold.tr_s, config), nuisance=nuisance, signal=signal)
        displacement_mm = read_table(paths.confounds)["framewise_displacement"]
        made = make_series(raw, coverage, bold.tr_s, config, displacement_mm, cleaner)
    figures |= _acquired(paths) | made.figures
    write_coverage(paths.coverage, atlas, made.coverage, made.baseline)
    write_filtered(paths.filtered, made.before, config)
    with timed(figures, "outputs"):
        write_outputs(entry, out, paths, config, atlas, bold, made.series, cleaner)
    kept = {key: figures[key] for key in ("duration_s", "mean_fd_mm", "mean_dvars", "tsnr")}
    write_series(series_dir, entry, made, bold.tr_s, config, **kept)
    return figures


STAGES: dict[str, Stage] = {
    name: Stage(name, function, STAGE_VERSIONS[name], PARAMETERS[name])
    for name, function in {
        "motion": motion,
        "normalise": normalise,
        "denoise": denoise,
        "parcellate": parcellate,
    }.items()
}


def _engine(config: Preprocess, builtin: Any) -> Any:
    """The module that fits: `builtin`, or the FSL engine, which has the same functions."""
    if config.engine == "builtin":
        return builtin
    from .fsl import commands as fsl_commands
    from .fsl import engine as fsl

    fsl_commands.require_commands(config)
    return fsl


def _engine_name(config: Preprocess) -> str:
    """For the sidecars: what fitted, and FSL's version where it says one."""
    if config.engine == "builtin":
        return "brainlm-pipeline"
    from .fsl.commands import read_version

    return f"FSL {read_version()}"


def _check_t1w(entry: Entry, config: Preprocess) -> None:
    """FIX reads tissues of the T1w image; without one it has nothing to say."""
    if config.fix_weights is not None and entry.t1w is None:
        raise RecordingError(
            "denoise_failed",
            f"{entry.source}: expected a T1w image of this participant, which FIX needs, found "
            "none; add it, exclude the recording, or leave preprocess.fix_weights out",
        )


def _fit_ica(engine, entry, bold, paths, samples, parameters, grid, config) -> Any:
    """Components judged by the ICA-AROMA rule on the grid, or by FIX in the run's own space."""
    if config.fix_weights is None:
        return engine.fit_ica(
            samples, bold.tr_s, parameters, grid, high_pass_hz=config.high_pass_hz
        )
    from .fsl.fix import Native, fit_ica
    from .normalise.warp import load_normalisation

    t1w, t1w_affine = read_image(entry.t1w)
    native = Native(
        bold, read_transforms(paths.transforms), read_volume(paths.boldref)[0],
        read_volume(paths.mask)[0] > 0, load_normalisation(paths.normalisation)(grid.points),
        t1w, t1w_affine,
    )  # fmt: skip
    return fit_ica(samples, parameters, grid, native, config)


def _acquired(paths: Derivatives) -> Figures:
    """What the motion stage measured."""
    written = read_json(sidecar(paths.boldref))["Figures"]
    kept = ("repetition_time_s", "duration_s", "mean_fd_mm", "mean_dvars", "tsnr")
    return {key: np.nan if written[key] is None else float(written[key]) for key in kept}
