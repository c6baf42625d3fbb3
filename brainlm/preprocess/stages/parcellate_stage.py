"""The last stage of raw images: voxels into parcels, cleaned and resampled."""

from __future__ import annotations

from functools import partial

import numpy as np

from ...cohort.recordings import Entry
from ...files import read_json
from ..denoise.confounds import read_nuisance
from ..io.derivatives import read_table, sidecar
from ..parcellate.censoring import check_kept, choose_kept, describe_censored
from ..parcellate.outputs import write_outputs
from ..parcellate.series import make_filter, make_series
from .context import Context, Figures, reproducible, timed
from .products import write_coverage, write_filtered, write_series
from .voxels import read_parcels, read_prepared


def prepare(context: Context) -> None:
    from ..parcellate.parcel_means import parcel_points

    parcel_points(context.atlas)


@reproducible
def run_parcellate(entry: Entry, context: Context) -> Figures:
    """The only interpolation: raw volumes to parcel means; then clean, percent, resample.

    Raises
    ------
    RecordingError
        ``parcellation_failed``, ``denoise_failed``, or ``too_short`` where most is censored.
    """
    figures: Figures = {}
    paths, options, atlas = context.files(entry), context.options, context.atlas
    with timed(figures, "read"):
        bold = read_prepared(entry, paths, options)
    with timed(figures, "sample"):
        raw, coverage = read_parcels(bold, paths, atlas)
    with timed(figures, "clean"):
        displacement_mm = read_table(paths.confounds)["framewise_displacement"]
        kept = choose_kept(displacement_mm, options)
        about = read_json(sidecar(paths.boldref))
        measured = _acquired(about["Figures"])
        check_kept(kept, bold.tr_s, options, **measured)
        filter_ = make_filter(bold.tr_s, options, kept)
        cleaner = partial(filter_, **read_nuisance(paths, options))
        made = make_series(raw, coverage, bold.tr_s, options, displacement_mm, cleaner, kept)
    figures |= measured | made.figures
    if warnings := describe_censored(kept, options):
        figures["warnings"] = warnings
    write_coverage(paths.coverage, atlas, made.coverage, made.baseline)
    write_filtered(paths.filtered, made.before, options, context.parameters("parcellate"))
    with timed(figures, "outputs"):
        write_outputs(
            entry, context.derivatives, paths, options, atlas, bold, made.series, cleaner, kept
        )
    known = {key: figures[key] for key in ("duration_s", "mean_fd_mm", "mean_dvars", "tsnr")}
    known["start_s"] = about["NumberOfVolumesDiscardedByPipeline"] * bold.tr_s
    write_series(context.series, entry, made, bold.tr_s, options, **known)
    return figures


def _acquired(written: Figures) -> Figures:
    """What the motion stage measured."""
    kept = ("repetition_time_s", "duration_s", "mean_fd_mm", "mean_dvars", "tsnr")
    return {key: np.nan if written[key] is None else float(written[key]) for key in kept}
