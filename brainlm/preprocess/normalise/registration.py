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

import itertools
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
from .boundary import find_boundary
from .pose import INTERIOR_DEPTH_MM, MIN_INTERIOR, SURE_INTERIOR, find_pose, interior_of, rotate_x
from .saved_fit import SavedFit
from .template import Template
from .tissue_fit import (
    BEND_SD_MM,
    COSINES,
    Image,
    Problem,
    State,
    bend_box,
    cosines,
    grid_of,
    jacobian,
    minimise,
    smooth_tissues,
    with_slopes,
)

AFFINE_FWHM_MM = (12.0, 8.0)  # smoothing of image and maps, level by level
BEND_FWHM_MM = (8.0, 5.0)
#: Nods from which the T1w fit starts: heads lie otherwise for it than for the run, by up to 20°.
T1W_TURNS = [rotate_x(degrees) for degrees in (0, -25, 25)]
T1W_SHIFTS_MM = (0.0, -25.0, 25.0)  # upwards, likewise
DISTORTION_SD_MM = 1.0  # how far distortion bends a reference, beyond its anatomy
LEAST_CONTRAST = 0.15  # at the border of white matter; less, and the T1w fit itself is wrong
FINEST_MM = 1.6  # voxels of a T1w image are made about as large

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
        ``bend_rms_mm``, ``jacobian_min``, ``jacobian_max``, ``zoom_min``, ``zoom_max``; with a T1w
        image also the border's contrast and the correlation of both ways (``boundary_direct``).
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
    insist: bool = False,
) -> Normalisation:
    """Find the template in a reference image, affine first and then bent.

    Every step is checked: one that does not lower the cost, or that folds space, is halved until
    it does, or not taken, so that the fit cannot diverge. Where the inside of the brain does not
    clearly agree, the 23 other poses are tried: where one of those fits best, the header is not to
    be trusted.

    With a T1w image of the same participant the bend is found there as well, where the detail is,
    and the reference is brought to it rigidly, by the border of white matter, and bent a little
    more where that places the border better, as in a distorted image. Of the direct fit and this
    one the one that places the border better is taken (docs/results/t1w.md).

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
    insist : bool
        Take the fit through the T1w also where the direct one places the border better.

    Raises
    ------
    RecordingError
        ``registration_failed``: empty, upside-down, or not a brain.
    """
    fits = fit_ways(reference, affine, template, mask=mask, t1w=t1w, t1w_affine=t1w_affine)
    result = choose_way(fits, insist)
    check_quality(result)
    return result


def fit_ways(
    reference, affine, template, *, mask=None, t1w=None, t1w_affine=None
) -> dict[str, Normalisation]:
    """The fits of :func:`normalise` by their method: ``direct`` and, with a T1w, ``t1w``.

    Where there are two, the quality of each has both ways' figures, ``boundary_direct`` to
    ``correlation_t1w``. How they end is not checked.
    """
    import numba
    import scipy.linalg  # noqa: F401  before the limit: it brings a BLAS of its own
    import threadpoolctl

    with threadpoolctl.threadpool_limits(numba.get_num_threads()):
        return _fit_ways(reference, affine, template, mask, t1w, t1w_affine)


def choose_way(fits: dict[str, Normalisation], insist: bool) -> Normalisation:
    """The fit that places the border of white matter better, or the one that passes the checks."""
    if "t1w" not in fits:
        return fits["direct"]
    figures = fits["t1w"].quality
    sound = figures["boundary_t1w"] > LEAST_CONTRAST
    better = figures["boundary_t1w"] > figures["boundary_direct"]
    wanted = better or insist or not _passes(fits["direct"])
    return fits["t1w" if sound and wanted else "direct"]


def _passes(fit: Normalisation) -> bool:
    try:
        check_quality(fit)
    except RefusedFit:
        return False
    return True


def _fit_ways(reference, affine, template, mask, t1w, t1w_affine) -> dict[str, Normalisation]:
    affine = np.asarray(affine, np.float64)
    image, mask = check_image(reference, affine, mask)
    pose, _, turned = find_pose(image, mask, affine, template)
    start = State(pose, np.zeros((3, *COSINES[::-1])))
    moving = Image(image * mask, affine)
    rough = _descend(moving, template, start, AFFINE_FWHM_MM[1:], bend=False)
    straight = as_normalisation(template, rough, "direct")
    inside = interior_of(template)
    agreement = inside.agree(inside.of(moving), straight)
    check_pose(agreement, turned, straight)
    figures = _assess(straight, moving, mask, affine, template, rough)
    check_quality(replace(straight, quality=figures))  # before the bend, which costs the most
    shared = {"correlation_affine": figures["correlation"], "interior": agreement}

    def finish(state: State, method: str) -> Normalisation:
        made = as_normalisation(template, state, method)
        figures = _assess(made, moving, mask, affine, template, state)
        return replace(made, quality=shared | figures)

    bent = _descend(moving, template, rough, BEND_FWHM_MM, bend=True)
    fits = {"direct": finish(bent, "direct")}
    if t1w is None:
        return fits
    anatomy, there = fit_anatomy(template, rough, t1w, t1w_affine)
    boundary = find_boundary(template, anatomy, there)
    whole = Image(image, affine)
    state = _follow_anatomy(moving, template, anatomy, there, fits["direct"])
    state = _moved(boundary.align(whole, as_normalisation(template, state, "t1w")), state)
    options = [
        finish(one, "t1w")
        for one in (state, _follow_distortion(moving, template, anatomy, there, state))
    ]
    fits["t1w"] = max(options, key=lambda fit: boundary.contrast(whole, fit))
    both = {f"boundary_{way}": boundary.contrast(whole, fit) for way, fit in fits.items()}
    both |= {f"correlation_{way}": fit.quality["correlation"] for way, fit in fits.items()}
    return {way: replace(fit, quality=fit.quality | both) for way, fit in fits.items()}


