"""A finished model on recordings that nobody prepared: what comes out, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from fakes import write_parcel_run
from safetensors.torch import load_file

from brainlm.atlas import load_atlas
from brainlm.cli import main
from brainlm.config import load_config, parse_config
from brainlm.errors import BrainLMError
from brainlm.inference import vectors
from brainlm.inference.cohort_predictions import combine_seeds
from brainlm.inference.scans import dataset_root, guess_layout
from brainlm.inference.session import Session
from brainlm.model import PRESETS, BrainLM, BrainLMConfig, from_pretrained, make_windows
from brainlm.model.hub import split_name
from brainlm.paths import Results
from brainlm.progress import read_record
from brainlm.shards import Scaling
from brainlm.steps import describe_series, list_other_settings

SECONDS = 130


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model folder, an atlas, and series of raw means of three participants, one too short."""
    folder = tmp_path_factory.mktemp("inference")
    atlas = load_atlas("demo424", folder / "atlas")
    settings = PRESETS["tiny"] | {"width": 32, "depth": 1, "heads": 2, "ffn": 64}
    torch.manual_seed(0)
    shape = BrainLMConfig(num_parcels=424, window=60, patch=20, has_coordinates=True, **settings)
    model = BrainLM(shape, atlas.coordinates)
    mix = torch.randn(424, 200)
    model.start_parcels(mix @ mix.T)
    scaling = Scaling(
        np.zeros(424), np.full(424, 1.4), "demo424", atlas.image_sha256, 1.0, 9, units="percent"
    )
    model.save_pretrained(folder / "model", scaling, "a card")
    (folder / "study.yaml").write_text(
        f"cohorts: [{{name: a, folder: .}}]\natlas: {{name: demo424, folder: {folder}/atlas}}\n"
    )
    random = np.random.default_rng(0)
    for label, seconds in (("01", SECONDS), ("02", SECONDS + 61), ("03", 50)):
        raw = 900 * (1 + 0.01 * random.standard_normal((seconds, 424)))
        raw[:, 3] = 0
        write_parcel_run(folder / "series", f"sub-{label}_task-rest", raw.astype(np.float32))
    return folder


def embed(home, source, out, *options) -> tuple[int, pd.DataFrame | None]:
    code = main([
        "embed", str(source), "--model", str(home / "model"), "--config", str(home / "study.yaml"),
        "--out", str(out), "--workers", "1", *options,
    ])  # fmt: skip
    return code, pd.read_parquet(out) if out.suffix == ".parquet" and out.exists() else None


def test_a_folder_of_series_becomes_a_row_per_window_and_per_recording(home, tmp_path, capsys):
    code, table = embed(home, home / "series", tmp_path / "e.parquet",
                        "--layout", "parcels", "--units", "scanner")  # fmt: skip
    assert code == 0
    recordings = table[table["level"] == "recording"].set_index("participant_id")
    assert recordings["status"].to_dict() == {
        "sub-01": "ok",
        "sub-02": "ok",
        "sub-03": "too_short",
    }
    assert "50.0 s usable" in recordings["reason"]["sub-03"]
    windows = table[table["level"] == "window"].groupby("participant_id")["start_s"].apply(list)
    assert windows["sub-01"] == [0, SECONDS - 60] and len(windows["sub-02"]) == 3
    assert recordings["coverage"]["sub-01"] == pytest.approx(423 / 424)
    record = read_record(Results(tmp_path / "series_files", "r1").release_record("embed"), 0.0)
    assert (record.done, record.total) == (3, 3) and "embed: 3/3" in capsys.readouterr().out
    # the same as by hand, in Python
    raw = np.load(home / "series/sub-01/func/sub-01_task-rest_atlas-demo424_timeseries.npy")
    model = from_pretrained(home / "model")
    mine = make_windows(model, raw, tr_s=1.0, units="scanner")
    by_hand = model.embed(mine, "components").mean(0)
    np.testing.assert_allclose(recordings["vector"]["sub-01"], by_hand.detach(), atol=2e-3)
    page = (tmp_path / "series_files/report/index.html").read_text()
    assert "too_short" in page and "2 of 3" in page
    for link in re.findall(r'href="(\.\./recordings/[^"]+)"', page):
        assert (tmp_path / "series_files/report" / link).exists(), link


