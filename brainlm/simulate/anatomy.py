"""One participant's head: the template's tissues, bent and placed in the scanner.

Legend: p is a point in template space, q a point of the head in reference world (the world of
volume 0), both mm. The head is drawn on a fine grid of half the voxel size in reference world.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from .demo_atlas import load_symmetric_map, parcellate_template

GRID = (40, 48, 38)  # voxels x, y, z at 4 mm: 160 × 192 × 152 mm
_MARGIN = 4  # fine voxels beyond the field of view, so that what moves in exists
_MODES = 4  # cosines per axis of the warp
_WARP_MM = 2.0  # its root mean square

# Signal of each tissue at an echo time of 30 ms and 3 T, grey matter = 1, with fat suppression.
_EPI = {"grey": 1.0, "white": 0.8, "fluid": 1.35, "scalp": 0.3, "skull": 0.05, "eyes": 1.2}
_T1W = {"grey": 0.7, "white": 1.0, "fluid": 0.25, "scalp": 0.9, "skull": 0.1, "eyes": 0.25}
_EYES = np.array([(33, 62, -38), (-33, 62, -38)])
# Air next to brain swallows signal: above the sphenoid sinus and the ear canals (MNI mm, SD mm).
_DROPOUT = [((0, 34, -28), 13), ((48, -24, -32), 10), ((-48, -24, -32), 10)]


@dataclass(frozen=True)
class Placement:
    """Where a template point lies in the head, exactly: ``p = affine q + warp(q)``.

    Attributes
    ----------
    affine : ndarray [4, 4]
        Reference world to template world, mm.
    coefficients : ndarray [4, 4, 4, 3]
        Displacement (mm) of each product of cosines along x, y, z.
    frame : ndarray [4, 4]
        Reference world to the unit cube on which the cosines live.
    """

    affine: np.ndarray
    coefficients: np.ndarray
    frame: np.ndarray

    def to_template(self, points: np.ndarray) -> np.ndarray:
        """Template coordinates [N, 3] of reference-world points [N, 3], mm."""
        x, y, z = (_cosines(column) for column in transform(self.frame, points).T)
        inner = np.einsum("nk,ijkc->nijc", z, self.coefficients)
        warp = np.einsum("ni,nj,nijc->nc", x, y, inner, optimize=True)
        return transform(self.affine, points) + warp

    def grid_to_template(self, affine: np.ndarray, size: np.ndarray) -> np.ndarray:
        """The same for a whole grid aligned with the frame, [3, Z, Y, X] float32."""
        steps, matrix = self.frame @ affine, self.affine @ affine
        axes = [np.arange(n) for n in size]
        basis = [_cosines(steps[a, a] * axes[a] + steps[a, 3]) for a in range(3)]
        inner = np.einsum("yj,zk,ijkc->czyi", *basis[1:], self.coefficients, optimize=True)
        warp = inner.astype(np.float32) @ basis[0].T.astype(np.float32)
        z, y, x = np.ogrid[tuple(slice(n) for n in size[::-1])]
        for c in range(3):
            row = matrix[c].astype(np.float32)
            warp[c] += row[0] * x + row[1] * y + (row[2] * z + row[3])
        return warp

    def to_head(self, points: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`to_template`, by fixed-point iteration to under 0.001 mm."""
        inverse = np.linalg.inv(self.affine)
        guess = transform(inverse, points)
        for _ in range(10):  # each gains more than a digit
            guess = guess + (points - self.to_template(guess)) @ inverse[:3, :3].T
        return guess


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a 4×4 matrix to points [N, 3]."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def rotation(angles_rad: np.ndarray) -> np.ndarray:
    """Rotation matrix [..., 3, 3] about x, then y, then z, for angles [..., 3]."""
    angles = np.asarray(angles_rad, dtype=float)
    out = np.broadcast_to(np.eye(3), (*angles.shape[:-1], 3, 3)).copy()
    for axis in range(3):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.broadcast_to(np.eye(3), out.shape).copy()
        turn[..., i, i] = turn[..., j, j] = np.cos(angles[..., axis])
        turn[..., j, i] = np.sin(angles[..., axis])
        turn[..., i, j] = -turn[..., j, i]
        out = turn @ out
    return out


def _cosines(unit: np.ndarray) -> np.ndarray:
    """Cosines of 0, ½, 1 and 1½ cycles across the cube, [N, 4]; flat at its faces."""
    return np.cos(np.pi * np.clip(unit, 0, 1)[:, None] * np.arange(_MODES))


@functools.cache
def load_maps() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What the scanner could see, on the 2 mm template grid, and the grid's affine.

    Returns
    -------
    maps : dict of ndarray [X, Y, Z] float32
        "epi" and "t1w": signal, grey matter about 1; "grey", "fluid" and "edge": how much of the
        EPI signal comes from grey matter, from CSF and from the rim of the brain.
    affine : ndarray [4, 4]
    """
    tissues, affine = _make_tissues()
    kept = _keep_signal(tissues["grey"].shape, affine)
    rim = tissues.pop("rim")
    epi = {name: _EPI[name] * value * kept for name, value in tissues.items()}
    maps = {
        "epi": sum(epi.values()),
        "t1w": sum(_T1W[name] * value for name, value in tissues.items()),
        "grey": epi["grey"],
        "fluid": epi["fluid"],
    }
    maps["edge"] = maps["epi"] * rim
    return {name: value.astype(np.float32) for name, value in maps.items()}, affine


def _make_tissues() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tissue fractions. The template is an average brain without its head.

    Its tissues are sharpened to look like one participant's; skull and scalp are shells around it.
    """
    from scipy import ndimage

    grey, white, t1 = (load_symmetric_map(kind)[0] / (255 * 128) for kind in ("gm", "wm", "t1"))
    affine = load_symmetric_map("gm")[1]
    brain = ndimage.binary_fill_holes(ndimage.binary_opening(t1 > 0.12, iterations=2))
    fluid = np.clip(1 - grey - white, 0, 1) * ndimage.gaussian_filter(brain.astype(float), 0.7)
    parts = [grey**2, white**2, fluid**2]
    inside = np.clip(grey + white + fluid, 0, 1)
    share = inside / np.maximum(sum(parts), 1e-6)
    tissues = dict(zip(("grey", "white", "fluid"), (share * part for part in parts), strict=True))
    distance = 2 * ndimage.distance_transform_edt(~brain)  # mm outside the brain
    tissues["skull"] = _shell(distance, 2, 7) * (1 - inside)
    tissues["scalp"] = _shell(distance, 7, 13) * (1 - inside)
    eyes = np.clip(12.5 - _distance(grey.shape, affine, _EYES), 0, 1)
    tissues = {name: value * (1 - eyes) for name, value in tissues.items()}
    depth = 2 * ndimage.distance_transform_edt(brain)
    rim = np.exp(-((np.maximum(depth, distance) / 4) ** 2))
    return tissues | {"eyes": eyes, "rim": rim}, affine


