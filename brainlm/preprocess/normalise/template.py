"""The template that recordings are normalised to, as tissue maps: that of the atlas's space."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ... import templateflow
from ...atlas import Identity
from ...errors import BrainLMError
from ...mni152 import read_map

_BRAIN = 0.2  # of the T1-weighted image, as in nilearn's mask


@dataclass(frozen=True, eq=False)  # identity: derived arrays are kept per template
class Template:
    """Tissue maps of an average brain.

    Attributes
    ----------
    space : str
    affine : float64 [4, 4]
        Voxel (x, y, z) -> world RAS mm.
    t1w, grey, white, csf : float32 [Z, Y, X]
        T1-weighted intensity and tissue shares, 0..1.
    mask : bool [Z, Y, X]
        The brain, ventricles included.
    """

    space: str
    affine: np.ndarray
    t1w: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    csf: np.ndarray
    mask: np.ndarray


@lru_cache(maxsize=4)
def load_template(space: str) -> Template:
    """Load the template of a space (kept in memory; do not write to its arrays).

    MNI152NLin6Asym is TemplateFlow's, downloaded where it is not there; MNI152NLin2009aSym, the
    space of the demo's atlas, is the one that nilearn carries.

    Raises
    ------
    BrainLMError
        A space that is not known, or files that are not there and cannot be had.
    """
    if space not in _SOURCES:
        raise BrainLMError(
            f"template space {space!r} is not known; expected one of {', '.join(_SOURCES)}"
        )
    affine, *maps = _SOURCES[space]()
    for array in maps:
        array.flags.writeable = False
    return Template(space, affine, *maps)


def _read_templateflow() -> tuple[np.ndarray, ...]:
    import nibabel as nib

    images = [nib.as_closest_canonical(nib.load(path)) for path in templateflow.get_files()]
    t1w, mask = (np.ascontiguousarray(image.get_fdata(dtype=np.float32).T) for image in images)
    grey, white, csf = segment(t1w, mask > 0.5)
    return np.asarray(images[0].affine, np.float64), t1w, grey, white, csf, mask > 0.5


def _read_nilearn() -> tuple[np.ndarray, ...]:
    """CSF is what of the brain mask is neither grey nor white matter: sulci and ventricles, where
    the T1-weighted image is dark; bright remainders (dura, venous sinus) are left out.
    """
    maps = [read_map(kind) for kind in ("t1", "gm", "wm")]  # at 1 mm: every second voxel
    t1w, grey, white = (np.ascontiguousarray(values[::2, ::2, ::2].T) for values, _ in maps)
    affine = maps[0][1] @ np.diag([2.0, 2.0, 2.0, 1.0])
    mask = t1w > _BRAIN
    grey, white = np.clip(grey, 0, 1), np.clip(white, 0, 1)
    csf = np.where(mask, np.clip(1 - grey - white, 0, 1), 0).astype(np.float32)
    csf[t1w > np.median(t1w[grey > 0.8])] = 0
    return affine, t1w, grey, white, csf, mask


_SOURCES = {templateflow.SPACE: _read_templateflow, "MNI152NLin2009aSym": _read_nilearn}


def segment(t1w: np.ndarray, brain: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of grey matter, white matter and CSF [Z, Y, X] from intensities inside the brain.

    Levels of the three tissues are the means of three clusters (k-means); between two levels a
    voxel is part of the one and part of the other. More than half of a tissue agrees with FAST's
    labels with Dice coefficients of 0.79 (CSF), 0.83 (grey) and 0.89 (white matter).
    """
    values = t1w[brain]
    levels = np.percentile(values, [10, 50, 85])
    counts, edges = np.histogram(values, bins=512)
    centres = (edges[1:] + edges[:-1]) / 2
    for _ in range(100):
        nearest = np.abs(centres[:, None] - levels).argmin(axis=1)
        sums = np.bincount(nearest, counts * centres, minlength=3)
        levels = sums / np.maximum(np.bincount(nearest, counts, minlength=3), 1)
    csf, grey, white = np.sort(levels)
    shares = np.zeros((3, *t1w.shape), np.float32)
    shares[0, brain] = np.interp(values, [csf, grey, white], [0, 1, 0])
    shares[1, brain] = np.interp(values, [grey, white], [0, 1])
    shares[2, brain] = np.interp(values, [csf, grey], [1, 0])
    return shares[0], shares[1], shares[2]


def space_of(atlas: Identity) -> str:
    """The space an atlas's label image is in; BrainLMError where raw images cannot get there."""
    if atlas.space is None:
        raise BrainLMError(
            f"atlas {atlas.name}: known by its time series only; raw images need an atlas with a "
            "label image"
        )
    if atlas.space not in _SOURCES:
        raise BrainLMError(
            f"atlas {atlas.name}: in {atlas.space}, whose template is not known; raw images need "
            f"an atlas in {' or '.join(_SOURCES)}"
        )
    return atlas.space
