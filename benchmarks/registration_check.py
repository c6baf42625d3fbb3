"""Share of damaged images that normalisation refuses, and of right ones.

    python benchmarks/registration_check.py [FOLDER ...] [--kinds turned noise ...] [--each]

FOLDERs are BIDS datasets with raw runs: the mean of a run's first volumes is a right image. More
right ones are phantoms (tests/phantom.py) and nibabel's example image. Damage is made from them:
axes turned, mirrored (left-right is left out: the template is symmetric) and swapped, voxels of
other sizes, halves blanked; and made of nothing: objects, noise, a spinal cord. What only looks
like a head by its outline counts as damage; a turn by less than 45 degrees does not: fits find it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
VOLUMES = 12  # of a run, averaged
PHANTOMS: list[tuple[str, dict]] = [
    ("demo", {}),
    ("3mm", {"tsnr": 15.0}),
    ("3mm", {"bias": 0.6}),
    ("3mm", {"oblique_deg": 30.0}),
    ("partial", {}),
    ("anisotropic", {}),
    ("demo", {"bend_mm": 5.0}),
]

Picture = tuple[np.ndarray, np.ndarray]  # [Z, Y, X], and voxel (x, y, z) -> world mm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--kinds", nargs="*", help="only these kinds of damage (and right)")
    parser.add_argument("--heads", type=int, default=99, help="at most this many right images")
    parser.add_argument("--each", action="store_true", help="a line for every image")
    options = parser.parse_args()
    from brainlm.errors import RecordingError
    from brainlm.preprocess.normalise.registration import normalise
    from brainlm.preprocess.normalise.template import load_template

    template = load_template("MNI152NLin2009aSym")
    heads = dict(list(find_heads(options.folders))[: options.heads])
    counts: dict[str, list[bool]] = {}
    for kind, name, (image, affine) in make_inputs(heads):
        if options.kinds and kind not in options.kinds:
            continue
        start = time.process_time()
        try:
            quality = normalise(image, affine, template).quality
            words = " ".join(f"{key} {value:.3g}" for key, value in quality.items())
            refused = False
        except RecordingError as error:
            words, refused = error.reason, True
        counts.setdefault(kind, []).append(refused)
        if options.each or refused == (kind == "right"):
            state = "refused" if refused else "taken"
            print(f"{kind:10} {name:24} {state} {time.process_time() - start:.1f} s: {words}")
            sys.stdout.flush()
    print("\n| kind | images | refused |\n|---|---|---|")
    for kind, refused in counts.items():
        print(f"| {kind} | {len(refused)} | {sum(refused)} ({np.mean(refused):.1%}) |")
    damaged = [one for kind, refused in counts.items() if kind != "right" for one in refused]
    if damaged:
        print(f"| all damaged | {len(damaged)} | {sum(damaged)} ({np.mean(damaged):.1%}) |")


# ---- right images ---------------------------------------------------------------------------


def find_heads(folders: list[Path]) -> Iterator[tuple[str, Picture]]:
    import nibabel as nib
    from nibabel.testing import data_path
    from phantom import make_phantom

    runs = sorted(path for folder in folders for path in folder.rglob("*_bold.nii.gz"))
    for path in [*runs, Path(data_path) / "example4d.nii.gz"]:
        image = nib.load(path)
        mean = np.asarray(image.dataobj[..., :VOLUMES], np.float32).mean(axis=-1)
        yield path.name.split("_")[0].split(".")[0], (mean.T, image.affine)
    for seed, (shape, options) in enumerate(PHANTOMS, start=31):
        still = np.repeat(np.eye(4)[None], 2, axis=0)
        phantom = make_phantom(shape, seed=seed, motion=still, **options)
        name = " ".join([f"phantom {shape}", *(f"{k}={v:g}" for k, v in options.items())])
        yield name, (phantom.volumes.mean(axis=0), phantom.affine)


# ---- damage ---------------------------------------------------------------------------------


def make_inputs(heads: dict[str, Picture]) -> Iterator[tuple[str, str, Picture]]:
    """Kind, name and image of every input."""
    from brainlm.preprocess.normalise.pose import axis_turns

    for name, (image, affine) in heads.items():
        yield "right", name, (image, affine)
    for name, (image, affine) in heads.items():
        for number, turn in enumerate(axis_turns()[1:], start=1):
            yield "turned", f"{name} {number}", (image, _about_middle(turn, image, affine))
        for axes in ((1, 0, 0), (0, 1, 0)):  # z, y of the array; x would be left-right
            flip = tuple(slice(None, None, -1 if axis else 1) for axis in axes)
            yield "mirrored", f"{name} {axes}", (image[flip], affine)
        for order in ((0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)):
            yield "swapped", f"{name} {order}", (image.transpose(order), affine)
        for zooms in (
            (1, 1, 1.5),
            (1, 1, 1 / 1.5),
            (1, 1.6, 1),
            (1.5, 1, 1),
            (0.6,) * 3,
            (1.5,) * 3,
        ):
            scaled = affine @ np.diag([*zooms, 1.0])
            yield "zoomed", f"{name} {np.round(zooms, 2)}", (image, scaled)
        for axis in range(3):
            for low in (True, False):
                yield "halved", f"{name} {axis}{low}", (_blank_half(image, axis, low), affine)
    rng = np.random.default_rng(0)
    for number in range(60):
        yield "noise", str(number), _noise_head(rng, fwhm_mm=(3, 6, 10, 16, 25)[number % 5])
    for number in range(24):
        yield "object", str(number), _object(rng, number % 4)
    for number in range(8):
        yield "cord", str(number), _cord(rng)


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


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Places [Z, Y, X, 3] in mm about the middle, and the affine of a 3.5 mm image."""
    shape, zoom = (48, 64, 56), 3.5
    place = (
        np.moveaxis(np.indices(shape), 0, -1)[..., ::-1] - (np.array(shape[::-1]) - 1) / 2
    ) * zoom
    affine = np.diag([zoom, zoom, zoom, 1.0])
    affine[:3, 3] = place[0, 0, 0]
    return place, affine