def test_one_series_in_every_format(home, tmp_path):
    file = home / "series/sub-02/func/sub-02_task-rest_atlas-demo424_timeseries.npy"
    _, table = embed(home, file, tmp_path / "e.parquet", "--units", "scanner", "--pool", "cls")
    assert set(table["pool"]) == {"cls"} and list(table["level"]) == ["window"] * 3 + ["recording"]
    assert embed(home, file, tmp_path / "e.tsv", "--units", "scanner", "--format", "tsv",
                 "--pool", "cls")[0] == 0  # fmt: skip
    wide = pd.read_csv(tmp_path / "e.tsv", sep="\t", na_values="n/a")
    np.testing.assert_allclose(wide.filter(regex=r"^d\d+$"), np.stack(table["vector"]), atol=1e-6)
    assert embed(home, file, tmp_path / "e.npy", "--units", "scanner", "--format", "npy",
                 "--pool", "cls")[0] == 0  # fmt: skip
    np.testing.assert_allclose(np.load(tmp_path / "e.npy"), np.stack(table["vector"]), atol=1e-6)
    assert len(pd.read_csv(tmp_path / "e.tsv", sep="\t")) == 4


@pytest.mark.parametrize("together", [1, 4, 1000])
def test_windows_of_several_recordings_go_through_together(home, tmp_path, monkeypatch, together):
    """As on a GPU: the same rows in the same order, the one that is too short in its place."""
    given = ("--layout", "parcels", "--units", "scanner")
    _, alone = embed(home, home / "series", tmp_path / "a.parquet", *given)
    monkeypatch.setattr(vectors, "_windows_together", lambda model: together)
    _, table = embed(home, home / "series", tmp_path / "b.parquet", *given)
    rest = [name for name in table if name != "vector"]
    pd.testing.assert_frame_equal(table[rest], alone[rest])
    for ours, theirs in zip(table["vector"], alone["vector"], strict=True):
        assert type(ours) is type(theirs)
        if isinstance(ours, np.ndarray):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_short_clip_is_padded_where_asked(home, tmp_path):
    file = home / "series/sub-03/func/sub-03_task-rest_atlas-demo424_timeseries.npy"
    assert embed(home, file, tmp_path / "a.parquet", "--units", "scanner") == (1, None)
    code, table = embed(home, file, tmp_path / "b.parquet", "--units", "scanner", "--short", "pad")
    assert code == 0 and list(table["level"]) == ["window", "recording"]
    assert "are missing" not in table["warnings"][0]  # 10 of 60 s
    assert embed(home, file, tmp_path / "c.parquet", "--units", "scanner") == (1, None)


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("nothing.npy", [], "no such file or folder; cohorts of the configuration: a"),
        ("a", [], "a: not preprocessed yet"),
        ("model", [], "no recording found in any of the layouts bids"),
        ("study.yaml", [], "expected an image"),
        ("series", ["--layout", "parcels"], "raw means .median 900.*units: scanner"),
        ("series", ["--layout", "parcels", "--pool", "median"], "no pooling 'median'"),
        ("series", ["--layout", "parcels", "--scaling", "no.json"], "no.json: not found"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(
    home, tmp_path, capsys, monkeypatch, source, options, words
):
    monkeypatch.chdir(home)
    code, table = embed(home, source, tmp_path / "e.parquet", *options)
    error = capsys.readouterr().err
    assert code == 1 and table is None and error.count("\n") == 1
    assert pd.Series(error).str.contains(words).all(), error
    assert not (tmp_path / "e.parquet").exists()


@pytest.mark.parametrize(
    ("verb", "options", "words"),
    [
        ("predict", [], "this model has no head"),
        ("embed", ["--pool", "median"], "no pooling 'median'"),
    ],
)
def test_a_model_that_cannot_be_used_so_is_refused_before_any_work(
    home, tmp_path, capsys, verb, options, words
):
    code = main([
        verb, str(home / "series"), "--model", str(home / "model"), "--layout", "parcels",
        "--config", str(home / "study.yaml"), "--out", str(tmp_path / "x.parquet"), *options,
    ])  # fmt: skip
    assert code == 1 and words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_an_output_that_exists_is_kept(home, tmp_path, capsys):
    (tmp_path / "e.parquet").write_text("mine")
    assert main(["embed", str(home / "series"), "--model", str(home / "model"), "--out",
                 str(tmp_path / "e.parquet")]) == 1  # fmt: skip
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "e.parquet").read_text() == "mine"


