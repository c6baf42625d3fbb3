"""The first stage of raw images: motion, with what is read, checked and measured on the way."""

from __future__ import annotations

from ...cohort.recordings import Entry
from ...files import plain_values
from ..io.derivatives import describe_dataset
from ..io.echoes import read_run
from ..quality import (
    check_alternation,
    check_brain,
    check_duration,
    count_non_steady,
    measure_level,
    measure_run,
)
from .context import Context, Figures, reproducible, timed
from .products import write_motion
from .voxels import corrects_slices, settle


def prepare(context: Context) -> None:
    from ..kernels import sampling  # noqa: F401
    from ..motion import brain_mask, rigid  # noqa: F401

    context.engine(rigid)


@reproducible
def run_motion(entry: Entry, context: Context) -> Figures:
    """Read, check, drop non-steady volumes, correct slice times if asked, estimate motion.

    Raises
    ------
    RecordingError
        ``unreadable``, ``bad_metadata``, ``bad_data``, ``too_short`` or ``motion_failed``.
    """
    from ..motion import rigid
    from ..motion.brain_mask import brain_mask

    options, out = context.options, context.derivatives
    engine = context.engine(rigid)
    figures: Figures = {}
    with timed(figures, "read"):
        cohort = context.cohort
        bold = read_run(
            entry.list_echoes(),
            repetition_time_s=cohort.repetition_time_s,
            orientation=cohort.orientation,
        )
    count, tr_s = len(bold.volumes), bold.tr_s
    acquired = {"repetition_time_s": tr_s, "duration_s": count * tr_s}
    level = measure_level(bold.volumes)
    dropped = count_non_steady(level)
    check_duration(count - dropped, tr_s, options.min_duration_s, acquired)
    check_alternation(level[dropped:])
    bold = settle(bold, dropped, options)
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
        "SliceTimingCorrected": corrects_slices(bold, options),
        "Engine": context.engine_name,
        "Parameters": context.parameters("motion", engine),
        "Warnings": bold.warnings,
        "Figures": plain_values(stated),
    }
    about |= {"EchoTimes": bold.echo_times_s} if bold.echo_times_s else {}
    about |= {"Orientation": cohort.orientation} if cohort.orientation else {}
    write_motion(out, entry, context.atlas, bold.affine, estimate, mask, tsnr, columns, about)
    return figures | stated | {"warnings": bold.warnings}
