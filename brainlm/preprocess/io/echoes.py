"""Multi-echo runs: the echoes become one series, each voxel weighted by its T2*.

The weights are TE exp(-TE / T2*) (Posse et al. 1999, Magn Reson Med 42:87). T2* is a log-linear
fit to the means over time, in which an echo counts by its squared mean: the logarithm of a weak
signal is mostly noise. Echoes are combined before motion is corrected: every later step sees a
run like any other, and the weights are of what a voxel holds on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from ...errors import RecordingError
from .read import Bold, OpenBold, check_volumes, open_bold, read_bold

#: s; an echo time outside is a mistake of units
_ECHO_TIMES_S = (0.001, 0.2)
#: s; T2* of voxels whose signal does not decay, or has gone by the second echo
_T2STAR_S = (0.001, 0.5)


def read_run(
    paths: Sequence[Path], *, repetition_time_s: float | None = None,
    orientation: str | None = None,
) -> Bold:  # fmt: skip
    """One run: :func:`read_bold` of its image, or of all its echoes combined.

    Raises
    ------
    RecordingError
        As :func:`read_bold`; ``bad_metadata`` also where an echo time is missing, or two are the
        same, or the echoes differ in shape, place or repetition time.
    """
    if len(paths) == 1:
        return read_bold(paths[0], repetition_time_s=repetition_time_s, orientation=orientation)
    runs = [open_bold(path, repetition_time_s=repetition_time_s, orientation=orientation)
            for path in paths]  # fmt: skip
    runs.sort(key=read_echo_time)
    times_s = np.array([read_echo_time(run) for run in runs])
    first = runs[0]
    for before, run in pairwise(runs):
        _check_alike(before, run)
    weights = weigh_echoes(np.stack([_mean(run) for run in runs]), times_s)
    x, y, z, count = first.shape
    volumes = np.zeros((count, z, y, x), np.float32)
    for run, weight in zip(runs, weights, strict=True):
        start = 0
        for block in run.blocks():
            block *= weight
            volumes[start : start + len(block)] += block
            start += len(block)
    warnings = list(dict.fromkeys(text for run in runs for text in run.warnings))
    ranges = np.stack([volumes.min((1, 2, 3)), volumes.max((1, 2, 3))], 1)
    check_volumes(first.path, volumes, ranges, warnings)
    return Bold(volumes, first.affine, first.tr_s, first.sidecar, warnings,
                tuple(map(float, times_s)))  # fmt: skip


def weigh_echoes(means: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """Weight of every echo in every voxel; over the echoes they sum to 1.

    Parameters
    ----------
    means : ndarray [E, ...]
        Mean over time of every echo, scanner units.
    times_s : ndarray [E]
        Echo times.

    Returns
    -------
    weights : ndarray [E, ...]
        float32.
    """
    times = times_s.reshape(-1, *[1] * (means.ndim - 1))
    signal = np.maximum(means, 1e-6 * means.max()).astype(np.float64)
    share = signal**2 / (signal**2).sum(0)
    log, middle = np.log(signal), (share * times).sum(0)
    spread = (share * (times - middle) ** 2).sum(0)
    slope = (share * (times - middle) * log).sum(0) / spread
    rate = np.clip(-slope, 1 / _T2STAR_S[1], 1 / _T2STAR_S[0])
    weights = times * np.exp(-(times - times_s[0]) * rate)
    return (weights / weights.sum(0)).astype(np.float32)


def read_echo_time(run: OpenBold) -> float:
    """s, from the sidecar of an echo.

    Raises
    ------
    RecordingError
        ``bad_metadata``.
    """
    time_s = run.sidecar.read("EchoTime")
    low, high = _ECHO_TIMES_S
    if time_s is None or not low <= time_s <= high:
        hint = "; it looks like milliseconds" if time_s and low <= time_s / 1000 <= high else ""
        found = "none" if time_s is None else f"{time_s:g}"
        raise RecordingError(
            "bad_metadata",
            f"{run.path}: one echo of a multi-echo run; expected EchoTime in its JSON file, "
            f"{low:g} to {high:g} s, found {found}{hint}; correct it, or choose one echo for the "
            "cohort with select: {echo: 1}",
        )
    return float(time_s)


def _mean(run: OpenBold) -> np.ndarray:
    total = sum(block.sum(0, dtype=np.float64) for block in run.blocks())
    return np.asarray(total) / run.shape[3]


def _check_alike(first: OpenBold, second: OpenBold) -> None:
    times = [read_echo_time(run) for run in (first, second)]
    for what, found in {
        "echo times (s)": None if times[0] < times[1] else times,
        "shapes": None if first.shape == second.shape else [first.shape, second.shape],
        "orientations": None if np.allclose(first.affine, second.affine, atol=1e-3) else "",
        "repetition times (s)": None
        if abs(first.tr_s - second.tr_s) < 0.01 * first.tr_s else [first.tr_s, second.tr_s],
    }.items():  # fmt: skip
        if found is None:
            continue
        wanted = "different" if what == "echo times (s)" else "the same"
        told = f": {found[0]} and {found[1]}" if found else ""
        raise RecordingError(
            "bad_metadata",
            f"{second.path} and {first.path.name}: expected echoes of one run, with {wanted} "
            f"{what}{told}; correct them, or choose one echo with select: {{echo: 1}}",
        )
