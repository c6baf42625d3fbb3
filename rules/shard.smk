# The contract: one Parquet shard per chunk, and its mergeable scaling statistics.


rule shard:
    input:
        last_stage,
    output:
        shard=f"{RESULTS}/shards/{{cohort}}/{{chunk}}.parquet",
        quantiles=f"{RESULTS}/shards/{{cohort}}/{{chunk}}.quantiles.parquet",
    log:
        f"{RESULTS}/logs/shard/{{cohort}}/{{chunk}}.log",
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
