"""The stages of one recording. Each reads what the one before wrote, so each can be rerun alone.

motion -> normalise -> denoise -> parcellate, for raw images; `delivered` has those of cohorts
that enter later. A stage writes small fits as BIDS derivatives and returns figures for the stage
table. What it writes depends on its input and its parameters only, byte for byte; times are in
the figures alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np

from ..atlas import Atlas
from ..cohort.recordings import Entry
from ..config import Preprocess
from ..errors import BrainLMError, RecordingError
from ..files import atomic_path, read_json, sha256, write_json
from .confounds import (
    MOTION_NAMES,
    choose_nuisance,
    describe_confounds,
    motion_columns,
    motion_part,
    tissue_columns,
)
from .derivatives import (
    Derivatives,
    describe_dataset,
    read_table,
    read_transforms,
    read_volume,
    sidecar,
    write_table,
    write_transforms,
    write_volume,
)
from .read import Bold, read_bold, read_image
from .registry import PARAMETERS, STAGE_VERSIONS

Figures = dict[str, Any]
#: DVARS and tSNR are measured on a lattice of at most this many voxels of the brain mask.
QUALITY_POINTS = 20_000
#: cc; brain masks outside this range are not of a brain
BRAIN_RANGE_CC = (300.0, 3000.0)
#: Share of the brain's median intensity below which a point is outside the image's content.
EMPTY_SHARE = 0.05


@dataclass(frozen=True)
class Stage:
    """A stage, and what its result depends on.

    Attributes
    ----------
    function : callable
        ``(entry, out, series_dir, config, atlas) -> figures``.
    version : int
        Raised when the code changes its output.
    parameters : callable
        The configuration keys that change this stage's result.
    """

    name: str
    function: Callable[[Entry, Path, Path, Preprocess, Atlas], Figures]
    version: int
    parameters: Callable[[Preprocess], dict[str, Any]]


@contextmanager
def _timed(figures: Figures, step: str):
    start = time.perf_counter()
    yield
    figures[f"{step}_s"] = round(time.perf_counter() - start, 3)


def _reproducible(function: Callable[..., Figures]) -> Callable[..., Figures]:
    """One thread for matrix products: their rounding, and so the bytes, depend on the number.

    It is also faster where recordings run side by side: threads that wait for a busy core spin.
    """

    @wraps(function)
    def run(*arguments: Any) -> Figures:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, user_api="blas"):
            return function(*arguments)

    return run


def prepare(stage: str, config: Preprocess, atlas: Atlas) -> None:
    """Load what all recordings of a stage share, before a chunk is forked into processes.

    Raises
    ------
    BrainLMError
        The programs of the configured engine are not there.
    """
    from . import denoise, mask, motion, normalise, parcellate, sampling, template  # noqa: F401

    if config.engine == "fsl" and stage in ("motion", "normalise", "denoise"):
        _engine(config, None)
    if stage == "normalise":
        template.load_template(_space(atlas))
    elif stage == "denoise":
        denoise.load_grid(_space(atlas))
    elif stage in ("parcellate", "volumes"):
        parcellate.parcel_points(atlas)


@_reproducible
def motion(entry: Entry, out: Path, series_dir: Path, config: Preprocess, atlas: Atlas) -> Figures:
    """Read, check, drop non-steady volumes, correct slice times if asked, estimate motion.

    Raises
    ------
    RecordingError
        ``unreadable``, ``bad_metadata``, ``bad_data``, ``too_short`` or ``motion_failed``.
    """
    from . import motion as builtin
    from .mask import brain_mask
    from .quality import count_non_steady

    engine = _engine(config, builtin)
    figures: Figures = {}
    with _timed(figures, "read"):
        bold = read_bold(entry.path)
    count, tr_s = len(bold.volumes), bold.tr_s
    acquired = {"repetition_time_s": tr_s, "duration_s": count * tr_s}
    dropped = count_non_steady(bold.volumes)
    usable_s = (count - dropped) * tr_s
    if usable_s < config.min_duration_s:
        raise RecordingError(
            "too_short",
            f"{usable_s:.1f} s usable ({count - dropped} volumes of {tr_s:g} s), at least "
            f"{config.min_duration_s:g} s needed",
            **acquired,
        )
    bold = _settled(bold, dropped, config)
    with _timed(figures, "motion"):
        estimate = engine.estimate_motion(bold.volumes, bold.affine)
        mask = brain_mask(estimate.reference, bold.affine)
    _check_brain(mask, bold.affine, acquired)
    with _timed(figures, "quality"):
        columns, measured, tsnr = _measure(bold, estimate, mask)
    figures |= acquired | {"num_volumes": count, "dropped_volumes": dropped} | measured
    paths = Derivatives(out, entry.recording_id, atlas)
    describe_dataset(out, _cohort_folder(entry))
    write_volume(paths.boldref, estimate.reference, bold.affine, space="scanner")
    write_volume(paths.mask, mask, bold.affine, space="scanner")
    write_volume(paths.tsnr, *tsnr, space="scanner")
    write_transforms(paths.transforms, estimate.transforms)
    _describe_transforms(paths, entry, estimate)
    write_table(paths.confounds, columns)
    steps = ("read_s", "motion_s", "quality_s")
    stated = {key: value for key, value in figures.items() if key not in steps}
    write_json(
        sidecar(paths.boldref),
        {
            "Description": "Reference image of motion correction",
            "Sources": [f"bids:raw:{entry.source}"],
            "SkullStripped": False,
            "RepetitionTime": tr_s,
            "NumberOfVolumesDiscardedByPipeline": dropped,
            "SliceTimingCorrected": _can_correct_slices(bold, config),
            "Engine": _engine_name(config),
            "Parameters": _parameters("motion", config, engine),
            "Warnings": bold.warnings,
            "Figures": _plain(stated),
        },
    )
    write_json(sidecar(paths.mask), {"Type": "Brain", "Sources": [_uri(out, paths.boldref)]})
    write_json(
        sidecar(paths.tsnr),
        {
            "Description": "Temporal mean / SD of motion-corrected, detrended voxels on a lattice "
            "of the image; 0 elsewhere",
            "Sources": [f"bids:raw:{entry.source}"],
        },
    )
    write_json(sidecar(paths.confounds), describe_confounds(columns))
    return figures


@_reproducible
def normalise(
    entry: Entry, out: Path, series_dir: Path, config: Preprocess, atlas: Atlas
) -> Figures:
    """Fit template space to the reference image, through the T1w where there is one.

    Raises
    ------
    RecordingError
        ``registration_failed``.
    """
    from . import normalise as builtin
    from .template import load_template

    engine = _engine(config, builtin)
    figures: Figures = {}
    paths = Derivatives(out, entry.recording_id, atlas)
    template = load_template(_space(atlas))
    reference, affine = read_volume(paths.boldref)
    mask = read_volume(paths.mask)[0] > 0
    t1w = t1w_affine = None
    if config.use_t1w and entry.t1w is not None:
        with _timed(figures, "read"):
            t1w, t1w_affine = read_image(entry.t1w)
    with _timed(figures, "normalise"):
        fit = engine.normalise(
            reference, affine, template, mask=mask, t1w=t1w, t1w_affine=t1w_affine
        )
    fit.save(paths.normalisation)
    quality = {key: value for key, value in dict(fit.quality).items() if np.isscalar(value)}
    write_json(
        sidecar(paths.normalisation),
        {
            "Description": "Template mm -> reference world mm",
            "Sources": [_uri(out, paths.boldref)],
            "Method": fit.method,
            "Engine": _engine_name(config),
            "Parameters": _parameters("normalise", config, engine),
            "Template": template.space,
            "TemplateImage": template.image_space,
            "TemplateNote": template.note,
            "Quality": _plain(quality),
        },
    )
    return figures | {"method": fit.method, **quality}


@_reproducible
def denoise(
    entry: Entry, out: Path, series_dir: Path, config: Preprocess, atlas: Atlas
) -> Figures:
    """Tissue signals, and by configuration an ICA with its verdicts, into the confounds table.

    Raises
    ------
    RecordingError
        ``denoise_failed``.
    """
    from . import denoise as builtin
    from .denoise import load_grid
    from .filter import cosine_basis, filter_basis

    engine = _engine(config, builtin)
    _check_t1w(entry, config)
    figures: Figures = {}
    paths = Derivatives(out, entry.recording_id, atlas)
    with _timed(figures, "read"):
        bold = _prepared(entry, paths, config)
    grid = load_grid(_space(atlas))
    with _timed(figures, "sample"):
        samples = _sample_grid(bold, paths, grid)
    confounds = motion_part(read_table(paths.confounds))
    parameters = np.column_stack([confounds[name] for name in MOTION_NAMES])
    whole = filter_basis(len(samples), bold.tr_s, config.high_pass_hz)
    confounds |= tissue_columns(samples, grid, whole)
    basis = cosine_basis(len(samples), bold.tr_s, config.high_pass_hz)
    confounds |= {f"cosine{k:02d}": basis[:, k + 1] for k in range(basis.shape[1] - 1)}
    if config.uses_ica:
        with _timed(figures, "ica"):
            samples = _smooth_for_ica(samples, bold.affine, grid)
            fit = _fit_ica(engine, entry, bold, paths, samples, parameters, grid, config)
        numbers = np.flatnonzero(fit.noise) + 1
        confounds |= {f"aroma_motion_{n:02d}": fit.mixing[:, n - 1] for n in numbers}
        figures |= {
            "num_components": len(fit.noise),
            "num_removed": int(fit.noise.sum()),
            "ica_iterations": fit.iterations,
            "ica_converged": int(fit.converged),
        }
        _write_components(paths, fit, grid, bold.tr_s, config, engine)
    else:
        for stale in (paths.mixing, paths.metrics, paths.maps):
            stale.unlink(missing_ok=True)
            sidecar(stale).unlink(missing_ok=True)
    write_table(paths.confounds, confounds)
    write_json(sidecar(paths.confounds), describe_confounds(confounds))
    return figures


@_reproducible
def parcellate(
    entry: Entry, out: Path, series_dir: Path, config: Preprocess, atlas: Atlas
) -> Figures:
    """The only interpolation: raw volumes to parcel means; then clean, percent, resample.

    Raises
    ------
    RecordingError
        ``parcellation_failed`` or ``denoise_failed``.
    """
    from .filter import clean
    from .parcellate import to_percent
    from .resample import resample

    figures: Figures = {}
    paths = Derivatives(out, entry.recording_id, atlas)
    with _timed(figures, "read"):
        bold = _prepared(entry, paths, config)
    with _timed(figures, "sample"):
        raw, coverage = _sample_parcels(bold, paths, atlas)
    with _timed(figures, "clean"):
        nuisance, signal = _nuisance(paths, config)
        band_pass = partial(
            clean,
            tr_s=bold.tr_s,
            high_pass_hz=config.high_pass_hz,
            low_pass_hz=config.low_pass_hz,
        )
        cleaned = band_pass(raw, nuisance=nuisance, signal=signal)
        percent, baseline, coverage = to_percent(raw, cleaned, coverage, config.min_coverage)
        alive = np.isfinite(baseline)
        filtered = band_pass(100 * raw[:, alive] / baseline[alive])
        series = resample(percent, bold.tr_s, config.sample_period_s).astype(np.float32)
    figures |= _acquired(paths) | {
        "num_timepoints": len(series),
        "parcels_with_data": int(alive.sum()),
        "mean_coverage": float(coverage.mean()),
        **_compare(filtered, percent[:, alive], read_table(paths.confounds)),
    }
    _write_coverage(paths.coverage, atlas, coverage, baseline)
    before = np.full(percent.shape, np.nan)
    before[:, alive] = filtered
    _write_filtered(paths.filtered, resample(before, bold.tr_s, config.sample_period_s), config)
    with _timed(figures, "outputs"):
        cleaner = partial(band_pass, nuisance=nuisance, signal=signal)
        _write_outputs(entry, out, paths, config, atlas, bold, series, cleaner)
    _write_series(
        series_dir,
        entry,
        series=series,
        baseline=baseline.astype(np.float32),
        coverage=coverage.astype(np.float32),
        tr_s=bold.tr_s,
        sample_period_s=config.sample_period_s,
        units="percent",
        **{key: figures[key] for key in ("duration_s", "mean_fd_mm", "mean_dvars", "tsnr")},
    )
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


# ---- what a recording is to every stage: the same volumes


def _settled(bold: Bold, dropped: int, config: Preprocess) -> Bold:
    """Without the non-steady volumes, slice times corrected where asked and known."""
    volumes = bold.volumes[dropped:]
    if _can_correct_slices(bold, config):
        volumes = _shift_slices(volumes, bold.tr_s, bold.sidecar)
    return Bold(volumes, bold.affine, bold.tr_s, bold.sidecar, bold.warnings)


def _can_correct_slices(bold: Bold, config: Preprocess) -> bool:
    return config.slice_timing and "SliceTiming" in bold.sidecar


def _shift_slices(volumes: np.ndarray, tr_s: float, metadata: dict) -> np.ndarray:
    """Cubic interpolation in time to the middle of the slices' acquisition."""
    from scipy.interpolate import CubicSpline

    times = np.asarray(metadata["SliceTiming"], np.float64)
    direction = metadata.get("SliceEncodingDirection", "k")
    axis = {"k": 1, "j": 2, "i": 3}[direction[0]]
    if direction.endswith("-"):
        times = times[::-1]
    if len(times) != volumes.shape[axis] or times.min() < 0 or times.max() >= tr_s:
        raise RecordingError(
            "bad_metadata",
            f"SliceTiming: expected {volumes.shape[axis]} times from 0 to below {tr_s:g} s, found "
            f"{len(times)} from {times.min():g} to {times.max():g}; correct it or set "
            "slice_timing: false",
        )
    middle = (times.max() + times.min()) / 2
    clock = np.arange(len(volumes)) * tr_s
    out = np.empty_like(volumes)
    for index, start in enumerate(times):
        part: tuple = (slice(None),) * axis + (index,)
        wanted = np.clip(clock + middle, start, clock[-1] + start)
        out[part] = CubicSpline(clock + start, volumes[part])(wanted)
    return out


