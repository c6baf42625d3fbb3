"""Training in bf16 against float32 on the same windows and masks, and FSDP2 on one process.

    python benchmarks/precision.py --preset 111m --updates 1000

Windows are simulated: networks of parcels whose courses wander. Every contestant begins with the
same weights and sees the same windows. The table has the mean loss of each tenth of the updates.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
import torch.distributed as dist

from brainlm.config import Pretrain
from brainlm.model import preset
from brainlm.model.masking import Masker
from brainlm.training.device import choose_device, prepare
from brainlm.training.distributed import Ranks, TrainingStep, shard_model
from brainlm.training.schedule import (
    learning_rate_at,
    make_optimizers,
    scale_gradients,
    update_weights,
)

PARCELS, WINDOW, NETWORKS, RATIO = 424, 200, 17, 0.75


def train(name: str, half: bool, sharded: bool, args, device: torch.device) -> list[float]:
    """Losses of all updates."""
    torch.manual_seed(0)
    model = preset(name, num_parcels=PARCELS, window=WINDOW).train()
    prepare(model, device, "bf16" if half else "float32", args.compile)
    masker = Masker(model.grid, RATIO)
    step = TrainingStep(model)
    if sharded:
        step = shard_model(step, Ranks(0, 1, device))
    options = Pretrain(batch_size=args.batch).of_preset(name)
    optimizers = make_optimizers(step, options)
    dice = torch.Generator(device).manual_seed(1)
    networks = torch.randn(NETWORKS, PARCELS, device=device, generator=dice) / NETWORKS**0.5
    losses = []
    for update in range(args.updates):
        shape = (args.batch, NETWORKS, WINDOW)
        courses = torch.randn(shape, device=device, generator=dice).cumsum(-1)
        courses = courses / courses.std(-1, keepdim=True)
        noise = torch.rand(args.batch, model.num_tokens, device=device, generator=dice)
        torch.manual_seed(update)
        error, count, *_ = step(torch.einsum("bnt,nr->brt", courses, networks), masker(noise))
        (error / count).backward()
        scale_gradients(step, torch.ones((), device=device))
        update_weights(optimizers, learning_rate_at(update, args.updates, options))
        losses.append((error / count).detach())
    return torch.stack(losses).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    device = choose_device(Pretrain(gpus=int(args.device == "cuda")))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29431"}
    kind = "nccl" if args.device == "cuda" else "gloo"
    dist.init_process_group(kind, rank=0, world_size=1)
    contestants = {
        "float32": (False, False),
        "bf16": (True, False),
        "bf16, FSDP2 on one process": (True, True),
    }
    print(f"{args.preset}, batches of {args.batch}, {args.updates} updates, mean loss of tenths")
    print(f"\n| training | {' | '.join(f'{10 * k} %' for k in range(1, 11))} | seconds |")
    print("|---" * 12 + "|")
    for name, (half, sharded) in contestants.items():
        start = time.perf_counter()
        losses = torch.tensor(train(args.preset, half, sharded, args, device))
        cells = [f"{part.mean():.4f}" for part in losses.tensor_split(10)]
        took = time.perf_counter() - start
        print(f"| {name} | {' | '.join(cells)} | {took:.1f} |", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
