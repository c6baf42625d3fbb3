# Template to recording: affine and deformable parameters.
rule normalise:
    input:
        PATHS.stage_table(*CHUNK, "motion"),
    output:
        PATHS.stage_table(*CHUNK, "normalise"),
    log:
        PATHS.chunk_log("normalise", *CHUNK),
    benchmark:
        PATHS.chunk_benchmark("normalise", *CHUNK)
    group:
        "chunk"
    conda:
        "../envs/pipeline.yaml"
    resources:
        **chunk_resources(CONFIG, "normalise"),
    params:
        settings("normalise"),
    shell:
        "brainlm normalise --cohort {wildcards.cohort} --chunk {wildcards.chunk}"
        " --workers {resources.cpus_per_task} 2>&1 | tee {log:q}"
