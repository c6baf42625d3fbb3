"""Compiled: whole turns of phase, from voxel to voxel.

Self-contained, as numba's cache on disk watches only the file of a function.
"""

from __future__ import annotations

import heapq
import math

from numba import njit

_STEPS = ((0, 0, 1), (0, 0, -1), (0, 1, 0), (0, -1, 0), (1, 0, 0), (-1, 0, 0))


@njit(cache=True, nogil=True)
def unwrap(phase, inside, start, out, done):
    """Add whole turns to `phase` (rad) so that neighbours differ by as little as they can.

    The voxel next to the smallest step goes first (a minimum spanning tree), so that noise at the
    edges is reached last and misleads no other voxel.

    Parameters
    ----------
    phase : float64 [Z, Y, X]
        rad, wrapped.
    inside : bool [Z, Y, X]
    start : (int, int, int)
        A voxel inside; its phase stays.
    out : float64 [Z, Y, X], done : bool [Z, Y, X]
        Results; `done` is what is connected with `start`.
    """
    nz, ny, nx = phase.shape
    turn = 2 * math.pi
    z, y, x = start
    out[z, y, x] = phase[z, y, x]
    waiting = [(0.0, z, y, x, out[z, y, x])]
    while len(waiting) > 0:
        _, z, y, x, value = heapq.heappop(waiting)
        if done[z, y, x]:
            continue
        done[z, y, x] = True
        out[z, y, x] = value
        for dz, dy, dx in _STEPS:
            k, j, i = z + dz, y + dy, x + dx
            if 0 <= k < nz and 0 <= j < ny and 0 <= i < nx and inside[k, j, i]:
                step = phase[k, j, i] - value
                step -= turn * math.floor(step / turn + 0.5)
                if not done[k, j, i]:
                    heapq.heappush(waiting, (abs(step), k, j, i, value + step))
