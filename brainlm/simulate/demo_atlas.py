"""demo424: a 424-region atlas built from the grey-matter map that nilearn carries.

It stands in for a real atlas where there is no network. Whole numbers and stable sorts only, so
that every machine builds the same bytes and the registry entry can pin their checksums.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import atomic_path, write_text
from ..mni152 import Kind, read_map
from ..tables import write_tsv

NUM_PARCELS = 424
NETWORKS = (
    "Visual",
    "Somatomotor",
    "DorsalAttention",
    "Salience",
    "Limbic",
    "Frontoparietal",
    "Default",
)
# Approximate centres of each network's nodes (distance from the midline, y, z; MNI mm), cortex
# first, then cerebellum and deep grey matter. A parcel joins the network of the nearest one.
_NODES = {
    "Visual": [(8, -88, 0), (30, -85, 6), (26, -64, -12), (10, -68, 8)],
    "Somatomotor": [(38, -26, 58), (8, -26, 64), (54, -8, 32), (56, -20, 10), (16, -52, -20)],
    "DorsalAttention": [(26, -62, 52), (26, -6, 58), (46, -64, -6), (50, 6, 32), (30, -64, -52)],
    "Salience": [(38, 6, 2), (60, -38, 32), (6, 14, 44), (32, 46, 26), (10, -18, 8)],
    "Limbic": [(28, -4, -30), (14, 30, -22), (38, 12, -36), (24, -14, -18), (12, 12, -6)],
    "Frontoparietal": [(44, 24, 36), (46, -50, 48), (40, 50, 0), (60, -46, -12), (40, -66, -34)],
    "Default": [(6, -52, 28), (6, 52, 14), (48, -64, 30), (60, -12, -20), (24, 30, 48),
                (24, -80, -36)],
}  # fmt: skip
_DIRECTIONS = np.array(
    [d for d in itertools.product((-1, 0, 1), repeat=3) if d > (0, 0, 0)], dtype=np.int64
)


@dataclass(frozen=True)
class DemoAtlas:
    """The parcellation in memory.

    Attributes
    ----------
    labels : ndarray [X, Y, Z] int16
        0 is background, 1..212 left, 213..424 their mirror images on the right.
    affine : ndarray [4, 4]
        2 mm voxels, MNI152NLin2009aSym, RAS.
    coordinates : ndarray [424, 3]
        Centres of mass, MNI mm.
    networks : ndarray [424] int
        1..7, an index into :data:`NETWORKS` plus one.
    """

    labels: np.ndarray
    affine: np.ndarray
    coordinates: np.ndarray
    networks: np.ndarray


@functools.cache
def load_symmetric_map(kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """One of nilearn's MNI152 2009a symmetric maps, at 2 mm and made left-right symmetric.

    Parameters
    ----------
    kind : {"t1", "gm", "wm"}

    Returns
    -------
    values : ndarray [99, 117, 95] int64
        0..32640 (= 255 × 128): weighted sums of the 8-bit map, so no rounding takes place.
    affine : ndarray [4, 4]
        Voxel (x, y, z) to MNI mm; column 49 lies on the midline.
    """
    found, affine = read_map(kind)
    values = np.rint(found * 255).astype(np.int64)
    for axis in range(3):  # weights 1, 2, 1, then every second voxel
        padded = np.moveaxis(np.pad(values, [(1, 1) if a == axis else (0, 0) for a in range(3)]),
                             axis, 0)  # fmt: skip
        smooth = padded[:-2] + 2 * padded[1:-1] + padded[2:]
        values = np.moveaxis(smooth[::2], 0, axis)
    affine[:3, :3] *= 2
    return np.ascontiguousarray(values + values[::-1]), affine


@functools.cache
def parcellate_template() -> DemoAtlas:
    """Cut each hemisphere's grey matter into 212 parcels of equal size."""
    grey, affine = load_symmetric_map("gm")
    middle = grey.shape[0] // 2
    inside = 2 * grey > 255 * 128
    inside[middle:] = False  # the left; the midline itself belongs to neither
    voxels = np.argwhere(inside).astype(np.int64)
    parcels = _bisect(voxels, NUM_PARCELS // 2)

    labels = np.zeros(grey.shape, dtype=np.int16)
    left = np.empty((len(parcels), 3))
    for index, parcel in enumerate(parcels):
        labels[tuple(parcel.T)] = index + 1
        left[index] = 2 * (parcel.sum(axis=0) / len(parcel)) + affine[:3, 3]
    mirrored = labels[::-1]
    labels = labels + np.where(mirrored > 0, mirrored + NUM_PARCELS // 2, 0).astype(np.int16)
    networks = np.array([_nearest_network(centre) for centre in left])
    return DemoAtlas(
        labels=labels,
        affine=affine,
        coordinates=np.concatenate([left, left * (-1, 1, 1)]),
        networks=np.tile(networks, 2),
    )


def _bisect(voxels: np.ndarray, count: int) -> list[np.ndarray]:
    """Halve [N, 3] voxels across their longest direction until `count` parts of N / count remain.

    The direction is the one of 13 (axes and diagonals) with the largest variance; ties in
    position go by voxel order.
    """
    if count == 1:
        return [voxels]
    positions = voxels @ _DIRECTIONS.T  # [N, 13]
    scatter = len(voxels) * (positions**2).sum(axis=0) - positions.sum(axis=0) ** 2
    longest = int(np.argmax(scatter * (6 // (_DIRECTIONS**2).sum(axis=1))))
    order = np.argsort(positions[:, longest], kind="stable")
    first = count // 2
    cut = len(voxels) * first // count
    low, high = np.sort(order[:cut]), np.sort(order[cut:])
    return _bisect(voxels[low], first) + _bisect(voxels[high], count - first)


def _nearest_network(centre: np.ndarray) -> int:
    folded = np.abs(np.rint(centre[:1])), np.rint(centre[1:])
    point = np.concatenate(folded).astype(np.int64)
    distances = [
        min(int(((point - node) ** 2).sum()) for node in np.array(_NODES[name]))
        for name in NETWORKS
    ]
    return int(np.argmin(distances)) + 1


def build_demo_atlas(folder: str | Path) -> None:
    """Write demo424.nii, demo424_coordinates.dat and demo424_labels.tsv into `folder`."""
    atlas, folder = parcellate_template(), Path(folder)
    with atomic_path(folder / "demo424.nii") as temporary:
        temporary.write_bytes(_nifti_bytes(atlas))
    write_text(
        folder / "demo424_coordinates.dat",
        "".join(
            f"{index} {x:.2f} {y:.2f} {z:.2f}\n"
            for index, (x, y, z) in enumerate(atlas.coordinates, start=1)
        ),
    )
    rows = []
    for index, network in enumerate(atlas.networks):
        side = "L" if index < NUM_PARCELS // 2 else "R"
        number = index % (NUM_PARCELS // 2) + 1
        rows.append([f"{side}_{NETWORKS[network - 1]}_{number:03d}", side, network])
    write_tsv(folder / "demo424_labels.tsv", ["name", "hemisphere", "network"], rows)


def _nifti_bytes(atlas: DemoAtlas) -> bytes:
    """Uncompressed, because zlib variants write different bytes for the same data."""
    import nibabel

    image = nibabel.Nifti1Image(atlas.labels, atlas.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(atlas.affine, code="mni")
    header = image.header
    header["qform_code"] = 4
    for field in ("quatern_b", "quatern_c", "quatern_d"):  # no rotation: exact, not by SVD
        header[field] = 0
    return image.to_bytes()
