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

import json
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from ..errors import BrainLMError, RecordingError
from ..files import atomic_path
from .mask import brain_mask
from .spline import value_and_gradient
from .template import Template

COSINES = (8, 9, 8)  # of the bend along x, y, z: details down to about 40 mm
BEND_SD_MM = 2.5  # expected size of the bend, beyond what the affine part explains
AFFINE_FWHM_MM = (12.0, 8.0)  # smoothing of image and maps, level by level
BEND_FWHM_MM = (8.0, 5.0)
DAMPING = 1e-3  # of a step, relative to the curvature along each parameter
GAIN = 1e-3  # stop when a step lowers the cost by less than this per independent observation
LENGTH_MM = 50.0  # a unit of shear or zoom moves points at this distance by one unit of mm

MIN_CORRELATION = 0.5  # image with tissue mixture inside the brain, after the affine part
MIN_DICE = 0.8  # of the two brain masks, inside the field of view
MAX_BEND_MM = 8.0  # RMS: 2 to 5 in people; a ball is bent by 9
ZOOM_RANGE = (0.65, 1.5)  # of the affine part along any direction
MIN_VOLUME_ML, MAX_VOLUME_ML = 250.0, 3000.0


@dataclass(frozen=True)
class Normalisation:
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
        flat = self.coefficients.reshape(3, -1).T
        for first in range(0, len(points), 8192):  # few at a time: memory
            place = (points[first : first + 8192] - self.origin) / self.extent
            x, y, z = (_cosines(place[:, i], k) for i, k in enumerate((kx, ky, kz)))
            products = z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]
            out[first : first + 8192] = products.reshape(len(place), -1) @ flat
        return out

    def save(self, path: str | Path) -> None:
        """Write an npz file; it appears whole."""
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.savez(
                handle,
                affine=self.affine,
                coefficients=self.coefficients,
                origin=self.origin,
                extent=self.extent,
                about=json.dumps({"quality": self.quality, "method": self.method}),
            )

    @classmethod
    def load(cls, path: str | Path) -> Normalisation:
        """Read what :meth:`save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {k: stored[k] for k in ("affine", "coefficients", "origin", "extent")}
                about = json.loads(str(stored["about"]))
        except (OSError, ValueError, KeyError) as error:
            raise BrainLMError(f"{path}: expected a saved normalisation ({error})") from None
        return cls(**arrays, **about)


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
    it does, or not taken, so that the fit cannot diverge. Several starting poses are
    tried, upside-down ones too: where one of those fits best, the header is not to be trusted.

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
    image, mask = _check_image(reference, affine, mask)
    pose, scores = _find_pose(image, mask, affine, template)
    _check_pose(scores)
    start = _State(pose, np.zeros((3, *COSINES[::-1])))
    moving = _Image(image * mask, affine)
    direct = _descend(moving, template, start, AFFINE_FWHM_MM[1:], bend=False)
    figures = {"correlation_affine": _correlation(moving, template, direct, AFFINE_FWHM_MM[-1])}
    if t1w is None:
        method, state = "direct", _descend(moving, template, direct, BEND_FWHM_MM, bend=True)
    else:
        method, state = "t1w", _through_t1w(moving, template, direct, t1w, t1w_affine)
    result = _to_result(template, state, method)
    figures.update(_assess(result, moving, mask, affine, template, state))
    result = replace(result, quality=figures)
    if method == "t1w" and figures["correlation"] < figures["correlation_affine"]:
        raise RecordingError(
            "registration_failed",
            f"through the T1w image the fit is worse (correlation {figures['correlation']:.2f}) "
            f"than without it ({figures['correlation_affine']:.2f}): leave the T1w image out",
        )
    _check_quality(figures)
    return result


# ---- the model ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _State:
    affine: np.ndarray  # [4, 4]
    coefficients: np.ndarray  # [3, Kz, Ky, Kx], mm


@dataclass(frozen=True)
class _Image:
    data: np.ndarray  # [Z, Y, X]
    affine: np.ndarray

    def smooth(self, fwhm_mm: float) -> np.ndarray:
        """Smoothed to `fwhm_mm`, less what reading by spline sums adds (1.36 voxel)."""
        from scipy import ndimage

        zooms = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))[::-1]
        width = np.sqrt(np.maximum(fwhm_mm**2 - (1.36 * zooms) ** 2, 0)) / 2.355
        return ndimage.gaussian_filter(self.data, width / zooms, output=np.float32)


@lru_cache(maxsize=8)
def _grid(template: Template, step_mm: float, margin_mm: float) -> _Grid:
    return _Grid(template, step_mm, margin_mm)


@lru_cache(maxsize=2)
def _distance(template: Template) -> np.ndarray:
    """How far each voxel lies outside the template's brain, mm."""
    from scipy import ndimage

    zoom = template.affine[0, 0]
    return ndimage.distance_transform_edt(~template.mask, sampling=zoom).astype(np.float32)


