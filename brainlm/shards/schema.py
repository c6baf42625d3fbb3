"""Columns of a shard, with their units."""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = "1"

#: column -> (type, meaning)
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "recording_id": (pa.string(), "BIDS name without suffix, unique within a cohort"),
    "participant_id": (pa.string(), "sub-<label>; splits are by this"),
    "session_id": (pa.string(), "ses-<label> or null"),
    "task": (pa.string(), "BIDS task label or null"),
    "run": (pa.string(), "BIDS run label or null"),
    "cohort": (pa.string(), "cohort name in config.yaml"),
    "split": (pa.string(), "train, validation or test: a stable hash of participant_id"),
    "status": (pa.string(), "ok, or why there is no series (brainlm.errors.STATUSES)"),
    "reason": (pa.string(), "what was expected and found, when status is not ok"),
    "warnings": (
        pa.list_(pa.string()),
        "what was odd but usable, each as kind: words; null without, and in shards of before 2027",
    ),
    "repetition_time_s": (pa.float64(), "s, of the recording as acquired"),
    "sample_period_s": (pa.float64(), "s, of the series stored here"),
    "duration_s": (pa.float64(), "s, of the recording as acquired (known for short ones too)"),
    "start_s": (pa.float64(), "s, the first time point after the first volume; null if unknown"),
    "num_timepoints": (pa.int32(), "T; 0 when there is no series"),
    "series_dtype": (pa.string(), "of this row's series: float16 or float32"),
    "units": (pa.string(), "of the series: percent (of the parcel's mean) or as delivered"),
    "series": (
        pa.large_binary(),
        "C order [T, R], each parcel about its own mean; NaN: a parcel without data (a column) or "
        "a censored time point (a row)",
    ),
    "censored": (
        pa.list_(pa.int32()),
        "time points at which every parcel is NaN: the head moved; null without, and in shards of "
        "before 2027",
    ),
    "baseline": (pa.list_(pa.float32()), "[R] parcel means, scanner units; null if unknown"),
    "coverage": (pa.list_(pa.float32()), "[R] share of each parcel inside the field of view"),
    "mean_fd_mm": (pa.float64(), "mm, mean framewise displacement (Power)"),
    "mean_dvars": (pa.float64(), "percent, mean DVARS before denoising"),
    "tsnr": (pa.float64(), "median temporal signal-to-noise over brain voxels"),
    "source": (pa.string(), "the file it came from, relative to the cohort's folder"),
}


def shard_schema(metadata: dict[str, str] | None = None) -> pa.Schema:
    """The Arrow schema, each field carrying its meaning."""
    fields = [
        pa.field(name, kind, metadata={"description": meaning})
        for name, (kind, meaning) in COLUMNS.items()
    ]
    return pa.schema(fields, metadata=metadata)
