"""What decides a model's weights, kept next to them; a finished model is never trained over."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import config
from ..errors import BrainLMError
from ..files import read_json, sha256
from ..paths import ModelFolder

ADVICE = (
    "A finished model is not trained over: set a new release name in config.yaml (release: r2; "
    "with model.start and continue_training it goes on from this model), put the setting back, or "
    "move the folder away"
)


def describe_settings(
    shards: Iterable[Path], scaling: Path, model: config.Model, options: config.Pretrain
) -> str:
    """What decides the final weights, as JSON; machines and rhythm do not."""
    return json.dumps(
        _of_config(model, options) | describe_release(shards, scaling), sort_keys=True
    )


def describe_release(shards: Iterable[Path], scaling: Path) -> dict[str, str]:
    """Digests of what is read of a release."""
    parts = sorted(f"{Path(path).name}:{Path(path).stat().st_size}" for path in shards)
    shards_sha256 = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return {"scaling": sha256(scaling), "shards": shards_sha256}


def describe_change(before: str, after: str) -> str:
    """What two settings differ in; a key that one of them does not know is null there, so that a
    new optional key repeats no finished run."""
    return _compare(json.loads(before), json.loads(after))


def is_extended(before: str, after: str) -> bool:
    """Whether nothing but ``epochs`` differs, and they are more."""
    old, new = json.loads(before), json.loads(after)
    more = new.pop("epochs") > old.pop("epochs", math.inf)
    return more and not _compare(old, new)


def check_finished(study: config.Config) -> None:
    """Refuse to train over, or copy over, a model that is there, before Snakemake removes it.

    Raises
    ------
    BrainLMError
        The model was trained with other settings, or is not of this release.
    """
    folder, scaling = study.paths.pretrained, study.paths.scaling
    there = ModelFolder(folder)
    if not (there.weights.exists() and there.config.exists()):
        return
    if not there.done.exists():
        if any(there.checkpoints.glob("step-*")):  # it is not finished
            return
        raise BrainLMError(f"{folder}: holds a model that this study did not train. {ADVICE}")
    before = read_settings(there)
    if before is None:
        return
    if study.takes_model:
        raise BrainLMError(f"{folder}: holds a model that was trained here. {ADVICE}")
    ours = _of_config(study.model, study.pretrain)
    frozen = {"scaling": sha256(scaling) if scaling.exists() else None}
    trained = json.loads(before)
    trained.pop("shards", None)  # a release is frozen with its scaling
    changed = _compare(trained, ours | frozen)
    if changed.startswith("scaling"):
        raise BrainLMError(f"{folder}: holds a model of another study or release. {ADVICE}")
    if changed:
        raise BrainLMError(f"{folder}: finished with other settings ({changed}). {ADVICE}")


def read_settings(folder: ModelFolder) -> str | None:
    """Settings of a model that is finished; None of a copy of a given one."""
    done = read_json(folder.done)
    return None if "taken_from" in done else done.get("settings", "{}")


def _of_config(model: config.Model, options: config.Pretrain) -> dict[str, Any]:
    given = {"start", "continue_training"} if model.start is None else set()
    chosen = options.of_preset(model.preset)
    usual = chosen.model_copy(update={"beta2": None}).of_preset(model.preset).beta2
    younger = {"beta2"} if chosen.beta2 == usual else set()  # than finished models
    return model.model_dump(mode="json", exclude=given) | chosen.model_dump(
        mode="json", exclude=set(options.FREE) | younger
    )


def _compare(old: dict[str, Any], new: dict[str, Any]) -> str:
    if "optimizer" not in old:  # trained before there was a choice
        new = {key: value for key, value in new.items() if key != "optimizer"}
    keys = [key for key in {*old, *new} if old.get(key) != new.get(key)]
    keys.sort(key=lambda key: (key != "scaling", key))
    return ", ".join(f"{key}: {old.get(key)!s:.12} → {new.get(key)!s:.12}" for key in keys)
