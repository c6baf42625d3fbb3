"""From raw parcel means to the series of a shard: filter and regress, percent, resample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...config import Preprocess
from ..denoise.filter import clean
from ..quality import compare_series
from .parcel_means import to_percent
from .resample import resample


@dataclass(frozen=True)
class ParcelSeries:
    """What the stages that read images make of one recording.

    NaN where a parcel has no data, and where time is censored.

    Attributes
    ----------
    series : float32 [T, R]
        Cleaned, percent of the temporal mean, at the sample period of the configuration.
    before : ndarray [T, R]
        The same, only filtered.
    baseline, coverage : ndarray [R]
        Temporal mean in scanner units; share of the parcel with image content.
    figures : dict
        For the stage table: what there is, and what cleaning changed.
    """

    series: np.ndarray
    before: np.ndarray
    baseline: np.ndarray
    coverage: np.ndarray
    figures: dict[str, Any]


def make_filter(
    tr_s: float, config: Preprocess, kept: np.ndarray | None = None
) -> Callable[..., np.ndarray]:
    """:func:`.filter.clean` with the pass band of the configuration, of the volumes `kept` [T]."""
    return partial(
        clean, tr_s=tr_s, high_pass_hz=config.high_pass_hz, low_pass_hz=config.low_pass_hz,
        kept=kept,
    )  # fmt: skip


def make_series(
    raw: np.ndarray,
    coverage: np.ndarray,
    tr_s: float,
    config: Preprocess,
    displacement_mm: np.ndarray,
    cleaner: Callable[[np.ndarray], np.ndarray],
    kept: np.ndarray,
) -> ParcelSeries:
    """Clean raw parcel means, scale them to percent and bring them to the sample period.

    Parameters
    ----------
    raw : ndarray [T, R]
        Scanner units.
    coverage : ndarray [R]
    displacement_mm : ndarray [T]
        Framewise displacement, for the figures.
    cleaner : callable
        [T, R] -> [T, R] without mean: filter and regression together, of the volumes `kept`.
    kept : ndarray [T] bool
        The others are censored (:mod:`.censoring`); no value of theirs changes anything.

    Raises
    ------
    RecordingError
        ``parcellation_failed`` or ``denoise_failed``.
    """
    percent, before = (np.full(raw.shape, np.nan) for _ in range(2))
    percent[kept], baseline, coverage = to_percent(
        raw[kept], cleaner(raw)[kept], coverage, config.min_coverage
    )
    alive = np.isfinite(baseline)
    filtered = make_filter(tr_s, config, kept)(100 * raw[:, alive] / baseline[alive])
    series = resample(percent, tr_s, config.sample_period_s).astype(np.float32)
    before[:, alive] = filtered
    figures = {
        "num_timepoints": len(series),
        "parcels_with_data": int(alive.sum()),
        "mean_coverage": float(coverage.mean()),
        **compare_series(filtered[kept], percent[kept][:, alive], displacement_mm[kept]),
    }
    if config.censor is not None:
        figures["censored_share"] = float(np.isnan(series).all(1).mean())
    before = resample(before, tr_s, config.sample_period_s)
    return ParcelSeries(series, before, baseline, coverage, figures)
