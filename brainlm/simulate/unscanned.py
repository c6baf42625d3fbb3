"""A simulated cohort of parcel series: the same participants without the scanner, in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..files import atomic_path, write_json
from .dataset import draw_participant, write_descriptions
from .demo_atlas import NUM_PARCELS, parcellate_template
from .signals import BAND_HZ, draw_individual, make_parcel_series

#: What scanner and pipeline leave of a series of the demo: its standard deviation in percent of
#: the mean, and the correlation with the truth (tests/unit/test_simulate.py measures the latter).
_SD_PERCENT, _TRUE = 0.53, 0.85


def simulate_series(
    folder: str | Path, *, num_subjects: int, seed: int = 0, tr_s: float = 2.0,
    duration_s: float = 240.0, first_subject: int = 1,
) -> None:  # fmt: skip
    """Write a dataset of series of the demo atlas in percent of the mean (``units: percent``).

    Participants are those of :func:`simulate_cohort`, and as independent of one another; their
    series have noise in the same band in the place of what scanner and pipeline do.

    Parameters
    ----------
    num_subjects : int
        Participants `first_subject` … `first_subject` + `num_subjects` − 1, as ``sub-01`` …
    tr_s, duration_s : float
        Seconds.
    """
    folder, networks = Path(folder), parcellate_template().networks
    times = tr_s * np.arange(round(duration_s / tr_s))
    hertz = np.fft.rfftfreq(len(times), tr_s)
    inside = (hertz >= BAND_HZ[0]) & (hertz <= BAND_HZ[1])
    participants = [draw_participant(seed, first_subject + k) for k in range(num_subjects)]
    for number, participant in enumerate(participants, start=first_subject):
        rng = np.random.default_rng([seed, number, 3])
        _, series = make_parcel_series(rng, times, networks, draw_individual(rng, participant.age))
        waves = np.fft.rfft(rng.standard_normal((len(times), NUM_PARCELS)), axis=0)
        noise = np.fft.irfft(waves * inside[:, None], len(times), axis=0)
        mixed = _TRUE * series / series.std(0) + (1 - _TRUE**2) ** 0.5 * noise / noise.std(0)
        stem = f"{participant.participant_id}_task-rest_atlas-demo424_timeseries"
        path = folder / participant.participant_id / "func" / f"{stem}.npy"
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.save(handle, (_SD_PERCENT * mixed).astype(np.float32))
        write_json(path.with_suffix(".json"), {"RepetitionTime": tr_s, "TaskName": "rest"})
    write_descriptions(folder, participants)