def test_a_model_of_another_atlas_is_refused(home, tmp_path, capsys):
    model = from_pretrained(home / "model")
    other = Scaling(np.zeros(424), np.ones(424), "demo424", "f" * 64, 1.0, 9)
    model.save_pretrained(tmp_path / "other", other, "a card")
    file = home / "series/sub-01/func/sub-01_task-rest_atlas-demo424_timeseries.npy"
    assert main(["embed", str(file), "--model", str(tmp_path / "other"), "--config",
                 str(home / "study.yaml"), "--out", str(tmp_path / "e.parquet")]) == 1  # fmt: skip
    assert "made with another demo424 atlas" in capsys.readouterr().err


def test_layouts_are_told_by_names_and_descriptions(tmp_path):
    def layout(name, text=None):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text or "")
        return guess_layout(tmp_path / name if text is None else (tmp_path / name).parent)

    assert layout("sub-1_bold.nii.gz") == layout("sub-1_space-T1w_bold.nii") == "bids"
    assert layout("sub-1_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz") == "fmriprep"
    assert layout("x.dat") == layout("x.tsv") == "parcels"
    assert layout("sub-1_space-fsLR_seg-Glasser_timeseries.ptseries.nii") == "parcels"
    described = '{"DatasetType": "derivative", "GeneratedBy": [{"Name": "%s"}]}'
    assert layout("f/dataset_description.json", described % "fMRIPrep") == "fmriprep"
    assert layout("x/dataset_description.json", described % "XCP-D") == "xcpd"
    assert layout("r/dataset_description.json", '{"DatasetType": "raw"}') == "bids"
    with pytest.raises(BrainLMError, match=r"made by tedana; .*--layout"):
        layout("t/dataset_description.json", described % "tedana")
    for name in ("sub-1_T1w.nii.gz", "sub-1_dir-AP_dwi.nii", "sub-1_asl.nii.gz"):
        with pytest.raises(BrainLMError, match="expected a BOLD image, its name ends in _"):
            layout(name)
    for name in ("x.mat", "sub-1_space-fsLR_den-91k_bold.dtseries.nii"):
        with pytest.raises(
            BrainLMError, match=r"expected an image .* parcel series .*ptseries.nii"
        ):
            layout(name)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["sub-1/func/sub-1_task-rest_bold.nii.gz", "participants.tsv"], "bids"),
        (
            ["sub-1/func/sub-1_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"],
            "fmriprep",
        ),
        (["100307/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR.nii.gz"], "hcp"),
        (["1000223_20227_2_0/fMRI/rfMRI.ica/filtered_func_data_clean.nii.gz"], "ukb"),
        (["a.npy", "b.npy"], "parcels"),
        (
            [
                "100307/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR.nii.gz",
                "100307/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas.dtseries.nii",
            ],
            "layouts cifti, hcp; name one with --layout",
        ),
        (["notes.txt"], "no recording found in any of the layouts bids"),
    ],
)
def test_a_folder_without_a_description_is_told_by_its_recordings(tmp_path, names, found):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    if " " not in found:
        assert guess_layout(tmp_path) == found
        return
    with pytest.raises(BrainLMError, match=found):
        guess_layout(tmp_path)


def test_where_a_dataset_and_a_model_begin(tmp_path):
    inside = tmp_path / "ds/sub-1/ses-2/func/sub-1_ses-2_bold.nii.gz"
    assert dataset_root(inside) == tmp_path / "ds"
    assert dataset_root(tmp_path / "scan.nii.gz") == tmp_path
    assert split_name("vandijklab/brainlm/old_13M") == ("vandijklab/brainlm", "old_13M")
    assert split_name("vandijklab/brainlm") == ("vandijklab/brainlm", None)
    assert split_name("results/models/r1/pretrain")[1] == "r1/pretrain"
    (tmp_path / "a/b/c").mkdir(parents=True)
    assert split_name(str(tmp_path / "a/b/c")) == (str(tmp_path / "a/b/c"), None)


