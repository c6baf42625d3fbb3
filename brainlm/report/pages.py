"""The pages of a chunk's recordings: drawn where and when the chunk is computed, not at the end.

A page costs seconds, so 77,000 of them are the cluster's work, a chunk at a time; the study report
only links to them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from ..atlas import Atlas
from ..cohort.recordings import Entry
from ..config import Cohort
from ..paths import Results
from ..preprocess.chunk import (
    BoundStep,
    Outcome,
    read_stage_table,
    run_task,
)
from ..preprocess.stages.context import Context
from ..shards import Corpus
from ..steps import STEPS, is_raw, outcome_recipe, read_first_atlas, stages_of
from .pictures import load_slices
from .recording import make_recording_page
from .site import make_environment, write_site


def write_chunk_pages(
    chunk: str, context: Context, *, workers: int = 1, log: Callable[[str], None] = print
) -> list[Outcome]:
    """Write the page of each recording for a chunk whose shard is there.

    A page that cannot be drawn is a row of the chunk's ``pages.tsv``; no data depend on it.
    """
    config, cohort, atlas = context.config, context.cohort, context.atlas
    paths = config.paths
    corpus = Corpus([paths.shard(cohort.name, chunk)])
    index = {name: i for i, name in enumerate(corpus.table["recording_id"])}
    figures = _read_figures(paths, cohort, chunk)
    recipe = outcome_recipe("pages", config, cohort, atlas, read_first_atlas(config))

    def key(entry: Entry) -> str:
        found = figures.get(entry.recording_id, {})
        found = {k: v for k, v in found.items() if not k.endswith("_s")}  # times differ
        made_from = [recipe, found, entry.size, entry.mtime_ns]
        return hashlib.sha256(json.dumps(made_from, default=str).encode()).hexdigest()

    def run(entry: Entry) -> dict[str, Any]:
        name = entry.recording_id
        page = make_recording_page(config, atlas, corpus, index[name], figures.get(name, {}))
        write_site([page], paths.recording_pages)
        return {"page_kb": paths.recording_page(cohort.name, name).stat().st_size // 1000}

    task = BoundStep(
        step=STEPS["pages"],
        context=context,
        key=key,
        run=run,
        prepare=lambda: _prepare(atlas, raw=is_raw(cohort)),
    )
    return run_task(task, chunk, {}, workers=workers, log=log)


def _read_figures(paths: Results, cohort: Cohort, chunk: str) -> dict[str, dict[str, Any]]:
    """What the stages measured for each recording; later stages win."""
    figures: dict[str, dict[str, Any]] = {}
    for stage in stages_of(cohort.layout):
        path = paths.stage_table(cohort.name, chunk, stage)
        for row in read_stage_table(path) if path.exists() else []:
            known = {k: v for k, v in row.items() if v is not None and k != "seconds"}
            figures.setdefault(row["recording_id"], {}).update(known)
    return figures


def _prepare(atlas: Atlas, *, raw: bool) -> None:
    """Load what all pages share, once, before the recordings' processes are forked."""
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401
    import nibabel  # noqa: F401
    import PIL.Image  # noqa: F401

    from ..preprocess.denoise import aroma  # noqa: F401
    from ..preprocess.normalise import warp  # noqa: F401

    make_environment()
    load_slices(atlas, raw=raw)
