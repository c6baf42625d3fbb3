# ICA components, their features and the verdict on each; the confounds table.
rule denoise:
    input:
        f"{WORK}/normalise.tsv",
    output:
        f"{WORK}/denoise.tsv",
    log:
        f"{RESULTS}/logs/denoise/{{cohort}}/{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/denoise/{{cohort}}/{{chunk}}.tsv"
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
