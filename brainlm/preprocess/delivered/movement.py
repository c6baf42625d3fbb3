"""Motion as other programs report it: parameters and framewise displacement of each volume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import BrainLMError, RecordingError
from ...files import describe_absent
from ..denoise.confounds import motion_columns
from ..io.derivatives import read_table

_NAMES = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")


@dataclass(frozen=True)
class Movement:
    """How the head moved.

    Attributes
    ----------
    parameters : ndarray [T, 6] or None
        Translations in mm, then rotations in rad; None where only displacement is reported.
    displacement_mm : ndarray [T]
        Framewise displacement (Power 2012); NaN for the first volume.
    columns : dict of str to ndarray [T]
        Whatever may be removed: the 24 motion columns, and of fMRIPrep's table the rest.
    non_steady : int
        Leading volumes that were marked as not yet settled.
    """

    parameters: np.ndarray | None
    displacement_mm: np.ndarray
    columns: dict[str, np.ndarray]
    non_steady: int = 0


def read_movement(path: Path) -> Movement:
    """Read fMRIPrep's confounds, XCP-D's motion.tsv, FSL's .par or HCP's Movement_Regressors.txt.

    Raises
    ------
    RecordingError
        ``bad_metadata``: not such a file.
    """
    if absent := describe_absent(path):
        raise RecordingError("bad_metadata", f"{path}: {absent}")
    try:
        return _read_named(path) if path.suffix == ".tsv" else _read_plain(path)
    except (ValueError, OSError, BrainLMError) as error:
        found = str(error).removeprefix(f"{path}: ")
        raise RecordingError(
            "bad_metadata", f"{path}: expected motion of every volume, found: {found}"
        ) from None


def _read_named(path: Path) -> Movement:
    table = read_table(path)
    parameters = None
    if path.name.endswith(("_timeseries.tsv", "_regressors.tsv")):  # fMRIPrep: mm and rad
        missing = [name for name in _NAMES if name not in table]
        if missing:
            raise ValueError(f"no column {', '.join(missing)}")
        parameters = np.column_stack([table[name] for name in _NAMES])
        _check_finite(parameters)
    elif "framewise_displacement" not in table:
        raise ValueError(f"no column framewise_displacement among {', '.join(table)}")
    displacement = table.get("framewise_displacement")
    if displacement is None:
        displacement = _displacement(parameters)
    marked = [values for name, values in table.items() if name.startswith("non_steady_state")]
    last = max((int(np.argmax(values)) + 1 for values in marked), default=0)
    columns = table if parameters is None else table | motion_columns(parameters)
    return Movement(parameters, np.asarray(displacement, np.float64), columns, last)


def _read_plain(path: Path) -> Movement:
    values = np.loadtxt(path, ndmin=2)
    if path.suffix == ".par":  # rotations in rad first
        if values.shape[1] != 6:
            raise ValueError(f"{values.shape[1]} columns, not 6")
        parameters = values[:, [3, 4, 5, 0, 1, 2]]
    else:  # HCP: mm, degrees, and their derivatives
        if values.shape[1] != 12:
            raise ValueError(f"{values.shape[1]} columns, not 12")
        parameters = np.column_stack([values[:, :3], np.deg2rad(values[:, 3:6])])
    _check_finite(parameters)
    return Movement(parameters, _displacement(parameters), motion_columns(parameters))


def _check_finite(parameters: np.ndarray) -> None:
    if parameters.dtype.kind != "f" or not np.isfinite(parameters).all():
        raise ValueError("values that are not finite")


def _displacement(parameters: np.ndarray | None) -> np.ndarray:
    from ..motion.rigid import framewise_displacement_power

    assert parameters is not None
    return framewise_displacement_power(parameters)
