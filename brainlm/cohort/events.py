"""What participants did or saw during a run: the ``events.tsv`` of BIDS, as blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BrainLMError
from ..tables import MISSING, read_tsv
from .layouts.base import identify_run, parse_name

#: Events of one condition with shorter gaps between them are one block, s: stimuli of a block
#: follow each other within a second or two, blocks rest for longer.
MERGE_S = 4.0
_SUFFIX = "events"


@dataclass(frozen=True)
class ConditionBlock:
    """A time in which one condition held, in seconds after the first acquired volume."""

    condition: str
    start_s: float
    stop_s: float


@dataclass(frozen=True)
class Events:
    """What an ``events.tsv`` holds.

    Attributes
    ----------
    blocks : list of ConditionBlock
        By start. Blocks of different conditions may overlap, as their events do.
    skipped : int
        Events of a condition whose onset or duration is not known (``n/a``).
    """

    blocks: list[ConditionBlock]
    skipped: int


@dataclass
class EventFiles:
    """Where the events of a BIDS dataset's runs are.

    Attributes
    ----------
    folder : Path
        Of the dataset.
    """

    folder: Path
    _names: dict[Path, list[str]] = field(default_factory=dict)  # of the folders looked at

    def find(self, recording_id: str, source: str) -> Path | None:
        """The events of a run: in the folder of its file or, as BIDS inherits, above it.

        A file counts if all entities of its name are the run's; the nearest folder has the say,
        and in it the name with the most entities.

        Parameters
        ----------
        recording_id : str
            ``sub-01_task-faces_run-1``.
        source : str
            The run's image or series, relative to its cohort's folder; it need not be of this
            dataset.
        """
        named, _ = parse_name(Path(source).name)
        own, _ = parse_name(recording_id)
        run = {**named, **own} | identify_run(own)
        for folder in self._folders(source, own):
            found = [name for name in self._list(folder) if _applies(name, run)]
            if found:
                return folder / max(found, key=lambda name: (name.count("_"), name))
        return None

    def _folders(self, source: str, own: dict[str, str]) -> Iterator[Path]:
        """Next to the file, where a raw run would be, and above, the deepest first."""
        parts = [f"{key}-{own[key]}" for key in ("sub", "ses") if key in own]
        places = [self.folder.joinpath(*parts, "func"), (self.folder / source).parent]
        chains = [p for place in places for p in (place, *place.parents)]
        inside = [p for p in dict.fromkeys(chains) if p == self.folder or self.folder in p.parents]
        yield from sorted(inside, key=lambda path: -len(path.parts))

    def _list(self, folder: Path) -> list[str]:
        if folder not in self._names:
            found = folder.glob(f"*{_SUFFIX}.tsv") if folder.is_dir() else ()
            self._names[folder] = sorted(path.name for path in found)
        return self._names[folder]


def _applies(name: str, run: dict[str, str]) -> bool:
    entities, suffix = parse_name(name)
    return suffix == _SUFFIX and (entities | identify_run(entities)).items() <= run.items()


def read_events(path: Path, column: str = "trial_type", conditions: Iterable[str] = ()) -> Events:
    """Events in any order as blocks: those of a condition with gaps below :data:`MERGE_S` s.

    Parameters
    ----------
    column : str
        Which names the conditions; ``n/a`` is none.
    conditions : iterable of str
        Which are wanted; all if there are none.

    Raises
    ------
    BrainLMError
        A table that cannot be read or lacks a column, an onset or duration that is no number, or
        a negative duration.
    """
    wanted = set(conditions)
    times: dict[str, list[tuple[float, float]]] = {}
    skipped = 0
    for line, row in enumerate(read_tsv(path, "onset", "duration", column).records(), start=2):
        condition = row[column].strip()
        if condition in ("", MISSING) or (wanted and condition not in wanted):
            continue
        onset, duration = (_seconds(path, line, name, row[name]) for name in ("onset", "duration"))
        if onset is None or duration is None:
            skipped += 1
            continue
        if duration < 0:
            raise BrainLMError(
                f"{path}: line {line}: expected a duration of 0 s or more, found {duration:g}; "
                "correct it, or write n/a where it is not known"
            )
        times.setdefault(condition, []).append((onset, onset + duration))
    blocks = [
        ConditionBlock(name, *span) for name, spans in times.items() for span in _merge(spans)
    ]
    return Events(sorted(blocks, key=lambda block: (block.start_s, block.condition)), skipped)


def _seconds(path: Path, line: int, name: str, cell: str) -> float | None:
    if cell.strip() == MISSING:
        return None
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BrainLMError(
            f"{path}: line {line}: expected {name} in seconds or n/a, found {cell!r}; correct it"
        )
    return value


def _merge(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, stop in sorted(spans):
        if merged and start - merged[-1][1] < MERGE_S:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged
