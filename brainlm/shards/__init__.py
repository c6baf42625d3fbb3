"""The contract between preprocessing and modelling: Parquet shards of parcel time series.

Legend, used everywhere: B batch, R parcels, T time points, P patch length, N tokens, D width.
Series are ``[T, R]`` on disk and ``[B, R, T]`` in the model.

One row is one recording. To decode a row without this package::

    row = pandas.read_parquet("shard.parquet").iloc[0]
    series = numpy.frombuffer(row.series, row.series_dtype).reshape(row.num_timepoints, -1)

NaN stands for what was not measured, in either type: a column is a parcel without data, a row a
time point that was censored (``preprocess.censor``). Time is never closed up: row t is t sample
periods after the first. A value is missing for one of the two reasons, never by itself.
"""

from .corpus import Corpus
from .scaling import ParcelQuantiles, Scaling
from .schema import SCHEMA_VERSION, shard_schema
from .store import Recording, ShardInfo, read_info, read_shard, write_shard

__all__ = [
    "SCHEMA_VERSION", "Corpus", "ParcelQuantiles", "Recording", "Scaling", "ShardInfo",
    "read_info", "read_shard", "shard_schema", "write_shard",
]  # fmt: skip
