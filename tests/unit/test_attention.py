"""The attention backends give the same answer, or refuse with a reason."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from synthetic import small_model

from brainlm.errors import BrainLMError
from brainlm.model import BACKENDS, attend, kernel_name, set_attention


def tensors(n=50, m=50):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, n, 16), (2, 4, m, 16), (2, 4, m, 16)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("backend", ["auto", "flash"])
@pytest.mark.parametrize("context", [50, 20])
def test_equal_to_the_formula(backend, context):
    ours, plain = tensors(m=context), tensors(m=context)
    one, two = attend(*ours, backend), attend(*plain, "math")
    assert torch.allclose(one, two, atol=1e-5)
    one.square().sum().backward()
    two.square().sum().backward()
    for a, b in zip(ours, plain, strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-5)


def test_half_precision_agrees():
    exact = attend(*tensors(), "math")
    half = attend(*[t.bfloat16() for t in tensors()], "auto")
    assert torch.allclose(half.float(), exact, atol=2e-2)


def test_unknown_backend_names_the_choices():
    with pytest.raises(BrainLMError, match=", ".join(BACKENDS)):
        attend(*tensors(), "fast")


def test_forced_flash_gives_torchs_reason():
    # float64 with unequal value width is no flash case anywhere
    q, k, _ = (t.detach()[:, :, :8] for t in tensors())
    with pytest.raises(BrainLMError, match="flash was asked for"):
        attend(q, k, torch.randn(2, 4, 8, 24), "flash")


def test_flash_attn_package_missing_or_broken(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(BrainLMError, match="does not import"):
        attend(*tensors(), "flash-attn")
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    with pytest.raises(BrainLMError, match="does not import"):
        attend(*tensors(), "flash-attn")


def test_flash_attn_package_is_given_its_layout(monkeypatch):
    module = types.ModuleType("flash_attn")

    def flash_attn_func(q, k, v):  # [B, N, H, d] in and out
        assert q.shape == (2, 50, 4, 16)
        return attend(*(x.transpose(1, 2) for x in (q, k, v)), "math").transpose(1, 2)

    module.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    assert torch.allclose(attend(*tensors(), "flash-attn"), attend(*tensors(), "math"), atol=1e-6)


@pytest.mark.parametrize("family", ["parcel", "image"])
def test_models_agree_between_backends(family):
    torch.manual_seed(0)
    model = small_model(family, num_parcels=24, window=40, patch=10).eval()
    signal = torch.randn(2, 24, 40)
    noise = torch.rand(2, model.num_tokens)
    losses = []
    for backend in ("auto", "math", "flash"):
        set_attention(model, backend)
        losses.append(model(signal, noise=noise).prediction.detach())
    assert torch.allclose(losses[0], losses[1], atol=1e-4)
    assert torch.allclose(losses[0], losses[2], atol=1e-4)


def test_kernel_name():
    assert kernel_name("math", "cpu", torch.float32, 32) == "math"
    assert kernel_name("auto", "cpu", torch.float32, 32).startswith("auto")
