"""Your own parcel series, as a model wants them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import BrainLMError
from .mae import BrainLM


def make_windows(model: BrainLM, series, *, tr_s: float, count: int | None = None) -> Tensor:
    """Resample, scale and cut one recording.

    Parameters
    ----------
    model : BrainLM
        Its scaling says the parcels, their order (the atlas's) and the sample period.
    series : array [T, R]
        In the units of ``model.scaling.units``: percent of each parcel's mean for models of this
        pipeline, ``100 * (x / x.mean(0) - 1)`` of raw means. A column of NaN has no data.
    tr_s : float
        Seconds between rows.
    count : int, optional
        Windows, spread evenly over the recording; by default as many as fit without overlap.

    Returns
    -------
    windows : float32 Tensor [K, R, T]
        For :meth:`BrainLM.embed`, ``predict`` and the model itself.

    Raises
    ------
    BrainLMError
        A model without a scaling; another number of parcels; a recording shorter than a window.
    """
    from ..preprocess.parcellate.resample import resample

    if model.scaling is None:
        raise BrainLMError(
            "this model came without a scaling (the published weights have none): give one to "
            "from_pretrained(..., scaling=brainlm.shards.Scaling.load(path)), of your cohort"
        )
    values = np.asarray(series, np.float64)
    if values.ndim != 2:
        raise BrainLMError(f"expected a series [time, parcel], found shape {values.shape}")
    model.scaling.apply(values[:0])  # the number of parcels
    values = model.scaling.apply(resample(values, tr_s, model.scaling.sample_period_s))
    window, period = model.config.window, model.scaling.sample_period_s
    if len(values) < window:
        raise BrainLMError(
            f"the series lasts {len(values) * period:g} s, a window {window * period:g} s: the "
            "model needs a longer recording"
        )
    count = len(values) // window if count is None else count
    starts = np.unique(np.linspace(0, len(values) - window, count).round().astype(int))
    return torch.from_numpy(np.stack([values[s : s + window].T for s in starts]))
