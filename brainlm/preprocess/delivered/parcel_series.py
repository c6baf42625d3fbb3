"""The stage of parcel series that were made elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...atlas import Atlas
from ...cohort.layouts import LAYOUTS, Companions, parse_name, plain_label
from ...cohort.recordings import Entry
from ...config import Cohort, Preprocess
from ...errors import RecordingError
from ..io.read import read_series
from ..stages.context import Context, Figures
from ..stages.products import save_series
from .movement import read_movement
from .series_checks import check_series, count_censored


def take_series(entry: Entry, context: Context) -> Figures:
    """Parcel series as delivered: checked, dead columns marked, resampled, about their mean.

    They were filtered and denoised, or not, by whoever made them: nothing is filtered here
    (``high_pass_hz``, ``low_pass_hz`` and ``denoise`` concern raw images). The mean, which may be
    a scanner's 10,000 under a signal of 50, is kept as the baseline; ``units: scanner`` of the
    cohort makes the series percent of it.

    Raises
    ------
    RecordingError
        ``unreadable``, ``bad_metadata``, ``bad_data``, ``too_short`` or ``parcellation_failed``.
    """
    cohort, config, atlas = context.cohort, context.options, context.atlas
    accepted = agree_atlas(entry.path, cohort, atlas)
    raw, tr_s = read_series(
        entry.path,
        repetition_time_s=cohort.repetition_time_s,
        parcels=atlas.own_names,
        other_names=accepted,
    )
    acquired = {"repetition_time_s": tr_s, "duration_s": len(raw) * tr_s}
    try:
        _check_duration(raw, acquired["duration_s"], config)
        settled = settle_series(
            raw, tr_s, units=cohort.units, num_parcels=atlas.num_parcels,
            sample_period_s=config.sample_period_s,
        )  # fmt: skip
    except RecordingError as error:
        raise RecordingError(error.status, f"{entry.path}: {error.reason}", **acquired) from None
    companions = LAYOUTS[cohort.layout].companions(entry.path)
    moved = _displacement(entry, companions, len(raw))
    censored = count_censored(companions.outliers, len(raw)) if companions.outliers else 0
    warnings: list[str] = []
    if censored:
        warnings.append(f"censored: {censored} of {len(raw)} time points were interpolated")
    series, dead = settled.series, settled.dead
    save_series(
        context.series,
        entry,
        series=series,
        baseline=settled.baseline.astype(np.float32),
        coverage=(~dead).astype(np.float32),
        tr_s=tr_s,
        sample_period_s=config.sample_period_s,
        units=settled.units,
        duration_s=acquired["duration_s"],
        mean_fd_mm=moved,
        mean_dvars=np.nan,
        tsnr=np.nan,
    )
    return acquired | {
        "mean_fd_mm": moved,
        "num_timepoints": len(series),
        "parcels_with_data": int((~dead).sum()),
        "mean_coverage": float((~dead).mean()),
        "warnings": warnings,
    }


@dataclass(frozen=True)
class Settled:
    """Parcel series as a shard holds them.

    Attributes
    ----------
    series : ndarray [T, R] float32
        At the common sample period, about each parcel's mean; NaN for dead parcels.
    baseline : ndarray [R]
        The means that were removed.
    dead : ndarray [R] bool
        Parcels without data: missing or constant.
    units : str
    """

    series: np.ndarray
    baseline: np.ndarray
    dead: np.ndarray
    units: str


def settle_series(
    raw: np.ndarray, tr_s: float, *, units: str, num_parcels: int, sample_period_s: float
) -> Settled:
    """The one door for parcel series [T, R], of cohorts and of arrays in Python.

    Dead columns are marked as missing, the mean is removed, ``scanner`` units become percent of
    it, and time is brought to the common sample period.

    Raises
    ------
    RecordingError
        ``bad_data`` (another number of parcels, values missing here and there, units that the
        values contradict) or ``parcellation_failed`` (most parcels are empty).
    """
    from ..parcellate.resample import resample

    dead = _find_dead(raw, num_parcels)
    live = np.where(dead, np.nan, raw)
    baseline = live.mean(0, dtype=np.float64)
    _check_units(live, baseline, units)
    series = 100 * (live / baseline - 1) if units == "scanner" else live - baseline
    check_series(live, series, "percent" if units == "scanner" else units)
    series = resample(series, tr_s, sample_period_s).astype(np.float32)
    return Settled(series, baseline, dead, "percent" if units == "scanner" else units)


def _check_units(live: np.ndarray, baseline: np.ndarray, units: str) -> None:
    """Raw means lie far above their spread; percent of the mean does not."""
    known = np.isfinite(baseline)
    raw_means = baseline > live.std(0)  # no image is as dark as its noise
    if units == "scanner" and (known & ~raw_means).any():
        low = np.flatnonzero(known & ~raw_means)
        raise RecordingError(
            "bad_data",
            f"{len(low)} parcels are not raw means (parcel {low[0] + 1}: mean "
            f"{baseline[low[0]]:.4g}, standard deviation {live[:, low[0]].std():.4g}), as units: "
            "scanner says; leave that out",
        )
    far = known & (np.abs(baseline) > 20 * live.std(0)) & (np.abs(baseline - 100) > 1)
    if units == "percent" and far.sum() > known.sum() / 2:
        raise RecordingError(
            "bad_data",
            f"these look like raw means (median {np.median(baseline[known]):.4g}), not percent "
            "of them; say units: scanner",
        )


def agree_atlas(path: Path, cohort: Cohort, atlas: Atlas) -> bool:
    """Whether the cohort's segmentation accepts another atlas's name for the configured one.

    Two parcellations may have as many parcels: where a file's name says one (``atlas-``, ``seg-``)
    it must be the atlas's, or the one that the cohort names.

    Raises
    ------
    RecordingError
        ``bad_metadata``: it is another.
    """
    entities, _ = parse_name(path.name)
    found = entities.get("seg") or entities.get("atlas")
    named = cohort.segmentation.split(":")[0] if cohort.segmentation else None
    accepted = named is not None and found in (None, named)
    if found and not accepted and plain_label(found).lower() != plain_label(atlas.name).lower():
        raise RecordingError(
            "bad_metadata",
            f"{path}: the series are of {found}, the atlas is {atlas.name}; deliver series of "
            f"{atlas.name}, or say that they are the same parcels with segmentation: {found} for "
            f"cohort {cohort.name}",
        )
    return accepted


def _displacement(entry: Entry, companions: Companions, count: int) -> float:
    """Mean framewise displacement in mm where a file next to the series says it, else NaN."""
    if companions.motion is None:
        return float("nan")
    moved = read_movement(companions.motion).displacement_mm
    if len(moved) != count:
        raise RecordingError(
            "bad_data",
            f"{entry.path}: {count} time points, but {len(moved)} volumes in "
            f"{companions.motion.name}: censored volumes were cut out, so time has gaps; make "
            "XCP-D interpolate them (--output-type interpolated)",
        )
    return float(np.nanmean(moved)) if np.isfinite(moved).any() else float("nan")


def _check_duration(raw: np.ndarray, duration_s: float, config: Preprocess) -> None:
    if duration_s < config.min_duration_s:
        raise RecordingError(
            "too_short",
            f"{duration_s:.1f} s usable ({len(raw)} time points), at least "
            f"{config.min_duration_s:g} s needed",
        )


def _find_dead(raw: np.ndarray, num_parcels: int) -> np.ndarray:
    """Which columns are dead [R]; an error if the series cannot be used."""
    if raw.shape[1] != num_parcels:
        turned = "; it looks transposed" if raw.shape[0] == num_parcels else ""
        raise RecordingError(
            "bad_data",
            f"expected {num_parcels} columns, one per parcel of the atlas, found "
            f"{raw.shape[1]}{turned}",
        )
    infinite = np.isinf(raw).any(0)
    missing = np.isnan(raw)
    partly = infinite | (missing.any(0) & ~missing.all(0))
    if partly.any():
        rows = np.flatnonzero(~np.isfinite(raw[:, partly]).all(1))
        raise RecordingError(
            "bad_data",
            f"NaN or infinite values at {len(rows)} of {len(raw)} time points (first {rows[0]}) "
            f"in {int(partly.sum())} parcels that have data elsewhere; deliver frames that were "
            "censored interpolated",
        )
    dead = missing.all(0)
    dead[~dead] = np.ptp(raw[:, ~dead], axis=0) == 0
    if dead.mean() > 0.5:
        raise RecordingError(
            "parcellation_failed",
            f"{int(dead.sum())} of {len(dead)} parcels are empty or constant, at most half may be",
        )
    return dead
