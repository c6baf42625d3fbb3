"""Atlases of grayordinates: CIFTI-2's ``dlabel.nii``, surfaces of both hemispheres and voxels.

Which grayordinates an atlas and a run have differs: atlases may label the medial wall, or hold the
cortex alone; runs of 91,282 grayordinates leave the medial wall out. They are matched by vertex,
and by the place of the voxel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...atlas import Atlas
from ...errors import BrainLMError, RecordingError
from .parcel_means import check_labels

DENSE_ATLAS = ".dlabel.nii"
_ON_GRID_MM = 0.1


def is_dense(atlas: Atlas) -> bool:
    """Whether an atlas is of grayordinates."""
    return atlas.image is not None and atlas.image.name.endswith(DENSE_ATLAS)


@dataclass(frozen=True)
class DenseLabels:
    """Parcels of grayordinates, 1..R; 0 is none.

    Attributes
    ----------
    surfaces : dict of str to ndarray [vertices]
        By CIFTI's name of the structure.
    points, of_points : ndarray [N, 3], ndarray [N]
        Voxels that have a parcel, mm, and which.
    num_parcels : int
    """

    surfaces: dict[str, np.ndarray]
    points: np.ndarray
    of_points: np.ndarray
    num_parcels: int

    def count(self) -> np.ndarray:
        """[R] grayordinates of each parcel."""
        both = np.concatenate([*self.surfaces.values(), self.of_points])
        return np.bincount(both, minlength=self.num_parcels + 1)[1:]


def load_dense(atlas: Atlas) -> DenseLabels:
    """Open the label file of a dense atlas, once.

    Raises
    ------
    BrainLMError
        Not a ``dlabel.nii``, or not of exactly the parcels 1..R.
    """
    assert atlas.image is not None
    return _load(atlas.image, atlas.name, atlas.num_parcels)


@lru_cache(maxsize=2)
def _load(path: Path, name: str, count: int) -> DenseLabels:
    import nibabel as nib
    from nibabel.cifti2 import BrainModelAxis

    try:
        image: Any = nib.load(path)
        axis = image.header.get_axis(1)
        labels = np.asarray(image.dataobj)[0]
    except Exception as error:
        raise BrainLMError(f"{path}: not a readable CIFTI-2 label file ({error})") from None
    if not isinstance(axis, BrainModelAxis):
        raise BrainLMError(f"{path}: expected grayordinates, found {type(axis).__name__}")
    labels = check_labels(path, name, count, labels)
    surfaces = {
        structure: _spread(labels[part], model.vertex, model.nvertices[structure])
        for structure, part, model in axis.iter_structures()
        if structure in model.nvertices
    }
    inside = axis.volume_mask & (labels > 0)
    points = _places(axis)[inside]
    return DenseLabels(surfaces, points, labels[inside], count)


def _spread(labels: np.ndarray, vertices: np.ndarray, count: int) -> np.ndarray:
    out = np.zeros(count, np.int32)
    out[vertices] = labels
    return out


def _places(axis) -> np.ndarray:
    """[G, 3] mm of voxels; of vertices no place."""
    if axis.affine is None:
        return np.zeros((len(axis), 3))
    return axis.voxel @ axis.affine[:3, :3].T + axis.affine[:3, 3]


def match_grayordinates(path: Path, axis, labels: DenseLabels) -> np.ndarray:
    """[G] the parcel of each grayordinate of a run, 0 where it has none.

    Raises
    ------
    RecordingError
        ``bad_metadata``: surfaces of another number of vertices, or voxels on another grid.
    """
    out = np.zeros(len(axis), np.int32)
    for structure, part, model in axis.iter_structures():
        if structure in labels.surfaces and structure in model.nvertices:
            own, found = labels.surfaces[structure], model.nvertices[structure]
            if len(own) != found:
                raise RecordingError(
                    "bad_metadata",
                    f"{path}: {structure} has {found} vertices, the atlas's has {len(own)}; take "
                    "the atlas of the same mesh",
                )
            out[part] = own[model.vertex]
    where = np.flatnonzero(axis.volume_mask)
    if len(where) and len(labels.points):
        from scipy.spatial import cKDTree

        tree = cKDTree(_places(axis)[where])
        apart, nearest = tree.query(labels.points)
        spacing = np.sqrt((axis.affine[:3, :3] ** 2).sum(0)).min()
        between = (apart > _ON_GRID_MM) & (apart < 0.9 * spacing)
        if between.any():
            raise RecordingError(
                "bad_metadata",
                f"{path}: its voxels are up to {apart[between].max():.2f} mm beside the atlas's; "
                "take the atlas on the same grid",
            )
        there = apart <= _ON_GRID_MM
        out[where[nearest[there]]] = labels.of_points[there]
    return out
