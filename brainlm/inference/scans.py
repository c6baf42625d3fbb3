"""What a user points at (a folder, a scan, a series), preprocessed as a study's cohort is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..atlas import Atlas
from ..cohort.index import index_file, update_index
from ..cohort.layouts import LAYOUTS, parse_name, read_description
from ..cohort.layouts.base import IMAGES
from ..cohort.layouts.parcels import EXTENSIONS
from ..cohort.parts import list_part_shards
from ..config import Cohort, Config
from ..errors import BrainLMError
from ..paths import Results
from ..shards import Corpus

_OWN_SPACES = {"func", "T1w", "T2w", "boldref", "individual"}
#: Those that a folder without a description is tried as; ``parcels``, whose names are the freest,
#: if none of them fits.
_TRIED = ("bids", "fmriprep", "cifti", "xcpd", "ukb", "hcp", "hcp-fix")


@dataclass(frozen=True)
class Scans:
    """Indexed recordings in a results folder of their own."""

    config: Config
    cohort: Cohort
    chunks: list[str]


def guess_layout(source: Path) -> str:
    """The layout of a file by its name, of a folder by its ``dataset_description.json`` or, where
    there is none, by the recordings in it.

    Raises
    ------
    BrainLMError
        A file that is neither a BOLD image nor a series; a folder of derivatives of an unknown
        program, without a recording, or that fits several layouts.
    """
    if source.is_dir():
        return _guess_folder(source)
    if source.name.endswith(EXTENSIONS):
        return "parcels"
    if source.name.endswith(IMAGES) and not source.name.endswith(
        (".dtseries.nii", ".dscalar.nii")
    ):
        entities, suffix = parse_name(source.name)
        if "sub" in entities and "-" not in suffix and suffix != "bold":
            raise BrainLMError(f"{source}: expected a BOLD image, its name ends in _{suffix}")
        space = entities.get("space")
        return "bids" if space is None or space in _OWN_SPACES else "fmriprep"
    raise BrainLMError(
        f"{source}: expected an image ({', '.join(IMAGES)}), parcel series "
        f"({', '.join(EXTENSIONS)}) or a folder"
    )


def _guess_folder(folder: Path) -> str:
    about = read_description(folder)
    if about and about.derivative:
        if about.layout:
            return about.layout
        raise BrainLMError(
            f"{folder}: derivatives made by {about.makers or 'an unnamed program'}; name their "
            f"layout with --layout, one of: {', '.join(LAYOUTS)}"
        )
    if about:
        return "bids"
    fits = [name for name in _TRIED if _holds(folder, name)]
    if not fits and _holds(folder, "parcels"):
        return "parcels"
    if not fits:
        raise BrainLMError(
            f"{folder}: no recording found in any of the layouts {', '.join(_TRIED)}, parcels (is "
            "the disk mounted?); name its layout with --layout to see what is expected"
        )
    if len(fits) > 1:
        raise BrainLMError(
            f"{folder}: holds recordings of the layouts {', '.join(fits)}; name one with --layout"
        )
    return fits[0]


def _holds(folder: Path, layout: str) -> bool:
    found = LAYOUTS[layout].find(folder, frozenset())
    return any(item.size >= 0 and not item.left_out for item in found)


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
