# The contract: one Parquet shard per chunk, and its mergeable scaling statistics.


use rule chunk as shard with:
    input:
        last_stage,
    output:
        shard=PATHS.shard(*CHUNK),
        quantiles=PATHS.quantiles(*CHUNK),
    log:
        PATHS.chunk_log("shard", *CHUNK),
    resources:
        **chunk_resources(CONFIG, "shard"),
    params:
        settings("shard"),