def test_a_classifier_answers_by_name_and_flags_what_is_unlike_its_training(
    home, tmp_path, capsys
):
    atlas = load_atlas("demo424", home / "atlas")
    settings = PRESETS["tiny"] | {"width": 32, "depth": 1, "heads": 2, "ffn": 64}
    shape = BrainLMConfig(
        num_parcels=424, window=60, patch=20, has_coordinates=True, head_outputs=3, pool="mean",
        classes=("a", "b", "c"), target="group", ranges={"coverage": (0.2, 0.2, 0.3, 0.4, 0.5)},
        **settings,
    )  # fmt: skip
    scaling = from_pretrained(home / "model").scaling
    BrainLM(shape, atlas.coordinates).save_pretrained(tmp_path / "tuned", scaling, "a card")
    embed(home, home / "series", tmp_path / "e.parquet", "--layout", "parcels",
          "--units", "scanner")  # fmt: skip
    capsys.readouterr()
    code = main([
        "predict", str(home / "series"), "--model", str(tmp_path / "tuned"), "--layout", "parcels",
        "--config", str(home / "study.yaml"), "--units", "scanner", "--workers", "1",
        "--out", str(tmp_path / "p.parquet"),
    ])  # fmt: skip
    table = pd.read_parquet(tmp_path / "p.parquet")
    recordings = table[table["level"] == "recording"]
    assert code == 0 and recordings["status"].to_list() == ["ok", "ok", "too_short"]
    shares = recordings[["probability_a", "probability_b", "probability_c"]].iloc[:2]
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert (shares.idxmax(axis=1).str[-1] == recordings["predicted_class"][:2]).all()
    assert recordings["warnings"].iloc[0].startswith("share of parcels with data 0.998 is outside")
    page = (tmp_path / "series_files/report/index.html").read_text()
    assert "probability_b" in page and "is outside" in page
    to_do = re.findall(r"series scans.* (\d+) to do", capsys.readouterr().out)
    assert to_do == ["0", "0", "0"]  # preprocessed once for both


def test_seeds_are_combined(home):
    def one(values, **more):
        rows = [{"level": "window"}, *({"level": "recording", **v, **more} for v in values)]
        return pd.DataFrame(rows)

    numbers = combine_seeds([one([{"prediction": 3.0}]), one([{"prediction": 5.0}])])
    assert numbers[["prediction", "seeds", "seed_sd"]].to_numpy().tolist() == [[4, 2, 1]]
    first = one([{"predicted_class": "x", "probability_x": 0.6, "probability_y": 0.4}])
    other = one([{"predicted_class": "y", "probability_x": 0.1, "probability_y": 0.9}])
    classes = combine_seeds([first, other])
    assert classes["predicted_class"].to_list() == ["y"]
    assert classes["probability_y"].to_list() == pytest.approx([0.65])
    gone = one([{"status": "too_short", "predicted_class": None, "probability_x": np.nan}])
    assert combine_seeds([gone, gone])["predicted_class"].isna().all()


def test_series_whose_units_nobody_stated_get_a_warning(home, tmp_path):
    file = home / "series/sub-01/func/sub-01_task-rest_atlas-demo424_timeseries.npy"
    code, table = embed(home, file, tmp_path / "e.parquet", "--units", "as delivered")
    assert code == 0 and set(table["status"]) == {"ok"}
    assert table["warnings"].str.contains("units 'as delivered', the model was").all()


def test_series_are_made_as_the_models_were_and_what_differs_is_said(home, tmp_path, capsys):
    made = {
        "enters": ["raw images"], "sample_period_s": 1.0, "high_pass_hz": 0.02, "engine": "fsl",
        "denoise": ["ica", "global"], "low_pass_hz": None, "of_a_later_version": 1,
    }  # fmt: skip
    model = from_pretrained(home / "model")
    model.config = dataclasses.replace(model.config, preprocess=made)
    model.save_pretrained(tmp_path / "model")
    model = from_pretrained(tmp_path / "model")
    assert model.config.preprocess == made
    series = home / "series/sub-01/func/sub-01_task-rest_atlas-demo424_timeseries.npy"

    def options(study):
        study = study and load_config(study)
        return Session(str(series), "m", study)._configure(model, tmp_path / "x").preprocess

    assert options(None).high_pass_hz == 0.02 and options(None).denoise == ("ica", "global")
    assert options(None).engine == "builtin"  # FSL need not be here
    other = tmp_path / "study.yaml"
    other.write_text((home / "study.yaml").read_text() + "preprocess: {high_pass_hz: 0.01}\n")
    assert options(other).high_pass_hz == 0.01 and options(other).denoise == ("ica", "global")

    def warnings(study, out):
        assert main([
            "embed", str(series), "--model", str(tmp_path / "model"), "--config", str(study),
            "--units", "scanner", "--workers", "1", "--out", str(tmp_path / out),
        ]) == 0  # fmt: skip
        (found,) = pd.read_parquet(tmp_path / out)["warnings"].unique()
        return found.split("; ")

    came = "made from parcel series, the model's training data from raw images"
    assert warnings(home / "study.yaml", "a.parquet") == [came]
    differs = "preprocess.high_pass_hz is 0.01, of the model's training data 0.02"
    assert warnings(other, "b.parquet") == [came, differs]
    assert f"note: {differs}" in capsys.readouterr().out


