"""Confounds: what they are called, how tissue signals are measured, which ones a choice removes.

Names are fMRIPrep's where the quantity is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import numpy as np

from ...config import Preprocess
from ...errors import RecordingError
from ..io.derivatives import Derivatives, read_table
from .filter import clean_columns

if TYPE_CHECKING:
    from .ica_grid import ComponentGrid

#: Names of the six motion parameters, in the order of the arrays.
MOTION_NAMES = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
#: Components of each tissue.
COMPCOR = 5

_MEANINGS = {
    "trans": ("Translation about the brain's centre", "mm"),
    "rot": ("Rotation about the brain's centre", "rad"),
    "framewise_displacement": ("Power 2012: sum of absolute changes, 50 mm sphere", "mm"),
    "rmsd": ("Jenkinson: RMS displacement over an 80 mm sphere, between volumes", "mm"),
    "dvars": ("RMS change between volumes, brain median scaled to 1000", "arbitrary"),
    "std_dvars": ("Standardised DVARS (Nichols 2013)", "arbitrary"),
    "global_signal": ("Mean over the template's brain mask", "arbitrary"),
    "csf": ("Mean deep in the ventricles", "arbitrary"),
    "white_matter": ("Mean over deep white matter", "arbitrary"),
    "c_comp_cor": ("aCompCor: principal component of the ventricles, filtered", "arbitrary"),
    "w_comp_cor": ("aCompCor: principal component of deep white matter, filtered", "arbitrary"),
    "cosine": ("Discrete cosine of the high-pass filter", "arbitrary"),
    "aroma_motion": ("Time course of a component classified as artefact", "arbitrary"),
}


def describe_confounds(columns: dict) -> dict[str, dict[str, str]]:
    out = {}
    for name in columns:
        stem = next(
            key for key in sorted(_MEANINGS, key=len, reverse=True) if name.startswith(key)
        )
        meaning, unit = _MEANINGS[stem]
        unit = f"{unit}^2" if name.endswith("power2") else unit
        out[name] = {"Description": meaning, "Units": unit}
    return out


def motion_part(confounds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns of the motion stage: those of an earlier denoise stage are made anew."""
    made_later = (
        "global_signal", "csf", "white_matter", "c_comp_cor", "w_comp_cor", "cosine",
        "aroma_motion",
    )  # fmt: skip
    return {k: v for k, v in confounds.items() if not k.startswith(made_later)}


def motion_columns(parameters: np.ndarray) -> dict[str, np.ndarray]:
    """The 24 motion columns under their usual names; differences start with NaN."""
    out: dict[str, np.ndarray] = {}
    for name, values in zip(MOTION_NAMES, parameters.T, strict=True):
        change = np.diff(values, prepend=np.nan)
        out[name] = values
        out[f"{name}_derivative1"] = change
        out[f"{name}_power2"] = values**2
        out[f"{name}_derivative1_power2"] = change**2
    return out


def tissue_columns(
    samples: np.ndarray, grid: ComponentGrid, basis: np.ndarray
) -> dict[str, np.ndarray]:
    """Signals that are not of neurons: means over tissues, and CompCor's components.

    aCompCor: the first five principal components of the filtered samples in the ventricles and in
    deep white matter, each point scaled to unit variance (Behzadi et al. 2007, NeuroImage 37:90),
    by nilearn. NaN where a tissue is outside the field of view.

    Parameters
    ----------
    samples : ndarray [T, N]
        On `grid`, not smoothed further; NaN columns are outside the field of view.
    basis : ndarray [T, F]
        The filter, as in :func:`brainlm.preprocess.denoise.filter.filter_basis`.
    """
    from nilearn.signal import high_variance_confounds

    usable = np.isfinite(samples).all(0)
    out = {}
    for name, where in (
        ("csf", grid.fluid), ("white_matter", grid.white), ("global_signal", grid.brain),
    ):  # fmt: skip
        inside = samples[:, where & usable]
        missing = np.full(len(samples), np.nan)
        out[name] = inside.mean(1, dtype=np.float64) if inside.size else missing
        if name == "global_signal":
            continue
        components = np.tile(missing[:, None], COMPCOR)
        if inside.shape[1] > 2 * COMPCOR:
            filtered = clean_columns(inside.astype(np.float64), basis)
            filtered /= np.maximum(filtered.std(0), 1e-12)
            components = high_variance_confounds(
                filtered, n_confounds=COMPCOR, percentile=100.0, detrend=False
            )
            largest = np.abs(components).argmax(0)  # a sign that no library chooses
            components = components * np.sign(components[largest, range(COMPCOR)])
        out |= {f"{name[0]}_comp_cor_{k:02d}": components[:, k] for k in range(COMPCOR)}
    return out


