"""The whole chain on one recording like UK Biobank's, next to a chain of library calls.

    python benchmarks/preprocess.py [--volumes 490] [--threads 2] [--peer-volumes 6] [--no-peer]
                                    [--folder benchmark-preprocess]

Makes (once, in the folder) a recording of 88x88x64 voxels of 2.4 mm, TR 0.735 s, as int16 .nii.gz;
then prints the time of gunzip alone, of every step of ours from that file to 424 clean series, and
the largest memory of the process that ran them. The peer is what one would write with antspyx
(motion correction, SyN, resampling), nilearn (smoothing, confounds, parcels) and scikit-learn
(FastICA); steps that it does volume by volume run on --peer-volumes and are scaled to all.
"""

from __future__ import annotations

import argparse
import gzip
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

TR_S = 0.735
COMPONENTS = 60


def make_recording(folder: Path, count: int) -> Path:
    """A phantom with truth, written in pieces of 70 volumes; kept for the next run."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import nibabel as nib
    from phantom import make_motion, make_phantom

    path = folder / f"sub-01/func/sub-01_task-rest_run-{count}_bold.nii.gz"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    motion, parts = make_motion(count), []
    for first in range(0, count, 70):
        part = make_phantom("ukb", motion=motion[first : first + 70])
        parts.append(part.volumes.astype(np.int16))
        print(f"made {min(first + 70, count)} of {count} volumes", flush=True)
    image = nib.Nifti1Image(np.concatenate(parts).T, part.affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((2.4, 2.4, 2.4, TR_S))
    nib.save(image, path)
    return path


def time_gunzip(path: Path) -> float:
    start = time.perf_counter()
    with gzip.open(path) as stream:
        while stream.read(1 << 24):
            pass
    return time.perf_counter() - start


def run_ours(path: Path, folder: Path, threads: int) -> dict[str, float]:
    """Seconds of every step of the four stages."""
    import numba

    from brainlm.atlas import load_atlas
    from brainlm.cohort.recordings import Entry
    from brainlm.config import Cohort, Config
    from brainlm.preprocess.chunk import make_task
    from brainlm.preprocess.stages.context import Context

    numba.set_num_threads(threads)
    source = str(path.relative_to(folder))
    name = path.name.removesuffix("_bold.nii.gz")
    status = path.stat()
    entry = Entry(
        name, "sub-01", None, "rest", None, path, source, None, status.st_size,
        status.st_mtime_ns, "c0",
    )  # fmt: skip
    cohort, seconds = Cohort(name="c", folder=folder), {}
    config = Config(results=folder, cohorts=(cohort,))
    context = Context(config, cohort, load_atlas("demo424", folder / "atlas"))
    for stage in ("motion", "normalise", "denoise", "parcellate"):
        task = make_task(stage, context)
        task.prepare()
        start = time.perf_counter()
        figures = task.run(entry)
        total = time.perf_counter() - start
        steps = {k[:-2]: v for k, v in figures.items() if k.endswith("_s") and k in STEPS}
        seconds |= {f"{stage}: {step}": value for step, value in steps.items()}
        seconds[f"{stage}: files and the rest"] = total - sum(steps.values())
        if "num_components" in figures:
            print(f"components {figures['num_components']}, removed {figures['num_removed']}")
    return seconds


STEPS = {
    f"{name}_s" for name in ("read", "motion", "quality", "normalise", "sample", "ica", "clean")
}


def in_child(function: Callable[[], None]) -> int:
    """Run in a forked process; its largest resident memory in MB."""
    child = os.fork()
    if child == 0:
        try:
            function()
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit("the chain failed")
    return usage.ru_maxrss // 1024


def run_peer(path: Path, count: int, chosen: int) -> dict[str, float]:
    """Seconds of the steps of a chain of library calls, those of `chosen` volumes scaled."""
    import ants
    import nibabel as nib
    from nilearn import datasets, image, masking, signal
    from nilearn.maskers import NiftiLabelsMasker
    from sklearn.decomposition import FastICA

    from brainlm.preprocess.normalise.template import load_template

    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable, scale: float = 1.0):
        start = time.perf_counter()
        result = call()
        seconds[name] = (time.perf_counter() - start) * scale
        return result

    scale = count / chosen
    run = timed("read (nibabel)", lambda: image.new_img_like(
        str(path), nib.load(path).get_fdata(dtype=np.float32)))  # fmt: skip
    few = image.index_img(run, np.linspace(0, count - 1, chosen).astype(int))
    few.to_filename(path.with_name("few.nii"))
    series = ants.image_read(str(path.with_name("few.nii")))
    first = ants.slice_image(series, 3, 0)
    moved = timed("motion (antspyx)", lambda: ants.motion_correction(
        series, fixed=first, type_of_transform="Rigid"), scale)  # fmt: skip
    mean = ants.get_average_of_timeseries(moved["motion_corrected"])
    brain = datasets.load_mni152_template(resolution=2)
    brain.to_filename(path.with_name("template.nii"))
    fixed = ants.image_read(str(path.with_name("template.nii")))
    fit = timed("normalise (antspyx SyN)", lambda: ants.registration(
        fixed, mean * ants.get_mask(mean), type_of_transform="SyN"))  # fmt: skip
    warped = timed("resample (antspyx)", lambda: [
        ants.apply_transforms(fixed, ants.slice_image(series, 3, t), fit["fwdtransforms"],
                              interpolator="bSpline").numpy()
        for t in range(chosen)], scale)  # fmt: skip
    in_space = image.new_img_like(brain, np.stack(warped, axis=-1).astype(np.float32))
    labels = np.zeros(brain.shape, np.int32)
    where = load_template("MNI152NLin2009aSym").mask.T
    labels[where] = 1 + np.arange(where.sum()) * 424 // where.sum()
    masker = NiftiLabelsMasker(nib.Nifti1Image(labels, brain.affine)).fit()
    masker.transform(image.index_img(in_space, [0]))  # what it does once is not scaled
    parcels = timed("parcels (nilearn)", lambda: masker.transform(in_space), scale)
    coarse = timed("smooth, 4 mm (nilearn)", lambda: image.resample_img(
        image.smooth_img(few, 6), target_affine=np.diag([4.0] * 3)), scale)  # fmt: skip
    mask = masking.compute_epi_mask(coarse)
    rng = np.random.default_rng(0)
    voxels = masking.apply_mask(coarse, mask)
    data = voxels[rng.integers(0, chosen, count)] + rng.normal(size=(count, voxels.shape[1]))
    data -= data.mean(0)
    ica = FastICA(COMPONENTS, whiten="unit-variance", max_iter=200, random_state=0)
    mixing = timed("ICA (scikit-learn)", lambda: ica.fit(data.T).mixing_)
    tall = rng.normal(size=(count, parcels.shape[1]))
    timed("clean (nilearn)", lambda: signal.clean(
        tall, confounds=mixing[:, :30], t_r=TR_S, high_pass=0.008))  # fmt: skip
    return seconds


def show(title: str, seconds: dict[str, float]) -> float:
    total = sum(seconds.values())
    print(f"\n{title}")
    for step, value in {**seconds, "total": total}.items():
        print(f"  {step:34s} {value:8.2f} s", flush=True)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=int, default=490)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-volumes", type=int, default=6)
    parser.add_argument("--no-peer", action="store_true", help="leave the library calls out")
    parser.add_argument("--folder", type=Path, default=Path("benchmark-preprocess"))
    options = parser.parse_args()
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(options.threads)
    folder = options.folder.resolve()
    path = make_recording(folder, options.volumes)
    short = make_recording(folder, 170)  # compiles, and loads what a chunk loads once
    in_child(lambda: run_ours(short, folder, options.threads) and None)
    gunzip = time_gunzip(path)
    totals: list[float] = []

    def ours() -> None:
        totals.append(show("brainlm", run_ours(path, folder, options.threads)))
        print(f"  {'gunzip alone':34s} {gunzip:8.2f} s, {totals[0] / gunzip:.1f} x that")
        (folder / "total").write_text(str(totals[0]))

    memory = in_child(ours)
    print(f"  {'largest memory':34s} {memory / 1024:8.2f} GB")
    if not options.no_peer:
        total = show("library calls", run_peer(path, options.volumes, options.peer_volumes))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"  {'largest memory':34s} {peak:8.2f} GB")
        print(f"\nratio {total / float((folder / 'total').read_text()):.1f} x")


if __name__ == "__main__":
    main()
