# ICA components, their features and the verdict on each; the confounds table.
use rule chunk as denoise with:
    input:
        PATHS.stage_table(*CHUNK, "normalise"),
    output:
        PATHS.stage_table(*CHUNK, "denoise"),
    log:
        PATHS.chunk_log("denoise", *CHUNK),
    benchmark:
        PATHS.chunk_benchmark("denoise", *CHUNK)
    resources:
        **chunk_resources(CONFIG, "denoise"),
    params:
        settings("denoise"),
