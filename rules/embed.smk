# A vector for every recording of a cohort, and what the fine-tuned models predict for it. A large
# cohort's parts are jobs of their own (brainlm/cohort/parts.py), which these put together.


rule embed:
    input:
        rules.pretrain.output[0],
        cohort_shards,
        parts=parts_of(PATHS.embeddings),
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
        "brainlm embed {wildcards.cohort} --gather {input.parts:q} --out {output:q}"
        " 2>&1 | tee {log:q}"


rule embed_part:
    input:
        rules.pretrain.output[0],
        part_shards,
    output:
        PATHS.embeddings(*PART),
    log:
        PATHS.release_log("embed", *PART),
    conda:
        "../envs/training-cuda.yaml"
    threads: max(1, TRAINING.cpus // 2)  # of this machine; on a cluster cpus_per_task counts
    resources:
        **training_resources("embed_part", TRAINING, nodes=1),
    params:
        settings("embed"),
    shell:
        "brainlm embed {wildcards.cohort} --part {wildcards.part} --out {output:q}"
        " 2>&1 | tee {log:q}"


rule predict_cohort:
    input:
        rules.embed.output[0],
        cohort_fits,
        parts=parts_of(PATHS.predicted),
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
        "brainlm predict {wildcards.cohort} --gather {input.parts:q} --out {output:q}"
        " 2>&1 | tee {log:q}"


rule predict_part:
    input:
        rules.embed_part.output[0],
        cohort_fits,
    output:
        PATHS.predicted(*PART),
    log:
        PATHS.release_log("predict", *PART),
    conda:
        "../envs/training-cuda.yaml"
    threads: max(1, TRAINING.cpus // 2)  # of this machine; on a cluster cpus_per_task counts
    resources:
        **training_resources("predict_part", TRAINING, nodes=1),
    params:
        settings("embed"),
    shell:
        "brainlm predict {wildcards.cohort} --part {wildcards.part} --out {output:q}"
        " 2>&1 | tee {log:q}"
