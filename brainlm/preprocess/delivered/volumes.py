"""The stage of images in template space that were preprocessed elsewhere.

`take_volumes` is motion correction to resampling in one stage, for images that fMRIPrep, the HCP
pipelines or UK Biobank delivered: they were moved, and some were denoised, before; here they are
read where the atlas has voxels, filtered, freed of motion confounds where that is still to do,
and resampled. An image is streamed, a block of volumes at a time, so that 1,200 volumes on a
2 mm grid need no more memory than a few of them.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ...atlas import Atlas
from ...cohort.layouts import LAYOUTS, Companions
from ...cohort.layouts.cifti import DENSE
from ...cohort.recordings import Entry
from ...config import Cohort
from ...errors import RecordingError
from ...files import read_json, write_json
from ..io.derivatives import describe_dataset, sidecar
from ..io.read import OpenBold, open_bold
from ..parcellate.censoring import NOT_CENSORED, check_kept, choose_kept, describe_censored
from ..parcellate.dense_labels import is_dense, load_dense
from ..parcellate.series import make_filter, make_series
from ..quality import QUALITY_POINTS, check_duration
from ..stages.context import Context, Figures, reproducible, timed
from ..stages.products import write_coverage, write_filtered, write_series
from ..stages.voxels import EMPTY_SHARE
from .grayordinates import OpenDense, average_parcels, open_dense
from .movement import Movement, read_movement
from .series_checks import check_percent, check_values


def prepare(context: Context) -> None:
    from ..kernels import sampling  # noqa: F401
    from ..parcellate.parcel_means import parcel_points

    if is_dense(context.atlas):
        load_dense(context.atlas)
    else:
        parcel_points(context.atlas)


@reproducible
def take_volumes(entry: Entry, context: Context) -> Figures:
    """Images in template space (or with a warp to it) to parcel series.

    Raises
    ------
    RecordingError
        ``unreadable``, ``bad_metadata`` (also: a space that is not the atlas's, no confounds),
        ``bad_data``, ``too_short`` or ``parcellation_failed``.
    """
    cohort, config, atlas = context.cohort, context.options, context.atlas
    companions = LAYOUTS[cohort.layout].companions(entry.path)
    if entry.path.suffix == ".zip":
        raise RecordingError("unreadable", f"{entry.path}: still packed; unzip it in its folder")
    _agree_kind(entry, atlas)
    space = agree_space(companions.space, cohort, atlas)
    run: OpenBold | OpenDense
    if entry.path.name.endswith(DENSE):
        run = open_dense(entry.path, repetition_time_s=cohort.repetition_time_s)
    else:
        run = open_bold(
            entry.path, repetition_time_s=cohort.repetition_time_s, orientation=cohort.orientation
        )
    movement = _movement(companions, cohort, run)
    count, tr_s = run.shape[3], run.tr_s
    acquired = {"repetition_time_s": tr_s, "duration_s": count * tr_s}
    check_duration(count, tr_s, config.min_duration_s, acquired)
    figures: Figures = {}
    with timed(figures, "sample"):
        if isinstance(run, OpenDense):
            raw, coverage, voxels = average_parcels(run, atlas)
        else:
            raw, coverage, voxels = _sample(run, _world(companions, run, atlas), atlas)
    moved = movement.displacement_mm if movement else np.full(count, np.nan)
    kept = choose_kept(moved, config)
    check_values(raw[kept])
    dropped, quality = _quality(voxels, tr_s, movement)
    check_duration(count - dropped, tr_s, config.min_duration_s, acquired)
    check_kept(kept[dropped:], tr_s, config, **acquired)
    with timed(figures, "clean"):
        nuisance = _nuisance(movement, companions, cohort)
        columns = None if nuisance is None else nuisance[dropped:]
        moved, kept = moved[dropped:], kept[dropped:]
        cleaner = partial(make_filter(tr_s, config, kept), nuisance=columns)
        made = make_series(raw[dropped:], coverage, tr_s, config, moved, cleaner, kept)
    check_percent(made.before)
    warnings = run.warnings + describe_censored(kept, config)
    if config.censor is not None and movement is None:
        warnings.append(NOT_CENSORED)
    figures |= acquired | {"num_volumes": count, "dropped_volumes": dropped} | quality
    paths = context.files(entry)
    describe_dataset(context.derivatives, entry.cohort_folder)
    write_coverage(paths.coverage, atlas, made.coverage, made.baseline)
    source = {
        "Sources": [f"bids:raw:{entry.source}"],
        "Space": space,
        "AtlasSpace": atlas.space,
        "ConfoundsRemoved": [] if nuisance is None else list(cohort.confound_steps),
        "DenoisedBefore": companions.denoised,
        "Warnings": warnings,
    }
    write_filtered(paths.filtered, made.before, config, context.parameters("parcellate"))
    about = sidecar(paths.coverage)
    write_json(about, read_json(about) | source)
    known = {key: quality[key] for key in ("mean_fd_mm", "mean_dvars", "tsnr")}
    known |= {"duration_s": acquired["duration_s"], "start_s": dropped * tr_s}
    write_series(context.series, entry, made, tr_s, config, **known)
    return figures | made.figures | {"warnings": warnings}


def _agree_kind(entry: Entry, atlas: Atlas) -> None:
    """Grayordinates need an atlas of grayordinates, images one of voxels."""
    dense = entry.path.name.endswith(DENSE)
    if dense != is_dense(atlas):
        kinds = ("grayordinates", "a dlabel.nii") if dense else ("an image", "a label image")
        raise RecordingError(
            "bad_metadata",
            f"{entry.path}: {kinds[0]}; atlas {atlas.name} has not {kinds[1]}: choose an atlas "
            "that has one (atlases/README.md)",
        )


def agree_space(found: str | None, cohort: Cohort, atlas: Atlas) -> str:
    """The image's space, which is the atlas's or one that the configuration accepts by name.

    Raises
    ------
    RecordingError
        ``bad_metadata``: another space, or one that is not said.
    """
    named = cohort.space.split(":")[0] if cohort.space else None
    space = found or named
    if space is None:
        raise RecordingError(
            "bad_metadata", "the template of the image is unknown; set the cohort's space"
        )
    expected = atlas.space  # any: images that are in it need no template
    if space not in (expected, named):
        raise RecordingError(
            "bad_metadata",
            f"the image is in {space}, atlas {atlas.name} in {expected}: templates differ by "
            f"millimetres. Deliver it in {expected}, or accept the difference (it is recorded) "
            f"with space: {space} for cohort {cohort.name}",
        )
    return space


def _movement(
    companions: Companions, cohort: Cohort, run: OpenBold | OpenDense
) -> Movement | None:
    """What is known of the motion; an error if it is to be regressed and is not known."""
    if companions.motion is None:
        if companions.denoised or not cohort.confound_steps:
            return None
        raise RecordingError(
            "bad_metadata",
            f"{run.path}: no motion parameters next to it; add the file, or set confounds: none "
            f"for cohort {cohort.name}",
        )
    movement = read_movement(companions.motion)
    if len(movement.displacement_mm) != run.shape[3]:
        raise RecordingError(
            "bad_metadata",
            f"{companions.motion}: {len(movement.displacement_mm)} rows, the image has "
            f"{run.shape[3]} volumes; they are not of the same run",
        )
    return movement


def _nuisance(
    movement: Movement | None, companions: Companions, cohort: Cohort
) -> np.ndarray | None:
    """Columns to remove [T, C], or None."""
    from ..denoise.confounds import choose_nuisance, nuisance_names

    if movement is None or companions.denoised:
        return None
    steps = cohort.confound_steps
    there = {name for name, values in movement.columns.items() if np.isfinite(values).any()}
    lacking = {name for step in steps for name in nuisance_names(step)} - there
    if lacking:
        raise RecordingError(
            "bad_metadata",
            f"{companions.motion}: no column {', '.join(sorted(lacking))}, or an empty one; name "
            f"confounds for cohort {cohort.name} that it has",
        )
    chosen = choose_nuisance(steps, movement.columns, np.empty((0, 0)), np.zeros(0, bool))
    return chosen["nuisance"]


# ---- voxels


def _world(companions: Companions, run: OpenBold, atlas: Atlas) -> np.ndarray:
    """Where the atlas's voxels lie in the image's world, mm [N, 3]."""
    from ..parcellate.parcel_means import parcel_points

    points, _ = parcel_points(atlas)
    if companions.warp is None:
        return points
    if not companions.warp.is_file():
        raise RecordingError(
            "bad_metadata", f"{companions.warp}: no warp from the template to the image; unpack it"
        )
    from ..fsl.formats import load_warp, world_to_scaled_mm

    source = world_to_scaled_mm(run.affine, run.shape[2::-1])
    try:
        return load_warp(companions.warp, source)(points)
    except (ValueError, OSError, EOFError) as error:
        raise RecordingError("bad_metadata", f"{companions.warp}: {error}") from None


def _sample(
    run: OpenBold, world: np.ndarray, atlas: Atlas
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parcel means, coverage, and voxels to measure quality on.

    Returns
    -------
    series : float64 [T, R]
    coverage : float64 [R]
        Share of a parcel's points that lie in the image and on its content.
    voxels : float32 [T, N]
        Evenly spaced voxels of the parcels.
    """
    from ..parcellate.parcel_means import parcel_points

    _, labels = parcel_points(atlas)
    kept = np.zeros(len(labels), bool)
    picked = np.empty(0, np.intp)
    series, voxels = [], []
    for number, block in enumerate(run.blocks()):
        if number == 0:
            kept, picked = _choose(block, run.affine, world)
            means = _reader(block, run.affine, world[kept], labels[kept], atlas)
        series.append(means(block))
        voxels.append(block.reshape(len(block), -1)[:, picked])
    total = np.bincount(labels, minlength=atlas.num_parcels + 1)[1:]
    counted = np.bincount(labels[kept], minlength=atlas.num_parcels + 1)[1:]
    return np.concatenate(series), counted / total, np.concatenate(voxels)


def _choose(
    block: np.ndarray, affine: np.ndarray, world: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Points on the image's content [N], by the first volumes; flat indices of voxels there."""
    from ..kernels.sampling import sample

    values = sample(block.mean(0, keepdims=True), affine, world)[0]
    inside = np.isfinite(values) & (values > 0)
    level = np.median(values[inside]) if inside.any() else np.inf
    with np.errstate(invalid="ignore"):
        kept = values > EMPTY_SHARE * level
    if not kept.any():
        raise RecordingError(
            "bad_data",
            "no image content where the atlas has voxels: the orientation is wrong, or the "
            "images are residuals around 0 (deliver images with their mean)",
        )
    inverse = np.linalg.inv(affine)
    size = np.array(block.shape[:0:-1])
    index = np.rint(world[kept] @ inverse[:3, :3].T + inverse[:3, 3]).astype(np.intp)
    index = np.clip(index, 0, size - 1)
    flat = np.unique(np.ravel_multi_index(tuple(index.T[::-1]), block.shape[1:]))
    return kept, flat[:: max(1, len(flat) // QUALITY_POINTS)]


def _reader(block: np.ndarray, affine: np.ndarray, world, labels, atlas: Atlas):
    """Parcel means [t, R] of a block: voxel by voxel on the points' own grid, else by splines."""
    from ..kernels.sampling import sample_parcels
    from ..parcellate.parcel_means import parcellate_volumes

    inverse = np.linalg.inv(affine)
    index = world @ inverse[:3, :3].T + inverse[:3, 3]
    voxels = np.rint(index).astype(np.intp)
    if np.abs(index - voxels).max() < 1e-3:
        grid = np.zeros(block.shape[1:], np.int32)
        grid[tuple(voxels.T[::-1])] = labels
        if np.count_nonzero(grid) == len(labels):
            return partial(parcellate_volumes, labels=grid, num_parcels=atlas.num_parcels)
    return lambda volumes: sample_parcels(volumes, affine, world, labels, atlas.num_parcels)[0]


def _quality(voxels: np.ndarray, tr_s: float, movement: Movement | None) -> tuple[int, Figures]:
    """Leading volumes to drop, and figures of the rest."""
    from ..denoise.filter import filter_basis
    from ..quality import count_non_steady, measure_dvars, measure_level, measure_tsnr

    marked = movement.non_steady if movement else 0
    dropped = max(marked, count_non_steady(measure_level(voxels)))
    rest = voxels[dropped:]
    moved = movement.displacement_mm[dropped + 1 :] if movement else np.array([np.nan])
    known = np.isfinite(moved).any()
    return dropped, {
        "mean_fd_mm": float(np.nanmean(moved)) if known else float("nan"),
        "max_fd_mm": float(np.nanmax(moved)) if known else float("nan"),
        "mean_dvars": float(np.nanmean(measure_dvars(rest)[0])),
        "tsnr": float(np.nanmedian(measure_tsnr(rest, filter_basis(len(rest), tr_s, 0.008)))),
    }
