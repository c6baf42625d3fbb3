"""One task of one study, and which module evaluates which kind of task."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..config import Config
from ..errors import BrainLMError
from ..shards import Corpus
from ..shards.release import read_release

if TYPE_CHECKING:
    from ..model import BrainLM

#: kind of task -> module of this package; its ``run(job)`` writes ``job.out``, returns the table
EVALUATORS = {
    "reconstruction": "reconstruction",
    "regression": "clinical.targets",
    "classification": "clinical.targets",
    "forecasting": "forecasting.comparison",
    "attention": "attention.maps",
    "networks": "parcel_networks.readout",
    "states": "states.decoding",
    "latent": "latent",
    "scaling": "model_scaling",
}


@dataclass(frozen=True)
class Job:
    """What an evaluator is given.

    Attributes
    ----------
    task : a class of :mod:`brainlm.evaluation.tasks`
    config : Config
    external : list of Path
        Shards of external cohorts.
    """

    task: Any
    config: Config
    external: list[Path]

    @property
    def pretrained(self) -> Path:
        """Folder of the pretrained model."""
        return self.config.paths.pretrained

    @property
    def out(self) -> Path:
        """The task's table; :func:`brainlm.paths.side_table` names what is next to it."""
        return self.config.paths.table(self.task.name)

    @property
    def release_shards(self) -> list[Path]:
        """Shards that the model was trained on (all splits)."""
        return read_release(self.config.paths)

    @property
    def shards(self) -> list[Path]:
        """Shards of the release, then of external cohorts."""
        return self.release_shards + self.external

    @property
    def roles(self) -> dict[str, str]:
        """cohort -> "reference" or "external"."""
        return {cohort.name: cohort.role for cohort in self.config.cohorts}

    @property
    def fingerprint(self) -> str:
        """12 hex digits of the resolved configuration and the task's declaration, which a
        configuration names only."""
        text = self.config.fingerprint() + self.task.model_dump_json()
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def fits(self, start: str) -> list[Path]:
        """Folders of the fine-tuned (``finetune``) or untrained (``scratch``) fits, one a seed."""
        return [self.config.paths.fit(start, self.task.name, seed) for seed in self.task.seeds]


def open_pretrained(folder: Path, corpus: Corpus) -> BrainLM:
    """A pretrained model, on the process's device, checked against the shards.

    Raises
    ------
    BrainLMError
        No model there, one without its scaling, or of another atlas or sample period.
    """
    from ..model import from_pretrained
    from ..training.device import place

    model = from_pretrained(folder)
    if model.scaling is None:
        raise BrainLMError(
            f"{folder}: the model lacks its scaling (scaling.json), without which nothing can be "
            "given to it as it learnt it; write the folder with save_pretrained"
        )
    corpus.check(model.scaling)
    return place(model)


def make_untrained(model: BrainLM, seed: int = 0) -> BrainLM:
    """The network of a model with new weights: what its shape alone gives."""
    import torch

    from ..model import BrainLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        places = model.coordinates.cpu() if model.config.has_coordinates else None
        untrained = BrainLM(model.config, places)
    untrained.scaling = model.scaling
    return untrained.to(model.cls_token.device)


def evaluate(job: Job) -> pd.DataFrame:
    """Run the task's evaluator; write and return its table.

    Raises
    ------
    BrainLMError
        Nothing evaluates tasks of this kind.
    """
    module = EVALUATORS.get(job.task.kind)
    if module is None:
        raise BrainLMError(
            f"task {job.task.name}: nothing evaluates the kind {job.task.kind!r} yet; kinds: "
            + ", ".join(EVALUATORS)
        )
    return import_module(f".{module}", __package__).run(job)
