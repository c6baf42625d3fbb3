"""Compiled kernels on lines of voxels: what a field of shifts along one axis needs.

Self-contained, as numba's cache on disk watches only the file of a function.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_POLE = math.sqrt(3) - 2
_HORIZON = 16  # pole**16 < 1e-9


@njit(cache=True, nogil=True)
def filter_lines(first, last, lines, coefficients):
    """Cubic B-spline coefficients [A, B, N] of lines [A, B, N] along their last axis."""
    n = lines.shape[2]
    row = np.empty(n)
    for a in range(first, last):
        for b in range(lines.shape[1]):
            for i in range(n):
                row[i] = 6.0 * lines[a, b, i]
            total, power = 0.0, 1.0
            for k in range(min(_HORIZON, n)):
                total += power * row[k]
                power *= _POLE
            row[0] = total
            for i in range(1, n):
                row[i] += _POLE * row[i - 1]
            row[n - 1] = _POLE / (_POLE * _POLE - 1) * (row[n - 1] + _POLE * row[n - 2])
            for i in range(n - 2, -1, -1):
                row[i] = _POLE * (row[i + 1] - row[i])
            for i in range(n):
                coefficients[a, b, i] = row[i]


@njit(cache=True, nogil=True)
def pull_lines(first, last, coefficients, shift, scale, values, slopes):
    """Values and slopes (per voxel) at n + scale * shift[n] of each line.

    Beyond the ends of a line the outermost value goes on, with a slope of 0.

    Parameters
    ----------
    coefficients : float32 [A, B, N]
        Of :func:`filter_lines`.
    shift : float32 [A, B, N]
        Voxels, for a scale of 1.
    values, slopes : float32 [A, B, N]
        Results.
    """
    n = coefficients.shape[2]
    for a in range(first, last):
        for b in range(coefficients.shape[1]):
            line = coefficients[a, b]
            for i in range(n):
                x = i + scale * shift[a, b, i]
                inside = 0 <= x <= n - 1
                x = min(max(x, 0.0), n - 1.0)
                j = min(int(x), n - 2)
                t = x - j
                u = 1 - t
                below = line[j - 1] if j > 0 else line[1]
                above = line[j + 2] if j < n - 2 else line[n - 2]
                values[a, b, i] = (
                    u * u * u * below + (4 - t * t * (6 - 3 * t)) * line[j]
                    + (4 - u * u * (6 - 3 * u)) * line[j + 1] + t * t * t * above
                ) / 6  # fmt: skip
                slopes[a, b, i] = (
                    -u * u * below + t * (3 * t - 4) * line[j] + u * (4 - 3 * u) * line[j + 1]
                    + t * t * above
                ) / 2 * inside  # fmt: skip


@njit(cache=True, nogil=True)
def multiply_normal(x, diagonal, slope, stiff, along, across, out):
    """(J^T J + D^T stiff D + roughness) x, for J = diagonal + slope D and D the central slope.

    Parameters
    ----------
    x, diagonal, slope, stiff : float32 [A, B, N]
        D is per voxel along the last axis, 0 at both ends.
    along : float
        Of the roughness: weight of squared differences of neighbours in a line.
    across : (float, float)
        Likewise along A and B.
    out : float32 [A, B, N]
    """
    na, nb, n = x.shape
    flow = np.zeros(n)
    for a in range(na):
        for b in range(nb):
            line = x[a, b]
            for i in range(n):
                steep = 0.5 * (line[i + 1] - line[i - 1]) if 0 < i < n - 1 else 0.0
                image = diagonal[a, b, i] * line[i] + slope[a, b, i] * steep
                flow[i] = slope[a, b, i] * image + stiff[a, b, i] * steep
                out[a, b, i] = diagonal[a, b, i] * image
            for i in range(1, n - 1):
                out[a, b, i + 1] += 0.5 * flow[i]
                out[a, b, i - 1] -= 0.5 * flow[i]
            for i in range(n):
                rough = 0.0
                if i > 0:
                    rough += along * (line[i] - line[i - 1])
                if i < n - 1:
                    rough += along * (line[i] - line[i + 1])
                if a > 0:
                    rough += across[0] * (line[i] - x[a - 1, b, i])
                if a < na - 1:
                    rough += across[0] * (line[i] - x[a + 1, b, i])
                if b > 0:
                    rough += across[1] * (line[i] - x[a, b - 1, i])
                if b < nb - 1:
                    rough += across[1] * (line[i] - x[a, b + 1, i])
                out[a, b, i] += rough
