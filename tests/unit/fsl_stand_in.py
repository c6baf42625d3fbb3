"""Stands in for FSL's programs: reads their arguments, writes files as they do, fits nothing.

Called as ``fsl_stand_in.py <program> <arguments>``. What the programs would have found is read
from the npz file that FSL_STAND_IN names. Everything is computed point by point from what FSL's
guides say of its coordinates, and nothing is imported from the package under test.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation


def scaled_to_world(image, points):
    """FSL's scaled mm [N, 3] -> world mm: un-scale, un-flip, then the header's affine."""
    voxels = points / image.header.get_zooms()[:3]
    if np.linalg.det(image.affine) > 0:
        voxels = np.column_stack([image.shape[0] - 1 - voxels[:, 0], voxels[:, 1:]])
    return nib.affines.apply_affine(image.affine, voxels)


def world_to_scaled(image, points):
    voxels = nib.affines.apply_affine(np.linalg.inv(image.affine), points)
    if np.linalg.det(image.affine) > 0:
        voxels = np.column_stack([image.shape[0] - 1 - voxels[:, 0], voxels[:, 1:]])
    return voxels * image.header.get_zooms()[:3]


def fsl_matrix(source, reference, world):
    """The matrix that moves four points as `world` (source world -> reference world) does."""
    corners = np.array([[0.0, 0, 0], [80, 0, 0], [0, 80, 0], [0, 0, 80]])
    there = nib.affines.apply_affine(world, scaled_to_world(source, corners))
    there = world_to_scaled(reference, there)
    ones = np.ones((4, 1))
    matrix = np.eye(4)
    matrix[:3] = np.linalg.solve(np.hstack([corners, ones]), there).T
    return matrix


def par_line(matrix, centre):
    """MCFLIRT's parameters: left-handed angles, R = Rx Ry Rz; shift of the centre of gravity."""
    angles = -Rotation.from_matrix(matrix[:3, :3]).as_euler("XYZ")
    return np.concatenate([angles, matrix[:3, :3] @ centre + matrix[:3, 3] - centre])


def save(path, data, affine):
    """As FSL does: the extension is FSLOUTPUTTYPE's, whatever was asked for."""
    ending = {"NIFTI": ".nii", "NIFTI_GZ": ".nii.gz"}[os.environ["FSLOUTPUTTYPE"]]
    stem = str(path).removesuffix(".gz").removesuffix(".nii")
    nib.save(nib.Nifti1Image(np.asarray(data, np.float32), affine), stem + ending)


def print_matrix(path, matrix):
    path.write_text("".join("  ".join(f"{v:.6g}" for v in row) + "  \n" for row in matrix))


def mcflirt(options, truth):
    image, out = nib.load(options["-in"]), Path(options["-out"])
    data, reference = image.get_fdata(), int(options["-refvol"])
    moves = truth["transforms"] @ np.linalg.inv(truth["transforms"][reference])
    grid = np.indices(data.shape[:3]).reshape(3, -1)
    volume = data[..., reference]
    first = nib.Nifti1Image(volume, image.affine)
    centre = (grid * volume.ravel()).sum(1) / volume.sum()
    centre = world_to_scaled(image, nib.affines.apply_affine(image.affine, centre[None]))[0]
    folder = Path(f"{out}.mat")
    folder.mkdir()
    rows, realigned = [], np.empty_like(data)
    for t, move in enumerate(moves):
        matrix = fsl_matrix(first, first, np.linalg.inv(move))
        print_matrix(folder / f"MAT_{t:04d}", matrix)
        rows.append(par_line(matrix, centre))
        voxels = np.linalg.inv(image.affine) @ move @ image.affine
        index = voxels[:3, :3] @ grid + voxels[:3, 3:]
        volume = ndimage.map_coordinates(data[..., t], index, order=1, mode="nearest")
        realigned[..., t] = volume.reshape(data.shape[:3])
    Path(f"{out}.par").write_text("".join("  ".join(f"{v:.6g}" for v in r) + "  \n" for r in rows))
    save(out, realigned, image.affine)


def flirt(options, truth):
    source, reference = nib.load(options["-in"]), nib.load(options["-ref"])
    pair = f"{stem(options['-in'])}_to_{stem(options['-ref'])}"
    print_matrix(Path(options["-omat"]), fsl_matrix(source, reference, truth[pair]))
    save(options["-out"], reference.get_fdata(), reference.affine)


def fnirt(options, truth):
    """The "coefficients" are the field itself; only convertwarp reads them."""
    source, reference = nib.load(options["--in"]), nib.load(options["--ref"])
    for name in ("--aff", "--refmask"):
        assert Path(options[name]).exists()
    world = truth[f"template_to_{stem(options['--in'])}"].reshape(-1, 3)  # C order of x, y, z
    grid = np.indices(reference.shape).reshape(3, -1).T
    here = world_to_scaled(reference, nib.affines.apply_affine(reference.affine, grid))
    field = (world_to_scaled(source, world) - here).reshape(*reference.shape, 3)
    save(options["--cout"], field, reference.affine)
    save(options["--iout"], reference.get_fdata(), reference.affine)
    Path(options["--logout"]).write_text("stand-in\n")


