"""Bring a series to the common sample period without folding noise into its band."""

from __future__ import annotations

import numpy as np

from ..denoise.filter import bridge

#: The low-pass before down-sampling is open up to this share of the new Nyquist frequency and
#: closed at the Nyquist frequency, with a raised cosine between.
PASS_SHARE = 0.8


def resample(series: np.ndarray, tr_s: float, period_s: float) -> np.ndarray:
    """Values of `series` at 0, P, 2P, ... seconds after its first sample, up to its last.

    Interpolating 0.735 s to 1 s alone folds what lies between 0.5 and 0.68 Hz back below 0.5 Hz,
    so a longer period is low-passed first; a shorter one needs only the interpolation.

    Parameters
    ----------
    series : ndarray [T, R]
        Sample t is at ``t * tr_s`` seconds. Rows of NaN are censored time; columns with any other
        NaN come out as NaN.
    tr_s, period_s : float

    Returns
    -------
    resampled : ndarray [floor((T - 1) tr_s / period_s) + 1, R]
        float64; the input unchanged where the periods are equal. NaN within half a period (the
        longer of the two) of a censored sample: such values would mostly be made of it. For the
        filter alone censored samples are bridged by straight lines between those that are kept;
        curves left larger errors beside gaps.
    """
    from scipy.interpolate import CubicSpline

    series = np.asarray(series, np.float64)
    if abs(period_s - tr_s) < 1e-6 * tr_s:
        return series.copy()
    times = np.arange(len(series)) * tr_s
    wanted = np.arange(int(np.floor(times[-1] / period_s + 1e-6)) + 1) * period_s
    out = np.full((len(wanted), series.shape[1]), np.nan)
    kept = np.isfinite(series).any(1)
    usable = np.isfinite(series[kept]).all(0) & kept.any()
    if usable.any():
        values = series[:, usable]
        if not kept.all():
            values = bridge(values, kept)
        if period_s > tr_s:
            values = low_pass(values, tr_s, 0.5 / period_s)
        out[:, usable] = CubicSpline(times, values)(np.minimum(wanted, times[-1]))
        out[~is_far(wanted, times[~kept], max(tr_s, period_s) / 2)] = np.nan
    return out


def is_far(times: np.ndarray, others: np.ndarray, distance: float) -> np.ndarray:
    """[N] bool: which times are further than `distance` from all of the ascending `others`."""
    if not len(others):
        return np.ones(len(times), bool)
    next_ = np.searchsorted(others, times)
    around = others[np.clip([next_ - 1, next_], 0, len(others) - 1)]
    return np.abs(around - times).min(0) > distance * (1 + 1e-6)


def low_pass(series: np.ndarray, tr_s: float, stop_hz: float) -> np.ndarray:
    """Remove everything above `stop_hz` from [T, R], tapering from 0.8 of it.

    The cosine transform continues the series by its mirror image at both ends, so no jump rings
    there as it would with a Fourier transform.
    """
    from scipy.fft import dct, idct

    count = len(series)
    hertz = np.arange(count) / (2 * count * tr_s)
    position = np.clip((hertz / stop_hz - PASS_SHARE) / (1 - PASS_SHARE), 0, 1)
    gain = 0.5 * (1 + np.cos(np.pi * position))
    return idct(dct(series, axis=0, norm="ortho") * gain[:, None], axis=0, norm="ortho")
