"""Temporal filter and confound regression as one linear projection.

Filtering and regressing in two steps puts back what the first step removed (Lindquist 2019,
Human Brain Mapping 40:2358). Here drifts, high frequencies and confounds are columns of one
model: confounds are filtered like the data before they are fitted, so the result is orthogonal
to every filtered frequency. The projection is linear in time: applied to parcel means it equals
the parcel means of cleaned voxels.
"""

from __future__ import annotations

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

    Returns
    -------
    cleaned : ndarray [T, K]
        float64, zero mean.

    Raises
    ------
    RecordingError
        ``denoise_failed``: fewer than ten degrees of freedom would be left.
    """
    count = len(series)
    basis = filter_basis(count, tr_s, high_pass_hz, low_pass_hz)
    used = basis.shape[1] + (0 if nuisance is None else nuisance.shape[1])
    if count - used < 10:
        raise RecordingError(
            "denoise_failed",
            f"{used} filter and confound columns leave {count - used} of {count} degrees of "
            "freedom, at least 10 needed; widen the pass band or choose less denoising",
        )
    out = np.full(series.shape, np.nan)
    usable = np.isfinite(series).all(0)
    filtered = clean_columns(series[:, usable].astype(np.float64), basis)
    if nuisance is not None and nuisance.shape[1]:
        others = [nuisance] if signal is None else [nuisance, signal]
        model = _filter_model(np.hstack(others).astype(np.float64), basis)
        weights = np.linalg.lstsq(model, filtered, rcond=1e-8)[0]
        removed = nuisance.shape[1]
        filtered = filtered - model[:, :removed] @ weights[:removed]
    out[:, usable] = filtered
    return out


def _filter_model(columns: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Filter confounds and scale them to unit norm: the rank must not depend on their units.

    A column that the filter removes whole (a constant) would be left as rounding noise and
    scaled up to a random regressor: it becomes zero.
    """
    filtered = clean_columns(columns, basis)
    norm = np.linalg.norm(filtered, axis=0)
    kept = norm > 1e-9 * np.linalg.norm(columns, axis=0)
    return np.where(kept, filtered / np.where(kept, norm, 1), 0)
