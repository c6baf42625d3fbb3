"""Compiled cubic B-spline kernels: the only numba code of motion, sampling and normalisation.

They live in one file because numba's on-disk cache watches the file of a function, not the files
of the functions it calls. No kernel is ``parallel``: they release the GIL and work on volumes
``first <= t < last``, so that :func:`in_threads` spreads them over as many threads as numba may
use; results do not depend on that number, compilation stays short, and forking stays safe.

A cubic B-spline sum over *coefficients* (prefiltered voxels) interpolates. The same sum over the
*voxels themselves* smooths (FWHM 1.36 voxel) and interpolates at once, with continuous second
derivatives, which is what a registration wants, at no cost.
Source: Unser 1999, IEEE Signal Processing Magazine 16(6):22, equations 6-16.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numba
import numpy as np
from numba import njit

# Lets the compiler turn neighbouring scalar sums into vector registers (off in numba by default):
# the 64-term sum takes half the time.
numba.config.SLP_VECTORIZE = True  # type: ignore[attr-defined]

# No "nnan"/"ninf": NaN marks what could not be read.
FAST = {"contract", "reassoc", "nsz", "arcp"}

_F0, _F1, _F3, _F4, _F6 = (np.float32(value) for value in (0, 1, 3, 4, 6))
_SIXTH, _HALF = np.float32(1 / 6), np.float32(0.5)
_U1, _U2, _U3 = np.uint64(1), np.uint64(2), np.uint64(3)
_POLE = np.float32(math.sqrt(3) - 2)
_TAIL = np.float32(_POLE / (_POLE * _POLE - 1))
_BLOCK = 64  # points whose places are worked out together, in vector registers
_TILE = 16  # rows that are filtered together
_HORIZON = 16  # pole**16 < 1e-9: further terms are below float32

PARAMETERS = 10  # of a fit: 3 translations, 3 rotations, gain and its gradient along x, y, z


def in_threads(kernel: Callable, count: int, *arguments) -> None:
    """Call ``kernel(first, last, *arguments)`` over blocks that cover ``range(count)``.

    As many threads as numba is allowed (``NUMBA_NUM_THREADS``, ``numba.set_num_threads``).
    """
    from concurrent.futures import ThreadPoolExecutor

    threads = min(numba.get_num_threads(), count)
    if threads <= 1:
        kernel(0, count, *arguments)
        return
    edges = np.linspace(0, count, min(count, 4 * threads) + 1).astype(int)
    kernel(0, 0, *arguments)  # compile or load once, before the threads ask for it together
    with ThreadPoolExecutor(threads) as pool:
        jobs = [
            pool.submit(kernel, int(first), int(last), *arguments)
            for first, last in itertools.pairwise(edges)
        ]
        for job in jobs:
            job.result()


@njit(cache=True, nogil=True, fastmath=FAST)
def _weights(t):
    """Cubic B-spline at 1 + t, t, 1 - t and 2 - t, for 0 <= t <= 1."""
    u = _F1 - t
    return (
        u * u * u * _SIXTH,
        (_F4 - t * t * (_F6 - _F3 * t)) * _SIXTH,
        (_F4 - u * u * (_F6 - _F3 * u)) * _SIXTH,
        t * t * t * _SIXTH,
    )


@njit(cache=True, nogil=True, fastmath=FAST)
def _locate(row, points, first, count, places, index, weights):
    """Place, voxel below and four weights along one axis, of points first <= n < first + count.

    Parameters
    ----------
    row : float64 [4]
        Of the affine that takes points [3, N] to voxels, for this axis.
    places : float64 [_BLOCK], index : int32 [_BLOCK], weights : float32 [4, _BLOCK]
        Results.
    """
    p, q, r, s = row[0], row[1], row[2], row[3]
    for k in range(count):
        n = first + k
        x = p * points[0, n] + q * points[1, n] + r * points[2, n] + s
        places[k] = x
        below = math.floor(min(max(x, -1e6), 1e6))  # what an int32 holds
        t = np.float32(x - below)
        u = _F1 - t
        index[k] = np.int32(below)
        weights[0, k] = u * u * u * _SIXTH
        weights[1, k] = (_F4 - t * t * (_F6 - _F3 * t)) * _SIXTH
        weights[2, k] = (_F4 - u * u * (_F6 - _F3 * u)) * _SIXTH
        weights[3, k] = t * t * t * _SIXTH


@njit(cache=True, nogil=True)
def _column(weights, k):
    return weights[0, k], weights[1, k], weights[2, k], weights[3, k]


@njit(cache=True, nogil=True, fastmath=FAST)
def _slopes(t):
    """Derivatives of the four weights with respect to position."""
    u = _F1 - t
    return (
        -u * u * _HALF,
        t * (_F3 * t - _F4) * _HALF,
        u * (_F4 - _F3 * u) * _HALF,
        t * t * _HALF,
    )


@njit(cache=True, nogil=True)
def _mirror(index, size):
    """Reflect an index about the centres of the outermost voxels."""
    if size == 1:
        return 0
    index = abs(index)
    while index >= size:
        index = abs(2 * size - 2 - index)
    return index


@njit(cache=True, nogil=True, fastmath=FAST)
def _plane(flat, p, row, b):
    """Four sums over y, one for each of four neighbouring x: one vector register."""
    q, r, s = p + row, p + row + row, p + row + row + row
    b0, b1, b2, b3 = b
    return (
        b0 * flat[p] + b1 * flat[q] + b2 * flat[r] + b3 * flat[s],
        b0 * flat[p + _U1] + b1 * flat[q + _U1] + b2 * flat[r + _U1] + b3 * flat[s + _U1],
        b0 * flat[p + _U2] + b1 * flat[q + _U2] + b2 * flat[r + _U2] + b3 * flat[s + _U2],
        b0 * flat[p + _U3] + b1 * flat[q + _U3] + b2 * flat[r + _U3] + b3 * flat[s + _U3],
    )


@njit(cache=True, nogil=True, fastmath=FAST)
def _inner_sum(flat, ny, nx, ix, iy, iz, a, b, c):
    """The 64-term sum where all neighbours exist (1 <= i <= n - 3 on each axis)."""
    row = np.uint64(nx)
    page = np.uint64(nx * ny)
    p = np.uint64(((iz - 1) * ny + iy - 1) * nx + ix - 1)
    k0 = _plane(flat, p, row, b)
    k1 = _plane(flat, p + page, row, b)
    k2 = _plane(flat, p + page + page, row, b)
    k3 = _plane(flat, p + page + page + page, row, b)
    c0, c1, c2, c3 = c
    return (
        a[0] * (c0 * k0[0] + c1 * k1[0] + c2 * k2[0] + c3 * k3[0])
        + a[1] * (c0 * k0[1] + c1 * k1[1] + c2 * k2[1] + c3 * k3[1])
        + a[2] * (c0 * k0[2] + c1 * k1[2] + c2 * k2[2] + c3 * k3[2])
        + a[3] * (c0 * k0[3] + c1 * k1[3] + c2 * k2[3] + c3 * k3[3])
    )


@njit(cache=True, nogil=True)
def _copy(volume, copy):
    # not copy[:] = volume: numba compiles a message about shapes for seconds
    nz, ny, nx = volume.shape
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                copy[z, y, x] = volume[z, y, x]


@njit(cache=True, nogil=True)
def _pad(volume, padded):
    """Copy a volume into the middle of one that is mirrored on by two voxels on every side."""
    nz, ny, nx = volume.shape
    for z in range(nz + 4):
        for y in range(ny + 4):
            line, out = volume[_mirror(z - 2, nz), _mirror(y - 2, ny)], padded[z, y]
            for x in range(nx):
                out[x + 2] = line[x]
            out[0], out[1] = line[_mirror(-2, nx)], line[_mirror(-1, nx)]
            out[nx + 2], out[nx + 3] = line[_mirror(nx, nx)], line[_mirror(nx + 1, nx)]


@njit(cache=True, nogil=True, fastmath=FAST)
def _filter_lines(block):
    """Spline coefficients along axis 0 of [n, m], in place; m lines run side by side."""
    n, m = block.shape
    if n == 1:
        return
    for j in range(m):
        total, power = _F0, _F1
        for k in range(_HORIZON):
            total += power * block[_mirror(k, n), j]
            power *= _POLE
        block[0, j] = total
    for i in range(1, n):
        for j in range(m):
            block[i, j] += _POLE * block[i - 1, j]
    for j in range(m):
        block[n - 1, j] = _TAIL * (block[n - 1, j] + _POLE * block[n - 2, j])
    for i in range(n - 2, -1, -1):
        for j in range(m):
            block[i, j] = _POLE * (block[i + 1, j] - block[i, j])


@njit(cache=True, nogil=True, fastmath=FAST)
def _filter_rows(rows):
    """Spline coefficients along the last axis of [m, n], in place.

    A tile of rows is turned so that they run side by side: along one row every step waits for
    the one before.
    """
    m, n = rows.shape
    tile = np.zeros((n, _TILE), np.float32)
    for start in range(0, m, _TILE):
        size = min(_TILE, m - start)
        for j in range(size):
            for i in range(n):
                tile[i, j] = rows[start + j, i]
        _filter_lines(tile)
        for j in range(size):
            for i in range(n):
                rows[start + j, i] = tile[i, j]


@njit(cache=True, nogil=True, fastmath=FAST)
def _prefilter(volume):
    """Turn voxels into interpolating B-spline coefficients, in place."""
    nz, ny, nx = volume.shape
    gain = _F1
    for n in (nz, ny, nx):
        if n > 1:
            gain *= _F6
    flat = volume.reshape(nz * ny * nx)
    for i in range(flat.size):
        flat[i] *= gain
    _filter_rows(volume.reshape(nz * ny, nx))
    for z in range(nz):
        _filter_lines(volume[z])
    _filter_lines(volume.reshape(nz, ny * nx))


@njit(cache=True, nogil=True)
def _fill_gaps(volume, gaps):
    """Mark voxels that are not finite in `gaps` and copy the last finite one of the row.

    Without the copy one NaN would spread along three axes through the prefilter. Returns how
    many were found.
    """
    nz, ny, nx = volume.shape
    found = 0
    for z in range(nz):
        for y in range(ny):
            row, gap = volume[z, y], gaps[z, y]
            here = 0
            for x in range(nx):
                gap[x] = not math.isfinite(row[x])
                here += gap[x]
            if here == 0:
                continue
            found += here
            last = _F0
            for x in range(nx):
                if gap[x]:
                    row[x] = last
                else:
                    last = row[x]
            for x in range(nx - 1, -1, -1):  # gaps before the first finite voxel
                if not gap[x]:
                    last = row[x]
                elif not gap[:x].any():
                    row[x] = last
    return found


@njit(cache=True, nogil=True)
def _touches_gap(gaps, ix, iy, iz, x, y, z):
    """Whether one of the (up to eight) voxels around a position is a gap."""
    nz, ny, nx = gaps.shape
    for k in range(max(iz, 0), min(iz + (2 if z > iz else 1), nz)):
        for j in range(max(iy, 0), min(iy + (2 if y > iy else 1), ny)):
            for i in range(max(ix, 0), min(ix + (2 if x > ix else 1), nx)):
                if gaps[k, j, i]:
                    return True
    return False


@njit(cache=True, nogil=True, fastmath=FAST)
def read_volumes(
    first, last, volumes, grids, points, labels, gains, interpolate, values, sums, counts
):
    """Read volumes at points, into `values`, or summed by parcel into `sums` and `counts`.

    Parameters
    ----------
    volumes : float32 [T, Z, Y, X]
    grids : float64 [T, 3, 4]
        World mm of a point -> voxel (x, y, z) of volume t.
    points : float64 [3, N]
    labels : int64 [N]
        Parcel 1..R of each point; of length 0, `values` is filled instead.
    gains : float32 [N]
        What each value is multiplied by before it is added to `sums`.
    interpolate : bool
        Prefilter (interpolate) or not (smooth and interpolate).
    values : float32 [T, N]
        NaN outside the field of view and next to voxels that are not finite.
    sums, counts : float64 [T, R]
    """
    nz, ny, nx = volumes.shape[1:]
    copy = np.empty((nz, ny, nx), np.float32)
    padded = np.empty((nz + 4, ny + 4, nx + 4), np.float32)
    flat = padded.reshape(padded.size)
    gaps = np.zeros((nz, ny, nx), np.bool_)
    by_parcel = labels.size > 0
    at = np.empty((3, _BLOCK))
    index = np.empty((3, _BLOCK), np.int32)
    weights = np.empty((3, 4, _BLOCK), np.float32)
    for t in range(first, last):
        _copy(volumes[t], copy)
        found = _fill_gaps(copy, gaps)
        if interpolate:
            _prefilter(copy)
        _pad(copy, padded)
        for start in range(0, points.shape[1], _BLOCK):
            size = min(_BLOCK, points.shape[1] - start)
            for axis in range(3):
                _locate(grids[t, axis], points, start, size, at[axis], index[axis], weights[axis])
            for k in range(size):
                x, y, z = at[0, k], at[1, k], at[2, k]
                ix, iy, iz = index[0, k], index[1, k], index[2, k]
                a, b, c = _column(weights[0], k), _column(weights[1], k), _column(weights[2], k)
                value = np.float32(np.nan)
                inside = -0.5 <= x <= nx - 0.5 and -0.5 <= y <= ny - 0.5 and -0.5 <= z <= nz - 0.5
                if inside and not (found and _touches_gap(gaps, ix, iy, iz, x, y, z)):
                    value = _inner_sum(flat, ny + 4, nx + 4, ix + 2, iy + 2, iz + 2, a, b, c)
                if not by_parcel:
                    values[t, start + k] = value
                elif not math.isnan(value):
                    sums[t, labels[start + k] - 1] += value * gains[start + k]
                    counts[t, labels[start + k] - 1] += 1.0


@njit(cache=True, nogil=True, fastmath=FAST)
def value_and_gradient(volume, xyz, values, gradients):
    """The smoothing sum and its gradient (per voxel along x, y, z) at voxel positions [N, 3].

    `values` [N], `gradients` [N, 3], all float32; positions outside the field of view give NaN
    and a gradient of 0.
    """
    nz, ny, nx = volume.shape
    for n in range(xyz.shape[0]):
        x, y, z = xyz[n, 0], xyz[n, 1], xyz[n, 2]
        if not (-0.5 <= x <= nx - 0.5 and -0.5 <= y <= ny - 0.5 and -0.5 <= z <= nz - 0.5):
            values[n] = np.float32(np.nan)
            gradients[n] = _F0
            continue
        ix, iy, iz = math.floor(x), math.floor(y), math.floor(z)
        tx, ty, tz = np.float32(x - ix), np.float32(y - iy), np.float32(z - iz)
        a, b, c = _weights(tx), _weights(ty), _weights(tz)
        da, db, dc = _slopes(tx), _slopes(ty), _slopes(tz)
        inner = 1 <= ix <= nx - 3 and 1 <= iy <= ny - 3 and 1 <= iz <= nz - 3
        s, gx, gy, gz = _F0, _F0, _F0, _F0
        for k in range(4):
            pz = iz - 1 + k if inner else _mirror(iz - 1 + k, nz)
            for j in range(4):
                row = volume[pz, iy - 1 + j if inner else _mirror(iy - 1 + j, ny)]
                line, slope = _F0, _F0
                for i in range(4):
                    v = row[ix - 1 + i if inner else _mirror(ix - 1 + i, nx)]
                    line += a[i] * v
                    slope += da[i] * v
                s += c[k] * b[j] * line
                gx += c[k] * b[j] * slope
                gy += c[k] * db[j] * line
                gz += dc[k] * b[j] * line
        values[n] = s
        gradients[n, 0], gradients[n, 1], gradients[n, 2] = gx, gy, gz


@njit(cache=True, nogil=True, fastmath=FAST)
def shrink_volumes(first, last, volumes, fz, fy, fx, out):
    """Means over blocks of fz x fy x fx voxels: the coarse level of a registration."""
    _, nz, ny, nx = out.shape
    scale = np.float32(1.0 / (fz * fy * fx))
    for t in range(first, last):
        for z in range(nz):
            for y in range(ny):
                line = out[t, z, y]
                for x in range(nx):
                    line[x] = _F0
                for k in range(z * fz, z * fz + fz):
                    for j in range(y * fy, y * fy + fy):
                        for x in range(nx):
                            for i in range(fx):
                                line[x] += volumes[t, k, j, x * fx + i]
                for x in range(nx):
                    line[x] *= scale


@njit(cache=True, nogil=True)
def _multiply(a, b, out):
    """Product of two 4 x 4 affines (the last row is 0 0 0 1)."""
    for i in range(3):
        for j in range(4):
            total = a[i, 3] if j == 3 else 0.0
            for k in range(3):
                total += a[i, k] * b[k, j]
            out[i, j] = total


@njit(cache=True, nogil=True)
def _move_back(step, out):
    """The inverse of the rigid move (translation mm, rotation vector rad), by Rodrigues."""
    a, b, c = -step[3], -step[4], -step[5]
    angle = math.sqrt(a * a + b * b + c * c)
    s, v = 1.0, 0.5
    if angle > 1e-9:
        s, v = math.sin(angle) / angle, (1 - math.cos(angle)) / (angle * angle)
    square = a * a + b * b + c * c
    out[0, 0] = 1 + v * (a * a - square)
    out[1, 1] = 1 + v * (b * b - square)
    out[2, 2] = 1 + v * (c * c - square)
    out[0, 1], out[1, 0] = v * a * b - s * c, v * a * b + s * c
    out[0, 2], out[2, 0] = v * a * c + s * b, v * a * c - s * b
    out[1, 2], out[2, 1] = v * b * c - s * a, v * b * c + s * a
    for i in range(3):
        out[i, 3] = -(out[i, 0] * step[0] + out[i, 1] * step[1] + out[i, 2] * step[2])


@njit(cache=True, nogil=True)
def _solve(h, g, out):
    """Solve the symmetric positive system h out = g by Cholesky; False if it is singular."""
    n = g.size
    low = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1):
            total = h[i, j] * (1 + 1e-9 * (i == j))
            for k in range(j):
                total -= low[i, k] * low[j, k]
            if i > j:
                low[i, j] = total / low[j, j]
            elif total > 1e-12 * (h[i, i] + 1e-30):
                low[i, i] = math.sqrt(total)
            else:
                return False
    for i in range(n):
        total = g[i]
        for k in range(i):
            total -= low[i, k] * out[k]
        out[i] = total / low[i, i]
    for i in range(n - 1, -1, -1):
        total = out[i]
        for k in range(i + 1, n):
            total -= low[k, i] * out[k]
        out[i] = total / low[i, i]
    return True


@njit(cache=True, nogil=True, fastmath=FAST)
def _read_residuals(flat, shape, grid, points, target, residuals):
    """Difference to the target at every point; NaN where the volume ends."""
    nz, ny, nx = shape
    at = np.empty((3, _BLOCK))
    index = np.empty((3, _BLOCK), np.int32)
    weights = np.empty((3, 4, _BLOCK), np.float32)
    for start in range(0, points.shape[1], _BLOCK):
        size = min(_BLOCK, points.shape[1] - start)
        for axis in range(3):
            _locate(grid[axis], points, start, size, at[axis], index[axis], weights[axis])
        for k in range(size):
            ix, iy, iz = index[0, k], index[1, k], index[2, k]
            n = start + k
            if 1 <= ix <= nx - 3 and 1 <= iy <= ny - 3 and 1 <= iz <= nz - 3:
                a, b, c = _column(weights[0], k), _column(weights[1], k), _column(weights[2], k)
                residuals[n] = _inner_sum(flat, ny, nx, ix, iy, iz, a, b, c) - target[n]
            else:
                residuals[n] = np.float32(np.nan)


@njit(cache=True, nogil=True, fastmath=FAST)
def _add_normal(jacobian, n, weight, h):
    """h += weight J_n J_n^T (lower triangle)."""
    for i in range(PARAMETERS):
        ji = weight * jacobian[n, i]
        for j in range(i + 1):
            h[i, j] += ji * jacobian[n, j]


@njit(cache=True, nogil=True, fastmath=FAST)
def align_volumes(
    first, last, volumes, affine, inverse, points, target, jacobian, normal, robust,
    max_steps, tolerance, radius, transforms, steps, residual,
):  # fmt: skip
    """Rigid Gauss-Newton fit of each volume to a reference that is linearised once.

    Inverse-compositional: value, gradient and normal matrix belong to the reference, so a step
    costs one reading of the volume at N points and one product with the Jacobian.
    Source: Baker and Matthews 2004, IJCV 56:221, section 3.2.

    Parameters
    ----------
    volumes : float32 [T, Z, Y, X]
    affine, inverse : float64 [4, 4]
        Voxel (x, y, z) -> centred world mm, and back.
    points : float32 [3, N]
        Voxel positions in the reference.
    target : float32 [N]
        Smoothing sum of the reference there.
    jacobian : float32 [N, PARAMETERS]
    normal : float64 [PARAMETERS, PARAMETERS]
        jacobian^T jacobian over all N (lower triangle); points that leave the volume are taken
        off it.
    robust : bool [T]
        Down-weight points far from the fit (Geman-McClure), for volumes with dropped slices.
    max_steps, tolerance : int, float
        Stop when a step moves points at `radius` mm by less than `tolerance` mm.
    transforms : float64 [T, 4, 4]
        Start and result, centred world of the reference -> of volume t.
    steps : int64 [T]
        Taken; max_steps + 1 if it did not converge, 0 if it could not be fitted.
    residual : float64 [T]
        RMS (robust fits: weighted) difference left, in units of the target.
    """
    shape = volumes.shape[1:]
    count = points.shape[1]
    differences = np.empty(count, np.float32)
    weights = np.empty(count, np.float32)
    h = np.empty((PARAMETERS, PARAMETERS))
    g = np.empty(PARAMETERS)
    step = np.zeros(PARAMETERS)
    grid, part, move = np.empty((4, 4)), np.empty((4, 4)), np.empty((4, 4))
    for t in range(first, last):
        flat = volumes[t].reshape(shape[0] * shape[1] * shape[2])
        steps[t] = max_steps + 1
        scale = 0.0
        for iteration in range(max_steps):
            _multiply(transforms[t], affine, part)
            _multiply(inverse, part, grid)
            _read_residuals(flat, shape, grid, points, target, differences)
            soft = robust[t] and iteration > 0
            for i in range(PARAMETERS):
                g[i] = 0.0
                for j in range(PARAMETERS):
                    h[i, j] = 0.0 if soft else normal[i, j]
            square, total = 0.0, 0.0
            for n in range(count):
                e = differences[n]
                if math.isnan(e):
                    weights[n] = _F0
                    if not soft:
                        _add_normal(jacobian, n, np.float32(-1), h)
                    continue
                w = _F1
                if soft:
                    left = e
                    for i in range(PARAMETERS):
                        left -= np.float32(step[i]) * jacobian[n, i]
                    w = _F1 / (_F1 + left * left / np.float32(9.0 * scale * scale + 1e-20))
                    w *= w
                    _add_normal(jacobian, n, w, h)
                weights[n] = w
                total += w
                square += w * e * e
                e *= w
                for i in range(PARAMETERS):
                    g[i] += e * jacobian[n, i]
            if total < 0.2 * count or not _solve(h, g, step):
                steps[t] = 0
                break
            left_over = square
            for i in range(PARAMETERS):
                left_over -= step[i] * g[i]
            residual[t] = math.sqrt(max(left_over, 0.0) / total)
            if robust[t]:  # a scale that dropped slices do not inflate
                size = 0.0
                for n in range(count):
                    if weights[n] > 0:
                        left = differences[n]
                        for i in range(PARAMETERS):
                            left -= np.float32(step[i]) * jacobian[n, i]
                        size += weights[n] * abs(left)
                scale = 1.2533 * size / total
            _move_back(step, move)
            _multiply(transforms[t], move, part)
            for i in range(3):
                for j in range(4):
                    transforms[t, i, j] = part[i, j]
            length = math.sqrt(step[0] ** 2 + step[1] ** 2 + step[2] ** 2)
            length += radius * math.sqrt(step[3] ** 2 + step[4] ** 2 + step[5] ** 2)
            if not length < 1e3:
                steps[t] = 0
                break
            if length < tolerance and (soft or not robust[t]):
                steps[t] = iteration + 1
                break
