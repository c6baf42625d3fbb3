"""A correction of distortion without a field map, tried against what the bend does already.

    python benchmarks/fieldmapless.py [--seeds 11] [--sd 2] [--cases dipole,12,j none,0,j ...]

The normalisation's bend gets a part along the phase-encoding axis with a size of its own (`--sd`,
mm), told from the anatomy's bend by the covariances of the two; what it finds is undone in the
image, which is then normalised as always. Heads and fields are known (tests/phantom.py,
tests/distorted.py): `bumps` are places where air meets brain, `dipole` the field of a head with
air in its sinuses. Printed: residual displacement along the axis over the brain, after what an
affine map explains of it, uncorrected and corrected (mean, 95th percentile, mm), and the
error of the normalisation (the same) with the bend alone, with the part along the axis in one
fit, and after undoing it. Not part of the pipeline (docs/results/distortion.md).
"""

from __future__ import annotations

import argparse
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np

SPACE = "MNI152NLin2009aSym"
CASES = ["bumps,12,j-", "dipole,12,j", "none,0,j", "dipole,6,j-", "bumps,6,j"]
FIELD_MM, FIELD_SIZE = 3.0, 96  # grid of the dipole field
#: Air in template mm: centre, radii.
CAVITIES = (
    ((0, 22, -46), (11, 12, 9)), ((0, 44, -44), (11, 17, 13)), ((0, 50, -60), (13, 22, 14)),
    ((0, 72, -20), (15, 6, 10)), ((34, 48, -58), (13, 14, 15)), ((-34, 48, -58), (13, 14, 15)),
    ((50, -30, -54), (9, 13, 14)), ((-50, -30, -54), (9, 13, 14)), ((0, 10, -80), (12, 16, 24)),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[11])
    parser.add_argument("--sd", type=float, default=2.0)
    parser.add_argument("--cases", nargs="+", default=CASES)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    for seed in options.seeds:
        for case in options.cases:
            kind, peak, direction = case.split(",")
            _try_case(kind, seed, float(peak), direction, options.sd)


def _try_case(kind: str, seed: int, peak_mm: float, direction: str, sd_mm: float) -> None:
    import phantom as ph
    from distorted import Head, scan_distorted

    from brainlm.preprocess.motion.brain_mask import brain_mask
    from brainlm.preprocess.normalise import registration
    from brainlm.preprocess.normalise.pose import find_pose
    from brainlm.preprocess.normalise.template import load_template
    from brainlm.preprocess.normalise.tissue_fit import Image, State

    template, head = load_template(SPACE), Head("3mm", seed, peak_mm)
    points = head._place[1][head.brain.ravel()]
    field = None if kind == "none" else head.field
    if kind == "dipole":
        shape = _Dipole(seed)
        field = _Dipole(seed, peak_mm / np.abs(shape(points)).max())
    image, affine = scan_distorted(seed, "3mm", field, direction)
    along = affine[:3, 1] / np.linalg.norm(affine[:3, 1])
    sign = -1.0 if direction.endswith("-") else 1.0

    def displace(places):
        return np.zeros(len(places)) if field is None else sign * field(places)

    def residual(shift):
        left = displace(points) - (0 if shift is None else (shift(points) - points) @ along)
        linear = np.c_[np.ones(len(points)), points / 50]
        return np.abs(left - linear @ np.linalg.lstsq(linear, left, rcond=None)[0])

    inside = np.argwhere(template.mask)[::7, ::-1] * template.affine[0, 0]
    inside = inside + template.affine[:3, 3]
    there = ph.make_subject(seed).place(inside)
    truth = there + displace(there)[:, None] * along

    def error(place):
        return np.linalg.norm(place(inside) - truth, axis=1)

    def bend(moving, start):
        state = registration._descend(
            moving, template, start, registration.BEND_FWHM_MM, bend=True
        )
        return registration.as_normalisation(template, state, "direct")

    def straighten(moving, start):
        return registration._descend(
            moving, template, start, registration.AFFINE_FWHM_MM[1:], bend=False
        )

    mask = brain_mask(image, affine)
    pose, _, _ = find_pose(image, mask, affine, template)
    moving = Image(image * mask, affine)
    straight = straighten(moving, State(pose, np.zeros((3, *registration.COSINES[::-1]))))
    plain = bend(moving, straight)
    total, shift = _fit_along(moving, template, straight, along, sd_mm)
    undone = shift.undo(image)
    corrected = Image(undone * brain_mask(undone, affine), affine)
    after = bend(corrected, straighten(corrected, straight))
    figures = [residual(None), residual(shift), error(plain), error(total)]
    figures.append(error(lambda places: shift(after(places))))
    texts = [f"{one.mean():.2f} {np.percentile(one, 95):.2f}" for one in figures]
    print(f"{kind} {peak_mm:g} mm {direction} seed {seed} | {' | '.join(texts)}", flush=True)


