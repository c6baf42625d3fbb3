"""The benchmarks' commands run, at sizes that say nothing about speed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from synthetic import make_study

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")]
            for line in text.splitlines() if line.startswith("| ")]  # fmt: skip


def test_the_day_on_a_gpu_runs_through(tmp_path):
    """Every part at tiny size on the CPU;."""
    out = tmp_path / "speed.md"
    command = ["bash", str(FOLDER / "gpu_day.sh"), str(out)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(command, env={**os.environ, "DRY": "1", "PATH": path,
                                        "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, check=False)  # fmt: skip
    text = out.read_text()
    assert done.returncode == 0, text
    assert "Failed" not in text
    for part in ("## Speed", "| tiny | float32 | auto |", "| bf16, FSDP2 on one process |",
                 "known to the release: first touch"):  # fmt: skip
        assert part in text


def test_the_day_on_a_gpu_says_what_failed(tmp_path):
    out = tmp_path / "speed.md"
    (tmp_path / "python").write_text("#!/bin/sh\necho no such device >&2\nexit 3\n")
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(["bash", str(FOLDER / "gpu_day.sh"), str(out)], check=False,
                          env={**os.environ, "DRY": "1",
                               "PATH": f"{tmp_path}:{os.environ['PATH']}"})  # fmt: skip
    assert done.returncode == 1
    text = out.read_text()
    assert text.count("**Failed: exit code 3**") == 3 and "no such device" in text


def test_speed_of_the_model(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    module = load("model")
    monkeypatch.setattr(module, "PARCELS", 32)
    monkeypatch.setattr(module, "WINDOW", 40)
    small = {"image_size": 32, "patch_size": 16, "num_channels": 3}
    monkeypatch.setattr(module, "peer_shape", lambda size: small)
    monkeypatch.setattr(module, "ATTENTION", {"toy": (1, 2, 8, 8, 16)})
    image = {**module.PRESETS["111m"], "width": 32, "depth": 1, "heads": 2, "ffn": 32,
             "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}  # fmt: skip
    monkeypatch.setitem(module.PRESETS, "111m", image)
    out = tmp_path / "speed.md"
    options = ["--size", "tiny", "111m", "--rounds", "1", "--threads", "1", "--batch", "1",
               "--tables", "pairs", "presets", "attention", "--out", str(out)]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["model.py", *options])
    module.main()
    text = out.read_text()
    names = [row[1] for row in rows(text)]
    for name in ("transformers float32", "transformers, eager attention", "same grid",
                 "all keys", "preset"):  # fmt: skip
        assert name in names
    assert "--tables pairs presets attention" in text
    assert all(len(row) in (8, 7, 5) for row in rows(text))
    preset = next(row for row in rows(text) if row[1] == "preset")
    assert float(preset[3]) > 0 and "×" in preset[4]


def test_speed_of_the_loader(tmp_path):
    pytest.importorskip("datasets")
    module = load("loader")
    windows, lists = module.make(tmp_path, 4)
    recording = torch.tensor(lists[1]["recording"])
    assert recording.shape == (490, 424)
    stored = torch.from_numpy(windows.series[1].copy()).float()
    assert torch.allclose(stored, recording, atol=2e-3)  # both read the same
    assert module.peer(lists, 1) == module.peer(lists.with_format("torch"), 1) == 1
    assert module.ours(windows, 0) == 16
    assert 0 <= module.data_wait(windows, 500.0, 1, 0.3) <= 1


def test_presets_next_to_the_published_forms(tmp_path, monkeypatch):
    module, study = load("presets"), make_study(tmp_path)
    monkeypatch.setattr(module, "SIZES", {"parcel": (1, 1, 10), "image": (1, 1, 10)})
    out = tmp_path / "presets.md"
    options = [*map(str, study.shards), "--scaling", str(study.scaling), "--window", "40",
               "--updates", "2", "--batch", "2", "--seeds", "2", "--out", str(out)]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["presets.py", *options])
    module.main()
    found = rows(out.read_text())
    names = [row[0] for row in found if row[0] not in ("contestant", "---")]
    assert names == ["visible keys", "all keys", "published layers", "a quarter decoded",
                     "visible keys", "rectangular 16x20", "rectangular 16x16",
                     "padded square"]  # fmt: skip


def test_scaling_on_paper_is_what_the_command_prints():
    module = load("scaling")
    page = (FOLDER.parent / "docs" / "scaling.md").read_text()
    for line in [*module.hours({}), *module.memory()]:
        assert line in page
    assert any("measured" in line for line in module.hours({"111m": 5000.0}))
    assert " | ".join(load("roofline").hours_of_embedding("111m", "H200")) in page
