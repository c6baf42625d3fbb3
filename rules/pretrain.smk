# Masked-autoencoder pretraining on the frozen release. It checkpoints and resumes by itself, so
# a preempted or killed job is simply run again (exit code 75 means: saved, run me again). Its
# checkpoints and metrics are no outputs: Snakemake would remove them before a second try.
# At a SIGTERM to all processes of the job, no shell (`exec`) and no `tee` ends before it has saved.
TRAINING = CONFIG.pretrain
START = launch_line(TRAINING, shlex.quote(str(ROOT / "slurm")))
START = START.replace("{", "{{").replace("}", "}}")  # a shell command is a format


FROZEN = [rules.release.output.shards, rules.release.output.scaling]


# With `model.start` it copies that model instead, which needs no cohort to train on.
rule pretrain:
    input:
        FROZEN if CONFIG.has_reference else [],
    output:
        ModelFolder(PATHS.pretrained).weights,
    log:
        PATHS.release_log("pretrain"),
    benchmark:
        PATHS.release_benchmark("pretrain")
    conda:
        "../envs/training-cuda.yaml"
    threads: TRAINING.cpus  # of this machine; on a cluster cpus_per_task counts
    resources:
        **training_resources("pretrain", TRAINING),
    params:
        settings("pretrain"),
        launch="brainlm",  # of before, when a change of machines trained anew
    shell:
        f"exec {START} pretrain --log-file {{log:q}}"


# One point of a scaling task: another size, a share of the training participants, as many updates.
rule sweep:
    input:
        FROZEN,
    output:
        ModelFolder(PATHS.sweep("{preset}", "{share}", "{seed}")).weights,
    log:
        PATHS.release_log("pretrain", "{preset}", "{share}", "{seed}"),
    conda:
        "../envs/training-cuda.yaml"
    threads: TRAINING.cpus  # of this machine; on a cluster cpus_per_task counts
    resources:
        **training_resources("sweep", TRAINING),
    params:
        settings("sweep"),
        launch="brainlm",
    shell:
        f"exec {START} pretrain --log-file {{log:q}}"
        " --sweep {wildcards.preset} {wildcards.share} {wildcards.seed}"
