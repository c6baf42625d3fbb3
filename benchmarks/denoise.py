"""What each way of denoising removes and what it costs, on two generators and on real runs.

    python benchmarks/denoise.py [FOLDER] [--recordings 3] [--seed 0] [--only ours|other|real]

*ours* is brainlm.simulate with the artefacts of simulate/physiology.py. *other* shares no code
with it: the head, motion and reading of tests/phantom.py, smooth networks that are no parcels
with 1/f courses, and artefacts written differently (below). Every run goes through the motion,
normalisation and denoising stages; a twin without artefacts, with the same motion and noise, is
read at the same places. Denoising is linear in the series, so its matrix is applied to what the
artefacts added and to the true signal alone. FOLDER is a BIDS dataset of real runs. What the
figures say of the default is decided by :func:`decide`, the rule of docs/results/denoising.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

WAYS: dict[str, tuple[str, ...]] = {
    "none": (), "motion24": ("motion24",), "wm-csf": ("wm-csf",), "acompcor": ("acompcor",),
    "ica": ("ica",), "ica + wm-csf": ("ica", "wm-csf"), "ica + acompcor": ("ica", "acompcor"),
}  # fmt: skip
DEFAULT = "ica"  # what a challenger had to beat, by the rule of the page
HIGH_PASS_HZ = 0.008
NEURAL_SD = 0.008  # of the signal: of the median parcel, as brainlm.simulate has it


@dataclass(frozen=True)
class Setting:
    """How a run is made; `artefacts` multiplies them all, `white` is what white matter has of
    grey matter's BOLD (of the other generator: ours has it in grey matter only)."""

    tr_s: float = 2.0
    volumes: int = 120
    tsnr: float = 60.0
    artefacts: float = 1.0
    white: float = 0.0


SETTINGS = {
    "first": Setting(),
    "fast": Setting(tr_s=0.8, volumes=300, tsnr=40.0),
    "weak": Setting(artefacts=0.4),
    "white": Setting(white=0.3),
}

