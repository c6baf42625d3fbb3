"""Share of damaged images that preprocessing refuses, and of right ones.

    python benchmarks/registration_check.py [FOLDER ...] [--seed N] [--space S] [--rows FILE]

FOLDERs are BIDS datasets with raw runs, whose heads are right; so are phantoms (tests/phantom.py),
nibabel's example image and simulated participants. Damage is made from some of them and from
nothing (docs/results/registration.md says what of each). What is asked of each image is what the
motion and normalisation stages ask: a brain mask of a brain's size, the whole fit with its checks
and, of runs, that their volumes do not alternate.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
MEAN_OF = 12  # volumes of a run
PHANTOMS: list[tuple[str, dict]] = [
    ("demo", {}),
    ("3mm", {"bias": 0.6}),
    ("anisotropic", {}),
    ("3mm", {"tsnr": 15.0}),
    ("3mm", {"oblique_deg": 30.0}),
    ("partial", {}),
    ("demo", {"bend_mm": 5.0}),
]
DAMAGED_PHANTOMS = 3  # the first of them are damaged too, as all real heads are

Picture = tuple[np.ndarray, np.ndarray]  # [(T,) Z, Y, X], and voxel (x, y, z) -> world mm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--kinds", nargs="*", help="only these kinds of damage (and right ones)")
    parser.add_argument("--seed", type=int, default=0, help="of phantoms, noise and objects")
    parser.add_argument("--space", default="MNI152NLin6Asym", help="the template's")
    parser.add_argument("--rows", type=Path, help="a table with a row per image")
    options = parser.parse_args()
    from brainlm.preprocess.normalise.template import load_template

    template = load_template(options.space)
    rows = ["kind\tname\trefused\treason or figures"]
    counts: dict[str, list[bool]] = {}
    start = time.process_time()
    for kind, name, picture in make_inputs(options.folders, options.seed):
        if options.kinds and kind not in options.kinds:
            continue
        refused, words = examine(*picture, template)
        counts.setdefault(kind, []).append(refused)
        rows.append(f"{kind}\t{name}\t{int(refused)}\t{words}")
        if refused == kind.startswith("right"):
            state = "refused" if refused else "taken"
            print(f"NOT AS IT SHOULD BE: {kind}, {name}: {state}: {words}", flush=True)
        if options.rows:
            options.rows.write_text("\n".join(rows) + "\n")
    print(f"\n{time.process_time() - start:.0f} s of processor time")
    print("\n| kind | images | refused |\n|---|---|---|")
    for right in (False, True):
        kinds = {k: v for k, v in counts.items() if k.startswith("right") == right}
        for kind, refused in kinds.items():
            print(f"| {kind} | {len(refused)} | {sum(refused)} |")
        every = [one for refused in kinds.values() for one in refused]
        if every:
            print(f"| **all {'right' if right else 'damaged'}** | {len(every)} | {sum(every)} "
                  f"({np.mean(every):.1%}) |")  # fmt: skip


def examine(image: np.ndarray, affine: np.ndarray, template) -> tuple[bool, str]:
    """Whether the stages refuse an image, and why; or the figures of the fit that they take."""
    from brainlm.errors import RecordingError
    from brainlm.preprocess.motion.brain_mask import brain_mask
    from brainlm.preprocess.normalise.registration import normalise
    from brainlm.preprocess.quality import (
        check_alternation,
        check_brain,
        count_non_steady,
        measure_level,
    )

    try:
        if image.ndim == 4:
            level = measure_level(image)
            check_alternation(level[count_non_steady(level) :])
            image = image[:MEAN_OF].mean(axis=0)
        mask = brain_mask(image, affine)
        check_brain(mask, affine, {})
        quality = normalise(image, affine, template, mask=mask).quality
    except RecordingError as error:
        return True, error.reason
    return False, ", ".join(f"{key} {value:.3g}" for key, value in quality.items())


# ---- right images ---------------------------------------------------------------------------


def find_runs(folders: list[Path]) -> Iterator[tuple[str, Picture]]:
    """Runs of datasets, [T, Z, Y, X]."""
    import nibabel as nib

    for path in sorted(path for folder in folders for path in folder.rglob("*_bold.nii.gz")):
        image = nib.load(path)
        name = path.name.split("_")[0]
        yield name, (np.asarray(image.dataobj, np.float32).T, image.affine)


def find_example() -> Picture:
    import nibabel as nib
    from nibabel.testing import data_path

    image = nib.load(Path(data_path) / "example4d.nii.gz")
    return np.asarray(image.dataobj, np.float32).T, image.affine


def make_phantoms(first_seed: int, count: int = 2, **more) -> Iterator[tuple[str, Picture]]:
    """Phantoms that do not move, of `count` volumes."""
    from phantom import make_phantom

    for seed, (shape, options) in enumerate(PHANTOMS, start=first_seed):
        still = np.repeat(np.eye(4)[None], count, axis=0)
        phantom = make_phantom(shape, seed=seed, motion=still, **options | more)
        name = " ".join([f"phantom {seed} {shape}", *(f"{k}={v:g}" for k, v in options.items())])
        yield name, (phantom.volumes, phantom.affine)


def simulate_participants(count: int, seed: int) -> Iterator[tuple[str, Picture]]:
    from brainlm.simulate import simulate_cohort

    with tempfile.TemporaryDirectory() as folder:
        simulate_cohort(folder, num_subjects=count, seed=seed, duration_s=40.0)
        yield from find_runs([Path(folder)])


def vary(image: np.ndarray, affine: np.ndarray, rng) -> Iterator[tuple[str, Picture]]:
    """What a head may look like and still be right."""
    from brainlm.preprocess.motion.brain_mask import brain_mask

    yield "brain alone", (image * brain_mask(image, affine), affine)
    yield "60 mm away", (image, _moved([40, -30, 35]) @ affine)
    yield "nods by 25 degrees", (image, _about_middle(_rotation("x", 25), image, affine))
    yield "turned by -20 degrees", (image, _about_middle(_rotation("z", -20), image, affine))
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = image.shape[2] - 1
    yield "stored from left to right", (image[:, :, ::-1], affine @ flip)
    slope = np.linspace(1.5, 0.5, image.shape[1])[:, None]
    yield "brighter behind", (image * np.float32(slope), affine)
    noise = rng.normal(scale=0.1 * np.percentile(image, 98), size=(2, *image.shape))
    yield "noisy", (np.hypot(image + noise[0], noise[1]).astype(np.float32), affine)


# ---- damage ---------------------------------------------------------------------------------


def make_inputs(folders: list[Path], seed: int) -> Iterator[tuple[str, str, Picture]]:
    """Kind, name and image of every input."""
    rng = np.random.default_rng(seed)
    runs = [*find_runs(folders), ("example", find_example())]
    first = 31 + 1000 * seed  # of the phantoms
    phantoms = list(make_phantoms(first))
    for name, run in runs:
        yield "right: real", name, run
    for name, run in [*phantoms, *make_phantoms(first + 100)]:
        yield "right: phantom", name, run
    for name, run in simulate_participants(15, 1 + seed):
        yield "right: simulated participant", name, run
    heads = {
        name: (volumes[:MEAN_OF].mean(axis=0), affine)
        for name, (volumes, affine) in [*runs, *phantoms[:DAMAGED_PHANTOMS]]
    }
    for name, head in heads.items():
        for how, picture in vary(*head, rng):
            yield "right: variant of these", f"{name} {how}", picture
    for name, head in heads.items():
        for kind, how, picture in damage(*head, rng):
            yield kind, f"{name} {how}", picture
    yield from make_nothing(rng)
    long = [(name, run) for name, run in runs if len(run[0]) >= 40]
    for name, (volumes, affine) in [*long, *make_phantoms(first + 200, 40)]:
        for share in (0.003, 0.01):
            label = 1 - share * (np.arange(len(volumes)) % 2)
            labelled = np.float32(volumes * label[:, None, None, None])
            yield "arterial spin labelling", f"{name} {share:.1%}", (labelled, affine)


def damage(image: np.ndarray, affine: np.ndarray, rng) -> Iterator[tuple[str, str, Picture]]:
    """Kind, what was done, and the image, of everything that is done to a head."""
    from brainlm.preprocess.motion.brain_mask import brain_mask
    from brainlm.preprocess.normalise.pose import axis_turns

    for number, turn in enumerate(axis_turns()[1:], start=1):
        yield "axes turned", str(number), (image, _about_middle(turn, image, affine))
    for axes in ((0,), (1,), (0, 1)):  # z, y of the array; x would be left-right
        yield "mirrored", str(axes), (np.flip(image, axes), affine)
    for order in ((0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)):
        yield "axes swapped", str(order), (image.transpose(order), affine)
    for axis, factor in itertools.product("xyz", (0.5, 1 / 1.5, 1.5, 2.0)):
        zooms = np.where(np.array(list("xyz")) == axis, factor, 1.0)
        yield "one voxel size wrong", f"{axis} x {factor:.2f}", (image, _scaled(affine, zooms))
    for factor in (0.5, 0.6, 1.5, 2.0):
        yield "all voxel sizes wrong", f"x {factor}", (image, _scaled(affine, np.full(3, factor)))
    for axis, low in itertools.product(range(3), (True, False)):
        yield "half is blank", f"{'zyx'[axis]} {low}", (_blank_half(image, axis, low), affine)
    for axis in range(3):
        rolled = np.roll(image, image.shape[axis] // 2, axis)
        yield "wrapped by half", "zyx"[axis], (rolled, affine)
    for step in (2, 3):
        order = np.concatenate([np.arange(first, len(image), step) for first in range(step)])
        yield "slices in wrong order", f"every {step}", (image[order], affine)
    brain = brain_mask(image, affine)
    for fwhm_mm in (3, 6, 12, 20):
        yield (
            "noise in a head's shape",
            f"{fwhm_mm} mm",
            (_noise(brain, affine, fwhm_mm, rng), affine),
        )
    shuffled = image.copy()
    shuffled[brain] = rng.permutation(image[brain])
    yield "noise in a head's shape", "voxels shuffled", (shuffled, affine)


def make_nothing(rng) -> Iterator[tuple[str, str, Picture]]:
    """What never was a head."""
    place, affine = _grid()
    for number in range(40):
        radii = np.array([68, 85, 62]) * rng.uniform(0.93, 1.07, 3)
        inside = ((place / radii) ** 2).sum(axis=-1) < 1
        fwhm_mm = (3, 6, 10, 16, 25)[number % 5]
        noise = _noise(inside, affine, fwhm_mm, rng)
        yield "noise in an ellipsoid", f"{number} {fwhm_mm} mm", (noise, affine)
    for number in range(36):
        kind = OBJECTS[number % len(OBJECTS)]
        yield (
            "objects",
            f"{number} {kind.__name__.strip('_')}",
            (_scan(kind(place, rng), rng), affine),
        )
    for number in range(12):
        yield "spinal cord", str(number), (_scan(_cord(place, rng), rng), affine)


def _moved(by_mm: list[float]) -> np.ndarray:
    out = np.eye(4)
    out[:3, 3] = by_mm
    return out


def _scaled(affine: np.ndarray, zooms: np.ndarray) -> np.ndarray:
    return affine @ np.diag([*zooms, 1.0])


def _rotation(axis: str, degrees: float) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler(axis, degrees, degrees=True).as_matrix()


def _about_middle(turn: np.ndarray, image: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The affine of a header that is wrong by a turn about the middle of the image."""
    middle = affine[:3, :3] @ ((np.array(image.shape)[::-1] - 1) / 2) + affine[:3, 3]
    out = np.eye(4)
    out[:3, :3] = turn @ affine[:3, :3]
    out[:3, 3] = turn @ (affine[:3, 3] - middle) + middle
    return out


