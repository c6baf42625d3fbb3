"""Files that stand for recordings: names alone, or a table of numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def plant(folder: Path, *paths: str) -> None:
    """Files of a byte, for tests of names."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")


def plant_runs(
    folder: Path, subjects: Iterable[str | int], sessions: Iterable[str] = ("",)
) -> Path:
    """A raw BIDS dataset of names: a resting run per subject (5 is sub-05) and session."""
    for subject in subjects:
        label = f"sub-{subject:02d}" if isinstance(subject, int) else f"sub-{subject}"
        for session in sessions:
            name = "_".join(filter(None, (label, session, "task-rest_bold.nii.gz")))
            plant(folder, str(Path(label, session, "func", name)))
    return folder


def write_parcel_run(folder: Path, run: str, series: np.ndarray, *, atlas: str = "demo424",
                     tr_s: float = 1.0, **sidecar: Any) -> Path:  # fmt: skip
    """A run's series [T, R] and sidecar where layout `parcels` finds them; the path of the first.

    `run` is as ``sub-01_task-rest``.
    """
    func = folder / run.split("_")[0] / "func"
    func.mkdir(parents=True, exist_ok=True)
    path = func / f"{run}_atlas-{atlas}_timeseries.npy"
    np.save(path, series)
    path.with_suffix(".json").write_text(json.dumps({"RepetitionTime": tr_s} | sidecar))
    return path
