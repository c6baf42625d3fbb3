"""FSL's files and coordinates, turned into ours. Nothing here runs FSL.

FSL's coordinates are "scaled mm": the voxel index times the voxel size, with the first axis
counted from the far end where the image is stored neurologically (positive determinant of the
affine). A FLIRT or MCFLIRT matrix maps source scaled mm -> reference scaled mm, the other way
round than our transforms. A relative warp is stored on the reference's grid: source scaled mm
less reference scaled mm, at each reference voxel.

Source: Jenkinson et al. 2012, NeuroImage 62:782, and the FLIRT, MCFLIRT and FNIRT user guides.
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
#: How far the .par file and the matrices may disagree: two printings of the same fit.
ROTATION_TOLERANCE_RAD, SHIFT_TOLERANCE_MM = 1e-4, 0.01


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


def read_par(path: str | Path) -> np.ndarray:
    """MCFLIRT's parameters [T, 6]: three rotations in rad, three translations in mm."""
    values = np.loadtxt(path, ndmin=2)
    if values.shape[1] != 6 or not np.isfinite(values).all():
        raise ValueError(f"{path}: expected six finite columns, found shape {values.shape}")
    return values


def to_par(mats: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """MCFLIRT's parameters [T, 6] (rad, then mm) of its matrices.

    Parameters
    ----------
    mats : [T, 4, 4]
    centre : [3]
        What the translations are of, in FSL's coordinates: the reference's centre of gravity.
    """
    shifts = mats[:, :3, 3] + (mats[:, :3, :3] - np.eye(3)) @ centre
    return np.hstack([euler_angles(mats[:, :3, :3]), shifts])


def write_rows(path: str | Path, values: np.ndarray) -> None:
    """A matrix as FSL's programs print theirs, with the digits that it takes."""
    rows = ("  ".join(f"{value:.10g}" for value in row) + "  \n" for row in values)
    Path(path).write_text("".join(rows))


def euler_angles(rotation: np.ndarray) -> np.ndarray:
    """FSL's angles [..., 3] in rad of rotations [..., 3, 3]: R = Rx Ry Rz, each left-handed."""
    cos = np.hypot(rotation[..., 0, 0], rotation[..., 0, 1])
    return np.stack(
        [
            np.arctan2(rotation[..., 1, 2], rotation[..., 2, 2]),
            np.arctan2(-rotation[..., 0, 2], cos),
            np.arctan2(rotation[..., 0, 1], rotation[..., 0, 0]),
        ],
        axis=-1,
    )


def check_par(mats: np.ndarray, par: np.ndarray) -> None:
    """ValueError unless MCFLIRT's matrices and parameters are of the same fit.

    Angles must be those of the matrices. Translations are those of a centre that the file does
    not name (the reference's centre of gravity): there must be one that explains them all.
    """
    if len(mats) != len(par):
        raise ValueError(f"{len(mats)} matrices but {len(par)} rows of parameters")
    turn = np.abs(euler_angles(mats[:, :3, :3]) - par[:, :3]).max()
    change = (mats[:, :3, :3] - np.eye(3)).reshape(-1, 3)
    shift = (par[:, 3:] - mats[:, :3, 3]).ravel()
    centre = np.linalg.lstsq(change, shift, rcond=None)[0]
    slip = np.abs(change @ centre - shift).max()
    if turn > ROTATION_TOLERANCE_RAD or slip > SHIFT_TOLERANCE_MM:
        raise ValueError(
            f"matrices and parameters disagree by {turn:.2g} rad and {slip:.2g} mm (at most "
            f"{ROTATION_TOLERANCE_RAD:g} and {SHIFT_TOLERANCE_MM:g}): not written by one run"
        )


def read_warp(
    path: str | Path, affine: np.ndarray, shape: tuple[int, ...], source: np.ndarray
) -> np.ndarray:
    """Where a relative warp says that each voxel of its grid lies in the source's world.

    Parameters
    ----------
    path : str or Path
        NIfTI [X, Y, Z, 3], any affine part included (``convertwarp --relout``).
    affine, shape : [4, 4], (Z, Y, X)
        Of the reference image, whose grid it is on.
    source : [4, 4]
        World -> FSL's coordinates of the source image.

    Returns
    -------
    float64 [Z, Y, X, 3]
        mm.
    """
    import nibabel as nib

    image = nib.load(path)
    if image.shape != (*shape[::-1], 3):
        raise ValueError(f"{path}: expected a field {(*shape[::-1], 3)}, found {image.shape}")
    displacement = np.asarray(image.dataobj, np.float64).transpose(2, 1, 0, 3)
    if not np.isfinite(displacement).all():
        raise ValueError(f"{path}: the field has values that are not finite")
    index = np.moveaxis(np.indices(shape)[::-1], 0, -1)
    scaled = world_to_scaled_mm(affine, shape) @ affine
    moved = index @ scaled[:3, :3].T + scaled[:3, 3] + displacement
    back = np.linalg.inv(source)
    return moved @ back[:3, :3].T + back[:3, 3]


def load_warp(path: str | Path, source: np.ndarray) -> WarpField:
    """A whole warp of FNIRT or convertwarp, relative or absolute: template mm -> source's world.

    Parameters
    ----------
    path : str or Path
        NIfTI [X, Y, Z, 3] on the template's grid. As in fslpy, a field is absolute (coordinates,
        not displacements) when it varies less once the coordinates are subtracted.
    source : [4, 4]
        World -> FSL's coordinates of the source image.

    Raises
    ------
    ValueError
        Not a warp field (FNIRT's coefficients are none: convertwarp makes a field of them).
    """
    import nibabel as nib

    image: Any = nib.load(path)
    if len(image.shape) != 4 or image.shape[3] != 3 or 2000 < image.header["intent_code"] < 2020:
        raise ValueError(f"expected a warp field [x, y, z, 3], found shape {image.shape}")
    shape = image.shape[2::-1]
    affine = np.asarray(image.affine, np.float64)
    values = np.asarray(image.dataobj, np.float64).transpose(2, 1, 0, 3)
    if not np.isfinite(values).all():
        raise ValueError("the field has values that are not finite")
    index = np.moveaxis(np.indices(shape)[::-1], 0, -1)
    scaled = world_to_scaled_mm(affine, shape) @ affine
    coordinates = index @ scaled[:3, :3].T + scaled[:3, 3]
    absolute = (values - coordinates).std((0, 1, 2)).sum() < values.std((0, 1, 2)).sum()
    moved = values if absolute else coordinates + values
    back = np.linalg.inv(source)
    positions = moved @ back[:3, :3].T + back[:3, 3]
    return WarpField.from_positions(positions, affine, np.eye(4))


@dataclass(frozen=True)
class Melodic:
    """What MELODIC writes of a decomposition.

    Attributes
    ----------
    mixing : float64 [T, C]
        ``melodic_mix``: time courses.
    maps : float32 [C, Z, Y, X]
        ``melodic_IC``: in units of the residual noise.
    spectrum : float64 [F, C]
        ``melodic_FTmix``: power at F frequencies evenly spaced up to Nyquist, 0 left out.
    converged : bool
    steps : int
        By ``log.txt``; of its last attempt.
    """

    mixing: np.ndarray
    maps: np.ndarray
    spectrum: np.ndarray
    converged: bool
    steps: int


def read_melodic(folder: str | Path) -> Melodic:
    """Read a MELODIC output folder; ValueError where its files do not fit together."""
    import nibabel as nib

    folder = Path(folder)
    mixing = np.loadtxt(folder / "melodic_mix", ndmin=2)
    spectrum = np.loadtxt(folder / "melodic_FTmix", ndmin=2)
    path = next(iter(sorted(folder.glob("melodic_IC.nii*"))), None)
    if path is None:
        raise ValueError(f"{folder}: no melodic_IC image")
    maps = np.asarray(nib.load(path).dataobj, np.float32)
    maps = np.ascontiguousarray(maps.reshape(*maps.shape[:3], -1).T)
    if not mixing.shape[1] == spectrum.shape[1] == len(maps):
        raise ValueError(
            f"{folder}: {mixing.shape[1]} time courses, {spectrum.shape[1]} spectra and "
            f"{len(maps)} maps"
        )
    log = folder / "log.txt"
    text = log.read_text(errors="replace") if log.exists() else ""
    ends = re.findall(r"(No convergence|Convergence) after (\d+) steps", text)
    word, steps = ends[-1] if ends else ("", "0")
    return Melodic(mixing, maps, spectrum, word == "Convergence", int(steps))


def read_high_frequency(spectrum: np.ndarray, tr_s: float) -> np.ndarray:
    """Where the power above 0.01 Hz is halved, between 0.01 Hz (0) and Nyquist (1): [C].

    From MELODIC's spectra, as in the published ICA-AROMA (Pruim et al. 2015).
    """
    nyquist = 0.5 / tr_s
    hertz = nyquist * np.arange(1, len(spectrum) + 1) / len(spectrum)
    above = hertz > 0.01
    share = np.cumsum(spectrum[above], axis=0) / spectrum[above].sum(0)
    return (hertz[above][np.abs(share - 0.5).argmin(0)] - 0.01) / (nyquist - 0.01)


def read_fix(path: str | Path, count: int) -> np.ndarray:
    """FIX's verdicts, bool [C]: true for noise.

    A ``fix4melview_*_thr*.txt`` names the decomposition, then each component as ``number, label,
    True|False`` (noise or not; pyFIX adds a probability), then all noise components in brackets.

    Raises
    ------
    ValueError
        Cut off, of another number of components, or contradicting itself.
    """
    path = Path(path)
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    last = lines[-1] if lines else ""
    if not re.fullmatch(r"\[\s*(\d+(\s*,\s*\d+)*)?\s*\]", last):
        raise ValueError(
            f"{path.name}: expected a last line like [1, 3] with FIX's noise components, found "
            f"{last[:60]!r}"
        )
    listed = sorted(int(number) for number in re.findall(r"\d+", last))
    rows = [[part.strip() for part in line.split(",")] for line in lines[1:-1]]
    if [row[0] for row in rows] != [str(n) for n in range(1, count + 1)]:
        raise ValueError(
            f"{path.name}: expected a line for each of {count} components in order, found "
            f"{len(rows)} lines"
        )
    said = [n for n, row in enumerate(rows, 1) if "True" in row[2:]]
    if said != listed or not all({"True", "False"} & set(row[2:]) for row in rows):
        raise ValueError(
            f"{path.name}: the lines call components {said} noise, the list at the end {listed}"
        )
    return np.isin(np.arange(1, count + 1), listed)
