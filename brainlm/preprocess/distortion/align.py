"""Bring two images of one head together rigidly, whatever their contrasts.

The image that is read is explained by the other one, its square and a constant, each with a slope
over the head (the receive field); what these leave is made small by Gauss-Newton steps, from
smooth to sharp, with the intensity weights solved for on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..kernels.sampling import smooth_for_sums
from ..kernels.spline import value_and_gradient

FWHM_MM = (12.0, 8.0, 5.0)
POINTS = 20_000
STEPS = 15
TOLERANCE_MM = 0.01
RADIUS_MM = 50.0


@dataclass(frozen=True)
class Scan:
    """An image [Z, Y, X] with its affine, voxel (x, y, z) -> world mm."""

    data: np.ndarray
    affine: np.ndarray

    @property
    def zooms(self) -> np.ndarray:
        """mm of the voxels along z, y, x."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)[::-1]

    def smooth(self, fwhm_mm: float) -> np.ndarray:
        return smooth_for_sums(self.data, self.affine, fwhm_mm)


@dataclass(frozen=True)
class Field:
    """The field [Z, Y, X] in Hz, and an undistorted image of the head, both on one grid."""

    hz: np.ndarray
    head: Scan


def align(
    fixed: Scan, mask: np.ndarray, moving: Scan, start: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """World of `fixed` -> world of `moving` [4, 4], and how well they then agree.

    Parameters
    ----------
    mask : bool [Z, Y, X]
        Voxels of `fixed` that count.
    start : [4, 4], optional
        Identity if not given: images of one session share the scanner's world.

    Returns
    -------
    transform : float64 [4, 4]
    agreement : float
        Multiple correlation, 0 to 1, at the sharpest level.
    """
    places = np.argwhere(mask)[:, ::-1]
    places = places[:: max(1, len(places) // POINTS)]
    points = places @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    centre = points.mean(axis=0)
    transform, agreement = np.eye(4) if start is None else start, 0.0
    for fwhm in FWHM_MM:
        values = np.empty(len(places), np.float32)
        slopes = np.empty((len(places), 3), np.float32)
        value_and_gradient(fixed.smooth(fwhm), places.astype(np.float32), values, slopes)
        level = _Level(_explain(values, (points - centre) / RADIUS_MM), moving, fwhm)
        rest, jacobian, agreement = level.measure(points, transform, centre)
        for _ in range(STEPS):
            step = -np.linalg.lstsq(jacobian, rest, rcond=None)[0]
            for _ in range(5):
                candidate = _move(step, _apply(transform, centre)) @ transform
                found = level.measure(points, candidate, centre)
                if found[2] > agreement:
                    break
                step = step / 2
            else:
                break
            transform, (rest, jacobian, agreement) = candidate, found
            if np.abs(step).max() < TOLERANCE_MM:
                break
    return transform, agreement


def _explain(values: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Columns [N, 12] that explain an image of another contrast."""
    scaled = values / np.float32(np.mean(np.abs(values)) + 1e-12)
    base = np.column_stack([np.ones_like(scaled), scaled, scaled**2])
    parts = [base, *(base * local[:, i : i + 1] for i in range(3))]
    return np.hstack(parts).astype(np.float64)


class _Level:
    def __init__(self, columns: np.ndarray, moving: Scan, fwhm: float):
        self.columns, self.data = columns, moving.smooth(fwhm)
        self.inverse = np.linalg.inv(moving.affine)

    def measure(self, points: np.ndarray, transform: np.ndarray, centre: np.ndarray):
        """What is left [N], its derivative [N, 6] by mm and by arcs at 50 mm, and agreement."""
        moved = _apply(transform, points)
        index = (moved @ self.inverse[:3, :3].T + self.inverse[:3, 3]).astype(np.float32)
        values = np.empty(len(index), np.float32)
        slopes = np.empty((len(index), 3), np.float32)
        value_and_gradient(self.data, index, values, slopes)
        inside = np.isfinite(values)
        if inside.mean() < 0.3:
            return np.zeros(1), np.zeros((1, 6)), -1.0
        slopes = slopes[inside] @ self.inverse[:3, :3]
        local = (moved[inside] - _apply(transform, centre)) / RADIUS_MM
        jacobian = np.hstack([slopes, np.cross(local, slopes)])
        basis, _ = np.linalg.qr(self.columns[inside])
        both = np.column_stack([values[inside].astype(np.float64), jacobian])
        total = values[inside].astype(np.float64)
        total -= total.mean()
        both -= basis @ (basis.T @ both)
        share = (both[:, 0] @ both[:, 0]) / max(total @ total, 1e-12)
        return both[:, 0], both[:, 1:], float(np.sqrt(max(0.0, 1 - share)))


def _apply(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ transform[:3, :3].T + transform[:3, 3]


def _move(step: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """A small rigid move [4, 4] about `centre`: mm, and arcs at 50 mm."""
    from scipy.spatial.transform import Rotation

    out = np.eye(4)
    out[:3, :3] = Rotation.from_rotvec(step[3:] / RADIUS_MM).as_matrix()
    out[:3, 3] = step[:3] + centre - out[:3, :3] @ centre
    return out
