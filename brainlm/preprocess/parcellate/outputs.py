"""What a user may want next to the shards: denoised volumes, series as text, matrices for FSL."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...atlas import Atlas
from ...cohort.recordings import Entry
from ...config import Preprocess
from ...files import atomic_path, write_json
from ..io.derivatives import Derivatives, bids_uri, read_transforms, sidecar, write_table
from ..io.read import Bold
from ..normalise.template import Template, load_template, space_of

BLOCK = 20_000  # voxels that are read and cleaned at a time: 160 MB at 490 volumes
LARGEST = 32000  # of the stored 16-bit values


def write_outputs(
    entry: Entry,
    out: Path,
    paths: Derivatives,
    config: Preprocess,
    atlas: Atlas,
    bold: Bold,
    series: np.ndarray,
    cleaner: Callable[[np.ndarray], np.ndarray],
    kept: np.ndarray,
) -> None:
    """What ``outputs`` asks for, and nothing that an earlier run was asked for."""
    remove_outputs(paths)
    sources = [f"bids:raw:{entry.source}", bids_uri(out, paths.normalisation)]
    if "timeseries" in config.outputs:
        names, period_s = list(atlas.names), config.sample_period_s
        write_timeseries(paths.timeseries, series, names, period_s, sources)
    if "volumes" in config.outputs:
        template = load_template(space_of(atlas))
        write_denoised_volumes(paths, bold, template, cleaner, sources, kept)
    if "fsl-matrices" in config.outputs:
        transforms, shape = read_transforms(paths.transforms), bold.volumes.shape
        write_fsl_matrices(paths.fsl_matrices, transforms, bold.affine, shape)


def remove_outputs(paths: Derivatives) -> None:
    """Leave nothing of an earlier run that asked for more."""
    for path in (paths.timeseries, paths.volumes):
        path.unlink(missing_ok=True)
        sidecar(path).unlink(missing_ok=True)
    shutil.rmtree(paths.fsl_matrices, ignore_errors=True)


def write_timeseries(
    path: Path, series: np.ndarray, names: list[str], sample_period_s: float, sources: list[str]
) -> None:
    """Series [T, R] as a table, one column a parcel; n/a without data."""
    write_table(path, dict(zip(names, series.T, strict=True)), digits=6)
    write_json(
        sidecar(path),
        {
            "Description": "Denoised, filtered and resampled parcel means",
            "Units": "percent of the temporal mean",
            "SamplingFrequency": 1 / sample_period_s,
            "Sources": sources,
        },
    )


def write_fsl_matrices(
    folder: Path, transforms: np.ndarray, affine: np.ndarray, shape: tuple[int, ...]
) -> None:
    """One ``MAT_0000`` a volume, as MCFLIRT's: volume t -> reference, FSL's coordinates.

    ``applyxfm4D bold boldref out FOLDER -fourdigit`` reads them.
    """
    from ..fsl.formats import to_mats, world_to_scaled_mm

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for index, mat in enumerate(to_mats(transforms, world_to_scaled_mm(affine, shape))):
        np.savetxt(folder / f"MAT_{index:04d}", mat, fmt="%.12g")


def write_denoised_volumes(
    paths: Derivatives,
    bold: Bold,
    template: Template,
    clean: Callable[[np.ndarray], np.ndarray],
    sources: list[str],
    kept: np.ndarray,
) -> None:
    """Denoised volumes on the template's grid, at the run's own sample period, with their mean.

    Voxels are read once from the raw volumes, as parcels are, and cleaned block by block; 16-bit
    with a scale, in the order of a NIfTI file.

    Parameters
    ----------
    clean : callable
        [T, N] -> [T, N] without mean: filter and regression.
    kept : ndarray [T] bool
        The others are censored: 0, and listed in the sidecar.
    """
    from ..kernels.sampling import sample
    from ..normalise.undistorted import place_points
    from ..normalise.warp import load_normalisation

    where = template.mask
    points = np.argwhere(where)[:, ::-1] @ template.affine[:3, :3].T + template.affine[:3, 3]
    world, gains = place_points(load_normalisation(paths.normalisation), points)
    transforms = read_transforms(paths.transforms)
    values = np.empty((len(bold.volumes), len(points)), np.float32)
    for first in range(0, len(points), BLOCK):
        part = slice(first, first + BLOCK)
        gain = None if gains is None else gains[part]
        block = sample(bold.volumes, bold.affine, world[part], transforms, gain)
        cleaned = clean(block) + block[kept].mean(0, dtype=np.float64)
        values[:, first : first + BLOCK] = np.nan_to_num(cleaned)  # outside the field of view
    scale = max(float(np.abs(values).max()), 1e-6) / LARGEST
    header = _header(template, len(values), bold.tr_s, scale)
    with (
        atomic_path(paths.volumes) as temporary,
        open(temporary, "wb") as handle,
        # no name and no time in it: same input, same bytes; level 1 is four times faster than 6
        gzip.GzipFile("", "wb", 1, handle, mtime=0) as stream,
    ):
        stream.write(header.binaryblock + bytes(4))
        volume = np.zeros(where.shape, np.int16)
        for one in values:
            volume[where] = np.round(one / scale)
            stream.write(volume.tobytes())
    write_json(
        sidecar(paths.volumes),
        {
            "Description": "Motion-corrected, normalised, filtered and denoised in one "
            "interpolation; the temporal mean is kept; 0 outside the brain",
            "RepetitionTime": bold.tr_s,
            "SkullStripped": True,
            **({} if kept.all() else {"CensoredVolumes": np.flatnonzero(~kept).tolist()}),
            "Sources": sources,
        },
    )


def _header(template: Template, count: int, tr_s: float, scale: float) -> Any:
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((*template.mask.shape[::-1], count))
    header.set_zooms((*np.sqrt((template.affine[:3, :3] ** 2).sum(axis=0)), tr_s))
    header.set_sform(template.affine, 4)
    header.set_qform(template.affine, 4)
    header.set_xyzt_units("mm", "sec")
    header.set_slope_inter(scale, 0)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    return header
