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
    paths: Results, cohort: str, chunks: Sequence[str], through: Mapping[str, int], made: Path
) -> list[Path]:
    """What a part of these chunks waits for: their shards that are in Snakemake's graph.

    For those that are not stands one file, as new as the newest shard of the whole cohort: it is
    waited for only if `made` is older than one of the part's own.

    Parameters
    ----------
    through : mapping
        Chunks of the cohort that are not in the graph, and when the shard of each changed, ns.
    made : Path
        What the part's job writes.
    """
    files = [paths.shard(cohort, chunk) for chunk in chunks if chunk not in through]
    newest = max((through[chunk] for chunk in chunks if chunk in through), default=0)
    if (made.stat().st_mtime_ns if made.exists() else 0) < newest:
        seal = paths.seal(cohort)
        files.append(seal if seal.exists() else paths.finished(cohort))
    return files
