"""Conditions that nobody asks for: folders that vanish, disks that fill, tables that lie."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import make_series
from safetensors.torch import save_file

from brainlm.atlas import Atlas
from brainlm.cohort.index import mark_retries, read_entries, update_index
from brainlm.cohort.labels import read_participants, read_target
from brainlm.config import Cohort, load_config, parse_config
from brainlm.errors import BrainLMError
from brainlm.files import atomic_path, is_disk_error, remove_leftovers, write_text
from brainlm.paths import Results
from brainlm.preprocess.chunk import run_stage
from brainlm.preprocess.stages.context import Context
from brainlm.workflow import prepare_run

ATLAS = Atlas("demo424", "toyspace", 424, None, "ab", None, tuple(map(str, range(424))), "", "")


def study(tmp_path: Path, count: int = 4, **options):
    make_series(tmp_path / "series", count)
    cohort = {"name": "c", "folder": str(tmp_path / "series"), "layout": "parcels"}
    config = parse_config({
        "results": str(tmp_path / "results"), "cohorts": [cohort | options], "tasks": [],
    })  # fmt: skip
    update_index(config.cohorts[0], config.results, 10)
    return config


def run(config):
    return run_stage("series", "00000", Context(config, config.cohorts[0], ATLAS), log=str)


def test_a_cohort_folder_that_vanishes_mid_run_becomes_rows(tmp_path):
    config = study(tmp_path)
    shutil.move(tmp_path / "series", tmp_path / "away")
    rows = run(config)
    assert len(rows) == 4
    assert {row["status"] for row in rows} == {"unreadable"}
    with pytest.raises(BrainLMError, match="is the disk"):
        update_index(config.cohorts[0], config.results, 10)
    shutil.move(tmp_path / "away", tmp_path / "series")  # it is back: one more try is asked for
    failed = {row["recording_id"] for row in rows}
    assert mark_retries(config.results, "c", failed, 1) == 4
    assert {row["status"] for row in run(config)} == {"ok"}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)  # torch may hold a file still


def test_a_full_disk_leaves_the_old_file_and_no_torn_one(small_disk):
    target = small_disk / "table.tsv"
    write_text(target, "old")
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(target, "x" * 200_000)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in small_disk.iterdir()] == ["table.tsv"]
    assert target.read_text() == "old"


def test_a_writer_that_calls_a_full_disk_something_else_is_translated(small_disk):
    with (
        pytest.raises(OSError, match="No space left") as caught,
        atomic_path(small_disk / "step-1.pt") as temporary,
    ):
        torch.save({"weights": torch.zeros(1 << 16)}, temporary)
    assert is_disk_error(caught.value)
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize(("mask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_weights_have_the_rights_that_other_files_have(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with atomic_path(tmp_path / "model.safetensors") as temporary:
            save_file({"a": torch.zeros(2)}, temporary)
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == mode
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_refuses_stops_the_stage_and_blames_no_recording(tmp_path, monkeypatch, code):
    config = study(tmp_path)

    def refuse(*args, **options):
        raise OSError(code, os.strerror(code), "series.npz")

    monkeypatch.setattr(np, "savez", refuse)
    with pytest.raises(BrainLMError, match=os.strerror(code)):
        run(config)
    assert not list((config.results / "work/c/outcomes").rglob("*.json"))
    monkeypatch.undo()
    assert {row["status"] for row in run(config)} == {"ok"}  # with space again: nothing is lost


def test_a_results_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "results").write_text("a file where the folder should be")
    make_series(tmp_path / "series", 2)
    cohort = {"name": "c", "folder": str(tmp_path / "series"), "layout": "parcels"}
    values = {"results": str(tmp_path / "results"), "cohorts": [cohort], "tasks": []}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        prepare_run(values, is_main_process=True)
    said = capsys.readouterr().err
    assert said.startswith("brainlm: ") and "results" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("ages", "words"), [("30 30", "age is 30"), ("30 old", "'old', expected"), ("30 31", "")]
)
def test_a_label_that_cannot_be_learnt_is_refused_before_anything_is_done(
    tmp_path, monkeypatch, capsys, ages, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRAINLM_CONFIG", "")
    make_series(tmp_path / "series", 2)
    participants = sorted(
        {path.name.split("_")[0] for path in (tmp_path / "series").rglob("sub-*_*")}
    )
    lines = [f"{subject}\t{age}" for subject, age in zip(participants, ages.split(), strict=True)]
    text = "\n".join(["participant_id\tage", *lines, ""])
    (tmp_path / "series/participants.tsv").write_text(text)
    cohort = {"name": "c", "folder": "series", "layout": "parcels"}
    values = {"cohorts": [cohort], "tasks": ["age"]}
    if not words:
        prepare_run(values, is_main_process=True)
        return
    with pytest.raises(SystemExit):
        prepare_run(values, is_main_process=True)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "change", "words"),
    [
        (["mine"], {}, "shards.tsv: frozen with shards of cohort 'demo' and of none of"),
        (["demo"], {"atlas": {"name": "a424"}}, "scaling.json: frozen with atlas demo424, but"),
        (["demo"], {}, ""),
        (["mine", "demo"], {}, ""),  # a cohort more is no other study
        (["mine", "demo"], {"role": "external"}, ""),  # only evaluated, with what was trained
        (
            ["demo", "mine"],
            {"role": "external"},
            "'demo' is in release r1, which is trained on it, and",
        ),
        (["demo", "mine"], {"role": "external", "release": "r2"}, ""),
        (["mine"], {"release": "r2"}, ""),
    ],
)
def test_a_release_of_other_cohorts_is_refused_before_anything_is_done(
    tmp_path, monkeypatch, capsys, names, change, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRAINLM_CONFIG", "")
    release = tmp_path / "results/releases/r1"
    release.mkdir(parents=True)
    (release / "scaling.json").write_text('{"atlas": "demo424"}')
    (release / "shards.tsv").write_text("shard\tsize\nresults/shards/demo/00000.parquet\t1\n")
    make_series(tmp_path / "series", 2)
    values = {"atlas": {"name": "demo424"}, "tasks": []} | change
    cohort = {"folder": "series", "layout": "parcels", "role": "reference"}
    values["cohorts"] = [{"name": name} | cohort for name in names]
    values["cohorts"][0]["role"] = values.pop("role", "reference")
    if not words:
        prepare_run(values, is_main_process=True)
        return
    with pytest.raises(SystemExit):
        prepare_run(values, is_main_process=True)
    said = capsys.readouterr().err
    assert words in said and "release: r2" in said and said.count("\n") == 1
    assert not (tmp_path / "results/index").exists()


def test_jobs_read_the_configuration_that_the_run_began_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRAINLM_CONFIG", "")
    make_series(tmp_path / "series", 2)
    cohort = {"name": "c", "folder": "series", "layout": "parcels"}
    values = {"cohorts": [cohort], "tasks": []}
    began = prepare_run(values, is_main_process=True)
    edited = values | {"results": "elsewhere", "preprocess": {"min_duration_s": 7}}
    assert (
        prepare_run(edited, is_main_process=False) == began == load_config("results/config.json")
    )


def test_a_changed_file_of_equal_size_and_a_broken_link_are_seen(tmp_path):
    config = study(tmp_path)
    run(config)
    path = next((tmp_path / "series/sub-01").rglob("*.npy"))
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")  # as long as it was, only newer
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert update_index(config.cohorts[0], config.results, 10).changed == 1
    annex = next((tmp_path / "series/sub-02").rglob("*.npy"))
    annex.unlink()
    annex.symlink_to("../../.git/annex/objects/Xy/MD5E-s1--0.npy")  # datalad: content not here
    assert update_index(config.cohorts[0], config.results, 10).changed == 1
    status = {row["recording_id"]: row for row in run(config)}
    assert status["sub-02_task-rest"]["status"] == "unreadable"
    assert status["sub-01_task-rest"]["status"] == "ok"


def test_the_same_subject_in_two_cohorts_stays_two_participants(tmp_path):
    names, cohorts = ("a", "b"), []
    for number, name in enumerate(names):
        folder = make_series(tmp_path / name, 2)
        (folder / "participants.tsv").write_text(f"participant_id\tage\nsub-01\t{20 + number}\n")
        cohorts.append(Cohort(name=name, folder=folder, layout="parcels"))
        update_index(cohorts[-1], tmp_path / "results", 10)
    ages = read_target(cohorts, "age")
    assert ages["a", "sub-01"] == 20 and ages["b", "sub-01"] == 21
    tables = {Results(tmp_path / "results").chunk_table(name, "00000") for name in names}
    assert len(tables) == 2


def test_ids_that_lead_out_of_the_folder_are_refused(tmp_path):
    config = study(tmp_path)
    table = Results(config.results).chunk_table("c", "00000")
    text = table.read_text()
    for old, new in (
        ("sub-01_task-rest\t", "../../etc/passwd\t"),
        ("sub-01/func", "../../etc"),
    ):
        table.write_text(text.replace(old, new, 1))
        with pytest.raises(BrainLMError, match=r"cannot name|points outside"):
            read_entries(table, tmp_path / "series")
    with pytest.raises(BrainLMError, match="letters, digits"):
        parse_config({"cohorts": [{"name": "../x", "folder": "y"}]})
    exclude = tmp_path / "exclude.tsv"
    exclude.write_text("recording_id\treason\n../../sub-01\tx\nsub-02_task-rest\t../../y\n")
    table.write_text(text)
    cohort = config.cohorts[0].model_copy(update={"exclude": exclude})
    rows = run(config.model_copy(update={"cohorts": (cohort,)}))
    assert [row["status"] for row in rows].count("excluded") == 1  # only a recording's own name


def test_a_large_table_is_read_whole(tmp_path):
    lines = "".join(f"sub-{k:06d}\t{k % 90}\tn/a\n" for k in range(100_000))
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsite\n" + lines)
    cohort = Cohort(name="c", folder=tmp_path)
    table = read_participants(cohort)
    assert len(table) == 100_000
    assert read_target([cohort], "age")["c", "sub-000091"] == 1


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    for name in ("a/.shard.parquet.0123abcd.tmp.parquet", "b/.x.tsv.ffffffff.tmp.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with atomic_path(tmp_path / "kept.nii.gz") as temporary:
        temporary.touch()
    (tmp_path / "my.tmp").touch()
    assert remove_leftovers(tmp_path) == 2
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["kept.nii.gz", "my.tmp"]
