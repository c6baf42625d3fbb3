# Encoder and 3-layer head on one column of the participants tables, and the same network untrained.
rule finetune:
    input:
        model=rules.pretrain.output[0],
        external=shards("external"),
    output:
        f"{MODELS}/finetune-{{target}}/predictions.parquet",
    log:
        f"{RESULTS}/logs/finetune/{CONFIG.release}-{{target}}.log",
    conda:
        "../envs/training-cuda.yaml"
    resources:
        **training_resources(TRAINING, nodes=1),
    params:
        settings("finetune"),
    shell:
        "brainlm finetune --config {SETTINGS} --target {wildcards.target:q} 2>&1 | tee {log}"


rule scratch:
    input:
        model=rules.pretrain.output[0],
        external=shards("external"),
    output:
        f"{MODELS}/scratch-{{target}}/predictions.parquet",
    log:
        f"{RESULTS}/logs/scratch/{CONFIG.release}-{{target}}.log",
    conda:
        "../envs/training-cuda.yaml"
    resources:
        **training_resources(TRAINING, nodes=1),
    params:
        settings("finetune"),
    shell:
        "brainlm finetune --from-scratch --config {SETTINGS} --target {wildcards.target:q}"
        " 2>&1 | tee {log}"
