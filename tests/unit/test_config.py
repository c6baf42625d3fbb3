import json
from pathlib import Path

import pytest

from brainlm.config import Config, Preprocess, load_config, parse_config
from brainlm.errors import BrainLMError

ROOT = Path(__file__).resolve().parents[2]
COHORT = {"name": "a", "folder": "data/a"}


def test_committed_configuration_is_valid_and_states_the_defaults():
    config = load_config(ROOT / "config.yaml")
    plain = Config(cohorts=config.cohorts).model_dump()
    assert config.model_dump() == plain  # what the file says of a default is true


def test_every_section_of_the_file_is_commented():
    lines = (ROOT / "config.yaml").read_text().splitlines()
    keys = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    bare = [line for line in keys if "#" not in line and not line.rstrip().endswith(":")]
    assert not bare


def test_schema_is_current():
    committed = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text())
    assert committed == Config.model_json_schema(), (
        "brainlm config --schema > workflow/schemas/config.schema.json"
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"results": "a{b}"}, "braces are wildcards"),
        ({"cohorts": [COHORT], "preproces": {}}, ["preproces", "did you mean 'preprocess'"]),
        ({"cohorts": [{**COHORT, "foldr": 1}]}, ["cohorts.0.foldr", "did you mean 'folder'"]),
        ({"cohorts": [COHORT], "pretrain": {"epoch": 3}}, ["did you mean 'epochs'"]),
        ({"cohorts": [COHORT], "pretrain": {"epochs": 0}}, ["pretrain.epochs", "found 0"]),
        ({"cohorts": []}, ["cohorts", "at least 1"]),
        ({"cohorts": [COHORT], "results": "a{b}"}, ["results", "braces are wildcards"]),
        ({"cohorts": [COHORT, COHORT]}, ["used twice", "a"]),
        ({"cohorts": [{**COHORT, "name": "../x"}]}, ["letters, digits"]),
        ({"cohorts": [COHORT], "model": {"window": 190}}, ["multiple of model.patch"]),
        ({"cohorts": [{**COHORT, "layout": "bid"}]}, ["layout", "'bids', 'fmriprep'"]),
    ],
)
def test_bad_values_are_named(values, words):
    with pytest.raises(BrainLMError) as error:
        parse_config(values)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_later_files_override_key_by_key(tmp_path):
    (tmp_path / "a.yaml").write_text("cohorts: [{name: a, folder: x}]\npretrain: {epochs: 3}\n")
    (tmp_path / "b.yaml").write_text("pretrain: {seed: 7}\n")
    config = load_config(tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert (config.pretrain.epochs, config.pretrain.seed) == (3, 7)


def test_files_that_are_not_configurations(tmp_path):
    with pytest.raises(BrainLMError, match="not found"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(BrainLMError, match="not valid YAML"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("- 1\n")
    with pytest.raises(BrainLMError, match="expected keys and values"):
        load_config(tmp_path / "b.yaml")


def test_denoising_is_one_step_or_a_list():
    steps = {"ica": ("ica",), "none": (), "motion24": ("motion24",)}
    for value, expected in steps.items():
        assert Preprocess(denoise=value).denoise_steps == expected
    both = Preprocess.model_validate({"denoise": ["ica", "wm-csf"]})
    assert both.denoise_steps == ("ica", "wm-csf") and both.uses_ica
    for bad in ("icaa", ["none", "ica"], ["ica", "ica-aggressive"]):
        with pytest.raises(BrainLMError, match=r"preprocess.*denoise"):
            parse_config(
                {"cohorts": [{"name": "a", "folder": "b"}], "preprocess": {"denoise": bad}}
            )


def test_an_unknown_preset_is_refused_at_once():
    with pytest.raises(BrainLMError, match=r"model\.preset: .*'tiny', '13m'.*found 'tinny'"):
        parse_config({"cohorts": [{"name": "a", "folder": "x"}], "model": {"preset": "tinny"}})


def test_images_may_have_patches_that_do_not_divide_the_window():
    cohorts = [{"name": "a", "folder": "x"}]
    model = {"preset": "111m", "window": 200, "patch": 16}  # 27 x 13 tokens of 424 x 200
    assert parse_config({"cohorts": cohorts, "model": model}).model.patch == 16
    with pytest.raises(BrainLMError, match="must be a multiple"):
        parse_config({"cohorts": cohorts, "model": model | {"preset": "13m"}})
