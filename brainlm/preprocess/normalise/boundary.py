"""The border of white matter: where a participant's T1w image has it, and an EPI image shows it.

Grey matter is brighter than white matter in a T2*-weighted image. Reading it on either side of
the border that the T1w image shows, along the border's normals, tells how well a fit places it,
sharply and wherever there is signal: a measure to compare ways with, and to bring the two
images together rigidly.

Source: Greve and Fischl 2009, NeuroImage 48:63 (boundary-based registration). The border is a
surface of equal intensity, found point by point on the template's grid, not a mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...errors import RecordingError
from ..kernels.spline import value_and_gradient
from .template import Template
from .tissue_fit import LENGTH_MM, Image, Problem, State, grid_of, smooth_tissues

FWHM_MM = 3.5  # of the T1w image where its levels of grey and white are read
LEAST_RISE = 0.03  # from grey to white, of the T1w's brightest tissue
REACH_MM = 2.0  # from the border to the points on its sides
CONTRAST = 0.2  # between the sides, beyond which a point counts little more
MOST_POINTS, LEAST_POINTS = 20_000, 2_000
MOST_CSF = (
    0.3  # of the template's shares at the border: that of white matter and fluid is left out
)
DARK = 0.3  # of the median on the border: less is signal drop-out, which says nothing

Places = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Boundary:
    """Points [N, 3] on the sides of the border of white matter, template mm."""

    inner: np.ndarray
    outer: np.ndarray

    def contrast(self, image: Image, place: Places) -> float:
        """How much brighter an image is outside the border than inside, about -1 to 1.

        Parameters
        ----------
        image : Image
            Of the EPI, with its own voxels.
        place : callable
            Template mm [N, 3] -> world mm of the image.
        """
        sides = _Sides(image, place(self.inner), place(self.outer))
        return float(sides.score(np.zeros(6))[0])

    def align(self, image: Image, place: Places) -> np.ndarray:
        """The rigid move [4, 4] of the world after `place` that raises the contrast most.

        It starts where `place` leads, which has to be within a few mm.
        """
        from scipy.optimize import minimize

        sides = _Sides(image, place(self.inner), place(self.outer))

        def cost(step: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = sides.score(step)
            return -value, -slope

        found = minimize(cost, np.zeros(6), jac=True, method="BFGS", options={"gtol": 1e-5})
        return sides.move(found.x)


class _Sides:
    """An image on both sides of the border, as a function of a rigid move (mm, and turns)."""

    def __init__(self, image: Image, inner: np.ndarray, outer: np.ndarray):
        from scipy import ndimage

        self.data = ndimage.spline_filter(image.data, order=3, output=np.float32, mode="mirror")
        self.inverse = np.linalg.inv(image.affine)
        self.inner, self.outer = inner, outer
        self.centre = inner.mean(axis=0)
        low, high = self._read(inner)[0], self._read(outer)[0]
        level = (low + high) / 2
        seen = np.isfinite(level)
        self.floor = DARK * float(np.median(level[seen])) if seen.any() else 1.0

    def _read(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        index = places @ self.inverse[:3, :3].T + self.inverse[:3, 3]
        values = np.empty(len(index), np.float32)
        slopes = np.empty((len(index), 3), np.float32)
        value_and_gradient(self.data, index.astype(np.float32), values, slopes)
        return values, slopes @ self.inverse[:3, :3].astype(np.float32)

    def move(self, step: np.ndarray) -> np.ndarray:
        """The rigid move [4, 4]: turns about the border's middle (mm at LENGTH_MM), then mm."""
        from scipy.spatial.transform import Rotation

        out = np.eye(4)
        out[:3, :3] = Rotation.from_rotvec(step[3:] / LENGTH_MM).as_matrix()
        out[:3, 3] = self.centre - out[:3, :3] @ self.centre + step[:3]
        return out

    def score(self, step: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean of tanh(contrast / CONTRAST), and its slope; points without signal count 0."""
        matrix = self.move(step)
        sides = []
        for places in (self.inner, self.outer):
            moved = places @ matrix[:3, :3].T + matrix[:3, 3]
            values, slopes = self._read(moved)
            sides.append((values, slopes, moved - self.centre - step[:3]))
        (low, low_slope, low_arm), (high, high_slope, high_arm) = sides
        level = (low + high) / 2
        known = np.isfinite(level) & (level > self.floor)
        level = np.where(known, level, 1)
        bent = np.tanh(np.where(known, (high - low) / level, 0) / CONTRAST)
        weight = known * (1 - bent**2) / CONTRAST / level**2
        by_low = -np.where(known, high, 0) * weight  # of (high - low) / level by low
        by_high = np.where(known, low, 0) * weight
        slope = np.zeros(6)
        for by, slopes, arm in ((by_low, low_slope, low_arm), (by_high, high_slope, high_arm)):
            push = np.where(known[:, None], slopes, 0) * by[:, None]
            slope[:3] += push.sum(axis=0)
            slope[3:] += np.cross(arm, push).sum(axis=0) / LENGTH_MM
        return float(bent.mean()), slope / len(bent)


def find_boundary(template: Template, anatomy: Image, there: State) -> Boundary:
    """Where the T1w image `anatomy`, in which the template lies at `there`, has the border.

    Raises
    ------
    RecordingError
        ``registration_failed``: the image does not show white matter.
    """
    grid = grid_of(template, 2.0, 0.0)
    tissue = smooth_tissues(template, grid, FWHM_MM)
    view = Problem(anatomy, 0.0, grid, tissue)
    values, _ = view.read(view.place(there))
    known = np.isfinite(values)
    weights = np.linalg.lstsq(
        (tissue[known].T @ tissue[known]).astype(np.float64),
        tissue[known].T @ values[known], rcond=1e-6,
    )[0]  # fmt: skip
    centred = (grid.points - grid.points.mean(axis=0)) / LENGTH_MM
    grey, white = (weights[i] + centred @ weights[[3 + i, 6 + i, 9 + i]] for i in (0, 1))
    if not np.median(white - grey) > LEAST_RISE:
        raise RecordingError(
            "registration_failed",
            "white matter is not brighter than grey matter in the T1w image, or its header "
            "places the head elsewhere",
        )
    share = np.where(known, (values - grey) / np.maximum(white - grey, 0.02), 0)
    box = grid.fill(np.clip(share, -0.5, 1.5)[None])[0]
    spacing = grid.step * template.affine[0, 0]
    slopes = np.stack(np.gradient(box, spacing), axis=-1)[grid.inside][:, ::-1]
    steep = (slopes**2).sum(axis=1)
    off = (share - 0.5) / np.maximum(steep, 1e-6)
    shift = -off[:, None] * slopes
    near = known & (steep > 0.1**2) & ((shift**2).sum(axis=1) < spacing**2)
    near &= template.csf[grid.slices][grid.inside] < MOST_CSF
    index = np.flatnonzero(near)
    if len(index) < LEAST_POINTS:
        raise RecordingError(
            "registration_failed", "the T1w image shows no border of white matter"
        )
    index = index[:: max(1, len(index) // MOST_POINTS)]
    border = grid.points[index] + shift[index]
    normal = slopes[index] / np.sqrt(steep[index])[:, None]  # inwards: T1w rises to white
    return Boundary(border + REACH_MM * normal, border - REACH_MM * normal)
