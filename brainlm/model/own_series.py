"""Your own parcel series, as a model wants them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import BrainLMError, RecordingError
from ..shards.censored import find_censored, list_starts, spread_evenly
from .mae import BrainLM


def make_windows(
    model: BrainLM,
    series,
    *,
    tr_s: float,
    units: str | None = None,
    count: int | None = None,
    short: str = "refuse",
) -> Tensor:
    """Resample, scale and cut one recording, exactly as the pipeline does with a cohort's series.

    Parameters
    ----------
    model : BrainLM
        Its scaling says the parcels, their order (the atlas's), the units and the sample period.
    series : array [T, R]
        Columns without data (NaN, or constant) are missing: their tokens never reach the encoder.
        So are rows of NaN: time points that were censored.
    tr_s : float
        Seconds between rows.
    units : str, optional
        ``scanner`` for raw means, which become percent of each parcel's mean; by default the
        series are in ``model.scaling.units`` already. Each parcel's mean is removed.
    count : int, optional
        Windows, spread evenly over the recording; by default as many as fit without overlap.
    short : str
        ``refuse`` a recording shorter than a window, or ``pad`` it with missing values.

    Returns
    -------
    windows : float32 Tensor [K, R, T]
        For :meth:`BrainLM.embed`, ``predict`` and the model itself.

    Raises
    ------
    BrainLMError
        A model without a scaling; another number of parcels; values that are missing here and
        there; units that are not the model's; a recording shorter than a window.
    """
    from ..preprocess.delivered.parcel_series import settle_series

    scaling = model.scaling
    if scaling is None:
        raise BrainLMError(
            "this model came without a scaling (the published weights have none): give one to "
            "from_pretrained(..., scaling=brainlm.shards.Scaling.load(path)), of your cohort"
        )
    values = np.asarray(series, np.float64)
    if values.ndim != 2:
        raise BrainLMError(f"expected a series [time, parcel], found shape {values.shape}")
    if not 0.05 <= tr_s <= 20:
        raise BrainLMError(f"tr_s: expected seconds between rows, found {tr_s:g} (milliseconds?)")
    try:
        settled = settle_series(
            values, tr_s, units=units or scaling.units, num_parcels=scaling.num_parcels,
            sample_period_s=scaling.sample_period_s,
        )  # fmt: skip
    except RecordingError as error:
        raise BrainLMError(f"series: {error.reason}") from None
    if settled.units != scaling.units:
        raise BrainLMError(f"series in {settled.units!r}: the model expects {scaling.units!r}")
    scaled = scaling.apply(settled.series)
    scaling.check_amplitude(scaled)
    return cut_windows(model, scaled, count=count, short=short)[0]


def cut_windows(
    model: BrainLM, scaled: np.ndarray, *, count: int | None = None, short: str = "refuse"
) -> tuple[Tensor, np.ndarray]:
    """Windows [K, R, T] of a scaled series [T, R], and the time point at which each begins.

    Raises
    ------
    BrainLMError
        The series is shorter than a window, and `short` is ``refuse``; or half of every window is
        censored.
    """
    window, censored = model.config.window, find_censored(scaled)
    if len(scaled) < window:
        period = model.scaling.sample_period_s if model.scaling else 1.0
        if short != "pad":
            raise BrainLMError(
                f"the series lasts {len(scaled) * period:g} s, a window {window * period:g} s: "
                "the model needs a longer recording; short: pad fills the rest as missing"
            )
        missing = np.full((window - len(scaled), scaled.shape[1]), np.nan, np.float32)
        scaled = np.concatenate([scaled, missing])
    count = len(scaled) // window if count is None else count
    possible = list_starts(len(scaled), censored, window)
    if not len(possible):
        raise BrainLMError(
            f"{len(censored)} of {len(scaled)} time points are censored: no window of {window} "
            "has half of its own; censor less (preprocess.censor), or leave the recording out"
        )
    starts = np.array(spread_evenly(possible, count))
    return torch.from_numpy(np.stack([scaled[s : s + window].T for s in starts])), starts
