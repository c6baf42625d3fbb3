"""How a head lies: the pose that its header states, or one of the 23 others it may have meant.

A fit to an average brain always ends somewhere: the outline of anything roundish correlates with
the outline of a brain. What tells a right pose from a wrong one, and a brain from noise in the
shape of one, is the inside. :class:`Interior` measures it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from .template import Template
from .tissue_fit import COSINES, Image, Problem, State, grid_of, minimise, smooth_tissues

POSE_FWHM_MM = 12.0
INTERIOR_FWHM_MM = 8.0
INTERIOR_DEPTH_MM = 8.0  # below the brain's surface
INTERIOR_ORDER = 4  # of the polynomial that is taken away: bias fields, and most of smooth noise
#: Agreement inside above which no other pose is tried, and below which there is no brain
#: (docs/results/registration.md has the distributions that these are read from).
SURE_INTERIOR, MIN_INTERIOR = 0.35, 0.25
NEAR_TURN_DEG = 30.0  # heads lie within this of their axes; a fit so near to a turn is that turn

Turned = tuple[str, float]  # in words, and the agreement inside


class Interior:
    """Points deep in the template's brain, and the tissue there."""

    def __init__(self, template: Template):
        from scipy import ndimage

        self.grid = grid_of(template, 8.0, 0.0)
        depth = ndimage.distance_transform_edt(template.mask, sampling=template.affine[0, 0])
        depth = depth[self.grid.slices][self.grid.inside]
        self.deep = depth >= INTERIOR_DEPTH_MM
        self.tissue = smooth_tissues(template, self.grid, INTERIOR_FWHM_MM)[:, :3]
        x, y, z = (self.grid.points / 50.0).T  # mm to about one
        powers = itertools.product(range(INTERIOR_ORDER + 1), repeat=3)
        smooth = [x**i * y**j * z**k for i, j, k in powers if i + j + k <= INTERIOR_ORDER]
        self.smooth = np.column_stack([*smooth, depth, np.sqrt(depth)])

    def of(self, image: Image) -> Problem:
        """An image, smoothed once, for as many poses as are to be compared."""
        return Problem(image, INTERIOR_FWHM_MM, self.grid, self.tissue)

    def agree(self, image: Problem, place: Callable[[np.ndarray], np.ndarray]) -> float:
        """Correlation 0..1 of image and tissue mixture, less what is smooth or follows the edge.

        Parameters
        ----------
        image : Problem
            Of :meth:`of`.
        place : callable
            Template mm [N, 3] -> world mm of the image.
        """
        values, _ = image.read(place(self.grid.points))
        known = self.deep & np.isfinite(values)
        if known.sum() < 5 * self.smooth.shape[1]:
            return 0.0
        smooth, _ = np.linalg.qr(self.smooth[known])
        columns = np.column_stack([values, self.tissue])[known].astype(np.float64)
        columns -= smooth @ (smooth.T @ columns)
        value, tissue = columns[:, 0], columns[:, 1:]
        rest = value - tissue @ np.linalg.lstsq(tissue, value, rcond=1e-6)[0]
        return float(np.sqrt(max(0.0, 1 - (rest @ rest) / max(value @ value, 1e-12))))


@lru_cache(maxsize=2)
def interior_of(template: Template) -> Interior:
    return Interior(template)


