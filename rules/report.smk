# The pages: self-contained, no network at view time.
rule report:
    input:
        all_shards,
        all_pages,
        rules.pretrain.output,
        RESULT_TABLES,
    output:
        f"{RESULTS}/report/index.html",
        figures=report(
            directory(f"{RESULTS}/report/figures"),
            patterns=["{name}.svg"],
            caption="../workflow/report/figure.rst",
            category="Study report",
            labels={"figure": "{name}"},
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
