import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from fakes import plant_runs
from hypothesis import given
from hypothesis import strategies as st

from brainlm import workflow
from brainlm.cohort.index import (
    choose_chunk_size,
    read_entries,
    simulate_index,
    update_index,
)
from brainlm.cohort.layouts import Found, examine_folder, parse_name
from brainlm.cohort.splits import split_of
from brainlm.config import Cohort, parse_config
from brainlm.errors import BrainLMError
from brainlm.paths import Results


def find(folder: Path, layout: str, **more):
    return examine_folder(Cohort(name="c", folder=folder, layout=layout, **more))[0]


def states(results: Path, cohort: str = "c") -> dict[str, tuple[bytes, int]]:
    folder = Results(results).index(cohort).parent
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in sorted(folder.rglob("*.tsv"))
    }


def test_bids_names_sessions_anatomy_and_what_is_left_out(tmp_path):
    plant_runs(tmp_path, ["01", "02"], ["ses-1", "ses-2"])
    anat = tmp_path / "sub-01/ses-2/anat"
    anat.mkdir()
    (anat / "sub-01_ses-2_T1w.nii.gz").touch()
    func = tmp_path / "sub-01/ses-1/func"
    (func / "sub-01_ses-1_task-rest_part-phase_bold.nii.gz").touch()
    (func / "sub-01_ses-1_task-rest_sbref.nii.gz").touch()
    (func / ".hidden_bold.nii.gz").touch()
    (tmp_path / "derivatives/sub-01/func").mkdir(parents=True)
    found = {f.recording_id: f for f in find(tmp_path, "bids")}
    assert sorted(found) == [
        f"sub-{s}_ses-{k}_task-rest" for s in ("01", "02") for k in (1, 2)
    ]  # fmt: skip
    assert found["sub-01_ses-1_task-rest"].t1w == "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"
    assert found["sub-02_ses-1_task-rest"].t1w is None
    with pytest.raises(BrainLMError, match="task-nback"):
        find(tmp_path, "bids", task="nback")


def test_parse_name():
    assert parse_name("sub-1_task-a_run-2_bold.nii.gz") == (
        {"sub": "1", "task": "a", "run": "2"},
        "bold",
    )


def test_missing_and_empty_folders_are_clear(tmp_path):
    with pytest.raises(BrainLMError, match="folder not found"):
        find(tmp_path / "none", "bids")
    with pytest.raises(BrainLMError, match=r"no recording found.*sub-"):
        find(tmp_path, "bids")
    (tmp_path / "file").touch()
    with pytest.raises(BrainLMError, match="folder not found"):
        find(tmp_path / "file", "bids")


def test_the_same_recording_twice_is_refused(tmp_path):
    plant_runs(tmp_path, ["01"])
    (tmp_path / "sub-01/func/sub-01_task-rest_bold.nii").touch()
    with pytest.raises(BrainLMError, match="same recording"):
        find(tmp_path, "bids")


def test_a_broken_link_is_still_a_recording(tmp_path):
    plant_runs(tmp_path, ["01"])
    (tmp_path / "sub-01/func/sub-01_task-other_bold.nii.gz").symlink_to("nowhere")
    found = find(tmp_path, "bids")
    assert [f.size for f in found] == [-1, 1]


def test_membership_is_stable_and_untouched_tables_stay(tmp_path):
    results, folder = tmp_path / "results", tmp_path / "bids"
    cohort = Cohort(name="c", folder=plant_runs(folder, range(10, 20)))
    assert update_index(cohort, results, 4).added == 10
    before = states(results)
    assert update_index(cohort, results, 4).added == 0
    assert states(results) == before  # nothing was written

    plant_runs(folder, ["05", "15a"])  # one sorts first, one in the middle
    change = update_index(cohort, results, 4)
    assert (change.added, change.changed, change.removed, change.chunks) == (2, 0, 0, 4)
    after = states(results)
    for name in ("chunks/00000.tsv", "chunks/00001.tsv", "chunks/00002.tsv"):
        assert after[name] == before[name]
    new = read_entries(Results(results).chunk_table("c", "00003"), folder)
    assert [e.participant_id for e in new] == ["sub-05", "sub-15a"]


def test_changed_and_removed_recordings_touch_only_their_chunk(tmp_path):
    results, folder = tmp_path / "results", tmp_path / "bids"
    cohort = Cohort(name="c", folder=plant_runs(folder, range(30)))
    update_index(cohort, results, 10)
    before = states(results)
    (folder / "sub-11/func/sub-11_task-rest_bold.nii.gz").write_bytes(b"replaced")
    shutil.rmtree(folder / "sub-25")
    change = update_index(cohort, results, 10)
    assert (change.changed, change.removed) == (1, 1)
    after = states(results)
    touched = {name for name in before if after[name] != before[name]}
    assert touched == {"chunks/00001.tsv", "chunks/00002.tsv", "recordings.tsv"}


