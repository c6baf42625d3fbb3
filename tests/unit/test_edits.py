"""Files that belong to a recording and are edited under the same name make it another input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from brainlm.cohort import index, watch
from brainlm.cohort.index import read_entries, update_index
from brainlm.config import Cohort
from brainlm.paths import Results

RUN = "sub-{}/ses-1/func/sub-{}_ses-1_task-rest"
HCP = "{}/MNINonLinear/Results/rfMRI_REST1_LR"
UKB = "{}_20227_2_0/fMRI/rfMRI.ica"
#: Layout -> a recording, and files that it depends on; the last belongs to nobody.
TREES = {
    "bids": [
        RUN + "_bold.nii.gz", RUN + "_bold.json", "sub-{}/sub-{}_task-rest_bold.json",
        "sub-{}/ses-1/sub-{}_ses-1_bold.json", "sub-{}/ses-1/anat/sub-{}_ses-1_T1w.nii.gz",
        "sub-{}/ses-1/fmap/sub-{}_ses-1_dir-AP_epi.nii.gz",
        "sub-{}/ses-1/fmap/sub-{}_ses-1_dir-AP_epi.json", RUN + "_events.tsv",
    ],
    "fmriprep": [
        RUN + "_space-MNI_desc-preproc_bold.nii.gz", RUN + "_space-MNI_desc-preproc_bold.json",
        RUN + "_desc-confounds_timeseries.tsv", RUN + "_desc-brain_mask.json",
    ],
    "xcpd": [
        RUN + "_space-MNI_seg-A_stat-mean_timeseries.tsv",
        RUN + "_space-MNI_seg-A_stat-mean_timeseries.json", RUN + "_motion.tsv",
        RUN + "_outliers.tsv", RUN + "_space-MNI_seg-A_stat-alff_bold.tsv",
    ],
    "parcels": [
        RUN + "_atlas-A_timeseries.npy", RUN + "_atlas-A_timeseries.json", RUN + "_physio.json",
    ],
    "hcp": [HCP + "/rfMRI_REST1_LR.nii.gz", HCP + "/Movement_Regressors.txt", HCP + "/x.txt"],
    "ukb": [
        UKB + "/filtered_func_data_clean.nii.gz", UKB + "/mc/prefiltered_func_data_mcf.par",
        UKB + "/reg/example_func2standard_warp.nii.gz", UKB + "/x.txt",
    ],
}  # fmt: skip


def edit(path: Path, text: str) -> None:
    """Under the same name and with the same length, a second later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    later = path.stat().st_mtime_ns + 10**9 if path.exists() else 10**18
    path.write_text(text)
    os.utime(path, ns=(later, later))


class Study:
    def __init__(self, folder: Path, layout: str, count: int = 3, **more):
        self.folder, self.results = folder / "data", folder / "results"
        self.who = [f"{1000000 + k}" for k in range(count)]
        self.tree = TREES[layout]
        for who in self.who:
            for name in self.tree:
                edit(self.path(name, who), "one")
        self.cohort = Cohort(name="c", folder=self.folder, layout=layout, **more)

    def path(self, name: str, who: str) -> Path:
        return self.folder / name.replace("{}", who)

    def changed(self) -> list[str]:
        """Participants whose recordings are another input than before."""
        before = self.times()
        change = update_index(self.cohort, self.results, 1)
        now = self.times()
        assert change.changed == sum(now[k] != before.get(k) for k in now if k in before)
        return [k for k in now if now[k] != before.get(k)]

    def times(self) -> dict[str, int]:
        table = Results(self.results).index("c")
        entries = read_entries(table, self.folder) if table.exists() else []
        return {entry.participant_id.removeprefix("sub-"): entry.mtime_ns for entry in entries}


@pytest.mark.parametrize("layout", TREES)
def test_an_edited_companion_is_seen_once_by_the_next_run(tmp_path, layout):
    study = Study(tmp_path, layout)
    assert study.changed() == study.who and study.changed() == []
    first, second, _ = study.who
    for name in study.tree[1:-1]:
        for text in ("two", "six"):
            edit(study.path(name, second), text)
            assert study.changed() == [second], name
        assert study.changed() == []
    edit(study.path(study.tree[-1], first), "two")
    assert study.changed() == []
    study.path(study.tree[1], first).unlink()
    assert study.changed() == [first] and study.changed() == []


@pytest.mark.parametrize("name", ["task-rest_bold.json", "task-rest_run-1_bold.json"])
def test_a_sidecar_of_the_whole_cohort_is_seen(tmp_path, name):
    study = Study(tmp_path, "bids")
    edit(study.folder / name, "{}")
    study.changed()
    edit(study.folder / name, "[]")
    assert study.changed() == (study.who if name == "task-rest_bold.json" else [])
    assert study.changed() == []


def test_an_edited_exclusion_table_is_seen(tmp_path):
    table = tmp_path / "exclude.tsv"
    edit(table, "recording_id\treason\n")
    study = Study(tmp_path, "bids", exclude=table)
    study.changed()
    edit(table, f"recording_id\treason\nsub-{study.who[1]}_ses-1_task-rest\tmoved\n")
    assert study.changed() == [study.who[1]] and study.changed() == []
    edit(table, "recording_id\treason\n")
    assert study.changed() == [study.who[1]]


def test_a_study_of_before_finds_nothing_new(tmp_path):
    study = Study(tmp_path, "bids")
    study.changed()
    Results(study.results).companions("c").unlink()
    assert study.changed() == []


def test_of_a_large_cohort_older_companions_are_looked_at_in_turn(tmp_path, monkeypatch):
    day = [738_000]
    monkeypatch.setattr(watch, "NEWEST", 4)
    for module in (watch, index):
        monkeypatch.setattr(module, "today", lambda: day[0])
    study = Study(tmp_path, "bids", count=24)
    study.changed()
    for who in study.who:
        edit(study.path(RUN + "_bold.json", who), "two")
    assert study.changed() == study.who[-2:]  # the newest at once
    seen = []
    for _ in range(28):
        day[0] += 1
        seen += study.changed()
    assert sorted(seen) == study.who[:-2]
