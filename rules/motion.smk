# Rigid motion of every recording of a chunk: transforms, confounds, reference image, mask.
rule motion:
    input:
        PATHS.chunk_table(*CHUNK),
    output:
        PATHS.stage_table(*CHUNK, "motion"),
    log:
        PATHS.chunk_log("motion", *CHUNK),
    benchmark:
        PATHS.chunk_benchmark("motion", *CHUNK)
    group:
        "chunk"
    conda:
        "../envs/pipeline.yaml"
    resources:
        **chunk_resources(CONFIG, "motion"),
    params:
        settings("motion"),
    shell:
        "brainlm motion --cohort {wildcards.cohort} --chunk {wildcards.chunk}"
        " --workers {resources.cpus_per_task} 2>&1 | tee {log:q}"
