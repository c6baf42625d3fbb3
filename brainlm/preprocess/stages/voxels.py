"""A recording's voxels as its stages read them: settled volumes, on a grid, in parcels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...atlas import Atlas
from ...cohort.recordings import Entry
from ...config import Preprocess
from ...errors import BrainLMError, RecordingError
from ...files import read_json
from ..io.derivatives import Derivatives, read_transforms, read_volume, sidecar
from ..io.echoes import read_run
from ..io.read import Bold
from ..io.sidecars import read_field

if TYPE_CHECKING:
    from ..denoise.ica_grid import ComponentGrid

#: Share of the brain's median intensity below which a point is outside the image's content.
EMPTY_SHARE = 0.05


def settle(bold: Bold, dropped: int, config: Preprocess) -> Bold:
    """Without the non-steady volumes, slice times corrected where asked and known."""
    volumes = bold.volumes[dropped:]
    if corrects_slices(bold, config):
        volumes = shift_slices(volumes, bold.tr_s, bold.sidecar)
    return replace(bold, volumes=volumes)


def corrects_slices(bold: Bold, config: Preprocess) -> bool:
    return config.slice_timing and bold.sidecar.read("SliceTiming") is not None


def shift_slices(volumes: np.ndarray, tr_s: float, metadata: Mapping) -> np.ndarray:
    """Cubic interpolation in time to the middle of the slices' acquisition."""
    from scipy.interpolate import CubicSpline

    times = np.asarray(read_field(metadata, "SliceTiming"), np.float64)
    direction = read_field(metadata, "SliceEncodingDirection") or "k"
    axis = {"k": 1, "j": 2, "i": 3}[direction[0]]
    if direction.endswith("-"):
        times = times[::-1]
    if len(times) != volumes.shape[axis] or times.min() < 0 or times.max() >= tr_s:
        raise RecordingError(
            "bad_metadata",
            f"SliceTiming: expected {volumes.shape[axis]} times from 0 to below {tr_s:g} s, found "
            f"{len(times)} from {times.min():g} to {times.max():g}; correct it (or "
            "SliceEncodingDirection), or set slice_timing: false",
        )
    middle = (times.max() + times.min()) / 2
    clock = np.arange(len(volumes)) * tr_s
    out = np.empty_like(volumes)
    for index, start in enumerate(times):
        part: tuple = (slice(None),) * axis + (index,)
        wanted = np.clip(clock + middle, start, clock[-1] + start)
        out[part] = CubicSpline(clock + start, volumes[part])(wanted)
    return out


def read_prepared(entry: Entry, paths: Derivatives, config: Preprocess) -> Bold:
    if not sidecar(paths.boldref).exists():
        raise BrainLMError(f"{sidecar(paths.boldref)}: not found; run the motion stage again")
    made = read_json(sidecar(paths.boldref))
    bold = read_run(
        entry.list_echoes(),
        repetition_time_s=made["RepetitionTime"],
        orientation=made.get("Orientation"),
    )
    return settle(bold, made["NumberOfVolumesDiscardedByPipeline"], config)


def read_grid(bold: Bold, paths: Derivatives, grid: ComponentGrid) -> np.ndarray:
    """Motion-corrected samples [T, N] on a grid of template space; NaN outside the brain."""
    from ..kernels.sampling import sample_smooth
    from ..normalise.undistorted import place_points
    from ..normalise.warp import load_normalisation

    world, gains = place_points(load_normalisation(paths.normalisation), grid.points)
    transforms = read_transforms(paths.transforms)
    samples = sample_smooth(bold.volumes, bold.affine, world, transforms, gains)
    brain, affine = read_volume(paths.mask)
    with np.errstate(invalid="ignore"):
        samples[:, ~(sample_smooth(brain[None], affine, world)[0] > 0.5)] = np.nan
    return samples


def smooth_for_ica(samples: np.ndarray, affine: np.ndarray, grid: ComponentGrid) -> np.ndarray:
    """The unfiltered spline smooths; a Gaussian adds what is missing."""
    from ..denoise.ica_grid import SMOOTH_FWHM_MM, smooth_grid
    from ..kernels.sampling import SPLINE_FWHM

    voxel = abs(np.linalg.det(affine[:3, :3])) ** (1 / 3)
    missing = max(SMOOTH_FWHM_MM**2 - (SPLINE_FWHM * voxel) ** 2, 0) ** 0.5
    return smooth_grid(samples, grid, missing)


def read_parcels(bold: Bold, paths: Derivatives, atlas: Atlas) -> tuple[np.ndarray, np.ndarray]:
    """Parcel means [T, R] and coverage [R]: the share of a parcel's points with image content."""
    from ..kernels.sampling import sample, sample_parcels
    from ..normalise.undistorted import place_points
    from ..normalise.warp import load_normalisation
    from ..parcellate.parcel_means import parcel_points

    points, labels = parcel_points(atlas)
    world, gains = place_points(load_normalisation(paths.normalisation), points)
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
        None if gains is None else gains[filled],
    )
    total = np.bincount(labels, minlength=atlas.num_parcels + 1)[1:]
    kept = np.bincount(labels[filled], minlength=atlas.num_parcels + 1)[1:]
    return series, np.nan_to_num(inside) * kept / total
