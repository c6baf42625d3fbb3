"""How a run says how far it is: the bottom line of a terminal, or plain lines in a log.

On a terminal the last row is taken out of the scrolling (as apt does), so Snakemake's messages go
on above it. Libraries such as rich redraw a row around what is printed through them; here most of
what is printed comes from Snakemake's own handlers and from other processes. The text comes from
the files alone (:mod:`brainlm.status`); nothing is asked of the scheduler, so it is the same on a
laptop and with SLURM.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from .errors import BrainLMError

T = TypeVar("T")
_TAIL = 8192  # bytes in which the last record stands
_SAVE, _RESTORE = "\x1b7", "\x1b8"


@dataclass(frozen=True)
class Record:
    """How far a job is: `done` of `total` (recordings, updates), and the line that its log has."""

    stage: str
    done: int
    total: int
    text: str = ""


def write_record(path: Path, record: Record, *, first: bool = False) -> None:
    """Append a record as a JSON line; the `first` one of a job begins the file anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w" if first else "a", encoding="utf-8") as handle:
        handle.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")


def read_record(path: Path, since: float | None) -> Record | None:
    """The last whole record of a file that was written to after `since`; None if there is none."""
    try:
        if since is None or path.stat().st_mtime < since:
            return None
        with open(path, "rb") as handle:
            handle.seek(max(0, path.stat().st_size - _TAIL))
            lines = handle.read().split(b"\n")[:-1]  # what stands behind the last is not whole
        return Record(**json.loads(lines[-1])) if lines else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def running_since(folder: Path = Path()) -> float | None:
    """When the Snakemake that holds `folder` started; None if none does."""
    started = []
    for lock in (folder / ".snakemake/locks").glob("*.lock"):
        with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
            started.append(lock.stat().st_mtime)
    return min(started, default=None)


def clock(seconds: float) -> str:
    """H:MM:SS, or M:SS below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class Count:
    """How many of `total` are through: a line and a record every few seconds, and at the end.

    Parameters
    ----------
    path : Path
        Of the records.
    unit : str
        What is counted.
    """

    def __init__(
        self, stage: str, total: int, path: Path, log: Callable[[str], None] = print,
        every_s: float = 3.0, unit: str = "recordings",
    ):  # fmt: skip
        self.stage, self.total, self.path, self.unit, self._log = stage, total, path, unit, log
        self._every_s, self._began = every_s, time.monotonic()
        self._last, self.done = self._began, 0
        write_record(path, Record(stage, 0, total, f"0/{total} {unit}"), first=True)

    def add(self) -> None:
        """One more is through."""
        self(self.done + 1)

    def after(self, function: Callable[..., T]) -> Callable[..., T]:
        """The function; every call of it is one more."""

        def counted(*given: Any, **named: Any) -> T:
            result = function(*given, **named)
            self.add()
            return result

        return counted

    def __call__(self, done: int) -> None:
        self.done = done
        now = time.monotonic()
        if now - self._last < self._every_s and done < self.total:
            return
        self._last = now
        rate = done / max(1e-3, now - self._began)
        often = f"{rate:.3g}/s" if rate >= 0.1 else f"{60 * rate:.3g}/min"
        text = f"{done}/{self.total} {self.unit}, {often}"
        if done < self.total:
            text += f", ETA {clock((self.total - done) / max(rate, 1e-9))}"
        write_record(self.path, Record(self.stage, done, self.total, text))
        self._log(f"{self.stage}: {text}")


class Progress:
    """Tell `say()` every `every_s` seconds on `stream` until :meth:`stop`."""

    def __init__(self, say: Callable[[], str], stream: TextIO = sys.stderr):
        self._say, self._stream = say, stream
        self._live = stream.isatty()
        self._every_s = 2.0 if self._live else 30.0
        self._ended = threading.Event()
        self._rows = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Give the terminal back; nothing is shown after this."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join(5)
        if self._rows:
            self._write(f"{_SAVE}\x1b[r\x1b[{self._rows};1H\x1b[2K{_RESTORE}")

    def _run(self) -> None:
        while not self._ended.is_set():
            started = time.monotonic()
            with contextlib.suppress(BrainLMError, OSError, ValueError):  # files come and go
                self.show(self._say())
            took = time.monotonic() - started  # a large study is not asked all the time
            self._ended.wait(max(self._every_s, 20 * took))

    def show(self, text: str) -> None:
        """Put `text` on the bottom row, or on a line of its own."""
        if not self._live:
            self._write(f"progress: {text}\n")
            return
        columns, rows = shutil.get_terminal_size()
        if rows != self._rows:  # first of all, and after a change of size
            self._rows = rows
            self._write(f"\n{_SAVE}\x1b[1;{rows - 1}r{_RESTORE}\x1b[1A")
        self._write(
            f"{_SAVE}\x1b[{rows};1H\x1b[2K\x1b[7m{text[:columns]:<{columns}}\x1b[m{_RESTORE}"
        )

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
