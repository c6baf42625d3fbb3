"""What susceptibility does to an image: every point is displaced along the phase-encoding axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..kernels.lines import filter_lines, pull_lines

AXES = "ijk"  # BIDS' names of the voxel axes x, y, z


@dataclass(frozen=True)
class Shift:
    """Where a point of the undistorted world lies in an image; call it with points [N, 3] in mm.

    Attributes
    ----------
    mm : float32 [Z, Y, X]
        Displacement along `axis`, by the place it comes from.
    grid : float64 [4, 4]
        Voxel (x, y, z) of `mm` -> world mm; that of the image.
    axis : int
        0, 1 or 2 for x, y or z of the voxels.
    """

    mm: np.ndarray
    grid: np.ndarray
    axis: int

    @property
    def along(self) -> np.ndarray:
        """Unit vector [3] of the axis in the world."""
        column = self.grid[:3, self.axis]
        return column / np.linalg.norm(column)

    @property
    def stretch(self) -> np.ndarray:
        """1 + slope of the displacement [Z, Y, X]: undistorted signal per signal in the image."""
        zoom = np.linalg.norm(self.grid[:3, self.axis])
        return 1 + np.gradient(self.mm, zoom, axis=2 - self.axis)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return points + self._read(self.mm, points)[:, None] * self.along

    def gains(self, points: np.ndarray) -> np.ndarray:
        """`stretch` at undistorted points [N, 3], float32 [N]."""
        return self._read(self.stretch, points).astype(np.float32)

    def _read(self, values: np.ndarray, points: np.ndarray) -> np.ndarray:
        return read_linear(values, self.grid, points)

    def undo(self, image: np.ndarray) -> np.ndarray:
        """The image [Z, Y, X] without its displacement, and signal where it belongs."""
        lines = to_lines(image, self.axis)
        zoom = np.linalg.norm(self.grid[:3, self.axis])
        shift = to_lines(self.mm, self.axis) / np.float32(zoom)
        return from_lines(pull(lines, shift), self.axis) * self.stretch.astype(np.float32)


def pull(lines: np.ndarray, shift: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Lines [A, B, N] read at n + scale * shift[n] (voxels) by cubic B-splines."""
    coefficients, values, slopes = (np.empty_like(lines) for _ in range(3))
    filter_lines(0, len(lines), lines, coefficients)
    pull_lines(0, len(lines), coefficients, shift, scale, values, slopes)
    return values


def to_lines(image: np.ndarray, axis: int) -> np.ndarray:
    """[Z, Y, X] with voxel axis `axis` (x, y, z) last, contiguous float32."""
    return np.ascontiguousarray(np.moveaxis(image, 2 - axis, -1), np.float32)


def from_lines(lines: np.ndarray, axis: int) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(lines, -1, 2 - axis))


def read_linear(image: np.ndarray, affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[Z, Y, X] at world points [N, 3], linearly; the outermost values go on outside."""
    from scipy import ndimage

    inverse = np.linalg.inv(affine)
    index = (points @ inverse[:3, :3].T + inverse[:3, 3]).T[::-1]
    return ndimage.map_coordinates(image, index, np.float64, order=1, mode="nearest")


def world_of(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """World mm [N, 3] of all voxels of an image [Z, Y, X]."""
    index = np.indices(shape).reshape(3, -1)[::-1].T
    return index @ affine[:3, :3].T + affine[:3, 3]