class _Grid:
    """Points of a box of the template around its brain, and the cosines on it."""

    def __init__(self, template: Template, step_mm: float, margin_mm: float):
        from scipy import ndimage

        zoom = template.affine[0, 0]
        self.step = max(1, round(step_mm / zoom))
        near = _distance(template) <= margin_mm
        box = ndimage.find_objects(ndimage.binary_dilation(near, iterations=2).astype(int))[0]
        self.slices = tuple(slice(s.start, s.stop, self.step) for s in box)
        self.inside = near[self.slices]
        self.brain = template.mask[self.slices][self.inside]
        first = np.array([s.start for s in box])[::-1]
        size = np.array(self.inside.shape)[::-1] * self.step
        self.origin = template.affine[:3, 3] + (first - self.step / 2) * zoom
        self.extent = size * zoom
        index = np.argwhere(self.inside)[:, ::-1] * self.step + first
        self.points = index * zoom + template.affine[:3, 3]

    @cached_property
    def bases(self):
        """Cosines along z, y and x: [n, K] each."""
        shape = self.inside.shape
        return [
            _cosines((np.arange(n) + 0.5) / n, k)
            for n, k in zip(shape, COSINES[::-1], strict=True)
        ]

    @cached_property
    def pairs(self):
        """Products of two cosines along each axis: [n, K * K]."""
        return [(b[:, :, None] * b[:, None, :]).reshape(len(b), -1) for b in self.bases]

    @cached_property
    def precision(self) -> np.ndarray:
        """Prior precision [K] of a coefficient: its bending energy, scaled to BEND_SD_MM."""
        kz, ky, kx = (np.arange(b.shape[1]) for b in self.bases)
        x, y, z = (np.pi * k / e for k, e in zip((kx, ky, kz), self.extent, strict=True))
        squared = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2
        lowest = (np.pi / self.extent.max()) ** 2
        energy = (squared + lowest) ** 2
        power = [np.where(k > 0, 0.5, 1.0) for k in (kz, ky, kx)]  # mean square of a cosine
        share = power[0][:, None, None] * power[1][:, None] * power[2]
        return (energy * (share / energy).sum() / BEND_SD_MM**2).ravel()

    def bend(self, coefficients: np.ndarray) -> np.ndarray:
        """The bend on the whole box, [3, Z, Y, X] in mm."""
        z, y, x = self.bases
        return np.einsum("iabc,za,yb,xc->izyx", coefficients, z, y, x, optimize=True)

    def fill(self, columns: np.ndarray) -> np.ndarray:
        """Values at the inside points [C, N] on the whole box, zero elsewhere."""
        out = np.zeros((len(columns), *self.inside.shape), np.float32)
        out[:, self.inside] = columns
        return out

    def project(self, columns: np.ndarray) -> np.ndarray:
        """Sums over points of columns [C, N] times each cosine product: [C, K]."""
        return _contract(self.fill(columns), self.bases).reshape(len(columns), -1)

    def gram(self, weights: np.ndarray) -> np.ndarray:
        """Sums over points of weights [N] times products of two cosine products: [K, K]."""
        kz, ky, kx = (b.shape[1] for b in self.bases)
        out = _contract(self.fill(weights[None]), self.pairs)[0]
        out = out.reshape(kz, kz, ky, ky, kx, kx).transpose(0, 2, 4, 1, 3, 5)
        return out.reshape(kz * ky * kx, -1)


def _cosines(place: np.ndarray, count: int) -> np.ndarray:
    """cos(pi k place), k < count: [N, count]; place runs from 0 to 1 over the box."""
    return np.cos(np.pi * place[:, None] * np.arange(count))


