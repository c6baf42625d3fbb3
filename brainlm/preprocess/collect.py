"""From a chunk's parcel series to its shard and its scaling statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..cohort.index import read_entries
from ..cohort.origin import read_origin
from ..cohort.recordings import Entry
from ..cohort.splits import split_of
from ..config import Cohort, Config
from ..errors import BrainLMError
from ..shards import ParcelQuantiles, Recording, ShardInfo, write_shard
from ..steps import stages_of
from .chunk import read_stage_table
from .stages.context import Context


def write_chunk_shard(
    chunk: str, context: Context, *, workers: int = 1, log: Callable[[str], None] = print
) -> list[Recording]:
    """Write a chunk's shard and the quantile statistics of its training recordings.

    Failed recordings become rows without a series. There is one worker, whatever `workers` is.
    """
    config, cohort, atlas = context.config, context.cohort, context.atlas
    paths = config.paths
    entries = read_entries(paths.chunk_table(cohort.name, chunk), cohort.folder)
    last = stages_of(cohort.layout)[-1]
    outcomes = {
        row["recording_id"]: row
        for row in read_stage_table(paths.stage_table(cohort.name, chunk, last))
    }
    recordings = [
        _recording(entry, outcomes[entry.recording_id], cohort, config) for entry in entries
    ]
    info = ShardInfo(
        atlas=atlas.name,
        atlas_sha256=atlas.image_sha256,
        num_parcels=atlas.num_parcels,
        sample_period_s=config.preprocess.sample_period_s,
        extra=read_origin(cohort.folder),
    )
    train = (r.series for r in recordings if r.series is not None and r.split == "train")
    statistics = ParcelQuantiles.of(train, atlas.num_parcels)
    statistics.save(paths.quantiles(cohort.name, chunk))
    path = paths.shard(cohort.name, chunk)
    write_shard(path, recordings, info, dtype=config.chunks.dtype)
    usable = sum(recording.status == "ok" for recording in recordings)
    log(f"{path}: {usable} of {len(recordings)} recordings have a series")
    return recordings


def _recording(entry: Entry, outcome: dict, cohort: Cohort, config: Config) -> Recording:
    facts: dict[str, Any] = {
        "recording_id": entry.recording_id,
        "participant_id": entry.participant_id,
        "session_id": entry.session_id,
        "task": entry.task,
        "run": entry.run,
        "cohort": cohort.name,
        "split": split_of(entry.participant_id),
        "source": entry.source,
        "duration_s": outcome.get("duration_s"),
        "repetition_time_s": outcome.get("repetition_time_s"),
        "warnings": outcome.get("warnings") or None,
    }
    if outcome["status"] != "ok":
        return Recording(**facts, status=outcome["status"], reason=outcome["reason"])
    path = config.paths.series_file(cohort.name, entry.recording_id)
    try:
        with np.load(path, allow_pickle=False) as kept:
            values = {name: kept[name] for name in kept.files}
    except FileNotFoundError:
        stage = stages_of(cohort.layout)[-1]
        raise BrainLMError(
            f"{path}: not found; make it again with: brainlm {stage} --cohort {cohort.name} "
            f"--chunk {entry.chunk}"
        ) from None

    def number(name: str) -> float | None:
        value = float(values[name]) if name in values else float("nan")
        return value if np.isfinite(value) else None

    facts |= {"duration_s": number("duration_s"), "repetition_time_s": number("tr_s")}
    return Recording(
        **facts,
        series=values["series"],
        baseline=values.get("baseline"),
        coverage=values["coverage"],
        sample_period_s=number("sample_period_s"),
        start_s=number("start_s"),
        units=str(values["units"]),
        mean_fd_mm=number("mean_fd_mm"),
        mean_dvars=number("mean_dvars"),
        tsnr=number("tsnr"),
    )
