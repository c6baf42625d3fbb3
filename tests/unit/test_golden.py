"""Triggers and outcome keys of default configurations, frozen: a finished study plans nothing.

`golden.json` was written by the code of 2026-11-30 (d613416; normalise, denoise and finetune
later, denoise once more when its default became `[ica, wm-csf]`). A string in it changes only
where a step's result changes, and the changelog says so.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brainlm.atlas import Atlas
from brainlm.cohort.layouts import LAYOUTS
from brainlm.cohort.recordings import Entry
from brainlm.config import Config, parse_config
from brainlm.evaluation.tasks import load_tasks
from brainlm.preprocess.chunk import make_task
from brainlm.preprocess.stages.context import Context
from brainlm.steps import stages_of
from brainlm.workflow import Triggers

GOLDEN = Path(__file__).with_name("golden.json")
ATLAS = Atlas("a424", "MNI152NLin6Asym", 424, Path("image"), "ab" * 32, None, ("x",), "", "")
ENTRY = Entry(
    "sub-01_task-rest", "sub-01", None, "rest", None, Path("/data/sub-01/func/x_bold.nii.gz"),
    "sub-01/func/x_bold.nii.gz", None, 1234, 5678, "00000",
)  # fmt: skip
LATER = {"pretrain": None, "finetune": "age", "evaluate": "reconstruction"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """A study in the checkout's own results/ is not this one."""
    monkeypatch.chdir(tmp_path)


def study(layout: str) -> Config:
    cohort = {"name": "a", "folder": "/data", "layout": layout, "role": "reference"}
    return parse_config({"cohorts": [cohort]})


def triggers(config: Config) -> dict[str, str]:
    cohort = config.cohorts[0]
    found = Triggers(config, load_tasks(("age", "reconstruction")))
    steps = [*stages_of(cohort.layout), "shard", "pages"]
    out = {step: found.of(step, cohort.name) for step in steps}
    return out | {step: found.of(step, task=task) for step, task in LATER.items()}


def outcome_keys(config: Config) -> dict[str, str]:
    cohort = config.cohorts[0]
    return {
        step: make_task(step, Context(config, cohort, ATLAS)).key(ENTRY)
        for step in stages_of(cohort.layout)
    }


def found() -> dict[str, dict[str, dict[str, str]]]:
    return {
        layout: {"triggers": triggers(study(layout)), "outcome_keys": outcome_keys(study(layout))}
        for layout in LAYOUTS
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_finished_study_of_default_settings_stays_finished(layout):
    frozen = json.loads(GOLDEN.read_text())[layout]
    assert triggers(study(layout)) == frozen["triggers"]
    assert outcome_keys(study(layout)) == frozen["outcome_keys"]