def _blank_half(image: np.ndarray, axis: int, low: bool) -> np.ndarray:
    """Half of the head is zero, within the field of view."""
    out = image.copy()
    profile = image.sum(axis=tuple({0, 1, 2} - {axis}))
    half = int(np.searchsorted(np.cumsum(profile), profile.sum() / 2))
    part = [slice(None)] * 3
    part[axis] = slice(None, half) if low else slice(half, None)
    out[tuple(part)] = 0
    return out


def _noise(inside: np.ndarray, affine: np.ndarray, fwhm_mm: float, rng) -> np.ndarray:
    """Smooth noise of 20 % in a shape."""
    from scipy import ndimage

    zooms = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    noise = ndimage.gaussian_filter(rng.normal(size=inside.shape), fwhm_mm / 2.355 / zooms)
    return _scan(inside * (800 + 160 * noise / noise.std()), rng)


def _scan(image: np.ndarray, rng) -> np.ndarray:
    """With a background."""
    return np.float32(image + 15 * np.abs(rng.normal(size=image.shape)))


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Places [Z, Y, X, 3] in mm about the middle, and the affine of a 3.5 mm image."""
    shape, zoom = (48, 64, 56), 3.5
    index = np.moveaxis(np.indices(shape), 0, -1)[..., ::-1]
    place = (index - (np.array(shape[::-1]) - 1) / 2) * zoom
    affine = np.diag([zoom, zoom, zoom, 1.0])
    affine[:3, 3] = place[0, 0, 0]
    return place, affine


def _bias(place, rng) -> np.ndarray:
    return 1000 * (1 + 0.3 * (place @ rng.normal(size=3)) / 100)


def _ball(place, rng):
    return _bias(place, rng) * ((place**2).sum(axis=-1) < rng.uniform(60, 80) ** 2)


def _egg(place, rng):
    return _bias(place, rng) * (((place / [66, 84, 60]) ** 2).sum(axis=-1) < rng.uniform(0.8, 1.3))


def _bottle(place, rng):
    x, y, z = np.moveaxis(place, -1, 0)
    return _bias(place, rng) * (np.hypot(x, y) < rng.uniform(60, 75)) * (np.abs(z) < 75)


def _box(place, rng):
    return _bias(place, rng) * (np.abs(place).max(axis=-1) < rng.uniform(50, 70))


def _melon(place, rng):
    """Rind, flesh, and a darker heart, as grey matter, white matter and ventricles lie."""
    depth = np.sqrt(((place / (np.array([66, 84, 60]) * rng.uniform(0.95, 1.05, 3))) ** 2).sum(-1))
    return 700.0 * (depth < 1) + 300 * (depth < 1) * (depth > 0.8) + 300 * (depth < 0.25)


def _inserts(place, rng):
    """A quality phantom: a bottle with rows of empty tubes."""
    x, y, _ = np.moveaxis(place, -1, 0)
    size = rng.uniform(18, 30)
    tubes = np.hypot((x + size / 2) % size - size / 2, (y + size / 2) % size - size / 2) < size / 4
    return _egg(place, rng) * (1 - 0.8 * tubes)


def _cord(place, rng):
    """A neck: a column of tissue with a cord in its canal."""
    x, y, z = np.moveaxis(place, -1, 0)
    bend = 8 * np.sin(z / 60 + rng.uniform(0, 3))
    radius = np.hypot(x, y - bend)
    image = 400.0 * (np.hypot(x / 60, (y - bend) / 65) < rng.uniform(0.8, 1.1))
    image = np.where(radius < 12, 1100, image)  # fluid
    image = np.where(radius < 6, 700, image)
    return image * (np.abs(z) < rng.uniform(60, 84))


OBJECTS = (_ball, _egg, _bottle, _box, _melon, _inserts)

if __name__ == "__main__":
    main()
