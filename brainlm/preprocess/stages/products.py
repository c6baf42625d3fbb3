"""What the stages write next to the fits: tables, sidecars, and the series for shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...atlas import Atlas
from ...cohort.recordings import Entry
from ...config import Preprocess
from ...files import atomic_path, write_json
from ..denoise.confounds import describe_confounds
from ..io.derivatives import (
    Derivatives,
    bids_uri,
    sidecar,
    write_table,
    write_transforms,
    write_volume,
)

if TYPE_CHECKING:
    from ..denoise.ica import Components
    from ..denoise.ica_grid import ComponentGrid
    from ..motion.rigid import Motion
    from ..parcellate.series import ParcelSeries


def write_motion(
    out: Path,
    entry: Entry,
    atlas: Atlas,
    affine: np.ndarray,
    estimate: Motion,
    mask: np.ndarray,
    tsnr: tuple[np.ndarray, np.ndarray],
    confounds: dict[str, np.ndarray],
    about: dict[str, Any],
) -> None:
    """Reference image, brain, tSNR map (with its affine), transforms and confounds of a run.

    `about` goes into the sidecar of the reference image, which later stages read.
    """
    paths, raw = Derivatives(out, entry.recording_id, atlas), [f"bids:raw:{entry.source}"]
    write_volume(paths.boldref, estimate.reference, affine, space="scanner")
    described = {"Description": "Reference image of motion correction", "Sources": raw}
    write_json(sidecar(paths.boldref), described | {"SkullStripped": False} | about)
    write_volume(paths.mask, mask, affine, space="scanner")
    write_json(sidecar(paths.mask), {"Type": "Brain", "Sources": [bids_uri(out, paths.boldref)]})
    write_volume(paths.tsnr, *tsnr, space="scanner")
    words = "Temporal mean / SD of motion-corrected, detrended voxels on a lattice of the image; "
    write_json(sidecar(paths.tsnr), {"Description": words + "0 elsewhere", "Sources": raw})
    write_transforms(paths.transforms, estimate.transforms)
    write_json(
        sidecar(paths.transforms),
        {
            "Description": "One rigid transform per volume: reference world -> volume's world, "
            "ITK text (LPS)",
            "Sources": raw,
            "ReferenceVolume": int(estimate.reference_index),
            "CentreOfRotation": [float(value) for value in estimate.centre],
        },
    )
    write_table(paths.confounds, confounds)
    write_json(sidecar(paths.confounds), describe_confounds(confounds))


def write_components(
    paths: Derivatives,
    fit: Components,
    grid: ComponentGrid,
    tr_s: float,
    parameters: dict[str, Any],
) -> None:
    names = [f"component_{n:02d}" for n in fit.features.index]
    write_table(paths.mixing, dict(zip(names, fit.mixing.T, strict=True)))
    write_json(sidecar(paths.mixing), {"Description": "ICA time courses", "RepetitionTime": tr_s})
    features = fit.features.reset_index()
    write_table(paths.metrics, {name: features[name].to_numpy() for name in features})
    write_json(
        sidecar(paths.metrics),
        {
            "Description": "Features and verdict of every component (Pruim et al. 2015)",
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


def write_coverage(path: Path, atlas: Atlas, coverage: np.ndarray, baseline: np.ndarray) -> None:
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


def write_filtered(
    path: Path, series: np.ndarray, config: Preprocess, parameters: dict[str, Any]
) -> None:
    """The series without denoising, for the recording's page: what denoising took away."""
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, series=series.astype(np.float16))
    write_json(
        sidecar(path),
        {
            "Description": "Parcel means, filtered, not denoised [T, R]; n/a (NaN) without data",
            "Units": "percent",
            "SamplingFrequency": 1 / config.sample_period_s,
            "Parameters": {"denoise": config.denoise_steps} | parameters,
        },
    )


def write_series(
    series_dir: Path,
    entry: Entry,
    made: ParcelSeries,
    tr_s: float,
    config: Preprocess,
    **figures: float,
) -> None:
    """What a shard's row is made of: the series in percent, and figures of the recording."""
    save_series(
        series_dir,
        entry,
        series=made.series,
        baseline=made.baseline.astype(np.float32),
        coverage=made.coverage.astype(np.float32),
        tr_s=tr_s,
        sample_period_s=config.sample_period_s,
        units="percent",
        **figures,
    )


def save_series(series_dir: Path, entry: Entry, **arrays: Any) -> None:
    """Arrays of one recording, where the shard writer looks for them."""
    with atomic_path(Path(series_dir) / f"{entry.recording_id}.npz") as temporary:
        np.savez(temporary, **arrays)
