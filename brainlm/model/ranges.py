"""What a model's training data ranged over, and whether something else is outside of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

#: name -> minimum, 5 %, median, 95 %, maximum
Ranges = Mapping[str, tuple[float, ...]]
_NAMES = {
    "label": ("prediction", ""),
    "repetition_time_s": ("repetition time", " s"),
    "coverage": ("share of parcels with data", ""),
    "mean_fd_mm": ("mean framewise displacement", " mm"),
    "censored_share": ("share of censored time", ""),
}


def describe_range(values: Iterable[float]) -> tuple[float, ...] | None:
    """Minimum, 5 %, median, 95 % and maximum of the known values; None where none is known."""
    known = np.asarray(list(values), float)
    known = known[np.isfinite(known)]
    if not len(known):
        return None
    return tuple(float(f"{x:.6g}") for x in np.percentile(known, [0, 5, 50, 95, 100]))


def list_outside(ranges: Ranges, values: Mapping[str, float]) -> list[str]:
    """A sentence for each value outside the range of the training data.

    Parameters
    ----------
    ranges : mapping
        ``model.config.ranges``.
    values : mapping
        By the same names (``label``, ``repetition_time_s``, ``coverage``, ``mean_fd_mm``,
        ``censored_share``); what
        is not known (NaN), and what the model has no range of, is not compared.
    """
    out = []
    for key, value in values.items():
        if key not in ranges or value is None or not math.isfinite(value):
            continue
        low, high = ranges[key][0], ranges[key][-1]
        slack = 1e-6 * max(abs(low), abs(high))
        if not low - slack <= value <= high + slack:
            name, unit = _NAMES.get(key, (key, ""))
            out.append(f"{name} {value:.3g}{unit} is outside the training data's "
                       f"{low:.3g} to {high:.3g}{unit}")  # fmt: skip
    return out
