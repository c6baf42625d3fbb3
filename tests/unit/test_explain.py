"""Every file of a cohort is explained: found, read with it, left out, refused, not read."""

from __future__ import annotations

import os

import pytest

from brainlm import cli
from brainlm.cohort.explain import explain_files
from brainlm.config import Cohort

FUNC = "sub-01/func/sub-01_task-rest"
FILES = {
    f"{FUNC}_bold.nii.gz": "recording sub-01_task-rest",
    f"{FUNC}_bold.json": "read with sub-01_task-rest",
    "sub-01/anat/sub-01_T1w.nii.gz": "read with sub-01_task-rest",
    "task-rest_bold.json": "read with sub-01_task-rest and 1 more",
    f"{FUNC}_sbref.nii.gz": "left out: not a BOLD image (by its suffix)",
    f"{FUNC}_part-phase_bold.nii.gz": "left out: phase, real or imaginary part",
    f"{FUNC}_events.tsv": "not read: layout bids does not use it",
    "sub-02/func/sub-02_task-rest_bold.nii.gz": "recording sub-02_task-rest",
    "sub-03/func/sub-04_task-rest_bold.nii.gz": "refused: folder and name disagree about the "
    "participant or session; rename one of them",
    "participants.tsv": "participants table",
    "README": "not read: layout bids does not use it",
}


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "data"


def test_every_file_is_explained(folder):
    (folder / "sub-05").symlink_to("nowhere")
    expected = FILES | {"sub-05": "refused: a link without content; get its content (datalad get "
                                  "or git annex get)"}  # fmt: skip
    assert dict(explain_files(Cohort(name="c", folder=folder))) == expected


def test_the_command_prints_it_and_writes_nothing(folder, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"results: {tmp_path / 'results'}\ncohorts: [{{name: c, folder: {folder}}}]\n"
    )
    cli.main(["index", "--explain", "--config", str(config)])
    lines = capsys.readouterr().out.splitlines()
    assert f"c\t{FUNC}_bold.nii.gz\trecording sub-01_task-rest" in lines
    assert len(lines) == len(FILES) and not os.path.exists(tmp_path / "results")
