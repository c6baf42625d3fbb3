"""Recordings with known motion and known anatomy, made without splines.

The head is an object on a 2 mm grid (bundled tissue maps, sharpened into EPI contrast, a scalp).
A voxel is the mean of several point readings of that object by *linear* interpolation, at the
exactly transformed positions: nothing here shares its interpolation with the code under test.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit
from scipy import ndimage

#: name -> matrix (x, y, z), voxel size in mm
SHAPES = {
    "demo": ((40, 48, 34), (4.0, 4.0, 4.0)),
    "3mm": ((64, 64, 36), (3.0, 3.0, 3.0)),
    "ukb": ((88, 88, 64), (2.4, 2.4, 2.4)),
    "anisotropic": ((64, 64, 26), (3.0, 3.0, 5.0)),
    "partial": ((64, 64, 20), (3.0, 3.0, 3.0)),
}
GREY, WHITE, CSF, SCALP = 900.0, 650.0, 1250.0, 450.0
HEAD_MM = 2.0  # grid of the object


@dataclass(frozen=True)
class Phantom:
    """A recording and its truth.

    `motion` [T, 4, 4] maps the world of the unmoved head to the world of volume t;
    `to_reference` maps template mm [N, 3] to the world of the unmoved head.
    """

    volumes: np.ndarray
    affine: np.ndarray
    motion: np.ndarray
    brain: np.ndarray  # bool [Z, Y, X], of the unmoved head
    subject: Subject

    def to_reference(self, points: np.ndarray) -> np.ndarray:
        return self.subject.place(points)

    def brain_points(self) -> np.ndarray:
        """World mm of the brain's voxels, unmoved."""
        index = np.argwhere(self.brain)[:, ::-1]
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]


@dataclass(frozen=True)
class Subject:
    """An anatomy: template position = `linear` (x + bend(x)) of a position x in the head."""

    linear: np.ndarray  # [4, 4]
    waves: np.ndarray  # [K, 3] rad/mm
    phases: np.ndarray  # [K]
    sizes: np.ndarray  # [K, 3] mm

    def bend(self, points: np.ndarray) -> np.ndarray:
        waves, phases, sizes = (
            a.astype(points.dtype) for a in (self.waves, self.phases, self.sizes)
        )
        return np.sin(points @ waves.T + phases) @ sizes

    def find(self, points: np.ndarray) -> np.ndarray:
        """Head mm -> template mm, in closed form."""
        bent = points + self.bend(points)
        return bent @ self.linear[:3, :3].T + self.linear[:3, 3]

    def place(self, points: np.ndarray) -> np.ndarray:
        """Template mm -> head mm, by fixed-point iteration."""
        back = np.linalg.inv(self.linear)
        straight = points @ back[:3, :3].T + back[:3, 3]
        found = straight
        for _ in range(60):
            found = straight - self.bend(found)
        return found


def make_subject(seed: int = 0, bend_mm: float = 2.5) -> Subject:
    """A head about 5 % larger or smaller, shifted, turned and smoothly bent (RMS `bend_mm`)."""
    rng = np.random.default_rng(seed)
    zooms = np.diag(1 + rng.uniform(-0.05, 0.05, 3))
    linear = np.eye(4)
    linear[:3, :3] = _turn(np.deg2rad(rng.uniform(-6, 6, 3))) @ zooms
    linear[:3, 3] = rng.uniform(-8, 8, 3)
    count = 12
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    waves = directions * 2 * np.pi / rng.uniform(70, 160, (count, 1))
    sizes = rng.normal(size=(count, 3))
    sizes *= bend_mm / np.sqrt((sizes**2).sum() / 2) if bend_mm else 0
    return Subject(linear, waves, rng.uniform(0, 2 * np.pi, count), sizes)


