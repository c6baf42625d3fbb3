"""Training steps against the peer, in turns, in one run; memory, MFU and attention kernels.

    python benchmarks/model.py                  # CPU, float32, 2 threads: 111M against the peer
    python benchmarks/model.py --device cuda    # 13m, 111m, 650m in bf16, peer in float32 and bf16

The peer is `transformers` ViTMAEForPreTraining of the same width and depth, as it is by default
(attention by sdpa; a second row has its eager attention): for the image family on the square that
the published code pads a window to, for the parcel family on 65 x 65 = 4,225 tokens (ours has
4,240). `same grid` is our model on that very square; `preset` is what a user gets (27 x 13 patches
of 16 x 16 for images); `math` is the preset with attention spelt out; `all keys` the preset
with a decoder that predicts all hidden tokens and attends to all tokens. One
step is forward, backward, AdamW.

Three tables, written as one markdown file by --out:

* pairs: windows/s of every contestant and the median ratio to the peer, contestants taking turns;
* presets: ours alone at a batch that fills a GPU: windows/s, MFU, peak memory, compiled or not;
* attention: forward and backward of each kernel alone, time and peak memory.

On the CPU only the pairs are made unless --tables asks for more.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import functools
import gc
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from brainlm.errors import BrainLMError
from brainlm.files import write_text
from brainlm.model import BrainLM, BrainLMConfig, attend, kernel_name, preset, set_attention
from brainlm.model.masking import Masker
from brainlm.model.presets import PRESETS
from brainlm.training.journal import peak_flops

PARCELS, WINDOW, RATIO = 424, 200, 0.75
#: windows per step: with the peer, and alone
BATCHES = {"cpu": {}, "cuda": {"tiny": (64, 256), "13m": (16, 64), "111m": (64, 512),
                               "650m": (32, 256)}}  # fmt: skip
TABLES = ("pairs", "presets", "attention")


# ---- models -------------------------------------------------------------------------------------


def peer_shape(size: str) -> dict:
    """Side of the image, side of a patch and channels of the peer."""
    if PRESETS[size]["family"] == "parcel":
        return {"image_size": 260, "patch_size": 4, "num_channels": 1}
    patch = 14 if size == "650m" else 16
    return {"image_size": -(-PARCELS // patch) * patch, "patch_size": patch, "num_channels": 3}


def peer_model(size: str, attention: str = "sdpa") -> torch.nn.Module:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    c = PRESETS[size]
    return ViTMAEForPreTraining(ViTMAEConfig(
        hidden_size=c["width"], num_hidden_layers=c["depth"], num_attention_heads=c["heads"],
        intermediate_size=c["ffn"], decoder_hidden_size=c["decoder_width"],
        decoder_num_hidden_layers=c["decoder_depth"],
        decoder_num_attention_heads=c["decoder_heads"], decoder_intermediate_size=c["decoder_ffn"],
        mask_ratio=RATIO, attn_implementation=attention, **peer_shape(size),
    ))  # fmt: skip


def same_grid(size: str) -> BrainLM:
    """Our model on the peer's grid."""
    shape = peer_shape(size)
    side, patch = shape["image_size"], shape["patch_size"]
    rows, columns = (PARCELS, WINDOW) if side >= max(PARCELS, WINDOW) else (side, side)
    settings = dict(PRESETS[size], family="image", decoder_context="all", decode_share=1.0)
    return BrainLM(BrainLMConfig(num_parcels=rows, window=columns, patch=patch,
                                 patch_parcels=patch, image_size=(side, side), pad_value=-1.0,
                                 **settings))  # fmt: skip


def ours(size: str, backend: str = "auto", **changes) -> BrainLM:
    model = preset(size, num_parcels=PARCELS, window=WINDOW)
    if changes:
        model = BrainLM(dataclasses.replace(model.config, **changes))
    set_attention(model, backend)
    return model


def compiled(size: str) -> BrainLM:
    model = ours(size)
    for block in [*model.encoder, *model.decoder.blocks]:
        block.compile()
    return model


@dataclasses.dataclass
class Contestant:
    """A model that trains: how to make it, in which precision, and its operations per window."""

    name: str
    make: Callable[[], torch.nn.Module]
    half: bool
    flops: float


