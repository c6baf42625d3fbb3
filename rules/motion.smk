# Rigid motion of every recording of a chunk: transforms, confounds, reference image, mask.
use rule chunk as motion with:
    input:
        PATHS.chunk_table(*CHUNK),
    output:
        PATHS.stage_table(*CHUNK, "motion"),
    log:
        PATHS.chunk_log("motion", *CHUNK),
    benchmark:
        PATHS.chunk_benchmark("motion", *CHUNK)
    resources:
        **chunk_resources(CONFIG, "motion"),
    params:
        settings("motion"),
