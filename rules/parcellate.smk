# The one interpolation: voxels into parcels, then filter, denoise and resample.
rule parcellate:
    input:
        PATHS.stage_table(*CHUNK, "denoise"),
    output:
        PATHS.stage_table(*CHUNK, "parcellate"),
    log:
        PATHS.chunk_log("parcellate", *CHUNK),
    benchmark:
        PATHS.chunk_benchmark("parcellate", *CHUNK)
    group:
        "chunk"
    conda:
        "../envs/pipeline.yaml"
    resources:
        **chunk_resources(CONFIG, "parcellate"),
    params:
        settings("parcellate"),
    shell:
        "brainlm parcellate --cohort {wildcards.cohort} --chunk {wildcards.chunk}"
        " --workers {resources.cpus_per_task} 2>&1 | tee {log:q}"


# Cohorts that enter as images in template space (fMRIPrep, HCP, UK Biobank) skip what is before.
rule volumes:
    input:
        PATHS.chunk_table(*CHUNK),
    output:
        PATHS.stage_table(*CHUNK, "volumes"),
    log:
        PATHS.chunk_log("volumes", *CHUNK),
    benchmark:
        PATHS.chunk_benchmark("volumes", *CHUNK)
    group:
        "chunk"
    conda:
        "../envs/pipeline.yaml"
    resources:
        **chunk_resources(CONFIG, "volumes"),
    params:
        settings("volumes"),
    shell:
        "brainlm volumes --cohort {wildcards.cohort} --chunk {wildcards.chunk}"
        " --workers {resources.cpus_per_task} 2>&1 | tee {log:q}"


# Cohorts that enter as parcel series skip everything.
rule series:
    input:
        PATHS.chunk_table(*CHUNK),
    output:
        PATHS.stage_table(*CHUNK, "series"),
    log:
        PATHS.chunk_log("series", *CHUNK),
    group:
        "chunk"
    conda:
        "../envs/pipeline.yaml"
    resources:
        **chunk_resources(CONFIG, "series"),
    params:
        settings("series"),
    shell:
        "brainlm series --cohort {wildcards.cohort} --chunk {wildcards.chunk}"
        " --workers {resources.cpus_per_task} 2>&1 | tee {log:q}"
