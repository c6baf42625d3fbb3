"""Many shards read as one: the metadata in a table, the series mapped from disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import BrainLMError
from .censored import holds_window, list_starts
from .release import read_places
from .scaling import Scaling
from .schema import COLUMNS
from .store import ShardInfo, read_info

_META = [name for name in COLUMNS if name not in ("series", "baseline", "coverage")]


class Corpus:
    """A list of shards.

    Attributes
    ----------
    table : DataFrame
        One row per recording, failed ones too, without the heavy columns; row order is the
        order of the shards given, then of their rows.
    info : ShardInfo
        Of the first shard; all must agree on atlas and sample period.

    places : dict
        Where in their files the series of some shards begin (by number of the shard), as the
        release in the folder `release` knows it.

    Raises
    ------
    BrainLMError
        No shard, or shards of different atlases or sample periods.
    """

    def __init__(self, paths: Iterable[str | os.PathLike], release: Path | None = None):
        self.paths = [Path(path) for path in paths]
        if not self.paths:
            raise BrainLMError("no shards: the list is empty; did any cohort produce one?")
        self.info: ShardInfo = read_info(self.paths[0])
        tables = []
        for number, path in enumerate(self.paths):
            info = read_info(path)
            for name in ("atlas_sha256", "sample_period_s"):
                if getattr(info, name) != getattr(self.info, name):
                    raise BrainLMError(
                        f"{path}: {name} is {getattr(info, name)}, but {self.paths[0]} has "
                        f"{getattr(self.info, name)}; shards of one corpus must agree"
                    )
            there = set(pq.read_schema(path).names)  # a column may be younger than the shard
            columns = [name for name in _META if name in there]
            part = pq.read_table(path, columns=columns).to_pandas().reindex(columns=_META)
            tables.append(part.assign(shard=number, row=np.arange(len(part))))
        self.places = read_places(release, self.paths) if release else {}
        self.table: pd.DataFrame = pd.concat(tables, ignore_index=True)
        self._open: dict[int, tuple[pq.ParquetFile, np.ndarray]] = {}
        self._groups: dict[tuple[int, int], pa.ChunkedArray] = {}

    def __len__(self) -> int:
        return len(self.table)

    def usable(self, *, split: str | None = None, min_timepoints: int = 1) -> np.ndarray:
        """Indices of rows with a series, optionally of one split, that hold a window of so many
        time points (see :mod:`.censored`)."""
        keep = (self.table["status"] == "ok") & holds_window(self.table, min_timepoints)
        if split is not None:
            keep &= self.table["split"] == split
        return np.flatnonzero(keep.to_numpy())

    def starts(self, index: int, window: int) -> Sequence[int]:
        """Where windows of one row may begin."""
        row = self.table.iloc[index]
        return list_starts(int(row["num_timepoints"]), row["censored"], window)

    def series(self, index: int) -> np.ndarray:
        """Stored series [T, R] of one row (stored dtype, read-only)."""
        row = self.table.iloc[index]
        if row["status"] != "ok":
            raise BrainLMError(f"{row['recording_id']}: no series, status {row['status']}")
        value = self._cell(int(row["shard"]), int(row["row"]), "series")
        return np.frombuffer(value, row["series_dtype"]).reshape(-1, self.info.num_parcels)

    def scaled(self, index: int, scaling: Scaling) -> np.ndarray:
        """Series [T, R] in float32 after robust scaling, NaN where there is no data."""
        return scaling.apply(self.series(index))

    def check(self, scaling: Scaling) -> None:
        """Refuse a scaling (hence a model) of another atlas or sample period."""
        for name in ("atlas_sha256", "sample_period_s"):
            ours, theirs = getattr(self.info, name), getattr(scaling, name)
            if ours != theirs:
                raise BrainLMError(
                    f"{self.paths[0]}: {name} is {ours}, the model's scaling has {theirs}; "
                    "make shards with the model's atlas and sample period"
                )

    def _cell(self, shard: int, row: int, column: str):
        if shard not in self._open:
            file = pq.ParquetFile(self.paths[shard], memory_map=True)
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            self._open[shard] = (file, np.cumsum([0, *sizes]))
        file, starts = self._open[shard]
        group = int(np.searchsorted(starts, row, side="right")) - 1
        key = (shard, group)
        if key not in self._groups:
            if len(self._groups) >= 64:  # bounded memory; pages stay in the file cache
                self._groups.pop(next(iter(self._groups)))
            self._groups[key] = file.read_row_group(group, columns=[column]).column(0)
        return self._groups[key][row - int(starts[group])].as_buffer()
