"""What needs a CUDA device: half precision, the flash kernel, compilation, training there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from brainlm.model import attend, kernel_name, preset, set_attention

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def tensors():
    generator = torch.Generator("cuda").manual_seed(0)
    return [torch.randn(2, 4, 300, 64, device="cuda", dtype=torch.bfloat16, generator=generator,
                        requires_grad=True) for _ in range(3)]  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "flash", "flash-attn"])
def test_half_precision_equals_the_formula(backend):
    if backend == "flash-attn":
        pytest.importorskip("flash_attn")
    ours, exact = tensors(), [t.detach().float().requires_grad_() for t in tensors()]
    one, two = attend(*ours, backend), attend(*exact, "math")
    assert torch.allclose(one.float(), two, atol=2e-2)
    one.float().square().sum().backward()
    two.square().sum().backward()
    for a, b in zip(ours, exact, strict=True):
        assert torch.allclose(a.grad.float(), b.grad, atol=1e-1)


def test_flash_is_what_auto_chooses():
    assert "flash" in kernel_name("auto", "cuda", torch.bfloat16, 64) or "cudnn" in kernel_name(
        "auto", "cuda", torch.bfloat16, 64
    )


@pytest.mark.parametrize("name", ["tiny", "111m"])
def test_same_loss_as_on_the_cpu(name):
    torch.manual_seed(0)
    model = preset(name, num_parcels=48, window=80, patch=20).eval()
    signal, noise = torch.randn(2, 48, 80), torch.rand(2, model.num_tokens)
    expected = model(signal, noise=noise).loss
    found = model.cuda()(signal.cuda(), noise=noise.cuda()).loss
    assert torch.allclose(found.cpu(), expected, rtol=1e-3)
    with torch.autocast("cuda", torch.bfloat16):
        half = model(signal.cuda(), noise=noise.cuda()).loss
    assert torch.allclose(half.cpu().float(), expected, rtol=3e-2)
    set_attention(model, "math")
    plain = model(signal.cuda(), noise=noise.cuda()).loss
    assert torch.allclose(plain.cpu(), expected, rtol=1e-3)


def test_the_training_loop_never_waits_for_the_device(tmp_path):
    from synthetic import make_study
    from test_training import make_run

    made = make_run(make_study(tmp_path), tmp_path / "out", "cuda", gpus=1)
    meter, batches = made.meter(), iter(made.loader)
    made._update(batches, meter)  # the optimiser makes its state
    torch.cuda.set_sync_debug_mode("error")
    try:
        made._update(batches, meter)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("preset", "changes"), [
    ("tiny", {}), ("tiny", {"compile": True, "activation_checkpointing": True}), ("111m", {}),
])  # fmt: skip
def test_pretraining_on_the_gpu(tmp_path, preset, changes):
    from synthetic import make_study
    from test_training import metrics, run

    from brainlm.config import Model

    study = make_study(tmp_path)
    model = Model(preset=preset, window=40, patch=10)
    out = run(study, tmp_path / "out", model=model, gpus=1, epochs=20, **changes)
    last = metrics(out)[-1]
    assert last["loss"] == last["loss"]
    if preset == "tiny":
        assert last["r2"] > last["r2_zero"]
