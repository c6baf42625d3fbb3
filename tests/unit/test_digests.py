"""Tables that are edited count in triggers: what was shown to participants."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import write_parcel_run

from brainlm.cohort.digests import changed_digest, note_digests
from brainlm.cohort.index import update_index
from brainlm.config import parse_config
from brainlm.tables import write_tsv

COLUMNS = ("onset", "duration", "trial_type")


@pytest.fixture
def study(tmp_path):
    """Three runs of blocks, of which one has no events of its own."""
    folder = tmp_path / "c"
    for label in ("01", "02", "03"):
        run = f"sub-{label}_task-blocks"
        path = write_parcel_run(folder, run, np.zeros((9, 3)), atlas="toy")
        if label != "03":
            write_tsv(path.with_name(f"{run}_events.tsv"), COLUMNS, [(1, 2, "a"), (9, 2, label)])
    write_tsv(folder / "task-blocks_events.tsv", COLUMNS, [(1, 2, "a")])
    config = parse_config({
        "results": str(tmp_path / "results"),
        "cohorts": [{"name": "c", "folder": str(folder), "layout": "parcels"}],
    })  # fmt: skip
    update_index(config.cohorts[0], config.results, "auto")

    def look() -> str | None:
        note_digests(config, {}, {"states": {"c": folder}})
        return changed_digest(config, "states", "evaluate")

    return folder, look


@pytest.mark.parametrize("name", ["sub-02/func/sub-02_task-blocks_events.tsv",
                                  "task-blocks_events.tsv"])  # fmt: skip
def test_edited_events_count_until_they_are_as_before(study, name):
    folder, look = study
    assert look() is None and look() is None
    text = (folder / name).read_text()
    (folder / name).write_text(text.replace("a", "b"))
    assert look() and look() == look()
    (folder / name).write_text(text)
    assert look() is None
    (folder / name).unlink()
    assert look()


def test_new_and_other_events(study):
    folder, look = study
    assert look() is None
    other = folder / "sub-01/func/sub-01_task-rest_events.tsv"  # of no recording
    write_tsv(other, COLUMNS, [])
    assert look() is None
    write_tsv(folder / "sub-03/func/sub-03_task-blocks_events.tsv", COLUMNS, [(1, 2, "a")])
    assert look() is None  # it says what the inherited one said
    write_tsv(folder / "sub-03/func/sub-03_task-blocks_events.tsv", COLUMNS, [(1, 2, "c")])
    assert look()
