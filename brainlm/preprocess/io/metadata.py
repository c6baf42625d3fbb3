"""Orientation, voxel sizes and modality of an image, and whether they can be true."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from ...cohort.recordings import list_echoes
from ...errors import RecordingError
from .nifti_header import Header
from .sidecars import Sidecar

#: mm; voxel sizes and field of view that a whole-brain BOLD image can have
VOXEL_RANGE_MM = (0.5, 8.0)
MIN_FIELD_OF_VIEW_MM = 40.0
_ENDS = ("LR", "PA", "IS")  # of the axes x, y, z


def read_affine(
    path: Path, header: Header, warnings: list[str], orientation: str | None = None
) -> np.ndarray:
    """Voxels to mm: the sform if it is whole, else the qform; checked for plausibility.

    Parameters
    ----------
    orientation : str, optional
        Of the cohort's entry, ``LAS``: where the voxel axes lead. Used where the header has none,
        refused where it has another.

    Raises
    ------
    RecordingError
        No orientation at all, neither is whole, or voxel sizes that no BOLD image has.
    """
    sform, qform = header.sform, header.qform
    if sform is None and qform is None:
        if orientation is None:
            raise RecordingError(
                "bad_metadata",
                f"{path}: sform and qform codes are both 0, so left and right are unknown; write "
                "the orientation into the header, or set orientation for the cohort (LAS: the "
                "voxels' axes lead to left, anterior, superior)",
            )
        affine = _affine_of(orientation, header)
        _check_geometry(path, _sizes(affine), np.asarray(header.shape[:3]))
        warnings.append(f"orientation: {orientation} from the cohort's entry; the header has none")
        return affine
    affine = _choose_affine(path, header, warnings)
    found = _letters(affine)
    if orientation is not None and found != orientation:
        raise RecordingError(
            "bad_metadata",
            f"{path}: the header says {found}, orientation of the cohort {orientation}; correct "
            "one of them",
        )
    return affine


def _affine_of(orientation: str, header: Header) -> np.ndarray:
    """Axes that lead where the letters say, the middle of the image at 0 mm."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, letter in enumerate(orientation):
        pair = next(i for i, pair in enumerate(_ENDS) if letter in pair)
        affine[pair, axis] = np.abs(header.sizes[axis]) * (1 if letter == _ENDS[pair][1] else -1)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(header.shape[:3]) - 1) / 2)
    return affine


def _letters(affine: np.ndarray) -> str:
    """Where the voxels' axes lead: ``RAS`` and the like, as nibabel names them."""
    from nibabel.orientations import aff2axcodes

    return "".join(letter or "?" for letter in aff2axcodes(affine))


def _choose_affine(path: Path, header: Header, warnings: list[str]) -> np.ndarray:
    sform, qform = header.sform, header.qform
    flaws = {"sform": _flaw(sform, header.sizes), "qform": _flaw(qform, header.sizes)}
    if sform is not None and not flaws["sform"]:
        affine, used, other = sform, "sform", "qform"
    elif qform is not None and not flaws["qform"]:
        affine, used, other = qform, "qform", "sform"
    elif sform is not None and flaws["sform"].startswith("of other"):
        affine, used, other = sform, "sform", "qform"  # its sizes are checked below
    else:
        found = "; ".join(f"the {name} is {flaw}" for name, flaw in flaws.items() if flaw)
        raise RecordingError(
            "bad_metadata", f"{path}: no usable orientation: {found}; correct the header"
        )
    _check_geometry(path, _sizes(affine), np.asarray(header.shape[:3]))
    if flaws[other]:
        warnings.append(f"orientation: the {other} is {flaws[other]}; the {used} is used")
    elif flaws[used]:
        warnings.append(
            f"orientation: the {used} is {flaws[used]}; it is used, there is no {other}"
        )
    elif sform is not None and qform is not None:
        limits = [(0, n - 1) for n in header.shape[:3]]
        corners = np.array([[*corner, 1] for corner in itertools.product(*limits)])
        apart = np.abs(corners @ (sform - qform).T).max()
        if apart > 1.0:
            warnings.append(
                f"orientation: sform and qform differ by up to {apart:.1f} mm; the sform is used, "
                "as it is by most programs"
            )
    return affine


def _sizes(affine: np.ndarray) -> np.ndarray:
    return np.sqrt((affine[:3, :3] ** 2).sum(0))


def _flaw(affine: np.ndarray | None, sizes: np.ndarray) -> str:
    """Why an orientation cannot be believed; nothing for one that is whole, or not there."""
    if affine is None:
        return ""
    if not np.isfinite(affine).all():
        return "not finite"
    if not affine[:3, :3].any():
        return "all zero"
    own = _sizes(affine)
    if abs(np.linalg.det(affine[:3, :3])) < 1e-3 * own.prod() or not own.all():
        return "singular"
    stated = np.abs(sizes)
    if stated.all() and np.isfinite(stated).all() and (np.abs(own - stated) > 0.1 * stated).any():
        text = " x ".join(f"{size:.3g}" for size in own)
        return f"of other voxels ({text} mm) than pixdim"
    return ""


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
    """Refuse what is no BOLD run."""
    if sidecar.get("ArterialSpinLabelingType") is not None:
        raise RecordingError(
            "bad_metadata", f"{path}: arterial spin labelling (by its sidecar), expected BOLD"
        )


def note_single_echo(path: Path) -> list[str]:
    """A warning where other echoes of the run lie next to the one that is used alone."""
    count = len(list_echoes(path))
    return [f"single echo: one of {count} is used alone"] if count > 1 else []
