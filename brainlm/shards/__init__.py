"""The contract between preprocessing and modelling: Parquet shards of parcel time series.

Legend, used everywhere: B batch, R parcels, T time points, P patch length, N tokens, D width.
Series are ``[T, R]`` on disk and ``[B, R, T]`` in the model.

One row is one recording. To decode a row without this package::

    row = pandas.read_parquet("shard.parquet").iloc[0]
    series = numpy.frombuffer(row.series, row.series_dtype).reshape(row.num_timepoints, -1)
"""

from .corpus import Corpus
from .scaling import ParcelQuantiles, Scaling
from .schema import SCHEMA_VERSION, shard_schema
from .store import Recording, ShardInfo, read_info, read_shard, write_shard

__all__ = [
    "SCHEMA_VERSION", "Corpus", "ParcelQuantiles", "Recording", "Scaling", "ShardInfo",
    "read_info", "read_shard", "shard_schema", "write_shard",
]  # fmt: skip
