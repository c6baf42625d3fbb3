"""Images that susceptibility displaces along the phase-encoding axis, by a known field.

Signal is pushed: the head is cut into slices thinner than a voxel, each slice is carried to where
its two faces go, and a voxel is the sum of what came to lie in it. Nothing is interpolated, and
what is lost in one place appears in another, as in a scanner.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import phantom as ph
from numba import njit
from scipy.spatial.transform import Rotation

READOUT_S, ECHO_STEP_S = 0.05, 0.00246
RUN = "sub-01/func/sub-01_task-rest_bold.nii.gz"
TIE = {"IntendedFor": "func/sub-01_task-rest_bold.nii.gz"}

THIN = 4  # slices per voxel
#: Where air meets brain: centre (head mm), SD (mm), sign of the field.
_PLACES = (((0, 38, -22), 17.0, 1.0), ((46, -22, -28), 13.0, -0.7), ((-46, -22, -28), 13.0, -0.7))


@dataclass(frozen=True)
class Field:
    """Displacement in mm at head positions, for readout along the positive direction.

    `scale` makes the largest one over the brain what was asked for.
    """

    scale: float = 1.0

    def __call__(self, points: np.ndarray) -> np.ndarray:
        out = 0.25 * np.sin(points @ np.array([0.03, 0.02, 0.04]))
        for centre, sd, sign in _PLACES:
            out += sign * np.exp(-0.5 * ((points - centre) ** 2).sum(axis=1) / sd**2)
        return self.scale * out


def make_field(peak_mm: float, points: np.ndarray) -> Field:
    """A field whose largest displacement over `points` [N, 3] is `peak_mm`."""
    return Field(peak_mm / np.abs(Field()(points)).max())


def scan_distorted(
    seed: int, shape: str, field: Callable | None, direction: str = "j", *,
    contrast: str = "epi", move: np.ndarray | None = None, noise: float = 8.0,
    affine: np.ndarray | None = None, bend_mm: float = 2.5,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """One image [Z, Y, X] of the head of `seed`, and its affine; `field` is in mm."""
    image, brain, head_affine = ph.make_head(seed, bend_mm, contrast)
    size, zooms = ph.SHAPES[shape]
    if affine is None:
        affine = ph._scanner_affine(size, zooms, 8.0, brain, head_affine)
    axis, sign = "ijk".index(direction[0]), -1.0 if direction.endswith("-") else 1.0
    thin, fine = np.array(size), affine.copy()
    thin[axis] *= THIN
    fine[:3, axis] /= THIN
    fine[:3, 3] = affine[:3, 3] - affine[:3, axis] * (0.5 - 0.5 / THIN)
    move = np.eye(4) if move is None else move
    still = ph._scan(image, head_affine, fine, tuple(thin[::-1]), move)
    lines = np.moveaxis(still, 2 - axis, -1)
    faces_at = np.arange(thin[axis] + 1) / THIN - 0.5
    edges = np.broadcast_to(faces_at, (*lines.shape[:2], len(faces_at)))
    if field is not None:
        faces = thin.copy()
        faces[axis] += 1
        corner = fine.copy()
        corner[:3, 3] -= fine[:3, axis] / 2
        world = np.indices(faces[::-1]).reshape(3, -1)[::-1].T @ corner[:3, :3].T + corner[:3, 3]
        back = np.linalg.inv(move)
        shift = field(world @ back[:3, :3].T + back[:3, 3]).reshape(faces[::-1])
        edges = edges + sign * np.moveaxis(shift, 2 - axis, -1) / np.linalg.norm(affine[:3, axis])
        assert (np.diff(edges) > 0).all(), "the field folds space"
    out = np.zeros((*lines.shape[:2], size[axis]))
    _push(np.ascontiguousarray(lines), np.ascontiguousarray(edges), out)
    clean = np.moveaxis(out, -1, 2 - axis)
    rng = np.random.default_rng([seed, ord(direction[0]), int(sign < 0)])
    real, imaginary = rng.normal(scale=noise, size=(2, *clean.shape))
    return np.hypot(clean + real, imaginary).astype(np.float32), affine


@njit(cache=True)
def _push(lines, edges, out):
    """Share the mass of each thin slice among the voxels that it comes to lie in."""
    size = out.shape[2]
    for k in range(lines.shape[0]):
        for i in range(lines.shape[1]):
            for n in range(lines.shape[2]):
                low, high = edges[k, i, n], edges[k, i, n + 1]
                mass = lines[k, i, n] / THIN
                last = min(size - 1, int(np.floor(high + 0.5)))
                for j in range(max(0, int(np.floor(low + 0.5))), last + 1):
                    share = min(high, j + 0.5) - max(low, j - 0.5)
                    if share > 0:
                        out[k, i, j] += mass * share / (high - low)


@dataclass(frozen=True)
class Head:
    """A head with a field whose largest displacement over the brain is `peak_mm`.

    The unmoved head's scans are taken along j. For its field map it lay elsewhere (`moved`).
    """

    shape: str = "demo"
    seed: int = 0
    peak_mm: float = 6.0

    @cached_property
    def _place(self) -> tuple[np.ndarray, np.ndarray]:
        """Brain [Z, Y, X], and world mm [Z * Y * X, 3]."""
        _, brain, head_affine = ph.make_head(self.seed, 2.5)
        size, zooms = ph.SHAPES[self.shape]
        affine = ph._scanner_affine(size, zooms, 8.0, brain, head_affine)
        found = ph._scan(brain.astype(np.float32), head_affine, affine, size[::-1], np.eye(4))
        return found > 0.5, ph._world(size[::-1], affine).astype(float)

    @property
    def brain(self) -> np.ndarray:
        return self._place[0]

    @cached_property
    def field(self) -> Field:
        brain, world = self._place
        return make_field(self.peak_mm, world[brain.ravel()])

    @property
    def move(self) -> np.ndarray:
        """The unmoved head's world -> where it lay for the field map."""
        move = np.eye(4)
        move[:3, :3] = Rotation.from_euler("xyz", (1.0, -0.5, 1.5), degrees=True).as_matrix()
        move[:3, 3] = (1.5, -1.0, 2.0)
        return move

    def scan(self, direction: str | None, moved: bool = False, contrast: str = "epi"):
        """An image [Z, Y, X] and its affine; without a direction it is not distorted."""
        return _scan(self, direction, moved, contrast)

    def mm(self) -> np.ndarray:
        """True displacement along j [Z, Y, X] of the unmoved head."""
        return self.field(self._place[1]).reshape(self.brain.shape).astype(np.float32)

    def error_mm(self, shift: Callable | None) -> np.ndarray:
        """Distance [N] over the brain between where points lie and where `shift` says they lie."""
        points = self._place[1][self.brain.ravel()]
        column = self.scan(None)[1][:3, 1]
        truth = points + self.field(points)[:, None] * column / np.linalg.norm(column)
        return np.linalg.norm((points if shift is None else shift(points)) - truth, axis=1)