Run = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Volumes with artefacts, and without, [T, Z, Y, X]; affine; true series [T, R]."""
Figures = dict[str, dict[str, float]]  # of every way


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--recordings", type=int, default=3, help="of each generator and setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("ours", "other", "real"))
    parser.add_argument("--rows", type=Path, help="a line per recording; those there are kept")
    options = parser.parse_args()
    cells: dict[str, list[Figures]] = {}
    for name, make in (("ours", simulate), ("other", make_other)):
        for place, (title, setting) in enumerate(SETTINGS.items()):
            if options.only in (None, name) and (name == "other" or not setting.white):
                first = 1000 * options.seed + 100 * place
                cells[f"{name}, {title}"] = [
                    measure(f"{name}, {title}", make, seed, setting, options.rows)
                    for seed in range(first, first + options.recordings)
                ]
    if cells:
        report(cells)
    real = {}
    if options.folder and options.only in (None, "real"):
        real = report_real(options.folder)
    if cells:
        decide(cells, real)


def measure(name: str, make: Any, seed: int, setting: Setting, rows: Path | None) -> Figures:
    """Figures of a recording, from the table of those made before where it is there."""
    lines = rows.read_text().splitlines() if rows and rows.exists() else []
    made = {(line["cell"], line["seed"]): line["ways"] for line in map(json.loads, lines)}
    if (name, seed) not in made:
        made[name, seed] = judge(make(seed, setting), setting.tr_s)
        if rows:
            with rows.open("a") as out:
                line = {"cell": name, "seed": seed, "ways": made[name, seed]}
                out.write(json.dumps(line) + "\n")
    return made[name, seed]


# ---- the pipeline


def judge(run: Run, tr_s: float) -> Figures:
    """Figures of every way of denoising a run whose truth is known."""
    volumes, twin, affine, true = run
    with tempfile.TemporaryDirectory() as folder:
        chain = process(write_run(Path(folder), volumes, affine, tr_s), Path(folder) / "out")
        measured, _ = read_series(chain, volumes)
        clean_run, seen = read_series(chain, twin)
        level = clean_run[:, seen].mean(0)
        series = 100 * measured[:, seen] / level
        artefact = 100 * (measured - clean_run)[:, seen] / level
        true = 100 * true[:, seen]
        converged = {"converged": chain.figures["denoise"]["ica_converged"]}
        return {
            way: compare(series, artefact, true, tr_s, choose(chain, steps)) | converged
            for way, steps in WAYS.items()
        }


def compare(series, artefact, true, tr_s: float, model: dict[str, Any]) -> dict[str, float]:
    def apply(values, **model):
        from brainlm.preprocess.denoise.filter import clean

        return clean(values, tr_s, high_pass_hz=HIGH_PASS_HZ, **model)

    cleaned, wanted = apply(series, **model), apply(true)
    kept, left = apply(true, **model), apply(artefact, **model)
    return {
        "r": float(np.median(correlate(cleaned, wanted))),
        "removed": float(1 - (left**2).sum() / (apply(artefact) ** 2).sum()),
        "cost": float(1 - np.median(correlate(kept, wanted))),
        "lost": float(1 - (kept**2).sum() / (wanted**2).sum()),
        "connectome": float(np.corrcoef(pairs(cleaned), pairs(wanted))[0, 1]),
        "columns": 0 if model["nuisance"] is None else model["nuisance"].shape[1],
    }


def correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of the columns of two [T, R]."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))


def pairs(series: np.ndarray) -> np.ndarray:
    matrix = np.corrcoef(series.T)
    return matrix[np.triu_indices(len(matrix), 1)]


def write_run(folder: Path, volumes: np.ndarray, affine: np.ndarray, tr_s: float) -> Path:
    import nibabel as nib

    from brainlm.files import write_json

    path = folder / "raw/sub-01/func/sub-01_task-rest_bold.nii.gz"
    path.parent.mkdir(parents=True)
    image = nib.Nifti1Image(np.rint(volumes).astype(np.int16).T, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = tr_s
    nib.save(image, path)
    write_json(path.with_name("sub-01_task-rest_bold.json"), {"RepetitionTime": tr_s})
    return path


@cache
def demo_atlas() -> Any:
    from brainlm.atlas import load_atlas
    from brainlm.preprocess.parcellate.parcel_means import parcel_points

    with tempfile.TemporaryDirectory() as folder:
        atlas = load_atlas("demo424", Path(folder))
        parcel_points(atlas)  # kept in memory
    return atlas


def process(path: Path, out: Path) -> Any:
    """Motion, normalisation and ICA of a run; its other confounds come along."""
    from chain import Chain, make_entry

    from brainlm.config import Preprocess

    entry = make_entry(path.parents[2], path)
    chain = Chain(entry, demo_atlas(), out, config=Preprocess(min_duration_s=60))
    chain.run("motion", "normalise", "denoise")
    return chain


def read_series(chain: Any, volumes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Parcel means [T, R] of a run, or of other volumes at its places; which have data."""
    from dataclasses import replace

    from brainlm.preprocess.stages.voxels import read_parcels, read_prepared

    bold = read_prepared(chain.entry, chain.paths, chain.config)
    if volumes is not None:
        settled = np.rint(volumes[-len(bold.volumes) :]).astype(np.float32)
        bold = replace(bold, volumes=np.ascontiguousarray(settled))
    series, coverage = read_parcels(bold, chain.paths, chain.atlas)
    return series, (coverage > 0.5) & np.isfinite(series).all(0)


def choose(chain: Any, steps: tuple[str, ...]) -> Any:
    from brainlm.preprocess.denoise.confounds import read_nuisance

    return read_nuisance(chain.paths, chain.config.model_copy(update={"denoise": steps}))


# ---- ours


def simulate(seed: int, setting: Setting) -> Run:
    from dataclasses import replace

    from brainlm.simulate import anatomy, demo_atlas, physiology, scanner, signals

    rng = np.random.default_rng([seed, 20])
    head = anatomy.make_head(rng, 4.0)
    times = setting.tr_s * np.arange(setting.volumes)
    networks = demo_atlas.parcellate_template().networks
    individual = signals.draw_individual(rng, 50.0)
    _, series = signals.make_parcel_series(rng, times, networks, individual)
    neck = head.placement.to_head(np.array([[0.0, -20.0, -60.0]]))[0]
    motion = signals.make_motion(rng, times, signals.make_breath(rng, times), neck)
    scene = scanner.make_scene(rng, head)
    still, fluid, grey = scanner.draw_voxels(head, "epi", "fluid", "grey")
    index = np.indices(head.shape).reshape(3, -1)[::-1].T
    place = head.placement.to_template(anatomy.transform(head.affine, index))
    sinus = np.exp(-((place - (0, 34, -28)) ** 2).sum(1) / (2 * 14**2)).reshape(head.shape)
    bright = np.maximum(still, 0.05)
    shares = fluid / bright, grey / bright
    drawn = physiology.draw_physiology(
        rng, still, *shares, sinus, motion, head.affine, setting.tr_s
    )
    much = np.float32(setting.artefacts)
    drawn = replace(drawn, maps=much * drawn.maps, lost=much * drawn.lost)
    nothing, state = np.zeros((setting.volumes, 4)), rng.bit_generator.state
    volumes = []
    for extra in (drawn, None):
        rng.bit_generator.state = state  # the same noise
        volumes.append(
            scanner.scan(rng, head, scene, series, nothing, motion, setting.tsnr, extra)
        )
    return *volumes, head.affine, series  # type: ignore[return-value]


