"""The scanner: volumes of a moving head whose signal changes, with noise.

A voxel is the mean of the head over the voxel's box. The head is piecewise linear on its fine grid
(half a voxel), so that mean is exact: per axis the integral of a triangle over a box of two cells,
a piecewise quadratic with four taps. No interpolation that a motion estimator uses is used here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from .anatomy import Head
from .demo_atlas import NUM_PARCELS
from .physiology import Physiology

_BRIGHTNESS = 1000  # of grey matter, arbitrary units
_ARTEFACT_SD = {"pulsation": 0.04, "spin_history": 0.03, "speckle": 0.012, "drift": 0.008}


@dataclass(frozen=True)
class Scene:
    """Everything still: what is sampled and what modulates it.

    Attributes
    ----------
    still : ndarray [Z', Y', X'] float32
        The head at rest on the fine grid.
    index, column, gain : ndarray [S]
        Sources fixed to the head: fine voxel ``index`` gains ``gain * values[column]``, where the
        values of a volume are the 424 parcels, then pulsation and spin history.
    bias, speckle, drift : ndarray [Z, Y, X] float32
        Fixed to the scanner: the receive field, and maps of two artefacts.
    """

    still: np.ndarray
    index: np.ndarray
    column: np.ndarray
    gain: np.ndarray
    bias: np.ndarray
    speckle: np.ndarray
    drift: np.ndarray

    def map_artefacts(self, head: Head) -> np.ndarray:
        """Fraction of each voxel's signal per SD of each artefact, [4, Z, Y, X] float16."""
        rest = np.linalg.inv(head.fine_affine) @ head.affine
        volumes = []
        for column in (None, NUM_PARCELS, NUM_PARCELS + 1):
            fine = self.still.copy() if column is None else np.zeros_like(self.still)
            chosen = self.column == column
            fine.reshape(-1)[self.index[chosen]] += self.gain[chosen]
            volumes.append(np.empty(head.shape, dtype=np.float32))
            _average(fine, rest, volumes[-1])
        still = np.maximum(volumes[0], 0.02)
        return np.stack([volumes[1] / still, volumes[2] / still, self.speckle, self.drift]).astype(
            np.float16
        )


def make_scene(rng: np.random.Generator, head: Head) -> Scene:
    """Draw the head, the sources fixed to it and the fields fixed to the scanner."""
    labels, grey = head.draw_labels(), head.draw("grey")
    sources = [(np.where(labels > 0, grey, 0), labels.ravel() - 1)]
    for offset, (name, tissue) in enumerate((("pulsation", "fluid"), ("spin_history", "edge"))):
        gain = head.draw(tissue) * np.float32(_ARTEFACT_SD[name])
        sources.append((gain, np.full(gain.size, NUM_PARCELS + offset, dtype=np.int16)))
    found = [np.flatnonzero(gain > 1e-4) for gain, _ in sources]
    pairs = list(zip(found, sources, strict=True))
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in head.shape)
    tilt = rng.uniform(-1, 1, 3)
    slope = tilt[0] * z[:, None, None] + tilt[1] * y[:, None] + tilt[2] * x
    return Scene(
        still=head.draw("epi"),
        index=np.concatenate(found),
        column=np.concatenate([column[index] for index, (_, column) in pairs]),
        gain=np.concatenate([gain.ravel()[index] for index, (gain, _) in pairs]),
        bias=_draw_bias(rng, z, y, x),
        speckle=rng.standard_normal(head.shape, dtype=np.float32) * _ARTEFACT_SD["speckle"],
        drift=(1 + 0.5 * slope).astype(np.float32) * _ARTEFACT_SD["drift"],
    )


def draw_voxels(head: Head, *names: str) -> list[np.ndarray]:
    """Maps of :func:`~brainlm.simulate.anatomy.load_maps` at rest, on the voxels [Z, Y, X]."""
    rest, drawn = np.linalg.inv(head.fine_affine) @ head.affine, []
    for name in names:
        drawn.append(np.empty(head.shape, np.float32))
        _average(head.draw(name), rest, drawn[-1])
    return drawn


