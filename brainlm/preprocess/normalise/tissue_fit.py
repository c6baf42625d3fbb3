"""The fit behind a normalisation: an image as a mixture of a template's tissue maps.

:class:`Problem` gives the cost of a :class:`State` (an affine and a bend) and its derivatives,
:func:`minimise` lowers it step by checked step. What is fitted in which order is
:mod:`.registration`'s business; sources are named there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ..kernels.sampling import SPLINE_FWHM, smooth_for_sums
from ..kernels.spline import value_and_gradient
from .template import Template

BOX_MARGIN_MM = 6.0  # of the box of the cosines around the brain
COSINES = (8, 9, 8)  # of the bend along x, y, z: details down to about 40 mm
BEND_SD_MM = 2.5  # expected size of the bend, beyond what the affine part explains
DAMPING = 1e-3  # of a step, relative to the curvature along each parameter
GAIN = 1e-3  # stop when a step lowers the cost by less than this per independent observation
GAIN_FWHM_MM = 25.0  # of the signal's gain: drop-out is as narrow, anatomy narrower
GAIN_ROUNDS = 2
GAIN_RANGE = (0.02, 3.0)
MISFIT_FWHM_MM = 20.0  # over which squared residuals are averaged
FAR_VOXELS = 1e6  # beyond every image
LENGTH_MM = 50.0  # a unit of shear or zoom moves points at this distance by one unit of mm


@dataclass(frozen=True)
class State:
    affine: np.ndarray  # [4, 4]
    coefficients: np.ndarray  # [3, Kz, Ky, Kx], mm


@dataclass(frozen=True)
class Image:
    data: np.ndarray  # [Z, Y, X]
    affine: np.ndarray

    @property
    def sharpest_mm(self) -> float:
        """What reading by spline sums smooths to along the longest edge of a voxel."""
        return SPLINE_FWHM * float(np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)).max())

    def smooth(self, fwhm_mm: float) -> np.ndarray:
        return smooth_for_sums(self.data, self.affine, fwhm_mm)


@lru_cache(maxsize=8)
def grid_of(template: Template, step_mm: float, margin_mm: float) -> TissueGrid:
    return TissueGrid(template, step_mm, margin_mm)


@lru_cache(maxsize=2)
def _distance(template: Template) -> np.ndarray:
    """How far each voxel lies outside the template's brain, mm."""
    from scipy import ndimage

    zoom = template.affine[0, 0]
    return ndimage.distance_transform_edt(~template.mask, sampling=zoom).astype(np.float32)


