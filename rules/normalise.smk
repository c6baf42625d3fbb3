# Template to recording: affine and deformable parameters.
use rule chunk as normalise with:
    input:
        PATHS.stage_table(*CHUNK, "motion"),
    output:
        PATHS.stage_table(*CHUNK, "normalise"),
    log:
        PATHS.chunk_log("normalise", *CHUNK),
    benchmark:
        PATHS.chunk_benchmark("normalise", *CHUNK)
    resources:
        **chunk_resources(CONFIG, "normalise"),
    params:
        settings("normalise"),
