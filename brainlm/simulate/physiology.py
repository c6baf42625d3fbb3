"""What heart, breath, moves and slices do to a run: for measuring how well they are removed.

The artefacts of simulated cohorts (:func:`.signals.make_artefacts`) are four maps, each with one
course: that is what spatial ICA assumes. Real ones are not so: a pulse wave arrives later in one
place than in another and is read at another time in every slice; breath moves the image by its
field and changes blood's oxygen half a minute later; what a move costs depends on where and how
far the slice went. They are drawn here, and a cohort has them only where it is asked for.

Sources: Glover et al. 2000, MRM 44:162 (cardiac and respiratory phase); Birn et al. 2008,
NeuroImage 40:644 (respiration response); Friston et al. 1996, MRM 35:346 (spin history).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PULSE, PULSE_NEAR = 0.04, 0.012  # of the signal, in CSF and in what surrounds it
FIELD_SHIFT_MM = 0.12  # along the phase encoding, of a breath, at the bottom of the head
OXYGEN = 0.004  # of grey matter's signal, of slow changes of breathing
HISTORY = 0.25  # of the signal, where a slice moves by its thickness
DROPOUT_PER_DEGREE = 0.05
LOST_SLICES = 0.004  # share of slices that lose signal, by up to a third
_T1_S = 1.3


@dataclass(frozen=True)
class Physiology:
    """Maps fixed to the scanner, and what they do in each slice of each volume.

    Attributes
    ----------
    maps : float32 [K, Z, Y, X]
        Fraction of the signal per unit of a course.
    courses : float32 [T, Z, K]
    lost : float32 [T, Z]
        Share of its signal that a slice has lost.
    """

    maps: np.ndarray
    courses: np.ndarray
    lost: np.ndarray

    def change(self, t: int) -> np.ndarray:
        """Fraction [Z, Y, X] by which the signal of volume t differs."""
        gain = np.einsum("zk,kzyx->zyx", self.courses[t], self.maps)
        return gain - self.lost[t][:, None, None] * (1 + gain)


def draw_physiology(
    rng: np.random.Generator,
    still: np.ndarray,
    fluid: np.ndarray,
    grey: np.ndarray,
    dropout: np.ndarray,
    motion: np.ndarray,
    affine: np.ndarray,
    tr_s: float,
) -> Physiology:
    """Draw a participant's physiology during a run.

    Parameters
    ----------
    still : ndarray [Z, Y, X]
        The head at rest.
    fluid, grey : ndarray [Z, Y, X]
        Shares of CSF and grey matter in its signal.
    dropout : ndarray [Z, Y, X]
        0 to 1, where air swallows signal.
    motion : ndarray [T, 4, 4]
        Reference world -> world of volume t.
    affine : ndarray [4, 4]
        Voxel (x, y, z) -> world mm.
    tr_s : float
        s; slices are read one after the other, every second one first.
    """
    from scipy import ndimage

    count, depth = len(motion), still.shape[0]
    rank = np.empty(depth)
    rank[np.r_[0:depth:2, 1:depth:2]] = np.arange(depth)
    clock = tr_s * (np.arange(count)[:, None] + rank / depth)  # [T, Z], s
    fine = np.arange(0, count * tr_s + tr_s, 0.05)

    near = PULSE * fluid + PULSE_NEAR * ndimage.gaussian_filter(fluid, 1.5)
    late = ndimage.gaussian_filter(rng.standard_normal(still.shape), 6)
    late *= 0.8 / late.std()  # rad
    beat = _phase(rng, fine, 1.05, 0.05)
    heart = [np.interp(clock, fine, f(k * beat)) for k in (1, 2) for f in (np.cos, np.sin)]
    pulse = [near * f(k * late) / k for k in (1, 2) for f in (np.cos, np.sin)]

    depth_of_breath = np.exp(0.35 * _smooth(rng, fine, 12.0))
    breath = depth_of_breath * np.cos(_phase(rng, fine, 0.27, 0.03))
    slope = np.gradient(still, axis=1) / np.maximum(still, 0.2 * still.max())
    lower = np.linspace(1, 0.25, depth)[:, None, None] * FIELD_SHIFT_MM
    shift = -slope * lower / np.linalg.norm(affine[:3, 1])
    lag = np.arange(0, 50, 0.05)  # s
    response = 0.6 * lag**2.1 * np.exp(-lag / 1.6) - 0.0023 * lag**3.54 * np.exp(-lag / 4.25)
    slow = np.convolve(depth_of_breath - depth_of_breath.mean(), response)[: len(fine)]

    step = np.diff(motion, axis=0, prepend=motion[:1])
    through = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    middle = affine @ np.array([*(np.array(still.shape[::-1]) / 2), 1.0])
    moved = np.abs((step @ middle)[:, :3] @ through) / np.linalg.norm(affine[:3, 2])
    turned = np.abs(step[:, 2, 1])  # nodding takes the front and the back elsewhere
    history = np.stack([moved, turned])
    for t in range(1, count):
        history[:, t] += np.exp(-tr_s / _T1_S) * history[:, t - 1]
    far = np.abs(np.linspace(-1, 1, still.shape[1]))[:, None] * still.shape[1] / 2
    weight = -HISTORY * (0.4 + fluid)  # fluid relaxes late
    nod = np.rad2deg(motion[:, 2, 1] - motion[:, 2, 1].mean())

    volumes = [*history, nod, np.linspace(-1, 1, count)]
    courses = [*heart, np.interp(clock, fine, breath), np.interp(clock, fine, slow / slow.std())]
    courses += [np.repeat(values[:, None], depth, axis=1) for values in volumes]
    gain = 0.01 * (1 + 0.5 * np.linspace(-1, 1, still.shape[2]))
    maps = [*pulse, shift, OXYGEN * grey, weight, weight * far, -DROPOUT_PER_DEGREE * dropout]
    maps.append(np.broadcast_to(gain, still.shape))
    lost = rng.uniform(0.05, 0.35, (count, depth)) * (rng.random((count, depth)) < LOST_SLICES)
    return Physiology(
        np.stack(maps).astype(np.float32),
        np.stack(courses, axis=-1).astype(np.float32),
        lost.astype(np.float32),
    )


def _phase(rng: np.random.Generator, fine: np.ndarray, hertz: float, wander: float) -> np.ndarray:
    """Phase in rad of a rhythm whose rate wanders."""
    rate = hertz * rng.uniform(0.85, 1.15) + wander * _smooth(rng, fine, 8.0)
    return 2 * np.pi * (np.cumsum(rate) * (fine[1] - fine[0]) + rng.uniform())


def _smooth(rng: np.random.Generator, fine: np.ndarray, width_s: float) -> np.ndarray:
    """Noise without what is faster than a width, SD 1."""
    from scipy import ndimage

    noise = ndimage.gaussian_filter1d(
        rng.standard_normal(len(fine)), width_s / (fine[1] - fine[0])
    )
    return noise / noise.std()
