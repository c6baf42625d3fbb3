# Encoder and 3-layer head on one column of the participants tables, and the same network untrained.
# Fine-tuning sees the release only; external cohorts are predicted by the finished model.
rule finetune:
    input:
        rules.pretrain.output[0],
    output:
        f"{MODELS}/{{start}}-{{target}}/predictions.parquet",
    log:
        f"{RESULTS}/logs/finetune/{CONFIG.release}-{{start}}-{{target}}.log",
    conda:
        "../envs/training-cuda.yaml"
    threads: max(1, TRAINING.cpus // 2)  # of this machine; on a cluster cpus_per_task counts
    resources:
        **training_resources(TRAINING, nodes=1),
    params:
        settings("finetune"),
        scratch=lambda wildcards: (
            "--from-scratch" if wildcards.start == "scratch" else ""
        ),
    shell:
        "brainlm finetune --target {wildcards.target:q} {params.scratch}"
        " 2>&1 | tee {log:q}"


rule predict:
    input:
        rules.finetune.output,
        shards("external"),
    output:
        f"{MODELS}/{{start}}-{{target}}/external.parquet",
    log:
        f"{RESULTS}/logs/predict/{CONFIG.release}-{{start}}-{{target}}.log",
    conda:
        "../envs/training-cuda.yaml"
    threads: max(1, TRAINING.cpus // 2)  # of this machine; on a cluster cpus_per_task counts
    resources:
        **training_resources(TRAINING, nodes=1),
    params:
        settings("finetune"),
        scratch=lambda wildcards: (
            "--from-scratch" if wildcards.start == "scratch" else ""
        ),
    shell:
        "brainlm predict --target {wildcards.target:q} {params.scratch}"
        " 2>&1 | tee {log:q}"