@lru_cache(maxsize=2)
def bend_box(template: Template) -> tuple[np.ndarray, np.ndarray]:
    """Low corner and edges (mm) of the box of the cosines: one for all grids of a template."""
    slices, step = _find_box(template, BOX_MARGIN_MM), max(1, round(4.0 / template.affine[0, 0]))
    zoom = template.affine[0, 0]
    first = np.array([s.start for s in slices])[::-1]
    size = np.array([-(-(s.stop - s.start) // step) * step for s in slices])[::-1]
    return template.affine[:3, 3] + (first - step / 2) * zoom, size * zoom


def _find_box(template: Template, margin_mm: float) -> tuple[slice, ...]:
    from scipy import ndimage

    near = _distance(template) <= margin_mm
    return ndimage.find_objects(ndimage.binary_dilation(near, iterations=2).astype(int))[0]


class TissueGrid:
    """Points of the template in and around its brain, and the cosines there."""

    def __init__(self, template: Template, step_mm: float, margin_mm: float):
        zoom = template.affine[0, 0]
        self.step = max(1, round(step_mm / zoom))
        self.spacing = self.step * zoom
        near, box = _distance(template) <= margin_mm, _find_box(template, margin_mm)
        self.slices = tuple(slice(s.start, s.stop, self.step) for s in box)
        self.inside = near[self.slices]
        self.brain = template.mask[self.slices][self.inside]
        first = np.array([s.start for s in box])[::-1]
        self.origin, self.extent = bend_box(template)
        self.first = template.affine[:3, 3] + first * zoom
        index = np.argwhere(self.inside)[:, ::-1] * self.step + first
        self.points = index * zoom + template.affine[:3, 3]

    @cached_property
    def bases(self):
        """Cosines along z, y and x: [n, K] each."""
        return [
            cosines(
                (self.first[i] + self.spacing * np.arange(n) - self.origin[i]) / self.extent[i], k
            )
            for i, n, k in zip((2, 1, 0), self.inside.shape, COSINES[::-1], strict=True)
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

    def blur(self, columns: np.ndarray, fwhm_mm: float) -> np.ndarray:
        """Sums of columns [C, N] over the points nearby, weighted by a Gaussian: [C, N]."""
        from scipy import ndimage

        sd = fwhm_mm / 2.355 / self.spacing
        blurred = (ndimage.gaussian_filter(one, sd) for one in self.fill(columns))
        return np.stack([one[self.inside] for one in blurred])

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


def cosines(place: np.ndarray, count: int) -> np.ndarray:
    """cos(pi k place), k < count: [N, count]; place runs from 0 to 1 over the box."""
    return np.cos(np.pi * place[:, None] * np.arange(count))


def _basis(columns: np.ndarray) -> np.ndarray:
    """What makes columns [N, C] orthonormal, multiplied by it from the right: [C, C]."""
    gram = (columns.T @ columns).astype(np.float64)
    ridge = 1e-5 * np.trace(gram) / len(gram) + 1e-12  # even where no point is inside
    low = np.linalg.cholesky(gram + ridge * np.eye(len(gram)))
    return np.linalg.inv(low).T.astype(np.float32)


def _contract(fields: np.ndarray, bases) -> np.ndarray:
    """Sum fields [C, Z, Y, X] against bases along z, y and x: [C, Kz, Ky, Kx]."""
    z, y, x = (b.astype(np.float32) for b in bases)
    out = fields @ x  # C Z Y Kx
    out = y.T @ out  # C Z Ky Kx
    shape = (len(fields), z.shape[1], y.shape[1], x.shape[1])
    return (z.T @ out.reshape(len(fields), z.shape[0], -1)).reshape(shape)


@dataclass(frozen=True)
class Match:
    """How an image fits in one state: what the cost and its derivatives are made of."""

    cost: float
    pull: np.ndarray  # [N] weighted residuals less (1 - R^2) of the centred image, 0 outside
    slopes: np.ndarray  # [N, 3] per mm of the image's world, weighted, 0 outside
    columns: np.ndarray  # [N, C] orthonormal: the intensity model, 0 outside
    places: np.ndarray  # [N, 3] world mm
    square: float  # sum of weighted squared residuals
    correlation: float
    inside: np.ndarray  # [N]


class Problem:
    """Match a smoothed image with columns of the template over a grid: cost and derivatives.

    The cost is ``M/2 log(1 - R^2) + 1/2 d' P d``: M independent observations with unknown noise,
    and the prior of the bend, d being how far its coefficients are from those of `around`. R^2 is
    taken within the field of view, so that moving to where the image is flat gains nothing. Every
    point weighs the same until :meth:`adapt` finds where the image is to be believed.
    """

    def __init__(
        self, image: Image, fwhm_mm, grid: TissueGrid, columns, *, rigid=False, bend=False,
        around=0.0, sd_mm=BEND_SD_MM,
    ):  # fmt: skip
        self.data = np.ascontiguousarray(image.smooth(fwhm_mm))
        self.inverse = np.linalg.inv(image.affine)
        self.grid, self.columns, self.bent = grid, columns, bend
        self.around, self.prior = around, np.tile(grid.precision, 3) * (BEND_SD_MM / sd_mm) ** 2
        redundancy = max(1.0, (fwhm_mm / grid.spacing) ** 3)
        self.count = len(grid.points) / redundancy  # of independent observations
        self.roots = np.ones(len(grid.points), np.float32)  # of the weights
        # the affine part rests while space bends: what both can do would add up and cancel
        self.generators = _generators(rigid)

    def place(self, state: State) -> np.ndarray:
        points = self.grid.points
        if state.coefficients.any():
            points = points + self.grid.bend(state.coefficients)[:, self.grid.inside].T
        return points @ state.affine[:3, :3].T + state.affine[:3, 3]

    def read(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values [N] (NaN outside) and slopes [N, 3] per mm at places [N, 3] in world mm."""
        index = places @ self.inverse[:3, :3].T + self.inverse[:3, 3]
        index = np.clip(index, -FAR_VOXELS, FAR_VOXELS)  # a wild step is only outside
        values = np.empty(len(index), np.float32)
        slopes = np.empty((len(index), 3), np.float32)
        value_and_gradient(self.data, index.astype(np.float32), values, slopes)
        return values, slopes @ self.inverse[:3, :3].astype(np.float32)

    def adapt(self, state: State) -> None:
        """Learn, from how the image fits in a state, where it is to be believed.

        What the mixture predicts is multiplied by a smooth gain: near 0 where signal drops out, so
        that what is missing does not pull, and elsewhere as the receive field has it. Points
        around which the mixture still fails weigh less: as under Student's t with few degrees of
        freedom (Lange and others 1989, JASA 84:881), by the mean square residual nearby.
        """
        values, _ = self.read(self.place(state))
        known = np.isfinite(values).astype(np.float32)
        values, columns = np.nan_to_num(values), self.columns * known[:, None]
        gain = np.ones(len(values), np.float32)
        for _ in range(GAIN_ROUNDS):
            basis = _basis(columns * gain[:, None])
            predicted = columns @ (basis @ (basis.T @ (columns.T @ (gain * values))))
            parts = np.stack([values * predicted, predicted**2])
            there, whole = self.grid.blur(parts, GAIN_FWHM_MM)
            gain = np.clip(there / np.maximum(whole, 1e-3 * whole.max() + 1e-12), *GAIN_RANGE)
        square = known * (values - gain * predicted) ** 2
        misfit, seen = self.grid.blur(np.stack([square, known]), MISFIT_FWHM_MM)
        misfit /= np.maximum(seen, 1e-3)
        self.columns = self.columns * gain[:, None]
        weights = 1 / (1 + misfit / (np.median(misfit) + 1e-12))
        self.roots = np.sqrt(weights)
        self.count *= float(weights.mean() ** 2 / (weights**2).mean())  # Kish's rule

    def measure(self, state: State) -> Match:
        places = self.place(state)
        values, slopes = self.read(places)
        inside = np.isfinite(values)
        roots = self.roots * inside
        values = np.where(inside, values, 0) * roots
        columns = self.columns * roots[:, None]
        columns = columns @ _basis(columns)
        residual = values - columns @ (columns.T @ values)
        centred = values - roots * (float(roots @ values) / max(float(roots @ roots), 1e-12))
        total = float(centred @ centred)
        square = float(residual @ residual) + 1e-12
        share = min(square / (total + 1e-12), 1e3)
        if inside.mean() < 0.2:
            share = 1e3
        cost = self.count / 2 * np.log(share)
        if self.bent:
            cost += 0.5 * float((state.coefficients - self.around).ravel() ** 2 @ self.prior)
        return Match(
            cost, residual - share * centred, slopes * roots[:, None], columns, places, square,
            float(np.sqrt(max(0.0, 1 - share))), inside,
        )  # fmt: skip

    def linearise(self, state: State, match: Match):
        """Hessian and gradient of the cost, intensity weights eliminated."""
        parts = self._by_bend if self.bent else self._by_affine
        hessian, gradient = parts(state, match)
        scale = self.count / match.square
        hessian, gradient = hessian * scale, gradient * scale
        if self.bent:
            hessian[np.diag_indices_from(hessian)] += self.prior
            gradient = gradient + self.prior * (state.coefficients - self.around).ravel()
        return hessian, gradient

    def _by_affine(self, state: State, match: Match):
        local = (match.places - match.places.mean(axis=0)) / LENGTH_MM
        moves = local @ self.generators[:, :3, :3].transpose(0, 2, 1)
        moves += self.generators[:, None, :3, 3]
        jacobian = np.einsum("gni,ni->gn", moves, match.slopes)
        cross = jacobian @ match.columns
        return jacobian @ jacobian.T - cross @ cross.T, jacobian @ match.pull

    def _by_bend(self, state: State, match: Match):
        """All sums over points are sums over a box, one axis after the other: J is never made."""
        slopes = (match.slopes @ state.affine[:3, :3].astype(np.float32)).T  # [3, N]
        stacked = np.vstack([match.columns.T, match.pull[None]])
        sums = [self.grid.project(stacked * slopes[i]) for i in range(3)]  # [C + 1, K] each
        blocks: list[list] = [[None] * 3 for _ in range(3)]
        for i in range(3):
            for j in range(i + 1):
                block = self.grid.gram(slopes[i] * slopes[j]) - sums[i][:-1].T @ sums[j][:-1]
                blocks[i][j], blocks[j][i] = block, block.T
        return np.block(blocks), np.concatenate([one[-1] for one in sums])

    def move(self, state: State, match: Match, step: np.ndarray) -> State:
        from scipy.linalg import expm

        count = len(self.generators)
        if self.bent:
            return State(state.affine, state.coefficients + step.reshape(state.coefficients.shape))
        shift = np.eye(4)
        shift[:3, 3] = match.places.mean(axis=0)
        velocity = np.einsum("g,gij->ij", step[:count], self.generators)
        velocity[:3, :3] /= LENGTH_MM
        affine = shift @ expm(velocity) @ np.linalg.inv(shift) @ state.affine
        return State(affine, state.coefficients)

    def allowed(self, state: State) -> bool:
        """Whether the bend is far from folding space."""
        return not self.bent or jacobian(self.grid, state.coefficients).min() > 0.25


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


def jacobian(grid: TissueGrid, coefficients: np.ndarray) -> np.ndarray:
    """Determinant [N] of the derivative of p + bend(p) at the inside points."""
    bend = grid.bend(coefficients)
    derivative = np.empty((*grid.inside.shape, 3, 3))
    for i in range(3):
        for j, along in enumerate(np.gradient(bend[i], grid.spacing)):
            derivative[..., i, 2 - j] = along
    return np.linalg.det((derivative + np.eye(3))[grid.inside])


def minimise(problem: Problem, state: State, max_steps: int) -> tuple[State, Match]:
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
        if gain < GAIN * problem.count:
            break
    return state, here


@lru_cache(maxsize=16)
def smooth_tissues(template: Template, grid: TissueGrid, fwhm_mm: float) -> np.ndarray:
    """Smoothed tissue maps at the grid's points, and times x, y, z: [N, 12]."""
    maps = [
        Image(one, template.affine).smooth(fwhm_mm)[grid.slices][grid.inside]
        for one in (template.grey, template.white, template.csf)
    ]
    return with_slopes(np.stack(maps, axis=1), grid)


def with_slopes(columns: np.ndarray, grid: TissueGrid) -> np.ndarray:
    centred = (grid.points - grid.points.mean(axis=0)) / LENGTH_MM
    parts = [columns, *(columns * centred[:, i : i + 1] for i in range(3))]
    return np.hstack(parts).astype(np.float32)
