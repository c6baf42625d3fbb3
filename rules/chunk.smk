# What all steps of a chunk share; `use rule chunk as <step> with:` states the rest. The verb
# is the folder of the log. Nothing asks for this output: a rule with a log must have one.
rule chunk:
    output:
        PATHS.stage_table(*CHUNK, "chunk"),
    log:
        PATHS.chunk_log("chunk", *CHUNK),
    group:
        "chunk"
    conda:
        "../envs/pipeline.yaml"
    shell:
        'brainlm $(basename "$(dirname "$(dirname {log:q})")")'
        " --cohort {wildcards.cohort} --chunk {wildcards.chunk}"
        " --workers {resources.cpus_per_task} 2>&1 | tee {log:q}"