def _fit_along(moving, template, straight, along: np.ndarray, sd_mm: float):
    """The bend and displacement in one fit, and the displacement as a Shift on the image."""
    from brainlm.preprocess.distortion.shift import Shift, world_of
    from brainlm.preprocess.normalise import registration as fits
    from brainlm.preprocess.normalise import tissue_fit as tf

    grid = tf.grid_of(template, 4.0, 6.0)
    way = np.linalg.inv(straight.affine[:3, :3]) @ along
    anatomy = np.diag(1 / grid.precision)
    distortion = anatomy * (sd_mm / tf.BEND_SD_MM) ** 2
    both = np.kron(np.outer(way, way), distortion) + np.kron(np.eye(3), anatomy)
    precision = np.linalg.inv(both)

    class Joint(tf.Problem):
        """The bend's prior is that of a bend and a displacement along one axis."""

        def measure(self, state):
            from dataclasses import replace

            self.bent = False
            match = super().measure(state)
            self.bent = True
            flat = state.coefficients.ravel()
            return replace(match, cost=match.cost + 0.5 * float(flat @ precision @ flat))

        def linearise(self, state, match):
            hessian, gradient = self._by_bend(state, match)
            scale = len(match.pull) / self.redundancy / match.square
            flat = state.coefficients.ravel()
            return hessian * scale + precision, gradient * scale + precision @ flat

    state = straight
    for fwhm in fits.BEND_FWHM_MM:
        columns = tf.smooth_tissues(template, grid, fwhm)
        state, _ = tf.minimise(Joint(moving, fwhm, grid, columns, bend=True), state, 6)
    share = np.kron(way[None], distortion) @ precision @ state.coefficients.ravel()
    one = np.zeros_like(state.coefficients)
    one[0] = share.reshape(one[0].shape)
    found = fits.Normalisation(np.eye(4), one, grid.origin, grid.extent)
    back = np.linalg.inv(state.affine)
    places = world_of(moving.data.shape, moving.affine) @ back[:3, :3].T + back[:3, 3]
    places = np.clip(places, grid.origin, grid.origin + grid.extent)
    mm = found.bend(places)[:, 0].reshape(moving.data.shape).astype(np.float32)
    return fits.as_normalisation(template, state, "direct"), Shift(mm, moving.affine, 1)


class _Dipole:
    """Displacement at head positions [N, 3]: the field of a head whose sinuses are full of air."""

    def __init__(self, seed: int, scale: float = 1.0):
        import phantom as ph

        self.values, self.grid = _solve_dipoles(seed)
        self.subject, self.scale = ph.make_subject(seed), scale

    def __call__(self, points: np.ndarray) -> np.ndarray:
        from brainlm.preprocess.distortion.shift import read_linear

        return self.scale * read_linear(self.values, self.grid, self.subject.find(points))


@lru_cache(maxsize=4)
def _solve_dipoles(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Field [Z, Y, X] in template space, shimmed linearly, of any unit; and its grid."""
    from scipy import ndimage

    from brainlm.preprocess.distortion.shift import read_linear, world_of
    from brainlm.preprocess.normalise.template import load_template

    template, rng, n = load_template(SPACE), np.random.default_rng([77, seed]), FIELD_SIZE
    grid = np.diag([FIELD_MM, FIELD_MM, FIELD_MM, 1.0])
    grid[:3, 3] = (-144, -160, -150)
    world = world_of((n, n, n), grid)
    brain = read_linear(template.mask.astype(np.float32), template.affine, world) > 0.5
    brain = brain.reshape(n, n, n)
    x, y, z = world.T.reshape(3, n, n, n)
    far = ndimage.distance_transform_edt(~brain, sampling=FIELD_MM)
    face = (np.abs(x) < 62) & (y > -20) & (z < 0) & (z > -115)
    face &= (x / 68) ** 2 + ((y - 20) / 72) ** 2 < 1
    neck = ((x / 58) ** 2 + ((y + 20) / 62) ** 2 < 1) & (z < -40)
    head = ndimage.binary_closing((far < 14) | face | neck, iterations=3)
    air = np.zeros_like(head)
    for middle, radii in CAVITIES:
        at = np.array(middle) + rng.normal(size=3) * 3
        size = np.array(radii) * rng.uniform(0.75, 1.25, 3)
        offsets = zip((x, y, z), at, size, strict=True)
        air |= sum(((a - c) / r) ** 2 for a, c, r in offsets) < 1
    extra = np.zeros((2 * n,) * 3)
    extra[:n, :n, :n] = np.where(head & ~(air & (far >= 5)), -9.41, 0)  # ppm against air
    kz, ky, kx = np.meshgrid(*[np.fft.fftfreq(2 * n)] * 3, indexing="ij")
    square = kx**2 + ky**2 + kz**2
    square[0, 0, 0] = 1
    tilt = np.deg2rad(6) * rng.normal()
    kernel = 1 / 3 - (kz * np.cos(tilt) + ky * np.sin(tilt)) ** 2 / square
    kernel[0, 0, 0] = 0
    values = np.fft.ifftn(np.fft.fftn(extra) * kernel).real[:n, :n, :n]
    values = ndimage.gaussian_filter(values, 14.0 / 2.355 / FIELD_MM)
    near = ndimage.binary_dilation(brain)  # beyond it as at its edge: nothing folds
    nearest = ndimage.distance_transform_edt(~near, return_distances=False, return_indices=True)
    values = ndimage.gaussian_filter(values[tuple(nearest)], 8.0 / 2.355 / FIELD_MM)
    linear = np.stack([np.ones_like(x), x / 50, y / 50, z / 50], axis=-1)
    shim = np.linalg.lstsq(linear[brain], values[brain], rcond=None)[0]
    return values - linear @ shim, grid


if __name__ == "__main__":
    main()
