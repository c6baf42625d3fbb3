"""Normalisation and sampling: ours against antspyx and scipy, same image, same process.

    python benchmarks/normalise.py [--shape demo|3mm|ukb] [--seed 1] [--threads 1] [--no-peer]

Prints seconds, the mean error in mm over the template's brain against the phantom's known warp,
and for sampling the time per volume at the template's brain voxels, the largest difference and
the ratio to ``scipy.ndimage.map_coordinates`` (order 3), coordinates included for both.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="demo")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-peer", action="store_true", help="leave antspyx out")
    options = parser.parse_args()
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(options.threads)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import numba
    from phantom import make_head, make_phantom

    from brainlm.preprocess.normalise import normalise
    from brainlm.preprocess.template import load_template

    numba.set_num_threads(options.threads)
    template = load_template("MNI152NLin2009aSym")
    still = np.repeat(np.eye(4)[None], 4, axis=0)
    phantom = make_phantom(options.shape, 4, seed=options.seed, motion=still)
    reference = phantom.volumes.mean(axis=0)
    index = np.argwhere(template.mask)[:, ::-1]
    points = index @ template.affine[:3, :3].T + template.affine[:3, 3]
    truth = phantom.to_reference(points)
    image, _, affine = make_head(options.seed, 2.5, "t1w")
    normalise(reference, phantom.affine, template)  # compile
    for name, extra in (("direct", {}), ("t1w", {"t1w": image, "t1w_affine": affine})):
        started = time.perf_counter()
        result = normalise(reference, phantom.affine, template, **extra)
        _report(name, time.perf_counter() - started, result(points), truth)
    if not options.no_peer:
        _report("antspyx SyN", *_run_ants(phantom, reference, template, points), truth)
    _compare_sampling(phantom, result(points))


def _report(name: str, seconds: float, found: np.ndarray, truth: np.ndarray) -> None:
    errors = np.linalg.norm(found - truth, axis=1)
    print(f"{name:12s} {seconds:7.2f} s  error {errors.mean():.3f} mm mean, ", end="")
    print(f"{np.percentile(errors, 95):.2f} at the 95th percentile", flush=True)


def _run_ants(phantom, reference, template, points):
    """Seconds, and where ants.registration("SyN") finds the template's points [N, 3]."""
    import ants
    import pandas as pd

    def to_ants(data, affine):
        flipped = np.diag([-1.0, -1, 1, 1]) @ affine  # RAS -> LPS
        zooms = np.sqrt((flipped[:3, :3] ** 2).sum(axis=0))
        return ants.from_numpy(
            np.ascontiguousarray(data.T), origin=tuple(flipped[:3, 3]), spacing=tuple(zooms),
            direction=flipped[:3, :3] / zooms,
        )  # fmt: skip

    fixed = to_ants(np.array(template.t1w), template.affine)
    moving = to_ants(reference * phantom.brain, phantom.affine)
    started = time.perf_counter()
    result = ants.registration(fixed, moving, type_of_transform="SyN")
    seconds = time.perf_counter() - started
    table = pd.DataFrame(points * [-1, -1, 1], columns=["x", "y", "z"])
    moved = ants.apply_transforms_to_points(3, table, result["fwdtransforms"])
    return seconds, moved[["x", "y", "z"]].to_numpy() * [-1, -1, 1]


def _compare_sampling(phantom, points: np.ndarray) -> None:
    from scipy import ndimage

    from brainlm.preprocess.sampling import sample

    sample(phantom.volumes[:1], phantom.affine, points)
    started = time.perf_counter()
    ours = sample(phantom.volumes, phantom.affine, points)
    middle = time.perf_counter()
    inverse = np.linalg.inv(phantom.affine)
    theirs = []
    for volume in phantom.volumes:
        index = points @ inverse[:3, :3].T + inverse[:3, 3]
        theirs.append(ndimage.map_coordinates(volume, index.T[::-1], order=3, mode="mirror"))
    scipy = time.perf_counter() - middle
    difference = np.nanmax(np.abs(ours - np.array(theirs)))
    count = len(phantom.volumes)
    print(f"sampling     {(middle - started) / count * 1e3:.1f} ms/volume, scipy ", end="")
    print(f"{scipy / count * 1e3:.1f}, ratio {scipy / (middle - started):.1f} x, ", end="")
    print(f"largest difference {difference:.4f} grey levels")


if __name__ == "__main__":
    main()
