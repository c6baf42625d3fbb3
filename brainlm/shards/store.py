"""Write and read one shard."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import __version__
from ..errors import BrainLMError
from ..files import atomic_path
from .censored import find_censored
from .schema import COLUMNS, SCHEMA_VERSION, shard_schema

#: Largest relative error of rounding to float16: half of the last of 11 bits.
_ROUNDING = 2.0**-11


@dataclass(frozen=True)
class Recording:
    """One row of a shard; see :data:`brainlm.shards.schema.COLUMNS` for units.

    ``series`` is a float array [T, R] with NaN columns where a parcel has no data and NaN rows
    where time is censored, or None when ``status`` is not ``"ok"``; ``censored`` [C] names those
    rows, None without (of a recording to write they are found in the series).
    """

    recording_id: str
    participant_id: str
    cohort: str
    split: str
    session_id: str | None = None
    task: str | None = None
    run: str | None = None
    status: str = "ok"
    reason: str | None = None
    warnings: list[str] | None = None
    repetition_time_s: float | None = None
    sample_period_s: float | None = None
    duration_s: float | None = None
    start_s: float | None = None
    units: str | None = None
    series: np.ndarray | None = None
    censored: np.ndarray | None = None
    baseline: np.ndarray | None = None
    coverage: np.ndarray | None = None
    mean_fd_mm: float | None = None
    mean_dvars: float | None = None
    tsnr: float | None = None
    source: str | None = None


@dataclass(frozen=True)
class ShardInfo:
    """What a shard says of itself: the Parquet file metadata."""

    atlas: str
    atlas_sha256: str
    num_parcels: int
    sample_period_s: float
    schema_version: str = SCHEMA_VERSION
    pipeline_version: str = __version__
    extra: dict[str, str] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        plain = {f.name: str(getattr(self, f.name)) for f in fields(self) if f.name != "extra"}
        return {**{f"brainlm.{key}": value for key, value in plain.items()}, **self.extra}


def _encode(recording: Recording, info: ShardInfo, dtype: str) -> dict:
    row = {name: getattr(recording, name, None) for name in COLUMNS}
    row.update(num_timepoints=0, series_dtype=dtype, series=None, censored=None)
    for name in ("baseline", "coverage"):
        value = getattr(recording, name)
        row[name] = None if value is None else np.asarray(value, np.float32)
    if recording.series is None:
        if recording.status == "ok":
            raise ValueError(f"{recording.recording_id}: status ok without a series")
        return row
    series = np.asarray(recording.series)
    if series.ndim != 2 or series.shape[1] != info.num_parcels:
        raise BrainLMError(
            f"{recording.recording_id}: expected [T, {info.num_parcels}] values for atlas "
            f"{info.atlas}, found shape {list(series.shape)}"
        )
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(series, dtype=dtype)
    if dtype != "float32" and not _holds(stored, series):  # of delivered units
        dtype = "float32"
        stored = np.ascontiguousarray(series, dtype=dtype)
    row.update(num_timepoints=len(stored), series=stored.tobytes(), series_dtype=dtype)
    censored = find_censored(series)
    row["censored"] = censored if len(censored) else None
    return row


def _holds(stored: np.ndarray, series: np.ndarray) -> bool:
    """Whether every parcel keeps its values, large and small, as well as rounding to 11 bits."""
    with np.errstate(invalid="ignore"):
        error = np.nansum((stored.astype(np.float64) - series) ** 2, axis=0)
    power = np.nansum(series.astype(np.float64) ** 2, axis=0)
    return bool((error <= _ROUNDING**2 * power).all())


def write_shard(
    path: str | os.PathLike,
    recordings: Iterable[Recording],
    info: ShardInfo,
    *,
    dtype: str = "float16",
) -> None:
    """Write one shard; it appears whole or not at all.

    float16 keeps 11 bits: on series in percent of the parcel mean the rounding error is below
    0.05 % of the value (measured in tests/unit/test_shards.py), a hundredth of the scanner noise,
    at half the disk and twice the reading speed of float32. A series with values too large or too
    small for float16 is kept as float32, whatever `dtype`.

    Raises
    ------
    BrainLMError
        A series of another width than ``info.num_parcels``, a recording named twice, or a full
        disk (nothing is left behind).
    """
    rows = [_encode(recording, info, dtype) for recording in recordings]
    ids = [row["recording_id"] for row in rows]
    if len(set(ids)) < len(ids):
        twice = sorted({i for i in ids if ids.count(i) > 1})
        raise BrainLMError(f"{path}: recording named twice: {', '.join(twice[:5])}")
    table = pa.Table.from_pylist(rows, schema=shard_schema(info.to_metadata()))
    try:
        with atomic_path(path) as temporary:
            # Noise hardly compresses and compressed pages cannot be mapped: the series stay plain.
            pq.write_table(table, temporary, row_group_size=16, compression="NONE",
                           use_dictionary=["cohort", "split", "status", "units", "series_dtype"],
                           write_statistics=False)  # fmt: skip
    except OSError as error:
        raise BrainLMError(
            f"{path}: the shard could not be written ({error.strerror or error}); nothing was "
            "kept; free some space and run again"
        ) from None


def locate_series(path: str | os.PathLike) -> np.ndarray:
    """Where in a shard's file each row's series begins: bytes [rows], -1 where there is none.

    The series column is stored plain, so a series is a run of bytes: found by its length prefix
    and first bytes, then compared in full. All are -1 in a shard that another program compressed.
    """
    file = pq.ParquetFile(path, memory_map=True)
    places = np.full(file.metadata.num_rows, -1, np.int64)
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        row = position = 0
        for group in range(file.num_row_groups):
            for value in file.read_row_group(group, columns=["series"]).column(0):
                if value.is_valid:
                    data = memoryview(value.as_buffer()).cast("B")
                    head = len(data).to_bytes(4, "little") + data[:64].tobytes()
                    position = raw.find(head, position)
                    if position < 0 or raw[position + 4 : position + 4 + len(data)] != data:
                        return np.full(len(places), -1, np.int64)
                    places[row] = position + 4
                    position += 4 + len(data)
                row += 1
    return places


def read_info(path: str | os.PathLike) -> ShardInfo:
    """Metadata of a shard.

    Raises
    ------
    BrainLMError
        Not a shard, or one of another schema version.
    """
    try:
        raw = pq.read_schema(path).metadata or {}
    except FileNotFoundError:
        raise BrainLMError(f"{path}: shard not found") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise BrainLMError(f"{path}: not a readable Parquet file ({error})") from None
    found = {key.decode(): value.decode() for key, value in raw.items()}
    version = found.get("brainlm.schema_version")
    if version != SCHEMA_VERSION:
        raise BrainLMError(
            f"{path}: expected a shard of schema version {SCHEMA_VERSION}, found {version}; "
            "write it again with this version of the pipeline"
        )
    return ShardInfo(
        atlas=found["brainlm.atlas"],
        atlas_sha256=found["brainlm.atlas_sha256"],
        num_parcels=int(found["brainlm.num_parcels"]),
        sample_period_s=float(found["brainlm.sample_period_s"]),
        pipeline_version=found["brainlm.pipeline_version"],
        extra={k: v for k, v in found.items() if not k.startswith(("brainlm.", "ARROW"))},
    )


def read_shard(path: str | os.PathLike) -> list[Recording]:
    """All rows of a shard, series decoded to their stored dtype [T, R]."""
    info = read_info(path)
    out = []
    for row in pq.read_table(Path(path)).to_pylist():
        series, count = row["series"], row.pop("num_timepoints")
        dtype = row.pop("series_dtype")
        if series is not None:
            series = np.frombuffer(series, dtype).reshape(count, info.num_parcels)
        for name, kind in (("baseline", "f4"), ("coverage", "f4"), ("censored", "i4")):
            if row.get(name) is not None:
                row[name] = np.asarray(row[name], kind)
        out.append(Recording(**{**row, "series": series}))
    return out