def _keep_signal(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Fraction of the signal that survives where air lies next to brain."""
    lost = [
        0.75 * np.exp(-0.5 * (_distance(shape, affine, [centre]) / sd_mm) ** 2)
        for centre, sd_mm in _DROPOUT
    ]
    return 1 - np.sum(lost, axis=0)


def _distance(shape: tuple[int, ...], affine: np.ndarray, centres) -> np.ndarray:
    """Distance in mm of every voxel of the 2 mm grid to the nearest of some points."""
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    world = [2 * axis + origin for axis, origin in zip(axes, affine[:3, 3], strict=True)]
    squares = [sum((w - c) ** 2 for w, c in zip(world, centre, strict=True)) for centre in centres]
    return np.sqrt(np.min(squares, axis=0))


def _shell(distance: np.ndarray, inner: float, outer: float) -> np.ndarray:
    """1 between two distances, with soft borders of 2 mm."""
    rise = np.clip((distance - inner) / 2 + 0.5, 0, 1)
    return rise * np.clip((outer - distance) / 2 + 0.5, 0, 1)


@dataclass(frozen=True)
class Head:
    """A participant's head in the scanner.

    Attributes
    ----------
    affine : ndarray [4, 4]
        Of the recording's voxels (x, y, z), LAS and slightly oblique.
    shape : tuple
        Voxels z, y, x of the recording.
    fine_affine : ndarray [4, 4]
        Of the fine grid.
    where : ndarray [3, Z', Y', X'] float32
        Template voxel coordinates of the fine grid.
    """

    placement: Placement
    affine: np.ndarray
    shape: tuple[int, ...]
    fine_affine: np.ndarray
    where: np.ndarray

    def draw(self, name: str) -> np.ndarray:
        """One of :func:`load_maps` on the fine grid, [Z', Y', X'] float32 (linear)."""
        from scipy import ndimage

        return ndimage.map_coordinates(load_maps()[0][name], self.where, order=1)

    def draw_labels(self) -> np.ndarray:
        """demo424 parcels on the fine grid, [Z', Y', X'] int16 (nearest)."""
        from scipy import ndimage

        return ndimage.map_coordinates(parcellate_template().labels, self.where, order=0)


def make_head(rng: np.random.Generator, voxel_mm: float) -> Head:
    """Draw a participant: zoom ±5 %, tilt ±6°, shift ±6 mm, a smooth warp of 2 mm RMS."""
    size = np.array([round(n * 4 / voxel_mm) for n in GRID])
    affine = np.eye(4)
    pitch = rotation(np.deg2rad([rng.uniform(-8, 8), 0, 0]))
    affine[:3, :3] = pitch * (-voxel_mm, voxel_mm, voxel_mm)
    affine[:3, 3] = -affine[:3, :3] @ ((size - 1) / 2)
    placement = _place(rng, affine, size)
    fine = np.diag([0.5, 0.5, 0.5, 1])  # two fine voxels to a voxel, centres a quarter off
    fine[:3, 3] = -_MARGIN / 2 - 0.25
    fine_affine, template = affine @ fine, load_maps()[1]
    where = placement.grid_to_template(fine_affine, 2 * size + 2 * _MARGIN)
    where = (where - template[:3, 3, None, None, None].astype(np.float32)) / np.float32(2)
    return Head(placement, affine, tuple(int(n) for n in size[::-1]), fine_affine, where)


def _place(rng: np.random.Generator, affine: np.ndarray, size: np.ndarray) -> Placement:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(np.deg2rad(rng.uniform(-6, 6, 3))) * rng.uniform(0.95, 1.05, 3)
    # The middle of the template brain, (0, -18, 8), lies near the middle of the field of view.
    matrix[:3, 3] = (0, -18, 8) + rng.uniform(-1, 1, 3) * (6, 6, 3)
    i, j, k = np.ogrid[:_MODES, :_MODES, :_MODES]
    order = i + j + k
    coefficients = rng.standard_normal((_MODES, _MODES, _MODES, 3))
    coefficients *= ((order > 0) / np.maximum(order, 1) ** 2)[..., None]
    halves = (i > 0).astype(int) + (j > 0) + (k > 0)  # the mean of a squared cosine is ½
    power = (coefficients**2 * (0.5**halves)[..., None]).sum()
    coefficients *= _WARP_MM / np.sqrt(power)
    cube = np.diag([*(1 / size), 1])
    cube[:3, 3] = 0.5 / size
    return Placement(matrix, coefficients, cube @ np.linalg.inv(affine))
