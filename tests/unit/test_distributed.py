"""Two processes give the losses of one at the same global batch; checkpoints change hands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from synthetic import make_study
from test_training import metrics, run

from brainlm.errors import BrainLMError
from brainlm.training import pretrain as pretraining

SCRIPT = """
import sys, torch
sys.path.insert(0, {here!r})
{before}
from pathlib import Path
from test_training import MODEL, options
from synthetic import toy_atlas
from brainlm.training.pretrain import pretrain
torch.set_num_threads(1)
folder = Path({study!r})
pretrain(sorted(folder.glob("*.parquet")), folder / "scaling.json", Path({out!r}), model=MODEL,
         atlas=toy_atlas(),
         options=options(sharding={sharding!r}, **{changes!r}))
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def alone(study, tmp_path_factory):
    return run(study, tmp_path_factory.mktemp("alone"))


def start(study, out: Path, sharding: str, *, processes: int = 2, before: str = "",
          **changes) -> subprocess.Popen:  # fmt: skip
    script = out.parent / f"{out.name}.py"
    script.write_text(SCRIPT.format(
        here=str(Path(__file__).parent), study=str(study.scaling.parent),
        out=str(out), sharding=sharding, changes=changes, before=before,
    ))  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", str(processes), str(script)]  # fmt: skip
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=environment)  # fmt: skip


def two_processes(study, out: Path, sharding: str, **changes) -> str:
    process = start(study, out, sharding, **changes)
    text, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return text


def check_same(one: list[dict], two: list[dict]) -> None:
    assert [(x["step"], x["split"]) for x in one] == [(x["step"], x["split"]) for x in two]
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "r2"):  # sums in another order, then Muon, which rounds to bf16
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-3)


#: what DDP made is gone before the processes part: its destructor may deadlock with gloo's
RELEASED = """
import gc, torch.distributed as dist
destroy = dist.destroy_process_group
def check():
    ddp = torch.nn.parallel.DistributedDataParallel
    made = [module for module in gc.get_objects() if isinstance(module, ddp)]
    assert made and not [module for module in made if hasattr(module, "reducer")]
    print("released", flush=True)
    destroy()
dist.destroy_process_group = check
"""


