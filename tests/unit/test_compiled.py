"""Where what numba compiles is kept."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from brainlm import files


def test_compiled_kernels_are_kept_where_neither_package_nor_home_is_writable(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def keep() -> Path | None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", {})
            files.keep_compiled()
            kept = os.environ.get("NUMBA_CACHE_DIR")
        return Path(kept) if kept else None

    assert keep() is None  # a clone, or a user's home
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    first = keep()
    assert first.parent == tmp_path and stat.S_IMODE(first.stat().st_mode) == 0o700
    assert keep() == first
    first.chmod(0o777)  # anybody could have put kernels there
    other = keep()
    assert other != first and stat.S_IMODE(other.stat().st_mode) == 0o700
