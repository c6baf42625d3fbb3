"""What changes over time: networks, artefacts, motion. Seconds, mm, fractions of the signal.

Every neural course is a sum of sinusoids between 0.01 and 0.1 Hz, so it has an exact band and
can be read at any repetition time. A network's spectrum is narrow: its course is a slow wave that
stays coherent over tens of seconds. That is what a masked autoencoder can learn from the past.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .anatomy import rotation
from .demo_atlas import NETWORKS, NUM_PARCELS

BAND_HZ = (0.01, 0.1)
NEURAL_SD = 0.008  # of the signal: standard deviation of a parcel's course
_PEAK_HZ = (0.045, 0.050, 0.035, 0.040, 0.025, 0.030, 0.022)  # of each network's spectrum
_LAG_S = (0.0, 0.6, 1.2, 0.9, 2.0, 1.5, 2.4)  # sensory networks lead, association follows
# Share of a parcel's variance that its network explains at 50 years, and its change per 30 years.
_STRENGTH = np.array([0.50, 0.50, 0.45, 0.45, 0.35, 0.50, 0.55])
_STRENGTH_AGE = np.array([0.05, 0.08, -0.04, -0.04, -0.03, -0.10, -0.14])
# Correlation between networks (numbers as in the atlas) at 50 years, and its change per 30 years.
_COUPLING = {
    (1, 2): (0.30, 0.15),
    (1, 3): (0.25, 0.10),
    (2, 4): (0.25, 0.15),
    (3, 7): (-0.35, 0.30),
    (4, 7): (-0.20, 0.25),
    (6, 7): (0.15, 0.15),
    (5, 7): (0.20, -0.10),
    (3, 6): (0.25, -0.15),
}
_STRENGTH_SD, _COUPLING_SD = 0.08, 0.20  # between participants of the same age
_PATTERNS = np.array([1.0, 0.5, 0.4, 0.3, 0.2])  # relative sizes of those of an individual
_LOCAL = (0.3, 0.45, 0.25)  # of what is local: with the mirror image, of the individual, its own

ARTEFACTS = ("pulsation", "spin_history", "speckle", "drift")


@dataclass(frozen=True)
class Individual:
    """What tells a participant from others, in every run.

    Attributes
    ----------
    strength : ndarray [7]
        Share of a parcel's variance that its network explains; depends on age.
    coupling : ndarray [7, 7]
        Correlations between networks; depend on age.
    patterns : ndarray [424, 5]
        Parcels that vary together in this participant alone, whatever their networks; each row
        has length 1.
    """

    strength: np.ndarray
    coupling: np.ndarray
    patterns: np.ndarray


def draw_individual(rng: np.random.Generator, age: float) -> Individual:
    """A participant of an age."""
    decades = (age - 50) / 30
    strength = _STRENGTH + decades * _STRENGTH_AGE
    strength = np.clip(strength + _STRENGTH_SD * rng.standard_normal(len(NETWORKS)), 0.1, 0.9)
    coupling = np.eye(len(NETWORKS))
    for first in range(1, len(NETWORKS) + 1):
        for second in range(first + 1, len(NETWORKS) + 1):
            base, change = _COUPLING.get((first, second), (0.05, 0.0))
            value = base + decades * change + _COUPLING_SD * rng.standard_normal()
            coupling[first - 1, second - 1] = coupling[second - 1, first - 1] = value
    values, vectors = np.linalg.eigh(coupling)  # the nearest that a correlation can be
    coupling = (vectors * np.maximum(values, 0.05)) @ vectors.T
    scale = np.sqrt(np.diag(coupling))
    patterns = _PATTERNS * rng.standard_normal((NUM_PARCELS, len(_PATTERNS)))
    patterns /= np.linalg.norm(patterns, axis=1, keepdims=True)
    return Individual(strength, coupling / np.outer(scale, scale), patterns)


def make_parcel_series(
    rng: np.random.Generator,
    times_s: np.ndarray,
    networks: np.ndarray,
    individual: Individual,
) -> tuple[np.ndarray, np.ndarray]:
    """Network courses [T, 7], SD 1, and parcel series [T, 424], fractions of the signal.

    A parcel is its network's course, a little late, plus what is local: a course shared with its
    mirror image, those of the individual's patterns, and one of its own. The correlations between
    networks are exactly the individual's.
    """
    hertz = _frequencies(times_s)
    spectra = np.exp(-0.5 * ((hertz[:, None] - _PEAK_HZ) / 0.008) ** 2)
    waves = _draw_waves(rng, spectra)
    found = np.linalg.cholesky(np.cov(_read(waves, hertz, times_s).T))
    waves = waves @ (np.linalg.cholesky(individual.coupling) @ np.linalg.inv(found)).T

    late_s = np.take(_LAG_S, networks - 1) + rng.uniform(-0.5, 0.5, NUM_PARCELS)
    delayed = waves[:, networks - 1] * np.exp(-2j * np.pi * hertz[:, None] * late_s)
    flat = np.ones((len(hertz), NUM_PARCELS // 2))
    pair, left, right = (_draw_waves(rng, flat) for _ in range(3))
    shared = _draw_waves(rng, np.ones((len(hertz), len(_PATTERNS)))) @ individual.patterns.T
    local = np.stack([np.tile(pair, 2), shared, np.hstack([left, right])])
    local = np.einsum("k,kfr->fr", np.sqrt(_LOCAL), local)

    share = individual.strength[networks - 1]
    series = np.sqrt(share) * _standardise(_read(delayed, hertz, times_s))
    series += np.sqrt(1 - share) * _standardise(_read(local, hertz, times_s))
    return _standardise(_read(waves, hertz, times_s)), NEURAL_SD * _standardise(series)


def _frequencies(times_s: np.ndarray) -> np.ndarray:
    """The band, twice as fine as the recording resolves, so that nothing repeats within it."""
    step = 0.5 / (times_s[-1] + 1)
    return np.arange(BAND_HZ[0] + step, BAND_HZ[1], step)


def _draw_waves(rng: np.random.Generator, spectra: np.ndarray) -> np.ndarray:
    """Random complex amplitudes with the given sizes, [F, K]."""
    parts = rng.standard_normal((2, *spectra.shape))
    return spectra * (parts[0] + 1j * parts[1])


def _read(waves: np.ndarray, hertz: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """Values [T, K] of complex amplitudes [F, K] at some times."""
    return (np.exp(2j * np.pi * np.outer(times_s, hertz)) @ waves).real


def _standardise(values: np.ndarray) -> np.ndarray:
    values = values - values.mean(axis=0)
    return values / values.std(axis=0)


def make_motion(
    rng: np.random.Generator, times_s: np.ndarray, breath: np.ndarray, pivot: np.ndarray
) -> np.ndarray:
    """Rigid motion [T, 4, 4]: reference world (of volume 0) to the world of volume t.

    A slow drift of about 1 mm, breathing of 0.06 mm, and every minute a jerk (0.3 to 1.2 mm)
    that dies away in two volumes and leaves a fifth of itself behind. Mostly nodding (x rotation)
    and sliding along z, as in real heads, about a `pivot` in the neck.
    """
    shape = np.array([0.4, 0.5, 1.0, 1.0, 0.5, 0.4])  # mm along x, y, z; degrees about x, y, z
    scale = np.exp(0.3 * rng.standard_normal())
    hertz = np.arange(1, 5) / (2 * times_s[-1] + 1)
    slow = _read(_draw_waves(rng, np.ones((4, 6)) / np.arange(1, 5)[:, None]), hertz, times_s)
    moves = scale * 0.2 * slow
    for start in rng.choice(np.arange(2, len(times_s)), max(1, int(times_s[-1] / 60)), False):
        size = scale * rng.uniform(0.3, 1.2) * rng.choice([-1, 1], 6) * rng.uniform(0.3, 1, 6)
        after = np.arange(len(times_s) - start)
        moves[start:] += np.outer(0.2 + 0.8 * 0.35**after, size)
    moves *= shape
    moves += 0.06 * breath[:, None] * np.array([0, 0.5, 1, 0.6, 0, 0])
    rigid = np.broadcast_to(np.eye(4), (len(times_s), 4, 4)).copy()
    rigid[:, :3, :3] = rotation(np.deg2rad(moves[:, 3:]))
    rigid[:, :3, 3] = moves[:, :3] + pivot - rigid[:, :3, :3] @ pivot
    return rigid @ np.linalg.inv(rigid[0])


def make_artefacts(rng: np.random.Generator, times_s: np.ndarray, motion: np.ndarray):
    """Courses [T, 4] of :data:`ARTEFACTS`, SD 1: what is not brain and must be removed.

    Pulsation is the heartbeat folded below the Nyquist frequency, speckle is fast noise, drift a
    slow trend, and spin history follows each move and fades over two volumes.
    """
    moved = np.zeros(len(times_s))
    moved[1:] = np.linalg.norm(np.diff(motion[:, :3, 3], axis=0), axis=1)
    moved[1:] += 50 * np.linalg.norm(np.diff(motion[:, :3, :3], axis=0), axis=(1, 2)) / np.sqrt(2)
    moved = np.tanh(moved)  # mm; beyond about 1 mm the signal lost hardly grows
    history = moved.copy()
    history[1:] += 0.5 * moved[:-1]
    white = rng.standard_normal(len(times_s) + 2)
    speckle = white[2:] - 1.2 * white[1:-1] + 0.5 * white[:-2]
    unit = times_s / times_s[-1]
    drift = rng.choice([-1, 1]) * unit + rng.uniform(-0.5, 0.5) * unit**2
    courses = [_beat(rng, times_s, 1.1, 0.05), history, speckle, drift]
    return _standardise(np.stack(courses, axis=1))


def make_breath(rng: np.random.Generator, times_s: np.ndarray) -> np.ndarray:
    """Chest position [T], about 0.27 Hz, SD 1."""
    return _standardise(_beat(rng, times_s, 0.27, 0.02))


def _beat(
    rng: np.random.Generator, times_s: np.ndarray, rate_hz: float, wander_hz: float
) -> np.ndarray:
    """A wave whose rate wanders, read at the volumes' times (so it may alias)."""
    wander = np.cumsum(rng.standard_normal(len(times_s))) * wander_hz * np.sqrt(times_s[1] / 60)
    rate = rate_hz * rng.uniform(0.9, 1.1) + wander
    phase = 2 * np.pi * (np.cumsum(rate) * times_s[1] + rng.uniform())
    return np.cos(phase) + 0.3 * np.cos(2 * phase)
