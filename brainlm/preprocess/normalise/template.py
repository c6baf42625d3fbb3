"""The template that recordings are normalised to, as tissue maps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ...atlas import Atlas
from ...errors import BrainLMError
from ...mni152 import read_map
from . import templateflow

_BRAIN = 0.2  # of the T1-weighted image, as in nilearn's mask

#: Spaces that can be asked for, and what differs from the image that is used for them.
SPACES = {
    "MNI152NLin2009aSym": "",
    "MNI152NLin6Asym": (
        "MNI152NLin2009aSym, which nilearn carries, stands in for MNI152NLin6Asym: the two are "
        "different averages of the same 152 heads. Their brain masks overlap with a Dice "
        "coefficient of 0.968. An affine that fits the grey matter of an atlas in "
        "MNI152NLin6Asym (A424) to the tissue maps of the stand-in turns it by 1.3 degrees and "
        "moves the brain's points by 1.3 mm on average, 2.4 mm at most. It is not applied: in two "
        "real runs it changed the homogeneity of parcels by less than 1 % (0.124 to 0.123, 0.144 "
        "to 0.144). Read parcel borders with that uncertainty."
    ),
}


@dataclass(frozen=True, eq=False)  # identity: derived arrays are kept per template
class Template:
    """Tissue maps of an average brain.

    Attributes
    ----------
    space, image_space : str
        The space that was asked for, and the one the maps are in.
    affine : float64 [4, 4]
        Voxel (x, y, z) -> world RAS mm.
    t1w, grey, white, csf : float32 [Z, Y, X]
        T1-weighted intensity and tissue shares, 0..1.
    mask : bool [Z, Y, X]
        The brain, ventricles included.
    note : str
        How `image_space` differs from `space`; empty if it does not.
    """

    space: str
    image_space: str
    affine: np.ndarray
    t1w: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    csf: np.ndarray
    mask: np.ndarray
    note: str


@lru_cache(maxsize=4)
def load_template(space: str, source: str = "bundled") -> Template:
    """Load the template for a space (kept in memory; do not write to its arrays).

    Parameters
    ----------
    source : str
        ``bundled``: nilearn's, which stands in for MNI152NLin6Asym. ``templateflow``: that
        template itself; the space that nilearn carries stays nilearn's.

    CSF is what of the brain mask is neither grey nor white matter: sulci and ventricles, where
    the T1-weighted image is dark; bright remainders (dura, venous sinus) are left out.

    Raises
    ------
    BrainLMError
        A space that is not known, or files of TemplateFlow that are not there.
    """
    if space not in SPACES:
        raise BrainLMError(
            f"template space {space!r} is not known; expected one of {', '.join(SPACES)}"
        )
    if source == "templateflow" and space == templateflow.SPACE:
        t1w, mask, affine = templateflow.read_files()
        tissues = templateflow.segment(t1w, mask)
        return _freeze(space, space, affine, t1w, *tissues, mask, note="")
    maps = [read_map(kind) for kind in ("t1", "gm", "wm")]  # at 1 mm: every second voxel
    t1w, grey, white = (np.ascontiguousarray(values[::2, ::2, ::2].T) for values, _ in maps)
    affine = maps[0][1] @ np.diag([2.0, 2.0, 2.0, 1.0])
    mask = t1w > _BRAIN
    grey, white = np.clip(grey, 0, 1), np.clip(white, 0, 1)
    csf = np.where(mask, np.clip(1 - grey - white, 0, 1), 0).astype(np.float32)
    csf[t1w > np.median(t1w[grey > 0.8])] = 0
    return _freeze(space, "MNI152NLin2009aSym", affine, t1w, grey, white, csf, mask, SPACES[space])


def _freeze(space, image_space, affine, t1w, grey, white, csf, mask, note) -> Template:
    for array in (t1w, grey, white, csf, mask):
        array.flags.writeable = False
    return Template(space, image_space, affine, t1w, grey, white, csf, mask, note)


def space_of(atlas: Atlas) -> str:
    """The space an atlas's label image is in; BrainLMError if it has no image."""
    if atlas.space is None:
        raise BrainLMError(
            f"atlas {atlas.name}: known by its time series only; raw images need an atlas with a "
            "label image"
        )
    return atlas.space
