"""A normalisation whose bend is a field on the template's grid: what other tools' warps become."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .agreement import correlate, overlap
from .pose import interior_of
from .registration import Normalisation
from .saved_fit import SavedFit
from .template import Template
from .tissue_fit import Image, Problem, State
from .undistorted import Undistorted, read_shift


@dataclass(frozen=True)
class WarpField(SavedFit):
    """Template mm -> reference world mm; call it with points [N, 3].

    Behaves as :class:`~brainlm.preprocess.normalise.registration.Normalisation`: a point p lies at
    ``affine @ (p + bend(p))``. The bend is interpolated linearly between the grid's points and
    held constant beyond its outermost ones.

    Attributes
    ----------
    affine : float64 [4, 4]
        Applied after the bend.
    grid : float64 [4, 4]
        Voxel (x, y, z) of the field -> template mm.
    displacement : float32 [3, Z, Y, X]
        Bend along x, y, z, in mm.
    quality, method
        As in Normalisation.
    """

    affine: np.ndarray
    grid: np.ndarray
    displacement: np.ndarray
    quality: dict[str, float] = field(default_factory=dict)
    method: str = "direct"

    @classmethod
    def from_positions(
        cls, positions: np.ndarray, grid: np.ndarray, affine: np.ndarray, **about
    ) -> WarpField:
        """From where each voxel of the grid lies in the reference's world: mm [Z, Y, X, 3]."""
        inverse = np.linalg.inv(affine)
        bent = positions @ inverse[:3, :3].T + inverse[:3, 3]
        index = np.moveaxis(np.indices(positions.shape[:3])[::-1], 0, -1)
        bend = bent - (index @ grid[:3, :3].T + grid[:3, 3])
        moved = np.ascontiguousarray(np.moveaxis(bend, -1, 0), np.float32)
        return cls(np.asarray(affine), np.asarray(grid), moved, **about)

    def __call__(self, points_template_mm: np.ndarray) -> np.ndarray:
        points = np.asarray(points_template_mm, np.float64)
        bent = points + self.bend(points)
        return bent @ self.affine[:3, :3].T + self.affine[:3, 3]

    def bend(self, points: np.ndarray) -> np.ndarray:
        """Displacement [N, 3] in mm of template points [N, 3], before the affine part."""
        from scipy import ndimage

        inverse = np.linalg.inv(self.grid)
        index = (points @ inverse[:3, :3].T + inverse[:3, 3]).T[::-1]
        return np.stack(
            [
                ndimage.map_coordinates(one, index, np.float64, order=1, mode="nearest")
                for one in self.displacement
            ],
            axis=1,
        )

    def jacobian(self) -> np.ndarray:
        """Determinant [Z, Y, X] of the derivative of p + bend(p)."""
        slopes = np.stack([np.gradient(one, axis=(2, 1, 0)) for one in self.displacement])
        slopes = np.moveaxis(slopes, (0, 1), (-2, -1))  # per voxel of the grid
        return np.linalg.det(np.eye(3) + slopes @ np.linalg.inv(self.grid[:3, :3]))


def load_normalisation(path: str | Path) -> Normalisation | WarpField | Undistorted:
    """Read a normalisation, whichever engine fitted it, with the distortion that was corrected."""
    shift = None
    try:
        with np.load(path, allow_pickle=False) as stored:
            is_field, shift = "displacement" in stored, read_shift(stored)
    except (OSError, ValueError):
        is_field = False  # Normalisation says what is wrong with the file
    fit = WarpField.load(path) if is_field else Normalisation.load(path)
    return fit if shift is None else Undistorted(fit, shift)


class _Placed(Problem):
    """The builtin engine's match, at places that a warp gives: the same figures, comparable."""

    def place(self, state: State) -> np.ndarray:
        return state(self.grid.points)  # type: ignore[operator]


def assess_field(
    fit: WarpField, moving: Image, mask: np.ndarray, template: Template
) -> dict[str, float]:
    """Figures of quality, see :class:`brainlm.preprocess.normalise.registration.Normalisation`."""
    inside = interior_of(template)
    still = replace(fit, displacement=np.zeros_like(fit.displacement))
    jacobian = fit.jacobian()[template.mask]
    zooms = np.linalg.svd(fit.affine[:3, :3], compute_uv=False)
    bend = fit.displacement[:, template.mask]
    return {
        "correlation": correlate(_Placed, moving, template, fit),  # type: ignore[arg-type]
        "correlation_affine": correlate(_Placed, moving, template, still),  # type: ignore[arg-type]
        "interior": inside.agree(inside.of(moving), still),
        **overlap(fit, moving.affine, mask, template),
        "bend_rms_mm": float(np.sqrt((bend**2).sum(axis=0).mean())),
        "jacobian_min": float(jacobian.min()),
        "jacobian_max": float(jacobian.max()),
        "zoom_min": float(zooms.min()),
        "zoom_max": float(zooms.max()),
    }
