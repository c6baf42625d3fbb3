"""Tasks are declared, not coded: one short YAML file each, in workflow/tasks or anywhere.

``kind`` decides which of the classes below checks the file; the file's name is the task's.
Imported whenever Snakemake parses the workflow, so it imports nothing heavy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import Field, ValidationError, model_validator

from ..config import Config, Name, PresetName, Section, explain, read_yaml
from ..errors import BrainLMError
from ..files import shipped

#: Tasks that can be named in config.yaml; others are given as a path.
REGISTRY = shipped("workflow") / "tasks"

#: What is asked of participants, and what tables call its column, in capitals or not.
QUESTIONS = {
    "age": ("age", "age_in_yrs", "age_at_scan", "interview_age"),
    "sex": ("sex", "gender"),
    "site": ("site", "site_id", "scan_site", "acquisition_site"),
}
Seeds = Annotated[tuple[int, ...], Field(min_length=1)]


#: Deep networks of ml4fmri: a strong simple one, the paper's baseline, and a transformer.
_LIGHT: tuple[Literal["meanMLP", "LSTM", "Transformer"], ...] = ("meanMLP", "LSTM", "Transformer")
DeepNetworks = Annotated[
    tuple[Literal["meanMLP", "LSTM", "Transformer", "BNT", "BrainNetCNN", "BolT"], ...],
    Field(
        description="deep baselines from ml4fmri; those that are not in the default need a GPU",
        exclude_if=lambda names: names == _LIGHT,  # results of older studies stay as they are
    ),
]


class _Task(Section):
    name: Name = Field(description="taken from the file's name")

    def columns(self) -> list[str]:
        """Of the participants tables, without which the task can do nothing."""
        asked = [getattr(self, key, None) for key in ("target", "groups", "contrast", "within")]
        named = [column for column in asked if isinstance(column, str) and column != "task"]
        return named + [c for c in getattr(self, "adjust", ()) if c != "mean_fd_mm"]

    def learns(self) -> list[str]:
        """Columns, in capitals or not, that fine-tuning reads."""
        return [c for c in (getattr(self, "target", None), getattr(self, "groups", None)) if c]

    def reads(self) -> list[str]:
        """Columns, in capitals or not, that the evaluation reads where a table has them."""
        asked = QUESTIONS if hasattr(self, "target") else getattr(self, "colour", ())
        motion = ["mean_fd"] if hasattr(self, "target") or hasattr(self, "adjust") else []
        names = [name for question in asked for name in QUESTIONS.get(question, (question,))]
        return sorted({*self.columns(), *names, *motion}) if self.columns() or asked else []


class ReconstructionTask(_Task):
    """Masked patches of held-out participants (paper, 4.1), by ``evaluate.mask_ratios``."""

    kind: Literal["reconstruction"]


class RegressionTask(_Task):
    """A number of a participant: clinical variables (paper, 4.2)."""

    kind: Literal["regression"]
    spellings: ClassVar[dict[str, str]] = {}
    target: str = Field(description="column of the participants tables")
    transform: Literal["zscore", "minmax", "log_minmax"] = Field(
        "zscore",
        description="transform of the label, fitted on training participants; metrics are in "
        "the label's own units",
    )
    groups: str | None = Field(
        None, description="column, such as site, whose groups are held out in turn "
                          "(leave-site-out): no method learns from the group that it predicts; "
                          "pretraining saw the group's training participants, without labels",
    )  # fmt: skip
    metric: Literal["r", "r2", "mse", "mae"] = Field("r", description="the headline figure")
    networks: DeepNetworks = _LIGHT
    seeds: Seeds = Field(
        (1, 2, 3, 4, 5), description="seeds of all random methods; one fit per seed"
    )


class ClassificationTask(_Task):
    """A class of a participant, two or more: clinical variables (paper, 4.2)."""

    kind: Literal["classification"]
    transform: ClassVar[str] = "none"  # of the labels; a regression has one
    target: str = Field(description="column of the participants tables, words or numbers")
    spellings: dict[str, str] = Field(
        {},
        exclude_if=lambda value: not value,  # a key that came later leaves what was made before
        description="class that each word stands for, where the tables spell a class in several "
        "ways: {F: female, f: female}",
    )
    groups: str | None = Field(None, description="as for a regression")
    metric: Literal["auc", "balanced_accuracy"] = Field("auc", description="the headline figure")
    networks: DeepNetworks = _LIGHT
    seeds: Seeds = Field(
        (1, 2, 3, 4, 5), description="seeds of all random methods; one fit per seed"
    )


class ForecastingTask(_Task):
    """Future time points from past ones (paper, 4.3)."""

    kind: Literal["forecasting"]
    ahead: Annotated[int, Field(ge=1)] | None = Field(
        None, description="time points to forecast; default a tenth of the model's window"
    )
    epochs: Annotated[int, Field(ge=1)] = Field(
        10, description="passes over the training windows, for every trained method"
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(16, description="windows per update")
    learning_rates: Annotated[tuple[float, ...], Field(min_length=1)] = Field(
        (1e-3, 3e-3), description="all are tried, and the best on validation participants is kept"
    )
    seeds: Seeds = (1, 2, 3, 4, 5)


def refuse_held(contrast: str | None, within: str | None, adjust: Sequence[str]) -> str | None:
    """Why nothing can be held constant in a contrast, or None."""
    if contrast in (None, "task") and (within or adjust):
        return (
            f"within and adjust are for groups of participants, but contrast is {contrast}; "
            "remove them from the task, or name a column of the participants table"
        )
    return None


class AttentionTask(_Task):
    """CLS-to-parcel attention and its contrasts (paper, 4.4)."""

    kind: Literal["attention"]
    contrast: str | None = Field(
        None, description="column (two values, or numbers split at the median), or 'task'"
    )
    groups: tuple[str, str] | None = Field(
        None, description="the two values to compare if the column has more"
    )
    within: str | None = Field(
        None, description="column, such as site: groups are compared within each of its values"
    )
    adjust: tuple[str, ...] = Field(
        (),
        description="numeric columns, or mean_fd_mm (measured motion), held constant when "
        "groups are compared",
    )
    permutations: Annotated[int, Field(ge=100)] = 2000

    @model_validator(mode="after")
    def _paired_groups(self) -> AttentionTask:
        if why := refuse_held(self.contrast, self.within, self.adjust):
            raise ValueError(why)
        return self


class NetworksTask(_Task):
    """Functional networks of parcels by k nearest neighbours (paper, 4.5)."""

    kind: Literal["networks"]
    table: Path | None = Field(
        None, description="tab-separated table of networks; default: the atlas's own"
    )
    column: str = Field("network", description="column of the table")
    epochs: Annotated[int, Field(ge=1)] | None = Field(
        None, description="epochs of the VAE and the GCN; default: as many as the pretraining"
    )
    seeds: Seeds = (1, 2, 3, 4, 5)


class StatesTask(_Task):
    """What participants are doing or looking at, from short clips of their runs."""

    kind: Literal["states"]
    label: str = Field(
        "trial_type", description="column of events.tsv that names the conditions, or 'task' "
                                  "for the BIDS task of the run",
    )  # fmt: skip
    events: dict[str, Path] = Field(
        {}, description="folder of the raw BIDS dataset, by cohort, where the cohort's own "
                        "folder has no events.tsv (derivatives)",
    )  # fmt: skip
    conditions: tuple[str, ...] = Field((), description="conditions to tell apart; default all")
    delay_s: Annotated[float, Field(ge=0)] = Field(
        5.0, description="s; haemodynamic delay between a block and its response (not for "
                         "'task')",
    )  # fmt: skip
    clip_s: Annotated[float, Field(gt=0)] | None = Field(
        None, description="s; rounded down to whole patches of the model; default: one patch, "
                          "or the model's window for 'task'",
    )  # fmt: skip
    min_share: Annotated[float, Field(gt=0.5, le=1)] = Field(
        0.8, description="smallest share of a clip that its condition must cover"
    )
    epochs: Annotated[int, Field(ge=1)] = Field(
        30, description="epochs of the attentive probe and the MLP"
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(32, description="clips per update")
    seeds: Seeds = Field((1, 2, 3), description="seeds of all random methods; one fit per seed")


class LatentTask(_Task):
    """UMAP of CLS tokens (paper, Fig. 5)."""

    kind: Literal["latent"]
    colour: tuple[str, ...] = Field(
        ("age", "sex", "site", "mean_fd_mm"), description="columns to colour by, where they exist"
    )
    splits: Annotated[tuple[Literal["train", "validation", "test"], ...], Field(min_length=1)] = (
        Field(
            ("validation", "test"),
            description="splits of the reference cohorts; the model was trained on train",
        )
    )


class ScalingTask(_Task):
    """Model size × share of the training participants (paper, Fig. 4)."""

    kind: Literal["scaling"]
    presets: Annotated[tuple[PresetName, ...], Field(min_length=1)] = ("tiny", "13m")
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.1, 0.3, 1.0),
        description="shares of the training participants; smaller ones are contained in larger "
        "ones",
    )
    seeds: Seeds = (1,)

    def points(self) -> list[tuple[str, float, int]]:
        """(preset, share, seed) of every pretraining."""
        return [(p, s, seed) for p in self.presets for s in self.shares for seed in self.seeds]


Task = Union[  # noqa: UP007  mypy wants it spelt so
    ReconstructionTask,
    RegressionTask,
    ClassificationTask,
    ForecastingTask,
    AttentionTask,
    NetworksTask,
    StatesTask,
    LatentTask,
    ScalingTask,
]
KINDS: dict[str, type[_Task]] = {
    "reconstruction": ReconstructionTask,
    "regression": RegressionTask,
    "classification": ClassificationTask,
    "forecasting": ForecastingTask,
    "attention": AttentionTask,
    "networks": NetworksTask,
    "states": StatesTask,
    "latent": LatentTask,
    "scaling": ScalingTask,
}
#: Tasks that fine-tune the model on a column of the participants tables.
CLINICAL = (RegressionTask, ClassificationTask)


def parse_task(values: dict[str, Any], name: str, source: str) -> Task:
    """Validate a task's plain dictionary.

    Raises
    ------
    BrainLMError
        No or an unknown kind, or keys and values that its class refuses, nearest names said.
    """
    kind = values.get("kind")
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(KINDS)}"
        raise BrainLMError(f"{source}: kind is {kind!r}; {hint}")
    try:
        return KINDS[kind].model_validate({**values, "name": name})  # type: ignore[return-value]
    except ValidationError as error:
        raise BrainLMError(f"{source}: " + "; ".join(explain(error, KINDS[kind]))) from None


def load_task(entry: str) -> Task:
    """One entry of ``tasks`` in config.yaml: a name in :data:`REGISTRY` or a path to a YAML."""
    path = Path(entry)
    if path.suffix not in (".yaml", ".yml"):
        known = sorted(p.stem for p in REGISTRY.glob("*.yaml"))
        if entry not in known:
            near = difflib.get_close_matches(entry, known, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise BrainLMError(
                f"tasks: no task {entry!r} in {REGISTRY}; {hint} (or give the path of a .yaml)"
            )
        path = REGISTRY / f"{entry}.yaml"
    return parse_task(read_yaml(path), path.stem, str(path))


def load_tasks(entries: Iterable[str]) -> dict[str, Task]:
    """The tasks of a configuration by name.

    Raises
    ------
    BrainLMError
        A file is wrong or missing, or two have the same name.
    """
    tasks: dict[str, Task] = {}
    for entry in entries:
        task = load_task(entry)
        if task.name in tasks:
            raise BrainLMError(f"tasks: two are named {task.name!r}; rename a file")
        tasks[task.name] = task
    return tasks


def tasks_of(config: Config) -> dict[str, Task]:
    """The tasks of a study by name; none where no cohort is trained on or evaluated."""
    return load_tasks(config.tasks) if config.has_reference else {}


def predicting_fits(config: Config) -> list[list[Path]]:
    """For each clinical task the folders of its fine-tuned models, one per seed.

    A task with `groups` has fits of folds instead, which are not kept as models.
    """
    tasks = [task for task in tasks_of(config).values() if isinstance(task, CLINICAL)]
    return [
        [config.paths.fit("finetune", task.name, seed) for seed in task.seeds]
        for task in tasks
        if not task.groups
    ]


def find_task(entries: Iterable[str], name: str) -> Task:
    """The configuration's task of this name, else the built-in one."""
    tasks = load_tasks(entries)
    return tasks[name] if name in tasks else load_task(name)
