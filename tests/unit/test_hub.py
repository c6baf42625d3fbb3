"""Models in and out of folders and the hub's local cache."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from synthetic import small_model

from brainlm.errors import BrainLMError
from brainlm.model import (
    BrainLM,
    BrainLMConfig,
    from_pretrained,
    make_windows,
    preset,
    push_to_hub,
)
from brainlm.model.card import wrap_card
from brainlm.model.hub import read_card, read_weights
from brainlm.model.ranges import describe_range, list_outside
from brainlm.shards import Scaling

POINTS = np.random.default_rng(0).uniform(-60, 60, (6, 3))
SCALING = Scaling(np.zeros(6), np.ones(6), "toy", "a" * 64, 1.0, 3)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = preset("tiny", num_parcels=6, window=20, patch=10, coordinates=POINTS)
    model.save_pretrained(tmp_path / "model", SCALING, "# a card\n")
    return tmp_path / "model", model


@pytest.mark.parametrize(("family", "points"), [("parcel", POINTS), ("parcel", None),
                                                ("image", POINTS)])  # fmt: skip
def test_round_trip(tmp_path, family, points):
    model = small_model(family, num_parcels=6, window=20, patch=10, coordinates=points).eval()
    model.save_pretrained(tmp_path, SCALING, "# a card\n")
    again = BrainLM.from_pretrained(tmp_path)
    signal = torch.randn(2, 6, 20)
    assert torch.equal(model.embed(signal), again.embed(signal))
    assert again.config == model.config
    assert again.scaling.atlas == "toy"
    assert not again.training
    assert (tmp_path / "README.md").read_text() == "# a card\n"


def test_a_folder_of_before_there_was_a_gain_computes_as_it_did(saved):
    folder, model = saved
    facts = json.loads((folder / "config.json").read_text())
    del facts["gain"]
    (folder / "config.json").write_text(json.dumps(facts))
    again, signal = BrainLM.from_pretrained(folder), torch.randn(2, 6, 20)
    assert not again.config.gain
    plain = BrainLM(dataclasses.replace(model.config, gain=False), POINTS).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(again.embed(signal), plain.embed(signal))
    assert not torch.allclose(again.embed(2 * signal), again.embed(signal))


def test_hub_cache_without_network(saved, tmp_path, monkeypatch):
    folder, model = saved
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "cache" / "models--lab--brain" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot / "small")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    again = from_pretrained("lab/brain", "small", cache_dir=tmp_path / "cache")
    signal = torch.randn(2, 6, 20)
    assert torch.equal(model.embed(signal), again.embed(signal))
    (snapshot / "README.md").write_text("# Theirs")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert read_card("lab/brain/small") == "# a card\n"
    (snapshot / "small/README.md").unlink()
    assert read_card("lab/brain/small") == "# Theirs"
    with pytest.raises(BrainLMError, match="subfolder= one of: small"):
        from_pretrained("lab/brain", cache_dir=tmp_path / "cache")
    with pytest.raises(BrainLMError, match="no folder here, and from the hub"):
        from_pretrained("lab/other", cache_dir=tmp_path / "cache")


def test_a_card_that_came_with_a_model_stays_whole_in_ours(saved):
    _, model = saved
    theirs = "---\nlicense: cc-by-nc-4.0\n---\n\n# Theirs\n\nFigures."
    card = wrap_card(model, theirs, "lab/brain")
    assert card.startswith(theirs) and "`lab/brain`; scaled by release" in card
    assert "## Limits" in card and "from_pretrained" in card
    again = wrap_card(model, card.replace("license:", "library_name: brainlm\nlicense:"), "x")
    assert again.count("## Limits") == 1 and "Taken as it is from `x`" in again
    assert "No card came with it." in wrap_card(model, "", "lab/brain")


def test_nothing_there(tmp_path):
    with pytest.raises(BrainLMError, match="no such model folder"):
        from_pretrained(tmp_path / "absent")
    with pytest.raises(BrainLMError, match=r"no config\.json"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(("change", "word"), [
    ({"format": 99}, "format 99"), ({"wide": 3}, "unknown keys"), ({"width": 128}, "expected"),
    ({"depth": 3}, "missing"), ({"depth": 1}, "not expected"),
])  # fmt: skip
def test_configuration_that_does_not_fit(saved, change, word):
    folder, _ = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(BrainLMError, match=word):
        from_pretrained(folder)


def test_weights_of_the_other_family(saved, tmp_path):
    folder, _ = saved
    small = {"width": 16, "depth": 1, "heads": 2, "ffn": 16, "decoder_width": 16,
             "decoder_depth": 1, "decoder_heads": 2, "decoder_ffn": 16}  # fmt: skip
    image = BrainLM(BrainLMConfig("image", 6, 20, 10, **small))
    image.save_pretrained(tmp_path / "image", SCALING, "")
    shutil.copy(tmp_path / "image" / "model.safetensors", folder)
    with pytest.raises(BrainLMError, match=r"the weights do not fit .* missing positions\.parcel"):
        from_pretrained(folder)


def test_truncated_or_absent_weights(saved):
    folder, _ = saved
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BrainLMError, match="cannot be read"):
        from_pretrained(folder)
    weights.unlink()
    with pytest.raises(BrainLMError, match="found neither"):
        from_pretrained(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_only_their_owner_may_read_are_said_to_be_so(name):
    """As another user: root, who runs the tests in containers, reads everything."""
    with tempfile.TemporaryDirectory() as place:  # whose parents everybody may enter
        folder = Path(place)
        folder.chmod(0o755)
        (folder / name).write_bytes(b"x")
        (folder / name).chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(BrainLMError, match="Permission denied: ask its owner"):
                read_weights(folder)
        finally:
            os.seteuid(user)


def test_objects_are_never_unpickled(saved):
    folder, _ = saved
    (folder / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self):
            return (print, ("never",))

    torch.save({"x": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(BrainLMError, match="refused"):
        from_pretrained(folder)


def test_scaling_of_other_parcels_is_refused(saved, tmp_path):
    other = Scaling(np.zeros(7), np.ones(7), "toy", "a" * 64, 1.0, 3)
    with pytest.raises(BrainLMError, match="6 parcels, the scaling 7"):
        saved[1].save_pretrained(tmp_path / "x", other, "")
    assert not (tmp_path / "x").exists()


def test_push_uploads_the_model_files_only(saved, monkeypatch):
    calls = {}

    class Api:
        def __init__(self, token):
            pass

        def create_repo(self, repository, **options):
            calls["repo"] = repository, options

        def upload_folder(self, **options):
            calls.update(options)
            calls["files"] = sorted(p.name for p in Path(options["folder_path"]).iterdir())
            return "https://example.org/lab/brain"

        def upload_file(self, **options):
            calls[options["path_in_repo"]] = options["path_or_fileobj"].decode()

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push_to_hub(saved[0], "lab/brain") == "https://example.org/lab/brain"
    assert calls["repo"][1]["private"] is True
    assert "scaling.json" in calls["allow_patterns"]
    assert calls["README.md"] == "# a card\n"
    model = from_pretrained(saved[0])
    model.push_to_hub("lab/other", private=False, license="cc-by-4.0")
    assert calls["repo"] == ("lab/other", {"private": False, "exist_ok": True})
    assert calls["files"] == ["README.md", "config.json", "model.safetensors",
                              "modeling_brainlm.py", "scaling.json"]  # fmt: skip
    header = yaml.safe_load(calls["README.md"].split("---")[1])
    assert header["license"] == "cc-by-4.0" and "license_name" not in header
    model.scaling = None
    with pytest.raises(BrainLMError, match=r"lacks scaling\.json"):
        model.push_to_hub("lab/other")
    (saved[0] / "scaling.json").unlink()
    with pytest.raises(BrainLMError, match=r"lacks scaling\.json"):
        push_to_hub(saved[0], "lab/brain")


def test_a_model_is_saved_with_all_that_it_has(saved, tmp_path, monkeypatch):
    model = from_pretrained(saved[0])
    before = os.umask(0o027)
    try:
        model.save_pretrained(tmp_path / "again")
    finally:
        os.umask(before)
    again = from_pretrained(tmp_path / "again")
    assert again.scaling.atlas == "toy" and torch.equal(again.coordinates, model.coordinates)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "again").iterdir()}
    assert modes == {0o640}
    card = (tmp_path / "again" / "README.md").read_text()
    assert "from_pretrained" in card and "## Limits" in card and "atlas `toy`" in card
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "brainlm" and "fmri" in header["tags"]
    model.scaling = None
    model.save_pretrained(tmp_path / "again")  # the scaling there was of another model
    assert from_pretrained(tmp_path / "again").scaling is None


#: opens folder argv[1] with transformers in a process that has never seen this package
FRESH = """
import json, sys, torch
from transformers import AutoModel, AutoModelForPreTraining
assert not any(name.startswith("brainlm") for name in sys.modules)
folder, cases = sys.argv[1], json.loads(sys.argv[2])
signal = torch.load(sys.argv[3])
for kind, options in cases:
    kind = {"AutoModel": AutoModel, "ForPreTraining": AutoModelForPreTraining}[kind]
    try:
        model = kind.from_pretrained(folder, trust_remote_code=True, **options)
        weight = next(model.parameters())
        print(type(model).__name__, str(weight.dtype), str(weight.device),
              model.encoder[0].attention.backend, float(model.embed(signal).float().sum()))
    except Exception as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))
