"""config.yaml, typed once. Unknown keys are refused with the nearest name.

The JSON schema in workflow/schemas is generated from these classes (``brainlm config --schema``)
and a test keeps it current.
"""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from .errors import BrainLMError
from .paths import Results

Positive = Annotated[float, Field(gt=0)]


def _plain_name(name: str) -> str:
    """Names become folder names and snakemake wildcards."""
    if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
        raise ValueError("use letters, digits, '-', '_' and '.' only (it names folders)")
    return name


Name = Annotated[str, AfterValidator(_plain_name)]


LayoutName = Literal[
    "bids", "fmriprep", "cifti", "xcpd", "ukb", "hcp", "hcp-fix", "parcels", "adni", "embarc",
    "tops", "yooattn",
]  # fmt: skip
#: Confounds that other programs' tables hold, under the names of `preprocess.denoise`.
ConfoundStep = Literal["motion6", "motion24", "wm-csf", "acompcor", "global"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _check_orientation(letters: str) -> str:
    pairs = ["LR", "AP", "IS"]
    found = sorted(next((p for p in pairs if letter in p), "") for letter in letters)
    if found != sorted(pairs):
        raise ValueError(
            f"orientation: {letters!r}: expected three letters, one each of L or R, A or P, I or S"
        )
    return letters


class Cohort(Section):
    """One folder of recordings. Nothing about a cohort is code."""

    name: Name = Field(description="names the cohort's folders in results/")
    folder: Path = Field(description="where the recordings are")
    layout: LayoutName = Field(
        "bids",
        description="how recordings lie in the folder (docs/layouts.md); bids: raw images; "
        "parcels: parcel series (.npy, .tsv, .dat, .ptseries.nii)",
    )
    role: Literal["reference", "external", "predict"] = Field(
        "reference",
        description="reference: fits the scaling and trains; external: only evaluated; predict: "
        "preprocessed, embedded and predicted, but in no table of results",
    )
    watch: Literal["auto", "full", "sealed"] = Field(
        "auto",
        description="what a run looks at; auto: what is new, the newest 1000 recordings and the "
        "others in turn, each within a week (longer above 87,500); full: every recording; sealed: "
        "nothing (the finished cohort is one node of the graph)",
    )
    participants: Path | None = Field(
        None, description="table with participant_id; default <folder>/participants.tsv if present"
    )
    exclude: Path | None = Field(
        None, description="TSV with a recording_id column (and a reason) to leave out"
    )
    repetition_time_s: Positive | None = Field(
        None,
        description="s; used where neither sidecar nor header states one; a recording that "
        "states another is refused",
    )
    orientation: Annotated[str, AfterValidator(_check_orientation)] | None = Field(
        None,
        description="directions of the voxel axes (LAS: left, anterior, superior) of images "
        "whose headers have no orientation; a recording whose header says otherwise "
        "is refused",
    )
    task: str | None = Field(None, description="use only this BIDS task; default all")
    select: dict[str, Annotated[str, BeforeValidator(str)] | None] = Field(
        {},
        description="which version to use where a run has several, by entities of the file "
        "name: {rec: norm}, {echo: 2}; {rec: null} is the one without",
    )
    space: str | None = Field(
        None,
        description="template space of images that are already normalised "
        "(MNI152NLin6Asym:res-2); needed to choose one of several, or to accept "
        "another space than the atlas's (this is recorded)",
    )
    confounds: Literal["none"] | ConfoundStep | tuple[ConfoundStep, ...] = Field(
        "motion24",
        description="confounds to remove from images that are already normalised (never from "
        "FIX-cleaned ones), one or a list: motion6, motion24, wm-csf, acompcor, "
        "global; or none",
    )
    segmentation: str | None = Field(
        None,
        description="parcellation to read where a folder has several (XCP-D); also accepts one "
        "whose name is not the atlas's",
    )
    units: Literal["as delivered", "scanner", "percent"] = Field(
        "as delivered",
        description="units of parcel series: scanner for raw means, which are converted to "
        "percent of each parcel's mean; percent for series that are in percent "
        "already, as those made here are; series in other units cannot be trained "
        "on together with these",
    )

    @property
    def confound_steps(self) -> tuple[str, ...]:
        """What is removed, as a list: empty for none."""
        if isinstance(self.confounds, tuple):
            return self.confounds
        return () if self.confounds == "none" else (self.confounds,)


class Atlas(Section):
    name: Name = Field("a424", description="an entry of atlases/*.yaml")
    folder: Path = Field(
        Path("atlases/files"),
        description="folder of the atlas files; they are downloaded there if missing",
    )


#: What can be removed from the series, alone or together.
DenoiseStep = Literal[
    "ica", "ica-aggressive", "motion6", "motion24", "wm-csf", "acompcor", "global"
]


class Censor(Section):
    fd_mm: Positive = Field(
        description="mm; volumes with a larger framewise displacement (Power 2012) are missing",
    )


class Preprocess(Section):
    engine: Literal["builtin", "fsl"] = Field(
        "builtin",
        description="for motion, normalisation and ICA; fsl needs FSL on PATH",
    )
    min_duration_s: Positive = Field(120.0, description="s; shorter runs are listed as too_short")
    sample_period_s: Positive = Field(1.0, description="s; every series is resampled to this")
    high_pass_hz: Annotated[float, Field(ge=0)] = Field(
        0.008, description="Hz; slower drifts are removed; 0 keeps them"
    )
    low_pass_hz: Positive | None = Field(None, description="Hz; none by default")
    slice_timing: bool = Field(False, description="shift slices to the middle of the volume")
    denoise: Literal["none"] | DenoiseStep | tuple[DenoiseStep, ...] = Field(
        ("ica", "wm-csf"),
        description="one or a list, removed together: ica (ICA-AROMA rules, non-aggressive), "
        "ica-aggressive, motion6, motion24, wm-csf, acompcor, global; or none",
    )
    use_t1w: Literal["auto"] | bool = Field(
        "auto",
        description="normalise through the T1w image where there is one; auto: where it places "
        "the border of white matter better than the direct fit, as in most runs whose distortion "
        "is small (engine fsl: wherever its programs succeed)",
    )
    distortion: Literal["auto", "none", "pepolar", "fieldmap"] = Field(
        "auto",
        description="correct susceptibility distortion of raw runs: auto, with the field maps "
        "that the dataset states for a run (IntendedFor, B0FieldSource); pepolar, fieldmap: only "
        "by images of opposite phase encoding, or by phase and field maps, also those of the "
        "session that name no run; or none",
    )
    min_coverage: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5,
        description="a parcel with a smaller share of its voxels inside the field of view is NaN",
    )
    censor: Censor | None = Field(
        None,
        description="{fd_mm: 0.5}: time at which the head moved is marked as missing in the "
        "series, and counts in no filter, model or figure; nothing by default",
    )
    time_limit_min: Positive = Field(30.0, description="min; a recording that takes longer fails")

    outputs: tuple[Literal["timeseries", "volumes", "fsl-matrices"], ...] = Field(
        (),
        description="written in addition to the shards: timeseries (.tsv), volumes (denoised, in "
        "template space: about 1 GB a recording), fsl-matrices (one .mat a volume, as MCFLIRT's)",
    )

    @property
    def denoise_steps(self) -> tuple[str, ...]:
        """What is removed, as a list: empty for none."""
        if isinstance(self.denoise, tuple):
            return self.denoise
        return () if self.denoise == "none" else (self.denoise,)

    @property
    def uses_ica(self) -> bool:
        return any(step.startswith("ica") for step in self.denoise_steps)

    @model_validator(mode="after")
    def _slices_spread(self) -> Preprocess:
        if self.censor is not None and self.slice_timing:
            raise ValueError(
                "censor: slice_timing interpolates between volumes, which spreads censored ones "
                "into their neighbours; choose one of them"
            )
        return self

    @model_validator(mode="after")
    def _one_ica(self) -> Preprocess:
        if {"ica", "ica-aggressive"} <= set(self.denoise_steps):
            raise ValueError("denoise: choose ica or ica-aggressive, not both")
        return self


