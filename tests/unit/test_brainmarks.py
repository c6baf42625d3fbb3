"""Our plug-in passes Brainmarks' own smoke test, for A424 at 16 and 160 frames."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from brainlm.model import PRESETS, BrainLM, BrainLMConfig
from brainlm.shards import Scaling

PLUGIN = Path(__file__).resolve().parents[2] / "plugins"


def test_brainmarks_own_smoke_test_passes(tmp_path):
    pytest.importorskip("brainmarks.version", reason="Brainmarks is not installed")
    points = np.random.default_rng(0).uniform(-60, 60, (424, 3))
    settings = PRESETS["tiny"] | {"width": 32, "depth": 1, "heads": 2, "ffn": 64}
    shape = BrainLMConfig(num_parcels=424, window=100, patch=20, has_coordinates=True, **settings)
    scaling = Scaling(np.zeros(424), np.full(424, 1.5), "a424", "b" * 64, 1.0, 3)
    BrainLM(shape, points).save_pretrained(tmp_path / "model", scaling, "a card")
    # its readers of surface files, which no model test calls, import a package without wheels
    (tmp_path / "cortex.py").write_text("")
    path = os.pathsep.join([str(PLUGIN), str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "brainmarks.models.test_models", "brainlm_pipeline"],
        env=os.environ | {"PYTHONPATH": path, "BRAINLM_MODEL": str(tmp_path / "model")},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]
