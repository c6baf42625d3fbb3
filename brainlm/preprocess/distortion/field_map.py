"""The field from images of phase, or as it was delivered.

Phase turns by the field times the time between two echoes; whole turns are put back from voxel to
voxel (:mod:`brainlm.preprocess.kernels.unwrap`). Source: Jezzard and Balaban 1995, Magnetic
Resonance in Medicine 34:65.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import RecordingError
from ..io.read import read_image
from ..io.sidecars import read_sidecar
from ..kernels.unwrap import unwrap
from ..motion.brain_mask import brain_mask
from .align import Field, Scan
from .sources import Map

ECHO_STEP_S = (0.0002, 0.05)
SMOOTH_FWHM_MM = 3.0
#: First number and length of a turn where phase is stored in whole numbers.
STORED = ((0, 4096), (-4096, 8192))
_TURN = 2 * np.pi
#: Hz in each unit of BIDS.
UNITS = {"Hz": 1.0, "rad/s": 1 / _TURN, "T": 42.577478e6}


def read_field_map(source: Map) -> Field:
    """The field in Hz and the magnitude image, on one grid.

    Raises
    ------
    RecordingError
        ``bad_metadata``: echo times or units are missing or impossible, or the images are not on
        one grid.
    """
    magnitude, affine = read_image(source.magnitude, average=True)
    images = [_read_on(path, source.magnitude, magnitude.shape, affine) for path in source.images]
    inside = brain_mask(magnitude, affine)
    head = Scan(magnitude, affine)
    if source.kind == "fieldmap":
        hz = images[0] * _read_unit(source.images[0])
    else:
        phase = _as_radians(images[0])
        if source.kind == "phases":
            phase = _as_radians(images[1]) - phase
        hz, inside = _unwrap(phase, inside)
        hz /= _TURN * _read_echo_step(source)
        inside &= np.isfinite(hz)
    return Field(_fill(hz, inside, head.zooms), head)


def _read_on(path: Path, other: Path, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    data, own = read_image(path)
    if data.shape != shape or not np.allclose(own, affine, atol=1e-2):
        found, wanted = (" x ".join(map(str, one[::-1])) for one in (data.shape, shape))
        raise RecordingError(
            "bad_metadata",
            f"{path}: expected the grid of {other.name} ({wanted} voxels), found {found} or "
            "another place; use the images of one acquisition",
        )
    return data.astype(np.float64)


def _read_unit(path: Path) -> float:
    unit = read_sidecar(path).read("Units")
    if unit not in UNITS:
        raise RecordingError(
            "bad_metadata",
            f"{path}: expected Units in its JSON file, {', '.join(UNITS)}, found "
            f"{unit or 'none'}; add it",
        )
    return UNITS[unit]


def _read_echo_step(source: Map) -> float:
    """s between the echoes whose phases differ."""
    if source.kind == "phasediff":
        stated = read_sidecar(source.images[0])
        names, times = "EchoTime1 and EchoTime2", [stated.read(f"EchoTime{n}") for n in (1, 2)]
    else:
        names = "EchoTime"
        times = [read_sidecar(path).read("EchoTime") for path in source.images]
    low, high = ECHO_STEP_S
    known = None not in times
    if not known or not low <= abs(times[1] - times[0]) <= high:
        found = f"{times[0]:g} and {times[1]:g}" if known else "none"
        raise RecordingError(
            "bad_metadata",
            f"{source.images[0]}: expected {names} in the JSON file, {1000 * low:g} to "
            f"{1000 * high:g} ms apart, in seconds, found {found}; correct it",
        )
    return times[1] - times[0]


def _as_radians(phase: np.ndarray) -> np.ndarray:
    """Phase as scanners store it: rad, or numbers over a turn whose middle is no phase."""
    low, high = phase.min(), phase.max()
    if high - low <= 1.05 * _TURN:
        return phase
    for first, turn in STORED:
        if first <= low and high <= first + turn and high - low > 0.9 * turn:
            return (phase - first) * (_TURN / turn) - np.pi
    return (phase - low) * (_TURN / (high - low)) - np.pi


def _unwrap(phase: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Phase without jumps, and where it is known: what is connected with the depth of the brain.

    Whole turns of all of it are taken off: they would displace the whole head.
    """
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(inside)
    start = np.unravel_index(int(np.argmax(depth)), depth.shape)
    out, done = np.zeros_like(phase), np.zeros(phase.shape, bool)
    unwrap(phase, inside, tuple(int(n) for n in start), out, done)
    out -= _TURN * np.round(np.median(out[done]) / _TURN)
    return out, done


def _fill(hz: np.ndarray, inside: np.ndarray, zooms: np.ndarray) -> np.ndarray:
    """Without specks, a little smoothed; outside the brain what its edge has."""
    from scipy import ndimage

    nearest = ndimage.distance_transform_edt(
        ~inside, zooms, return_distances=False, return_indices=True
    )
    filled = hz[tuple(nearest)]
    calm = ndimage.median_filter(filled, size=3)
    return ndimage.gaussian_filter(calm, SMOOTH_FWHM_MM / 2.355 / zooms)