def find_pose(
    image: np.ndarray, mask: np.ndarray, affine: np.ndarray, template: Template
) -> tuple[np.ndarray, float, Turned | None]:
    """The affine that the stated pose leads to, how well it agrees inside, and a better pose.

    Returns
    -------
    affine : float64 [4, 4]
        Template mm -> world mm, roughly.
    agreement : float
    turned : (str, float) or None
        The turn that agrees best, in words, with its agreement; None where the stated pose is
        sure enough that no other was tried.
    """
    moving = Image(image * mask, affine)
    inside = interior_of(template)
    smoothed = inside.of(moving)
    index = np.argwhere(mask)[:, ::-1]
    centre = index.mean(axis=0) @ affine[:3, :3].T + affine[:3, 3]
    grid = grid_of(template, 12.0, 8.0)
    middle = grid.points[grid.brain].mean(axis=0)
    tissue = smooth_tissues(template, grid, POSE_FWHM_MM)
    problem = Problem(moving, POSE_FWHM_MM, grid, tissue)

    def descend(starts: list[tuple[np.ndarray, float]], steps: int) -> tuple[float, State]:
        """A few steps from each start, `steps` from the best: agreement inside, and where."""
        tried = []
        for turn, shift in starts:
            start = np.eye(4)
            start[:3, :3] = turn
            start[:3, 3] = centre + np.array([0, 0, shift]) - turn @ middle
            state, match = minimise(problem, State(start, np.zeros((3, *COSINES[::-1]))), 5)
            tried.append((match.correlation, state))
        state, _ = minimise(problem, max(tried, key=lambda one: one[0])[1], steps)
        return inside.agree(smoothed, lambda points: _apply(state.affine, points)), state

    pitched = [(rotate_x(angle), 0.0) for angle in (0, -20, 20)]
    agreement, state = descend(pitched + [(np.eye(3), shift) for shift in (-20.0, 20.0)], 20)
    if agreement >= SURE_INTERIOR:
        return state.affine, agreement, None
    others = {_describe(turn): descend([(turn, 0.0)], 5)[0] for turn in axis_turns()[1:]}
    return state.affine, agreement, max(others.items(), key=lambda one: one[1])


def axis_turns() -> list[np.ndarray]:
    """The 24 rotations [3, 3] that bring axes onto axes, the upright one first.

    They stand for the 48 ways to mix up axes: the template is left-right symmetric, and a mirrored
    head is a turned one to it.
    """
    return sorted(_signed_permutations(), key=lambda turn: -np.trace(turn))


def _signed_permutations() -> Iterator[np.ndarray]:
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            turn = np.zeros((3, 3))
            turn[order, range(3)] = signs
            if np.linalg.det(turn) > 0:
                yield turn


def rotate_x(degrees: float) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("x", degrees, degrees=True).as_matrix()


def describe_turn(affine: np.ndarray) -> str:
    """The axis turn that an affine's rotation is near to, in words; "" if there is none.

    A thin slab that lies on its side can be turned upright by the fit itself.
    """
    from scipy.linalg import polar

    rotation = polar(affine[:3, :3])[0]
    turns = axis_turns()
    traces = [float((turn * rotation).sum()) for turn in turns]
    nearest = int(np.argmax(traces))
    angle = np.rad2deg(np.arccos(np.clip((traces[nearest] - 1) / 2, -1, 1)))
    return _describe(turns[nearest]) if nearest and angle <= NEAR_TURN_DEG else ""


_MIRRORED = {
    "x": "upside-down and back to front",
    "y": "or mirrored in z: upside-down",
    "z": "or mirrored in y: back to front",
}


def _describe(turn: np.ndarray) -> str:
    """``turned by 90° about z``, or where the head's axes lie."""
    from scipy.spatial.transform import Rotation

    vector = Rotation.from_matrix(turn).as_rotvec(degrees=True)
    along = np.flatnonzero(np.abs(vector) > 1)
    if len(along) == 1:
        axis, angle = "xyz"[along[0]], float(vector[along[0]])
        if abs(angle) > 135:
            return f"turned by 180° about {axis} ({_MIRRORED[axis]})"
        return f"turned by {angle:.0f}° about {axis}"
    row = np.abs(turn).argmax(axis=0)
    signed = ("-+"[int(turn[r, c] > 0)] + "xyz"[r] for c, r in enumerate(row))
    return "with the head's right, front and top along its {}, {} and {}".format(*signed)


def _apply(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ affine[:3, :3].T + affine[:3, 3]
