"""Whether a run is corrected for distortion: what the dataset offers, if the template agrees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...cohort.recordings import Entry
from ...config import Preprocess
from ...errors import RecordingError
from ...files import plain_values
from ..distortion.correct import Correction, find_correction
from ..distortion.shift import AXES
from ..motion.brain_mask import brain_mask
from ..normalise.undistorted import Undistorted
from .context import Figures

#: The affine fit to a corrected image may correlate with the template by this much less.
WORSE = 0.01

Fit = Callable[[np.ndarray, np.ndarray], tuple[Any, list[str]]]


@dataclass(frozen=True)
class Chosen:
    """A fit with its warnings, figures of the correction, and what the sidecar says about it."""

    fit: Any
    notes: list[str]
    figures: Figures = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


def fit_undistorted(
    entry: Entry,
    options: Preprocess,
    reference: np.ndarray,
    affine: np.ndarray,
    mask: np.ndarray,
    fit: Fit,
) -> Chosen:
    """The fit to the corrected reference image where that helps, or to the image as it is.

    Both are fitted, and compared by their affine parts: a bend follows a distortion as far as it
    can. Nothing about field maps costs a recording.

    Parameters
    ----------
    fit : callable
        (image, brain) -> normalisation and its warnings.

    Raises
    ------
    RecordingError
        From `fit`, where neither image can be normalised.
    """
    correction, notes = find_correction(entry.path, reference, affine, mask, options.distortion)
    # the same words wherever the cohort's folder lies: they go into the shard
    notes = [note.replace(f"{entry.cohort_folder}/", "") for note in notes]
    if correction is None:
        made, more = fit(reference, mask)
        return Chosen(made, [*more, *notes])
    undone = correction.shift.undo(reference)
    plain, plain_notes, refused = _try(fit, reference, mask)
    better, better_notes, error = _try(fit, undone, brain_mask(undone, affine))
    if plain is None and better is None:
        raise refused
    figures = correction.figures
    if plain is not None and better is not None:
        before, after = (one.quality["correlation_affine"] for one in (plain, better))
        figures = figures | {"template_before": before, "template_after": after}
        if after < before - WORSE:
            error = f"the template correlates by {after:.3f} with the corrected image"
            error += f" and by {before:.3f} with the image as it is"
            better = None
    if better is not None:
        about = {"Distortion": _describe(correction, entry, figures)}
        fit_through = Undistorted(better, correction.shift)
        return Chosen(fit_through, [*better_notes, *notes], figures, about)
    where = correction.files[0].relative_to(entry.cohort_folder)
    notes += [
        f"distortion: not corrected: {where}: expected a correction that helps, found that "
        f"{error}; check PhaseEncodingDirection and TotalReadoutTime, or set "
        "preprocess.distortion: none"
    ]
    return Chosen(plain, [*plain_notes, *notes])


def _try(fit: Fit, image: np.ndarray, brain: np.ndarray) -> tuple[Any, list[str], Any]:
    try:
        return (*fit(image, brain), None)
    except RecordingError as error:
        return None, [], error


def _describe(correction: Correction, entry: Entry, figures: Figures) -> dict[str, Any]:
    """For the sidecar."""
    folder = entry.cohort_folder
    files = [path.relative_to(folder).as_posix() for path in correction.files]
    return {
        "Method": correction.method,
        "Sources": [f"bids:raw:{name}" for name in files],
        "PhaseEncodingAxis": AXES[correction.shift.axis],
        "Figures": plain_values(figures),
    }