def _prepared(entry: Entry, paths: Derivatives, config: Preprocess) -> Bold:
    if not sidecar(paths.boldref).exists():
        raise BrainLMError(f"{sidecar(paths.boldref)}: not found; run the motion stage first")
    made = read_json(sidecar(paths.boldref))
    return _settled(read_bold(entry.path), made["NumberOfVolumesDiscardedByPipeline"], config)


def _engine(config: Preprocess, builtin: Any) -> Any:
    """The module that fits: `builtin`, or the FSL engine, which has the same functions."""
    if config.engine == "builtin":
        return builtin
    from . import fsl

    fsl.require_commands(config)
    return fsl


def _engine_name(config: Preprocess) -> str:
    """For the sidecars: what fitted, and FSL's version where it says one."""
    if config.engine == "builtin":
        return "brainlm-pipeline"
    from .fsl import read_version

    return f"FSL {read_version()}"


def _parameters(stage: str, config: Preprocess, engine: Any = None) -> dict[str, Any]:
    """All that a stage's result depends on beside its input, for the sidecar."""
    chosen = PARAMETERS[stage](config)
    chosen.pop("outputs", None)
    return chosen | getattr(engine, "SETTINGS", {})


def _space(atlas: Atlas) -> str:
    if atlas.space is None:
        raise BrainLMError(
            f"atlas {atlas.name}: known by its time series only; raw images need an atlas with a "
            "label image"
        )
    return atlas.space