def contestants(size: str, halves: tuple[bool, ...]) -> Iterator[Contestant]:
    """The peer in every precision, then ours in the last of them."""
    with torch.device("meta"):
        square = same_grid(size).flops_per_window(RATIO)
        flops = ours(size).flops_per_window(RATIO)
    for half in halves:
        kind = "bf16" if half else "float32"
        yield Contestant(f"transformers {kind}", functools.partial(peer_model, size), half, square)
    half = halves[-1]
    eager = functools.partial(peer_model, size, "eager")
    yield Contestant("transformers, eager attention", eager, half, square)
    if PRESETS[size]["family"] == "image":
        yield Contestant("same grid", functools.partial(same_grid, size), half, square)
    wide = {"decoder_context": "all", "decode_share": 1.0}
    with torch.device("meta"):
        every = ours(size, **wide).flops_per_window(RATIO)
    yield Contestant("all keys", functools.partial(ours, size, **wide), half, every)
    yield Contestant("preset", functools.partial(ours, size), half, flops)
    yield Contestant("math", functools.partial(ours, size, "math"), half, flops)


# ---- measuring ----------------------------------------------------------------------------------


class Trainer:
    """Training steps of one contestant on random data."""

    def __init__(self, contestant: Contestant, batch: int, device: str):
        self.device, self.half, before = device, contestant.half, allocated(device)
        self.model = contestant.make().to(device).train()
        is_ours = isinstance(self.model, BrainLM)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4,
                                           fused=is_ours or device == "cuda" or None)  # fmt: skip
        if is_ours:
            c = self.model.config
            shape, mask = (c.num_parcels, c.window), Masker(self.model.grid, RATIO)
            noise = torch.rand(batch, self.model.num_tokens, device=device)
            self.loss = lambda x: self.model(x, mask(noise)).loss
        else:
            c = self.model.config
            shape = (c.num_channels, c.image_size, c.image_size)
            self.loss = lambda x: self.model(x).loss
        self.data = torch.randn(batch, *shape, device=device)
        for _ in range(3 if device == "cuda" else 1):  # the optimiser's state is made now
            self.step()
        self.held = allocated(device) - before
        self.peak = self.held + peak_above(device, self.step)

    def step(self) -> None:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            loss = self.loss(self.data)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def seconds(self, steps: int, rounds: int, clock) -> float:
        """Median seconds per step; a device is waited for only after `steps` of them."""

        def several() -> None:
            for _ in range(steps):
                self.step()

        return (
            float(np.median([timed(several, self.device, clock) for _ in range(rounds)])) / steps
        )


def allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def peak_above(device: str, call: Callable[[], object]) -> int:
    """Bytes that `call` needs at its worst beyond what is there before."""
    if device != "cuda":
        call()
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = allocated(device)
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def timed(call: Callable[[], object], device: str, clock=time.perf_counter) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def free() -> None:
    """Give the memory of what was measured before back to the device."""
    if torch.cuda.is_available():
        gc.collect()
        torch._dynamo.reset()
        torch.cuda.empty_cache()


def mfu(rate: float, flops: float, device: str) -> str:
    peak = peak_flops(torch.cuda.get_device_name()) if device == "cuda" else None
    return "–" if peak is None else f"{100 * rate * 3 * flops / peak:.1f} %"


def gib(size: int, device: str) -> str:
    return f"{size / 2**30:.2f}" if device == "cuda" else "–"


# ---- tables -------------------------------------------------------------------------------------


def pairs(size: str, device: str, args, clock) -> list[list[str]]:
    """Contestants in turns; ratios to the peer of each precision."""
    batch = args.batch or BATCHES[device].get(size, (2, 2))[0]
    halves = (False, True) if device == "cuda" else (False,)
    entries = list(contestants(size, halves))
    trainers: dict[str, Trainer] = {}
    for entry in entries:
        with contextlib.suppress(torch.OutOfMemoryError):  # its row says so
            trainers[entry.name] = Trainer(entry, batch, device)
        free()
    took: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(args.rounds):
        for name, trainer in trainers.items():
            took[name].append(timed(trainer.step, device, clock))
    rows = []
    for entry in entries:
        if entry.name not in took:
            rows.append([size, entry.name, str(batch), "out of memory", "", "", "", ""])
            continue
        rate = batch / float(np.median(took[entry.name]))
        against = [ratio(took.get(f"transformers {kind}"), took[entry.name])
                   for kind in ("float32", "bf16")]  # fmt: skip
        memory = gib(trainers[entry.name].peak, device)
        rows.append([size, entry.name, str(batch), f"{rate:.3g}", *against,
                     mfu(rate, entry.flops, device), memory])  # fmt: skip
    return rows


def ratio(base: list[float] | None, own: list[float]) -> str:
    """Median and range of round by round ratios."""
    if base is None or base is own:
        return ""
    each = np.array(base) / np.array(own)
    return f"{np.median(each):.2f} × ({each.min():.2f}–{each.max():.2f})"


