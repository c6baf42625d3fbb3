# One table per task, with honest baselines next to the model and intervals over subjects.
rule evaluate:
    input:
        model=rules.pretrain.output[0],
        fits=fits,
        external=external_shards,
    output:
        PATHS.table("{task}"),
    log:
        PATHS.release_log("evaluate", "{task}"),
    conda:
        "../envs/training-cuda.yaml"
    threads: max(1, TRAINING.cpus // 2)  # of this machine; on a cluster cpus_per_task counts
    resources:
        **training_resources("evaluate", TRAINING, nodes=1),
    params:
        settings("evaluate"),
    shell:
        "brainlm evaluate --task {wildcards.task} 2>&1 | tee {log:q}"
