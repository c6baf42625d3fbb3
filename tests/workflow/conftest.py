"""One simulated study for the slow tests: raw BIDS with damaged recordings, and an external cohort
of parcel series."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from once import make_once
from runs import DAMAGE


@pytest.fixture(scope="session")
def simulated(tmp_path_factory) -> Path:
    """Folder with bids/ (18 participants, 4 damaged) and series/ (6, their true series), which
    the first worker that needs it makes for all: it is copied, never changed."""
    return make_once(tmp_path_factory, "simulated", make_simulated)


def make_simulated(folder: Path) -> None:
    from brainlm.simulate import simulate_cohort

    simulate_cohort(folder / "bids", num_subjects=18, seed=3, damage=DAMAGE, workers=2,
                    duration_s=220.0)  # fmt: skip
    simulate_cohort(folder / "more", num_subjects=6, seed=4, first_subject=101, workers=2,
                    duration_s=220.0)  # fmt: skip
    for truth in sorted((folder / "more/sourcedata/truth").glob("*.npz")):
        func = folder / "series" / truth.stem / "func"
        func.mkdir(parents=True)
        name = f"{truth.stem}_task-rest_atlas-demo424_timeseries"
        with np.load(truth) as kept:
            np.save(func / f"{name}.npy", kept["series"].astype(np.float32))
        (func / f"{name}.json").write_text('{"RepetitionTime": 2.0}')
    shutil.copy(folder / "more/participants.tsv", folder / "series/participants.tsv")
