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
from ..parcellate.censoring import NOT_CENSORED, check_kept, choose_kept, describe_censored
from ..stages.context import Context, Figures
from ..stages.products import save_series
from .movement import read_movement
from .series_checks import check_series, read_outliers


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
    companions = LAYOUTS[cohort.layout].companions(entry.path)
    displacement_mm = _displacement(entry, companions, len(raw))
    known = np.isfinite(displacement_mm).any()
    moved = float(np.nanmean(displacement_mm)) if known else float("nan")
    filled = np.zeros(len(raw), bool)
    if companions.outliers:
        filled = read_outliers(companions.outliers, len(raw))
    kept = choose_kept(displacement_mm, config) & ~np.isnan(raw).all(1)
    warnings: list[str] = []
    if config.censor is None:
        if filled.any():
            words = f"censored: {filled.sum()} of {len(raw)} time points were interpolated"
            warnings.append(words)
    else:
        kept &= ~filled  # interpolated values are no measurement
        if companions.motion is None and companions.outliers is None:
            warnings.append(NOT_CENSORED)
    try:
        _check_duration(raw, acquired["duration_s"], config)
        check_kept(kept, tr_s, config)
        settled = settle_series(
            np.where(kept[:, None], raw, np.nan), tr_s, units=cohort.units,
            num_parcels=atlas.num_parcels, sample_period_s=config.sample_period_s,
        )  # fmt: skip
    except RecordingError as error:
        raise RecordingError(error.status, f"{entry.path}: {error.reason}", **acquired) from None
    warnings += describe_censored(kept, config)
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
    share = {"censored_share": float(np.isnan(series).all(1).mean())} if config.censor else {}
    return (
        acquired
        | share
        | {
            "mean_fd_mm": moved,
            "num_timepoints": len(series),
            "parcels_with_data": int((~dead).sum()),
            "mean_coverage": float((~dead).mean()),
            "warnings": warnings,
        }
    )


@dataclass(frozen=True)
class Settled:
    """Parcel series as a shard holds them.

    Attributes
    ----------
    series : ndarray [T, R] float32
        At the common sample period, about each parcel's mean; NaN for dead parcels, and for
        censored time.
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

    Rows of NaN are censored time: they stay missing, and nothing is made of them. Dead columns
    are marked as missing, the mean is removed, ``scanner`` units become percent of it, and time is
    brought to the common sample period.

    Raises
    ------
    RecordingError
        ``bad_data`` (another number of parcels, values missing here and there, units that the
        values contradict) or ``parcellation_failed`` (most parcels are empty).
    """
    from ..parcellate.resample import resample

    kept = ~np.isnan(raw).all(1)
    dead = _find_dead(raw, kept, num_parcels)
    live = np.where(dead, np.nan, raw[kept])
    baseline = live.mean(0, dtype=np.float64)
    _check_units(live, baseline, units)
    settled = 100 * (live / baseline - 1) if units == "scanner" else live - baseline
    check_series(live, settled, "percent" if units == "scanner" else units)
    whole = np.full(raw.shape, np.nan)
    whole[kept] = settled
    series = resample(whole, tr_s, sample_period_s).astype(np.float32)
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


def _displacement(entry: Entry, companions: Companions, count: int) -> np.ndarray:
    """Framewise displacement in mm [T] where a file next to the series says it, else NaN."""
    if companions.motion is None:
        return np.full(count, np.nan)
    moved = read_movement(companions.motion).displacement_mm
    if len(moved) != count:
        raise RecordingError(
            "bad_data",
            f"{entry.path}: {count} time points, but {len(moved)} volumes in "
            f"{companions.motion.name}: censored volumes were cut out, so time has gaps; make "
            "XCP-D interpolate them (--output-type interpolated)",
        )
    return moved


def _check_duration(raw: np.ndarray, duration_s: float, config: Preprocess) -> None:
    if duration_s < config.min_duration_s:
        raise RecordingError(
            "too_short",
            f"{duration_s:.1f} s usable ({len(raw)} time points), at least "
            f"{config.min_duration_s:g} s needed",
        )


def _find_dead(raw: np.ndarray, kept: np.ndarray, num_parcels: int) -> np.ndarray:
    """Which columns are dead [R], of the rows `kept` [T]; an error if they cannot be used."""
    if raw.shape[1] != num_parcels:
        turned = "; it looks transposed" if raw.shape[0] == num_parcels else ""
        raise RecordingError(
            "bad_data",
            f"expected {num_parcels} columns, one per parcel of the atlas, found "
            f"{raw.shape[1]}{turned}",
        )
    if not kept.any():
        raise RecordingError("bad_data", "no value at all: every time point is NaN")
    infinite = np.isinf(raw).any(0)
    missing = np.isnan(raw[kept])
    partly = infinite | (missing.any(0) & ~missing.all(0))
    if partly.any():
        rows = np.flatnonzero(~np.isfinite(raw[:, partly]).all(1) & kept)
        raise RecordingError(
            "bad_data",
            f"NaN or infinite values at {len(rows)} of {len(raw)} time points (first {rows[0]}) "
            f"in {int(partly.sum())} parcels that have data elsewhere; deliver frames that were "
            "censored interpolated, or missing in all parcels",
        )
    dead = missing.all(0)
    dead[~dead] = np.ptp(raw[kept][:, ~dead], axis=0) == 0
    if dead.mean() > 0.5:
        raise RecordingError(
            "parcellation_failed",
            f"{int(dead.sum())} of {len(dead)} parcels are empty or constant, at most half may be",
        )
    return dead