def convertwarp(options, truth):
    assert options["--relout"] == ""
    warp = nib.load(options["--warp1"])
    field = warp.get_fdata()
    if "--premat" in options:
        reference = nib.load(options["--ref"])
        grid = np.indices(reference.shape).reshape(3, -1).T
        here = world_to_scaled(reference, nib.affines.apply_affine(reference.affine, grid))
        middle = here + field.reshape(-1, 3)
        first = nib.affines.apply_affine(np.linalg.inv(np.loadtxt(options["--premat"])), middle)
        field = (first - here).reshape(field.shape)
    save(options["--out"], field, warp.affine)


def bet(arguments):
    assert arguments[2:] == ["-R"]
    image = nib.load(arguments[0])
    save(arguments[1], image.get_fdata(), image.affine)


def melodic(options, truth):
    """Principal components, in the files of independent ones."""
    if "--Oall" in options:
        (Path(options["-o"]) / "report").mkdir(parents=True)
    image, mask = nib.load(options["-i"]), nib.load(options["-m"]).get_fdata() > 0
    data = image.get_fdata()[mask].T
    assert (data.mean(0) > 0).all()
    assert "--nobet" in options
    left, size, right = np.linalg.svd(data - data.mean(0), full_matrices=False)
    count = 8
    out = Path(options["-o"])
    out.mkdir(exist_ok=True)
    mixing, maps = left[:, :count] * size[:count], right[:count]
    np.savetxt(out / "melodic_mix", mixing, fmt="%.6g")
    power = np.abs(np.fft.rfft(mixing, axis=0)[1:]) ** 2
    np.savetxt(out / "melodic_FTmix", power, fmt="%.6g")
    volumes = np.zeros((*mask.shape, count), np.float32)
    volumes[mask] = (maps / maps.std(1, keepdims=True)).T
    save(out / "melodic_IC", volumes, image.affine)
    (out / "log.txt").write_text(
        "  No convergence after 500 steps \n  Convergence after 31 steps \n"
    )


def fix(arguments):
    """Calls every third component noise, after a look at the folder that its guide asks for."""
    feat, name = Path(arguments[1]), "filtered_func_data"
    for needed in (
        f"{name}.nii.gz", f"{name}.ica/melodic_mix", "mc/prefiltered_func_data_mcf.par",
        "mask.nii.gz", "mean_func.nii.gz", "reg/example_func.nii.gz", "reg/highres.nii.gz",
        "reg/highres2example_func.mat", "design.fsf", f"{name}.ica/melodic_IC.nii.gz",
    ):  # fmt: skip
        assert (feat / needed).is_file(), needed
    count = np.loadtxt(feat / f"{name}.ica" / "melodic_mix").shape[1]
    if arguments[0] == "-f":
        (feat / "fix").mkdir()
        np.savetxt(feat / "fix" / "features.csv", np.zeros((count, 2)), delimiter=",")
        return
    assert arguments[0] == "-c" and (feat / "fix" / "features.csv").is_file()
    weights, threshold = Path(arguments[2]).stem, arguments[3]
    if "FSL_STAND_IN_KEEP" in os.environ:
        shutil.copytree(feat, os.environ["FSL_STAND_IN_KEEP"])
    noise = range(3, count + 1, 3)
    lines = [str(feat / f"{name}.ica")]
    for n in range(1, count + 1):
        label = ("Signal, False, 0.9", "Unclassified Noise, True, 0.01")[n in noise]
        lines.append(f"{n}, {label}")
    lines.append(str(list(noise)))
    text = "\n".join(lines) + "\n"
    if os.environ.get("FSL_STAND_IN_BREAKS") == "verdicts":
        text = text[: len(text) // 2]
    (feat / f"fix4melview_{weights}_thr{threshold}.txt").write_text(text)


def stem(path):
    return Path(path).name.split(".")[0]


def parse(arguments):
    """``-in x``, ``--in=x`` and flags without a value."""
    options, name = {}, ""
    for word in arguments:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            options[name] = value
        elif word.startswith("-") and not word[1:2].isdigit():
            name = word
            options[name] = ""
        else:
            options[name] = word
    return options


if __name__ == "__main__":
    program, arguments = sys.argv[1], sys.argv[2:]
    if os.environ.get("FSL_STAND_IN_BREAKS") == program:
        sys.exit(f"{program}: Image Exception : #22 :: ERROR: Could not open image")
    if program in ("bet", "fix"):
        globals()[program](arguments)
    else:
        with np.load(os.environ["FSL_STAND_IN"]) as file:
            globals()[program](parse(arguments), dict(file))
