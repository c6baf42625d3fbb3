"""A finished cohort that is not looked at any more: one file stands for all of its shards.

``watch: sealed`` in config.yaml seals a cohort as it is once all its shards are made; its chunks
then leave the graph, whatever becomes of its folder, of the settings or of the code. Any other
value unseals it.
"""

from __future__ import annotations

from pathlib import Path

from ..paths import Results
from ..tables import read_tsv, write_tsv


def is_sealed(results: Path, cohort: str) -> bool:
    return Results(results).seal(cohort).exists()


def seal(results: Path, cohort: str) -> int:
    """Write the list of the cohort's shards and return 0, or the number of chunks not made yet.

    The file gets the newest shard's time, so that nothing made from the shards is outdated by it.
    """
    if is_sealed(results, cohort):
        return 0
    paths = Results(results)
    rows, newest, missing = [], 0, 0
    for chunk in paths.list_chunks(cohort):
        shard = paths.shard(cohort, chunk)
        pages = paths.stage_table(cohort, chunk, "pages")
        table = paths.chunk_table(cohort, chunk)
        if not (_is_current(shard, table) and _is_current(pages, table)):
            missing += 1
            continue
        status = shard.stat()
        rows.append((shard.name, status.st_size, status.st_mtime_ns))
        newest = max(newest, status.st_mtime_ns)
    if not missing:
        write_tsv(paths.seal(cohort), ("shard", "size", "mtime_ns"), rows, mtime_ns=newest)
    return missing


def read_seal(results: Path, cohort: str) -> dict[str, int]:
    """Chunks of a sealed cohort, and when the shard of each changed, ns."""
    rows = read_tsv(Results(results).seal(cohort), "shard", "mtime_ns").rows
    return {shard.removesuffix(".parquet"): int(mtime_ns) for shard, _, mtime_ns in rows}


def unseal(results: Path, cohort: str) -> None:
    Results(results).seal(cohort).unlink(missing_ok=True)


def _is_current(made: Path, table: Path) -> bool:
    return made.exists() and made.stat().st_mtime_ns >= table.stat().st_mtime_ns
