"""One recording, as every stage sees it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_ECHO = re.compile(r"_echo-[a-zA-Z0-9]+(?=_)")


@dataclass(frozen=True)
class Entry:
    """A row of the index.

    Attributes
    ----------
    recording_id : str
        The BIDS name up to the suffix, e.g. ``sub-01_ses-2_task-rest_run-1``; unique in a cohort.
    path : Path
        The image or series file, absolute; of a multi-echo run the first echo.
    source : str
        The same, relative to the cohort's folder.
    t1w : Path or None
        A T1-weighted image of the same subject (same session first), absolute.
    size, mtime_ns : int
        Of the file when it was indexed: the recording's fingerprint.
    retry : int
        The ``retry_failed`` of config.yaml for which it was last tried again.
    """

    recording_id: str
    participant_id: str
    session_id: str | None
    task: str | None
    run: str | None
    path: Path
    source: str
    t1w: Path | None
    size: int
    mtime_ns: int
    chunk: str
    retry: int = 0

    @property
    def cohort_folder(self) -> Path:
        """The folder that `source` starts from."""
        return self.path.parents[len(Path(self.source).parts) - 1]

    def list_echoes(self) -> list[Path]:
        """The images of a multi-echo run that is one recording; of any other run its image."""
        if not _ECHO.search(self.path.name) or _ECHO.search(f"{self.recording_id}_"):
            return [self.path]
        return list_echoes(self.path)


def list_echoes(path: Path) -> list[Path]:
    """All echoes of a run, compressed or not, of which `path` is one; without an echo in its name
    only itself."""
    plain = _strip(path.name)
    if not _ECHO.search(path.name):
        return [path]
    names = [name for name in os.listdir(path.parent)
             if _ECHO.search(name) and _strip(name) == plain]  # fmt: skip
    return [path.with_name(name) for name in sorted(names)]


def _strip(name: str) -> str:
    """A file's name without its echo, compressed or not."""
    return _ECHO.sub("", name).removesuffix(".gz")