class Chunks(Section):
    recordings: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="recordings per chunk (= shard = cluster job)"
    )
    dtype: Literal["float16", "float32"] = Field(
        "float16", description="type of the stored series"
    )


PresetName = Literal[
    "tiny", "13m", "111m", "650m", "old_13M", "vitmae_111M", "vitmae_650M"
]  # fmt: skip
#: Presets whose tokens are of one parcel; images are padded to whole patches.
_PARCEL_PRESETS = ("tiny", "13m", "old_13M")


class Model(Section):
    preset: PresetName = Field(
        "13m", description="one of our presets, or a published model by its published name"
    )
    window: Annotated[int, Field(ge=2)] = Field(200, description="time points per window")
    patch: Annotated[int, Field(ge=1)] | None = Field(
        None, description="time points per patch; default 20, or 16 for the image presets"
    )
    start: str | None = Field(
        None,
        description="a finished model to use instead of pretraining: a folder, or "
        "owner/name[/subfolder] on the Hugging Face hub",
    )
    continue_training: bool = Field(
        False,
        description="continue pretraining from the weights of `start` on this study's release",
    )
    decoder_context: Literal["visible", "all"] | None = Field(
        None,
        description="tokens that the decoder attends to; default: visible for tiny and 13m, all "
        "for the other presets (as in the paper)",
    )
    learned_parcels: bool | None = Field(
        None,
        description="for tiny and 13m; with false, parcels are known by their coordinates "
        "alone, so that the model works with other atlases; default true",
    )


