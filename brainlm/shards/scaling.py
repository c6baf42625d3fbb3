"""Robust scaling: per-parcel median and IQR across subjects, from mergeable statistics."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import BrainLMError
from ..files import atomic_path, read_json, write_json

#: |quantile - exact| <= RELATIVE_TOLERANCE * |exact| (a bin's width)
RELATIVE_TOLERANCE = 2.0**-7
_BINS = 1 << 16
_AMPLITUDE = 50.0  # a hundred times the usual size of a scaled value


def _bin_of(values: np.ndarray) -> np.ndarray:
    """Order-preserving 16-bit code of float32 values: their upper 16 bits, sign folded."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16
    negative = bits >= 0x8000
    return np.where(negative, 0xFFFF - bits, bits + 0x8000).astype(np.int64)


def _edge_of(code: np.ndarray) -> np.ndarray:
    """Smallest magnitude end of a bin (its value nearest to zero)."""
    code = np.asarray(code, np.int64)
    bits = np.where(code >= 0x8000, code - 0x8000, 0xFFFF - code).astype(np.uint32) << 16
    return bits.view(np.float32).astype(np.float64)


@dataclass
class ParcelQuantiles:
    """Counts of values per parcel on the bfloat16 grid: exact to merge, 0.8 % fine.

    The grid needs no range to be chosen beforehand and is the same for every shard, so adding
    the counts of two shards equals counting both together, in any order.

    Attributes
    ----------
    counts : dict
        Sparse: sorted flat codes ``parcel * 65536 + bin`` and their counts.
    """

    num_parcels: int
    codes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    num_recordings: int = 0

    @classmethod
    def of(cls, series: Iterable[np.ndarray], num_parcels: int) -> ParcelQuantiles:
        """Count finite values of series [T, R]; NaN (no data) is left out."""
        flat: list[np.ndarray] = []
        recordings = 0
        for array in series:
            values = np.asarray(array, np.float32)
            if values.shape[1] != num_parcels:
                raise BrainLMError(f"expected {num_parcels} parcels, found {values.shape[1]}")
            code = _bin_of(values) + _BINS * np.arange(num_parcels)
            flat.append(code[np.isfinite(values)])
            recordings += 1
        if not flat:
            return cls(num_parcels)
        codes, counts = np.unique(np.concatenate(flat), return_counts=True)
        return cls(num_parcels, codes, counts.astype(np.int64), recordings)

    @classmethod
    def merge(cls, parts: Iterable[ParcelQuantiles]) -> ParcelQuantiles:
        """The statistics of everything that the parts have seen."""
        dense, recordings, num_parcels = None, 0, 0
        for part in parts:
            if dense is None:
                num_parcels = part.num_parcels
                dense = np.zeros(num_parcels * _BINS, np.int64)
            elif part.num_parcels != num_parcels:
                raise BrainLMError(
                    f"cannot merge statistics of {part.num_parcels} and {num_parcels} parcels"
                )
            dense[part.codes] += part.counts  # codes are unique within a part
            recordings += part.num_recordings
        if dense is None:
            raise BrainLMError("no statistics to merge: no shard of a reference cohort was given")
        codes = np.flatnonzero(dense)
        return cls(num_parcels, codes, dense[codes], recordings)

    def quantile(self, q: float) -> np.ndarray:
        """[R] the q-quantile of each parcel, NaN where it has no values."""
        out = np.full(self.num_parcels, np.nan)
        starts = np.searchsorted(self.codes, np.arange(self.num_parcels + 1) * _BINS)
        for parcel in range(self.num_parcels):
            part = slice(starts[parcel], starts[parcel + 1])
            counts = self.counts[part]
            if counts.size:
                out[parcel] = _quantile(self.codes[part] - parcel * _BINS, counts, q)
        return out

    def save(self, path: str | os.PathLike) -> None:
        table = pa.table({
            "parcel": (self.codes // _BINS).astype(np.uint16),
            "bin": (self.codes % _BINS).astype(np.uint16),
            "count": self.counts,
        }).replace_schema_metadata({
            "brainlm.num_parcels": str(self.num_parcels),
            "brainlm.num_recordings": str(self.num_recordings),
        })  # fmt: skip
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @classmethod
    def load(cls, path: str | os.PathLike) -> ParcelQuantiles:
        try:
            table = pq.read_table(Path(path))
            metadata = table.schema.metadata
            count = int(metadata[b"brainlm.num_parcels"])
        except FileNotFoundError:
            raise BrainLMError(f"{path}: scaling statistics not found") from None
        except (pa.ArrowInvalid, OSError, KeyError, TypeError) as error:
            raise BrainLMError(f"{path}: not scaling statistics ({error})") from None
        codes = table["parcel"].to_numpy().astype(np.int64) * _BINS + table["bin"].to_numpy()
        counts = table["count"].to_numpy().astype(np.int64)
        return cls(count, codes, counts, int(metadata[b"brainlm.num_recordings"]))


def _quantile(bins: np.ndarray, counts: np.ndarray, q: float) -> float:
    """Linear-interpolation quantile (numpy's default) of values known by their bins."""
    rank = q * (counts.sum() - 1)
    last = np.cumsum(counts)

    def value(index: int) -> float:
        where = int(np.searchsorted(last, index, side="right"))
        inner, outer = sorted((_edge_of(bins[where]), _far_edge_of(bins[where])), key=abs)
        ahead = index - (last[where] - counts[where]) + 0.5  # values spread evenly over the bin
        share = ahead / counts[where]
        low, high = sorted((inner, outer))
        return float(low + share * (high - low))

    low = int(np.floor(rank))
    weight = rank - low
    first = value(low)
    return first if weight == 0 else (1 - weight) * first + weight * value(low + 1)


def _far_edge_of(code: np.ndarray) -> np.ndarray:
    """The bin's end away from zero."""
    code = np.asarray(code, np.int64)
    return _edge_of(np.where(code >= 0x8000, code + 1, code - 1))


@dataclass(frozen=True)
class Scaling:
    """The frozen artefact: ``(x - median) / IQR`` per parcel, travelling with every model.

    Attributes
    ----------
    median, iqr : ndarray [R]
        NaN where no training subject had data. A parcel whose IQR is 0 or NaN is *unusable*:
        :meth:`apply` gives NaN for it, as for a parcel outside the field of view. Series are
        deviations from the parcel's own mean, so the grid's relative fineness is ample.
    """

    median: np.ndarray
    iqr: np.ndarray
    atlas: str
    atlas_sha256: str
    sample_period_s: float
    num_recordings: int
    units: str = "percent"
    release: str = ""

    @classmethod
    def fit(cls, statistics: ParcelQuantiles, **facts) -> Scaling:
        """Median and IQR from merged statistics; `facts` are the remaining attributes."""
        low, median, high = (statistics.quantile(q) for q in (0.25, 0.5, 0.75))
        iqr = high - low
        # Quartiles in one bin cannot be told from a constant parcel.
        unresolved = RELATIVE_TOLERANCE * np.fmax(np.abs(low), np.abs(high)) + 1e-30
        iqr = np.where(iqr <= unresolved, 0.0, iqr)
        facts.setdefault("num_recordings", statistics.num_recordings)
        return cls(median=median, iqr=iqr, **facts)

    @property
    def num_parcels(self) -> int:
        return len(self.median)

    @property
    def usable(self) -> np.ndarray:
        """[R] bool: parcels with a finite median and a positive IQR."""
        return np.isfinite(self.median) & np.isfinite(self.iqr) & (self.iqr > 0)

    def apply(self, series: np.ndarray) -> np.ndarray:
        """Scale a series [T, R] to float32; unusable and missing parcels become NaN."""
        if series.shape[-1] != self.num_parcels:
            raise BrainLMError(
                f"this scaling is for {self.num_parcels} parcels ({self.atlas}), the series has "
                f"{series.shape[-1]}"
            )
        iqr = np.where(self.usable, self.iqr, np.nan).astype(np.float32)
        return (np.asarray(series, np.float32) - self.median.astype(np.float32)) / iqr

    def check_amplitude(self, scaled: np.ndarray) -> None:
        """Refuse a scaled series [T, R] that cannot be in these units: it is many times too
        large or too small (half of the values of an ordinary one lie within half an IQR).

        Raises
        ------
        BrainLMError
        """
        known = scaled[:, np.isfinite(scaled).any(0)]
        if not known.size:
            return
        size = float(np.nanmedian(np.abs(known - np.nanmedian(known, 0))))
        if not 1 / _AMPLITUDE <= size <= _AMPLITUDE:
            raise BrainLMError(
                f"half of the values are further than {size:.3g} interquartile ranges (of the "
                "model's training data) from their median, where about 0.5 is usual: the series "
                f"are not in {self.units!r} units"
            )

    def save(self, path: str | os.PathLike) -> None:
        def plain(values):
            return [None if not np.isfinite(v) else float(v) for v in values]

        facts = {k: v for k, v in self.__dict__.items() if k not in ("median", "iqr")}
        facts |= {"median": plain(self.median), "iqr": plain(self.iqr)}
        write_json(path, {"kind": "brainlm.scaling", **facts})

    @classmethod
    def load(cls, path: str | os.PathLike) -> Scaling:
        values = read_json(path)
        if not isinstance(values, dict) or values.pop("kind", None) != "brainlm.scaling":
            raise BrainLMError(f"{path}: expected a scaling artefact (kind: brainlm.scaling)")
        for name in ("median", "iqr"):
            values[name] = np.array(
                [np.nan if v is None else v for v in values[name]], dtype=np.float64
            )
        return cls(**values)