def test_same_losses_as_one_process(study, alone, tmp_path):
    two_processes(study, tmp_path / "out", "ddp", before=RELEASED)
    one, two = metrics(alone), metrics(tmp_path / "out")
    check_same(one, two)
    for a, b in zip(one[:3], two[:3], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


FAILING = """
from brainlm.training import pretrain
def fail(self):
    raise OSError("no place to read from")
pretrain.Run.resume = fail
"""


def test_a_run_that_fails_lets_go_too(study, tmp_path):
    process = start(study, tmp_path / "out", "ddp", before=RELEASED + FAILING)
    text, errors = process.communicate(timeout=240)
    assert process.returncode != 0 and "no place to read from" in errors
    assert text.count("released") == 2


#: run before training: two "nodes" of two processes each, and what they made of the mesh
TWO_NODES = """
import os
os.environ["LOCAL_WORLD_SIZE"] = "2"
from brainlm.training import distributed
mesh = distributed._mesh
def show(ranks):
    made = mesh(ranks)
    if ranks.main:
        print("mesh", made.mesh_dim_names, made.mesh.tolist(), flush=True)
    return made
distributed._mesh = show
"""


def test_state_is_divided_within_a_node_and_the_same_in_each(study, alone, tmp_path):
    """Hybrid sharding: four processes as two by two, in bf16 within the blocks."""
    text = two_processes(study, tmp_path / "out", "fsdp", processes=4, before=TWO_NODES,
                         micro_batch_size=1, epochs=1, precision="bf16")  # fmt: skip
    assert "mesh ('replicate', 'shard') [[0, 1], [2, 3]]" in text
    two = metrics(tmp_path / "out")
    assert two[0]["loss"] == pytest.approx(metrics(alone)[0]["loss"], rel=2e-2)
    (saved,) = (tmp_path / "out").glob("checkpoints/step-*")
    assert len(list(saved.glob("*.safetensors"))) >= 2


#: the other node's listing is old: it sees no checkpoint, and nothing that is finished
STALE = """
import os
from brainlm.training import checkpoint, pretrain
if os.environ["RANK"] == "1":
    checkpoint.list_checkpoints = pretrain.list_checkpoints = lambda folder: []
    pretrain.read_settings = None
"""


def test_a_run_changes_its_number_of_processes(study, alone, tmp_path, monkeypatch):
    """Begun by one process, ended by two with another sharding: the losses of one."""
    out = tmp_path / "out"
    update = pretraining.Run._update

    def stop_soon(self, *arguments):
        update(self, *arguments)
        self.stop = self.step == 2

    monkeypatch.setattr(pretraining.Run, "_update", stop_soon)
    with pytest.raises(SystemExit) as caught:
        run(study, out)
    assert caught.value.code == pretraining.EXIT_SAVED
    text = two_processes(study, out, "fsdp", before=STALE, activation_checkpointing=True)
    assert "resuming from update 3 of 21" in text
    assert "with 2 processes instead of 1" in text
    check_same(metrics(alone), metrics(out))


def test_preemption_of_two_processes_saves(study, tmp_path):
    """torchrun passes SIGTERM on; its own code is not 75, but what was learnt is kept."""
    out = tmp_path / "out"
    process = start(study, out, "ddp", epochs=100_000)
    journal = out / "metrics.jsonl"
    while not (journal.exists() and '"split": "validation"' in journal.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=240)
    assert process.returncode != 0
    saved = int(re.search(r"SIGTERM: saved at update (\d+)", text)[1])
    assert (out / "checkpoints" / f"step-{saved:08d}" / "facts.json").exists()


#: torch's own Muon on whole matrices, ours on the same over two processes; one cannot be halved
MUON = """
import sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from brainlm.training.muon import Muon
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
flat = init_device_mesh("cpu", (2,)), [Shard(0)]
nodes = init_device_mesh("cpu", (1, 2), mesh_dim_names=("replicate", "shard"))
hybrid = nodes, [Replicate(), Shard(0)]
torch.manual_seed(3)
for shape, (mesh, placements) in ((5, 8), flat), ((48, 16), flat), ((16, 48), hybrid):
    whole = torch.nn.Parameter(torch.randn(shape))
    mine = torch.nn.Parameter(distribute_tensor(whole.detach().clone(), mesh, placements))
    options = dict(lr=0.02, weight_decay=0.1)
    theirs = torch.optim.Muon([whole], adjust_lr_fn="match_rms_adamw", **options)
    ours = Muon([mine], **options)
    for _ in range(3):
        whole.grad = torch.randn(shape)
        mine.grad = distribute_tensor(whole.grad, mesh, placements)
        theirs.step()
        ours.step()
    kept = ours.state[mine]["momentum_buffer"]
    assert isinstance(kept, DTensor) and kept.to_local().shape[0] <= shape[0] / 2 + 1
    assert torch.equal(mine.full_tensor(), whole), (mine.full_tensor() - whole).abs().max()
dist.destroy_process_group()
"""


def test_muon_of_a_divided_matrix_is_that_of_the_whole_one(tmp_path):
    processes = [
        subprocess.Popen([sys.executable, "-c", MUON, str(rank), str(tmp_path / "store")],
                         stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]  # fmt: skip
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]


def test_a_batch_that_cannot_be_shared():
    assert pretraining._micro_batch(4, 8, 2) == 4
    assert pretraining._micro_batch(4, 8, 8) == 1
    with pytest.raises(BrainLMError, match=r"\(4 × 3\)"):
        pretraining._micro_batch(4, 8, 3)
    with pytest.raises(BrainLMError, match="must be a multiple"):
        pretraining._micro_batch(4, 8, 16)
