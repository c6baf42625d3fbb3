# Rigid motion of every recording of a chunk: transforms, confounds, reference image, mask.
rule motion:
    input:
        f"{RESULTS}/index/{{cohort}}/chunks/{{chunk}}.tsv",
    output:
        f"{WORK}/motion.tsv",
    log:
        f"{RESULTS}/logs/motion/{{cohort}}/{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/motion/{{cohort}}/{{chunk}}.tsv"
    group:
        "chunk"
    conda:
        "../envs/pipeline.yaml"
    resources:
        cpus_per_task=1,
        mem_mb=more(4000),
        runtime=more(60),
    params:
        settings("motion"),
    shell:
        "brainlm motion --cohort {wildcards.cohort} --chunk {wildcards.chunk}"
        " --workers {resources.cpus_per_task} 2>&1 | tee {log:q}"
