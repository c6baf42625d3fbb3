"""What simulated participants do: blocks of conditions, each with a pattern of activity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCK_S, REST_S = 16.0, 10.0
#: Change of a parcel's signal while a condition holds, standard deviation over parcels, in
#: standard deviations of its own course.
STRENGTH = 0.6
_EVENT_S, _GAP_S = 0.8, 1.0  # a stimulus, and from one to the next
_STEP_S = 0.1


@dataclass(frozen=True)
class Activity:
    """What happens in one run.

    Attributes
    ----------
    events : list of (onset_s, duration_s, condition)
        Rows of ``events.tsv``: the stimuli of each block.
    series : ndarray [T, R]
        The answer of the parcels, in standard deviations of their courses.
    """

    events: list[tuple[float, float, str]]
    series: np.ndarray


def name_conditions(count: int) -> list[str]:
    """``condition1``, ``condition2``, ..."""
    return [f"condition{k + 1}" for k in range(count)]


def draw_patterns(seed: int, count: int, parcels: int) -> np.ndarray:
    """Patterns [count, R] of the conditions, the same in all participants of a cohort."""
    return STRENGTH * np.random.default_rng([seed, count, 7]).standard_normal((count, parcels))


def make_activity(rng: np.random.Generator, times_s: np.ndarray, patterns: np.ndarray) -> Activity:
    """Blocks of all conditions in turn, in an order drawn anew for every round.

    Parameters
    ----------
    times_s : ndarray [T]
        Of the volumes.
    patterns : ndarray [C, R]
        See :func:`draw_patterns`.
    """
    names = name_conditions(len(patterns))
    fine = np.arange(0, times_s[-1] + _STEP_S, _STEP_S)
    shown = np.zeros((len(fine), len(patterns)))
    events: list[tuple[float, float, str]] = []
    start, order = REST_S, [int(k) for k in rng.permutation(len(patterns))]
    while start + BLOCK_S <= times_s[-1]:
        condition = order.pop(0)
        order = order or [int(k) for k in rng.permutation(len(patterns))]
        shown[(fine >= start) & (fine < start + BLOCK_S), condition] = 1
        onsets = np.arange(start, start + BLOCK_S - _EVENT_S / 2, _GAP_S)
        events += [(round(float(t), 3), _EVENT_S, names[condition]) for t in onsets]
        start += BLOCK_S + REST_S
    answer = np.stack([np.convolve(box, _response()) for box in shown.T], 1)[: len(fine)]
    courses = np.stack([np.interp(times_s, fine, course) for course in answer.T], 1)
    return Activity(events, courses @ patterns)


def _response() -> np.ndarray:
    """Haemodynamic response, a gamma density with its peak at 5 s, of sum 1."""
    time = np.arange(0, 20, _STEP_S)
    shape = time**5 * np.exp(-time)
    return shape / shape.sum()
