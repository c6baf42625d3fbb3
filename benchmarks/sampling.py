"""Reading volumes at template points: ours against the scipy call that fMRIPrep uses, paired.

    python benchmarks/sampling.py [--shape 88 88 64] [--volumes 10] [--threads 1]

Both read each volume at the 235,375 points of the template's brain at 2 mm, through its own rigid
transform, coordinates and prefilter included. scipy: ``map_coordinates(order=3)``, as in
fmriprep/interfaces/resampling.py, with the edge mode that is ours (mirror) so that values can be
compared; it has one thread. The two take turns, volume by volume; the medians are printed.
"""

from __future__ import annotations

import argparse
import time

import numpy as np


def make_input(shape: list[int], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Volumes [T, Z, Y, X] of a head-like size, their affine, and small rigid transforms."""
    from scipy import ndimage
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(0)
    volumes = rng.normal(size=(count, *shape[::-1]))
    volumes = np.float32(1000 + 300 * ndimage.gaussian_filter(volumes, (0, 1, 1, 1)))
    affine = np.diag([*(211.2 / np.array(shape[:2])), 153.6 / shape[2], 1.0])
    affine[:3, 3] = [0, -18, 8] - affine[:3, :3] @ (np.array(shape) - 1) / 2
    transforms = np.repeat(np.eye(4)[None], count, axis=0)
    transforms[:, :3, :3] = Rotation.from_rotvec(rng.normal(0, 0.02, (count, 3))).as_matrix()
    transforms[:, :3, 3] = rng.normal(0, 1, (count, 3))
    return volumes, affine, transforms


def main() -> None:
    import numba
    from scipy import ndimage

    from brainlm.preprocess.kernels.sampling import sample
    from brainlm.preprocess.normalise.template import load_template

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=[88, 88, 64])
    parser.add_argument("--volumes", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    numba.set_num_threads(options.threads)
    volumes, affine, transforms = make_input(options.shape, options.volumes)
    template = load_template("MNI152NLin2009aSym")  # at hand without a network
    points = np.argwhere(template.mask)[:, ::-1] @ template.affine[:3, :3].T
    points += template.affine[:3, 3]

    def by_scipy(volume: np.ndarray, transform: np.ndarray) -> np.ndarray:
        grid = np.linalg.inv(affine) @ transform
        places = points @ grid[:3, :3].T + grid[:3, 3]
        return ndimage.map_coordinates(volume, places.T[::-1], order=3, mode="mirror")

    sample(volumes[:1], affine, points)  # compile
    seconds: dict[str, list[float]] = {"brainlm": [], "scipy": []}
    difference = 0.0
    for volume, transform in zip(volumes, transforms, strict=True):
        start = time.perf_counter()
        ours = sample(volume[None], affine, points, transform[None])[0]
        middle = time.perf_counter()
        theirs = by_scipy(volume, transform)
        seconds["brainlm"].append(middle - start)
        seconds["scipy"].append(time.perf_counter() - middle)
        difference = max(difference, float(np.nanmax(np.abs(ours - theirs))))
    ours, theirs = (np.median(seconds[name]) * 1e3 for name in ("brainlm", "scipy"))
    print(f"{len(points)} points, {options.volumes} volumes, {options.threads} thread(s)")
    print(f"brainlm  {ours:8.1f} ms/volume\nscipy    {theirs:8.1f} ms/volume")
    print(f"ratio    {theirs / ours:8.1f} x; largest difference {difference:.4f} grey levels")


if __name__ == "__main__":
    main()
