"""What a user points at (a folder, a scan, a series), preprocessed as a study's cohort is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..atlas import Atlas
from ..cohort.index import index_file, update_index
from ..cohort.layouts import LAYOUTS, parse_name
from ..cohort.layouts.base import IMAGES
from ..cohort.layouts.parcels import EXTENSIONS
from ..cohort.parts import list_part_shards
from ..config import Cohort, Config
from ..errors import BrainLMError
from ..files import read_json
from ..paths import Results
from ..shards import Corpus

_OWN_SPACES = {"func", "T1w", "T2w", "boldref", "individual"}
_GENERATORS = {"fmriprep": "fmriprep", "xcp_d": "xcpd", "xcp-d": "xcpd"}


@dataclass(frozen=True)
class Scans:
    """Indexed recordings in a results folder of their own."""

    config: Config
    cohort: Cohort
    chunks: list[str]


def guess_layout(source: Path) -> str:
    """The layout of a file by its name, of a folder by its ``dataset_description.json``.

    Raises
    ------
    BrainLMError
        A file that is neither an image nor a series, or derivatives of an unknown program.
    """
    if source.is_dir():
        return _guess_folder(source)
    if source.name.endswith(EXTENSIONS):
        return "parcels"
    if source.name.endswith(IMAGES) and not source.name.endswith(
        (".dtseries.nii", ".dscalar.nii")
    ):
        space = parse_name(source.name)[0].get("space")
        return "bids" if space is None or space in _OWN_SPACES else "fmriprep"
    raise BrainLMError(
        f"{source}: expected an image ({', '.join(IMAGES)}), parcel series "
        f"({', '.join(EXTENSIONS)}) or a folder"
    )


def _guess_folder(folder: Path) -> str:
    described = folder / "dataset_description.json"
    about = read_json(described) if described.is_file() else {}
    if not isinstance(about, dict) or about.get("DatasetType") != "derivative":
        return "bids"
    made_by = about.get("GeneratedBy") or [{}]
    name = str(made_by[0].get("Name", "")) if isinstance(made_by, list) else ""
    if name.lower() in _GENERATORS:
        return _GENERATORS[name.lower()]
    raise BrainLMError(
        f"{folder}: derivatives made by {name or 'an unnamed program'}; name their layout "
        f"with --layout, one of: {', '.join(LAYOUTS)}"
    )


def open_scans(source: Path, config: Config) -> Scans:
    """Index `source`, the folder or file of the configuration's only cohort.

    Raises
    ------
    BrainLMError
        Nothing there, or no recording of the layout in it.
    """
    (cohort,) = config.cohorts
    if source.is_dir():
        update_index(cohort, config.results, config.chunks.recordings, everything=True)
    else:
        index_file(cohort, config.results, source)
    return Scans(config, cohort, Results(config.results).list_chunks(cohort.name))


def open_cohort(config: Config, name: str, part: str = "") -> Corpus:
    """The shards of a study's cohort, or of a part of it.

    Raises
    ------
    BrainLMError
        It has none yet, or no such part.
    """
    paths = config.paths
    shards = list_part_shards(paths, name, part) if part else paths.list_shards(name)
    if not shards or not all(shard.exists() for shard in shards):
        raise BrainLMError(f"{name}: not preprocessed yet; run: snakemake --cores all")
    return Corpus(shards)


def dataset_root(file: Path) -> Path:
    """The folder above ``sub-<label>``, from which sidecars are inherited; else the file's own."""
    subject = f"sub-{parse_name(file.name)[0].get('sub', '')}"
    above = [folder for folder in file.parents if folder.name == subject]
    return above[0].parent if above else file.parent


def preprocess(
    scans: Scans, atlas: Atlas, *, workers: int, log: Callable[[str], None] = print
) -> Corpus:
    """Run every step of the layout, write the shards and the recordings' pages.

    What is done already in the results folder is not done again.

    Raises
    ------
    BrainLMError
        The disk is full, or a program of the configured engine is missing. A recording that
        cannot be used raises nothing: it is a row with a status and a reason.
    """
    from ..preprocess.chunk import run_stage
    from ..preprocess.stages.context import Context
    from ..steps import STEPS, load, stages_of

    cohort, context = scans.cohort, Context(scans.config, scans.cohort, atlas)
    paths = Results(scans.config.results)
    for chunk in scans.chunks:
        for stage in stages_of(cohort.layout):
            run_stage(stage, chunk, context, workers=workers, log=log)
        for step in STEPS.values():
            if step.of == "chunk":
                load(step.run)(chunk, context, workers=workers, log=log)
    return Corpus([paths.shard(cohort.name, chunk) for chunk in scans.chunks])
