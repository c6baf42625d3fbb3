"""The MNI152NLin2009aSym maps that nilearn carries, read without importing nilearn.

The import takes two seconds of processor time, more than reading the maps does, and every job of
the image stages needs them.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from .errors import BrainLMError

Kind = Literal["t1", "gm", "wm"]


def read_map(kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """A map of the average brain without its skull, at 1 mm.

    Parameters
    ----------
    kind : {"t1", "gm", "wm"}
        T1-weighted image, or share of grey or white matter.

    Returns
    -------
    values : float32 [X, Y, Z]
        0..1, as of ``nilearn.datasets.load_mni152_template`` and its neighbours.
    affine : float64 [4, 4]
        Voxel (x, y, z) -> MNI mm.

    Raises
    ------
    BrainLMError
        nilearn, or the file of that name in it, is not installed.
    """
    import nibabel

    spec = find_spec("nilearn")
    package = Path(spec.origin).parent if spec and spec.origin else Path("nilearn")
    path = package / f"datasets/data/mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    try:
        image = nibabel.load(path)
        values = np.asarray(image.dataobj).astype(np.float32)
    except FileNotFoundError:
        raise BrainLMError(
            f"{path}: not found; the template comes with nilearn: pip install 'nilearn>=0.12'"
        ) from None
    return values / values.max(), np.asarray(image.affine, np.float64)
