# Freeze the reference shards and fit the robust scaling. A release that exists has no inputs:
# later cohorts never disturb it; a new name in config.yaml makes a new one.


rule release:
    input:
        unfrozen,
    output:
        shards=PATHS.release_shards,
        scaling=PATHS.scaling,
    log:
        PATHS.release_log("release"),
    conda:
        "../envs/pipeline.yaml"
    resources:
        **growing("release", lambda wildcards: 4000, lambda wildcards: 60),
        cpus_per_task=1,
    shell:
        "brainlm release 2>&1 | tee {log:q}"


# What became of every recording, and failures.tsv next to it; fails when more failed than
# max_failed_fraction allows. Nothing waits for it: the report is made all the same.
rule summary:
    input:
        all_shards,
    output:
        PATHS.summary,
    log:
        PATHS.log("summary"),
    conda:
        "../envs/pipeline.yaml"
    resources:
        cpus_per_task=1,
        mem_mb=1000,
        runtime=10,
    shell:
        "brainlm summary --check 2>&1 | tee {log:q}"