# ---- another, which shares nothing with ours


def make_other(seed: int, setting: Setting) -> Run:
    """Networks and artefacts drawn on tests/phantom.py, with the artefacts of :func:`disturb`."""
    import phantom as ph

    from brainlm.preprocess.parcellate.parcel_means import parcel_points

    rng = np.random.default_rng([seed, 21])
    count, tr_s = setting.volumes, setting.tr_s
    motion = ph.make_motion(count, seed, size=0.5, spikes=4)
    made = ph.make_phantom("demo", motion=motion, seed=seed, tsnr=1e9, drift=0, fluctuation=0)
    clean, shape = made.volumes, made.volumes.shape[1:]
    world = np.indices(shape).reshape(3, -1)[::-1].T @ made.affine[:3, :3].T + made.affine[:3, 3]
    place = made.subject.find(world)

    centres = rng.uniform((-60, -95, -40), (60, 65, 70), (40, 3))
    widths = rng.uniform(9, 20, 40)
    power = 1 / np.maximum(np.fft.rfftfreq(4 * count, tr_s), 0.01) ** 0.6
    noise = np.fft.rfft(rng.standard_normal((4 * count, 40)), axis=0) * power[:, None]
    courses = np.fft.irfft(noise, axis=0)
    lag = np.arange(0, 24, tr_s)
    courses = np.stack([np.convolve(c, lag**5 * np.exp(-lag))[: len(c)] for c in courses.T], 1)
    courses = courses[count : 2 * count] @ np.linalg.qr(rng.standard_normal((40, 40)))[0]
    courses = (courses - courses.mean(0)) / courses.std(0)

    def spread(points):
        square = ((points[:, None] - centres) ** 2).sum(2)
        return np.exp(-square / (2 * widths**2)).astype(np.float32)

    points, labels = parcel_points(demo_atlas())
    size = np.bincount(labels)[1:]
    means = [np.bincount(labels, weights=w)[1:] / size for w in spread(points).T]
    true = courses @ np.stack(means)
    scale = NEURAL_SD / np.median(true.std(0))
    courses, true = scale * courses, scale * true
    grey, white, _, head_affine = ph._head_maps(seed, 2.5)
    held = grey + np.float32(setting.white) * white  # where BOLD is
    share = ph._scan(held, head_affine, made.affine, shape, np.eye(4))
    neural = (spread(place) @ courses.T.astype(np.float32)).T.reshape(count, *shape) * share
    oxygen = share if setting.white else made.brain
    places = world, place.reshape(*shape, 3)
    change = disturb(rng, clean, made.brain, oxygen, *places, motion, made.affine, tr_s)
    sd = np.float32(900.0 / setting.tsnr)
    run, twin = np.empty_like(clean), np.empty_like(clean)
    for t, (volume, extra) in enumerate(zip(clean, change, strict=True)):
        real, imaginary = rng.standard_normal((2, *shape), dtype=np.float32) * sd
        for out, gain in ((run, neural[t] + setting.artefacts * extra), (twin, neural[t])):
            out[t] = np.hypot(volume * (1 + gain) + real, imaginary)
    return run, twin, made.affine, true