# ---- the steps ------------------------------------------------------------------------------


def _descend(
    image, template, state, levels, *, bend, rigid=False, margin_mm=6.0, steps=6
) -> State:
    """Minimise level by level, from smooth to sharp, or as sharp as the image is."""
    grid = grid_of(template, 4.0, margin_mm)
    for fwhm in np.maximum(levels, image.sharpest_mm):
        columns = smooth_tissues(template, grid, fwhm)
        problem = Problem(image, fwhm, grid, columns, bend=bend, rigid=rigid)
        if bend:
            problem.adapt(state)
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
    anatomy = _coarser(np.clip(data, 0, high) / high, np.asarray(t1w_affine, np.float64))
    state = _descend(
        anatomy, template, _find_head(anatomy, template, start), AFFINE_FWHM_MM[1:],
        bend=False, rigid=True, margin_mm=0.0,
    )  # fmt: skip
    return anatomy, _descend(anatomy, template, state, (8.0, 5.0, 3.5), bend=True, margin_mm=0.0)


def _find_head(anatomy: Image, template: Template, start: State) -> State:
    """Of rigid fits from nine poses about `start`, the one that fits inside the brain best."""
    grid, inside, fwhm = grid_of(template, 8.0, 0.0), interior_of(template), AFFINE_FWHM_MM[0]
    problem = Problem(anatomy, fwhm, grid, smooth_tissues(template, grid, fwhm), rigid=True)
    middle, smoothed, found = grid.points.mean(axis=0), inside.of(anatomy), []
    for turn, shift in itertools.product(T1W_TURNS, T1W_SHIFTS_MM):
        around = start.affine.copy()
        around[:3, :3] = start.affine[:3, :3] @ turn
        around[:3, 3] += start.affine[:3, :3] @ (middle - turn @ middle) + (0, 0, shift)
        found.append(minimise(problem, replace(start, affine=around), 30)[0])
    return max(found, key=lambda state: inside.agree(
        smoothed, as_normalisation(template, state, "t1w")))  # fmt: skip


def _coarser(data: np.ndarray, affine: np.ndarray) -> Image:
    """An image of finer voxels than a fit needs, in means over blocks of voxels."""
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    blocks = np.maximum(1, (FINEST_MM / zooms).astype(int))  # x, y, z
    if (blocks == 1).all():
        return Image(data, affine)
    size = np.array(data.shape)[::-1] // blocks
    nx, ny, nz = size * blocks
    blocked = data[:nz, :ny, :nx].reshape(nz // blocks[2], blocks[2], ny // blocks[1], blocks[1],
                                          nx // blocks[0], blocks[0])  # fmt: skip
    to_fine = np.diag([*blocks.astype(float), 1.0])
    to_fine[:3, 3] = (blocks - 1) / 2
    return Image(blocked.mean(axis=(1, 3, 5), dtype=np.float32), affine @ to_fine)


def _follow_anatomy(
    moving: Image, template: Template, anatomy: Image, there: State, direct: Normalisation
) -> State:
    """Bring the T1w image, in which the template lies at `there`, to the reference rigidly.

    The direct fit says roughly how, wherever the head has moved since; intensities say it better.
    """
    grid = grid_of(template, 4.0, 6.0)
    inside = grid.points[grid.brain]
    seen = as_normalisation(template, there, "t1w")(inside)
    state = _moved(align_rigidly(seen, direct(inside)), there)
    for fwhm in BEND_FWHM_MM:
        columns = _with_anatomy(template, grid, fwhm, anatomy, there)
        state, _ = minimise(Problem(moving, fwhm, grid, columns, rigid=True), state, 30)
    return state


def _follow_distortion(
    moving: Image, template: Template, anatomy: Image, there: State, state: State
) -> State:
    """Bend what the T1w image foresees to where a distorted reference has it, by a little."""
    grid, around = grid_of(template, 4.0, 6.0), state.coefficients
    for fwhm in BEND_FWHM_MM:
        columns = _with_anatomy(template, grid, fwhm, anatomy, there)
        problem = Problem(
            moving, fwhm, grid, columns, bend=True, around=around, sd_mm=DISTORTION_SD_MM
        )
        state, _ = minimise(problem, state, 6)
    return state


def _with_anatomy(template, grid, fwhm: float, anatomy: Image, there: State) -> np.ndarray:
    """The tissue maps at the grid's points, with the T1w image's values and their squares."""
    tissue = smooth_tissues(template, grid, fwhm)
    view = Problem(anatomy, fwhm, grid, tissue)
    values, _ = view.read(view.place(there))
    values = np.nan_to_num(values) * tissue[:, :3].sum(axis=1)
    return np.hstack([tissue, with_slopes(np.stack([values, values**2], axis=1), grid)])


def _moved(matrix: np.ndarray, state: State) -> State:
    return replace(state, affine=matrix @ state.affine)


def align_rigidly(points: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The rigid move [4, 4] that brings points [N, 3] nearest to places [N, 3] (Kabsch)."""
    from scipy.spatial.transform import Rotation

    out = np.eye(4)
    middle, centre = points.mean(axis=0), places.mean(axis=0)
    out[:3, :3] = Rotation.align_vectors(places - centre, points - middle)[0].as_matrix()
    out[:3, 3] = centre - out[:3, :3] @ middle
    return out


def as_normalisation(template: Template, state: State, method: str) -> Normalisation:
    """The map from template mm to the world that `state` was fitted in."""
    origin, extent = bend_box(template)
    return Normalisation(state.affine, state.coefficients, origin, extent, method=method)


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