@lru_cache(maxsize=1)
def _template_maps():
    """Grey, white, mask and skull-free T1w at 1 mm, and the affine."""
    from nilearn import datasets

    images = [
        datasets.load_mni152_gm_template(resolution=1),
        datasets.load_mni152_wm_template(resolution=1),
        datasets.load_mni152_brain_mask(resolution=1),
    ]
    grey, white, mask = (image.get_fdata(dtype=np.float32).T for image in images)
    grey, white = (np.clip(1.5 * (m - 0.5) + 0.5, 0, 1) for m in (grey, white))  # sharper
    return grey, white, mask, images[0].affine


@lru_cache(maxsize=2)
def _head_maps(seed: int, bend_mm: float):
    """Grey, white and mask of a subject on a grid of HEAD_MM, and the affine."""
    shape = tuple(int(n / HEAD_MM) for n in (212, 252, 216))
    affine = np.diag([HEAD_MM, HEAD_MM, HEAD_MM, 1.0])
    affine[:3, 3] = (-107.0, -133.0, -88.0)
    subject = make_subject(seed, bend_mm)
    position = subject.find(_world(shape, affine).astype(np.float32))
    *maps, template_affine = _template_maps()
    return *(_read(m, template_affine, position).reshape(shape) for m in maps), affine


@lru_cache(maxsize=4)
def make_head(seed: int, bend_mm: float, contrast: str = "epi"):
    """The head of :func:`make_subject` on a grid of HEAD_MM: image, brain mask and affine."""
    grey, white, mask, affine = _head_maps(seed, bend_mm)
    shape = mask.shape
    brain = mask > 0.5
    values = (GREY, WHITE, CSF) if contrast == "epi" else (550.0, 900.0, 200.0)
    fluid = np.clip(mask - grey - white, 0, 1)
    image = values[0] * grey + values[1] * white + values[2] * fluid
    outside = ndimage.distance_transform_edt(~brain[::2, ::2, ::2], sampling=2 * HEAD_MM)
    outside = outside.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    outside = ndimage.uniform_filter(outside[: shape[0], : shape[1], : shape[2]], 3)
    scalp = SCALP if contrast == "epi" else 1000.0
    image += scalp * np.clip(3 - np.abs(outside - 11), 0, 1)
    noise = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    texture = ndimage.gaussian_filter(noise, 2.5 / HEAD_MM)
    image *= 1 + 0.04 * texture / texture.std()
    return image.astype(np.float32), brain, affine


