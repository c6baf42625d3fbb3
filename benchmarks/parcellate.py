"""Parcel means of volumes on the atlas's grid: ours against nilearn, paired in one run.

    python benchmarks/parcellate.py [--shape 88 88 64 490] [--parcels 424] [--repeats 3]

Both get the same float32 array in memory; the runs alternate, the best of each is printed, and
the largest relative difference of the values. "Reading" is a sum over the same array, the least
that any method has to do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np


def make_input(shape: list[int], num_parcels: int) -> tuple[np.ndarray, np.ndarray]:
    """Volumes [T, Z, Y, X] and labels [Z, Y, X]: a quarter of the voxels labelled, in blocks."""
    x, y, z, count = shape
    rng = np.random.default_rng(0)
    volumes = rng.standard_normal((count, z, y, x), np.float32)
    volumes += 1000
    labels = np.zeros((z, y, x), np.int32)
    box = labels[z // 5 : -z // 5, y // 5 : -y // 5, x // 5 : -x // 5]
    box[...] = 1 + np.arange(box.size).reshape(box.shape) * num_parcels // box.size
    return volumes, labels


def timed(function: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main() -> None:
    import nibabel as nib
    from nilearn.maskers import NiftiLabelsMasker

    from brainlm.preprocess.parcellate.parcel_means import parcellate_volumes

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=4, default=[88, 88, 64, 490])
    parser.add_argument("--parcels", type=int, default=424)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    volumes, labels = make_input(options.shape, options.parcels)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    image = nib.Nifti1Image(volumes.T, affine)
    masker = NiftiLabelsMasker(nib.Nifti1Image(labels.T, affine))
    methods = {
        "reading": lambda: volumes.sum(dtype=np.float32),
        "brainlm": lambda: parcellate_volumes(volumes, labels, options.parcels),
        "nilearn": lambda: masker.fit_transform(image),
    }
    parcellate_volumes(volumes[:2], labels, options.parcels)  # compile
    best = dict.fromkeys(methods, np.inf)
    values = {}
    for _ in range(options.repeats):
        for name, function in methods.items():
            seconds, values[name] = timed(function)
            best[name] = min(best[name], seconds)
    difference = np.abs(values["brainlm"] / values["nilearn"] - 1).max()
    for name, seconds in best.items():
        print(f"{name:8s} {seconds:8.3f} s  {seconds / best['brainlm']:6.1f} x brainlm")
    print(f"largest relative difference of the values: {difference:.1e}")


if __name__ == "__main__":
    main()
