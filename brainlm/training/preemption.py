"""SIGTERM: a preempted training saves and says how to go on."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

#: exit code after SIGTERM: everything is saved, start the same command again
EXIT_SAVED = 75


@contextlib.contextmanager
def on_sigterm(note: Callable[[], None]) -> Iterator[None]:
    """Call `note` at a SIGTERM, instead of ending; what is at hand goes on."""
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: note())
    except ValueError:  # not in the main thread: nothing to catch
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
