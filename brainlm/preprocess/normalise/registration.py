"""Normalisation: where each point of the template lies in a recording's reference image.

A point p of the template lies at ``affine @ (p + bend(p))`` in the reference's world; the bend is
a sum of few cosines per axis. Both are found by matching the image with a mixture of the
template's tissue maps, ``image(T p) ~ sum_j (a_j + b_j . p) tissue_j(p)``, whose weights are
solved for on the way: the image may have any contrast (T2*, T1, T2) and a bias field.

Source: the least-squares idea and the bending penalty of Ashburner and Friston 1999, Human Brain
Mapping 7:254; the mixture instead of a template image, the exact elimination of its weights
(variable projection, Golub and Pereyra 1973) and the step control are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ...errors import RecordingError
from .agreement import (
    MAX_BEND_MM,
    MIN_CORRELATION,
    MIN_DICE,
    ZOOM_RANGE,
    ZOOM_RATIO,
    RefusedFit,
    check_image,
    check_pose,
    check_quality,
    correlate,
    overlap,
)
from .pose import INTERIOR_DEPTH_MM, MIN_INTERIOR, SURE_INTERIOR, find_pose, interior_of
from .saved_fit import SavedFit
from .template import Template
from .tissue_fit import (
    BEND_SD_MM,
    COSINES,
    Image,
    Problem,
    State,
    cosines,
    grid_of,
    jacobian,
    minimise,
    smooth_tissues,
    with_slopes,
)

AFFINE_FWHM_MM = (12.0, 8.0)  # smoothing of image and maps, level by level
BEND_FWHM_MM = (8.0, 5.0)
#: A rigid fit to the own T1w is nearer to the truth than an affine one to the template even where
#: it correlates a little less: the affine one is free to follow noise.
T1W_MARGIN = 0.02

#: For the sidecar.
SETTINGS = {
    "CosinesAlongXYZ": COSINES,
    "BendSDMm": BEND_SD_MM,
    "AffineFWHMMm": AFFINE_FWHM_MM,
    "BendFWHMMm": BEND_FWHM_MM,
    "LeastCorrelation": MIN_CORRELATION,
    "LeastDice": MIN_DICE,
    "LargestBendMm": MAX_BEND_MM,
    "Zooms": ZOOM_RANGE,
    "LargestZoomRatio": ZOOM_RATIO,
    "LeastInterior": MIN_INTERIOR,
    "SureInterior": SURE_INTERIOR,
    "InteriorDepthMm": INTERIOR_DEPTH_MM,
}


@dataclass(frozen=True)
class Normalisation(SavedFit):
    """Template mm -> reference world mm; call it with points [N, 3].

    Attributes
    ----------
    affine : float64 [4, 4]
        Applied after the bend.
    coefficients : float64 [3, Kz, Ky, Kx]
        Of the bend along x, y, z, in mm.
    origin, extent : float64 [3]
        Box of the cosines in template mm (its low corner, its edges).
    quality : dict of str to float
        ``correlation`` (image with tissue mixture, in the brain), ``correlation_affine``,
        ``interior`` (the same deep in the brain, less what is smooth; before the bend),
        ``mask_dice``, ``coverage`` (share of the template's brain inside the field of view),
        ``bend_rms_mm``, ``jacobian_min``, ``jacobian_max``, ``zoom_min``, ``zoom_max``.
    method : str
        ``direct`` or ``t1w``.
    """

    affine: np.ndarray
    coefficients: np.ndarray
    origin: np.ndarray
    extent: np.ndarray
    quality: dict[str, float] = field(default_factory=dict)
    method: str = "direct"

    def __call__(self, points_template_mm: np.ndarray) -> np.ndarray:
        points = np.asarray(points_template_mm, np.float64)
        bent = points + self.bend(points)
        return bent @ self.affine[:3, :3].T + self.affine[:3, 3]

    def bend(self, points: np.ndarray) -> np.ndarray:
        """Displacement [N, 3] in mm of template points [N, 3], before the affine part."""
        out = np.zeros((len(points), 3))
        if not self.coefficients.any():
            return out
        kz, ky, kx = self.coefficients.shape[1:]
        flat = self.coefficients.transpose(3, 2, 0, 1).reshape(kx, -1)
        for first in range(0, len(points), 2048):  # few at a time: they stay in the cache
            place = (points[first : first + 2048] - self.origin) / self.extent
            x, y, z = (cosines(place[:, i], k) for i, k in enumerate((kx, ky, kz)))
            lines = (x @ flat).reshape(len(place), ky, 3 * kz)
            planes = np.einsum("nyk,ny->nk", lines, y).reshape(len(place), 3, kz)
            out[first : first + 2048] = np.einsum("nak,nk->na", planes, z)
        return out


def normalise(
    reference: np.ndarray,
    affine: np.ndarray,
    template: Template,
    *,
    mask: np.ndarray | None = None,
    t1w: np.ndarray | None = None,
    t1w_affine: np.ndarray | None = None,
) -> Normalisation:
    """Find the template in a reference image, affine first and then bent.

    Every step is checked: one that does not lower the cost, or that folds space, is halved until
    it does, or not taken, so that the fit cannot diverge. Where the inside of the brain does not
    clearly agree, the 23 other poses are tried: where one of those fits best, the header is not to
    be trusted.

    With a T1w image of the same session the bend is found there, where the detail is, and the
    reference is brought to it rigidly.

    Parameters
    ----------
    reference : float [Z, Y, X]
        Mean of the realigned volumes.
    affine : [4, 4]
        Voxel (x, y, z) -> world RAS mm.
    mask : bool [Z, Y, X], optional
        The brain; :func:`brain_mask` if not given.
    t1w, t1w_affine : optional
        Its image [Z, Y, X], with or without skull, and affine.

    Raises
    ------
    RecordingError
        ``registration_failed``: empty, upside-down, or not a brain.
    """
    import numba
    import scipy.linalg  # noqa: F401  before the limit: it brings a BLAS of its own
    import threadpoolctl

    with threadpoolctl.threadpool_limits(numba.get_num_threads()):
        return _normalise(reference, affine, template, mask, t1w, t1w_affine)


def _normalise(reference, affine, template, mask, t1w, t1w_affine) -> Normalisation:
    affine = np.asarray(affine, np.float64)
    image, mask = check_image(reference, affine, mask)
    pose, _, turned = find_pose(image, mask, affine, template)
    start = State(pose, np.zeros((3, *COSINES[::-1])))
    moving = Image(image * mask, affine)
    direct = _descend(moving, template, start, AFFINE_FWHM_MM[1:], bend=False)
    straight = as_normalisation(template, direct, "direct")
    inside = interior_of(template)
    agreement = inside.agree(inside.of(moving), straight)
    check_pose(agreement, turned, straight)
    figures = _assess(straight, moving, mask, affine, template, direct)
    check_quality(replace(straight, quality=figures))  # before the bend, which costs the most
    figures = {"correlation_affine": figures["correlation"], "interior": agreement}
    if t1w is None:
        method, state = "direct", _descend(moving, template, direct, BEND_FWHM_MM, bend=True)
    else:
        anatomy, there = fit_anatomy(template, direct, t1w, t1w_affine)
        method, state = "t1w", _follow_anatomy(moving, template, anatomy, there)
    result = as_normalisation(template, state, method)
    figures.update(_assess(result, moving, mask, affine, template, state))
    result = replace(result, quality=figures)
    if method == "t1w" and figures["correlation"] < figures["correlation_affine"] - T1W_MARGIN:
        raise RefusedFit(
            f"through the T1w image the fit is worse (correlation {figures['correlation']:.2f}) "
            f"than without it ({figures['correlation_affine']:.2f})",
            result,
        )
    check_quality(result)
    return result


# ---- the steps ------------------------------------------------------------------------------


def _descend(
    image, template, state, levels, *, bend, rigid=False, margin_mm=6.0, steps=6
) -> State:
    """Minimise level by level, from smooth to sharp."""
    grid = grid_of(template, 4.0, margin_mm)
    for fwhm in levels:
        columns = smooth_tissues(template, grid, fwhm)
        problem = Problem(image, fwhm, grid, columns, bend=bend, rigid=rigid)
        state, _ = minimise(problem, state, steps if bend else 30)
    return state


def fit_anatomy(
    template: Template, start: State, t1w: np.ndarray, t1w_affine: np.ndarray
) -> tuple[Image, State]:
    """The T1w image, 0 to 1, and where the template lies in it.

    Only points inside the brain are used, so that its skull does not matter; the reference's
    pose, `start`, is where to start, as both images share the scanner's world.
    """
    data = np.nan_to_num(np.asarray(t1w, np.float32))
    high = np.percentile(data[data > 0], 99.5) if (data > 0).any() else 0
    if not high > 0:
        raise RecordingError("registration_failed", "the T1w image is empty")
    anatomy = Image(np.clip(data, 0, high) / high, np.asarray(t1w_affine, np.float64))
    state = _descend(
        anatomy, template, start, AFFINE_FWHM_MM, bend=False, rigid=True, margin_mm=0.0
    )
    return anatomy, _descend(anatomy, template, state, (8.0, 5.0, 3.5), bend=True, margin_mm=0.0)


def _follow_anatomy(moving: Image, template: Template, anatomy: Image, there: State) -> State:
    """Bring the T1w image, in which the template lies at `there`, to the reference rigidly."""
    grid = grid_of(template, 4.0, 6.0)
    state = there  # the head may have moved since: the T1w is read at `there` at every level
    for fwhm in AFFINE_FWHM_MM[1:] + BEND_FWHM_MM[1:]:
        tissue = smooth_tissues(template, grid, fwhm)
        view = Problem(anatomy, fwhm, grid, tissue)
        values, _ = view.read(view.place(there))
        values = np.nan_to_num(values) * tissue[:, :3].sum(axis=1)
        extra = np.stack([values, values**2], axis=1)
        columns = np.hstack([tissue, with_slopes(extra, grid)])
        rigid = Problem(moving, fwhm, grid, columns, rigid=True)
        state, _ = minimise(rigid, state, 30)
    return state


def as_normalisation(template: Template, state: State, method: str) -> Normalisation:
    """The map from template mm to the world that `state` was fitted in."""
    grid = grid_of(template, 4.0, 6.0)
    return Normalisation(state.affine, state.coefficients, grid.origin, grid.extent, method=method)


def _assess(result, moving, mask, affine, template, state) -> dict[str, float]:
    """Figures of quality, see :class:`Normalisation`."""
    near = grid_of(template, 4.0, 6.0)
    stretch = jacobian(near, state.coefficients)
    zooms = np.linalg.svd(state.affine[:3, :3], compute_uv=False)
    return {
        "correlation": correlate(Problem, moving, template, state),
        **overlap(result, affine, mask, template),
        "bend_rms_mm": float(np.sqrt((result.bend(near.points) ** 2).sum(axis=1).mean())),
        "jacobian_min": float(stretch.min()),
        "jacobian_max": float(stretch.max()),
        "zoom_min": float(zooms.min()),
        "zoom_max": float(zooms.max()),
    }