@lru_cache(maxsize=24)
def _scan(head: Head, direction: str | None, moved: bool, contrast: str):
    move = head.move if moved else None
    field = head.field if direction else None
    return scan_distorted(
        head.seed, head.shape, field, direction or "j", contrast=contrast, move=move
    )


def write(folder: Path, name: str, image: np.ndarray, affine: np.ndarray, **about) -> Path:
    """An image with its sidecar."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.float32(image).T, affine), path)
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(about))
    return path


def write_run(folder: Path, head: Head, **about) -> Path:
    """A run of two volumes: of it only the header and the sidecar are read."""
    stated = {"PhaseEncodingDirection": "j", "TotalReadoutTime": READOUT_S} | about
    image, affine = head.scan("j")
    return write(folder, RUN, np.stack([image, image]), affine, **stated)


def write_pair(folder: Path, head: Head, directions=("j", "j-"), moved: bool = False, **about):
    """``*_epi`` images for the run."""
    for label, direction in zip(("AP", "PA"), directions, strict=False):
        image, affine = head.scan(direction, moved)
        stated = {"PhaseEncodingDirection": direction, "TotalReadoutTime": READOUT_S} | TIE
        name = f"sub-01/fmap/sub-01_dir-{label}_epi.nii.gz"
        write(folder, name, image, affine, **(stated | about))


def write_map(folder: Path, head: Head, kind: str, **about) -> None:
    """A gradient-echo field map with its magnitude, of the moved head: undistorted, with noise."""
    magnitude, affine = head.scan(None, True, "t1w")
    back = np.linalg.inv(head.move)
    world = ph._world(magnitude.shape, affine).astype(float) @ back[:3, :3].T + back[:3, 3]
    hz = head.field(world).reshape(magnitude.shape)
    hz /= READOUT_S * np.linalg.norm(affine[:3, 1])
    stem, stated = "sub-01/fmap/sub-01_", TIE | about
    tie = {"IntendedFor": stated["IntendedFor"]}
    if kind == "fieldmap":
        units = {"Hz": hz, "rad/s": 2 * np.pi * hz, "T": hz / 42.577478518e6}
        values = units[stated.setdefault("Units", "Hz")]
        write(folder, f"{stem}fieldmap.nii.gz", values, affine, **stated)
        write(folder, f"{stem}magnitude.nii.gz", magnitude, affine, **tie)
        return
    noise = np.random.default_rng(1).normal(size=hz.shape) * 20 / np.maximum(magnitude, 10)
    phase = 2 * np.pi * hz * ECHO_STEP_S + noise
    write(folder, f"{stem}magnitude1.nii.gz", magnitude, affine, **tie)
    if kind == "phasediff":
        stored = np.round((phase + np.pi) % (2 * np.pi) / (2 * np.pi) * 4095)
        times = {"EchoTime1": 0.00492, "EchoTime2": 0.00492 + ECHO_STEP_S}
        write(folder, f"{stem}phasediff.nii.gz", stored, affine, **(times | stated))
        return
    offset = 1.0 + 0.01 * world[:, 0].reshape(hz.shape)
    for number, one in ((1, offset), (2, offset + phase)):
        wrapped = (one + np.pi) % (2 * np.pi) - np.pi
        time = {"EchoTime": 0.00492 + (number - 1) * ECHO_STEP_S}
        write(folder, f"{stem}phase{number}.nii.gz", wrapped, affine, **(time | stated))
