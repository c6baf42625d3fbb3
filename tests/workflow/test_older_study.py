"""A study that an earlier version finished: nothing of it is made again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from test_plan import Clone

from brainlm.atlas import load_atlas
from brainlm.cohort.index import read_entries
from brainlm.config import load_config
from brainlm.preprocess.chunk import make_task
from brainlm.preprocess.stages.context import Context
from brainlm.steps import stages_of

#: Path -> time of change in ns, and text: as d613416 left them, with Snakemake's own records, but
#: for the versions of normalise, denoise and finetune, which have other results since, and for
#: use_t1w and denoise, whose defaults were others.
#: Three cohorts: raw images, images in template space, parcel series; all outputs are empty.
STUDY = Path(__file__).with_name("finished_study.json")


@pytest.fixture
def clone(tmp_path) -> Clone:
    clone = Clone(tmp_path)
    for name, (mtime_ns, text) in json.loads(STUDY.read_text(encoding="utf-8")).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(mtime_ns, mtime_ns))
    return clone


def test_a_study_that_an_earlier_version_finished_plans_nothing(clone, tmp_path, monkeypatch):
    names = [c["name"] for c in yaml.safe_load((tmp_path / "config.yaml").read_text())["cohorts"]]
    assert clone.plan() == {("embed", name) for name in names}  # which came later
    assert '"demo424"' in (tmp_path / "results/first_atlas.json").read_text()
    assert "00000" in (tmp_path / "results/shards/b/finished.tsv").read_text()

    monkeypatch.chdir(tmp_path)
    config = load_config("config.yaml")
    atlas = load_atlas("demo424", tmp_path / "atlas")
    for cohort in config.cohorts:  # were a chunk run again: what it had computed counts
        table = config.paths.chunk_table(cohort.name, "00000")
        for entry in read_entries(table, cohort.folder):
            for stage in stages_of(cohort.layout):
                task = make_task(stage, Context(config, cohort, atlas))
                assert task.cached(entry), (cohort.name, stage)


def test_an_atlas_in_another_space_plans_what_depends_on_it(clone, nlin6):
    assert clone.plan()
    clone.configure("name: demo424", "name: a424")
    clone.configure("release: r1", "release: r2")
    planned = {job for job in clone.plan() if job[1].startswith("a/")}
    assert {rule for rule, _ in planned} == {
        "normalise",
        "denoise",
        "parcellate",
        "shard",
        "pages",
    }