def _cohort_folder(entry: Entry) -> Path:
    return entry.path.parents[len(Path(entry.source).parts) - 1]


def _uri(out: Path, path: Path) -> str:
    return f"bids::{path.relative_to(out)}"


# ---- motion


def _check_brain(mask: np.ndarray, affine: np.ndarray, acquired: dict) -> None:
    volume_cc = float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
    low, high = BRAIN_RANGE_CC
    if not low <= volume_cc <= high:
        raise RecordingError(
            "bad_data",
            f"nothing that looks like a whole brain: the brain mask holds {volume_cc:.0f} cc, "
            f"expected {low:g} to {high:g}",
            **acquired,
        )


def _measure(bold: Bold, estimate: Any, mask: np.ndarray) -> tuple[dict, Figures, tuple]:
    """Confound columns, figures and the tSNR map with its affine that motion correction yields."""
    from .filter import filter_basis
    from .motion import framewise_displacement_jenkinson, framewise_displacement_power
    from .quality import choose_lattice, measure_dvars, measure_tsnr
    from .sampling import sample

    steps = choose_lattice(mask, bold.affine, QUALITY_POINTS)
    lattice = mask[:: steps[0], :: steps[1], :: steps[2]].copy()
    affine = bold.affine @ np.diag([*steps[::-1], 1])
    points = np.argwhere(lattice)[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    series = sample(bold.volumes, bold.affine, points, estimate.transforms)
    inside = np.isfinite(series).all(0)
    series = series[:, inside]
    lattice[lattice] = inside
    dvars, std_dvars = measure_dvars(series)
    fd = framewise_displacement_power(estimate.parameters)
    rmsd = framewise_displacement_jenkinson(estimate.transforms, estimate.centre)
    columns = motion_columns(estimate.parameters)
    columns |= {
        "framewise_displacement": _first_missing(fd),
        "rmsd": _first_missing(rmsd),
        "dvars": 10 * dvars,
        "std_dvars": std_dvars,
    }
    tsnr = measure_tsnr(series, filter_basis(len(series), bold.tr_s, 0.008))
    tsnr_map = np.zeros(lattice.shape, np.float32)
    tsnr_map[lattice] = np.round(np.nan_to_num(tsnr), 1)
    figures = {
        "mean_fd_mm": float(np.nanmean(columns["framewise_displacement"])),
        "max_fd_mm": float(np.nanmax(columns["framewise_displacement"])),
        "mean_dvars": float(np.nanmean(dvars)),
        "tsnr": float(np.nanmedian(tsnr)) if np.isfinite(tsnr).any() else np.nan,
        "brain_cc": float(mask.sum() * abs(np.linalg.det(bold.affine[:3, :3])) / 1000),
        "reference_volume": int(estimate.reference_index),
    }
    return columns, figures, (tsnr_map, affine)


def _first_missing(values: np.ndarray) -> np.ndarray:
    """Displacement of the first volume is unknown, not 0."""
    values = np.asarray(values, np.float64).copy()
    values[0] = np.nan
    return values


def _describe_transforms(paths: Derivatives, entry: Entry, estimate: Any) -> None:
    write_json(
        sidecar(paths.transforms),
        {
            "Description": "One rigid transform per volume: reference world -> volume's world, "
            "ITK text (LPS)",
            "Sources": [f"bids:raw:{entry.source}"],
            "ReferenceVolume": int(estimate.reference_index),
            "CentreOfRotation": [float(value) for value in estimate.centre],
        },
    )


# ---- denoise


def _sample_grid(bold: Bold, paths: Derivatives, grid: Any) -> np.ndarray:
    """Motion-corrected samples [T, N] on a grid of template space; NaN outside the brain."""
    from .sampling import sample_smooth
    from .warp import load_normalisation

    world = load_normalisation(paths.normalisation)(grid.points)
    samples = sample_smooth(bold.volumes, bold.affine, world, read_transforms(paths.transforms))
    brain, affine = read_volume(paths.mask)
    with np.errstate(invalid="ignore"):
        samples[:, ~(sample_smooth(brain[None], affine, world)[0] > 0.5)] = np.nan
    return samples


def _smooth_for_ica(samples: np.ndarray, affine: np.ndarray, grid: Any) -> np.ndarray:
    """The unfiltered spline smooths by 1.36 voxels; a Gaussian adds what is missing."""
    from .denoise import SMOOTH_FWHM_MM, smooth_grid

    voxel = abs(np.linalg.det(affine[:3, :3])) ** (1 / 3)
    missing = max(SMOOTH_FWHM_MM**2 - (1.36 * voxel) ** 2, 0) ** 0.5
    return smooth_grid(samples, grid, missing)


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
    from .fsl_fix import Native, fit_ica
    from .warp import load_normalisation

    t1w, t1w_affine = read_image(entry.t1w)
    native = Native(
        bold, read_transforms(paths.transforms), read_volume(paths.boldref)[0],
        read_volume(paths.mask)[0] > 0, load_normalisation(paths.normalisation)(grid.points),
        t1w, t1w_affine,
    )  # fmt: skip
    return fit_ica(samples, parameters, grid, native, config)


def _write_components(
    paths: Derivatives, fit: Any, grid: Any, tr_s: float, config: Preprocess, engine: Any
) -> None:
    parameters, judge = _parameters("denoise", config, engine), "Pruim et al. 2015"
    if config.fix_weights is not None:
        parameters |= {"FixWeightsSHA256": sha256(config.fix_weights)}
        judge += "; verdict by FIX, Salimi-Khorshidi et al. 2014"
    names = [f"component_{n:02d}" for n in fit.features.index]
    write_table(paths.mixing, dict(zip(names, fit.mixing.T, strict=True)))
    write_json(sidecar(paths.mixing), {"Description": "ICA time courses", "RepetitionTime": tr_s})
    features = fit.features.reset_index()
    write_table(paths.metrics, {name: features[name].to_numpy() for name in features})
    write_json(
        sidecar(paths.metrics),
        {
            "Description": f"Features and verdict of every component ({judge})",
            "Converged": fit.converged,
            "Iterations": fit.iterations,
            "Parameters": parameters,
        },
    )
    maps = np.zeros((len(fit.maps), *grid.mask.shape), np.float32)
    maps[:, grid.mask] = fit.maps
    # tenths of a z value in 16 bits: zeros below threshold, so the file stays small
    write_volume(paths.maps, np.round(maps * 10).astype(np.int16), grid.affine, space="template")
    write_json(sidecar(paths.maps), {"Description": "Thresholded maps", "Units": "z * 10"})


# ---- parcellate


def _sample_parcels(bold: Bold, paths: Derivatives, atlas: Atlas) -> tuple[np.ndarray, np.ndarray]:
    """Parcel means [T, R] and coverage [R]: the share of a parcel's points with image content."""
    from .parcellate import parcel_points
    from .sampling import sample, sample_parcels
    from .warp import load_normalisation

    points, labels = parcel_points(atlas)
    world = load_normalisation(paths.normalisation)(points)
    reference, affine = read_volume(paths.boldref)
    level = np.median(reference[read_volume(paths.mask)[0] > 0])
    with np.errstate(invalid="ignore"):
        filled = sample(reference[None], affine, world)[0] > EMPTY_SHARE * level
    series, inside = sample_parcels(
        bold.volumes,
        bold.affine,
        world[filled],
        labels[filled],
        atlas.num_parcels,
        read_transforms(paths.transforms),
    )
    total = np.bincount(labels, minlength=atlas.num_parcels + 1)[1:]
    kept = np.bincount(labels[filled], minlength=atlas.num_parcels + 1)[1:]
    return series, np.nan_to_num(inside) * kept / total


def _nuisance(paths: Derivatives, config: Preprocess) -> tuple:
    confounds = read_table(paths.confounds)
    mixing, noise = np.empty((0, 0)), np.zeros(0, bool)
    if config.uses_ica:
        mixing = np.column_stack(list(read_table(paths.mixing).values()))
        noise = read_table(paths.metrics)["classification"] == "rejected"
    return choose_nuisance(config.denoise_steps, confounds, mixing, noise)


def _acquired(paths: Derivatives) -> Figures:
    """What the motion stage measured."""
    written = read_json(sidecar(paths.boldref))["Figures"]
    kept = ("repetition_time_s", "duration_s", "mean_fd_mm", "mean_dvars", "tsnr")
    return {key: np.nan if written[key] is None else float(written[key]) for key in kept}


def _compare(before: np.ndarray, after: np.ndarray, confounds: dict) -> Figures:
    """What denoising changed, from filtered and denoised percent series [T, covered parcels]."""
    from .quality import correlate_columns, fd_connectivity

    displacement = confounds["framewise_displacement"]
    return {
        "parcel_tsnr_before": float(np.median(100 / before.std(0))),
        "parcel_tsnr_after": float(np.median(100 / after.std(0))),
        "mean_abs_r_before": float(np.abs(correlate_columns(before)).mean()),
        "mean_abs_r_after": float(np.abs(correlate_columns(after)).mean()),
        "fd_connectivity_before": fd_connectivity(before, displacement),
        "fd_connectivity_after": fd_connectivity(after, displacement),
        "variance_kept": float(np.sum(after**2) / np.sum(before**2)),
    }


def _write_coverage(path: Path, atlas: Atlas, coverage: np.ndarray, baseline: np.ndarray) -> None:
    write_table(
        path,
        {
            "index": np.arange(1, atlas.num_parcels + 1),
            "name": np.array(atlas.names),
            "coverage": coverage,
            "baseline": baseline,
        },
    )
    write_json(
        sidecar(path),
        {
            "coverage": {"Description": "Share of the parcel with image content"},
            "baseline": {"Description": "Temporal mean, scanner units; n/a without data"},
        },
    )


def _write_outputs(entry, out, paths, config, atlas, bold, series, cleaner) -> None:
    """What ``outputs`` asks for, and nothing that an earlier run was asked for."""
    from . import outputs
    from .template import load_template

    outputs.remove_outputs(paths)
    sources = [f"bids:raw:{entry.source}", _uri(out, paths.normalisation)]
    if "timeseries" in config.outputs:
        names, period_s = list(atlas.names), config.sample_period_s
        outputs.write_timeseries(paths.timeseries, series, names, period_s, sources)
    if "volumes" in config.outputs:
        template = load_template(_space(atlas))
        outputs.write_denoised_volumes(paths, bold, template, cleaner, sources)
    if "fsl-matrices" in config.outputs:
        transforms, shape = read_transforms(paths.transforms), bold.volumes.shape
        outputs.write_fsl_matrices(paths.fsl_matrices, transforms, bold.affine, shape)


def _write_filtered(path: Path, series: np.ndarray, config: Preprocess) -> None:
    """The series without denoising, for the recording's page: what denoising took away."""
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, series=series.astype(np.float16))
    write_json(
        sidecar(path),
        {
            "Description": "Parcel means, filtered, not denoised [T, R]; n/a (NaN) without data",
            "Units": "percent",
            "SamplingFrequency": 1 / config.sample_period_s,
            "Parameters": {"denoise": config.denoise_steps, **_parameters("parcellate", config)},
        },
    )


def _write_series(series_dir: Path, entry: Entry, **arrays: Any) -> None:
    with atomic_path(Path(series_dir) / f"{entry.recording_id}.npz") as temporary:
        np.savez(temporary, **arrays)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """For JSON: no numpy types, None for NaN."""
    out = {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in out.items()}
