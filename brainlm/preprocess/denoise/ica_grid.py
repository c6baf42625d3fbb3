"""The grid of template space on which a run is decomposed, and the tissues at its points."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..normalise.template import Template, load_template

GRID_MM = 4.0
SMOOTH_FWHM_MM = 6.0
EDGE_MM = 6.0
DEEP_MM = 2.0  # standard deviation by which a tissue is smoothed to find where it is deep


@dataclass(frozen=True)
class ComponentGrid:
    """Points of template space at which a run is decomposed, and what lies there.

    Attributes
    ----------
    mask : ndarray [Z, Y, X]
        Where the points are; all other arrays are [N], in its C order.
    affine : ndarray [4, 4]
    points : ndarray [N, 3]
        Template mm.
    brain, edge, csf, fluid, white : ndarray [N]
        bool. Edge: within 6 mm of the outside or of CSF. CSF: ventricles only. Fluid, white: so
        deep in the ventricles and in white matter that a voxel holds nothing else.
    """

    mask: np.ndarray
    affine: np.ndarray
    points: np.ndarray
    brain: np.ndarray
    edge: np.ndarray
    csf: np.ndarray
    fluid: np.ndarray
    white: np.ndarray


def make_grid(template: Template) -> ComponentGrid:
    """Every n-th voxel of the template, in and one step around its brain mask."""
    from scipy import ndimage as ndi

    size = float(np.abs(np.linalg.det(template.affine[:3, :3])) ** (1 / 3))
    step = max(1, round(GRID_MM / size))
    mask = template.mask.astype(bool)
    depth = ndi.distance_transform_edt(mask) * size  # mm below the surface
    ventricles = _ventricles(template, depth)
    tissue = mask & ~ventricles
    edge = tissue & (ndi.distance_transform_edt(tissue) * size <= EDGE_MM)
    white, fluid = (
        ndi.gaussian_filter(share.astype(np.float32), DEEP_MM / size)
        for share in (template.white, template.csf)
    )
    deep = ventricles & (fluid > 0.8), white > 0.9
    near = ndi.binary_dilation(mask, iterations=step)
    coarse = tuple([slice(step // 2, None, step)] * 3)
    where = near[coarse]
    affine = template.affine.astype(np.float64).copy()
    affine[:3, 3] += affine[:3, :3] @ np.full(3, step // 2)
    affine[:3, :3] *= step
    points = np.argwhere(where)[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    tissues = (m[coarse][where] for m in (mask, edge, ventricles, *deep))
    return ComponentGrid(where, affine, points, *tissues)


@lru_cache(maxsize=2)
def load_grid(space: str) -> ComponentGrid:
    """The grid of a template (kept in memory; do not write to its arrays)."""
    return make_grid(load_template(space))


def _ventricles(template: Template, depth: np.ndarray) -> np.ndarray:
    """CSF that is not the rim: the largest deep pieces of the CSF map."""
    from scipy import ndimage as ndi

    pieces, count = ndi.label((template.csf > 0.5) & (depth > 15))
    if not count:
        return np.zeros(depth.shape, bool)
    sizes = np.bincount(pieces.ravel())[1:]
    large = np.flatnonzero(sizes > 0.1 * sizes.max()) + 1
    return np.isin(pieces, large)


def smooth_grid(samples: np.ndarray, grid: ComponentGrid, fwhm_mm: float) -> np.ndarray:
    """Gaussian smoothing of [T, N] grid samples within the grid's mask; NaN where no data."""
    from scipy import ndimage as ndi

    usable = np.isfinite(samples).all(0)
    if fwhm_mm <= 0:
        return np.where(usable, samples, np.float32(np.nan))
    step = abs(np.linalg.det(grid.affine[:3, :3])) ** (1 / 3)
    sigma = fwhm_mm / 2.3548 / step
    volume = np.zeros((len(samples) + 1, *grid.mask.shape), np.float32)
    volume[:-1, grid.mask] = np.where(usable, samples, 0)
    volume[-1, grid.mask] = usable
    # a radius of one step holds all weight that matters at these widths
    ndi.gaussian_filter(
        volume, (0, sigma, sigma, sigma), output=volume, mode="constant", radius=(0, 1, 1, 1)
    )
    out = volume[:-1, grid.mask] / np.maximum(volume[-1, grid.mask], 1e-6)
    out[:, ~usable] = np.nan
    return out
