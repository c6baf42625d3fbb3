# Held-out subjects and external cohorts, beside honest baselines, with intervals over subjects.
rule reconstruction:
    input:
        model=rules.pretrain.output[0],
        external=shards("external"),
    output:
        f"{EVALUATION}/reconstruction.parquet",
    log:
        f"{RESULTS}/logs/evaluate/{CONFIG.release}-reconstruction.log",
    conda:
        "../envs/training-cuda.yaml"
    resources:
        **training_resources(TRAINING, nodes=1),
    params:
        settings("evaluate"),
    shell:
        "brainlm evaluate --task reconstruction 2>&1 | tee {log:q}"


rule target:
    input:
        predictions,
        shards("external"),
    output:
        f"{EVALUATION}/target-{{target}}.parquet",
    log:
        f"{RESULTS}/logs/evaluate/{CONFIG.release}-{{target}}.log",
    conda:
        "../envs/pipeline.yaml"
    resources:
        cpus_per_task=2,
        mem_mb=more(8000),
        runtime=more(60),
    params:
        settings("evaluate"),
    shell:
        "brainlm evaluate --task {wildcards.target:q} 2>&1 | tee {log:q}"