"""


def open_afresh(folder: Path, tmp_path: Path, cases, signal, **environment) -> list[str]:
    torch.save(signal, tmp_path / "signal.pt")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder), json.dumps(cases), str(tmp_path / "signal.pt")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), **environment},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_transformers_opens_a_folder_in_a_fresh_process(saved, tmp_path):
    pytest.importorskip("transformers")
    signal = torch.randn(2, 6, 20)
    cases = [
        ("AutoModel", {}), ("ForPreTraining", {}), ("AutoModel", {"dtype": "bfloat16"}),
        ("AutoModel", {"device_map": "cpu", "attn_implementation": "eager"}),
        ("AutoModel", {"mask_ratio": 0.5}), ("AutoModel", {"num_parcels": 7}),
        ("AutoModel", {"output_loading_info": True}), ("AutoModel", {"typo": 3}),
        ("AutoModel", {"device_map": {"encoder": "cpu", "decoder": "disk"}}),
        ("AutoModel", {"dtype": "int8"}), ("AutoModel", {"attn_implementation": "fastest"}),
    ]  # fmt: skip
    lines = open_afresh(saved[0], tmp_path, cases, signal)
    total = float(saved[1].embed(signal).sum())
    for line, wanted in zip(lines[:4], ("torch.float32 cpu auto", "torch.float32 cpu auto",
                                        "torch.bfloat16 cpu auto", "torch.float32 cpu math"),
                            strict=True):  # fmt: skip
        assert line.startswith(f"BrainLM {wanted}")
        assert float(line.split()[-1]) == pytest.approx(
            total, abs=0.5 if "bfloat" in line else 1e-4
        )
    words = ("mask_ratio cannot be", "num_parcels cannot be", "output_loading_info",
             "typo", "on one device", "int8", "fastest")  # fmt: skip
    for line, word in zip(lines[4:], words, strict=True):
        assert word in line and "BrainLM torch" not in line


def test_pretraining_again_needs_a_decoder(tmp_path):
    pytest.importorskip("transformers")
    shape = BrainLMConfig("parcel", 6, 20, 10, 16, 1, 2, 16, 16, 0, 2, 16, head_outputs=1)
    BrainLM(shape).save_pretrained(tmp_path / "tuned", SCALING)
    cases = [("AutoModel", {}), ("ForPreTraining", {})]
    first, second = open_afresh(tmp_path / "tuned", tmp_path, cases, torch.randn(1, 6, 20))
    assert first.startswith("BrainLM torch.float32") and "no decoder" in second


def test_without_the_package_the_code_file_says_how_to_install_it(saved, tmp_path):
    folder, _ = saved
    names = {"brainlm": None}  # as if it were not installed
    text = (folder / "modeling_brainlm.py").read_text()
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules.update({names}); exec({text!r})"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "pip install 'brainlm-pipeline[hf]'" in done.stderr


def test_the_code_file_is_the_same_in_every_folder_and_imports_only_the_package(saved, tmp_path):
    small_model("image", num_parcels=6, window=20, patch=10).save_pretrained(tmp_path / "other")
    one, other = ((f / "modeling_brainlm.py").read_text() for f in (saved[0], tmp_path / "other"))
    assert one == other
    names = [n.module for n in ast.walk(ast.parse(one)) if isinstance(n, ast.ImportFrom)]
    assert names == ["brainlm.model.automodel"]
    assert not any(isinstance(n, ast.Import) for n in ast.walk(ast.parse(one)))


def test_registered_once_no_code_is_run(saved):
    transformers = pytest.importorskip("transformers")
    from brainlm.model.automodel import register

    register()
    signal = torch.randn(2, 6, 20)
    for kind in (transformers.AutoModel, transformers.AutoModelForPreTraining):
        assert torch.equal(kind.from_pretrained(saved[0]).embed(signal), saved[1].embed(signal))


@pytest.mark.parametrize("classes", [(), ("no", "yes"), ("high", "low", "middle")])
def test_predictions_have_names(tmp_path, classes):
    torch.manual_seed(1)
    model = BrainLM(BrainLMConfig(
        "parcel", 6, 20, 10, 16, 1, 2, 16, 16, 0, 2, 16, pool="mean", target="score",
        head_outputs=len(classes) if len(classes) > 2 else 1, classes=classes, label_mean=2.0,
        label_std=0.5, label_log=not classes, ranges={"label": (1.0, 2.0, 3.0, 4.0, 5.0)},
    ))  # fmt: skip
    model.save_pretrained(tmp_path, SCALING)
    again, signal = from_pretrained(tmp_path), torch.randn(4, 6, 20)
    assert again.config == model.config
    found, raw = again.predict(signal), model.eval().head(model.embed(signal, "mean")).double()
    assert found.names == (classes or ("score",))
    if not classes:
        torch.testing.assert_close(found.values, torch.expm1(raw * 0.5 + 2))
        return
    torch.testing.assert_close(found.values.sum(1), torch.ones(4).double())
    odds = torch.log(found.values[:, 1:] / found.values[:, :1])
    torch.testing.assert_close(odds, raw if len(classes) == 2 else raw[:, 1:] - raw[:, :1])
    assert found.best == [classes[k] for k in found.values.argmax(1)]


def test_a_classifier_of_before_classes_were_in_its_configuration(tmp_path):
    shape = BrainLMConfig("parcel", 6, 20, 10, 16, 1, 2, 16, 16, 0, 2, 16, head_outputs=1)
    BrainLM(shape).save_pretrained(tmp_path, SCALING)
    config = json.loads((tmp_path / "config.json").read_text())
    old = {k: v for k, v in config.items() if k not in ("classes", "ranges", "target")}
    (tmp_path / "config.json").write_text(json.dumps(old))
    run = {"classes": [0.0, 2.0], "class_names": ["no", "odd", "yes"]}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert from_pretrained(tmp_path).predict(torch.randn(1, 6, 20)).names == ("no", "yes")


def test_what_is_outside_of_the_training_data():
    ranges = {"label": (18.0, 20.0, 40.0, 60.0, 65.0), "repetition_time_s": (0.8, 0.8, 2, 2, 2.2)}
    assert describe_range([3, np.nan, 1, 2]) == (1.0, 1.1, 2.0, 2.9, 3.0)
    assert describe_range([np.nan]) is None
    inside = {"label": 18.0, "repetition_time_s": 2.2, "mean_fd_mm": 9.0, "coverage": np.nan}
    assert list_outside(ranges, inside) == []
    first, second = list_outside(ranges, {"label": 80.0, "repetition_time_s": 3.0})
    assert first == "prediction 80 is outside the training data's 18 to 65"
    assert second == "repetition time 3 s is outside the training data's 0.8 to 2.2 s"


@pytest.mark.parametrize(("error", "word"), [
    ("RepositoryNotFoundError", "no such repository, or it is private"),
    ("GatedRepoError", "ask for access"), ("RevisionNotFoundError", "no revision v9"),
    ("LocalEntryNotFoundError", "hf download lab/brain"),
])  # fmt: skip
def test_what_the_hub_answers_is_said_in_words(monkeypatch, error, word):
    from huggingface_hub import errors

    def refuse(*_, **__):
        kind = getattr(errors, error)
        raise kind.__new__(kind, "an answer of the hub")  # without the request that it was

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(BrainLMError, match=word):
        from_pretrained("lab/brain", revision="v9")
    with pytest.raises(BrainLMError, match="unknown options revison"):
        from_pretrained("lab/brain", revison="v9")


def test_a_download_that_is_not_complete(saved):
    folder, _ = saved
    weights = folder / "model.safetensors"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    weights.write_bytes(pointer)
    with pytest.raises(BrainLMError, match="git lfs pull"):
        from_pretrained(folder)
    weights.rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(BrainLMError, match=r"weights in parts, model\.safetensors\.index\.json"):
        from_pretrained(folder)


def test_a_scaling_that_is_not_the_models(saved, tmp_path):
    with pytest.raises(BrainLMError, match="carries the scaling that it was trained with"):
        from_pretrained(saved[0], scaling=SCALING)
    (saved[0] / "scaling.json").unlink()
    other = Scaling(np.zeros(7), np.ones(7), "toy", "a" * 64, 1.0, 3)
    with pytest.raises(BrainLMError, match="the scaling 7: it belongs to another atlas"):
        from_pretrained(saved[0], scaling=other)
    assert from_pretrained(saved[0], scaling=SCALING).scaling is SCALING


@pytest.mark.parametrize("shape", [(1, 6, 10), (1, 5, 20), (6, 20)])
def test_windows_of_another_shape(saved, shape):
    with pytest.raises(BrainLMError, match=r"\[B, 6 parcels, 20 time points\]"):
        saved[1].embed(torch.randn(shape))


def test_your_own_series_become_windows(saved):
    folder, _ = saved
    model = from_pretrained(folder)
    model.scaling = Scaling(np.full(6, 2.0), np.full(6, 4.0), "toy", "a" * 64, 1.0, 3)
    series = (np.arange(30)[:, None] - 14.5) * (
        1 + np.arange(6) / 10
    )  # [T, R] percent, a row every 2 s
    series[:, 4] = np.nan
    series[:, 5] = 3.0  # constant: a dead parcel, as the pipeline takes it
    windows = make_windows(model, series, tr_s=2.0)
    assert windows.shape == (2, 6, 20) and windows.dtype == torch.float32
    seconds = np.arange(59) / 2 - 14.5  # resampled to 1 s
    np.testing.assert_allclose(windows[0, 0], (seconds[:20] - 2) / 4, atol=1e-5)
    np.testing.assert_allclose(windows[1, 1], (1.1 * seconds[39:] - 2) / 4, atol=1e-4)
    assert windows[:, 4:].isnan().all() and model.embed(windows).isfinite().all()
    assert len(make_windows(model, series, tr_s=2.0, count=4)) == 4
    raw = 800 * (1 + series / 100)
    raw[:, 5] = 900 + np.arange(30) % 3
    again = make_windows(model, raw, tr_s=2.0, units="scanner")
    torch.testing.assert_close(again[:, :4], windows[:, :4], atol=1e-4, rtol=0)
    short = make_windows(model, series[:6], tr_s=2.0, short="pad")  # 11 s of 20
    assert short.shape == (1, 6, 20) and short[0, 0, :11].isfinite().all()
    assert short[0, :, 11:].isnan().all()


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda x: x[:10], {}, "lasts 19 s, a window 20 s"),
        (lambda x: x[:, :5], {}, "expected 6 columns"),
        (lambda x: 1000 + x, {}, "raw means .median 1000.*units: scanner"),
        (lambda x: x, {"units": "scanner"}, "not raw means"),
        (lambda x: 1e5 * x, {}, "expected 0.02 to 50"),
        (lambda x: 1e-4 * x, {}, "expected 0.02 to 50"),
        (
            lambda x: np.where((np.arange(30) == 7)[:, None] & (np.arange(6) < 2), np.nan, x),
            {},
            "at 1 of 30 time points",
        ),
        (lambda x: x, {"tr_s": 2000.0}, "milliseconds"),
        (lambda x: x, {"units": "as delivered"}, "the model expects 'percent'"),
    ],
)
def test_series_that_the_model_was_not_trained_on_are_refused(saved, change, options, words):
    model = from_pretrained(saved[0])
    model.scaling = Scaling(np.zeros(6), np.full(6, 8.0), "toy", "a" * 64, 1.0, 3)
    series = (np.arange(30)[:, None] - 14.5) * (1 + np.arange(6) / 10)
    with pytest.raises(BrainLMError, match=words):
        make_windows(model, change(series), **{"tr_s": 2.0, **options})


@pytest.mark.parametrize("factor", [1e4, 1e-4])
def test_amplitudes_that_the_scaling_makes_absurd_are_refused(factor):
    scaling = Scaling(np.zeros(6), np.ones(6), "toy", "a" * 64, 1.0, 3, units="as delivered")
    usual = np.random.default_rng(0).standard_normal((50, 6)) / 1.35
    scaling.check_amplitude(usual)
    with pytest.raises(BrainLMError, match="not in 'as delivered' units"):
        scaling.check_amplitude(factor * usual)


def test_a_model_without_a_scaling_takes_no_series(saved):
    model = from_pretrained(saved[0])
    model.scaling = None
    with pytest.raises(BrainLMError, match="without a scaling"):
        make_windows(model, np.zeros((30, 6)), tr_s=2.0)
