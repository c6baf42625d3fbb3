# Template to recording: affine and deformable parameters.
rule normalise:
    input:
        f"{WORK}/motion.tsv",
    output:
        f"{WORK}/normalise.tsv",
    log:
        f"{RESULTS}/logs/normalise/{{cohort}}/{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/normalise/{{cohort}}/{{chunk}}.tsv"
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
