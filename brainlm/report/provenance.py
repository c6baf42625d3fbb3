"""Provenance: what made these pages, and the model card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from ..cohort.origin import COMMIT, DOI
from ..config import Cohort, Config
from ..shards import read_info
from .facts import Facts, code_commit, software_versions
from .page_blocks import Details, Table, Text


def describe_provenance(facts: Facts) -> list[Any]:
    """Code, data, configuration and software behind these pages."""
    info, scaling, config = facts.info, facts.scaling, facts.config
    rows = [
        ("code", f"brainlm-pipeline {software_versions()['brainlm-pipeline']}"),
        ("git commit", code_commit() or "not run from a git checkout"),
        ("release", config.release),
        ("shards in the release", len(facts.release) if len(facts.release) else None),
        ("atlas", info.atlas if info else config.atlas.name),
        ("atlas sha256", info.atlas_sha256 if info else None),
        ("parcels", info.num_parcels if info else None),
        ("sample period (s)", info.sample_period_s if info else None),
        ("scaling", f"{scaling.release or config.release}, {scaling.units}" if scaling else None),
        ("engine", config.preprocess.engine),
        ("denoising", " + ".join(config.preprocess.denoise_steps) or "none"),
        ("configuration", config.fingerprint()),
    ]
    for cohort in config.cohorts:
        number = count_cohort(facts, cohort)
        text = "{usable} of {recordings} recordings of {participants} participants can be used"
        text = text.format(**number)
        rows.append((f"cohort {cohort.name} ({cohort.role})", text))
        rows += [
            (f"{cohort.name}: {what}", value) for what, value in _describe_origin(config, cohort)
        ]
    versions = pd.DataFrame(software_versions().items(), columns=["software", "version"])
    facts_table = pd.DataFrame(rows, columns=["what", "value"])
    return [
        Table("provenance", "What made this report.", facts_table),
        Table(
            "software",
            "Software that wrote this report; the versions used by each job are in its log.",
            versions,
        ),
        Details(
            f"The resolved configuration ({config.fingerprint()})",
            config.model_dump_json(indent=2),
        ),
    ]


def _describe_origin(config: Config, cohort: Cohort) -> Iterator[tuple[str, str]]:
    """DOI and commits of a cohort's dataset, as its shards have them: of the day each was made."""
    infos = [read_info(path) for path in config.paths.list_shards(cohort.name)]
    for what, key in (("DOI of the dataset", DOI), ("commit of the dataset", COMMIT)):
        found = {info.extra[key]: None for info in infos if key in info.extra}
        if found:
            yield f"{cohort.name}: {what}", ", ".join(found)


def count_cohort(facts: Facts, cohort) -> dict[str, Any]:
    """Participants and recordings of a cohort, found and usable."""
    part = facts.recordings[facts.recordings["cohort"] == cohort.name]
    return {
        "cohort": cohort.name, "role": cohort.role, "layout": cohort.layout,
        "participants": len(part[["cohort", "participant_id"]].drop_duplicates()),
        "recordings": len(part), "usable": int((part["status"] == "ok").sum()),
        "folder": str(cohort.folder),
    }  # fmt: skip


def describe_card(facts: Facts) -> list[Any]:
    """The model card, as it was written when the model was trained."""
    if not facts.card:
        return [
            Text(["No model has been trained yet, so there is no model card."], tone="missing")
        ]
    words = "This is README.md in the model's folder; it is published with the weights."
    return [Text([words]), Details("Model card", facts.card)]