def nuisance_names(step: str) -> list[str]:
    """Columns of the confounds table that a step of ``denoise`` removes; ICA's are elsewhere."""
    return {
        "motion6": list(MOTION_NAMES),
        "motion24": list(motion_columns(np.zeros((1, 6)))),
        "wm-csf": ["csf", "white_matter"],
        "acompcor": [f"{t}_comp_cor_{k:02d}" for t in "cw" for k in range(COMPCOR)],
        "global": ["global_signal"],
    }.get(step, [])


def list_gone(steps: tuple[str, ...], confounds: dict[str, np.ndarray]) -> list[str]:
    """Columns that `steps` remove of tissues that are outside the field of view."""
    names = dict.fromkeys(name for step in steps for name in nuisance_names(step))
    return [name for name in names if np.isnan(confounds[name]).all()]


class Nuisance(TypedDict):
    """What :func:`.filter.clean` is given: confounds first, then components."""

    nuisance: np.ndarray | None
    signal: np.ndarray | None
    whole: int


def choose_nuisance(
    steps: tuple[str, ...], confounds: dict[str, np.ndarray], mixing: np.ndarray, noise: np.ndarray
) -> Nuisance:
    """The columns that :func:`.filter.clean` removes, [T, C], and those it keeps, [T, S].

    All steps are one model: what one removes, another cannot put back. Confounds are removed
    whole; of components that are noise, what they share with the others stays (``ica``). Of a
    tissue that is outside the field of view nothing is removed (the denoise stage warns).

    Raises
    ------
    RecordingError
        ``denoise_failed``: a column has gaps, or nothing that a step removes could be measured.
    """
    gone = list_gone(steps, confounds)
    names: dict[str, None] = {}
    lost = []
    for asked in map(nuisance_names, steps):
        there = [name for name in asked if name not in gone]
        lost += [n for n in there if not np.isfinite(confounds[n][1:]).all()] if there else asked
        names |= dict.fromkeys(there)
    if lost:
        raise RecordingError(
            "denoise_failed",
            f"{', '.join(lost)}: not measured, the tissue is outside the field of view; leave "
            "these confounds out of preprocess.denoise",
        )
    columns = [np.nan_to_num(confounds[name])[:, None] for name in names]  # differences: first 0
    signal, whole = None, len(columns)
    if noise.any() and ("ica" in steps or "ica-aggressive" in steps):
        columns.append(mixing[:, noise])
        signal = mixing[:, ~noise] if "ica" in steps else None
    return Nuisance(nuisance=np.hstack(columns) if columns else None, signal=signal, whole=whole)


def read_nuisance(paths: Derivatives, config: Preprocess) -> Nuisance:
    """What the configuration removes of a recording, from its tables: as `choose_nuisance`."""
    confounds = read_table(paths.confounds)
    mixing, noise = np.empty((0, 0)), np.zeros(0, bool)
    if config.uses_ica:
        mixing = np.column_stack(list(read_table(paths.mixing).values()))
        noise = read_table(paths.metrics)["classification"] == "rejected"
    return choose_nuisance(config.denoise_steps, confounds, mixing, noise)
