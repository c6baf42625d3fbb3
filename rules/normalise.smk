# Template to recording: affine and deformable parameters.
rule normalise:
    input:
        f"{WORK}/motion.tsv",
    output:
        f"{WORK}/normalise.tsv",
    params:
        settings("normalise"),
    log:
        f"{RESULTS}/logs/normalise/{{cohort}}/{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/normalise/{{cohort}}/{{chunk}}.tsv"
    resources:
        cpus_per_task=1,
        mem_mb=more(3000),
        runtime=more(60),
    group:
        "chunk"
    conda:
        "../envs/pipeline.yaml"
    shell:
        "brainlm normalise --config {SETTINGS} --cohort {wildcards.cohort} --chunk {wildcards.chunk}"
        " --workers {resources.cpus_per_task} 2>&1 | tee {log}"
