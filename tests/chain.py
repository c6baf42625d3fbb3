"""A simulated recording through the image stages: several test files compare it with its truth."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from brainlm.atlas import Atlas, load_atlas
from brainlm.cohort.recordings import Entry
from brainlm.config import Cohort, Config, Preprocess
from brainlm.files import plain_values
from brainlm.preprocess.io.derivatives import Derivatives
from brainlm.preprocess.stages.context import Context
from brainlm.simulate import Truth, load_truth, simulate_cohort
from brainlm.steps import STEPS, load


def make_entry(root: Path, path: Path, t1w: Path | None = None) -> Entry:
    """The index entry of a file of a dataset in `root`."""
    name, status = path.name.split("_bold")[0].split("_atlas")[0], path.stat()
    source = str(path.relative_to(root))
    return Entry(
        name, name.split("_")[0], None, "rest", None, path, source, t1w, status.st_size,
        status.st_mtime_ns, "c0",
    )  # fmt: skip


@dataclass(frozen=True)
class Place(Context):
    """A context whose stages write to one folder."""

    out: Path

    @property
    def derivatives(self) -> Path:
        return self.out

    @property
    def series(self) -> Path:
        return self.out / "series"


def make_place(out: Path, atlas: Atlas, options: Preprocess, **cohort: Any) -> Place:
    """Where a recording's stages write, for a cohort with these keys."""
    entry = Cohort(**({"name": "c", "folder": Path()} | cohort))
    return Place(Config(cohorts=(entry,), preprocess=options), entry, atlas, out)


@dataclass
class Chain:
    """A recording and the folder that its stages write to."""

    entry: Entry
    atlas: Atlas
    out: Path
    truth: Truth | None = None
    config: Preprocess = field(default_factory=Preprocess)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the stages run

    @property
    def paths(self) -> Derivatives:
        return Derivatives(self.out, self.entry.recording_id, self.atlas)

    @property
    def series_dir(self) -> Path:
        return self.out / "series"

    def run(self, *stages: str, config: Preprocess | None = None) -> dict[str, Any]:
        """Run stages in turn; the last one's figures."""
        place = make_place(self.out, self.atlas, config or self.config)
        for stage in stages:
            self.figures[stage] = load(STEPS[stage].run)(self.entry, place)
        return self.figures[stages[-1]]

    def at(self, out: Path, **changes: Any) -> Chain:
        """The same recording with another folder to write to."""
        return replace(self, out=out, figures={}, **changes)

    def series(self) -> dict[str, np.ndarray]:
        with np.load(self.series_dir / f"{self.entry.recording_id}.npz") as stored:
            return dict(stored)

    def hashes(self) -> dict[str, str]:
        files = sorted(p for p in self.out.rglob("*") if p.is_file())
        return {
            str(p.relative_to(self.out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
        }


def make_chain(folder: Path) -> None:
    """Simulate a recording with a T1w image, which the chain leaves alone; run every stage."""
    simulate_cohort(folder / "raw", num_subjects=1, seed=11, with_t1w=True)
    (folder / "figures.json").write_text("{}")
    chain = open_chain(folder)
    chain.run("motion", "normalise", "denoise", "parcellate")
    (folder / "figures.json").write_text(json.dumps(plain_values(chain.figures)))


def open_chain(folder: Path) -> Chain:
    """The chain that :func:`make_chain` made."""
    root, figures = folder / "raw", json.loads((folder / "figures.json").read_text())
    entry = make_entry(root, next(root.glob("sub-01/func/*_bold.nii.gz")))
    atlas = load_atlas("demo424", folder / "atlas")
    return Chain(entry, atlas, folder / "out", load_truth(root, "sub-01"), figures=figures)
