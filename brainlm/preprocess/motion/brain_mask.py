"""The brain in an image, without a template."""

from __future__ import annotations

import numpy as np

from ...errors import RecordingError


def brain_mask(image: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Separate the brain from background, scalp and neck.

    Otsu's threshold on the image after removal of its bias field, then the largest component
    that survives an opening of about 4 mm, closed and filled. For T2*-weighted means; a
    brain-masked or partial image gives the brain that it has.

    Parameters
    ----------
    image : float [Z, Y, X]
    affine : [4, 4]
        Voxel (x, y, z) -> world mm.

    Returns
    -------
    bool [Z, Y, X]

    Raises
    ------
    RecordingError
        ``bad_data``: nothing in the image stands out from its background.
    """
    from scipy import ndimage

    image = np.nan_to_num(np.asarray(image, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    zooms = np.sqrt((np.asarray(affine)[:3, :3] ** 2).sum(axis=0))[::-1]  # z, y, x in mm
    low, high = np.percentile(image, [1, 99.5])
    if not high > low:
        raise RecordingError("bad_data", f"the image is constant ({high:g}): no brain in it")
    smooth = ndimage.gaussian_filter(np.clip(image, low, high), 0.8 * 2.4 / zooms)
    found = smooth > _otsu(smooth)
    for _ in range(2):  # the bias field is known only where the brain is, and the other way round
        share = ndimage.gaussian_filter(found.astype(np.float32), 25 / zooms)
        field = ndimage.gaussian_filter(np.where(found, smooth, 0), 25 / zooms)
        flat = smooth / np.maximum(field / np.maximum(share, 1e-3), 0.2 * smooth[found].mean())
        found = flat > _otsu(np.clip(flat, 0, 1.5))
    found = _largest(found, zooms, open_mm=4.0)
    if not found.any():
        raise RecordingError("bad_data", "nothing in the image stands out from its background")
    padded = np.pad(found, 4)
    padded = ndimage.binary_closing(padded, _ball(6.0, zooms))
    for view in (padded, padded.swapaxes(0, 1), padded.swapaxes(0, 2)):
        for page in view:  # holes that are open to the outside in one plane only
            page[:] = ndimage.binary_fill_holes(page)
    return ndimage.binary_fill_holes(padded)[4:-4, 4:-4, 4:-4]


def _otsu(values: np.ndarray) -> float:
    """The threshold that separates two classes best. Source: Otsu 1979, equation 18."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(float)
    above = counts.sum() - below
    total = np.cumsum(counts * centres)
    apart = total[:-1] / np.maximum(below, 1) - (total[-1] - total[:-1]) / np.maximum(above, 1)
    between = below * above * apart**2
    return float(edges[1:-1][np.argmax(between)])


def _ball(radius_mm: float, zooms: np.ndarray) -> np.ndarray:
    """A ball as a structuring element on voxels of `zooms` mm; at least the six neighbours."""
    from scipy import ndimage

    reach = np.maximum(np.floor(radius_mm / zooms).astype(int), 1)
    grid = np.indices(2 * reach + 1).T - reach
    ball = (((grid * zooms) ** 2).sum(axis=-1) <= radius_mm**2).T
    middle = tuple(slice(r - 1, r + 2) for r in reach)
    ball[middle] |= ndimage.generate_binary_structure(3, 1)
    return ball


def _largest(found: np.ndarray, zooms: np.ndarray, open_mm: float) -> np.ndarray:
    """The largest component after an opening, which cuts thin bridges to scalp and eyes."""
    from scipy import ndimage

    ball = _ball(open_mm, zooms)
    # the brain may go on beyond the field of view: its cut faces are no surface to erode
    core = ndimage.binary_erosion(found, ball, border_value=1)
    labels, count = ndimage.label(core if core.any() else found)
    if count == 0:
        return found
    core = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return ndimage.binary_dilation(core, ball) & found
