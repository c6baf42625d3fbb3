"""The field between two images that were read out in opposite directions.

A point u lies at ``u + s c(u)`` in an image of readout s, and its signal is spread or crowded:
``image(u + s c(u)) (1 + s c'(u))`` is the same for both. The field c that makes it so is found by
Gauss-Newton steps on the difference, level by level from coarse to fine, with a prior that it is
smooth and that it never folds space.

Source: the model of Andersson, Skare and Ashburner 2003, NeuroImage 20:870; the discretisation
along lines and the barrier of Ruthotto et al. 2012, Physics in Medicine and Biology 57:5715.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..kernels.lines import filter_lines, multiply_normal, pull_lines

#: Level by level: smoothing of the images (FWHM, mm) and the voxels that are joined (mm).
LEVELS = ((10.0, 6.0), (6.0, 4.0), (3.0, 0.0))
SMOOTHNESS = 0.03  # weight of squared slopes of the field (mm per mm), images scaled to 1
BARRIER = 0.02  # of what keeps slopes of the field below 1
STEPS, SOLVES = 8, 25  # Gauss-Newton steps a level, conjugate gradients a step
DARK = 0.1  # of the bright level, at the ends of lines that signal does not leave
GAIN = 2e-3  # a level ends when a step lowers the cost by less than this share


@dataclass(frozen=True)
class Lines:
    """One of the two images.

    Attributes
    ----------
    lines : float32 [A, B, N]
        The phase-encoding axis last.
    scale : float
        Its readout: signed, relative to the field's.
    """

    lines: np.ndarray
    scale: float


def estimate_field(
    first: Lines, second: Lines, zooms: tuple[float, float, float], levels=LEVELS
) -> np.ndarray:
    """Displacement [A, B, N] along the last axis, mm, of a readout of scale 1.

    Parameters
    ----------
    first, second : Lines
        Images of the same head on the same grid, their scales of opposite sign.
    zooms : tuple of float
        mm between voxels along A, B and N.
    levels : sequence of (float, float)
        As in LEVELS.
    """
    pair = _scale(first, second)
    field = np.zeros(tuple(2 for _ in zooms), np.float32)
    for fwhm, step in levels:
        images = [Lines(_smooth(one.lines, zooms, fwhm), one.scale) for one in pair]
        extent = np.array(pair[0].lines.shape) * zooms
        shape = np.maximum(8, np.rint(extent / np.maximum(step, zooms))).astype(int)
        images = [Lines(_resize(one.lines, shape), one.scale) for one in images]
        field = _descend(images, _resize(field, shape), extent / shape)
    return _resize(field, pair[0].lines.shape)


def _scale(first: Lines, second: Lines) -> list[Lines]:
    """Both with a mean of 1 where there is signal.

    A field moves signal along a line and loses none, unless it leaves the image: lines that are
    dark at both ends have the same sum in both images but for their gains.
    """
    kept = _dark_ends(first.lines) & _dark_ends(second.lines)
    kept = kept if kept.mean() > 0.1 else np.ones_like(kept)
    means = [one.lines[kept].mean() for one in (first, second)]
    total = first.lines / means[0] + second.lines / means[1]
    level = total[total > 0.5 * np.percentile(total, 98)].mean() / 2
    return [
        Lines(one.lines / np.float32(mean * level), one.scale)
        for one, mean in zip((first, second), means, strict=True)
    ]


def _dark_ends(lines: np.ndarray) -> np.ndarray:
    """Which lines [A, B] hold no signal in the three voxels at either end, but noise."""
    ends = np.maximum(lines[..., :3].max(-1), lines[..., -3:].max(-1))
    return ends < DARK * np.percentile(lines, 98)


def _smooth(lines: np.ndarray, zooms, fwhm: float) -> np.ndarray:
    from scipy import ndimage

    sd = np.sqrt(np.maximum(fwhm**2 - np.square(zooms), 0)) / 2.355 / zooms
    return ndimage.gaussian_filter(lines, sd, mode="nearest")


def _resize(values: np.ndarray, shape) -> np.ndarray:
    """The same extent on another number of voxels, linearly."""
    from scipy import ndimage

    if values.shape == tuple(shape):
        return values
    ratio = np.array(values.shape) / shape
    return ndimage.affine_transform(
        values, np.diag(ratio), (ratio - 1) / 2, output_shape=tuple(shape), order=1,
        mode="nearest", output=np.float32,
    )  # fmt: skip


def _descend(images: list[Lines], field: np.ndarray, zooms) -> np.ndarray:
    """Gauss-Newton at one level; a step that raises the cost or folds space is halved."""
    problem = _Problem(images, zooms)
    here = problem.measure(field)
    for _ in range(STEPS):
        step = problem.solve(here)
        before = here.cost
        for halving in range(6):
            candidate = problem.measure(field + step / np.float32(2**halving))
            if candidate.cost < here.cost:
                field, here = field + step / np.float32(2**halving), candidate
                break
        if before - here.cost < GAIN * before:
            break
    return field


@dataclass(frozen=True)
class _Match:
    cost: float
    gradient: np.ndarray
    diagonal: np.ndarray  # of the derivative of the difference with respect to the field
    slope: np.ndarray  # and with respect to its slope per voxel
    stiff: np.ndarray  # curvature of the barrier


class _Problem:
    """The difference of two images in a field [A, B, N] of mm, with its derivatives."""

    def __init__(self, images: list[Lines], zooms):
        self.images, self.zooms = images, zooms
        self.lines = [np.empty_like(one.lines) for one in images]
        for one, out in zip(images, self.lines, strict=True):
            filter_lines(0, len(out), one.lines, out)
        self.rough = [SMOOTHNESS / zoom**2 for zoom in zooms]
        self.reach = max(abs(one.scale) for one in images)

    def read(self, field: np.ndarray):
        shift = field / np.float32(self.zooms[2])
        stretch, place = slope_of(shift), np.arange(field.shape[2], dtype=np.float32)
        found, known = [], np.ones(field.shape, bool)
        for one, lines in zip(self.images, self.lines, strict=True):
            values, slopes = np.empty_like(lines), np.empty_like(lines)
            pull_lines(0, len(lines), lines, shift, one.scale, values, slopes)
            found.append((values, slopes, 1 + one.scale * stretch, np.float32(one.scale)))
            at = place + np.float32(one.scale) * shift
            known &= (at >= 0) & (at <= field.shape[2] - 1)
        return stretch, known, found

    def measure(self, field: np.ndarray) -> _Match:
        stretch, known, ((v1, d1, j1, s1), (v2, d2, j2, s2)) = self.read(field)
        z = self.reach * stretch
        if np.abs(z).max() >= 1:
            return _Match(np.inf, field, field, field, field)
        rest = (v1 * j1 - v2 * j2) * known  # nothing is known of what left the image
        zoom = np.float32(self.zooms[2])
        diagonal = (s1 * d1 * j1 - s2 * d2 * j2) / zoom * known
        slope = (s1 * v1 - s2 * v2) / zoom * known
        room = 1 - z * z
        weight = BARRIER
        push = weight * (4 * z**3 / room + 2 * z**5 / room**2) * self.reach / zoom
        stiff = weight * (12 * z**2 / room + 18 * z**4 / room**2 + 8 * z**6 / room**3)
        rough = self.roughen(field)
        cost = 0.5 * float(np.vdot(rest, rest)) + 0.5 * float(np.vdot(field, rough))
        cost += weight * float((z**4 / room).sum())
        gradient = diagonal * rest + spread(slope * rest + push) + rough
        return _Match(
            cost, gradient, diagonal, slope, stiff * np.float32((self.reach / zoom) ** 2)
        )

    def roughen(self, field: np.ndarray) -> np.ndarray:
        nothing, out = np.zeros_like(field), np.empty_like(field)
        self.multiply(field, nothing, nothing, nothing, out)
        return out

    def multiply(self, x, diagonal, slope, stiff, out):
        across = (self.rough[0], self.rough[1])
        multiply_normal(x, diagonal, slope, stiff, self.rough[2], across, out)

    def solve(self, match: _Match) -> np.ndarray:
        """The step, by conjugate gradients with a diagonal preconditioner."""
        scale = match.diagonal**2 + 0.5 * (match.slope**2 + match.stiff) + 2 * sum(self.rough)
        x, r = np.zeros_like(match.gradient), -match.gradient
        y = r / scale
        p, product = y.copy(), np.empty_like(x)
        rho = first = float(np.vdot(r, y))
        for _ in range(SOLVES):
            if rho <= 1e-4 * first or not rho > 0:
                break
            self.multiply(p, match.diagonal, match.slope, match.stiff, product)
            alpha = np.float32(rho / float(np.vdot(p, product)))
            x += alpha * p
            r -= alpha * product
            y = r / scale
            rho, before = float(np.vdot(r, y)), rho
            p = y + np.float32(rho / before) * p
        return x


def slope_of(shift: np.ndarray) -> np.ndarray:
    """Central differences [A, B, N] along the last axis, per voxel; 0 at both ends."""
    out = np.zeros_like(shift)
    out[..., 1:-1] = 0.5 * (shift[..., 2:] - shift[..., :-2])
    return out


def spread(flow: np.ndarray) -> np.ndarray:
    """The transpose of :func:`slope_of`."""
    out = np.zeros_like(flow)
    out[..., 2:] += 0.5 * flow[..., 1:-1]
    out[..., :-2] -= 0.5 * flow[..., 1:-1]
    return out
