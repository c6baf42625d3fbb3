"""What cannot be true of parcel series, whoever made them, or the image that they are read from.

77,000 series are too many to look at. Frames filled with the one before, a parcel that runs
away, a table that lies on its side: each has the right shape and finite numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import BrainLMError, RecordingError
from ...files import describe_absent
from ...tables import as_number, read_tsv

#: Robust standard deviations: of one parcel at one time point, and of half of the parcels at once.
_RUNAWAY, _EXPLOSION = 1000.0, 100.0
#: Percent; the median parcel's standard deviation lies within, whatever was done to BOLD.
_SPREAD_PERCENT = (0.02, 50.0)
#: More censored time points than this share: what is left is not the recording.
_MOST_CENSORED = 0.5


def check_series(live: np.ndarray, settled: np.ndarray, units: str) -> None:
    """Refuse series that no scan can give.

    Parameters
    ----------
    live : ndarray [T, R]
        As delivered; NaN for parcels without data.
    settled : ndarray [T, R]
        The same in `units`, about each parcel's mean.

    Raises
    ------
    RecordingError
        ``bad_data``.
    """
    _check_orientation(live)
    check_values(live)
    if units == "percent":
        check_percent(settled)


def check_values(live: np.ndarray) -> None:
    """Refuse series [T, R] with time points that repeat, or that run away; as `check_series`."""
    values = live[:, np.isfinite(live).all(0)].astype(np.float64)
    if values.shape[1] > 1:
        _check_repeats(values)
    _check_amplitudes(values)


def _check_repeats(values: np.ndarray) -> None:
    same = np.flatnonzero((values[1:] == values[:-1]).all(1)) + 1
    if len(same):
        raise RecordingError(
            "bad_data",
            f"{len(same)} of {len(values)} time points repeat the one before in every parcel "
            f"(first {same[0]}): censored or lost frames were filled; deliver them interpolated, "
            "or exclude the recording",
        )
    blank = np.flatnonzero(np.ptp(values, axis=1) == 0)
    if len(blank):
        raise RecordingError(
            "bad_data",
            f"{len(blank)} of {len(values)} time points have one value in every parcel (first "
            f"{blank[0]}); deliver them interpolated, or exclude the recording",
        )


def _check_orientation(live: np.ndarray) -> None:
    """A square table says nothing by its shape; BOLD is smoother in time than across parcels."""
    if live.shape[0] != live.shape[1] or not np.isfinite(live).all():
        return
    in_time, across = _smoothness(live), _smoothness(live.T)
    if across > in_time + 0.2:
        raise RecordingError(
            "bad_data",
            f"the table looks transposed: rows follow each other with r = {in_time:.2f}, columns "
            f"with {across:.2f}; rows must be time points",
        )


def _smoothness(series: np.ndarray) -> float:
    """Lag-1 autocorrelation along the first axis, the median of the columns."""
    about = series - series.mean(0)
    power = (about**2).sum(0)
    return float(np.median((about[1:] * about[:-1]).sum(0)[power > 0] / power[power > 0]))


def _check_amplitudes(values: np.ndarray) -> None:
    if not values.size:
        return
    middle = np.median(values, axis=0)
    spread = 1.4826 * np.median(np.abs(values - middle), axis=0)
    usual = np.where(spread > 0, spread, np.inf)
    far = np.abs(values - middle) / usual
    time, parcel = np.unravel_index(np.argmax(far), far.shape)
    together = np.median(far, axis=1)
    if far[time, parcel] > _RUNAWAY or together.max() > _EXPLOSION:
        if far[time, parcel] <= _RUNAWAY:
            time = together.argmax()
        raise RecordingError(
            "bad_data",
            f"the series explode: at time point {time} a value is {far[time].max():.3g} robust "
            "standard deviations from its parcel's median; check how they were made, or exclude "
            "the recording",
        )


def check_percent(series: np.ndarray) -> None:
    """Refuse what cannot be percent of a parcel's mean [T, R]; as `check_series`."""
    there = series[np.isfinite(series).any(1)]  # not censored
    typical = float(np.nanmedian(there.std(0)))
    low, high = _SPREAD_PERCENT
    if not low <= typical <= high:
        raise RecordingError(
            "bad_data",
            f"the parcels' standard deviation is {typical:.3g} percent (median), expected "
            f"{low:g} to {high:g}; correct units of the cohort",
        )


def read_outliers(path: Path, count: int) -> np.ndarray:
    """[T] bool: time points that XCP-D's outliers table marks: censored, and interpolated.

    Raises
    ------
    RecordingError
        ``bad_metadata`` (no such table), ``bad_data`` (of another number of time points, or most
        were censored).
    """
    if absent := describe_absent(path):
        raise RecordingError("bad_metadata", f"{path}: {absent}")
    try:
        table = read_tsv(path)
    except BrainLMError as error:
        raise RecordingError("bad_metadata", str(error)) from None
    if len(table.rows) != count:
        raise RecordingError(
            "bad_data",
            f"{count} time points, but {len(table.rows)} volumes in {path.name}: censored volumes "
            "were cut out, so time has gaps; make XCP-D interpolate them (--output-type "
            "interpolated)",
        )
    marked = np.array([any(as_number(cell) == 1 for cell in row) for row in table.rows], bool)
    if marked.sum() > _MOST_CENSORED * count:
        raise RecordingError(
            "bad_data",
            f"{marked.sum()} of {count} time points were censored and interpolated "
            f"({path.name}), at most half may be; exclude the recording",
        )
    return marked
