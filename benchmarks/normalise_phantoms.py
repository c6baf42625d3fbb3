"""Normalisation of many hard phantoms of two generators, against the truth, by every way.

    python benchmarks/normalise_phantoms.py [--generator smooth|sharp] [--cases NAME ...]
        [--seeds 0 1 2] [--fast FILE] [--rows FILE]

Generators: `smooth` is that of tests/phantom.py (sums of waves bend the bundled template's soft
tissue maps); `sharp` shares nothing with it but the reading of numbers: hard labels of tissues,
bent by sums of Gaussian bumps. Its anatomy is FAST's labels of MNI152NLin6Asym (FILE), fitted with
that template, or else the bundled template's largest shares. Drop-out and susceptibility
distortion (along y, with its effect on intensities) are put into the head before it is scanned.
The T1w was taken elsewhere in the scanner, with neither.

Prints for each fit the error over the template's brain in view (mean, 95th percentile, largest
mean over a region of 24 mm), of its affine part as well, by how much the bend loses to the
affine in the worst region, what was chosen, and the seconds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
REGION_MM = 24.0
#: name -> what differs from the base
CASES: dict[str, dict] = {
    "base": {},
    "drop-out": {"dropout": 0.9},
    "drop-out, 6 mm": {"dropout": 0.9, "distortion_mm": 6.0},
    "drop-out, 12 mm": {"dropout": 0.9, "distortion_mm": 12.0},
    "6 mm": {"distortion_mm": 6.0},
    "12 mm": {"distortion_mm": 12.0},
    "strong warp": {"bend_mm": 5.0},
    "coarse": {"zooms": (6.0, 6.0, 6.0)},
    "thick": {"zooms": (2.0, 2.0, 5.0)},
    "bias": {"bias": 0.8},
    "noise": {"tsnr": 10.0},
    "slab": {"depth_mm": 70.0},
    "oblique": {"oblique_deg": 30.0},
}
# Air next to brain: mm in the template, SD in mm, share of the loss, share of the distortion
EARS = (12, 0.8, -0.6)
AIR = [((0, 40, -24), 15, 1.0, 1.0), ((52, -24, -30), *EARS), ((-52, -24, -30), *EARS)]

Places = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Case:
    """A mean image, a T1w image, and where the template's points lie in the image."""

    image: np.ndarray
    affine: np.ndarray
    t1w: np.ndarray
    t1w_affine: np.ndarray
    truth: Places
    template: object


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generator", choices=["smooth", "sharp"], default="smooth")
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--fast", type=Path)
    parser.add_argument("--rows", type=Path, help="a table with a row per fit")
    options = parser.parse_args()
    rows = []
    for name, seed in itertools.product(options.cases, options.seeds):
        case = make_case(options.generator, seed, options.fast, **CASES[name])
        fits, taken, seconds = fit_case(case)
        if not fits:
            print(f"{name:16s} {seed:3d} {taken}", flush=True)
        for way, fit in fits.items():
            figures = judge(case, fit) | {"border": fit.quality[f"boundary_{way}"]}
            figures["r"] = fit.quality["correlation"]
            rows.append({"case": name, "seed": seed, "way": way, "taken": taken == way} | figures)
            shown = " ".join(f"{k} {v:.3f}" for k, v in figures.items())
            mark = "*" if taken == way else ""
            print(f"{name:16s} {seed:3d} {way:6s} {mark:1s} {shown}  {seconds:.1f} s", flush=True)
    summarise(rows)
    if options.rows:
        import pandas as pd

        pd.DataFrame(rows).to_csv(options.rows, sep="\t", index=False)


def summarise(rows: list[dict]) -> None:
    import pandas as pd

    table = pd.DataFrame(rows)
    taken = table[table["taken"]].assign(way="taken")
    best = table.loc[table.groupby(["case", "seed"])["mean"].idxmin()].assign(way="nearer")
    table = pd.concat([table, taken, best])
    columns = ["mean", "p95", "worst", "affine", "affine_p95", "loss"]
    for by in (["case", "way"], ["way"]):
        print(table.groupby(by, sort=False)[columns].mean().round(2).to_string())
    both = taken.merge(best, on=["case", "seed"], suffixes=("", "_best"))
    right = both["mean"] <= both["mean_best"]
    print(f"the nearer way was taken in {right.sum()} of {len(right)}")


def fit_case(case: Case) -> tuple[dict[str, object], str, float]:
    """The fits by their method, the one that is taken, and the seconds of processor time."""
    from brainlm.errors import RecordingError
    from brainlm.preprocess.normalise.registration import choose_way, fit_ways

    started = time.process_time()
    try:
        fits = fit_ways(
            case.image, case.affine, case.template, t1w=case.t1w, t1w_affine=case.t1w_affine
        )
    except RecordingError as error:
        return {}, str(error), time.process_time() - started
    return fits, choose_way(fits, insist=False).method, time.process_time() - started


