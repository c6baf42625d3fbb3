"""A large cohort is embedded and predicted in parts, a job each; one more puts them together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import BrainLMError
from ..paths import Results

#: chunks of a part; they are for life, so a cohort that grows changes its last part only
_CHUNKS = 32


def list_parts(chunks: Iterable[str]) -> dict[str, list[str]]:
    """Chunks by part, of a cohort that is too large for one job; nothing for any other."""
    parts: dict[str, list[str]] = {}
    for chunk in sorted(chunks):
        parts.setdefault(f"{int(chunk) // _CHUNKS:03d}", []).append(chunk)
    return parts if len(parts) > 1 else {}


def list_part_shards(paths: Results, cohort: str, part: str) -> list[Path]:
    """The shards of a part.

    Raises
    ------
    BrainLMError
        The cohort has no such part.
    """
    parts = list_parts(paths.list_chunks(cohort))
    if part not in parts:
        known = ", ".join(parts) or "none: one job takes all of it"
        raise BrainLMError(f"{cohort}: no part {part!r}; its parts: {known}")
    return [paths.shard(cohort, chunk) for chunk in parts[part]]


def list_part_inputs(
    paths: Results, cohort: str, part: str, graph: Mapping[str, Sequence[str]], made: Path
) -> list[Path]:
    """What a part waits for: its shards that are in Snakemake's graph.

    For those that have left the graph stands one file, as new as the newest shard of the whole
    cohort: it is waited for only if `made` is older than one of the part's own.

    Parameters
    ----------
    graph : mapping
        Chunks in the graph by cohort; a sealed cohort is not in it.
    made : Path
        What the part's job writes.
    """
    shards = list_part_shards(paths, cohort, part)
    files = [shard for shard in shards if shard.stem in set(graph.get(cohort, ()))]
    through = max((_changed_ns(shard) for shard in shards if shard not in files), default=0)
    if _changed_ns(made) < through:
        files.append(paths.finished(cohort) if cohort in graph else paths.seal(cohort))
    return files


def _changed_ns(path: Path) -> int:
    """When a file changed last; 0 where there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0
