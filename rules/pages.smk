# A page for each recording of a chunk, drawn by the chunk's job; the report links to them.
rule pages:
    input:
        rules.shard.output.shard,
    output:
        PATHS.stage_table(*CHUNK, "pages"),
    log:
        PATHS.chunk_log("pages", *CHUNK),
    group:
        "chunk"
    conda:
        "../envs/pipeline.yaml"
    resources:
        **chunk_resources(CONFIG, "pages"),
    params:
        settings("pages"),
    shell:
        "brainlm pages --cohort {wildcards.cohort} --chunk {wildcards.chunk}"
        " --workers {resources.cpus_per_task} 2>&1 | tee {log:q}"
