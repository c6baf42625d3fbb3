"""Files of a BIDS session that may tell how susceptibility distorts a run of it.

By their names alone; what they are said to be for stands in their sidecars, which
:mod:`brainlm.preprocess.distortion.sources` reads.
"""

from __future__ import annotations

import os
from pathlib import Path

from .base import is_image, parse_name

SUFFIXES = (
    "epi", "phasediff", "phase1", "phase2", "magnitude1", "magnitude2", "fieldmap", "magnitude",
)  # fmt: skip


def of_other_direction(name: str, run: str) -> bool:
    """Whether `name` is a BOLD or reference image, or its sidecar, with another ``dir-``."""
    own, (entities, suffix) = parse_name(run)[0].get("dir"), parse_name(name)
    return bool(own) and suffix in ("sbref", "bold") and entities.get("dir", own) != own


def list_field_maps(run: Path) -> list[Path]:
    """Images in ``fmap/`` of a run's session, and those of the other ``dir-`` next to the run."""
    if run.parent.name != "func":
        return []
    maps = run.parent.with_name("fmap")
    found = [maps / name for name in os.listdir(maps)] if maps.is_dir() else []
    found = [path for path in found if parse_name(path.name)[1] in SUFFIXES]
    others = [name for name in os.listdir(run.parent) if of_other_direction(name, run.name)]
    found += [run.with_name(name) for name in others]
    return sorted(path for path in found if is_image(path.name))
