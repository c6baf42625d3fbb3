"""The package as `pip install` brings it: run in folders with awkward names, without a clone."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from runs import ROOT, make_clone, make_series, snakemake

CONFIG = """
results: ../the "best" lab's results/links/../x
cohorts:
  - {name: c, folder: series, layout: parcels}
atlas: {name: demo424, folder: atlas}
tasks: [reconstruction]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Where the wheel of a copy of this clone is unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    names = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "brainlm", "atlases", "envs",
             "plugins", "rules", "slurm", "workflow")  # fmt: skip
    for name in names:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet",
         "--wheel-dir", "made", "."],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    (made,) = (folder / "made").glob("*.whl")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", made], check=True)
    with zipfile.ZipFile(made) as wheel:
        wheel.extractall(folder / 'our lab\'s "site"')
    return folder / 'our lab\'s "site"'


def run(site: Path, folder: Path, *command: str, code: int = 0) -> str:
    """What `python -m ...` says with the unpacked wheel alone, in `folder`."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", *command], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(site), "HOME": str(folder)}, check=False,
    )  # fmt: skip
    assert done.returncode == code, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def test_a_wheel_adds_one_file_to_a_package_of_others(site):
    theirs = [str(path.relative_to(site)) for path in (site / "brainmarks").rglob("*.*")]
    assert theirs == ["brainmarks/models/brainlm_pipeline.py"]


@pytest.mark.parametrize("folder", ["atlases", "envs", "rules", "slurm", "workflow"])
def test_a_wheel_has_what_a_clone_has(site, folder):
    tracked = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True,
                             check=True).stdout.split()  # fmt: skip
    share = site / "brainlm/share"
    assert {str(p.relative_to(share)) for p in (share / folder).rglob("*") if p.is_file()} == set(
        tracked
    )


def test_the_version_is_that_of_the_git_tag(tmp_path):
    def call(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert call(sys.executable, "-m", "setuptools_scm") == "0.1.0"  # an archive
    me = ("-c", "user.name=me", "-c", "user.email=me@example.org")
    call("git", "init", "--quiet")
    call("git", "add", "pyproject.toml")
    call("git", *me, "commit", "--quiet", "--message", "first")
    call("git", *me, "tag", "v3.1.4")
    assert call(sys.executable, "-m", "setuptools_scm") == "3.1.4"
    call("git", *me, "commit", "--quiet", "--allow-empty", "--message", "second")
    assert call(sys.executable, "-m", "setuptools_scm").startswith("3.1.5.dev1+g")


def test_every_dependency_is_pinned():
    def names(lines):
        return {re.split(r"[^A-Za-z0-9-]", line)[0].lower() for line in lines}

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    user, dev = (names((ROOT / f"requirements{kind}.lock").read_text().splitlines())
                 for kind in ("", "-dev"))  # fmt: skip
    assert not user & dev
    assert names(project["dependencies"]) <= user
    assert names(project["optional-dependencies"]["dev"]) <= user | dev


def test_a_study_with_awkward_names_runs_from_another_folder(site, tmp_path):
    """To the summary; then its model is planned on two nodes."""
    study = tmp_path / "a study's {folder}"
    study.mkdir()
    (tmp_path / 'the "best" lab\'s results/links').mkdir(parents=True)
    make_series(study / "series", 3)
    (study / "config.yaml").write_text(CONFIG)
    run(site, tmp_path, "brainlm", "run", "--directory", str(study), "--", "summary")
    summary = pd.read_csv(tmp_path / 'the "best" lab\'s results/x/summary.tsv', sep="\t")
    assert summary["recordings"].sum() == 3
    (study / "config.yaml").write_text(CONFIG + "pretrain: {nodes: 2, gpus: 1}\n")
    said = run(site, tmp_path, "brainlm", "run", "--directory", str(study), "--dry-run",
               "--printshellcmds")  # fmt: skip
    assert f"bash {shlex.quote(str(site / 'brainlm/share/slurm'))}/torchrun.sh 2 1" in said


def test_the_bids_app_processes_the_participants_that_it_is_given(site, tmp_path):
    for name in ("sub-01", "sub-02"):
        func = tmp_path / "bids" / name / "func"
        func.mkdir(parents=True)
        (func / f"{name}_task-rest_bold.nii.gz").write_bytes(b"no image")
    (tmp_path / "bids/dataset_description.json").write_text('{"Name": "x"}')
    (tmp_path / "mine.yaml").write_text("atlas: {name: demo424}\nmax_failed_fraction: 1.0\n")
    app = ("brainlm.bids_app", "bids", "out", "participant", "--participant-label")
    run(site, tmp_path, *app, "02", "--config", "mine.yaml", "--n-cpus", "1")
    failures = pd.read_csv(tmp_path / "out/results/failures.tsv", sep="\t")
    assert list(failures["recording_id"]) == ["sub-02_task-rest"]
    assert "no folder sub-7" in run(site, tmp_path, *app, "7", code=1)


def test_the_containers_own_test_passes_here(tmp_path):
    recipe = (ROOT / "envs/pipeline.def").read_text()
    lines = recipe.partition("%test\n")[2]
    assert lines.count("\n") > 1
    subprocess.run(["bash", "-ec", lines], cwd=tmp_path, check=True)


APPTAINER = """#!/bin/bash
[ "$1" = --version ] && echo "apptainer version 1.3.4" && exit
echo "$@" >> said
while [ "$1" != -c ]; do shift; done
exec bash -c "$2"
"""


def test_jobs_are_called_in_the_container(tmp_path, monkeypatch):
    """`--sdm apptainer` with a stand-in that notes its call and runs the command as it is."""
    clone = make_clone(tmp_path / "clone")
    make_series(clone / "series", 1)
    (clone / "config.yaml").write_text(CONFIG.replace(CONFIG.split("\n")[1], "results: results"))
    (clone / "envs/pipeline.sif").touch()
    program = tmp_path / "bin/apptainer"
    program.parent.mkdir()
    program.write_text(APPTAINER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    table = "results/work/c/00000/series.tsv"
    done = snakemake(clone, "--sdm", "apptainer", "--", table)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (clone / table).exists()
    (call,) = (clone / "said").read_text().splitlines()
    assert "envs/pipeline.sif bash -c" in call and "--cohort c --chunk 00000" in call
