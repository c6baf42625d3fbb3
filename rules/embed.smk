# A vector for every recording of a cohort, and what the fine-tuned models predict for it.


rule embed:
    input:
        rules.pretrain.output[0],
        cohort_shards,
    output:
        PATHS.embeddings("{cohort}"),
    log:
        PATHS.release_log("embed", "{cohort}"),
    conda:
        "../envs/training-cuda.yaml"
    threads: max(1, TRAINING.cpus // 2)  # of this machine; on a cluster cpus_per_task counts
    resources:
        **training_resources("embed", TRAINING, nodes=1),
    params:
        settings("embed"),
    shell:
        "brainlm embed {wildcards.cohort} --out {output:q} 2>&1 | tee {log:q}"


rule predict_cohort:
    input:
        rules.embed.output[0],
        cohort_fits,
    output:
        PATHS.predicted("{cohort}"),
    log:
        PATHS.release_log("predict", "{cohort}"),
    conda:
        "../envs/training-cuda.yaml"
    threads: max(1, TRAINING.cpus // 2)  # of this machine; on a cluster cpus_per_task counts
    resources:
        **training_resources("predict_cohort", TRAINING, nodes=1),
    params:
        settings("embed"),
    shell:
        "brainlm predict {wildcards.cohort} --out {output:q} 2>&1 | tee {log:q}"
