"""What a simulated recording is made of, so that tests can ask how much of it was recovered."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..files import atomic_path
from .anatomy import Placement


@dataclass(frozen=True)
class Truth:
    """The truth of one recording.

    Attributes
    ----------
    transforms : ndarray [T, 4, 4]
        Reference world (of volume 0) to world of volume t.
    networks : ndarray [T, 7]
        Network courses, SD 1.
    series : ndarray [T, 424]
        Neural signal of each demo424 parcel, as a fraction of its mean.
    strength, coupling : ndarray [7], [7, 7]
        This participant's network strengths and correlations between networks.
    artefacts : ndarray [T, 4]
        Courses, SD 1, in the order of :data:`~brainlm.simulate.signals.ARTEFACTS`.
    artefact_maps : ndarray [4, Z, Y, X] float16
        Fraction of the voxel's signal per SD, at the reference position.
    affine : ndarray [4, 4]
        Of the recording's voxels (x, y, z).
    placement : Placement
        Reference world to template world, and back.
    """

    transforms: np.ndarray
    networks: np.ndarray
    series: np.ndarray
    strength: np.ndarray
    coupling: np.ndarray
    artefacts: np.ndarray
    artefact_maps: np.ndarray
    affine: np.ndarray
    placement: Placement


def save_truth(folder: Path, stem: str, truth: Truth) -> None:
    """Write ``sourcedata/truth/<stem>.npz``; the parts of `placement` are prefixed by it."""
    fields = asdict(truth)
    fields |= {f"placement_{name}": value for name, value in fields.pop("placement").items()}
    with atomic_path(folder / "sourcedata" / "truth" / f"{stem}.npz") as temporary:
        np.savez_compressed(temporary, **fields)


def load_truth(folder: str | Path, stem: str) -> Truth:
    """The truth of ``sub-01`` or ``sub-01_ses-1`` of a simulated dataset."""
    with np.load(Path(folder) / "sourcedata" / "truth" / f"{stem}.npz") as file:
        fields = {name: file[name] for name in file.files}
    parts = {k: fields.pop(f"placement_{k}") for k in ("affine", "coefficients", "frame")}
    return Truth(**fields, placement=Placement(**parts))
