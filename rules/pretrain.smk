# Masked-autoencoder pretraining on the frozen release. It checkpoints and resumes by itself, so
# a preempted or killed job is simply run again (exit code 75 means: saved, run me again).
TRAINING = CONFIG.pretrain


rule pretrain:
    input:
        shards=rules.release.output.shards,
        scaling=rules.release.output.scaling,
    output:
        f"{MODELS}/pretrain/model.safetensors",
        f"{MODELS}/pretrain/metrics.jsonl",
    log:
        f"{RESULTS}/logs/pretrain/{CONFIG.release}.log",
    benchmark:
        f"{RESULTS}/benchmarks/pretrain/{CONFIG.release}.tsv"
    retries: 3
    conda:
        "../envs/training-cuda.yaml"
    resources:
        **training_resources(TRAINING),
    params:
        settings("pretrain"),
        launch=launch_line(TRAINING),
    shell:
        "{params.launch} pretrain --config {SETTINGS} 2>&1 | tee -a {log}"
