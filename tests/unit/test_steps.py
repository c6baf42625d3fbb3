"""The table of steps: a trigger and an outcome key are of the same facts."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import write_parcel_run
from hypothesis import given, settings
from hypothesis import strategies as st

from brainlm import cli
from brainlm.atlas import Atlas, Registered, identify_atlas, load_atlas, registered
from brainlm.cohort.index import update_index
from brainlm.cohort.layouts import LAYOUTS
from brainlm.config import Censor, Cohort, Config, Preprocess, parse_config
from brainlm.errors import BrainLMError
from brainlm.files import is_whole
from brainlm.preprocess.chunk import run_stage
from brainlm.preprocess.collect import write_chunk_shard
from brainlm.preprocess.stages.context import Context
from brainlm.shards import read_shard
from brainlm.steps import STEPS, load, outcome_recipe, stages_of, trigger
from brainlm.workflow import prepare_run

COHORT = {
    "role": ["reference", "external"],
    "watch": ["auto", "full", "sealed"],
    "participants": [None, Path("people.tsv")],
    "exclude": [None, Path("exclude.tsv")],
    "repetition_time_s": [None, 2.0, 0.72],
    "orientation": [None, "RAS", "LPI"],
    "task": [None, "rest"],
    "select": [{}, {"rec": "norm"}],
    "space": [None, "MNI152NLin6Asym:res-2"],
    "confounds": ["motion24", "none", ("motion6", "wm-csf")],
    "segmentation": [None, "Glasser"],
    "units": ["as delivered", "scanner", "percent"],
}
PREPROCESS = {
    "engine": ["builtin", "fsl"],
    "min_duration_s": [120.0, 60.0],
    "sample_period_s": [1.0, 2.0],
    "high_pass_hz": [0.008, 0.01, 0.0],
    "low_pass_hz": [None, 0.1],
    "slice_timing": [False, True],
    "denoise": ["ica", "none", ("motion24", "wm-csf"), ("ica", "wm-csf")],
    "use_t1w": ["auto", False, True],
    "distortion": ["auto", "none", "pepolar"],
    "min_coverage": [0.5, 0.7],
    "censor": [None, Censor(fd_mm=0.5), Censor(fd_mm=0.2)],
    "time_limit_min": [30.0, 60.0],
    "outputs": [(), ("timeseries",), ("volumes",)],
}
ATLAS = {
    "name": ["a424", "demo424", "mine"],
    "space": ["MNI152NLin6Asym", "MNI152NLin2009aSym", None],
    "image_sha256": ["ab", "cd"],
}
FIXED = {"name", "folder", "layout"}  # which cohort it is; the layout decides the steps


def drawn(values: dict[str, list]) -> st.SearchStrategy:
    return st.fixed_dictionaries({key: st.sampled_from(each) for key, each in values.items()})


STUDY = st.tuples(drawn(COHORT), drawn(PREPROCESS), drawn(ATLAS))


def strings(layout: str, study, first: Registered) -> tuple[dict, dict]:
    """The trigger of each step of a recording, and its outcome recipe."""
    cohort = Cohort(name="a", folder=Path(), layout=layout).model_copy(update=study[0])
    config = Config(cohorts=(cohort,)).model_copy(
        update={"preprocess": Preprocess().model_copy(update=study[1])}
    )
    atlas, stages = Registered(**study[2]), stages_of(layout)
    found = {s: trigger(s, config, cohort=cohort, atlas=atlas, first=first) for s in stages}
    return found, {s: outcome_recipe(s, config, cohort, atlas, first) for s in stages}


def agree(layout: str, one, other, first: Registered) -> None:
    (triggers, keys), (triggers2, keys2) = (
        strings(layout, one, first),
        strings(layout, other, first),
    )
    changed = False
    for stage in stages_of(layout):  # Snakemake reruns what follows, so keys cover what precedes
        changed |= triggers[stage] != triggers2[stage]
        assert changed == (keys[stage] != keys2[stage]), stage


def test_every_field_has_values_to_try():
    """A new key of the configuration must say here what it can be."""
    assert {*COHORT, *FIXED} == set(Cohort.model_fields)
    assert set(PREPROCESS) == set(Preprocess.model_fields)
    assert set(ATLAS) == set(Registered._fields)


@pytest.mark.parametrize("layout", ["bids", "fmriprep", "xcpd"])
def test_a_field_changes_the_trigger_exactly_when_it_changes_the_key(layout):
    """Every field by itself, from every value to every other."""
    groups = (COHORT, PREPROCESS, ATLAS)
    base = [{key: each[0] for key, each in values.items()} for values in groups]
    for number, values in enumerate(groups):
        for key, each in values.items():
            studies = [list(base) for _ in each]
            for study, value in zip(studies, each, strict=True):
                study[number] = base[number] | {key: value}
            for one in studies:
                for other in studies:
                    agree(layout, one, other, Registered(**base[2]))


@given(st.sampled_from(list(LAYOUTS)), STUDY, STUDY, drawn(ATLAS))
@settings(max_examples=60, deadline=None)
def test_triggers_and_keys_agree_whatever_else_is_set(layout, one, other, first):
    agree(layout, one, other, Registered(**first))
    mixed = tuple(
        a | dict(list(b.items())[: len(b) // 2]) for a, b in zip(one, other, strict=True)
    )
    agree(layout, one, mixed, Registered(**first))


def test_what_a_result_depends_on_is_what_its_function_reads():
    """Dependencies that a user sets, and what follows: each of these was wrong once."""

    def stages_that_change(layout: str, **change) -> list[str]:
        base = [{key: each[0] for key, each in v.items()} for v in (COHORT, PREPROCESS, ATLAS)]
        first = Registered(**base[2])
        other = [{k: change.get(f"{n}_{k}", v) for k, v in part.items()}
                 for n, part in zip(("cohort", "option", "atlas"), base, strict=True)]  # fmt: skip
        before, after = strings(layout, base, first)[0], strings(layout, other, first)[0]
        return [stage for stage in before if before[stage] != after[stage]]

    assert stages_that_change("xcpd", cohort_units="scanner") == ["series"]
    assert stages_that_change("fmriprep", cohort_units="scanner") == []
    assert stages_that_change("fmriprep", cohort_confounds="none") == ["volumes"]
    assert stages_that_change("bids", cohort_repetition_time_s=2.0) == ["motion"]
    new_space = {"atlas_space": "MNI152NLin2009aSym", "atlas_name": "mine"}
    assert stages_that_change("bids", **new_space) == ["normalise", "denoise", "parcellate"]
    assert stages_that_change("bids", atlas_image_sha256="cd") == ["parcellate"]
    assert stages_that_change("bids", option_time_limit_min=60.0) == []


def test_the_first_atlas_is_kept_and_an_older_study_s_is_what_made_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRAINLM_CONFIG", "")  # which a plan sets for its jobs
    (tmp_path / "series").mkdir()
    (tmp_path / "series/sub-1.npy").write_bytes(b"x")
    cohort = {"name": "c", "folder": "series", "layout": "parcels"}
    values = {"cohorts": [cohort], "atlas": {"name": "demo424"}}
    values["tasks"] = []
    other = values | {"atlas": {"name": "a424"}}
    config = prepare_run(values, is_main_process=True)
    kept = config.paths.first_atlas
    assert '"demo424"' in kept.read_text()
    prepare_run(other, is_main_process=True)
    assert '"demo424"' in kept.read_text()
    kept.unlink()  # as a study of before, whose stored configuration names a424 now
    prepare_run(values, is_main_process=True)
    assert '"a424"' in kept.read_text()


@pytest.mark.parametrize("name", registered())
def test_an_atlas_is_identified_without_its_files(name, tmp_path):
    found = identify_atlas(name)
    assert found.name == name
    if name == "demo424":
        atlas = load_atlas(name, tmp_path)
        assert found == (atlas.name, atlas.space, atlas.image_sha256)


# ---- outcomes and the files that they stand for


@pytest.fixture
def series_study(tmp_path):
    """Four recordings that come as parcel series."""
    for number in range(4):
        values = 500 + np.random.default_rng(number).normal(size=(130, 3))
        write_parcel_run(tmp_path / "series", f"sub-{number}_task-rest",
                         values.astype(np.float32), atlas="toy")  # fmt: skip
    values = {
        "results": str(tmp_path / "results"),
        "cohorts": [{"name": "c", "folder": str(tmp_path / "series"), "layout": "parcels"}],
    }
    update_index(parse_config(values).cohorts[0], tmp_path / "results", 10)
    return values


TOY = Atlas("toy", None, 3, None, "ab", None, ("a", "b", "c"), "", "")


def take(values: dict) -> tuple[Context, int]:
    """Run the only stage; how many recordings it computed."""
    config, said = parse_config(values), []
    context = Context(config, config.cohorts[0], TOY)
    run_stage("series", "00000", context, log=said.append)
    return context, int(said[0].split(", ")[1].split()[0])


def test_units_that_a_cohort_states_later_reach_its_shard(series_study):
    context, count = take(series_study)
    write_chunk_shard("00000", context, log=str)
    shard = context.config.paths.shard("c", "00000")
    assert (count, {row.units for row in read_shard(shard)}) == (4, {"as delivered"})
    series_study["cohorts"][0]["units"] = "scanner"
    context, count = take(series_study)
    write_chunk_shard("00000", context, log=str)
    assert (count, {row.units for row in read_shard(shard)}) == (4, {"percent"})
    assert take(series_study)[1] == 0


@pytest.mark.parametrize("damage", ["gone", "empty", "cut off"])
def test_an_outcome_whose_file_is_not_whole_is_computed_again(series_study, damage):
    context, _ = take(series_study)
    path = context.config.paths.series_file("c", "sub-2_task-rest")
    before = path.read_bytes()
    path.write_bytes(before[: 0 if damage == "empty" else len(before) // 2])
    if damage == "gone":
        path.unlink()
        with pytest.raises(BrainLMError, match="brainlm series --cohort c --chunk 00000"):
            write_chunk_shard("00000", context, log=str)
    assert take(series_study)[1] == 1
    assert is_whole(path) and take(series_study)[1] == 0


def write_mask(entry, context):
    path = context.files(entry).mask
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(b"mask"))
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text("{}")
    return {}


def add_nothing(entry, context):
    return {}


def test_what_reads_a_file_that_was_made_again_runs_again(tmp_path, monkeypatch):
    """Motion writes the confounds table, denoising adds to it: it must not keep the bare one."""
    for name, function, makes in (
        ("motion", write_mask, ("mask",)),
        ("normalise", add_nothing, ()),
    ):
        run, names = f"{__name__}:{function.__name__}", lambda options, makes=makes: makes
        monkeypatch.setitem(STEPS, name, replace(STEPS[name], run=run, prepare="", makes=names))
    for number in range(3):
        func = tmp_path / f"bids/sub-{number}/func"
        func.mkdir(parents=True)
        (func / f"sub-{number}_bold.nii.gz").write_bytes(b"x")
    cohort = {"name": "c", "folder": str(tmp_path / "bids")}
    config = parse_config({"results": str(tmp_path / "results"), "cohorts": [cohort]})
    update_index(config.cohorts[0], config.results, 10)
    context = Context(config, config.cohorts[0], TOY)

    def computed(stage: str) -> int:
        said: list[str] = []
        run_stage(stage, "00000", context, log=said.append)
        return len(said) - 1

    assert [computed("motion"), computed("normalise")] == [3, 3]
    assert [computed("motion"), computed("normalise")] == [0, 0]
    next(context.derivatives.glob("sub-1/func/*_mask.nii.gz")).unlink()
    assert [computed("motion"), computed("normalise")] == [1, 1]
    assert [computed("motion"), computed("normalise")] == [0, 0]


# ---- what is derived from the table


def test_every_reference_of_the_table_can_be_loaded():
    for step in STEPS.values():
        for reference in (step.run, step.prepare, step.sentence):
            assert not reference or callable(load(reference))
        assert bool(step.run) == (step.of != "study")


def test_every_step_with_a_verb_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for step in STEPS.values():
        assert step.name == "sweep" or " ".join(step.help.split()) in text