def disturb(rng, clean, brain, oxygen, world, place, motion, affine, tr_s) -> Iterator[np.ndarray]:
    """By what fraction artefacts change each volume: pulse trains, sighs, moved slices, spikes.

    The pulse is a train of sharp waves at jittered intervals that reaches vessels after 0, 0.15
    and 0.3 s, read when each slice is; a breath shifts the image along y by its own depth and
    lowers signal (where `oxygen` is) half a minute after a sigh; a slice that moved relaxes over
    the next volumes, voxel by voxel; signal above the nose goes with the head's angle; slices
    are lost.
    """
    from scipy import ndimage

    count, (depth, _, _) = len(clean), clean.shape[1:]
    clock = tr_s * (np.arange(count)[:, None] + np.arange(depth) / depth)  # ascending
    mean = clean.mean(0)
    level = np.median(mean[brain])

    beats = np.cumsum(rng.normal(0.92, 0.06, 4 * count))

    def wave(times):
        since = times - beats[np.maximum(np.searchsorted(beats, times) - 1, 0)]
        return np.exp(-np.maximum(since, 0) / 0.22) - 0.24

    tubes = [((0, -8, -24), 13.0), ((0, -90, 20), 10.0), ((0, 20, 62), 10.0), ((42, -5, -8), 9.0),
             ((-42, -5, -8), 9.0)]  # fmt: skip
    vessels = sum(np.exp(-((place - c) ** 2).sum(-1) / (2 * w**2)) for c, w in tubes)
    vessels = 0.05 * vessels + 0.05 * ndimage.gaussian_filter(
        ((mean > 1.12 * level) & brain).astype(float), 0.8
    )
    arrival = ndimage.gaussian_filter(rng.standard_normal(mean.shape), 5)
    arrival = (arrival - arrival.min()) / np.ptp(arrival) * 2
    shares = [np.clip(1 - np.abs(arrival - k), 0, 1) for k in range(3)]
    pulses = [wave(clock - 0.15 * k) for k in range(3)]

    breaths = np.cumsum(rng.uniform(2.8, 4.6, count))
    sizes = rng.lognormal(0, 0.3, count) * np.where(rng.random(count) < 0.06, 2.5, 1)
    which = np.minimum(np.searchsorted(breaths, clock), count - 1)
    start = np.where(which > 0, breaths[which - 1], 0)
    chest = sizes[which] * np.sin(np.pi * (clock - start) / (breaths[which] - start)) ** 2
    slope = np.gradient(mean, axis=1) / np.maximum(mean, 0.25 * level)
    slope *= 0.2 / np.linalg.norm(affine[:3, 1]) * np.linspace(1.2, 0.1, depth)[:, None, None]
    per_volume = np.interp(clock[:, 0], breaths, sizes)
    tail = np.array([np.exp(-0.5 * ((t - 24) / 7) ** 2) for t in np.arange(0, 60, tr_s)])
    sighs = np.convolve(per_volume - per_volume.mean(), tail)[:count]
    sighs *= 0.004 / max(sighs.std(), 1e-9)

    normal = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    thickness = np.linalg.norm(affine[:3, 2])
    sinus = np.exp(-((place - (0, 30, -26)) ** 2).sum(-1) / (2 * 15**2))
    angle = np.rad2deg(motion[:, 2, 1] - motion[:, 2, 1].mean())
    history = np.zeros(mean.shape)
    lost = rng.random((count, depth)) < 0.004
    for t in range(count):
        step = motion[t] @ np.linalg.inv(motion[max(t - 1, 0)]) - np.eye(4)
        through = np.abs((world @ step[:3, :3].T + step[:3, 3]) @ normal) / thickness
        history = 0.3 * history + np.minimum(0.15 * through.reshape(mean.shape), 0.1)
        column = [c[t][:, None, None] for c in (*pulses, chest)]
        gain = vessels * sum(s * c for s, c in zip(shares, column[:3], strict=True))
        gain += -slope * column[3] - oxygen * sighs[t] - history - 0.06 * angle[t] * sinus
        gain += 0.01 * (t / count - 0.5)
        part = np.where(lost[t], rng.uniform(0.05, 0.5, depth), 0)
        yield (1 + gain) * (1 - part[:, None, None]) - 1


# ---- what is printed


def report(cells: dict[str, list[Figures]]) -> None:
    """Two figures in each cell, and all figures over all cells."""
    for key, title in (("r", "r with the true signal"), ("connectome", "r of connectomes")):
        print(f"\n| {title} | {' | '.join(cells)} |\n|---{'|---' * len(cells)}|")
        for way in WAYS:
            values = [[row[way][key] for row in rows] for rows in cells.values()]
            print(f"| {way} | {' | '.join(f'{np.mean(v):.3f}' for v in values)} |")
    print("\n| all cells | r with the true signal | artefact removed | cost | signal lost "
          "| r of connectomes | columns |\n|---|---|---|---|---|---|---|")  # fmt: skip
    rows = [row for made in cells.values() for row in made]
    for way in WAYS:
        texts = []
        for key in ("r", "removed", "cost", "lost", "connectome"):
            values = [row[way][key] for row in rows]
            texts.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        columns = np.mean([row[way]["columns"] for row in rows])
        print(f"| {way} | {' | '.join(texts)} | {columns:.0f} |", flush=True)
    converged = sum(bool(row[DEFAULT]["converged"]) for row in rows)
    print(f"\nICA converged in {converged} of {len(rows)} recordings", flush=True)


