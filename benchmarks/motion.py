"""Motion: our estimate against antspyx ``motion_correction``, same volumes, same process.

    python benchmarks/motion.py [--shape 3mm|ukb] [--volumes 150] [--peer-volumes 6] [--threads 1]
    python benchmarks/motion.py --stress [--shape 3mm|ukb] [--volumes 60]

Prints CPU and wall time per volume, the memory that the fit takes besides its input, the RMS error
over the brain in mm (one rigid offset common to all volumes taken off) and the ratio. Fixed costs
of a run (masks, references) are in our time per volume. With --stress: our errors where motion
correction is known to fail, one case a line.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="3mm")
    parser.add_argument("--volumes", type=int)
    parser.add_argument("--peer-volumes", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stress", action="store_true", help="our errors in hard cases")
    options = parser.parse_args()
    options.volumes = options.volumes or (60 if options.stress else 150)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(options.threads)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import numba
    from phantom import make_phantom, rms_errors

    from brainlm.preprocess.motion.rigid import estimate_motion

    numba.set_num_threads(options.threads)
    if options.stress:
        run_stress(options.shape, options.volumes)
        return
    phantom = make_phantom(options.shape, options.volumes, seed=3)
    estimate_motion(phantom.volumes[:4], phantom.affine)  # compile
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    motion = estimate_motion(phantom.volumes, phantom.affine)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    errors = rms_errors(phantom, motion.transforms)
    ours = wall / options.volumes * 1e3
    print(f"{options.shape}, {options.volumes} volumes, {options.threads} thread(s)")
    print(f"ours     {ours:8.1f} ms/volume (CPU {cpu / options.volumes * 1e3:.1f})", end="")
    print(f"  error {errors.mean():.4f} mm mean, {errors.max():.4f} worst")
    print(
        f"memory   {extra:8.0f} MB in addition to {phantom.volumes.nbytes / 2**20:.0f} MB of input"
    )
    peer, error = _run_peer(phantom, options.peer_volumes)
    print(f"antspyx  {peer:8.1f} ms/volume", end="")
    print(f"  error {error.mean():.4f} mm mean, {error.max():.4f} worst")
    print(f"ratio    {peer / ours:8.0f} x")


def run_stress(shape: str, count: int) -> None:
    """Print our errors on phantoms that are hard in one way each."""
    from phantom import STRESS, make_stress, rms_errors

    from brainlm.preprocess.motion.rigid import estimate_motion

    print(f"{shape}, {count} volumes: RMS error in mm over the brain, mean and worst volume")
    for name in STRESS:
        phantom, mask = make_stress(name, shape, count)
        found = estimate_motion(phantom.volumes, phantom.affine, mask=mask)
        errors = rms_errors(phantom, found.transforms)
        print(f"{name:16s} {errors.mean():.4f} {errors.max():.4f}", flush=True)


def _run_peer(phantom, count: int) -> tuple[float, np.ndarray]:
    """Milliseconds per volume and errors [count] of ants.motion_correction to volume 0."""
    import ants

    chosen = np.unique(np.linspace(0, len(phantom.volumes) - 1, count).astype(int))
    flip = np.diag([-1.0, -1, 1, 1])  # RAS -> LPS
    affine = flip @ phantom.affine
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    directions = affine[:3, :3] / zooms
    volumes = phantom.volumes[chosen].transpose(3, 2, 1, 0)
    direction4 = np.eye(4)
    direction4[:3, :3] = directions
    series = ants.from_numpy(
        np.ascontiguousarray(volumes), origin=(*affine[:3, 3], 0.0), spacing=(*zooms, 1.0),
        direction=direction4,
    )  # fmt: skip
    fixed = ants.from_numpy(
        np.ascontiguousarray(volumes[..., 0]), origin=tuple(affine[:3, 3]), spacing=tuple(zooms),
        direction=directions,
    )  # fmt: skip
    started = time.perf_counter()
    result = ants.motion_correction(series, fixed=fixed, type_of_transform="Rigid")
    seconds = time.perf_counter() - started
    points = phantom.brain_points()
    transforms = []
    for files in result["motion_parameters"]:
        found = ants.read_transform(files[0] if isinstance(files, list | tuple) else files)
        corners = np.vstack([np.zeros(3), np.eye(3)]) * 50
        moved = np.array([found.apply_to_point(tuple(c * [-1, -1, 1])) for c in corners])
        moved = moved * [-1, -1, 1]
        transform = np.eye(4)
        transform[:3, :3] = (moved[1:] - moved[0]).T / 50
        transform[:3, 3] = moved[0]
        transforms.append(transform)
    transforms = np.array(transforms)
    truth = phantom.motion[chosen] @ np.linalg.inv(phantom.motion[chosen[0]])
    extra = np.linalg.inv(truth) @ transforms
    moved = points @ extra[:, :3, :3].transpose(0, 2, 1) + extra[:, None, :3, 3]
    errors = np.sqrt(((moved - points) ** 2).sum(axis=2).mean(axis=1))
    return seconds / len(chosen) * 1e3, errors[1:]


if __name__ == "__main__":
    main()
