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
        **chunk_resources(CONFIG, "motion"),
    params:
        settings("motion"),
    shell:
        "brainlm motion --cohort {wildcards.cohort} --chunk {wildcards.chunk}"
        " --workers {resources.cpus_per_task} 2>&1 | tee {log:q}"
