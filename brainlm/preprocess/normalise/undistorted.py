"""A normalisation of a corrected reference image, with the way back to the image as it is.

What lies at a place of the template is found in the undistorted world and then displaced to where
the scanner put it: two maps and one interpolation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..distortion.shift import Shift
from .saved_fit import SavedFit

_ARRAYS = ("shift_mm", "shift_grid", "shift_axis")


@dataclass(frozen=True)
class Undistorted:
    """Template mm [N, 3] -> mm in the reference image as acquired.

    Attributes
    ----------
    fit : SavedFit
        Template mm -> undistorted reference mm.
    shift : Shift
        Undistorted reference mm -> reference mm.
    """

    fit: Any
    shift: Shift

    @property
    def quality(self) -> dict[str, float]:
        return self.fit.quality

    @property
    def method(self) -> str:
        return self.fit.method

    def __call__(self, points_template_mm: np.ndarray) -> np.ndarray:
        return self.shift(self.fit(points_template_mm))

    def save(self, path: str | Path) -> None:
        """The fit's file with three arrays more; it appears whole."""
        shift = (self.shift.mm, self.shift.grid, np.array(self.shift.axis))
        self.fit.save(path, **dict(zip(_ARRAYS, shift, strict=True)))


def read_shift(stored: Mapping[str, np.ndarray]) -> Shift | None:
    """The displacement of a saved fit; None where nothing was corrected."""
    if _ARRAYS[0] not in stored:
        return None
    mm, grid, axis = (stored[name] for name in _ARRAYS)
    return Shift(mm, grid, int(axis))


def place_points(
    fit: SavedFit | Undistorted, points_template_mm: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Where template points [N, 3] lie in the reference image as acquired, and their gains.

    Returns
    -------
    world : ndarray [N, 3]
        mm.
    gains : float32 [N] or None
        Signal in an undistorted voxel per signal in the image; None where nothing was corrected.
    """
    if not isinstance(fit, Undistorted):
        return fit(points_template_mm), None  # type: ignore[operator]
    world = fit.fit(points_template_mm)
    return fit.shift(world), fit.shift.gains(world)
