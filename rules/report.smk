# The pages: self-contained, no network at view time.
rule report:
    input:
        all_shards,
        all_pages,
        rules.pretrain.output,
        RESULT_TABLES,
    output:
        PATHS.report_page,
        figures=report(
            directory(str(PATHS.report_figures)),
            patterns=["{name}.svg"],
            caption="../workflow/report/figure.rst",
            category="Study report",
            labels={"figure": "{name}"},
        ),
    log:
        PATHS.log("report"),
    conda:
        "../envs/pipeline.yaml"
    resources:
        **growing("report", lambda wildcards: 4000, lambda wildcards: 30),
        cpus_per_task=1,
    shell:
        "brainlm report 2>&1 | tee {log:q}"
