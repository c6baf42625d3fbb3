"""What `watch: auto` looks at: new things at once, the newest always, the rest in turn."""

import os
import shutil
from pathlib import Path

import pytest
from fakes import plant_runs

from brainlm.cohort import index, watch
from brainlm.cohort.index import update_index
from brainlm.config import Cohort
from brainlm.errors import BrainLMError
from brainlm.paths import Results

SUBJECTS = [f"{k:02d}" for k in range(40)]


def image(folder: Path, subject: str, middle: str = "") -> Path:
    func = folder / f"sub-{subject}/func"
    func.mkdir(parents=True, exist_ok=True)
    return func / f"sub-{subject}_task-rest{middle}_bold.nii.gz"


class Study:
    """40 participants in eight chunks of five, of which the last counts as the newest."""

    def __init__(self, folder: Path):
        self.folder, self.results = folder / "bids", folder / "results"
        plant_runs(self.folder, SUBJECTS)
        self.cohort = Cohort(name="c", folder=self.folder)
        self.day = 738_000
        self.update()

    def update(self, days: int = 0, **options):
        self.day += days
        return update_index(self.cohort, self.results, 5, **options)

    def tables(self) -> dict[str, bytes]:
        folder = self.results / "index/c"
        return {path.name: path.read_bytes() for path in folder.rglob("*.tsv")}

    def rewrite_all(self, text: bytes) -> None:
        for subject in SUBJECTS:
            image(self.folder, subject).write_bytes(text)


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    made = Study.__new__(Study)
    monkeypatch.setattr(watch, "NEWEST", 5)
    for module in (watch, index):
        monkeypatch.setattr(module, "today", lambda: made.day)
    made.__init__(tmp_path)
    return made


def test_each_recording_is_looked_at_within_seven_days_and_once(study):
    study.rewrite_all(b"another")
    seen = [study.update(days=1).changed for _ in range(7)]
    assert sum(seen) == len(SUBJECTS)
    assert seen[0] >= 5 and max(seen[1:]) < 20
    whole = study.tables()
    assert study.update(everything=True).changed == 0
    assert study.tables() == whole


def test_a_day_looks_at_a_bounded_share_of_a_very_large_cohort(tmp_path, monkeypatch):
    assert [watch.cycle(n) for n in (1, 87_500, 87_501, 200_000)] == [7, 7, 14, 28]
    (tmp_path / "people").mkdir()
    entries = [f"sub-{k:03d}" for k in range(300)]
    monkeypatch.setattr(watch, "A_DAY", 12)
    monkeypatch.setattr(watch, "NEWEST", 1)
    monkeypatch.setattr(watch, "_names", lambda folder: entries)
    chunks = ["0"] * 299 + ["1"]
    seen = []
    for day in range(738_000, 738_028):
        monkeypatch.setattr(watch, "today", lambda day=day: day)
        skip = watch.entries_to_skip(entries, chunks, tmp_path, day - 1)
        seen += [entry for entry in entries[:-1] if entry not in skip]
    assert sorted(seen) == entries[:-1]  # each once in 28 days


def test_days_without_a_run_are_made_up_for(study):
    study.rewrite_all(b"another")
    first = study.update(days=1).changed
    assert first + study.update(days=6).changed == len(SUBJECTS)
    study.rewrite_all(b"and another")
    assert study.update(days=30).changed == len(SUBJECTS)
    study.rewrite_all(b"by a clock that was wrong")
    assert study.update(days=-3).changed == len(SUBJECTS)


def test_on_the_same_day_the_newest_new_and_gone_ones_are_seen(study):
    study.rewrite_all(b"another")
    image(study.folder, "02", "_run-2").touch()
    image(study.folder, "38", "_run-2").touch()
    image(study.folder, "99").touch()
    shutil.rmtree(study.folder / "sub-07")
    change = study.update()
    # new: the run of 38 and 99; changed: the five newest; 07 is gone; 02 is not looked at
    assert (change.added, change.changed, change.removed, change.chunks) == (2, 5, 1, 9)
    change = study.update(everything=True)
    assert (change.added, change.changed, change.removed) == (1, 34, 0)


def test_a_whole_look_finds_nothing_that_the_shares_left_or_made(study):
    image(study.folder, "05", "_run-2").touch()
    image(study.folder, "31").unlink()
    shutil.rmtree(study.folder / "sub-12")
    for _ in range(7):
        study.update(days=1)
    shared = study.tables()
    assert study.update(everything=True) == index.IndexChange(39, 0, 0, 0, 9)
    assert study.tables() == shared


def test_another_kind_of_recording_is_looked_for_everywhere(study):
    for subject in SUBJECTS:
        image(study.folder, subject).with_name(f"sub-{subject}_task-nback_bold.nii.gz").touch()
    study.cohort = study.cohort.model_copy(update={"task": "nback"})
    with pytest.raises(BrainLMError, match="40 of 40 known recordings are gone"):
        study.update()
    assert study.update(accept_removed=True).total == 40


def test_a_lost_table_is_written_again_and_an_empty_folder_is_refused(study):
    before = study.tables()
    (study.results / "index/c/chunks/00001.tsv").unlink()
    study.update()
    assert study.tables() == before
    away = study.folder.rename(study.folder.with_name("away"))
    study.folder.mkdir()
    with pytest.raises(BrainLMError, match="is the disk mounted"):
        study.update()
    assert away.exists() and len(Results(study.results).list_chunks("c")) == 8


def test_a_visit_of_a_known_participant_that_is_an_entry_of_its_own_is_new(study, tmp_path):
    ukb = tmp_path / "ukb"
    for eid in range(1_000_000, 1_000_040):
        (ukb / f"{eid}_20227_2_0.zip").parent.mkdir(exist_ok=True)
        (ukb / f"{eid}_20227_2_0.zip").touch()
    study.cohort = Cohort(name="u", folder=ukb, layout="ukb")
    study.update()
    (ukb / "1000003_20227_3_0.zip").touch()  # another visit
    unpacked = ukb / "1000004_20227_2_0/fMRI/rfMRI.ica"  # the zip is no recording any more
    unpacked.mkdir(parents=True)
    (unpacked / "filtered_func_data_clean.nii.gz").write_bytes(b"x")
    change = study.update()
    assert (change.total, change.added, change.changed, change.removed) == (41, 1, 1, 0)
    again = study.tables()
    assert study.update(everything=True).changed == 0
    assert study.tables() == again


def test_a_nights_look_costs_less_than_one_operation_per_recording(study, monkeypatch):
    calls = []
    for name in ("scandir", "stat", "listdir"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os,
            name,
            lambda path, *a, real=real, **k: calls.append(str(path)) or real(path, *a, **k),
        )

    def cost(**options) -> float:
        calls.clear()
        study.update(**options)
        return sum(call.startswith(str(study.folder)) for call in calls) / len(SUBJECTS)

    nights = [cost(days=1) for _ in range(7)]
    assert sum(nights) / 7 < 1
    assert cost() < 0.5  # the newest eighth, three each, and two listings
    assert cost(everything=True) > 3
