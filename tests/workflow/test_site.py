"""The documentation site, and what a package index would say of the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from runs import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return folder


def test_the_reference_has_the_docstrings_of_what_is_public(site):
    import brainlm.model
    import brainlm.shards

    page = (site / "reference/index.html").read_text()
    named = {name.split(".")[-1] for name in re.findall(r'<h\d id="([^"]+)"', page)}
    for module in (brainlm.model, brainlm.shards):
        assert {name for name in module.__all__ if not name.isupper()} <= named


def test_links_between_files_of_the_clone_are_links_between_pages(site):
    start = (site / "index.html").read_text()
    assert 'href="usage/"' in start and 'src="images/study.png"' in start
    assert "docs/" not in "".join(re.findall(r'(?:href|src)="([^"]*)"', start))
    assert (site / "tutorials/01_from_bids_to_report/index.html").exists()
