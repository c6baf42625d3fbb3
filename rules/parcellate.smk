# The one interpolation: voxels into parcels, then filter, denoise and resample.
use rule chunk as parcellate with:
    input:
        PATHS.stage_table(*CHUNK, "denoise"),
    output:
        PATHS.stage_table(*CHUNK, "parcellate"),
    log:
        PATHS.chunk_log("parcellate", *CHUNK),
    benchmark:
        PATHS.chunk_benchmark("parcellate", *CHUNK)
    resources:
        **chunk_resources(CONFIG, "parcellate"),
    params:
        settings("parcellate"),


# Cohorts that enter as images in template space (fMRIPrep, HCP, UK Biobank) skip what is before.
use rule chunk as volumes with:
    input:
        PATHS.chunk_table(*CHUNK),
    output:
        PATHS.stage_table(*CHUNK, "volumes"),
    log:
        PATHS.chunk_log("volumes", *CHUNK),
    benchmark:
        PATHS.chunk_benchmark("volumes", *CHUNK)
    resources:
        **chunk_resources(CONFIG, "volumes"),
    params:
        settings("volumes"),


# Cohorts that enter as parcel series skip everything.
use rule chunk as series with:
    input:
        PATHS.chunk_table(*CHUNK),
    output:
        PATHS.stage_table(*CHUNK, "series"),
    log:
        PATHS.chunk_log("series", *CHUNK),
    resources:
        **chunk_resources(CONFIG, "series"),
    params:
        settings("series"),