def decide(cells: dict[str, list[Figures]], real: dict[str, dict[str, list[float]]]) -> None:
    """Which challengers the rule of the page passes, and why the others fail."""

    def gains(way: str, key: str) -> list[np.ndarray]:  # in every cell, of every recording
        return [np.array([row[way][key] - row[DEFAULT][key] for row in c]) for c in cells.values()]

    print(f"\n| against {DEFAULT} | r, least of the cells | recordings with higher r "
          "| connectomes, least of the cells | connectomes, all | real: follows FD, most "
          "| real: own less other's | passes |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for way in WAYS:
        if way == DEFAULT:
            continue
        r, pairs_r = gains(way, "r"), gains(way, "connectome")
        figures = [
            min(gain.mean() for gain in r), np.mean(np.concatenate(r) > 0),
            min(gain.mean() for gain in pairs_r), np.concatenate(pairs_r).mean(),
        ]  # fmt: skip
        passes = figures[0] > 0 and figures[1] >= 0.8 and figures[2] >= -0.01 and figures[3] > 0
        if real:
            follows, own = (np.subtract(real[way][k], real[DEFAULT][k]) for k in ("fd", "own"))
            figures += [follows.max(), own.min()]
            passes = passes and figures[4] <= 0.01 and figures[5] >= -0.02
        texts = [f"{value:+.3f}" for value in figures] + ["not run"] * (6 - len(figures))
        texts[1] = f"{figures[1]:.0%}"
        print(f"| {way} | {' | '.join(texts)} | {'yes' if passes else 'no'} |", flush=True)


def report_real(folder: Path) -> dict[str, dict[str, list[float]]]:
    """tSNR of parcels, how connectivity follows motion, and halves of runs, where there are."""
    from brainlm.preprocess.denoise.filter import clean
    from brainlm.preprocess.io.derivatives import read_table
    from brainlm.preprocess.quality import fd_connectivity

    halves: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
    rows: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    names = []
    for path in sorted(folder.glob("sub-*/**/*_bold.nii.gz")):
        try:
            chain = process(path, Path(tempfile.mkdtemp(prefix="denoise-")))
        except Exception as error:  # a run too short, or refused: said, and left out
            print(f"{path.name}: left out: {error}")
            continue
        names.append(path.name.split("_")[0])
        series, seen = read_series(chain)
        tr_s = chain.figures["motion"]["repetition_time_s"]
        moved = read_table(chain.paths.confounds)["framewise_displacement"]
        for way, steps in WAYS.items():
            percent = 100 * series / np.where(seen, series.mean(0), 1)
            percent[:, ~seen] = np.nan
            made = clean(percent, tr_s, high_pass_hz=HIGH_PASS_HZ, **choose(chain, steps))
            tsnr = float(np.nanmedian(100 / made.std(0)))
            rows[way].append((tsnr, fd_connectivity(made[:, seen], moved)))
            half = len(made) // 2
            halves[way].append(np.stack([made[:half], made[-half:]]))
    print(f"\n**real runs** ({', '.join(names)})\n")
    print(
        "| | parcel tSNR | connectivity follows FD | halves: own less other's |\n|---|---|---|---|"
    )
    real = {}
    for way in WAYS:
        own, other = identify(halves[way])
        real[way] = {"fd": [row[1] for row in rows[way]], "own": [own - other]}
        tsnr = " / ".join(f"{row[0]:.0f}" for row in rows[way])
        follows = " / ".join(f"{row[1]:.3f}" for row in rows[way])
        print(f"| {way} | {tsnr} | {follows} | {own:.3f} − {other:.3f} = {own - other:.3f} |",
              flush=True)  # fmt: skip
    return real


def identify(runs: list[np.ndarray]) -> tuple[float, float]:
    """Mean r of the connectomes of a run's halves, and of halves of different runs."""
    seen = np.all([np.isfinite(run).all((0, 1)) for run in runs], axis=0)
    sides = [[pairs(half[:, seen]) for half in run] for run in runs]
    own = [np.corrcoef(first, second)[0, 1] for first, second in sides]
    other = [
        np.corrcoef(sides[i][0], sides[j][1])[0, 1]
        for i in range(len(sides)) for j in range(len(sides)) if i != j
    ]  # fmt: skip
    return float(np.mean(own)), float(np.mean(other))


if __name__ == "__main__":
    main()
