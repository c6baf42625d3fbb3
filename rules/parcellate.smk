# The one interpolation: voxels into parcels, then filter, denoise and resample.
rule parcellate:
    input:
        f"{WORK}/denoise.tsv",
    output:
        f"{WORK}/parcellate.tsv",
    log:
        f"{RESULTS}/logs/parcellate/{{cohort}}/{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/parcellate/{{cohort}}/{{chunk}}.tsv"
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
        f"{RESULTS}/index/{{cohort}}/chunks/{{chunk}}.tsv",
    output:
        f"{WORK}/volumes.tsv",
    log:
        f"{RESULTS}/logs/volumes/{{cohort}}/{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/volumes/{{cohort}}/{{chunk}}.tsv"
    group:
        "chunk"
    conda:
        "../envs/pipeline.yaml"
    resources:
        **chunk_resources(CONFIG, "volumes"),
    params:
        cohort_settings("volumes"),
    shell:
        "brainlm volumes --cohort {wildcards.cohort} --chunk {wildcards.chunk}"
        " --workers {resources.cpus_per_task} 2>&1 | tee {log:q}"


# Cohorts that enter as parcel series skip everything.
rule series:
    input:
        f"{RESULTS}/index/{{cohort}}/chunks/{{chunk}}.tsv",
    output:
        f"{WORK}/series.tsv",
    log:
        f"{RESULTS}/logs/series/{{cohort}}/{{chunk}}.log",
    group:
        "chunk"
    conda:
        "../envs/pipeline.yaml"
    resources:
        **chunk_resources(CONFIG, "series"),
    params:
        cohort_settings("series"),
    shell:
        "brainlm series --cohort {wildcards.cohort} --chunk {wildcards.chunk}"
        " --workers {resources.cpus_per_task} 2>&1 | tee {log:q}"
