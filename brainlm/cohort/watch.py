"""What a run looks at again: new things at once, the newest recordings always, the rest in turn.

A study grows by participants, visits and runs; its old recordings hardly ever change. Looking at
each of them every night costs three file operations or more, which a parallel file system answers
in milliseconds. So a run looks at

* every entry of the cohort's folder that is not in the index, and notices entries that are gone;
* the newest :data:`NEWEST` recordings: scans arrive in pieces, and copies are finished later
  (a cohort that has no more than these is looked at as a whole);
* a share of the others for each day since the last look, so that each is looked at within
  :func:`cycle` days (a week up to 87,500 recordings), or at the next run if that is later.

An entry is what lies directly in the cohort's folder: a participant, a visit or a file, by layout.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path

#: Recordings that every run looks at; a week's intake of a very large study.
NEWEST = 1000
#: Older ones that a day's look takes at most, per cohort: half a minute of a parallel file system.
A_DAY = 12_500


def cycle(recordings: int) -> int:
    """Days in which each recording is looked at: 7, 14, 28, ... Doubled, not stretched: a growing
    cohort's recordings keep their turn but at a doubling."""
    days = 7
    while recordings > A_DAY * days:
        days *= 2
    return days


def today() -> int:
    """The day as a number (proleptic Gregorian ordinal)."""
    return date.today().toordinal()


def entries_to_skip(
    entries: Sequence[str], chunks: Sequence[str], folder: Path, looked: int | None
) -> set[str]:
    """Entries of `folder` that are not looked at today.

    Parameters
    ----------
    entries, chunks : sequences of str
        Of every recording that the index knows, the entry in which it lies and its chunk.
    looked : int or None
        The day (:func:`today`) of the last look; None if there was none.
    """
    day = today()
    days = cycle(len(entries))
    if looked is None or not 0 <= day - looked < days:  # also a clock that went back
        return set()
    due = {d % days for d in range(looked + 1, day + 1)}
    newest = _newest(chunks, NEWEST)
    young = {entry for entry, chunk in zip(entries, chunks, strict=True) if chunk in newest}
    old = set(entries) - young
    if due:
        old = {entry for entry in old if zlib.crc32(entry.encode()) % days not in due}
    return old.intersection(_names(folder))


def entries_to_check(
    sources: Sequence[str], chunks: Sequence[str], looked: int | None
) -> set[str] | None:
    """Entries of which also the companions (sidecars, T1w images, confounds) are looked at today.

    None stands for all: of a cohort of up to :data:`NEWEST` recordings, and where all recordings
    are looked at. Else half as many of the newest, and the others in turn, each within four times
    :func:`cycle` days. Parameters as in :func:`entries_to_skip`, but whole paths.
    """
    day, days = today(), 4 * cycle(len(sources))
    if len(sources) <= NEWEST or looked is None or not 0 <= day - looked < days:
        return None
    due = {d % days for d in range(looked + 1, day + 1)}
    newest = _newest(chunks, NEWEST // 2)
    entries = [(source.partition("/")[0], k) for source, k in zip(sources, chunks, strict=True)]
    return {e for e, k in entries if k in newest or zlib.crc32(e.encode()) % days in due}


def _newest(chunks: Sequence[str], least: int) -> set[str]:
    """The last chunks that hold `least` recordings: chunks are numbered as they come."""
    counts = Counter(chunks)
    newest: set[str] = set()
    total = 0
    for chunk in sorted(counts, key=int, reverse=True):
        if total >= least:
            break
        newest.add(chunk)
        total += counts[chunk]
    return newest


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # then nothing is skipped, and looking says what is wrong
        return []
