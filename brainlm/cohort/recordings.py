"""One recording, as every stage sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """A row of the index.

    Attributes
    ----------
    recording_id : str
        The BIDS name up to the suffix, e.g. ``sub-01_ses-2_task-rest_run-1``; unique in a cohort.
    path : Path
        The image or series file, absolute.
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
