"""The template that recordings are normalised to, as tissue maps: that of the atlas's space."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

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
    """Tissues are nilearn's, carried over: shares among many heads, which intensities of an
    average head do not tell (docs/results/real-images.md)."""
    import nibabel as nib
    from scipy import ndimage

    images = [nib.as_closest_canonical(nib.load(path)) for path in templateflow.get_files()]
    t1w, mask = (np.ascontiguousarray(image.get_fdata(dtype=np.float32).T) for image in images)
    affine = np.asarray(images[0].affine, np.float64)
    source, _, *tissues, _ = _read_nilearn()
    brain = ndimage.binary_fill_holes(mask > 0.5)  # the file's has holes in the ventricles
    return affine, t1w, *_carry(tissues, source, affine, t1w.shape), brain


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


def _carry(maps: list[np.ndarray], source: np.ndarray, affine: np.ndarray, shape) -> list:
    """Maps [Z, Y, X] of MNI152NLin2009aSym on a grid of MNI152NLin6Asym.

    As our own fit of the latter's T1-weighted image to the former's finds its way, kept in a file
    so that the template stays when the fit changes.
    """
    from scipy import ndimage

    way = json.loads(Path(__file__).with_name("nlin6_to_2009a.json").read_text())
    origin, extent, onward = (np.array(way[key]) for key in ("origin", "extent", "affine"))
    axes = [affine[i, i] * np.arange(n) + affine[i, 3] for i, n in enumerate(shape[::-1])]
    places = np.stack(np.meshgrid(*axes[::-1], indexing="ij")[::-1])  # x, y, z of [Z, Y, X]
    bend = np.array(way["coefficients"])  # [3, Kz, Ky, Kx]
    for i in (0, 1, 2):  # x, then y, then z: the last axis becomes the first of the grid
        phase = np.pi * (axes[i] - origin[i]) / extent[i]
        waves = np.cos(phase[:, None] * np.arange(bend.shape[3 - i]))
        bend = np.moveaxis(np.tensordot(bend, waves, axes=(3 - i, 1)), -1, 3 - i)
    back = np.linalg.inv(source) @ onward
    index = np.tensordot(back[:3, :3], places + bend, axes=1) + back[:3, 3, None, None, None]
    return [ndimage.map_coordinates(values, index[::-1], order=1) for values in maps]


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
