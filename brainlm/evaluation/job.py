"""What every evaluator is given, and which evaluates which kind of task."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..config import Config, Evaluate
from ..errors import BrainLMError
from ..paths import side_table, table_record
from ..progress import Count
from ..shards import Corpus
from ..shards.release import read_release
from ..tables import write_parquet
from .participants import cohort_parts
from .rows import write_results
from .seen import open_corpus

if TYPE_CHECKING:
    from ..model import BrainLM

#: kind of task -> ``module:function`` of this package: takes a :class:`Job`, returns the table
EVALUATORS = {
    "reconstruction": "reconstruction:evaluate_reconstruction",
    "regression": "clinical.targets:evaluate_target",
    "classification": "clinical.targets:evaluate_target",
    "forecasting": "forecasting.comparison:evaluate_forecasting",
    "attention": "attention.maps:evaluate_attention",
    "networks": "parcel_networks.readout:evaluate_networks",
    "states": "states.decoding:evaluate_states",
    "latent": "latent:evaluate_latent",
    "scaling": "model_scaling:evaluate_scaling",
}


@dataclass(frozen=True)
class Job:
    """A task, and what every evaluator is given to carry it out.

    Attributes
    ----------
    task : a class of :mod:`brainlm.evaluation.tasks`
    config : Config
        Its cohorts have the roles and the participants tables; ``evaluate`` the options.
    pretrained : Path
        Folder of the pretrained model (``config.json``, ``model.safetensors``, ``scaling.json``).
    shards : sequence of Path
        Of the release (all splits), then of external cohorts.
    out : Path
        The table (:data:`brainlm.evaluation.rows.COLUMNS`);
        :func:`brainlm.paths.side_table` names what is next to it.
    """

    task: Any
    config: Config
    pretrained: Path
    shards: Sequence[Path]
    out: Path

    @classmethod
    def of(cls, task: Any, config: Config, external: Sequence[Path] = ()) -> Job:
        """A task of a study; `external` are the shards of external cohorts."""
        paths = config.paths
        shards = [*read_release(paths), *external]
        return cls(task, config, paths.pretrained, shards, paths.table(task.name))

    @property
    def options(self) -> Evaluate:
        return self.config.evaluate

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

    def open(self) -> tuple[Corpus, BrainLM]:
        """The recordings, without external participants who were trained on, and the model."""
        corpus = open_corpus(self.shards, self.roles)
        return corpus, open_pretrained(self.pretrained, corpus)

    def parts(
        self, table: pd.DataFrame, splits: Sequence[str] = ("test",)
    ) -> Iterator[tuple[str, str, pd.DataFrame]]:
        """What is evaluated: see :func:`~brainlm.evaluation.participants.cohort_parts`."""
        return cohort_parts(table, splits, self.roles)

    def count(self, total: int, unit: str) -> Count:
        """Called with how many are through, it tells the log and ``brainlm status``."""
        return Count(f"evaluate {self.task.name}", total, table_record(self.out), unit=unit)

    def save(self, what: str, table: pd.DataFrame) -> None:
        """Write a table next to the task's own."""
        write_parquet(side_table(self.out, what), table)

    def write(self, rows: Iterable[dict]) -> pd.DataFrame:
        """Write and return the task's table."""
        return write_results(rows, self.out, self.options.seed, self.fingerprint)


def open_pretrained(folder: Path, corpus: Corpus) -> BrainLM:
    """A pretrained model, on the process's device, checked against the shards.

    Raises
    ------
    BrainLMError
        No model there, one without its scaling, or of another atlas or sample period.
    """
    from ..model import from_pretrained
    from ..training.device import prepare

    model = from_pretrained(folder)
    if model.scaling is None:
        raise BrainLMError(
            f"{folder}: the model lacks its scaling (scaling.json), without which nothing can be "
            "given to it as it learnt it; write the folder with save_pretrained"
        )
    corpus.check(model.scaling)
    return prepare(model)


def make_untrained(model: BrainLM, seed: int = 0) -> BrainLM:
    """The network of a model with new weights: what its shape alone gives."""
    import torch

    from ..model import BrainLM
    from ..training.device import prepare

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        places = model.coordinates.cpu() if model.config.has_coordinates else None
        untrained = BrainLM(model.config, places)
    untrained.scaling = model.scaling
    return prepare(untrained, model.cls_token.device)


def evaluate(job: Job) -> pd.DataFrame:
    """Run the task's evaluator; write and return its table.

    Raises
    ------
    BrainLMError
        Nothing evaluates tasks of this kind.
    """
    evaluator = EVALUATORS.get(job.task.kind)
    if evaluator is None:
        raise BrainLMError(
            f"task {job.task.name}: nothing evaluates the kind {job.task.kind!r} yet; kinds: "
            + ", ".join(EVALUATORS)
        )
    module, _, name = evaluator.partition(":")
    return getattr(import_module(f".{module}", __package__), name)(job)
