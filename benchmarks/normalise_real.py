"""Normalisation of real recordings, ours and antspyx SyN, by the same figures.

    python benchmarks/normalise_real.py FOLDER [--atlas-folder atlases/files] [--threads 1]

FOLDER is a BIDS dataset. Prints, for each fit: seconds; correlation of the mean image with the
template's tissue mixture; Dice of the two brains inside the field of view; share of the
template's brain inside it; homogeneity of parcels (mean correlation of two voxels of a parcel,
over the parcels that every fit has data for; the run is denoised once, with our direct fit, as
what a fit's tissues and components take away would count as homogeneity).

SyN gets the brain-masked mean image: as it is called by default, and started from our affine
within the field of view. Through the T1w, where there is one, it gets the T1w's brain as our
fit finds it, and ANTs' own rigid fit of the mean image to it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--atlas", default="a424")
    parser.add_argument("--atlas-folder", type=Path, default=Path("atlases/files"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(options.threads)
    import numba

    from brainlm.atlas import load_atlas
    from brainlm.cohort.index import read_entries, update_index
    from brainlm.config import Cohort, Config
    from brainlm.preprocess.stages.context import Context

    numba.set_num_threads(options.threads)
    atlas = load_atlas(options.atlas, options.atlas_folder)
    with tempfile.TemporaryDirectory() as scratch:
        cohort = Cohort(name="real", folder=options.folder)
        config = Config(results=Path(scratch), cohorts=(cohort,))
        context, paths = Context(config, cohort, atlas), config.paths
        update_index(cohort, paths.folder, 1000)
        for chunk in paths.list_chunks(cohort.name):
            for entry in read_entries(paths.chunk_table(cohort.name, chunk), cohort.folder):
                print(entry.recording_id, flush=True)
                _compare(entry, context)


def _compare(entry, context) -> None:
    from brainlm.errors import RecordingError
    from brainlm.preprocess.io.derivatives import read_volume
    from brainlm.preprocess.io.read import read_image
    from brainlm.preprocess.normalise.template import load_template, space_of
    from brainlm.steps import STEPS, load

    try:
        load(STEPS["motion"].run)(entry, context)
    except RecordingError as error:
        print(f"  left out: {error}")
        return
    atlas = context.atlas
    paths, template = context.files(entry), load_template(space_of(atlas))
    reference, affine = read_volume(paths.boldref)
    mask = read_volume(paths.mask)[0] > 0
    rows, parcels = {}, {}
    t1w = read_image(entry.t1w) if entry.t1w else None
    for name, seconds, fit in _fits(template, reference, affine, mask, t1w):
        if not rows:  # ours, directly: the nuisance columns are from it
            fit.save(paths.normalisation)
            load(STEPS["denoise"].run)(entry, context)
        rows[name] = (seconds, _agreement(fit, template, reference, affine, mask))
        parcels[name] = _homogeneity(fit, entry, paths, atlas)
    common = set.intersection(*(set(found) for found in parcels.values()))
    for name, (seconds, figures) in rows.items():
        shown = ", ".join(
            f"{k} {figures[k]:.3f}" for k in ("correlation", "mask_dice", "coverage")
        )
        together = np.mean([parcels[name][parcel] for parcel in common])
        print(f"  {name:22s} {seconds:6.1f} s  {shown}, homogeneity {together:.4f}", flush=True)


def _fits(template, reference, affine, mask, t1w):
    """Yield the name, the seconds and the fit (template mm -> reference mm) of every way."""
    from brainlm.preprocess.normalise.registration import normalise

    def timed(call: Callable):
        started = time.perf_counter()
        return call(), time.perf_counter() - started

    def ours(**extra):
        return timed(lambda: normalise(reference, affine, template, mask=mask, **extra))

    ours()  # compile
    direct, seconds = ours()
    yield "ours direct", seconds, direct
    moving = reference * mask
    fit, seconds = timed(lambda: _syn(template, moving, affine))
    yield "SyN direct", seconds, fit
    fit, seconds = timed(lambda: _syn(template, moving, affine, start=direct.affine))
    yield "SyN from our affine", seconds, fit
    if t1w is not None:
        fit, seconds = ours(t1w=t1w[0], t1w_affine=t1w[1])
        yield "ours by T1w", seconds, fit
        brain = _brain_of_t1w(template, direct.affine, *t1w)
        anatomy = (t1w[0] * brain, t1w[1])
        fit, seconds = timed(lambda: _syn(template, moving, affine, anatomy))
        yield "SyN by T1w", seconds, fit


def _agreement(fit, template, reference, affine, mask) -> dict[str, float]:
    """The figures of quality of a normalisation, whoever fitted it."""
    from brainlm.preprocess.normalise.agreement import check_image
    from brainlm.preprocess.normalise.tissue_fit import Image
    from brainlm.preprocess.normalise.warp import WarpField, assess_field

    index = np.indices(template.mask.shape).reshape(3, -1).T[:, ::-1]
    points = index @ template.affine[:3, :3].T + template.affine[:3, 3]
    places = fit(points).reshape(*template.mask.shape, 3)
    field = WarpField.from_positions(places, template.affine, np.eye(4))
    image, _ = check_image(reference, affine, mask)
    return assess_field(field, Image(image * mask, affine), mask, template)


def _homogeneity(fit, entry, paths, atlas) -> dict[int, float]:
    """Mean correlation of two voxels, by parcel, of the denoised run read through this fit."""
    from brainlm.config import Preprocess
    from brainlm.preprocess.denoise.confounds import read_nuisance
    from brainlm.preprocess.io.derivatives import read_transforms
    from brainlm.preprocess.kernels.sampling import sample
    from brainlm.preprocess.parcellate.parcel_means import parcel_points
    from brainlm.preprocess.parcellate.series import make_filter
    from brainlm.preprocess.stages.voxels import EMPTY_SHARE, read_prepared

    config = Preprocess()
    model = read_nuisance(paths, config)
    bold = read_prepared(entry, paths, config)
    points, labels = parcel_points(atlas)
    values = sample(bold.volumes, bold.affine, fit(points), read_transforms(paths.transforms))
    seen = np.isfinite(values).all(axis=0)
    level = values.mean(axis=0)
    seen &= level > EMPTY_SHARE * np.median(level[seen])
    clean = make_filter(bold.tr_s, config)(values[:, seen], **model)
    clean /= np.maximum(clean.std(axis=0), 1e-9)
    found, labels = {}, labels[seen]
    for parcel in range(1, atlas.num_parcels + 1):
        inside = clean[:, labels == parcel]
        count = inside.shape[1]
        if count > 20:
            found[parcel] = (inside.mean(axis=1).var() * count - 1) / (count - 1)
    return found


def _brain_of_t1w(template, start, t1w, t1w_affine) -> np.ndarray:
    """Where the template's brain lies in the T1w image, bool [Z, Y, X]."""
    from scipy import ndimage

    from brainlm.preprocess.normalise.registration import as_normalisation, fit_anatomy
    from brainlm.preprocess.normalise.tissue_fit import COSINES, State

    flat = State(start, np.zeros((3, *COSINES[::-1])))
    _, state = fit_anatomy(template, flat, t1w, t1w_affine)
    fine = np.argwhere(np.kron(template.mask, np.ones((3, 3, 3), bool)))[:, ::-1]
    points = (fine - 1) / 3 @ template.affine[:3, :3].T + template.affine[:3, 3]
    places = as_normalisation(template, state, "t1w")(points)
    index = np.rint((places - t1w_affine[:3, 3]) @ np.linalg.inv(t1w_affine[:3, :3]).T)
    index = np.clip(index.astype(int), 0, np.array(t1w.shape)[::-1] - 1)
    brain = np.zeros(t1w.shape, bool)
    brain[tuple(index[:, ::-1].T)] = True
    return ndimage.binary_fill_holes(ndimage.binary_closing(brain, iterations=2))


