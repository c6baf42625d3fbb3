# A page for each recording of a chunk, drawn by the chunk's job; the report links to them.
use rule chunk as pages with:
    input:
        rules.shard.output.shard,
    output:
        PATHS.stage_table(*CHUNK, "pages"),
    log:
        PATHS.chunk_log("pages", *CHUNK),
    resources:
        **chunk_resources(CONFIG, "pages"),
    params:
        settings("pages"),
