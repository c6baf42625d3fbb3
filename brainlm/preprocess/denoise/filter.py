"""Temporal filter and confound regression as one linear projection.

Filtering and regressing in two steps puts back what the first step removed (Lindquist 2019,
Human Brain Mapping 40:2358). Here drifts, high frequencies and confounds are columns of one
model: confounds are filtered like the data before they are fitted, so the result is orthogonal
to every filtered frequency. The projection is linear in time: applied to parcel means it equals
the parcel means of cleaned voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ...errors import RecordingError


def cosine_basis(
    num_timepoints: int, tr_s: float, high_pass_hz: float = 0.0, low_pass_hz: float | None = None
) -> np.ndarray:
    """Orthonormal cosines that a filter removes: the constant, slow drifts, fast fluctuations.

    Column k of a discrete cosine transform of T samples oscillates at k / (2 T TR) Hz.

    Returns
    -------
    basis : ndarray [T, F]
        Always with the constant first; then k < 2 T TR high_pass, and k > 2 T TR low_pass.
    """
    hertz = np.arange(num_timepoints) / (2 * num_timepoints * tr_s)
    removed = hertz < high_pass_hz
    if low_pass_hz is not None:
        removed |= hertz > low_pass_hz
    removed[0] = True
    order = np.flatnonzero(removed)
    phase = np.pi * (np.arange(num_timepoints) + 0.5) / num_timepoints
    basis = np.cos(phase[:, None] * order) * np.sqrt(2 / num_timepoints)
    basis[:, 0] = 1 / np.sqrt(num_timepoints)
    return basis


def filter_basis(
    num_timepoints: int, tr_s: float, high_pass_hz: float = 0.0, low_pass_hz: float | None = None
) -> np.ndarray:
    """What a filter removes: :func:`cosine_basis`, and with a high-pass a line and a parabola.

    Cosines are flat at the ends of a run, a drift is not: cosines alone leave its ends standing.

    Returns
    -------
    basis : ndarray [T, F]
        Orthonormal; the line and the parabola last.
    """
    basis = cosine_basis(num_timepoints, tr_s, high_pass_hz, low_pass_hz)
    if high_pass_hz <= 0:
        return basis
    time = np.linspace(-1, 1, num_timepoints)
    for trend in (time, time**2):
        rest = trend
        for _ in range(2):  # twice: the first pass leaves rounding
            rest = clean_columns(rest[:, None], basis)[:, 0]
        size = np.linalg.norm(rest)
        if size > 1e-6 * np.linalg.norm(trend):
            basis = np.column_stack([basis, rest / size])
    return basis


def clean_columns(columns: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Remove an orthonormal basis [T, F] from columns [T, K]."""
    basis = basis.astype(columns.dtype, copy=False)
    return columns - basis @ (basis.T @ columns)


