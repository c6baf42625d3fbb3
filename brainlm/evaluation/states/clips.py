"""Clips of runs, each of one condition: from blocks of events, or from the task of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from ...cohort.events import ConditionBlock, EventFiles, read_events
from ...errors import BrainLMError
from ...shards import Corpus, Scaling
from ...shards.censored import MOST_CENSORED, is_censored
from ..tasks import StatesTask

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Clips:
    """All clips of a corpus.

    Attributes
    ----------
    table : DataFrame
        ``row`` of the corpus, ``start`` and ``stop`` (time points), ``condition``, ``cohort``,
        ``participant_id`` and ``split``.
    reasons : Series
        Why a recording (row of the corpus) has no clip.
    notes : Counter
        (cohort, what was found) -> how often: events that were skipped, and the like.
    errors : dict
        cohort -> why the first of its events that cannot be read cannot.
    """

    table: pd.DataFrame
    reasons: pd.Series
    notes: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: dict[str, str] = field(default_factory=dict)

    def count_left_out(self, part: pd.DataFrame) -> dict[str, int]:
        """Participants of `part` (rows of the corpus) without a clip, each by its first reason."""
        with_clips = set(self.table.loc[self.table["row"].isin(part.index), "participant_id"])
        others = part[~part["participant_id"].isin(with_clips)]
        first = self.reasons.reindex(others.index).groupby(others["participant_id"]).first()
        return {str(reason): int(count) for reason, count in first.value_counts().items()}


def clip_points(task: StatesTask, patch: int, window: int, period_s: float) -> int:
    """How many time points a clip has: whole patches of the model, at most its window.

    Raises
    ------
    BrainLMError
        ``clip_s`` is shorter than a patch or longer than the window.
    """
    if task.clip_s is None:
        return window if task.label == "task" else patch
    points = patch * int(task.clip_s / (patch * period_s) + _TOLERANCE)
    if not 0 < points <= window:
        raise BrainLMError(
            f"task {task.name}: clip_s is {task.clip_s:g} s; expected from {patch * period_s:g} s "
            f"(a patch of the model) to {window * period_s:g} s (its window)"
        )
    return points


Cut = list[tuple[int, int, str]]  # start, stop, condition


def list_clips(
    corpus: Corpus, task: StatesTask, points: int, folders: Mapping[str, Path]
) -> Clips:
    """Cut every usable recording of a corpus.

    Parameters
    ----------
    points : int
        Time points of a clip.
    folders : mapping
        cohort -> folder of the dataset that has its events.
    """
    files = {cohort: EventFiles(folder) for cohort, folder in folders.items()}
    cutter = _Cutter(task, points, corpus.info.sample_period_s, files)
    found: list[tuple] = []
    reasons: dict[int, str] = {}
    for row in corpus.table.itertuples():
        try:
            clips = cutter.cut(row)
        except _NoClip as why:
            reasons[row.Index] = str(why)
        else:
            place = (row.Index, row.cohort, row.participant_id, row.split)
            found += [(*place, *clip) for clip in clips]
    columns = ["row", "cohort", "participant_id", "split", "start", "stop", "condition"]
    table = pd.DataFrame(found, columns=columns)
    return Clips(table, pd.Series(reasons, dtype=object), cutter.notes, cutter.errors)


class _NoClip(Exception):
    """Why a recording has no clip, as a table says it of participants."""


@dataclass
class _Cutter:
    """Cuts recordings one by one and notes what it meets."""

    task: StatesTask
    points: int
    period_s: float
    files: dict[str, EventFiles]
    notes: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: dict[str, str] = field(default_factory=dict)

    def cut(self, row) -> Cut:
        """Clips of a row of the corpus, at least one."""
        if row.status != "ok":
            raise _NoClip("without a usable recording")
        clips = self._whole(row) if self.task.label == "task" else self._blocks(row)
        if not clips:
            raise _NoClip("without a clip of one condition")
        kept = drop_censored_clips(clips, row.censored)
        if not kept:
            raise _NoClip("with censored clips only")
        return kept

    def _whole(self, row) -> Cut:
        """One clip after another from the first time point; a shorter run is one clip."""
        wanted, points, length = self.task.conditions, self.points, row.num_timepoints
        if not isinstance(row.task, str) or (wanted and row.task not in wanted):
            return []
        starts = range(0, max(length - points, 0) + 1, points)
        return [(start, min(start + points, length), row.task) for start in starts]

    def _blocks(self, row) -> Cut:
        path = self.files[row.cohort].find(row.recording_id, row.source or "")
        if path is None:
            raise _NoClip("without an events.tsv")
        try:
            events = read_events(path, self.task.label, self.task.conditions)
        except BrainLMError as error:
            print(error, flush=True)  # the log has them all, the table the first
            self.errors.setdefault(row.cohort, str(error))
            raise _NoClip("with events that cannot be read") from None
        start_s = row.start_s
        if pd.isna(start_s):
            start_s = 0.0
            self.notes[row.cohort, "recordings of unknown beginning: taken as first volume"] += 1
        if events.skipped:
            words = "events without onset or duration were skipped"
            self.notes[row.cohort, words] += events.skipped
        return cut_blocks(events.blocks, row.num_timepoints, self.points, self.period_s,
                          shift_s=self.task.delay_s - start_s,
                          min_share=self.task.min_share)  # fmt: skip


def drop_censored_clips(clips: Cut, censored: Sequence[int] | None) -> Cut:
    """Clips of which at least half is there."""
    if not is_censored(censored):
        return clips
    gone = np.asarray(censored)
    return [
        (start, stop, name) for start, stop, name in clips
        if ((gone >= start) & (gone < stop)).sum() <= MOST_CENSORED * (stop - start)
    ]  # fmt: skip


def cut_blocks(
    blocks: Sequence[ConditionBlock], length: int, points: int, period_s: float,
    *, shift_s: float, min_share: float,
) -> Cut:  # fmt: skip
    """Clips of `points` time points that begin inside a block and lie in it for the most part.

    Blocks are shifted by `shift_s` (the haemodynamic delay, less the time at which the series
    begins). From the left, a clip begins wherever its first point and at least `min_share` of its
    points are of one block, and no more than the rest are of any other condition; the next begins
    after it, so that clips do not overlap.
    """
    times = np.arange(length) * period_s
    names = sorted({block.condition for block in blocks})
    inside = np.zeros((len(names), length + 1))
    for block in blocks:
        here = (times >= block.start_s + shift_s - _TOLERANCE) & (
            times < block.stop_s + shift_s - _TOLERANCE
        )
        inside[names.index(block.condition), :-1][here] = 1
    before = np.concatenate([np.zeros((len(names), 1)), inside.cumsum(1)], 1)
    clips: Cut = []
    first = 0
    while names and first + points <= length:
        share = (before[:, first + points] - before[:, first]) / points
        best = int(np.argmax(share))
        others = np.delete(share, best).max(initial=0.0)
        enough = share[best] >= min_share - _TOLERANCE and others <= 1 - min_share + _TOLERANCE
        if enough and inside[best, first]:
            clips.append((first, first + points, names[best]))
            first += points
        else:
            first += 1
    return clips


def read_clips(
    corpus: Corpus, scaling: Scaling, clips: pd.DataFrame, size: int
) -> Iterator[list[np.ndarray]]:
    """The scaled series [P, R] of clips in their order, `size` at a time; NaN is missing."""
    read = lru_cache(maxsize=2)(lambda row: corpus.scaled(row, scaling))
    spans = list(zip(clips["row"], clips["start"], clips["stop"], strict=True))
    for first in range(0, len(spans), size):
        yield [read(int(row))[a:b] for row, a, b in spans[first : first + size]]
