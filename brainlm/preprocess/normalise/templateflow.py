"""MNI152NLin6Asym itself, from a folder that is laid out as TemplateFlow's.

The files are looked for under ``TEMPLATEFLOW_HOME`` (default ``~/.cache/templateflow``), where the
templateflow client and fMRIPrep keep them, so that they are fetched once for all. Tissue maps are
made here, from the T1-weighted image's intensities.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from ...errors import BrainLMError
from ...files import atomic_path, describe_absent

SPACE = "MNI152NLin6Asym"
SOURCE = "https://templateflow.s3.amazonaws.com"
_NAME = f"tpl-{SPACE}/tpl-{SPACE}_res-02"
T1W, MASK = f"{_NAME}_T1w.nii.gz", f"{_NAME}_desc-brain_mask.nii.gz"
_SHAPE, _CORNER_MM = (91, 109, 91), (-90.0, -126.0, -72.0)  # x, y, z
_BRAIN_ML = (1700.0, 2000.0)


def find_files() -> tuple[Path, Path]:
    """The T1-weighted image and its brain mask at 2 mm.

    Raises
    ------
    BrainLMError
        They are not there; says what to run.
    """
    paths = tuple(_home() / name for name in (T1W, MASK))
    for path in paths:
        if absent := _absent(path):
            raise BrainLMError(
                f"{path}: {absent}; preprocess.template: templateflow needs it. On a machine with "
                "network run brainlm doctor --fetch (or templateflow's own client), and set "
                "TEMPLATEFLOW_HOME where jobs see another home; without it leave "
                "preprocess.template out"
            )
    return paths[0], paths[1]


def fetch_files() -> list[Path]:
    """Download what is not there; the paths of what was fetched.

    Raises
    ------
    BrainLMError
        No network, or what came is not the template.
    """
    fetched = []
    for name in (T1W, MASK):
        path, url = _home() / name, f"{SOURCE}/{name}"
        if not _absent(path):
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(url, timeout=60) as response:
                data = response.read()
            with atomic_path(path) as temporary:
                temporary.write_bytes(data)
        except (urllib.error.URLError, OSError) as error:
            raise BrainLMError(
                f"{path}: not found, and {url} cannot be reached ({error}); on a machine without "
                "network copy the file there by hand"
            ) from None
        fetched.append(path)
    read_files()
    return fetched


def read_files() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T1w float32 and brain bool, both [Z, Y, X] with x rightwards, and their affine.

    Raises
    ------
    BrainLMError
        Absent, damaged, or another image than its name says.
    """
    import nibabel as nib

    images = []
    for path in find_files():
        try:
            image = nib.as_closest_canonical(nib.load(path))
            data = np.ascontiguousarray(image.get_fdata(dtype=np.float32).T)
        except Exception as error:  # whatever a damaged file makes of a reader
            raise BrainLMError(f"{path}: damaged ({error}); fetch it again") from None
        grid = np.diag([2.0, 2.0, 2.0, 1.0])
        grid[:3, 3] = _CORNER_MM
        if data.shape != _SHAPE[::-1] or not np.allclose(image.affine, grid, atol=1e-3):
            raise BrainLMError(f"{path}: not on the grid of {SPACE} at 2 mm; fetch it again")
        images.append((data, image.affine))
    (t1w, affine), (mask, _) = images
    brain = mask > 0.5
    volume_ml = brain.sum() * 8 / 1000
    if not _BRAIN_ML[0] <= volume_ml <= _BRAIN_ML[1]:
        raise BrainLMError(
            f"{_home() / MASK}: a brain of {volume_ml:.0f} ml, expected {_BRAIN_ML[0]:.0f} to "
            f"{_BRAIN_ML[1]:.0f}; fetch it again"
        )
    return t1w, brain, np.asarray(affine, np.float64)


def segment(t1w: np.ndarray, brain: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of grey matter, white matter and CSF [Z, Y, X] from intensities inside the brain.

    Levels of the three tissues are the means of three clusters (k-means); between two levels a
    voxel is part of the one and part of the other. More than half of a tissue agrees with FAST's
    labels with Dice coefficients of 0.79 (CSF), 0.83 (grey) and 0.89 (white matter).
    """
    values = t1w[brain]
    levels = np.percentile(values, [10, 50, 85])
    counts, edges = np.histogram(values, bins=512)
    centres = (edges[1:] + edges[:-1]) / 2
    for _ in range(100):
        nearest = np.abs(centres[:, None] - levels).argmin(axis=1)
        sums = np.bincount(nearest, counts * centres, minlength=3)
        levels = sums / np.maximum(np.bincount(nearest, counts, minlength=3), 1)
    csf, grey, white = np.sort(levels)
    shares = np.zeros((3, *t1w.shape), np.float32)
    shares[0, brain] = np.interp(values, [csf, grey, white], [0, 1, 0])
    shares[1, brain] = np.interp(values, [grey, white], [0, 1])
    shares[2, brain] = np.interp(values, [csf, grey], [1, 0])
    return shares[0], shares[1], shares[2]


def _home() -> Path:
    return Path(os.environ.get("TEMPLATEFLOW_HOME") or Path.home() / ".cache/templateflow")


def _absent(path: Path) -> str:
    """Why a file cannot be used; the client's skeleton has empty files in the place of images."""
    if not path.exists() and not path.is_symlink():
        return "not found"
    if absent := describe_absent(path):
        return absent
    return "empty (TemplateFlow's placeholder)" if not path.stat().st_size else ""