def clean(
    series: np.ndarray,
    tr_s: float,
    *,
    high_pass_hz: float,
    low_pass_hz: float | None = None,
    nuisance: np.ndarray | None = None,
    signal: np.ndarray | None = None,
    whole: int = 0,
    kept: np.ndarray | None = None,
) -> np.ndarray:
    """Filter and regress in one projection. The mean goes too: keep it beforehand.

    Parameters
    ----------
    series : ndarray [T, K]
        A column with any NaN comes out as NaN.
    high_pass_hz, low_pass_hz : float
        Pass band; 0 and None leave it open.
    nuisance : ndarray [T, C], optional
        Confounds to remove.
    signal : ndarray [T, S], optional
        With these the removal is non-aggressive: weights are fitted to confounds and signals
        together and only the confounds' part is subtracted, so what they share stays.
    whole : int
        So many of the first confounds share nothing with the signals: they are removed whole.
        Columns that resemble each other would otherwise be given weights that cancel.
    kept : ndarray [T] bool, optional
        The others change nothing and come out as NaN: drifts and confounds are fitted to the rows
        that are kept, and a low-pass bridges the gaps (Power et al. 2014, NeuroImage 84:320).

    Returns
    -------
    cleaned : ndarray [T, K]
        float64, zero mean (over the time that is kept).

    Raises
    ------
    RecordingError
        ``denoise_failed``: fewer than ten degrees of freedom would be left.
    """
    if kept is None or kept.all():
        kept = np.ones(len(series), bool)
        used, filter_ = _make_filter(len(series), tr_s, high_pass_hz, low_pass_hz)
    else:
        used, filter_ = _make_gap_filter(kept, tr_s, high_pass_hz, low_pass_hz)
    count = int(kept.sum())
    used += 0 if nuisance is None else nuisance.shape[1]
    if count - used < 10:
        raise RecordingError(
            "denoise_failed",
            f"{used} filter and confound columns leave {count - used} of {count} degrees of "
            "freedom, at least 10 needed; widen the pass band or choose less denoising",
        )
    out = np.full(series.shape, np.nan)
    usable = np.isfinite(series[kept]).all(0)
    filtered = filter_(series[kept][:, usable].astype(np.float64))
    if nuisance is not None and nuisance.shape[1]:
        others = [nuisance] if signal is None else [nuisance, signal]
        model = _filter_model(np.hstack(others)[kept].astype(np.float64), filter_)
        if signal is not None and whole:
            axes, sizes, _ = np.linalg.svd(model[:, :whole], full_matrices=False)
            axes = axes[:, sizes > 1e-8 * sizes[0]]  # a column may be there twice, or be empty
            model[:, whole:] = clean_columns(model[:, whole:], axes)
        weights = np.linalg.lstsq(model, filtered, rcond=1e-8)[0]
        removed = nuisance.shape[1]
        filtered = filtered - model[:, :removed] @ weights[:removed]
    out[np.ix_(kept, usable)] = filtered
    return out


#: [K, C] -> [K, C]: columns of the time that is kept, filtered
_Filter = Callable[[np.ndarray], np.ndarray]


def _make_filter(
    count: int, tr_s: float, high_pass_hz: float, low_pass_hz: float | None
) -> tuple[int, _Filter]:
    """How many columns the filter removes, and the filter, of time without gaps."""
    basis = filter_basis(count, tr_s, high_pass_hz, low_pass_hz)
    return basis.shape[1], partial(clean_columns, basis=basis)


def _make_gap_filter(
    kept: np.ndarray, tr_s: float, high_pass_hz: float, low_pass_hz: float | None
) -> tuple[int, _Filter]:
    """The same of the rows `kept` [T] alone.

    Drifts are fitted to them. High frequencies are so many that they could follow what is left:
    they are removed from the whole run, the gaps bridged by what is kept on both sides.
    """
    vectors, sizes, _ = np.linalg.svd(
        filter_basis(len(kept), tr_s, high_pass_hz)[kept], full_matrices=False
    )
    drifts = vectors[:, sizes > 1e-8 * sizes[0]]
    if low_pass_hz is None:
        return drifts.shape[1], partial(clean_columns, basis=drifts)
    fast = cosine_basis(len(kept), tr_s, 0, low_pass_hz)[:, 1:]

    def remove(columns: np.ndarray) -> np.ndarray:
        whole = np.empty((len(kept), columns.shape[1]))
        whole[kept] = clean_columns(columns, drifts)
        slow = clean_columns(bridge(whole, kept), fast)[kept]
        return clean_columns(slow, drifts)

    return drifts.shape[1] + round(fast.shape[1] * kept.mean()), remove


def bridge(series: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """[T, C] with straight lines between the rows `kept` [T] in place of the others."""
    time = np.arange(len(series))
    return np.stack([np.interp(time, time[kept], x[kept]) for x in series.T], 1)


def _filter_model(columns: np.ndarray, filter_: _Filter) -> np.ndarray:
    """Filter confounds and scale them to unit norm: the rank must not depend on their units.

    A column that the filter removes whole (a constant) would be left as rounding noise and
    scaled up to a random regressor: it becomes zero.
    """
    filtered = filter_(columns)
    norm = np.linalg.norm(filtered, axis=0)
    kept = norm > 1e-9 * np.linalg.norm(columns, axis=0)
    return np.where(kept, filtered / np.where(kept, norm, 1), 0)