def _contract(fields: np.ndarray, bases) -> np.ndarray:
    """Sum fields [C, Z, Y, X] against bases along z, y and x: [C, Kz, Ky, Kx]."""
    z, y, x = (b.astype(np.float32) for b in bases)
    out = fields @ x  # C Z Y Kx
    out = y.T @ out  # C Z Ky Kx
    shape = (len(fields), z.shape[1], y.shape[1], x.shape[1])
    return (z.T @ out.reshape(len(fields), z.shape[0], -1)).reshape(shape)


@dataclass(frozen=True)
class _Match:
    """How an image fits in one state: what the cost and its derivatives are made of."""

    cost: float
    pull: np.ndarray  # [N] residuals less (1 - R^2) of the centred image, 0 outside
    slopes: np.ndarray  # [N, 3] per mm of the image's world, 0 outside
    columns: np.ndarray  # [N, C] orthonormal: the intensity model, 0 outside
    places: np.ndarray  # [N, 3] world mm
    square: float  # sum of squared residuals
    correlation: float
    inside: np.ndarray  # [N]


class _Problem:
    """Match a smoothed image with columns of the template over a grid: cost and derivatives.

    The cost is ``M/2 log(1 - R^2) + 1/2 c' P c``: M independent observations with unknown noise,
    and the prior of the bend. R^2 is taken within the field of view, so that moving to where
    the image is flat gains nothing.
    """

    def __init__(self, image: _Image, fwhm_mm, grid: _Grid, columns, *, rigid=False, bend=False):
        self.data = np.ascontiguousarray(image.smooth(fwhm_mm))
        self.inverse = np.linalg.inv(image.affine)
        self.grid, self.columns, self.bent = grid, columns, bend
        spacing = grid.extent[0] / grid.inside.shape[2]
        self.redundancy = max(1.0, (fwhm_mm / spacing) ** 3)
        # the affine part rests while space bends: what both can do would add up and cancel
        self.generators = _generators(rigid)

    def place(self, state: _State) -> np.ndarray:
        points = self.grid.points
        if state.coefficients.any():
            points = points + self.grid.bend(state.coefficients)[:, self.grid.inside].T
        return points @ state.affine[:3, :3].T + state.affine[:3, 3]

    def read(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values [N] (NaN outside) and slopes [N, 3] per mm at places [N, 3] in world mm."""
        index = places @ self.inverse[:3, :3].T + self.inverse[:3, 3]
        values = np.empty(len(index), np.float32)
        slopes = np.empty((len(index), 3), np.float32)
        value_and_gradient(self.data, index.astype(np.float32), values, slopes)
        return values, slopes @ self.inverse[:3, :3].astype(np.float32)

    def measure(self, state: _State) -> _Match:
        places = self.place(state)
        values, slopes = self.read(places)
        inside = np.isfinite(values)
        values = np.where(inside, values, 0)
        columns = self.columns * inside[:, None]
        gram = (columns.T @ columns).astype(np.float64)
        low = np.linalg.cholesky(gram + 1e-5 * np.trace(gram) / len(gram) * np.eye(len(gram)))
        columns = columns @ np.linalg.inv(low).T.astype(np.float32)
        residual = values - columns @ (columns.T @ values)
        centred = np.where(inside, values - values[inside].mean() if inside.any() else 0, 0)
        total = float(centred @ centred)
        square = float(residual @ residual) + 1e-12
        share = min(square / (total + 1e-12), 1e3)
        if inside.mean() < 0.2:
            share = 1e3
        count = len(inside) / self.redundancy
        cost = count / 2 * np.log(share)
        if self.bent:
            flat = state.coefficients.reshape(3, -1)
            cost += 0.5 * float((flat**2 @ self.grid.precision).sum())
        return _Match(
            cost, residual - share * centred, slopes, columns, places, square,
            float(np.sqrt(max(0.0, 1 - share))), inside,
        )  # fmt: skip

    def linearise(self, state: _State, match: _Match):
        """Hessian and gradient of the cost, intensity weights eliminated."""
        parts = self._by_bend if self.bent else self._by_affine
        hessian, gradient = parts(state, match)
        scale = len(match.pull) / self.redundancy / match.square
        hessian, gradient = hessian * scale, gradient * scale
        if self.bent:
            prior = np.tile(self.grid.precision, 3)
            hessian[np.diag_indices_from(hessian)] += prior
            gradient = gradient + prior * state.coefficients.ravel()
        return hessian, gradient

    def _by_affine(self, state: _State, match: _Match):
        local = (match.places - match.places.mean(axis=0)) / LENGTH_MM
        moves = local @ self.generators[:, :3, :3].transpose(0, 2, 1)
        moves += self.generators[:, None, :3, 3]
        jacobian = np.einsum("gni,ni->gn", moves, match.slopes)
        cross = jacobian @ match.columns
        return jacobian @ jacobian.T - cross @ cross.T, jacobian @ match.pull

    def _by_bend(self, state: _State, match: _Match):
        """All sums over points are sums over a box, one axis after the other: J is never made."""
        slopes = (match.slopes @ state.affine[:3, :3].astype(np.float32)).T  # [3, N]
        beside = np.vstack([match.columns.T, match.pull[None]])
        sums = [self.grid.project(beside * slopes[i]) for i in range(3)]  # [C + 1, K] each
        blocks: list[list] = [[None] * 3 for _ in range(3)]
        for i in range(3):
            for j in range(i + 1):
                block = self.grid.gram(slopes[i] * slopes[j]) - sums[i][:-1].T @ sums[j][:-1]
                blocks[i][j], blocks[j][i] = block, block.T
        return np.block(blocks), np.concatenate([one[-1] for one in sums])

    def move(self, state: _State, match: _Match, step: np.ndarray) -> _State:
        from scipy.linalg import expm

        count = len(self.generators)
        if self.bent:
            return _State(
                state.affine, state.coefficients + step.reshape(state.coefficients.shape)
            )
        shift = np.eye(4)
        shift[:3, 3] = match.places.mean(axis=0)
        velocity = np.einsum("g,gij->ij", step[:count], self.generators)
        velocity[:3, :3] /= LENGTH_MM
        affine = shift @ expm(velocity) @ np.linalg.inv(shift) @ state.affine
        return _State(affine, state.coefficients)

    def allowed(self, state: _State) -> bool:
        """Whether the bend is far from folding space."""
        return not self.bent or _jacobian(self.grid, state.coefficients).min() > 0.25


def _generators(rigid: bool) -> np.ndarray:
    """Velocities [G, 4, 4]: three translations (mm), then three rotations or all linear maps."""
    out = []
    for i in range(3):
        out.append(np.zeros((4, 4)))
        out[-1][i, 3] = 1
    for i in range(3):
        for j in range(3):
            if rigid and i >= j:
                continue
            one = np.zeros((4, 4))
            one[i, j] = 1
            if rigid:
                one[j, i] = -1
            out.append(one)
    return np.array(out)


def _jacobian(grid: _Grid, coefficients: np.ndarray) -> np.ndarray:
    """Determinant [N] of the derivative of p + bend(p) at the inside points."""
    bend = grid.bend(coefficients)
    spacing = grid.extent[::-1] / grid.inside.shape
    derivative = np.empty((*grid.inside.shape, 3, 3))
    for i in range(3):
        for j, along in enumerate(np.gradient(bend[i], *spacing)):
            derivative[..., i, 2 - j] = along
    return np.linalg.det((derivative + np.eye(3))[grid.inside])


def _minimise(problem: _Problem, state: _State, max_steps: int) -> tuple[_State, _Match]:
    """Damped Gauss-Newton: a step that raises the cost or folds space is halved, or not taken."""
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    here = problem.measure(state)
    for _ in range(max_steps):
        hessian, gradient = problem.linearise(state, here)
        # unit diagonal: well scaled, and no subnormal numbers, which stall a factorisation
        scale = 1 / np.sqrt(np.diag(hessian) + 1e-9 * np.trace(hessian) / len(hessian))
        hessian *= scale[:, None] * scale
        hessian[np.diag_indices_from(hessian)] += DAMPING
        try:
            factor = cho_factor(hessian, overwrite_a=True, check_finite=False)
        except LinAlgError:
            break
        step = -scale * cho_solve(factor, scale * gradient, check_finite=False)
        gain = 0.0
        for halvings in range(6):
            candidate = problem.move(state, here, step / 2**halvings)
            there = problem.measure(candidate)
            if there.cost < here.cost and problem.allowed(candidate):
                gain = here.cost - there.cost
                state, here = candidate, there
                break
        if gain < GAIN * len(here.pull) / problem.redundancy:
            break
    return state, here


# ---- the steps ------------------------------------------------------------------------------


def _tissue_columns(template: Template, grid: _Grid, fwhm_mm: float) -> np.ndarray:
    """Smoothed tissue maps at the grid's points, and times x, y, z: [N, 12]."""
    maps = [
        _Image(one, template.affine).smooth(fwhm_mm)[grid.slices][grid.inside]
        for one in (template.grey, template.white, template.csf)
    ]
    return _with_slopes(np.stack(maps, axis=1), grid)


def _with_slopes(columns: np.ndarray, grid: _Grid) -> np.ndarray:
    centred = (grid.points - grid.points.mean(axis=0)) / LENGTH_MM
    parts = [columns, *(columns * centred[:, i : i + 1] for i in range(3))]
    return np.hstack(parts).astype(np.float32)


def _descend(
    image, template, state, levels, *, bend, rigid=False, margin_mm=6.0, steps=6
) -> _State:
    """Minimise level by level, from smooth to sharp."""
    grid = _grid(template, 4.0, margin_mm)
    for fwhm in levels:
        columns = _tissue_columns(template, grid, fwhm)
        problem = _Problem(image, fwhm, grid, columns, bend=bend, rigid=rigid)
        state, _ = _minimise(problem, state, steps if bend else 30)
    return state


def _find_pose(image, mask, affine, template):
    """Affine [4, 4] of the best of several starts, and the correlation reached by each pose."""
    index = np.argwhere(mask)[:, ::-1]
    centre = index.mean(axis=0) @ affine[:3, :3].T + affine[:3, 3]
    grid = _grid(template, 8.0, 8.0)
    middle = grid.points[grid.brain].mean(axis=0)
    fwhm = AFFINE_FWHM_MM[0]
    problem = _Problem(
        _Image(image * mask, affine), fwhm, grid, _tissue_columns(template, grid, fwhm)
    )
    found, scores = {}, {}
    for name, turn, shift in _poses():  # a few steps from each start ...
        start = np.eye(4)
        start[:3, :3] = turn
        start[:3, 3] = centre + shift - turn @ middle
        state = _State(start, np.zeros((3, *COSINES[::-1])))
        state, match = _minimise(problem, state, 5)
        if match.correlation > scores.get(name, -1.0):
            scores[name], found[name] = match.correlation, state
    for name, state in found.items():  # ... and more from the best of each pose
        found[name], match = _minimise(problem, state, 20)
        scores[name] = match.correlation
    return found["upright"].affine, scores


def _poses():
    """Starting rotations and shifts (mm); upside-down ones by 180 degrees about each axis.

    The template is left-right symmetric: a mirrored head is a turned one to it.
    """
    from scipy.spatial.transform import Rotation

    def turn(x, z=0.0):
        return Rotation.from_euler("xz", [x, z], degrees=True).as_matrix()

    for pitch in (0, -20, 20):
        yield "upright", turn(pitch), np.zeros(3)
    for shift in (-20.0, 20.0):
        yield "upright", turn(0), np.array([0, 0, shift])
    for pitch in (0, -20, 20):
        flip = turn(pitch)
        yield "upside-down", flip @ np.diag([-1, 1, -1]), np.zeros(3)
        yield "back to front", flip @ np.diag([-1, -1, 1]), np.zeros(3)
        yield "upside-down and back to front", flip @ np.diag([1, -1, -1]), np.zeros(3)


def _through_t1w(moving, template, direct: _State, t1w, t1w_affine) -> _State:
    """Bend the template to the T1w image, then bring the T1w image to the reference rigidly.

    Only points inside the brain are used for the T1w image, so that its skull does not matter;
    the direct fit's pose is where to start, as both images share the scanner's world.
    """
    t1w_affine = np.asarray(t1w_affine, np.float64)
    data = np.nan_to_num(np.asarray(t1w, np.float32))
    high = np.percentile(data[data > 0], 99.5) if (data > 0).any() else 0
    if not high > 0:
        raise RecordingError("registration_failed", "the T1w image is empty")
    anatomy = _Image(np.clip(data, 0, high), t1w_affine)
    state = _descend(
        anatomy, template, direct, AFFINE_FWHM_MM, bend=False, rigid=True, margin_mm=0.0
    )
    state = _descend(anatomy, template, state, (8.0, 5.0, 3.5), bend=True, margin_mm=0.0)

    grid = _grid(template, 4.0, 6.0)
    for fwhm in AFFINE_FWHM_MM[1:] + BEND_FWHM_MM[1:]:
        view = _Problem(anatomy, fwhm, grid, _tissue_columns(template, grid, fwhm))
        match = view.measure(state)
        tissue = _tissue_columns(template, grid, fwhm)
        brain = tissue[:, :3].sum(axis=1)
        values, _ = view.read(match.places)
        values = np.nan_to_num(values) / high * brain
        extra = np.stack([values, values**2], axis=1)
        columns = np.hstack([tissue, _with_slopes(extra, grid)])
        rigid = _Problem(moving, fwhm, grid, columns, rigid=True)
        state, _ = _minimise(rigid, state, 30)
    return state


def _to_result(template: Template, state: _State, method: str) -> Normalisation:
    grid = _grid(template, 4.0, 6.0)
    return Normalisation(state.affine, state.coefficients, grid.origin, grid.extent, method=method)


# ---- the checks -----------------------------------------------------------------------------


def _check_image(reference, affine, mask):
    image = np.nan_to_num(np.asarray(reference, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    try:
        mask = brain_mask(image, affine) if mask is None else np.asarray(mask, bool)
    except RecordingError as error:
        raise RecordingError("registration_failed", error.reason) from None
    volume = mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
    if not MIN_VOLUME_ML <= volume <= MAX_VOLUME_ML:
        raise RecordingError(
            "registration_failed",
            f"the brain mask holds {volume:.0f} ml, expected {MIN_VOLUME_ML:.0f} to "
            f"{MAX_VOLUME_ML:.0f}: the image is empty or not a head",
        )
    high = np.percentile(image[mask], 98)
    return np.clip(image, 0, high) / high, mask


def _check_pose(scores: dict[str, float]) -> None:
    best = max(scores, key=lambda pose: scores[pose])
    if best != "upright":
        raise RecordingError(
            "registration_failed",
            f"the image fits the template better {best} (correlation {scores[best]:.2f}) than "
            f"upright ({scores['upright']:.2f}): its orientation is wrong in the header",
        )


def _correlation(image, template, state, fwhm_mm) -> float:
    """Correlation of the image with the tissue mixture inside the brain."""
    grid = _grid(template, 4.0, 0.0)
    columns = _tissue_columns(template, grid, fwhm_mm)
    return _Problem(image, fwhm_mm, grid, columns).measure(state).correlation


def _assess(result, moving, mask, affine, template, state) -> dict[str, float]:
    """Figures of quality, see :class:`Normalisation`."""
    grid = _grid(template, 4.0, 40.0)
    index = (result(grid.points) - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    index = np.rint(index).astype(int)
    size = np.array(mask.shape)[::-1]
    inside = ((index >= 0) & (index < size)).all(axis=1)
    found = mask[tuple(np.clip(index, 0, size - 1)[:, ::-1].T)] & inside
    brain = grid.brain & inside
    near = _grid(template, 4.0, 6.0)
    jacobian = _jacobian(near, state.coefficients)
    zooms = np.linalg.svd(state.affine[:3, :3], compute_uv=False)
    return {
        "correlation": _correlation(moving, template, state, AFFINE_FWHM_MM[-1]),
        "mask_dice": float(2 * (found & brain).sum() / max(1, found.sum() + brain.sum())),
        "coverage": float(inside[grid.brain].mean()),
        "bend_rms_mm": float(np.sqrt((result.bend(near.points) ** 2).sum(axis=1).mean())),
        "jacobian_min": float(jacobian.min()),
        "jacobian_max": float(jacobian.max()),
        "zoom_min": float(zooms.min()),
        "zoom_max": float(zooms.max()),
    }


def _check_quality(figures: dict[str, float]) -> None:
    problems = []
    if figures["correlation"] < MIN_CORRELATION:
        problems.append(
            f"correlation with the tissue maps {figures['correlation']:.2f} < {MIN_CORRELATION}"
        )
    if figures["mask_dice"] < MIN_DICE:
        problems.append(f"brain masks overlap by {figures['mask_dice']:.2f} (Dice) < {MIN_DICE}")
    if figures["zoom_min"] < ZOOM_RANGE[0] or figures["zoom_max"] > ZOOM_RANGE[1]:
        problems.append(
            f"zooms of {figures['zoom_min']:.2f} to {figures['zoom_max']:.2f} outside {ZOOM_RANGE}"
        )
    if figures["bend_rms_mm"] > MAX_BEND_MM:
        problems.append(f"bent by {figures['bend_rms_mm']:.1f} mm (RMS) > {MAX_BEND_MM:g}")
    if problems:
        raise RecordingError(
            "registration_failed", "not a brain as the template has it: " + "; ".join(problems)
        )
