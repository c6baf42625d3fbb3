"""FSL's files and coordinates, turned into ours. Nothing here runs FSL.

FSL's coordinates are "scaled mm": the voxel index times the voxel size, with the first axis
counted from the far end where the image is stored neurologically (positive determinant of the
affine), as FSL swaps such images when it reads them. A FLIRT or MCFLIRT matrix maps source
scaled mm -> reference scaled mm, the other way round than our transforms. A relative warp is
stored on the reference's grid: source scaled mm less reference scaled mm, at each reference
voxel.

Source: Jenkinson et al. 2012, NeuroImage 62:782, the user guides, and how the programs write:
MCFLIRT prints its matrices with six decimals or six digits (by the matrix library that it was
built with), FLIRT with ten digits; MELODIC writes a decomposition only if it converged (else
nothing, with exit code 0), and then the line "Convergence after N steps" into its log.txt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..normalise.warp import WarpField

#: How far a matrix of six printed digits may be from a rotation.
RIGID_TOLERANCE = 1e-3
#: Intent codes of images of coefficients: FNIRT's splines and cosines, TOPUP's splines. 2006 is a
#: field of displacements, as FNIRT's ``--fout`` writes it.
COEFFICIENTS = (2007, 2008, 2009, 2016)


def world_to_scaled_mm(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """World mm -> FSL's coordinates, [4, 4], of an image.

    Parameters
    ----------
    affine : [4, 4]
        Voxel (x, y, z) -> world mm.
    shape : tuple
        (..., Z, Y, X).
    """
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    scaled = np.diag([*zooms, 1.0])
    if np.linalg.det(affine[:3, :3]) > 0:
        scaled[0, 0] = -zooms[0]
        scaled[0, 3] = (shape[-1] - 1) * zooms[0]
    return scaled @ np.linalg.inv(affine)


def read_matrix(path: str | Path) -> np.ndarray:
    """A FLIRT matrix, [4, 4]; ValueError if it is none."""
    matrix = np.loadtxt(path, ndmin=2)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(matrix[3, 3] - 1) > 1e-6:
        raise ValueError(f"{path}: expected a 4 x 4 matrix, found {matrix.tolist()}")
    return matrix


def to_world(matrix: np.ndarray, source: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Reference world -> source world, from an FSL matrix.

    Parameters
    ----------
    matrix : [4, 4]
        Source -> reference, in FSL's coordinates.
    source, reference : [4, 4]
        World -> FSL's coordinates of the two images (:func:`world_to_scaled_mm`).
    """
    return np.linalg.inv(source) @ np.linalg.inv(matrix) @ reference


def nearest_rigid(transform: np.ndarray) -> np.ndarray:
    """The rigid transform [4, 4] nearest to one that was printed with few digits."""
    left, stretch, right = np.linalg.svd(transform[:3, :3])
    if np.abs(stretch - 1).max() > RIGID_TOLERANCE or np.linalg.det(left @ right) < 0:
        raise ValueError(f"expected a rigid transform, found stretches {stretch.tolist()}")
    out = transform.copy()
    out[:3, :3] = left @ right
    return out


def read_mats(paths: Iterable[str | Path]) -> np.ndarray:
    """MCFLIRT's matrices [T, 4, 4], volume t -> reference in FSL's coordinates."""
    return np.stack([read_matrix(path) for path in paths])


def to_transforms(mats: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    """Our transforms [T, 4, 4] (reference world -> world of volume t) of MCFLIRT's matrices."""
    return np.stack([nearest_rigid(to_world(mat, scaled, scaled)) for mat in mats])


def to_mats(transforms: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    """MCFLIRT's matrices [T, 4, 4] of our transforms: the inverse of :func:`to_transforms`."""
    return scaled @ np.linalg.inv(transforms) @ np.linalg.inv(scaled)


def load_warp(
    path: str | Path, source: np.ndarray, affine: np.ndarray | None = None, **about: Any
) -> WarpField:
    """A whole warp of FNIRT or convertwarp, relative or absolute: template mm -> source's world.

    Parameters
    ----------
    path : str or Path
        NIfTI [X, Y, Z, 3] on the template's grid. As in fslpy, a field is absolute (coordinates,
        not displacements) when it varies less once the coordinates are subtracted.
    source : [4, 4]
        World -> FSL's coordinates of the source image.
    affine : [4, 4], optional
        What of the map is called its affine part; none if not given.
    **about
        Further attributes of the field.

    Raises
    ------
    ValueError
        Not a warp field (FNIRT's coefficients are none: convertwarp makes a field of them).
    """
    import nibabel as nib

    image: Any = nib.load(path)
    shape, intent = image.shape, int(image.header["intent_code"])
    if len(shape) != 4 or shape[3] != 3 or intent in COEFFICIENTS:
        found = f"coefficients (intent code {intent})" if intent in COEFFICIENTS else str(shape)
        raise ValueError(f"expected a warp field [x, y, z, 3], found {found}")
    grid = np.asarray(image.affine, np.float64)
    values = np.asarray(image.dataobj, np.float64).transpose(2, 1, 0, 3)
    if not np.isfinite(values).all():
        raise ValueError("the field has values that are not finite")
    index = np.moveaxis(np.indices(values.shape[:3])[::-1], 0, -1)
    scaled = world_to_scaled_mm(grid, values.shape[:3]) @ grid
    coordinates = index @ scaled[:3, :3].T + scaled[:3, 3]
    absolute = (values - coordinates).std((0, 1, 2)).sum() < values.std((0, 1, 2)).sum()
    moved = values if absolute else coordinates + values
    back = np.linalg.inv(source)
    positions = moved @ back[:3, :3].T + back[:3, 3]
    return WarpField.from_positions(
        positions, grid, np.eye(4) if affine is None else affine, **about
    )


@dataclass(frozen=True)
class Melodic:
    """What MELODIC writes of a decomposition.

    Attributes
    ----------
    mixing : float64 [T, C]
        ``melodic_mix``: time courses.
    maps : float32 [C, Z, Y, X]
        ``melodic_IC``: in units of the residual noise.
    steps : int
        That it took to converge, by ``log.txt``.
    """

    mixing: np.ndarray
    maps: np.ndarray
    steps: int


def read_melodic(folder: str | Path) -> Melodic:
    """Read a MELODIC output folder; ValueError where there is no decomposition in it."""
    import nibabel as nib

    folder = Path(folder)
    path = next(iter(sorted(folder.glob("melodic_IC.nii*"))), None)
    if path is None or not (folder / "melodic_mix").is_file():
        raise ValueError("MELODIC wrote no decomposition: it did not converge")
    mixing = np.loadtxt(folder / "melodic_mix", ndmin=2)
    maps = np.asarray(nib.load(path).dataobj, np.float32)
    maps = np.ascontiguousarray(maps.reshape(*maps.shape[:3], -1).T)
    if mixing.shape[1] != len(maps):
        raise ValueError(f"{folder}: {mixing.shape[1]} time courses and {len(maps)} maps")
    log = folder / "log.txt"
    text = log.read_text(errors="replace") if log.is_file() else ""
    return Melodic(mixing, maps, int((re.findall(r"Convergence after (\d+)", text) or [0])[-1]))
