"""What a run says while it runs: metrics.jsonl, and a line every few seconds."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from ..files import write_text
from ..output import tell
from ..paths import ModelFolder
from ..progress import Record, write_record

#: bf16 tensor-core peaks in TFLOP/s (dense; makers' data sheets), for the MFU figure
PEAK_TFLOPS = {"H200": 989, "H100": 989, "GH200": 989, "B200": 2250, "A100": 312, "L40S": 362}


def peak_flops(device_name: str) -> float | None:
    """Peak FLOP/s of a GPU by its name; None if it is not in the table (nor a GPU)."""
    for name, tera in PEAK_TFLOPS.items():
        if name in device_name:
            return tera * 1e12
    return None


class Journal:
    """Lines of metrics, kept whole on disk, and progress for participants.

    Parameters
    ----------
    path : Path
        metrics.jsonl; rewritten from `history` on resume so that no line is there twice.
    quiet : bool
        True on all processes but the first.
    trackers : sequence
        Told every line as well; see trackers.py.
    """

    def __init__(self, path: Path, history: str, quiet: bool, every_s: float = 3.0, trackers=(),
                 stage: str = "pretrain"):  # fmt: skip
        self.path, self.lines, self.quiet, self.trackers = path, history, quiet, trackers
        self._every_s, self._last = every_s, 0.0
        self.stage = stage
        if not quiet:
            write_text(path, history)

    def record(self, **values) -> None:
        """Append one line of metrics."""
        rounded = {k: _short(v) for k, v in values.items()}
        line = json.dumps(rounded, allow_nan=False) + "\n"
        self.lines += line
        if not self.quiet:
            with open(self.path, "a", encoding="utf-8") as handle:
                handle.write(line)
        for tracker in self.trackers:
            tracker.record(rounded)

    def close(self) -> None:
        """Let the trackers finish."""
        for tracker in self.trackers:
            tracker.close()

    def say(self, text: str) -> None:
        """Print a line at once."""
        if not self.quiet:
            tell(text)

    def progress(self, step: int, total: int, text: str, *, force: bool = False) -> None:
        """A bar on a terminal, a line every few seconds elsewhere."""
        now = time.monotonic()
        if self.quiet or (now - self._last < self._every_s and not force):
            return
        write_record(
            ModelFolder(self.path.parent).record, Record(self.stage, step, total, text),
            first=not self._last,
        )  # fmt: skip
        self._last = now
        if sys.stdout.isatty():
            done = round(20 * step / max(1, total))
            end = "\n" if step >= total else ""
            tell(f"\r\033[K[{'#' * done}{'.' * (20 - done)}] {text}", end)
        else:
            tell(text)


def _short(value):
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return None
        return float(f"{value:.6g}")
    return value


def figure(value: float | None, digits: int = 3) -> str:
    """A number for a log line; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"
