# Encoder and 3-layer head on a clinical task's column, and the same network untrained; a job per seed.
# It saves and resumes as pretraining does. Fine-tuning sees the release only; external cohorts are predicted by the finished model.
FIT = ModelFolder(PATHS.fit("{start}", "{task}", "{seed}"))


rule finetune:
    input:
        rules.pretrain.output[0],
    output:
        FIT.predictions,
    log:
        PATHS.release_log("finetune", "{start}", "{task}", "{seed}"),
    conda:
        "../envs/training-cuda.yaml"
    threads: max(1, TRAINING.cpus // 2)  # of this machine; on a cluster cpus_per_task counts
    resources:
        **training_resources("finetune", TRAINING, nodes=1),
    params:
        settings("finetune"),
        scratch=lambda wildcards: (
            "--from-scratch" if wildcards.start == "scratch" else ""
        ),
    shell:
        "exec brainlm finetune --task {wildcards.task} --seed {wildcards.seed} {params.scratch}"
        " --log-file {log:q}"


rule predict:
    input:
        rules.finetune.output,
        external_shards,
    output:
        FIT.external,
    log:
        PATHS.release_log("predict", "{start}", "{task}", "{seed}"),
    conda:
        "../envs/training-cuda.yaml"
    threads: max(1, TRAINING.cpus // 2)  # of this machine; on a cluster cpus_per_task counts
    resources:
        **training_resources("predict", TRAINING, nodes=1),
    params:
        settings("predict"),
        scratch=lambda wildcards: (
            "--from-scratch" if wildcards.start == "scratch" else ""
        ),
    shell:
        "brainlm predict --task {wildcards.task} --seed {wildcards.seed} {params.scratch}"
        " 2>&1 | tee {log:q}"