class Pretrain(Section):
    #: keys about machines and rhythm: changing one neither repeats a finished run nor begins anew
    FREE: ClassVar[frozenset[str]] = frozenset({
        "nodes", "gpus", "cpus", "attention", "compile", "activation_checkpointing", "sharding",
        "precision", "micro_batch_size", "checkpoint_every_min", "validate_every_epochs",
        "trackers", "hours",
    })  # fmt: skip

    epochs: Annotated[int, Field(ge=1)] = 100
    batch_size: Annotated[int, Field(ge=1)] = Field(
        512, description="windows per update, over all processes"
    )
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="windows per forward pass and process; auto: as many as the GPU's memory "
        "holds, 16 on the CPU",
    )
    learning_rate: Positive | None = Field(
        None,
        description="peak; default 1e-3, or for presets 111m and 650m 1.5e-4 per 256 windows of "
        "the batch (as masked autoencoders of images)",
    )
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05,
        description="share of all updates; of every preset what masked autoencoders of images "
        "take (40 of 800 epochs)",
    )
    beta2: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="decay of AdamW's second moment; default .999, or .95 for presets 111m and "
        "650m (as masked autoencoders of images)",
    )
    optimizer: Literal["muon", "adamw"] = Field(
        "muon",
        description="muon: Muon for the matrices of the blocks and AdamW for the rest; "
        "adamw: AdamW for all, as in the paper",
    )
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    mask: Literal["random", "future"] = "random"
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="share of the training participants to use, for scaling studies; the "
        "number of updates stays the same",
    )
    seed: int = 1234
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto", description="auto: bf16 autocast on CUDA, float32 elsewhere"
    )
    attention: Literal["auto", "flash", "flash-attn", "math"] = "auto"
    sharding: Literal["ddp", "fsdp"] = "ddp"
    compile: bool | Literal["auto"] = Field(
        "auto", description="compile the transformer blocks; auto: only on CUDA"
    )
    activation_checkpointing: bool = Field(
        False,
        description="recompute activations in the backward pass: less memory, a third "
        "more computation",
    )
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="where metrics go in addition to metrics.jsonl; nowhere by default"
    )
    checkpoint_every_min: Positive = Field(10.0, description="min between checkpoints")
    validate_every_epochs: Annotated[int, Field(ge=1)] = 1
    nodes: Annotated[int, Field(ge=1)] = 1
    gpus: Annotated[int, Field(ge=0)] = Field(0, description="GPUs per node; 0 trains on the CPU")
    cpus: Annotated[int, Field(ge=1)] = Field(
        8, description="CPUs per node; default 12 per GPU, or 8 without GPUs"
    )
    hours: Positive = Field(
        24.0,
        description="h; time limit of a training or evaluation job on a cluster; a training "
        "that reaches it resumes in the next job",
    )

    def of_preset(self, name: str) -> Pretrain:
        """With the learning rate and β₂ of a preset where none are stated."""
        large = name.endswith(("111m", "650m", "111M", "650M"))
        rate = 1.5e-4 * self.batch_size / 256 if large else 1e-3
        return self.model_copy(update={
            "learning_rate": self.learning_rate or rate,
            "beta2": self.beta2 or (0.95 if large else 0.999),
        })  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _share_cpus(cls, given: Any) -> Any:
        """The CPUs that a GPU's loader keeps busy, where they are not stated."""
        if isinstance(given, dict) and "cpus" not in given and isinstance(given.get("gpus"), int):
            return given | {"cpus": 12 * given["gpus"] or 8}
        return given

    @property
    def loader_threads(self) -> int:
        """Threads that make batches, of each process: half of its share of the CPUs."""
        return max(1, self.cpus // max(1, self.gpus) // 2) if self.gpus else 1


class Finetune(Section):
    pool: Literal["auto", "connectivity", "mean", "cls"] = Field(
        "auto",
        description="what the head sees: correlations between the parcels' tokens, the mean of "
        "the tokens, or CLS (as in the paper); auto: connectivity for models with a "
        "token per parcel, else mean",
    )
    epochs: Annotated[int, Field(ge=1)] = 30
    batch_size: Annotated[int, Field(ge=1)] = 32
    learning_rate: Positive = 3e-4


class Evaluate(Section):
    mask_ratios: tuple[float, ...] = (0.2, 0.75, 0.9)
    bootstrap: Annotated[int, Field(ge=100)] = Field(
        2000, description="bootstrap resamples of participants"
    )
    seed: int = 1234


def _without_braces(path: Path) -> Path:
    if {"{", "}"} & set(str(path)):
        raise ValueError("braces are wildcards to Snakemake: choose another folder")
    return path


class Config(Section):
    """The whole of config.yaml."""

    def fingerprint(self) -> str:
        """12 hex digits that identify the resolved configuration (results/config.json)."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    results: Annotated[Path, AfterValidator(_without_braces)] = Path("results")
    release: Name = Field(
        "r1", description="name of the frozen list of shards, with their scaling, to train on"
    )
    tasks: tuple[str, ...] = Field(
        ("reconstruction", "age", "forecasting", "attention", "latent"),
        description="what to evaluate: names of files in workflow/tasks, or paths of such files",
    )
    cohorts: tuple[Cohort, ...] = Field(min_length=1)
    atlas: Atlas = Atlas()
    preprocess: Preprocess = Preprocess()
    chunks: Chunks = Chunks()
    model: Model = Model()
    pretrain: Pretrain = Pretrain()
    finetune: Finetune = Finetune()
    evaluate: Evaluate = Evaluate()
    retry_failed: Annotated[int, Field(ge=0)] = Field(
        0, description="raise it by one to try every failed recording once more"
    )
    max_failed_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.2, description="a run with more failed recordings than this ends with an error"
    )

    @property
    def paths(self) -> Results:
        """Where the results are."""
        return Results(self.results, self.release)

    @property
    def takes_model(self) -> bool:
        """Whether a finished model takes the place of pretraining."""
        return self.model.start is not None and not self.model.continue_training

    @property
    def has_reference(self) -> bool:
        """Whether anything is trained or evaluated; else scans are embedded and predicted."""
        return any(cohort.role == "reference" for cohort in self.cohorts)

    def cohort(self, name: str) -> Cohort:
        for cohort in self.cohorts:
            if cohort.name == name:
                return cohort
        raise BrainLMError(
            f"no cohort {name!r} in the configuration; it has: "
            + ", ".join(c.name for c in self.cohorts)
        )


def _known_keys(root: type[Section], path: tuple[Any, ...]) -> list[str]:
    """Field names of the section that a validation error's location points into."""
    section: Any = root
    for part in path:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        arguments = [a for a in getattr(annotation, "__args__", ()) if hasattr(a, "model_fields")]
        section = arguments[0] if arguments else annotation
    return list(section.model_fields)


def explain(error: ValidationError, root: type[Section]) -> list[str]:
    """Every offending key, what was found and, for a misspelt key, the nearest name."""
    lines = []
    for item in error.errors():
        if item["type"] == "too_short" and item["input"]:
            continue  # only says again that an entry of the list is wrong
        if not item["loc"]:  # of keys that do not go together
            lines.append(item["msg"].removeprefix("Value error, "))
            continue
        *parents, key = item["loc"]
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(key), _known_keys(root, tuple(parents)), 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else "remove it"
            lines.append(f"{where}: unknown key; {hint}")
        else:
            lines.append(f"{where}: {item['msg']} (found {item['input']!r:.80})")
    return lines


def parse_config(values: dict[str, Any], source: str = "config") -> Config:
    """Validate a plain dictionary.

    Raises
    ------
    BrainLMError
        Naming every offending key, what was found and, for a misspelt key, the nearest name.
    """
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise BrainLMError(f"{source}: " + "; ".join(explain(error, Config))) from None
    names = [cohort.name for cohort in config.cohorts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BrainLMError(f"{source}: cohort name used twice: {', '.join(twice)}; rename one")
    if config.model.continue_training and config.model.start is None:
        raise BrainLMError(f"{source}: model.continue_training needs model.start: which model?")
    if not config.has_reference and config.model.start is None:
        raise BrainLMError(
            f"{source}: no cohort has role: reference, so nothing can be trained; give one that "
            "role, or name a finished model with model.start"
        )
    whole = config.model.preset in _PARCEL_PRESETS
    patch = config.model.patch or 20
    if whole and config.model.window % patch:
        raise BrainLMError(
            f"{source}: model.window ({config.model.window}) must be a multiple of model.patch "
            f"({patch})"
        )
    return config


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Keys and values of a YAML file; anything else is refused in words."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrainLMError(f"{path}: configuration file not found") from None
    except (UnicodeDecodeError, yaml.reader.ReaderError):
        raise BrainLMError(f"{path}: expected a YAML text, found something else") from None
    except yaml.YAMLError as error:
        raise BrainLMError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise BrainLMError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


def sweep_point(config: Config, preset: str, share: str, seed: str) -> Config:
    """The configuration of one pretraining of a scaling task."""
    values = config.model_dump(mode="json")
    values["model"] |= {"preset": preset, "start": None, "continue_training": False}
    values["pretrain"] |= {"share": share, "seed": seed}
    return parse_config(values, "--sweep")


def load_config(*paths: str | Path) -> Config:
    """Read one or more YAML files, later ones overriding earlier ones key by key."""
    merged: dict[str, Any] = {}
    for path in paths:
        merged = _merge(merged, read_yaml(path))
    return parse_config(merged, " + ".join(str(path) for path in paths))


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merge(out[key], value) if both else value
    return out
