# ICA components, their features and the verdict on each; the confounds table.
rule denoise:
    input:
        PATHS.stage_table(*CHUNK, "normalise"),
    output:
        PATHS.stage_table(*CHUNK, "denoise"),
    log:
        PATHS.chunk_log("denoise", *CHUNK),
    benchmark:
        PATHS.chunk_benchmark("denoise", *CHUNK)
    group:
        "chunk"
    conda:
        "../envs/pipeline.yaml"
    resources:
        **chunk_resources(CONFIG, "denoise"),
    params:
        settings("denoise"),
    shell:
        "brainlm denoise --cohort {wildcards.cohort} --chunk {wildcards.chunk}"
        " --workers {resources.cpus_per_task} 2>&1 | tee {log:q}"
