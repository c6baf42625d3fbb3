"""The stage that finds what to remove: tissue signals, and components with their verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...cohort.recordings import Entry
from ...config import Preprocess
from ...errors import RecordingError
from ...files import write_json
from ..denoise.confounds import MOTION_NAMES, describe_confounds, motion_part, tissue_columns
from ..io.derivatives import read_table, read_transforms, read_volume, sidecar, write_table
from ..io.read import read_image
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
    _check_t1w(entry, options)
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
            fit = _fit_ica(engine, entry, bold, paths, samples, parameters, grid, options)
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
        write_components(paths, fit, grid, bold.tr_s, made_by, options.fix_weights)
    else:
        for stale in (paths.mixing, paths.metrics, paths.maps):
            stale.unlink(missing_ok=True)
            sidecar(stale).unlink(missing_ok=True)
    write_table(paths.confounds, confounds)
    write_json(sidecar(paths.confounds), describe_confounds(confounds))
    return figures


def _check_t1w(entry: Entry, options: Preprocess) -> None:
    """FIX reads tissues of the T1w image; without one it has nothing to say."""
    if options.fix_weights is not None and entry.t1w is None:
        raise RecordingError(
            "denoise_failed",
            f"{entry.source}: expected a T1w image of this participant, which FIX needs, found "
            "none; add it, exclude the recording, or leave preprocess.fix_weights out",
        )


def _fit_ica(engine, entry, bold, paths, samples, parameters, grid, options) -> Any:
    """Components judged by the ICA-AROMA rule on the grid, or by FIX in the run's own space."""
    if options.fix_weights is None:
        return engine.fit_ica(
            samples, bold.tr_s, parameters, grid, high_pass_hz=options.high_pass_hz
        )
    from ..fsl.fix import Native, fit_native_ica
    from ..normalise.warp import load_normalisation

    t1w, t1w_affine = read_image(entry.t1w)
    native = Native(
        bold, read_transforms(paths.transforms), read_volume(paths.boldref)[0],
        read_volume(paths.mask)[0] > 0, load_normalisation(paths.normalisation)(grid.points),
        t1w, t1w_affine,
    )  # fmt: skip
    return fit_native_ica(samples, parameters, grid, native, options)
