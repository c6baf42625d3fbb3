"""The stage that finds what to remove: tissue signals, and components with their verdicts."""

from __future__ import annotations

import numpy as np

from ...cohort.recordings import Entry
from ...files import write_json
from ..denoise.confounds import (
    MOTION_NAMES,
    describe_confounds,
    list_gone,
    motion_part,
    tissue_columns,
)
from ..io.derivatives import read_table, sidecar, write_table
from ..normalise.template import space_of
from .context import Context, Figures, reproducible, timed
from .products import write_components
from .voxels import read_grid, read_prepared, smooth_for_ica


def prepare(context: Context) -> None:
    import nilearn.signal  # noqa: F401 (CompCor's: seconds, which every recording would take)

    from ..denoise import ica
    from ..denoise.ica_grid import load_grid

    context.engine(ica)
    load_grid(space_of(context.atlas))


@reproducible
def run_denoise(entry: Entry, context: Context) -> Figures:
    """Tissue signals, and by configuration an ICA with its verdicts, into the confounds table.

    Raises
    ------
    RecordingError
        ``denoise_failed``.
    """
    from ..denoise import ica
    from ..denoise.filter import cosine_basis, filter_basis
    from ..denoise.ica_grid import load_grid

    options = context.options
    engine = context.engine(ica)
    figures: Figures = {}
    paths = context.files(entry)
    with timed(figures, "read"):
        bold = read_prepared(entry, paths, options)
    grid = load_grid(space_of(context.atlas))
    with timed(figures, "sample"):
        samples = read_grid(bold, paths, grid)
    confounds = motion_part(read_table(paths.confounds))
    parameters = np.column_stack([confounds[name] for name in MOTION_NAMES])
    whole = filter_basis(len(samples), bold.tr_s, options.high_pass_hz)
    confounds |= tissue_columns(samples, grid, whole)
    basis = cosine_basis(len(samples), bold.tr_s, options.high_pass_hz)
    confounds |= {f"cosine{k:02d}": basis[:, k + 1] for k in range(basis.shape[1] - 1)}
    if options.uses_ica:
        with timed(figures, "ica"):
            samples = smooth_for_ica(samples, bold.affine, grid)
            fit = engine.fit_ica(
                samples, bold.tr_s, parameters, grid, high_pass_hz=options.high_pass_hz
            )
        numbers = np.flatnonzero(fit.noise) + 1
        confounds |= {f"aroma_motion_{n:02d}": fit.mixing[:, n - 1] for n in numbers}
        figures |= {
            "num_components": len(fit.noise),
            "num_removed": int(fit.noise.sum()),
            "ica_iterations": fit.iterations,
            "ica_converged": int(fit.converged),
        }
        if not fit.converged:
            figures["warnings"] = [f"ICA: not converged after {fit.iterations} iterations"]
        made_by = context.parameters("denoise", engine)
        write_components(paths, fit, grid, bold.tr_s, made_by)
    else:
        for stale in (paths.mixing, paths.metrics, paths.maps):
            stale.unlink(missing_ok=True)
            sidecar(stale).unlink(missing_ok=True)
    if gone := list_gone(options.denoise_steps, confounds):
        outside = (
            f"denoise: {', '.join(gone)} not removed, the tissue is outside the field of view"
        )
        figures["warnings"] = [*figures.get("warnings", []), outside]
    write_table(paths.confounds, confounds)
    write_json(sidecar(paths.confounds), describe_confounds(confounds))
    return figures
