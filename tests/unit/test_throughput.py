"""What makes a GPU fast, as far as a processor can show that it is right."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from brainlm import doctor
from brainlm.config import Config, Pretrain, parse_config
from brainlm.model import preset
from brainlm.training.device import compile_blocks
from brainlm.training.memory import FILLED, largest_micro_batch, optimizer_bytes
from brainlm.training.schedule import make_optimizers, scale_gradients
from brainlm.training.settings import describe_settings


def small(name: str = "tiny", **changes):
    torch.manual_seed(0)
    return preset(name, num_parcels=12, window=40, patch=10, **changes)


@pytest.mark.parametrize("factor", [0.2, 300.0])
def test_one_pass_scales_and_clips(factor):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    ours(torch.randn(4, 7)).square().sum().backward()
    plain = copy.deepcopy(ours)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        b.grad = a.grad * factor
    expected = nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    assert torch.allclose(scale_gradients(ours, torch.tensor(factor)), expected)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-5)


@pytest.mark.parametrize(("share", "holds", "found"), [
    (64, 1000, 64), (64, 20, 16), (48, 20, 16), (60, 29, 20), (7, 3, 1), (64, 0, 1),
])  # fmt: skip
def test_as_many_windows_as_the_memory_holds(share, holds, found):
    """Sizes divide a process's share of an update; a trial may fail outright or fill too much."""
    tried = []

    def peak(size: int) -> int:
        tried.append(size)
        if size > 2 * holds:
            raise torch.OutOfMemoryError
        return round(size / (holds + 0.5) * FILLED * 1000) if holds else 1001

    assert largest_micro_batch(peak, share, 1000) == found
    assert tried == sorted(tried) and all(share % size == 0 for size in tried)


def test_the_optimisers_state_is_reckoned_with():
    model = small()
    assert optimizer_bytes(model) == 8 * sum(p.numel() for p in model.parameters())


def test_without_a_compiler_training_goes_on_and_says_so(monkeypatch):
    def no_compiler(self, *inputs):
        raise RuntimeError("no C compiler found\nmore")

    def compile_to_nothing(self):
        self._compiled_call_impl = no_compiler.__get__(self)

    monkeypatch.setattr(nn.Module, "compile", compile_to_nothing)
    model, said = small(), []
    assert not compile_blocks(model, said.append)
    assert said == [
        "the blocks are not compiled, training is slower: RuntimeError: no C compiler found"
    ]
    assert model(torch.randn(2, 12, 40)).loss.isfinite()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("name", "rate", "beta2"), [
    ("tiny", 1e-3, 0.999), ("13m", 1e-3, 0.999), ("111m", 3e-4, 0.95), ("650m", 3e-4, 0.95),
    ("vitmae_111M", 3e-4, 0.95),
])  # fmt: skip
def test_learning_rate_and_beta2_are_the_presets(name, rate, beta2):
    chosen = Pretrain(batch_size=512).of_preset(name)
    assert (chosen.learning_rate, chosen.beta2) == (pytest.approx(rate), beta2)
    stated = Pretrain(learning_rate=0.5, beta2=0.9).of_preset(name)
    assert (stated.learning_rate, stated.beta2) == (0.5, 0.9)
    groups = make_optimizers(small(), chosen)[-1].param_groups
    assert {group["betas"][1] for group in groups} == {beta2}


def test_what_is_filled_in_counts_as_if_it_were_stated(tmp_path):
    (tmp_path / "scaling.json").write_text("{}")
    model = Config.model_fields["model"].default
    left_out, stated = (
        describe_settings([], tmp_path / "scaling.json", model, Pretrain(**given))
        for given in ({}, {"learning_rate": 1e-3})
    )
    assert left_out == stated


@pytest.mark.parametrize("name", ["111m", "650m"])
def test_the_last_layer_begins_at_zero(name):
    with torch.device("meta"):
        config = preset(name, num_parcels=32, window=32, patch=16).config
    assert config.zero_last


def test_half_precision_follows_float32_for_200_updates():
    """Losses of the last fifty updates, each the same windows and masks: 3 % apart at most."""
    torch.manual_seed(1)
    networks = torch.randn(3, 12)
    ends = []
    for half in (False, True):
        model = small().train()
        optimizers = make_optimizers(model, Pretrain(learning_rate=3e-3).of_preset("tiny"))
        dice, losses = torch.Generator().manual_seed(2), []
        for step in range(200):
            courses = torch.randn(4, 3, 40, generator=dice).cumsum(-1)
            signal = torch.einsum("bnt,nr->brt", courses, networks)
            noise = torch.rand(4, model.num_tokens, generator=dice)
            torch.manual_seed(step)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                out = model(signal, noise=noise)
            assert out.loss.dtype == torch.float32
            out.loss.backward()
            scale_gradients(model, torch.ones(()))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(out.loss.item())
        ends.append(sum(losses[-50:]) / 50)
        assert ends[-1] < 0.8 * sum(losses[:10]) / 10  # it has learnt
    assert ends[1] == pytest.approx(ends[0], rel=0.03)


@pytest.mark.parametrize(("given", "ok", "words"), [
    ({"gpus": 8, "cpus": 4}, None, "set pretrain.cpus to 96"),
    ({"gpus": 8, "cpus": 10_000}, None, "right for a login node"),
    ({"gpus": 0}, True, ""),
])  # fmt: skip
def test_doctor_compares_the_loaders_threads_with_the_cpus(given, ok, words):
    cohort = {"name": "a", "folder": "/data"}
    config = parse_config({"cohorts": [cohort], "pretrain": given})
    found = list(doctor._loader(config))
    assert all(finding.ok is ok and words in str(finding) for finding in found)
    assert len(found) == bool(given["gpus"])


def test_a_process_reads_with_half_of_its_share_of_the_cpus():
    assert Pretrain(gpus=8).loader_threads == 6
    assert Pretrain(gpus=8, cpus=4).loader_threads == 1
    assert Pretrain(cpus=64).loader_threads == 1  # the CPU is busy with the training itself