def test_an_unmounted_disk_is_not_a_removal(tmp_path):
    results, folder = tmp_path / "results", tmp_path / "bids"
    cohort = Cohort(name="c", folder=plant_runs(folder, range(30)))
    update_index(cohort, results, 10)
    for k in range(12):
        shutil.rmtree(folder / f"sub-{k:02d}")
    with pytest.raises(BrainLMError, match="--accept-removed"):
        update_index(cohort, results, 10)
    assert update_index(cohort, results, 10, accept_removed=True).removed == 12
    assert Results(results).list_chunks("c") == ["00001", "00002"]


def test_a_small_cohort_still_uses_all_cores(tmp_path):
    results = tmp_path / "results"
    cohort = Cohort(name="c", folder=plant_runs(tmp_path / "b", range(24)))
    assert update_index(cohort, results, "auto").chunks == 8


def test_a_table_that_points_outside_is_refused(tmp_path):
    results, folder = tmp_path / "results", tmp_path / "bids"
    update_index(Cohort(name="c", folder=plant_runs(folder, ["01"])), results, 4)
    table = Results(results).chunk_table("c", "00000")
    table.write_text(table.read_text().replace("sub-01/func", "../../etc"))
    with pytest.raises(BrainLMError, match="points outside"):
        read_entries(table, folder)


def test_names_with_spaces_and_unicode(tmp_path):
    folder = plant_runs(tmp_path / "ein Ordner ü", ["01"])
    results = tmp_path / "results"
    update_index(Cohort(name="c", folder=folder), results, 4)
    entry = read_entries(Results(results).chunk_table("c", "00000"), folder)[0]
    assert entry.path.read_bytes() == b"x"


def test_parcel_series_layouts(tmp_path):
    func = tmp_path / "sub-1/func"
    func.mkdir(parents=True)
    (func / "sub-1_task-rest_atlas-CC200_timeseries.npy").touch()
    (func / "sub-1_task-rest_desc-confounds_timeseries.tsv").touch()
    assert [f.recording_id for f in find(tmp_path, "parcels")] == ["sub-1_task-rest"]
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "A424_example.dat").touch()
    assert [f.recording_id for f in find(flat, "parcels")] == ["sub-A424example"]


def test_what_is_left_out_is_said(tmp_path, capsys):
    (tmp_path / "series").mkdir()
    (tmp_path / "series/0050642.npy").touch()
    (tmp_path / "series/phenotypes.tsv").write_text("eid\tage\n0050642\t33\n")
    cohort = {"name": "c", "folder": str(tmp_path / "series"), "layout": "parcels"}
    config = parse_config({"results": str(tmp_path / "r"), "cohorts": [cohort]}, "config.yaml")
    workflow._update(config)
    said = capsys.readouterr().err
    assert "index c: left out, a table of participants or recordings: 1 (phenotypes.tsv)" in said


def test_77000_recordings_in_the_index(tmp_path):
    simulate_index(tmp_path / "index/big", 77_000)
    assert len(Results(tmp_path).list_chunks("big")) == 770
    assert len(read_entries(Results(tmp_path).chunk_table("big", "00769"), tmp_path)) == 100


@given(st.text(min_size=1))
def test_splits_depend_on_the_participant_alone(name):
    assert split_of(name) == split_of(name) in ("train", "validation", "test")


def test_splits_are_80_10_10():
    counts = Counter(split_of(f"sub-{k:05d}") for k in range(20_000))
    assert abs(counts["train"] / 20_000 - 0.8) < 0.01
    assert abs(counts["test"] / 20_000 - 0.1) < 0.01
    assert split_of("sub-0050642") == "test"  # frozen: a change would leak test subjects


def test_a_small_cohort_uses_all_cores_and_large_images_make_small_chunks():
    def found(count: int, megabytes: float) -> list[Found]:
        size = int(megabytes * 1e6)
        return [Found(f"sub-{k}", {"sub": str(k)}, f"{k}", size, 0) for k in range(count)]

    assert choose_chunk_size(found(5, 30)) == 1
    cores = max(8, os.cpu_count() or 1)
    assert choose_chunk_size(found(10 * cores, 30)) == 10
    assert choose_chunk_size(found(77_000, 1)) == 200  # the largest shard
    assert choose_chunk_size(found(77_000, 300)) == 96  # half an hour on eight cores


def test_a_long_look_at_a_known_cohort_names_what_spares_it(tmp_path, monkeypatch, capsys):
    plant_runs(tmp_path / "bids", ["01", "02"])
    config = parse_config(
        {
            "results": str(tmp_path / "results"),
            "cohorts": [{"name": "c", "folder": str(tmp_path / "bids"), "watch": "full"}],
        },
        "config.yaml",
    )
    workflow._update(config)
    assert "watch:" not in capsys.readouterr().err
    monkeypatch.setattr(workflow, "_LONG_LOOK_S", -1)
    workflow._update(config)
    assert "index c: looking at 2 recordings took 0 s; `watch: auto`" in capsys.readouterr().err
