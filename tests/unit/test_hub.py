"""Models in and out of folders and the hub's local cache."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
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
    with pytest.raises(BrainLMError, match="subfolder= one of: small"):
        from_pretrained("lab/brain", cache_dir=tmp_path / "cache")
    with pytest.raises(BrainLMError, match="neither a folder here nor reachable"):
        from_pretrained("lab/other", cache_dir=tmp_path / "cache")


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
            return "https://example.org/lab/brain"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push_to_hub(saved[0], "lab/brain") == "https://example.org/lab/brain"
    assert calls["repo"][1]["private"] is True
    assert "scaling.json" in calls["allow_patterns"]
    (saved[0] / "scaling.json").unlink()
    with pytest.raises(BrainLMError, match=r"lacks scaling\.json"):
        push_to_hub(saved[0], "lab/brain")


def test_automodel_opens_our_folders(saved):
    transformers = pytest.importorskip("transformers")
    from brainlm.model.automodel import register

    register()
    model = transformers.AutoModel.from_pretrained(saved[0])
    signal = torch.randn(2, 6, 20)
    assert torch.equal(model.embed(signal), saved[1].embed(signal))


def test_your_own_series_become_windows(saved):
    folder, _ = saved
    model = from_pretrained(folder)
    model.scaling = Scaling(np.full(6, 2.0), np.full(6, 4.0), "toy", "a" * 64, 1.0, 3)
    series = np.arange(30)[:, None] - 14.5 + np.zeros(6)  # [T, R] percent, a row every 2 s
    series[:, 4] = np.nan
    series[:, 5] = 3.0  # constant: a dead parcel, as the pipeline takes it
    windows = make_windows(model, series, tr_s=2.0)
    assert windows.shape == (2, 6, 20) and windows.dtype == torch.float32
    seconds = np.arange(59) / 2 - 14.5  # resampled to 1 s
    np.testing.assert_allclose(windows[0, 0], (seconds[:20] - 2) / 4, atol=1e-5)
    np.testing.assert_allclose(windows[1, 1], (seconds[39:] - 2) / 4, atol=1e-4)
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
        (lambda x: x, {"units": "scanner"}, "no raw means"),
        (lambda x: 1e5 * x, {}, "interquartile ranges"),
        (lambda x: 1e-4 * x, {}, "interquartile ranges"),
        (lambda x: np.where(np.arange(30)[:, None] == 7, np.nan, x), {}, "at 1 of 30 time points"),
        (lambda x: x, {"tr_s": 2000.0}, "milliseconds"),
        (lambda x: x, {"units": "as delivered"}, "the model wants 'percent'"),
    ],
)
def test_series_that_the_model_was_not_trained_on_are_refused(saved, change, options, words):
    model = from_pretrained(saved[0])
    model.scaling = Scaling(np.zeros(6), np.full(6, 8.0), "toy", "a" * 64, 1.0, 3)
    series = np.arange(30)[:, None] - 14.5 + np.zeros(6)
    with pytest.raises(BrainLMError, match=words):
        make_windows(model, change(series), **{"tr_s": 2.0, **options})


def test_a_model_without_a_scaling_takes_no_series(saved):
    model = from_pretrained(saved[0])
    model.scaling = None
    with pytest.raises(BrainLMError, match="without a scaling"):
        make_windows(model, np.zeros((30, 6)), tr_s=2.0)
