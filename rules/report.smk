# The pages: self-contained, no network at view time.
rule report:
    input:
        SHARDS,
        PAGES,
        rules.pretrain.output,
        RESULT_TABLES,
    output:
        report(
            f"{RESULTS}/report/index.html",
            caption="../workflow/report/study.rst",
            category="Study report",
        ),
    log:
        f"{RESULTS}/logs/report.log",
    conda:
        "../envs/pipeline.yaml"
    resources:
        cpus_per_task=1,
        mem_mb=more(4000),
        runtime=more(30),
    shell:
        "brainlm report 2>&1 | tee {log:q}"