def alone(size: str, device: str, args, clock) -> list[list[str]]:
    """Our preset at a batch that fills a GPU."""
    batch, half = args.batch or BATCHES[device].get(size, (2, 2))[1], device == "cuda"
    with torch.device("meta"):
        flops = ours(size).flops_per_window(RATIO)
    makers = {"auto": functools.partial(ours, size), "math": functools.partial(ours, size, "math")}
    if device == "cuda":
        makers["auto, compiled"] = functools.partial(compiled, size)
    rows = []
    for name, make in makers.items():
        free()
        row = [size, "bf16" if half else "float32", name, str(batch)]
        try:
            trainer = Trainer(Contestant(name, make, half, flops), batch, device)
            rate = batch / trainer.seconds(5 if device == "cuda" else 1, args.rounds, clock)
            rows.append([*row, f"{rate:.3g}", mfu(rate, flops, device),
                         gib(trainer.peak, device)])  # fmt: skip
            del trainer
        except torch.OutOfMemoryError:
            rows.append([*row, "out of memory", "", ""])
    return rows


#: batch, heads, queries, keys, width of a head
ATTENTION = {
    "13m encoder": (8, 4, 1061, 1061, 128),
    "13m decoder": (8, 4, 4241, 1061, 128),
    "13m decoder, all keys": (8, 4, 4241, 4241, 128),
    "111m encoder": (64, 12, 68, 68, 64),
    "111m decoder": (64, 16, 271, 271, 32),
}


def kernels(device: str, args, clock) -> list[list[str]]:
    """Forward and backward of each backend."""
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    rows = []
    for name, (batch, heads, queries, keys, width) in ATTENTION.items():
        batch = batch if device == "cuda" else 1
        shapes = [(batch, heads, n, width) for n in (queries, keys, keys)]
        tensors = [torch.randn(s, device=device, dtype=kind, requires_grad=True) for s in shapes]
        for backend in ("auto", "flash", "math"):
            call = functools.partial(_attend_and_back, tensors, backend)
            label = kernel_name(backend, device, kind, width)
            row = [name, f"{batch}×{heads}×{queries}×{keys}×{width}", label]
            try:
                call()
                peak = peak_above(device, call)
                took = [timed(call, device, clock) for _ in range(max(3, args.rounds))]
                rows.append([*row, f"{1e3 * np.median(took):.3g}", gib(peak, device)])
            except (torch.OutOfMemoryError, BrainLMError) as error:
                rows.append([*row, type(error).__name__, ""])
    return rows


def _attend_and_back(tensors: list[torch.Tensor], backend: str) -> None:
    for tensor in tensors:
        tensor.grad = None
    attend(*tensors, backend).sum().backward()


HEADS = {
    "pairs": ["size", "contestant", "batch", "windows/s", "× transformers float32",
              "× transformers bf16", "MFU", "peak GiB"],
    "presets": ["size", "precision", "attention", "batch", "windows/s", "MFU", "peak GiB"],
    "attention": ["layer", "batch×heads×queries×keys×width", "kernel",
                  "ms, forward and backward", "peak GiB"],
}  # fmt: skip


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def machine(device: str, threads: int) -> str:
    if device == "cuda":
        return (
            f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
        )
    return f"{platform.machine()} CPU, {threads} threads, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=("tiny", "13m", "111m", "650m"), nargs="+", default=None)
    parser.add_argument("--tables", choices=TABLES, nargs="+", default=None)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="markdown file to write")
    parser.add_argument("--processor-time", action="store_true",
                        help="CPU: processor seconds, where other programs run too")  # fmt: skip
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(args.threads)
    cuda = args.device == "cuda"
    args.rounds = args.rounds or (10 if cuda else 3)
    sizes = args.size or (["13m", "111m", "650m"] if cuda else ["111m"])
    clock = time.process_time if args.processor_time and not cuda else time.perf_counter
    text = [f"# Speed of the model, {datetime.date.today()}", "",
            f"`{shlex.join(['python', 'benchmarks/model.py', *sys.argv[1:]])}`", "",
            f"{machine(args.device, args.threads)}. Window {PARCELS} × {WINDOW}, mask {RATIO}."
            + (" Times are processor seconds." if clock is time.process_time else "")]  # fmt: skip
    for table in args.tables or (TABLES if cuda else TABLES[:1]):
        if table == "attention":
            rows = kernels(args.device, args, clock)
        else:
            make = {"pairs": pairs, "presets": alone}[table]
            rows = []
            for size in sizes:
                rows += make(size, args.device, args, clock)
                free()
        text += ["", f"## {table.capitalize()}", "", *markdown(HEADS[table], rows)]
        print("\n".join(text[-len(rows) - 4 :]), flush=True)
    if args.out:
        write_text(args.out, "\n".join(text) + "\n")


if __name__ == "__main__":
    main()
