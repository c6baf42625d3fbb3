"""Training steps per second beside the peer, in turns, in one run.

    python benchmarks/model.py                      # CPU, float32, 2 threads, 111M
    python benchmarks/model.py --device cuda        # all sizes, bf16 and float32, memory, MFU

The peer is `transformers` ViTMAEForPreTraining of the same size on the 432 x 432 image that the
published code pads a window to, eager, as people would write it. `same grid` is our model on that
very image (the published layout); `rectangular` is our preset (no padding in time); `math` is our
preset with attention spelt out. One step is forward, backward, AdamW.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable

import numpy as np
import torch

from brainlm.model import BrainLM, BrainLMConfig, kernel_name, preset, set_attention
from brainlm.model.presets import PRESETS
from brainlm.training.journal import peak_flops

RATIO = 0.75


def optimizer_of(model, device: str):
    fused = isinstance(model, BrainLM) or device == "cuda"
    return torch.optim.AdamW(model.parameters(), 1e-4, fused=fused or None)


def our_step(model: BrainLM, batch: int, device: str, half: bool) -> Callable[[], None]:
    model.to(device).train()
    optimizer = optimizer_of(model, device)
    signal = torch.randn(batch, model.config.num_parcels, model.config.window, device=device)
    visible = int(model.num_tokens * (1 - RATIO))

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = model(signal, mask_ratio=RATIO, visible=visible).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def peer_step(size: str, patch: int, batch: int, device: str, half: bool) -> Callable[[], None]:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    c = PRESETS[size]
    side = -(-424 // patch) * patch
    config = ViTMAEConfig(
        hidden_size=c["width"], num_hidden_layers=c["depth"], num_attention_heads=c["heads"],
        intermediate_size=c["ffn"], decoder_hidden_size=c["decoder_width"],
        decoder_num_hidden_layers=c["decoder_depth"],
        decoder_num_attention_heads=c["decoder_heads"], decoder_intermediate_size=c["decoder_ffn"],
        image_size=side, patch_size=patch, num_channels=3, mask_ratio=RATIO,
        attn_implementation="eager",
    )  # fmt: skip
    model = ViTMAEForPreTraining(config).to(device).train()
    optimizer = optimizer_of(model, device)
    image = torch.randn(batch, 3, side, side, device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = model(image).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def same_grid(size: str, patch: int) -> BrainLM:
    side = -(-424 // patch) * patch
    return BrainLM(
        BrainLMConfig(
            num_parcels=424,
            window=200,
            patch=patch,
            patch_parcels=patch,
            image_size=(side, side),
            pad_value=-1.0,
            **PRESETS[size],
        )
    )


def ours(size: str, backend: str = "auto", patch: int = 20) -> BrainLM:
    model = preset(size, num_parcels=424, window=200, patch=patch)
    set_attention(model, backend)
    return model


def contestants(size: str, batch: int, device: str, half: bool) -> dict[str, Callable]:
    """Makers of steps by name; the first is the peer of the ratios."""
    build = {}
    if PRESETS[size]["family"] == "image":
        patch = 14 if size == "650m" else 16
        build["transformers"] = lambda: peer_step(size, patch, batch, device, half)
        build["same grid"] = lambda: our_step(same_grid(size, patch), batch, device, half)
        build["rectangular 16x16"] = lambda: our_step(ours(size, patch=16), batch, device, half)
    else:
        build["math"] = lambda: our_step(ours(size, "math"), batch, device, half)
    build["preset"] = lambda: our_step(ours(size), batch, device, half)
    if PRESETS[size]["family"] == "image":
        build["math"] = lambda: our_step(ours(size, "math"), batch, device, half)
    return build


def compare(size: str, batch: int, device: str, half: bool, rounds: int, clock) -> dict:
    steps = {name: make() for name, make in contestants(size, batch, device, half).items()}
    took = {name: [] for name in steps}
    for step in steps.values():  # once to warm up
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            took[name].append(timed(step, device, clock))
    base = np.array(next(iter(took.values())))
    out = {}
    for name, seconds in took.items():
        ratio = base / np.array(seconds)
        out[name] = {
            "windows_per_s": round(batch / float(np.median(seconds)), 3),
            "times_the_first": round(float(np.median(ratio)), 2),
            "range": [round(float(ratio.min()), 2), round(float(ratio.max()), 2)],
        }
    return out


def timed(step: Callable[[], None], device: str, clock=time.perf_counter) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def alone(size: str, batch: int, half: bool, backend: str) -> dict:
    """One of our presets on the GPU: rate, MFU and peak memory."""
    model = ours(size, backend)
    step = our_step(model, batch, "cuda", half)
    for _ in range(3):
        step()
    torch.cuda.reset_peak_memory_stats()
    rate = batch / float(np.median([timed(step, "cuda") for _ in range(10)]))
    peak = peak_flops(torch.cuda.get_device_name())
    mfu = None if peak is None else round(rate * 3 * model.flops_per_window(RATIO) / peak, 3)
    return {"windows_per_s": round(rate, 1), "mfu": mfu,
            "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=tuple(PRESETS), default=None)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="CPU only: count processor seconds, where other programs run too",
    )
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(args.threads)
    sizes = [args.size] if args.size else (["111m"] if args.device == "cpu" else list(PRESETS))
    for size in sizes:
        for half in (False,) if args.device == "cpu" else (False, True):
            batch = args.batch or (2 if args.device == "cpu" else 32)
            kind = torch.bfloat16 if half else torch.float32
            print(f"{size}, batch {batch}, mask {RATIO}, {args.device}, {kind}, attention "
                  f"{kernel_name('auto', args.device, kind, 64)}")  # fmt: skip
            clock = time.process_time if args.processor_time else time.perf_counter
            rows = compare(size, batch, args.device, half, args.rounds, clock)
            for name, row in rows.items():
                print(f"  {name:18} {json.dumps(row)}", flush=True)
            if args.device == "cuda":
                for backend in ("auto", "math"):
                    print(f"  {backend:18} {json.dumps(alone(size, batch, half, backend))}")


if __name__ == "__main__":
    main()
