"""Censoring: volumes at which the head moved too far are missing; they are never filled.

As Power et al. (2014, NeuroImage 84:320) and XCP-D do, the filter and the regression are fitted to
the volumes that are kept (:func:`..denoise.filter.clean`). Censored ones are bridged only where
volumes are brought to another sample period (:func:`.resample.resample`), and are missing again
after it. What is found in all volumes stays so: motion itself, and the components of ICA and
aCompCor, whose weights alone come from the volumes that are kept.
"""

from __future__ import annotations

import numpy as np

from ...config import Preprocess
from ...errors import RecordingError

#: Warning of a recording that cannot be censored.
NOT_CENSORED = "not censored: no file next to it states the head's motion"


def choose_kept(displacement_mm: np.ndarray, config: Preprocess) -> np.ndarray:
    """[T] bool: volumes whose framewise displacement is within ``preprocess.censor``.

    Where it is not known (NaN: the first volume) a volume is kept.
    """
    if config.censor is None:
        return np.ones(len(displacement_mm), bool)
    return ~(displacement_mm > config.censor.fd_mm)


def check_kept(kept: np.ndarray, tr_s: float, config: Preprocess, **acquired: float) -> None:
    """Refuse a recording of which too little is left.

    Raises
    ------
    RecordingError
        ``too_short``, with the figures in `acquired`.
    """
    if kept.all() or kept.sum() * tr_s >= config.min_duration_s:
        return
    gone = 1 - kept.mean()
    raise RecordingError(
        "too_short",
        f"{kept.sum() * tr_s:.1f} s of {len(kept) * tr_s:.1f} s are left, {gone:.0%} are censored "
        f"({describe_limit(config)}); at least {config.min_duration_s:g} s needed",
        **acquired,
    )


def describe_limit(config: Preprocess) -> str:
    """Why time is censored."""
    if config.censor is None:
        return "missing as delivered"
    return f"framewise displacement above {config.censor.fd_mm:g} mm"


def describe_censored(kept: np.ndarray, config: Preprocess) -> list[str]:
    """The recording's warning, if anything is censored."""
    if kept.all():
        return []
    gone, why = int((~kept).sum()), describe_limit(config)
    return [f"censored: {gone} of {len(kept)} volumes ({gone / len(kept):.1%}), {why}"]
