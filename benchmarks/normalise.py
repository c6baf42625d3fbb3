"""Normalisation, directly and through the T1w, against antspyx SyN: same image, same process.

    python benchmarks/normalise.py [--shape demo|3mm|ukb] [--seed 1] [--threads 1] [--no-peer]

Prints seconds, the mean error in mm over the template's brain against the phantom's known warp,
and the Dice coefficient of the template's brain with the phantom's own, brought to the template.
The peer gets the brain-masked mean image (direct), and the T1w with the rigid EPI-to-T1w fit.
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

    from brainlm.preprocess.normalise.registration import normalise
    from brainlm.preprocess.normalise.template import load_template

    numba.set_num_threads(options.threads)
    template = load_template("MNI152NLin2009aSym")
    still = np.repeat(np.eye(4)[None], 4, axis=0)
    phantom = make_phantom(options.shape, 4, seed=options.seed, motion=still)
    reference = phantom.volumes.mean(axis=0)
    index = np.argwhere(template.mask)[:, ::-1]
    points = index @ template.affine[:3, :3].T + template.affine[:3, 3]
    truth = phantom.to_reference(points)
    image, head, affine = make_head(options.seed, 2.5, "t1w")
    box = _Box(phantom, template)
    normalise(reference, phantom.affine, template)  # compile
    for name, extra in (("direct", {}), ("t1w", {"t1w": image, "t1w_affine": affine})):
        started = time.perf_counter()
        result = normalise(reference, phantom.affine, template, **extra)
        seconds = time.perf_counter() - started
        _report(name, seconds, result(points), truth, box.dice(result(box.points)))
    if not options.no_peer:
        every = np.vstack([points, box.points])
        for name, extra in (("SyN direct", ()), ("SyN by T1w", (image * head, affine))):
            seconds, found = _run_ants(phantom, reference, template, every, *extra)
            dice = box.dice(found[len(points) :])
            _report(name, seconds, found[: len(points)], truth, dice)


class _Box:
    """Every second voxel of the template: Dice of its brain with the phantom's, brought there.

    Within the field of view: where that ends is not a registration's doing.
    """

    def __init__(self, phantom, template):
        index = np.indices(template.mask.shape)[:, ::2, ::2, ::2].reshape(3, -1).T
        self.brain = template.mask[tuple(index.T)]
        self.points = index[:, ::-1] @ template.affine[:3, :3].T + template.affine[:3, 3]
        self.phantom = phantom

    def dice(self, places: np.ndarray) -> float:
        from scipy import ndimage

        inverse = np.linalg.inv(self.phantom.affine)
        index = (places @ inverse[:3, :3].T + inverse[:3, 3]).T[::-1]
        size = np.array(self.phantom.brain.shape)[:, None]
        inside = ((index >= -0.5) & (index <= size - 0.5)).all(axis=0)
        values = ndimage.map_coordinates(
            np.float32(self.phantom.brain), index, order=1, mode="nearest"
        )
        found, brain = values[inside] > 0.5, self.brain[inside]
        return float(2 * (found & brain).sum() / (found.sum() + brain.sum()))


def _report(name: str, seconds: float, found: np.ndarray, truth: np.ndarray, dice: float) -> None:
    errors = np.linalg.norm(found - truth, axis=1)
    print(f"{name:12s} {seconds:7.2f} s  error {errors.mean():.3f} mm mean, ", end="")
    print(f"{np.percentile(errors, 95):.2f} at the 95th percentile, Dice {dice:.4f}", flush=True)


def to_ants(data: np.ndarray, affine: np.ndarray):
    """An image [Z, Y, X] with its affine (RAS) as ANTs has it (LPS)."""
    import ants

    flipped = np.diag([-1.0, -1, 1, 1]) @ affine
    zooms = np.sqrt((flipped[:3, :3] ** 2).sum(axis=0))
    return ants.from_numpy(
        np.ascontiguousarray(np.float32(data.T)), origin=tuple(flipped[:3, 3]),
        spacing=tuple(zooms), direction=flipped[:3, :3] / zooms,
    )  # fmt: skip


def _run_ants(phantom, reference, template, points, t1w=None, t1w_affine=None):
    """Seconds, and where ants.registration finds the template's points [N, 3]."""
    import ants
    import pandas as pd

    fixed = to_ants(np.array(template.t1w), template.affine)
    moving = to_ants(reference * phantom.brain, phantom.affine)
    started = time.perf_counter()
    if t1w is None:
        chain = ants.registration(fixed, moving, type_of_transform="SyN")["fwdtransforms"]
    else:
        anatomy = to_ants(t1w, t1w_affine)
        chain = ants.registration(fixed, anatomy, type_of_transform="SyN")["fwdtransforms"]
        chain = (
            chain + ants.registration(anatomy, moving, type_of_transform="Rigid")["fwdtransforms"]
        )
    seconds = time.perf_counter() - started
    table = pd.DataFrame(points * [-1, -1, 1], columns=["x", "y", "z"])
    moved = ants.apply_transforms_to_points(3, table, chain)
    return seconds, moved[["x", "y", "z"]].to_numpy() * [-1, -1, 1]


if __name__ == "__main__":
    main()
