"""The commit and the DOI of a cohort's dataset."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from brainlm.cohort.origin import COMMIT, DOI, read_origin


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True,
                          text=True).stdout.strip()  # fmt: skip


@pytest.fixture
def dataset(tmp_path) -> Path:
    """A repository with a tracked and an ignored folder, and a worktree of it."""
    folder = tmp_path / "a dataset"
    for name in ("derivatives/x", "scratch"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").touch()
    (folder / ".gitignore").write_text("scratch\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "one")
    git(folder, "worktree", "add", "--quiet", "../other", "--detach")
    git(tmp_path, "init", "--quiet", "super")
    git(tmp_path / "super", "submodule", "--quiet", "add", "../a dataset", "sub")
    (folder / "new").touch()  # a change that is not committed
    return folder


@pytest.mark.parametrize(
    ("place", "known"),
    [
        (".", True),
        ("derivatives/x", True),
        ("../other", True),
        ("../super/sub", True),  # a DataLad subdataset
        ("../super", False),  # no commit yet
        ("scratch", False),  # a folder inside a clone, such as data/demo
        ("..", False),
        ("absent", False),
    ],
)
def test_the_commit_of_a_dataset_is_its_own(dataset, place, known):
    expected = {COMMIT: git(dataset, "rev-parse", "HEAD")} if known else {}
    assert read_origin(dataset / place) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away needs root")
def test_a_colleague_owns_the_dataset(dataset, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/elsewhere")  # as in a hook
    for path in (dataset, dataset / ".git"):
        os.chown(path, 4321, 4321)
    assert COMMIT in read_origin(dataset)


@pytest.mark.parametrize(
    ("text", "doi"),
    [
        ("doi:10.18112/openneuro.ds000030.v1.0.0", "10.18112/openneuro.ds000030.v1.0.0"),
        (" https://doi.org/10.5281/zenodo.7", "10.5281/zenodo.7"),
        ("DOI: 10.1/a", "10.1/a"),
        ("10.1/b", "10.1/b"),
        ("", None),
        (None, None),
        (["10.1/c"], None),
    ],
)
def test_a_doi_is_read_without_its_prefix(tmp_path, text, doi):
    path = tmp_path / "dataset_description.json"
    path.write_text(json.dumps({"Name": "x", "DatasetDOI": text}))
    assert read_origin(tmp_path).get(DOI) == doi


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0"])
def test_a_description_that_cannot_be_read_states_nothing(tmp_path, text):
    (tmp_path / "dataset_description.json").write_text(text)
    assert read_origin(tmp_path) == {}
