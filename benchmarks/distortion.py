"""Residual displacement on heads whose field is known, ours and PyHySCO's on the same images.

    python benchmarks/distortion.py [--shape 3mm] [--seed 0] [--peaks 6 12] [--no-peer]

Prints the distance in mm (mean, 95th percentile, largest) over the brain between where points lie
and where they are said to lie: uncorrected, from a pair of opposite readouts, from the pair with
the run as one of the two, and from a phase difference of a head that lay elsewhere; and seconds of
processor time. The images are made by pushing signal (tests/distorted.py). PyHySCO (pip install
PyHySCO) runs by its own defaults.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="3mm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peaks", type=float, nargs="+", default=[6.0, 12.0])
    parser.add_argument("--no-peer", action="store_true", help="leave PyHySCO out")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import numba
    from distorted import Head, write_map, write_pair, write_run

    from brainlm.preprocess.distortion.correct import find_correction
    from brainlm.preprocess.motion.brain_mask import brain_mask

    numba.set_num_threads(1)
    compiled = False
    for peak in options.peaks:
        head = Head(options.shape, options.seed, peak)
        image, affine = head.scan("j")
        mask = brain_mask(image, affine)
        _report(peak, "uncorrected", 0.0, head.error_mm(None))
        for name, write in (
            ("pepolar", lambda folder, head=head: write_pair(folder, head, moved=True)),
            ("pepolar with the run", lambda folder, head=head: write_pair(folder, head, ("j-",))),
            ("phase difference", lambda folder, head=head: write_map(folder, head, "phasediff")),
        ):
            with tempfile.TemporaryDirectory() as folder:
                run = write_run(Path(folder), head)
                write(Path(folder))
                if not compiled:
                    find_correction(run, image, affine, mask, "auto")
                    compiled = True
                started = time.process_time()
                found, notes = find_correction(run, image, affine, mask, "auto")
                seconds = time.process_time() - started
            assert found is not None, notes
            _report(peak, name, seconds, head.error_mm(found.shift))
        if not options.no_peer:
            _report(peak, "PyHySCO", *_run_peer(head))


def _report(peak: float, name: str, seconds: float, error: np.ndarray) -> None:
    figures = f"{error.mean():.3f} mean, {np.percentile(error, 95):.2f} p95, {error.max():.2f} max"
    print(f"{peak:g} mm  {name:22s} {figures} mm  {seconds:.1f} s", flush=True)


def _run_peer(head) -> tuple[float, np.ndarray]:
    """Processor seconds and errors of PyHySCO's field, of the sign that is nearer to the truth."""
    import torch
    from EPI_MRI.EPIMRIDistortionCorrection import DataObject, EPIMRIDistortionCorrection
    from optimization.GaussNewton import GaussNewton

    from brainlm.preprocess.distortion.shift import Shift

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        import nibabel as nib

        names = []
        for direction in ("j", "j-"):
            image, affine = head.scan(direction)
            names.append(f"{folder}/{direction}.nii.gz")
            nib.save(nib.Nifti1Image(image.T, affine), names[-1])
        started = time.process_time()
        data = DataObject(*names, 2, device="cpu", dtype=torch.float32)
        problem = EPIMRIDistortionCorrection(data, alpha=300, beta=1e-4)
        start = problem.initialize(blur_result=True)
        solver = GaussNewton(problem, max_iter=50, verbose=False, path=f"{folder}/")
        solver.run_correction(start)
        seconds = time.process_time() - started
    shape = [int(n) for n in data.m]  # z, x, y: the phase-encoding axis last
    nodes = solver.Bc.detach().numpy().reshape(shape[0], shape[1], shape[2] + 1)
    mm = np.moveaxis((nodes[..., 1:] + nodes[..., :-1]) / 2, -1, 1).astype(np.float32)
    errors = [head.error_mm(Shift(sign * mm, affine, 1)) for sign in (1, -1)]
    return seconds, min(errors, key=np.mean)


if __name__ == "__main__":
    main()
