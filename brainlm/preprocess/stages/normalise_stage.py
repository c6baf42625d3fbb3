"""The stage that fits the template to a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...cohort.recordings import Entry
from ...errors import RecordingError
from ...files import plain_values, write_json
from ..io.derivatives import bids_uri, read_volume, sidecar
from ..io.read import read_image
from ..normalise.agreement import RefusedFit
from ..normalise.normalise_text import describe_ways
from ..normalise.template import load_template, space_of
from .context import Context, Figures, reproducible, timed
from .undistort import fit_undistorted


def prepare(context: Context) -> None:
    from ..normalise import registration

    context.engine(registration)
    load_template(space_of(context.atlas))


@reproducible
def run_normalise(entry: Entry, context: Context) -> Figures:
    """Fit template space to the reference image, through the T1w where that measures better.

    Raises
    ------
    RecordingError
        ``registration_failed``.
    """
    from ..normalise import registration

    engine = context.engine(registration)
    figures: Figures = {}
    paths = context.files(entry)
    template = load_template(space_of(context.atlas))
    reference, affine = read_volume(paths.boldref)
    mask = read_volume(paths.mask)[0] > 0
    for path in (paths.normalisation, paths.refused):
        path.unlink(missing_ok=True)
        sidecar(path).unlink(missing_ok=True)

    def fit_to(image: np.ndarray, brain: np.ndarray) -> tuple[Any, list[str]]:
        return _fit(engine, entry, context, image, affine, template, brain)

    def save(fit: Any, path: Path, **about: Any) -> Figures:
        fit.save(path)
        quality = {key: value for key, value in dict(fit.quality).items() if np.isscalar(value)}
        write_json(
            sidecar(path),
            {
                "Description": "Template mm -> reference world mm",
                "Sources": [bids_uri(context.derivatives, paths.boldref)],
                "Method": fit.method,
                "Engine": context.engine_name,
                "Parameters": context.parameters("normalise", engine),
                "Template": template.space,
                "Quality": plain_values(quality),
                **about,
            },
        )
        return {"method": fit.method, **quality}

    try:
        with timed(figures, "normalise"):
            found = fit_undistorted(entry, context.options, reference, affine, mask, fit_to)
    except RefusedFit as error:
        save(error.fit, paths.refused)  # for the recording's page
        raise
    quality = save(found.fit, paths.normalisation, **found.about)
    return figures | found.figures | quality | {"warnings": found.notes}


def _fit(engine, entry, context, reference, affine, template, mask) -> tuple[Any, list[str]]:
    """The fit and its warnings. A T1w image that does not help never costs the recording."""
    wanted, notes = context.options.use_t1w, []
    if wanted and entry.t1w is not None:
        try:
            t1w, t1w_affine = read_image(entry.t1w)
            made = engine.normalise(
                reference, affine, template, mask=mask, t1w=t1w, t1w_affine=t1w_affine,
                insist=wanted is True,
            )  # fmt: skip
        except RecordingError as error:
            notes = [f"T1w: not used, the fit is direct: {error.reason}"]
        else:
            if made.method == "direct":
                notes = [f"T1w: not used, the fit is direct: {describe_ways(made.quality)}"]
            return made, notes
    return engine.normalise(reference, affine, template, mask=mask), notes