def test_settings_that_decide_a_series_are_those_of_its_steps():
    values = {"cohorts": [{"name": "a", "folder": "."}], "preprocess": {"denoise": ["ica"]}}
    config = parse_config(values)
    raw = describe_series(config, config.cohorts)
    assert raw["enters"] == ["raw images"] and raw["denoise"] == ["ica"]
    assert {"sample_period_s", "high_pass_hz", "slice_timing", "use_t1w", "min_coverage"} <= set(
        raw
    )
    assert not {"outputs", "min_duration_s", "time_limit_min"} & set(raw)
    both = [cohort.model_copy(update={"layout": "parcels"}) for cohort in config.cohorts]
    series = describe_series(config, both)
    assert series["enters"] == ["parcel series"] and "denoise" not in series
    assert list_other_settings(raw, raw) == list_other_settings({}, raw) == []
    assert (raw["censor"], raw["distortion"]) == (None, "auto")  # what triggers leave out
    older = {key: value for key, value in raw.items() if key not in ("censor", "distortion")}
    assert list_other_settings(older, raw) == []
    assert json.loads(json.dumps(raw)) == raw


@pytest.mark.parametrize("layout", ["bids", "fmriprep", "cifti", "parcels", "xcpd"])
@pytest.mark.parametrize("older", [False, True])
def test_censoring_that_the_model_has_not_met_is_said_and_the_other_way_round(layout, older):
    def describe(**censor):
        values = {"cohorts": [{"name": "a", "folder": ".", "layout": layout}],
                  "preprocess": censor}  # fmt: skip
        config = parse_config(values)
        return describe_series(config, config.cohorts)

    whole, strict = describe(), describe(censor={"fd_mm": 0.37})
    if older:  # than the key, or than models that state it
        del whole["censor"]
    end = "of the model's training data"
    assert list_other_settings(whole, strict) == [
        f"preprocess.censor is {{fd_mm: 0.37}}, {end} none"
    ]
    assert list_other_settings(strict, describe()) == [
        f"preprocess.censor is none, {end} {{fd_mm: 0.37}}"
    ]


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_published_weights_take_a_scaling_of_the_users(home, shared, tmp_path, capsys, file):
    """The layout on the hub, with the reference's own (small) weights and 424 parcels."""
    theirs, folder = shared / "fixtures" / "parcel", tmp_path / "theirs"
    folder.mkdir()
    config = json.loads((theirs / "config.json").read_text()) | {"num_brain_voxels": 424}
    (folder / "config.json").write_text(json.dumps(config))
    if file == "pytorch_model.bin":
        torch.save(load_file(theirs / "model.safetensors"), folder / file)
    else:
        shutil.copy(theirs / file, folder)
    series = home / "series/sub-02/func/sub-02_task-rest_atlas-demo424_timeseries.npy"
    given = ["embed", str(series), "--model", str(folder), "--units", "scanner", "--workers", "1"]
    given += ["--config", str(home / "study.yaml"), "--pool", "mean"]
    out = tmp_path / "e.parquet"
    assert main([*given, "--out", str(out)]) == 1 and not out.exists()
    assert "published weights carry neither" in capsys.readouterr().err
    scaling = from_pretrained(home / "model").scaling
    scaling.save(tmp_path / "scaling.json")
    scaled = ["--scaling", str(tmp_path / "scaling.json")]
    assert main([*given, *scaled, "--out", str(out)]) == 0
    places = load_atlas("demo424", home / "atlas").coordinates
    model = from_pretrained(folder, coordinates=places, scaling=scaling)
    windows = make_windows(model, np.load(series), tr_s=1.0, units="scanner")
    found = pd.read_parquet(out)
    by_hand = model.embed(windows, "mean").numpy()
    at = found["level"] == "window"
    np.testing.assert_allclose(np.stack(found.loc[at, "vector"]), by_hand, atol=2e-3)
