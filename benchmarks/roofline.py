"""The least time that a training step can take on a GPU, counted kernel by kernel without one.

    python benchmarks/roofline.py [--size 13m 111m 650m] [--gpu H200] [--embed] [--out FILE]

One forward and backward pass in bf16 and one update of the optimiser run on fake tensors, which
have shapes and no values; every kernel is noted. A matrix product or an attention takes as long
as its operations at the chip's peak or its bytes at the memory's bandwidth, whichever is longer;
every other kernel its bytes; none takes less than 3 us. That is the ceiling: kernels are slower.

`compiled` counts what stands between two matrix products as one kernel that reads what comes from
outside, once, and writes what is read later: torch.compile cannot do better. MFU is of the model's
own operations (three forward passes), recomputation left out, as in the log line of a training.

With --embed: the encoder's pass over every token, as `brainlm embed`, `predict` and the first half
of a fine-tuning make it, and the hours that three windows of 77,000 recordings take of one GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from brainlm.config import Pretrain
from brainlm.files import write_text
from brainlm.model import BrainLM, preset
from brainlm.model.masking import Masker, Masking
from brainlm.training.device import TOKENS_ON_GPU
from brainlm.training.journal import PEAK_TFLOPS
from brainlm.training.schedule import make_optimizers, scale_gradients

PARCELS, WINDOW, RATIO, UPDATE = 424, 200, 0.75, 512
#: TB/s of the memory (makers' data sheets)
BANDWIDTH = {"H200": 4.8, "H100": 3.35, "A100": 2.04}
LAUNCH_S = 3e-6
#: three windows of each of 77,000 recordings
EMBEDDED = 3 * 77_000
MICRO = {"13m": (4, 16, 64), "111m": (16, 64, 256), "650m": (16, 64, 128)}
#: attention on the CPU, which stands in for the GPU's: forward, backward
_ATTENTION = {"_scaled_dot_product_flash_attention_for_cpu": 4.0,
              "_scaled_dot_product_flash_attention_for_cpu_backward": 10.0}  # fmt: skip


@dataclass
class Kernel:
    """One operation: its name, work, and the storages that it reads and writes (id -> bytes)."""

    name: str
    flops: float
    reads: dict[int, int] = field(default_factory=dict)
    writes: dict[int, int] = field(default_factory=dict)


class Recorder(TorchDispatchMode):
    """Notes every kernel; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self._alive: list[object] = []  # an id is of one storage only while that lives

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        reads, writes = self._sizes((args, kwargs)), self._sizes(out)
        name = func.overloadpacket.__name__
        if writes and not (writes.keys() <= reads.keys() and not func._schema.is_mutable):
            self.kernels.append(Kernel(name, _flops(func, args, kwargs or {}, out), reads, writes))
        elif func._schema.is_mutable:  # in place, also of lists
            self.kernels.append(Kernel(name, 0.0, reads, reads))
        return out

    def _sizes(self, tree) -> dict[int, int]:
        found = {}
        for tensor in tree_leaves(tree):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._alive.append(storage)
                size = min(tensor.numel() * tensor.element_size(), storage.nbytes())
                found[storage._cdata] = max(found.get(storage._cdata, 0), size)
        return found


def _flops(func, args, kwargs, out) -> float:
    if func.overloadpacket in flop_registry:
        return float(flop_registry[func.overloadpacket](*args, **kwargs, out_val=out))
    if func.overloadpacket.__name__ in _ATTENTION:
        tensors = [x for x in args if isinstance(x, torch.Tensor) and x.ndim == 4]
        query, key = (
            tensors[-3 if len(tensors) == 3 else 1],
            tensors[1 if len(tensors) == 3 else 2],
        )
        B, H, queries, width = query.shape
        per_pair = _ATTENTION[func.overloadpacket.__name__] * width
        return per_pair * B * H * queries * key.shape[2]
    return 0.0


def seconds(kernels: Iterable[Kernel], peak: float, bandwidth: float) -> float:
    """Of kernels one after the other."""
    total = 0.0
    for kernel in kernels:
        moved = sum(kernel.reads.values()) + sum(kernel.writes.values())
        total += max(kernel.flops / peak, moved / bandwidth, LAUNCH_S)
    return total


def fuse(kernels: list[Kernel]) -> list[Kernel]:
    """What stands between two matrix products, as one kernel."""
    last = {name: k for k, kernel in enumerate(kernels) for name in kernel.reads}
    fused: list[Kernel] = []
    run: list[Kernel] = []

    def end(position: int) -> None:
        if not run:
            return
        reads: dict[int, int] = {}
        made: dict[int, int] = {}
        for kernel in run:
            reads |= {n: s for n, s in kernel.reads.items() if n not in made}
            made |= kernel.writes
        kept = {n: s for n, s in made.items() if last.get(n, position) >= position}
        fused.append(Kernel("fused", 0.0, reads, kept))
        run.clear()

    for position, kernel in enumerate(kernels):
        if kernel.flops:
            end(position)
            fused.append(kernel)
        else:
            run.append(kernel)
    end(len(kernels))
    return fused