def _draw_bias(rng, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A head coil: brighter towards the surface, a little uneven, ±25 %."""
    radius = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2
    uneven = rng.uniform(-0.06, 0.06, 3)
    bias = 1 + 0.2 * (radius - 0.6) + uneven[0] * z[:, None, None] + uneven[1] * y[:, None]
    return (bias + uneven[2] * x).astype(np.float32)


def scan(
    rng: np.random.Generator,
    head: Head,
    scene: Scene,
    series: np.ndarray,
    artefacts: np.ndarray,
    motion: np.ndarray,
    tsnr: float,
    physiology: Physiology | None = None,
) -> np.ndarray:
    """Acquire [T, Z, Y, X] int16.

    Parameters
    ----------
    series : ndarray [T, 424]
        Fractions of the signal.
    artefacts : ndarray [T, 4]
        Courses, in the order of :data:`~brainlm.simulate.signals.ARTEFACTS`.
    motion : ndarray [T, 4, 4]
        Reference world to world of volume t.
    tsnr : float
        Grey-matter signal over the standard deviation of the thermal (Rician) noise. Physiology
        and motion come on top, so the measured figure is lower.
    physiology : Physiology, optional
        What heart, breath, moves and slices do besides.
    """
    values = np.hstack([series, artefacts[:, :2]]).astype(np.float32)
    to_fine = np.linalg.inv(head.fine_affine) @ np.linalg.inv(motion) @ head.affine
    bold = np.empty((len(series), *head.shape), dtype=np.int16)
    volume = np.empty(head.shape, dtype=np.float32)
    noise_sd = np.float32(_BRIGHTNESS / tsnr)
    for t in range(len(series)):
        fine = scene.still.copy()
        _paint(fine.reshape(-1), scene.index, scene.gain, scene.column, values[t])
        _average(fine, to_fine[t], volume)
        fields = scene.speckle * artefacts[t, 2] + scene.drift * artefacts[t, 3]
        if physiology is not None:
            fields = fields + physiology.change(t)
        clean = volume * scene.bias * (1 + fields.astype(np.float32)) * _BRIGHTNESS
        bold[t] = _add_noise(rng, clean, noise_sd)
    return bold


def _add_noise(rng: np.random.Generator, clean: np.ndarray, sd: np.float32) -> np.ndarray:
    """The magnitude of a complex signal with Gaussian noise in both channels, rounded."""
    noise = rng.standard_normal((2, *clean.shape), dtype=np.float32) * sd
    return np.rint(np.hypot(clean + noise[0], noise[1])).astype(np.int16)


@numba.njit(cache=True, nogil=True)
def _paint(fine, index, gain, column, values):
    for n in range(len(index)):
        fine[index[n]] += gain[n] * values[column[n]]


@numba.njit(cache=True, nogil=True)
def _taps(position, last):
    """First node and the weights of four nodes for a box of two cells around `position`."""
    base = min(max(int(np.floor(position)), 1), last - 2)
    f = np.float32(min(max(position - base, 0.0), 1.0))
    g = np.float32(1) - f
    half, quarter = np.float32(0.5), np.float32(0.25)
    return base - 1, (
        quarter * g * g,
        half - quarter * f * f,
        half - quarter * g * g,
        quarter * f * f,
    )


@numba.njit(cache=True, nogil=True)
def _average(fine, matrix, volume):
    """Average the fine head over every voxel; `matrix` maps voxels (x, y, z) to the fine grid."""
    depth, height, width = fine.shape
    for k in range(volume.shape[0]):
        for j in range(volume.shape[1]):
            for i in range(volume.shape[2]):
                x = matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 2] * k + matrix[0, 3]
                y = matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 2] * k + matrix[1, 3]
                z = matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 2] * k + matrix[2, 3]
                x0, wx = _taps(x, width - 1)
                y0, wy = _taps(y, height - 1)
                z0, wz = _taps(z, depth - 1)
                total = np.float32(0)
                for c in range(4):
                    plane = np.float32(0)
                    for b in range(4):
                        row = fine[z0 + c, y0 + b]
                        plane += wy[b] * (
                            wx[0] * row[x0]
                            + wx[1] * row[x0 + 1]
                            + wx[2] * row[x0 + 2]
                            + wx[3] * row[x0 + 3]
                        )
                    total += wz[c] * plane
                volume[k, j, i] = total
