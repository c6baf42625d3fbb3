"""What a job prints, and its log, written from here: no other program stands in a pipe that a
SIGTERM to all could end first."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


def tell(text: str, end: str = "\n") -> None:
    """Print at once; a reader that has gone stops nothing."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        _mute(sys.stdout)


def _mute(stream: TextIO) -> None:
    """Let `stream` lead nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _Copied(io.TextIOBase):
    """A stream whose text goes into a log too."""

    def __init__(self, stream: TextIO, log: TextIO):
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        self._log.write(text)
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            _mute(self._stream)
        return len(text)

    def fileno(self) -> int:
        return self._stream.fileno()


@contextlib.contextmanager
def logged(path: Path | None) -> Iterator[None]:
    """Append what is printed, errors as well, to `path` (None: nowhere)."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(path, "a", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(_Copied(sys.stdout, log)),
        contextlib.redirect_stderr(_Copied(sys.stderr, log)),
    ):
        yield