def _noise_head(rng, fwhm_mm: float) -> Picture:
    """Smooth noise in an ellipsoid of a brain's size."""
    from scipy import ndimage

    place, affine = _grid()
    radii = np.array([68, 85, 62]) * rng.uniform(0.93, 1.07, 3)
    inside = ((place / radii) ** 2).sum(axis=-1) < 1
    noise = ndimage.gaussian_filter(rng.normal(size=inside.shape), fwhm_mm / 2.355 / affine[0, 0])
    image = inside * (800 + 150 * noise / noise.std())
    return np.float32(image + 15 * np.abs(rng.normal(size=inside.shape))), affine


def _object(rng, kind: int) -> Picture:
    """A ball, an ellipsoid, a bottle (cylinder), a box: even, with a receive bias."""
    place, affine = _grid()
    size = rng.uniform(60, 80)
    x, y, z = np.moveaxis(place, -1, 0)
    inside = [
        (place**2).sum(axis=-1) < size**2,
        ((place / [66, 84, 60]) ** 2).sum(axis=-1) < (size / 70) ** 2,
        (x**2 + y**2 < size**2) & (np.abs(z) < size),
        np.abs(place).max(axis=-1) < 0.85 * size,
    ][kind]
    bias = 1 + 0.3 * (place @ rng.normal(size=3)) / 100
    return np.float32(1000 * inside * bias + 10 * np.abs(rng.normal(size=inside.shape))), affine


def _cord(rng) -> Picture:
    """A neck: a column of tissue with a cord in its canal."""
    place, affine = _grid()
    x, y, z = np.moveaxis(place, -1, 0)
    bend = 8 * np.sin(z / 60 + rng.uniform(0, 3))
    radius = np.hypot(x, y - bend)
    image = 400.0 * (np.hypot(x / 60, (y - bend) / 65) < 1)
    image = np.where(radius < 12, 1100, image)  # fluid
    image = np.where(radius < 6, 700, image)
    image *= np.abs(z) < 80
    return np.float32(image + 15 * np.abs(rng.normal(size=image.shape))), affine


if __name__ == "__main__":
    main()
