"""Orientation, voxel sizes and modality of an image, and whether they can be true."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import RecordingError
from .sidecars import Sidecar

#: mm; voxel sizes and field of view that a whole-brain BOLD image can have
VOXEL_RANGE_MM = (0.5, 8.0)
MIN_FIELD_OF_VIEW_MM = 40.0


def read_affine(
    path: Path, header: Any, shape: tuple[int, ...], warnings: list[str]
) -> np.ndarray:
    """sform, else qform; checked for plausibility.

    Raises
    ------
    RecordingError
        No orientation at all, singular, or voxel sizes that no BOLD image has.
    """
    sform, s_code = header.get_sform(coded=True)
    try:
        qform, q_code = header.get_qform(coded=True)
    except (ValueError, np.linalg.LinAlgError):  # an impossible quaternion
        qform, q_code = None, 0
    if not s_code and not q_code:
        raise RecordingError(
            "bad_metadata",
            f"{path}: sform and qform codes are both 0, so left and right are unknown; write the "
            "orientation into the header",
        )
    affine = np.asarray(sform if s_code else qform, np.float64)
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(0))
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-3 * sizes.prod():
        raise RecordingError("bad_metadata", f"{path}: the orientation matrix is singular")
    _check_geometry(path, sizes, np.asarray(shape[:3]))
    if s_code and q_code:
        corners = np.array([[*c, 1] for c in itertools.product(*((0, n - 1) for n in shape[:3]))])
        apart = np.abs(corners @ (affine - qform).T).max()
        if apart > 1.0:
            warnings.append(f"sform and qform differ by up to {apart:.1f} mm; the sform is used")
    return affine


def _check_geometry(path: Path, sizes: np.ndarray, shape: np.ndarray) -> None:
    low, high = VOXEL_RANGE_MM
    if (sizes < low).any() or (sizes > high).any():
        found = " x ".join(f"{size:.3g}" for size in sizes)
        raise RecordingError(
            "bad_metadata",
            f"{path}: expected voxels of {low:g} to {high:g} mm, found {found} mm; check the "
            "header's units",
        )
    if (sizes * shape).min() < MIN_FIELD_OF_VIEW_MM or shape.min() < 4:
        found = " x ".join(f"{n}" for n in shape)
        raise RecordingError(
            "bad_data",
            f"{path}: expected a field of view of at least {MIN_FIELD_OF_VIEW_MM:g} mm in every "
            f"direction, found {found} voxels ({(sizes * shape).min():.0f} mm at the thinnest)",
        )


def check_sidecar(path: Path, sidecar: Sidecar) -> None:
    """Refuse what is no BOLD run, or only one echo of it."""
    if sidecar.get("ArterialSpinLabelingType") is not None:
        raise RecordingError(
            "bad_metadata", f"{path}: arterial spin labelling (by its sidecar), expected BOLD"
        )
    echo = next((part for part in path.name.split("_") if part.startswith("echo-")), None)
    if echo and len(list(path.parent.glob(path.name.replace(echo, "echo-*")))) > 1:
        raise RecordingError(
            "bad_metadata",
            f"{path}: one echo of a multi-echo run; combine the echoes first, or leave only the "
            "echo to use in the folder",
        )