def _syn(template, moving, affine, anatomy=None, start=None):
    """SyN's fit as a field on the template's grid, through (T1w brain, affine) if given."""
    import ants
    import pandas as pd
    from normalise import to_ants

    from brainlm.preprocess.normalise.warp import WarpField

    index = np.indices(template.mask.shape).reshape(3, -1).T[:, ::-1]
    points = index @ template.affine[:3, :3].T + template.affine[:3, 3]
    fixed, mean = to_ants(np.array(template.t1w), template.affine), to_ants(moving, affine)

    def register(one, other, kind="SyN", **extra) -> list[str]:
        found = ants.registration(one, other, type_of_transform=kind, random_seed=1, **extra)
        return found["fwdtransforms"]

    if anatomy is not None:
        brain = ants.resample_image(to_ants(*anatomy), (1.0, 1.0, 1.0), interp_type=0)
        chain = register(fixed, brain) + register(brain, mean, "Rigid")
    elif start is not None:
        inverse = np.linalg.inv(affine) @ start
        seen = points @ inverse[:3, :3].T + inverse[:3, 3]
        inside = ((seen >= 0) & (seen <= np.array(moving.shape)[::-1] - 1)).all(axis=1)
        view = to_ants(inside.reshape(template.mask.shape), template.affine)
        lps = np.diag([-1.0, -1, 1, 1]) @ start @ np.diag([-1.0, -1, 1, 1])
        first = ants.create_ants_transform(matrix=lps[:3, :3], translation=lps[:3, 3])
        with tempfile.NamedTemporaryFile(suffix=".mat") as file:
            ants.write_transform(first, file.name)
            within = {"mask": view, "mask_all_stages": True}
            chain = register(fixed, mean, initial_transform=file.name, **within)
    else:
        chain = register(fixed, mean)
    table = pd.DataFrame(points * [-1, -1, 1], columns=["x", "y", "z"])
    moved = ants.apply_transforms_to_points(3, table, chain)
    places = moved[["x", "y", "z"]].to_numpy() * [-1, -1, 1]
    places = places.reshape(*template.mask.shape, 3)
    return WarpField.from_positions(places, template.affine, np.eye(4))


if __name__ == "__main__":
    main()
