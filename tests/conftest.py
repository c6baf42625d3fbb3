"""Shared fixtures. Tests on real data skip, with a reason, where the data is absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Workers share the cores (make test): OpenMP's second thread would wait for its turn spinning.
for _library in ("OMP", "NUMBA"):  # before PyTorch, BLAS and numba are imported
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The two files that take ten minutes each begin at once, each on a worker of its own."""
    long = ("test_end_to_end.py", "test_slurm.py")
    if os.environ.get("PYTEST_XDIST_WORKER"):
        items.sort(key=lambda item: item.path.name not in long)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data next to the checkout; BRAINLM_TEST_DATA names another place."""
    folder = Path(os.environ.get("BRAINLM_TEST_DATA", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real test data not found in {folder} (set BRAINLM_TEST_DATA)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def templateflow_home(tmp_path_factory) -> Iterator[Path]:
    """No test finds templates in the user's own cache, or leaves one there."""
    home = tmp_path_factory.mktemp("templateflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEMPLATEFLOW_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def nlin6(shared, templateflow_home) -> Path:
    """The cache of templates, with MNI152NLin6Asym in it."""
    folder = templateflow_home / "tpl-MNI152NLin6Asym"
    folder.mkdir(exist_ok=True)
    for path in (shared / "templates").glob("tpl-MNI152NLin6Asym_*"):
        link = folder / path.name
        link.unlink(missing_ok=True)  # templateflow's client leaves empty files there
        link.symlink_to(path)
    return templateflow_home


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """A simulated recording of which every image stage has been run (tests/chain.py)."""
    from chain import make_chain, open_chain
    from once import make_once

    return open_chain(make_once(tmp_path_factory, "chain", make_chain))
