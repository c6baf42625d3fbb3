"""What training on 61,038 recordings takes: GPU-hours, memory per GPU, loader rate.

    python benchmarks/scaling.py                        # assumes the MFU that the project aims at
    python benchmarks/scaling.py --rate 111m=5200       # windows/s per GPU that were measured
    python benchmarks/scaling.py --activations          # also counts activations (minutes of CPU)

Work is matrix products as `BrainLM.flops_per_window` counts them, training three times the forward
pass. Activations are counted, not estimated: bytes that one more window makes autograd keep in a
bf16 forward pass of the real model.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable

import torch

from brainlm.model import BrainLM, preset
from brainlm.model.masking import Masker

RECORDINGS, EPOCHS, WINDOW, PARCELS, RATIO = 61_038, 100, 200, 424, 0.75
PEAK_TFLOPS, GPUS = 989, 8  # H200, dense bf16; GPUs that FSDP2 shares among
MFU = {"13m": 0.35, "111m": 0.5, "650m": 0.5}
GIB = 2**30


def build(size: str) -> BrainLM:
    return preset(size, num_parcels=PARCELS, window=WINDOW)


def train_gflop(size: str) -> float:
    with torch.device("meta"):
        return 3 * build(size).flops_per_window(RATIO) / 1e9


def hours(rates: dict[str, float]) -> list[str]:
    """GPU-hours and the rate that the loader must reach, per size."""
    lines = ["| preset | training GFLOP per window | windows/s per GPU | GPU-hours "
             "| loader, GB/s per GPU (float16) |", "|---|---|---|---|---|"]  # fmt: skip
    for size, share in MFU.items():
        work = train_gflop(size)
        rate = rates.get(size) or PEAK_TFLOPS * 1e3 * share / work
        how = "measured" if size in rates else f"assumed: MFU {share:.0%}"
        total = RECORDINGS * EPOCHS / rate / 3600
        disk = rate * PARCELS * WINDOW * 2 / 1e9
        lines.append(f"| {size} | {work:.0f} | {rate:,.0f} ({how}) | {total:.2f} | {disk:.2f} |")
    return lines


def memory() -> list[str]:
    """State per GPU: weights, gradients and two moments in float32, and what FSDP2 gathers."""
    lines = [
        f"| preset | parameters | DDP, GiB | FSDP2 on {GPUS} GPUs, GiB |",
        "|---|---|---|---|",
    ]
    for size in MFU:
        with torch.device("meta"):
            model = build(size)
        blocks = [sum(p.numel() for p in block.parameters())
                  for block in [*model.encoder, *model.decoder.blocks]]  # fmt: skip
        total = sum(p.numel() for p in model.parameters())
        outside = total - sum(blocks)  # stays gathered between forward and backward
        gathered = 4 * outside + 3 * 4 * max(blocks)  # this block, the next, and a gradient
        lines.append(f"| {size} | {total / 1e6:.1f} M | {16 * total / GIB:.2f} "
                     f"| {(16 * total / GPUS + gathered) / GIB:.2f} |")  # fmt: skip
    return lines


@dataclasses.dataclass
class Kept:
    """Bytes of tensors that autograd keeps, each storage once."""

    sizes: dict[int, int] = dataclasses.field(default_factory=dict)

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor


def per_window(forward: Callable[[int], torch.Tensor]) -> int:
    """Bytes that one more window in the batch makes autograd keep."""
    found = []
    for batch in (1, 2):
        kept = Kept()
        with (torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor),
              torch.autocast("cpu", torch.bfloat16)):  # fmt: skip
            out = forward(batch)
        assert out.requires_grad  # the graph, hence every kept tensor, is still alive
        found.append(sum(kept.sizes.values()))
    return found[1] - found[0]


def activations(size: str) -> str:
    """MiB per window: all layers', and with activation checkpointing (inputs of all blocks, and
    what the largest block keeps while it is computed again)."""
    model = build(size).train()
    c, N = model.config, model.num_tokens + 1
    K = int(model.num_tokens * (1 - RATIO)) + 1
    encoder, decoder = model.encoder[0], model.decoder.blocks[0]
    context = K if c.decoder_context == "visible" else None

    def whole(batch: int) -> torch.Tensor:
        masking = Masker(model.grid, RATIO)(torch.rand(batch, model.num_tokens))
        return model(torch.randn(batch, PARCELS, WINDOW), masking).loss

    every = per_window(whole)
    largest = max(per_window(lambda batch: encoder(torch.randn(batch, K, c.width))),
                  per_window(lambda batch: decoder(torch.randn(batch, N, c.decoder_width),
                                                   context)))  # fmt: skip
    less = 4 * (c.depth * K * c.width + c.decoder_depth * N * c.decoder_width) + largest
    return (f"| {size} | {every / 2**20:.0f} | {less / 2**20:.0f} | {100 * GIB // every:,} "
            f"| {100 * GIB // less:,} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", nargs="*", default=[], metavar="SIZE=WINDOWS_PER_S")
    parser.add_argument("--activations", action="store_true")
    args = parser.parse_args()
    rates = {size: float(value) for size, value in (pair.split("=") for pair in args.rate)}
    tables = [hours(rates), memory()]
    if args.activations:
        tables.append(["| preset | MiB per window | with activation checkpointing "
                       "| windows in 100 GiB | with it |", "|---|---|---|---|---|",
                       *map(activations, MFU)])  # fmt: skip
    print("\n\n".join("\n".join(table) for table in tables))


if __name__ == "__main__":
    main()