def record(
    size: str, micro: int, share: float | None = None
) -> tuple[list[Kernel], list[Kernel], float]:
    """Kernels of a forward and backward pass, those of an update, and the model's FLOP of a
    window."""
    with FakeTensorMode(allow_non_fake_inputs=True), contextlib.ExitStack() as stack:
        model: BrainLM = preset(size, num_parcels=PARCELS, window=WINDOW)
        if share is not None:
            model.decoder.share = share
        mask = Masker(model.grid, RATIO)(torch.rand(micro, model.num_tokens))
        signal = torch.randn(micro, PARCELS, WINDOW)
        passes = stack.enter_context(Recorder())
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(signal, mask).loss
        loss.backward()
        stack.close()
        optimizers = make_optimizers(model, Pretrain().of_preset(size))
        for optimizer in optimizers:
            optimizer.step()  # its state is made now
        with Recorder() as update:
            scale_gradients(model, torch.ones(()))
            for optimizer in optimizers:
                optimizer.step()
    flops = model.flops_per_window(RATIO)
    return passes.kernels, update.kernels, flops


def record_embedding(size: str) -> tuple[list[Kernel], int, float]:
    """Kernels of a pass of :meth:`BrainLM.embed` that fills a GPU, how many windows it takes, and
    the FLOP of one."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model: BrainLM = preset(size, num_parcels=PARCELS, window=WINDOW)
        windows = max(1, TOKENS_ON_GPU // model.num_tokens)
        signal = torch.randn(windows, PARCELS, WINDOW)
        shown = Masking.show(torch.ones(windows, model.num_tokens, dtype=torch.bool),
                             model.num_tokens)  # fmt: skip
        with torch.no_grad(), Recorder() as passes, torch.autocast("cpu", torch.bfloat16):
            model.encode(model.grid.cut(signal)[0], shown).mean(1)
        encoder = BrainLM(dataclasses.replace(model.config, decoder_depth=0))
    return passes.kernels, windows, encoder.flops_per_window(0.0)


def hours_of_embedding(size: str, gpu: str) -> list[str]:
    kernels, windows, flops = record_embedding(size)
    peak = PEAK_TFLOPS[gpu] * 1e12
    took = seconds(kernels, peak, BANDWIDTH[gpu] * 1e12) / windows
    return [size, f"{flops / 1e9:.0f}", str(windows), f"{100 * flops / took / peak:.0f} %",
            f"{EMBEDDED * took / 3600:.3f}"]  # fmt: skip


def ceilings(size: str, micro: int, gpu: str, gpus: int, share: float | None) -> list[str]:
    peak, bandwidth = PEAK_TFLOPS[gpu] * 1e12, BANDWIDTH[gpu] * 1e12
    passes, update, flops = record(size, micro, share)
    windows = UPDATE / gpus
    cells = [size, str(micro)]
    for kernels, after in ((passes, update), (fuse(passes), update)):
        one, rest = seconds(kernels, peak, bandwidth), seconds(after, peak, bandwidth)
        whole = windows / micro * one + rest
        cells += [f"{100 * 3 * flops * micro / one / peak:.0f} %",
                  f"{100 * 3 * flops * windows / whole / peak:.0f} %"]  # fmt: skip
    return [*cells, str(len(passes)), str(len(fuse(passes))), f"{1e3 * rest:.1f}"]


EMBED_HEAD = ["size", "GFLOP per window", "windows a pass", "of the peak", "GPU-hours"]
HEAD = ["size", "micro-batch", "eager, passes", "with the update", "compiled, passes",
        "with the update", "kernels, eager", "compiled", "update, ms"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=[*MICRO, "tiny"], default=list(MICRO))
    parser.add_argument("--micro", nargs="+", type=int)
    parser.add_argument("--gpu", choices=list(BANDWIDTH), default="H200")
    parser.add_argument("--gpus", type=int, default=1, help="that share an update (DDP)")
    parser.add_argument("--decode-share", type=float, help="instead of the preset's")
    parser.add_argument("--out", type=Path, help="markdown file to write")
    parser.add_argument("--embed", action="store_true", help="embedding instead of training")
    args = parser.parse_args()
    head = EMBED_HEAD if args.embed else HEAD
    rows = [head, ["---"] * len(head)]
    for size in args.size:
        if args.embed:
            rows.append(hours_of_embedding(size, args.gpu))
            continue
        for micro in args.micro or MICRO.get(size, (16,)):
            rows.append(ceilings(size, micro, args.gpu, args.gpus, args.decode_share))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    title = f"Ceilings of MFU on {args.gpus} {args.gpu}, {UPDATE} windows an update, computed:"
    if args.embed:
        title = f"Least hours of one {args.gpu} for {EMBEDDED:,} windows in bf16, computed:"
    text = [title, "", *lines]
    print("\n".join(text))
    if args.out:
        write_text(args.out, "\n".join(text) + "\n")


if __name__ == "__main__":
    main()
