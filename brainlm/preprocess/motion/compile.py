"""Compile every kernel of the image stages: ``python -m brainlm.preprocess.motion.compile``.

The installation does it once (envs/install.sh), for half a minute of processor time. Where that
was not done, or for another kind of processor, the first jobs do it, each for itself.
"""

from __future__ import annotations

import numpy as np

from ..kernels import lines
from ..kernels.unwrap import unwrap
from .rigid import Motion, estimate_motion


def compile_kernels() -> Motion:
    """Estimate the motion of a small ball: it calls every kernel, and numba keeps each."""
    z, y, x = np.mgrid[-10:10, -10:10, -10:10] + 0.5
    radius = np.sqrt(z**2 + y**2 + x**2)
    texture = np.cos(x / 2) * np.cos(y / 2 + 1) * np.cos(z / 2 + 2)
    ball = np.where(radius < 8, 1000 + 300 * texture, 10).astype(np.float32)
    volumes = ball * (1 + 0.01 * np.arange(5, dtype=np.float32)[:, None, None, None])
    _compile_lines(ball)
    return estimate_motion(volumes, np.diag([3.0, 3.0, 3.0, 1.0]), mask=radius < 8)


def _compile_lines(image: np.ndarray) -> None:
    """What the correction of distortion calls."""
    a, b, c = (np.zeros_like(image) for _ in range(3))
    lines.filter_lines(0, len(image), image, a)
    lines.pull_lines(0, len(image), a, b, 1.0, b, c)
    lines.multiply_normal(a, a, a, a, 1.0, (1.0, 1.0), b)
    turns, done = np.zeros(image.shape), np.zeros(image.shape, bool)
    unwrap(turns, image > 0, (0, 0, 0), turns, done)


if __name__ == "__main__":
    compile_kernels()
