"""A finished model in the place of pretraining: checked against the study, and copied."""

from __future__ import annotations

from pathlib import Path

from ..atlas import Atlas
from ..errors import BrainLMError
from ..files import write_json
from ..model import BrainLM, from_pretrained
from ..model.card import wrap_card
from ..model.hub import read_card, split_name
from ..paths import ModelFolder
from ..shards import Scaling


def open_given(start: str, atlas: Atlas, sample_period_s: float, fallback: Path) -> BrainLM:
    """The model that ``model.start`` names, with a scaling.

    Parameters
    ----------
    fallback : Path
        The study's own scaling, for a model that carries none (published weights).

    Raises
    ------
    BrainLMError
        No such model; one of another atlas or sample period; one without a scaling where the
        study has no reference cohort to fit one.
    """
    model = from_pretrained(*split_name(start), coordinates=atlas.coordinates)
    if model.scaling is None:
        if not fallback.exists():
            raise BrainLMError(
                f"model.start: {start} carries no scaling (published weights have none), and no "
                "cohort has role: reference, on which one could be fitted"
            )
        model.scaling = Scaling.load(fallback)
    for name, ours in {
        "num_parcels": atlas.num_parcels,
        "atlas_sha256": atlas.image_sha256,
        "sample_period_s": sample_period_s,
    }.items():
        theirs = getattr(model.scaling, name)
        if theirs != ours:
            raise BrainLMError(
                f"model.start: {start} was trained with {name} {theirs}, this study has {ours}; "
                "set atlas.name or preprocess.sample_period_s to the model's"
            )
    return model


def take_model(
    start: str, out: Path, atlas: Atlas, sample_period_s: float, fallback: Path
) -> BrainLM:
    """Copy the model that ``model.start`` names into `out`, with its card, in ours, and its own
    scaling.

    Raises
    ------
    BrainLMError
        As :func:`open_given`.
    """
    model, files = open_given(start, atlas, sample_period_s, fallback), ModelFolder(out)
    assert model.scaling is not None
    model.save_pretrained(out, model.scaling, wrap_card(model, read_card(start), start))
    facts = {"taken_from": start, "scaling": model.scaling.release or "of this study"}
    write_json(files.run, facts)
    write_json(files.done, facts)
    return model