def make_motion(count: int, seed: int = 0, size: float = 1.0, spikes: int = 6) -> np.ndarray:
    """Drifts to about 2 mm and 2 degrees, breathing, and sudden spikes that relax [T, 4, 4]."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, count)[:, None]
    drift = np.cumsum(rng.normal(size=(count, 6)), axis=0)
    drift = ndimage.gaussian_filter1d(drift, max(1.0, count / 12), axis=0)
    drift = drift - drift[0] + rng.uniform(-1, 1, 6) * time
    drift /= np.abs(drift).max(axis=0)
    parameters = drift * rng.uniform(0.4, 1, 6)
    for start in rng.choice(np.arange(2, count), min(spikes, count - 3), replace=False):
        length = np.exp(-np.arange(count - start) / 2.0)[:, None]
        parameters[start:] += length * rng.uniform(-1, 1, 6)
    parameters *= 2 * size * np.array([1, 1, 1, *np.deg2rad([1, 1, 1])])
    parameters[:, 1] += 0.08 * np.sin(np.arange(count) * 1.9)
    motion = np.repeat(np.eye(4)[None], count, axis=0)
    for t, one in enumerate(parameters):
        motion[t, :3, :3] = _turn(one[3:])
        motion[t, :3, 3] = one[:3]
    return motion


def make_phantom(
    shape: str = "demo",
    count: int = 30,
    *,
    seed: int = 0,
    motion: np.ndarray | None = None,
    size: float = 1.0,
    tsnr: float = 60.0,
    bias: float = 0.3,
    drift: float = 0.02,
    oblique_deg: float = 8.0,
    dropped: tuple[int, ...] = (),
    bend_mm: float = 2.5,
    fluctuation: float = 0.005,
) -> Phantom:
    """A recording of a moving head.

    Receive bias that stays with the scanner, a `drift` of the gain, four smooth fluctuations,
    Rician noise. In the volumes `dropped` every fifth slice loses half its signal.
    """
    rng = np.random.default_rng(seed + 1000)
    subject = make_subject(seed, bend_mm)
    image, brain, head_affine = make_head(seed, bend_mm)
    (nx, ny, nz), zooms = SHAPES[shape]
    affine = _scanner_affine((nx, ny, nz), zooms, oblique_deg, brain, head_affine)
    motion = make_motion(count, seed, size) if motion is None else motion
    field = _receive_field((nz, ny, nx), bias, rng)
    waves = [_smooth_map((nz, ny, nx), zooms, rng) for _ in range(4)]
    noise = 800.0 / tsnr
    volumes = np.empty((len(motion), nz, ny, nx), np.float32)
    for t, move in enumerate(motion):
        clean = _scan(image, head_affine, affine, (nz, ny, nx), move)
        change = sum(fluctuation * np.sin(0.3 * t * (i + 1) + i) * w for i, w in enumerate(waves))
        clean = clean * field * (1 + change) * (1 - drift * t / len(motion))
        if t in dropped:
            clean[t % 5 :: 5] *= 0.5
        real, imaginary = rng.normal(scale=noise, size=(2, *clean.shape))
        volumes[t] = np.hypot(clean + real, imaginary)
    inside = _scan(brain.astype(np.float32), head_affine, affine, (nz, ny, nx), np.eye(4)) > 0.5
    return Phantom(volumes, affine, motion, inside, subject)


#: Hard cases for motion correction: what differs from the base phantom.
STRESS: dict[str, dict] = {
    "base": {},
    "still": {"size": 0.1, "spikes": 0},
    "strong motion": {"size": 3.0},
    "many spikes": {"spikes": 15},
    "tSNR 20": {"tsnr": 20.0},
    "receive bias": {"bias": 0.6},
    "intensity drift": {"drift": 0.2},
    "dropped slices": {"dropped": (3, 7)},
    "oblique": {"oblique_deg": 30.0},
    "20 mm away": {"jump_mm": (9.0, -12.0, 13.0)},
    "anisotropic": {"shape": "anisotropic"},
    "partial": {"shape": "partial"},
    "half a mask": {"half_mask": True},
    "masked in place": {"masked": True},  # zero outside where the brain was at first
}


def make_stress(name: str, shape: str = "demo", count: int = 12, seed: int = 1):
    """The phantom of a hard case, and the mask to fit in (None: the estimate's own)."""
    options = dict(STRESS[name])
    size, spikes = options.pop("size", 1.0), options.pop("spikes", 6)
    motion = make_motion(count, seed, size, spikes)
    motion[count // 2 :, :3, 3] += options.pop("jump_mm", 0.0)
    half, masked = options.pop("half_mask", False), options.pop("masked", False)
    phantom = make_phantom(options.pop("shape", shape), seed=seed, motion=motion, **options)
    if masked:
        phantom.volumes[...] *= phantom.brain
    mask = phantom.brain.copy() if half else None
    if mask is not None:
        mask[mask.shape[0] // 2 :] = False
    return phantom, mask


def rms_errors(phantom: Phantom, transforms: np.ndarray, *, common: bool = True) -> np.ndarray:
    """RMS error [T] in mm over the brain of estimated transforms.

    The world of the estimated reference is its own: with `common`, the one rigid move that all
    volumes share (a mean image's position against the unmoved head) is taken off first.
    """
    # what the estimate adds to the truth, in the world of the unmoved head
    extra = np.linalg.inv(phantom.motion) @ transforms
    points = phantom.brain_points()
    if common:
        extra = extra @ np.linalg.inv(_mean_rigid(extra))
    moved = points @ extra[:, :3, :3].transpose(0, 2, 1) + extra[:, None, :3, 3]
    return np.sqrt(((moved - points) ** 2).sum(axis=2).mean(axis=1))


def _mean_rigid(moves: np.ndarray) -> np.ndarray:
    mean = np.median(moves, axis=0)
    left, _, right = np.linalg.svd(mean[:3, :3])
    mean[:3, :3] = left @ right
    return mean


def _turn(angles: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("XYZ", angles).as_matrix()


def _scanner_affine(matrix, zooms, oblique_deg, brain, head_affine) -> np.ndarray:
    """Stored left to right reversed and tilted, centred on the brain."""
    affine = np.eye(4)
    affine[:3, :3] = _turn(np.deg2rad([oblique_deg, 0, oblique_deg / 3])) @ np.diag(
        [-zooms[0], zooms[1], zooms[2]]
    )
    centre = np.argwhere(brain)[::997, ::-1].mean(axis=0) * HEAD_MM + head_affine[:3, 3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(matrix) - 1) / 2)
    return affine


def _scan(image, head_affine, affine, shape, move) -> np.ndarray:
    """One volume: eight linear readings per voxel, at positions moved back into the head."""
    to_head = np.linalg.inv(head_affine) @ np.linalg.inv(move) @ affine
    total = np.zeros(shape, np.float32)
    for corner in np.ndindex(2, 2, 2):
        shift = np.eye(4)
        shift[:3, 3] = np.array(corner) / 2 - 0.25
        _add_linear(image, to_head @ shift, total)
    return total / 8


@njit(cache=True, nogil=True)
def _add_linear(image, grid, out):
    """Add the trilinear reading of `image` at grid @ (x, y, z) to each voxel of `out`."""
    nz, ny, nx = image.shape
    for k in range(out.shape[0]):
        for j in range(out.shape[1]):
            for i in range(out.shape[2]):
                x = grid[0, 0] * i + grid[0, 1] * j + grid[0, 2] * k + grid[0, 3]
                y = grid[1, 0] * i + grid[1, 1] * j + grid[1, 2] * k + grid[1, 3]
                z = grid[2, 0] * i + grid[2, 1] * j + grid[2, 2] * k + grid[2, 3]
                if not (0 <= x < nx - 1 and 0 <= y < ny - 1 and 0 <= z < nz - 1):
                    continue
                a, b, c = int(x), int(y), int(z)
                x, y, z = x - a, y - b, z - c
                total = 0.0
                for dz in range(2):
                    for dy in range(2):
                        line = (1 - x) * image[c + dz, b + dy, a] + x * image[
                            c + dz, b + dy, a + 1
                        ]
                        total += (z if dz else 1 - z) * (y if dy else 1 - y) * line
                out[k, j, i] += total


def _world(shape, affine) -> np.ndarray:
    """World mm [N, 3] of all voxels."""
    index = np.indices(shape, dtype=np.float32).reshape(3, -1)[::-1].T
    return index @ affine[:3, :3].T + affine[:3, 3]


def _read(image, affine, world) -> np.ndarray:
    coordinates = ((world - affine[:3, 3]) / np.diag(affine)[:3]).T[::-1]
    return ndimage.map_coordinates(image, coordinates, order=1, output=np.float32)


def _receive_field(shape, size, rng) -> np.ndarray:
    grid = np.indices(shape).T / (np.array(shape) - 1) - 0.5
    slope = rng.normal(size=3)
    slope /= np.linalg.norm(slope)
    return np.float32(1 + size * ((grid @ slope) + (grid**2).sum(axis=-1) - 0.25)).T


def _smooth_map(shape, zooms, rng) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 8 / np.array(zooms[::-1]))
    return np.float32(noise / noise.std())
