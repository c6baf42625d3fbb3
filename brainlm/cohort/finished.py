"""Chunks that are through leave Snakemake's graph until something of them changes.

Snakemake looks at each job of its graph anew at every run. Of a chunk in which a run left nothing
to do, the next plan only compares: are its table and all that was made from it the files they
were (size and time), and the settings what they were? Then one file stands for its shard, as for a
sealed cohort; else the chunk is in the graph again, and Snakemake decides.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ..errors import BrainLMError
from ..files import write_text
from ..paths import Results
from ..tables import format_tsv, parse_tsv

_THREADS = 16
_HEADER = ("chunk", "files", "shard_mtime_ns")
Row = tuple[str, ...]  # the cells of a row, in the order of _HEADER


def read_finished(results: Path, cohort: str) -> dict[str, int]:
    """Chunks that are not in the graph, as :func:`strike_changed` left them, and when the shard of
    each changed, ns."""
    return {row[0]: int(row[2]) for row in _read(Results(results).finished(cohort))[1]}


def strike_changed(results: Path, cohort: str, stages: Sequence[str], settings: str) -> None:
    """Strike out the chunks of which a file has changed; all of them if the settings have.

    Parameters
    ----------
    stages : sequence of str
        The stages that write a table per chunk.
    settings : str
        All settings and code versions that the cohort's chunks depend on.
    """
    path = Results(results).finished(cohort)
    known, rows = _read(path)
    same = _same(results, cohort, stages, rows) if known == _digest(settings) else []
    if same != rows or not rows:  # no rows: there may be a file of another form
        _write(path, known, same)


def note_finished(
    results: Path, cohort: str, stages: Sequence[str], settings: str, chunks: Iterable[str]
) -> None:
    """Add chunks in which nothing is left to do."""
    path = Results(results).finished(cohort)
    known, rows = _read(path)
    kept = {row[0]: row for row in rows} if known == _digest(settings) else {}
    new = _look(results, cohort, stages, chunks)
    kept |= {row[0]: row for row in new if row}
    _write(path, _digest(settings), [kept[chunk] for chunk in sorted(kept)])


def _same(results: Path, cohort: str, stages: Sequence[str], rows: list[Row]) -> list[Row]:
    now = _look(results, cohort, stages, [row[0] for row in rows])
    return [row for row, other in zip(rows, now, strict=True) if row == other]


def _look(results: Path, cohort: str, stages: Sequence[str], chunks: Iterable[str]):
    """A row per chunk; None where a file is not there. In threads: file systems are slow."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(partial(_row, results, cohort, stages), chunks))


def _row(results: Path, cohort: str, stages: Sequence[str], chunk: str) -> Row | None:
    paths = Results(results)
    tables = [paths.stage_table(cohort, chunk, stage) for stage in (*stages, "pages")]
    made = [paths.shard(cohort, chunk), paths.quantiles(cohort, chunk), *tables]
    try:
        stats = [os.stat(path) for path in (*made, paths.chunk_table(cohort, chunk))]
    except OSError:
        return None
    state = ",".join(f"{status.st_size}:{status.st_mtime_ns}" for status in stats)
    return chunk, _digest(state), str(stats[0].st_mtime_ns)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _read(path: Path) -> tuple[str, list[Row]]:
    """The settings' digest and the rows; nothing where there is no file, or a foreign one."""
    try:
        first, _, text = path.read_text(encoding="utf-8").partition("\n")
        table = parse_tsv(text, path)
    except (FileNotFoundError, ValueError, BrainLMError):
        return "", []
    if not first.startswith("# settings ") or table.columns != _HEADER:
        return "", []
    return first.removeprefix("# settings "), [tuple(row) for row in table.rows]


def _write(path: Path, settings: str, rows: list[Row]) -> None:
    """Whole, with the newest shard's time: nothing made from the shards is outdated by it."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    text = f"# settings {settings}\n{format_tsv(_HEADER, rows, path)}"
    write_text(path, text, mtime_ns=max(int(row[2]) for row in rows))