def judge(case: Case, fit) -> dict[str, float]:
    """Errors in mm over the template's brain within the field of view."""
    from dataclasses import replace

    template = case.template
    index = np.argwhere(template.mask)[::5, ::-1]
    points = index @ template.affine[:3, :3].T + template.affine[:3, 3]
    places = case.truth(points)
    voxels = (places - case.affine[:3, 3]) @ np.linalg.inv(case.affine[:3, :3]).T
    seen = ((voxels > 0) & (voxels < np.array(case.image.shape)[::-1] - 1)).all(axis=1)
    points, places = points[seen], places[seen]
    bent = np.linalg.norm(fit(points) - places, axis=1)
    still = replace(fit, coefficients=np.zeros_like(fit.coefficients))
    straight = np.linalg.norm(still(points) - places, axis=1)
    cells = np.unique(np.floor(points / REGION_MM), axis=0, return_inverse=True)[1].ravel()
    count = np.bincount(cells)
    full = count > 0.2 * count.max()
    mean, before = (np.bincount(cells, one)[full] / count[full] for one in (bent, straight))
    return {
        "mean": bent.mean(), "p95": np.percentile(bent, 95), "worst": mean.max(),
        "affine": straight.mean(), "affine_p95": np.percentile(straight, 95),
        "loss": (mean - before).max(),
    }  # fmt: skip


# ---- heads ----------------------------------------------------------------------------------


def make_case(generator: str, seed: int, fast: Path | None = None, **options) -> Case:
    """A phantom; see CASES for the options."""
    from phantom import _receive_field, _scan, _scanner_affine, _turn

    rng = np.random.default_rng([seed, 77])
    make = _smooth_head if generator == "smooth" else _sharp_head
    head = make(seed, options.get("bend_mm", 2.5), fast)
    epi, t1w, brain, grid, where, place, template = head
    zooms = np.array(options.get("zooms", (3.0, 3.0, 3.0)))
    loss = _air(where, epi.shape, options.get("dropout", 0.5), 2)
    shift = _air(where, epi.shape, options.get("distortion_mm", 0.0), 3)
    epi = _distort(epi * (1 - np.clip(loss, 0, 0.97)), shift, grid[1, 1])
    size = np.array([64, 76, options.get("depth_mm", 132.0) / 3]) * 3 / zooms
    matrix = np.round(size).astype(int)
    affine = _scanner_affine(matrix, zooms, options.get("oblique_deg", 8.0), brain, grid)
    shape = tuple(matrix[::-1])
    image = _scan(epi.astype(np.float32), grid, affine, shape, np.eye(4))
    image *= _receive_field(shape, options.get("bias", 0.3), rng)
    noise = rng.normal(scale=800 / options.get("tsnr", 60.0) / np.sqrt(10), size=(2, *shape))
    image = np.hypot(image + noise[0], noise[1]).astype(np.float32)
    moved = np.eye(4)
    moved[:3, :3] = _turn(np.deg2rad(rng.uniform(-5, 5, 3)))
    moved[:3, 3] = rng.uniform(-8, 8, 3)
    t1w_noise = rng.normal(scale=25, size=(2, *t1w.shape))
    tall = 1 + 0.2 * np.linspace(-1, 1, len(t1w))[:, None, None]
    anatomy = np.hypot(t1w * tall + t1w_noise[0], t1w_noise[1]).astype(np.float32)

    def truth(points: np.ndarray) -> np.ndarray:
        places = place(points)
        along = (places - grid[:3, 3]) / np.diag(grid)[:3]
        from scipy import ndimage

        places[:, 1] += ndimage.map_coordinates(shift, along.T[::-1], order=1, mode="nearest")
        return places

    return Case(image, affine, anatomy, moved @ grid, truth, template)


def _air(where: np.ndarray, shape, size: float, what: int) -> np.ndarray:
    """Loss (what 2) or displacement (3) near air on the head's grid, [Z, Y, X].

    `where` [N, 3] in the template its voxels lie.
    """
    if not size:
        return np.zeros(shape, np.float32)
    total = np.zeros(len(where), np.float32)
    for centre, sd_mm, *shares in AIR:
        spread = sd_mm * (1.0 if what == 2 else 1.6)
        far = ((where - np.float32(centre)) ** 2).sum(axis=1) / spread**2
        total += np.float32(size * shares[what - 2]) * np.exp(-far / 2)
    return total.reshape(shape)


def _distort(image: np.ndarray, shift: np.ndarray, zoom: float) -> np.ndarray:
    """What lies at y is seen at y + shift; signal piles up where space is squeezed."""
    from scipy import ndimage

    if not shift.any():
        return image
    index = np.indices(image.shape, dtype=np.float32)
    y = index[1].copy()
    for _ in range(30):
        read = ndimage.map_coordinates(shift, [index[0], y, index[2]], order=1, mode="nearest")
        y = index[1] - read / zoom
    stretch = 1 + np.gradient(shift, zoom, axis=1)
    seen = image / np.maximum(stretch, 0.2)
    return ndimage.map_coordinates(seen, [index[0], y, index[2]], order=1, mode="nearest")


@cache
def _smooth_head(seed: int, bend_mm: float, fast):
    from phantom import _world, make_head, make_subject

    from brainlm.preprocess.normalise.template import load_template

    epi, brain, grid = make_head(seed, bend_mm, "epi")
    t1w = make_head(seed, bend_mm, "t1w")[0]
    subject = make_subject(seed, bend_mm)
    where = subject.find(_world(epi.shape, grid).astype(np.float32))
    return epi, t1w, brain, grid, where, subject.place, load_template("MNI152NLin2009aSym")


@cache
def _sharp_head(seed: int, bend_mm: float, fast):
    """Hard labels, bent by bumps; scalp and marrow of another make."""
    from phantom import _turn, _world
    from scipy import ndimage

    labels, source, template = _labels(fast)
    rng = np.random.default_rng([seed, 5])
    linear = np.eye(4)
    shear = np.eye(3) + np.triu(rng.normal(scale=0.03, size=(3, 3)), 1)
    turn, zooms = _turn(np.deg2rad(rng.uniform(-8, 8, 3))), rng.uniform(0.92, 1.08, 3)
    linear[:3, :3] = turn @ shear @ np.diag(zooms)
    linear[:3, 3] = rng.uniform(-6, 6, 3)
    centres = rng.uniform((-70, -105, -45), (70, 75, 85), (24, 3)).astype(np.float32)
    widths = rng.uniform(18, 45, 24).astype(np.float32)
    pushes = rng.normal(size=(24, 3)).astype(np.float32)
    points = np.argwhere(labels > 0)[::97, ::-1] @ source[:3, :3].T + source[:3, 3]

    def bend(points, scale):
        out = np.zeros_like(points)
        for centre, width, push in zip(centres, widths, pushes, strict=True):
            far = ((points - centre) ** 2).sum(axis=1) / width**2
            out += np.exp(-far / 2)[:, None].astype(points.dtype) * (push * scale)
        return out

    scale = bend_mm / np.sqrt((bend(points, 1.0) ** 2).sum(axis=1).mean())

    def find(points: np.ndarray) -> np.ndarray:
        turned, shift = (part.astype(points.dtype) for part in (linear[:3, :3].T, linear[:3, 3]))
        straight = points @ turned + shift
        return straight + bend(straight, np.float32(scale))

    def place(points: np.ndarray) -> np.ndarray:
        found = points
        for _ in range(60):
            found = points - bend(found, scale)
        return (found - linear[:3, 3]) @ np.linalg.inv(linear[:3, :3]).T

    zoom, shape = 2.0, (112, 130, 106)  # the zoom of the other generator, as its scanner expects
    grid = np.diag([zoom, zoom, zoom, 1.0])
    grid[:3, 3] = (-105.0, -140.0, -98.0)
    where = find(_world(shape, grid).astype(np.float32))
    index = ((where - source[:3, 3]) / np.diag(source)[:3]).T[::-1].astype(np.float32)
    shares = [
        ndimage.map_coordinates(np.float32(labels == k), index, order=1, output=np.float32)
        .reshape(shape) for k in (1, 2, 3)
    ]  # fmt: skip
    brain = sum(shares) > 0.5
    outside = ndimage.distance_transform_edt(~brain, sampling=zoom).astype(np.float32)
    marrow, scalp = (np.exp(-(((outside - d) / w) ** 2)) for d, w in ((7, 2), (13, 3)))
    noise = rng.normal(size=(2, *shape)).astype(np.float32)
    texture = [ndimage.gaussian_filter(n, sd) for n, sd in zip(noise, (1.5, 6), strict=True)]
    rough = 1 + 0.03 * sum(t / t.std() for t in texture)
    epi = (1100 * shares[0] + 880 * shares[1] + 660 * shares[2]) * rough + 120 * scalp
    t1w = (220 * shares[0] + 600 * shares[1] + 900 * shares[2]) * rough
    t1w += 500 * marrow + 950 * scalp
    return epi, t1w, brain, grid, where, place, template


@cache
def _labels(fast: Path | None):
    """1 CSF, 2 grey, 3 white [Z, Y, X], their affine, and the template to fit."""
    import nibabel as nib

    from brainlm.preprocess.normalise.template import load_template

    if fast is None:
        found = load_template("MNI152NLin2009aSym")
        stack = np.stack([0.3 * found.mask, found.csf, found.grey, found.white])
        return stack.argmax(axis=0) * found.mask, found.affine, found
    found, image = load_template("MNI152NLin6Asym"), nib.as_closest_canonical(nib.load(fast))
    labels = np.rint(image.get_fdata(dtype=np.float32).T)
    labels = np.where(found.mask, np.maximum(labels, 1), 0)  # one outline for both
    return labels.astype(int), image.affine, found


if __name__ == "__main__":
    main()
