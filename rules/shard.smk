# The contract: one Parquet shard per chunk, and its mergeable scaling statistics.


rule shard:
    input:
        last_stage,
    output:
        shard=PATHS.shard(*CHUNK),
        quantiles=PATHS.quantiles(*CHUNK),
    log:
        PATHS.chunk_log("shard", *CHUNK),
    group:
        "chunk"
    conda:
        "../envs/pipeline.yaml"
    resources:
        **chunk_resources(CONFIG, "shard"),
    params:
        settings("shard"),
    shell:
        "brainlm shard --cohort {wildcards.cohort} --chunk {wildcards.chunk}"
        " 2>&1 | tee {log:q}"
