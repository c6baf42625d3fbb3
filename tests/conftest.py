"""Shared fixtures. Tests on real data skip, with a reason, where the data is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Two workers share two cores (make test): OpenMP's second thread would wait for its turn spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch and BLAS are imported

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; BRAINLM_TEST_DATA names another place."""
    folder = Path(os.environ.get("BRAINLM_TEST_DATA", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real test data not found in {folder} (set BRAINLM_TEST_DATA)")
    return folder
