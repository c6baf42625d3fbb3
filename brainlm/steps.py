"""Every step of a study, stated once: what it runs, what its result depends on, what it makes.

Snakemake's triggers, the outcome cache, the sidecars, the verbs and their help, what a job asks of
the cluster, `brainlm status` and the methods paragraph are read from this table. A new step is an
entry here, a function and a rule. Snakemake imports this at every parse, so it imports nothing
heavy.

Raise a step's version when its code changes its output: exactly that step and those after it are
run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Literal

from . import templateflow
from .atlas import Identity, Registered, identify_atlas
from .cohort.layouts import LAYOUTS
from .config import Cohort, Config, Preprocess, Pretrain, Section
from .files import read_json


@dataclass(frozen=True)
class Dependencies:
    """What a step's result depends on, besides its input and its code.

    Attributes
    ----------
    settings : dict
        Of the configuration.
    cohort : dict
        Of what the cohort's entry says about its files, by key of `Cohort`.
    atlas : dict
        Of ``name``, ``space`` and ``image_sha256``.
    task : dict or None
        The declaration of the job's task.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    cohort: dict[str, Any] = field(default_factory=dict)
    atlas: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] | None = None


#: ``(config, cohort, atlas, task) -> Dependencies``; tasks are of rules after the shards only
Depends = Callable[[Config, Cohort | None, Identity | None, Any], Dependencies]


@dataclass(frozen=True)
class Cost:
    """What a step takes, as far as it depends on a chunk's recordings (docs/scaling.md).

    Attributes
    ----------
    share : float
        Of the seconds that a raw recording takes by the size of its file.
    seconds : float
        Per recording, whatever its size.
    job_mb, worker_mb, mb_per_file_mb : float
        Memory of the job, of each recording that is at work, and of each MB of its file.
    """

    share: float = 0.0
    seconds: float = 1.0
    job_mb: float = 1000
    worker_mb: float = 400
    mb_per_file_mb: float = 1


@dataclass(frozen=True)
class Step:
    """One step; its name is that of its verb and its rule.

    Attributes
    ----------
    help, example : str
        Of the verb.
    of : str
        What the function is called for: each ``recording`` (those steps are called stages: they
        keep an outcome per recording and write a table per chunk), each ``chunk``, or the
        ``study``.
    run : str
        ``module:function``, imported when it is called: ``(entry, context)`` of a recording,
        ``(chunk, context, *, workers, log)`` of a chunk. Empty of the study: the command line
        does the work.
    prepare : str
        Of a recording's step: ``module:function`` that loads what all recordings share, before
        they are forked; ``(context)``.
    depends : callable
        The only statement of what the result depends on.
    enters : str
        Of a recording's step: taken by recordings of layouts that enter here
        (:attr:`Layout.enters`), in the order of the table.
    makes : callable
        Preprocess settings -> names of the files of each recording, as in
        :meth:`brainlm.preprocess.stages.context.Context.made`. An outcome in the cache counts
        only while these are there and whole.
    sentence : str
        ``module:function`` that describes the step in the methods paragraph.
    """

    name: str
    help: str
    of: Literal["recording", "chunk", "study"] = "study"
    run: str = ""
    prepare: str = ""
    version: int = 1
    depends: Depends = lambda config, cohort, atlas, task: Dependencies()
    enters: str = ""
    makes: Callable[[Preprocess], tuple[str, ...]] = lambda options: ()
    cost: Cost = Cost()
    sentence: str = ""
    example: str = ""


def load(reference: str) -> Callable[..., Any]:
    """The function that ``module:function`` names."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def pick(section: Section, *names: str) -> dict[str, Any]:
    return {name: getattr(section, name) for name in names}


def pick_set(section: Section, *names: str) -> dict[str, Any]:
    """Only what differs from the default: a key that came later leaves what was made before."""
    fields = type(section).model_fields
    return {n: v for n, v in pick(section, *names).items() if v != fields[n].default}


# ---- what results depend on ---------------------------------------------------------------------


def _motion(config, cohort, atlas, task) -> Dependencies:
    said = pick(cohort, "repetition_time_s", "orientation") if cohort else {}
    return Dependencies(pick(config.preprocess, "engine", "min_duration_s", "slice_timing"), said)


def _normalise(config, cohort, atlas, task) -> Dependencies:
    settings = pick(config.preprocess, "engine", "use_t1w")
    settings |= _template(atlas) | pick_set(config.preprocess, "distortion")
    if config.preprocess.use_t1w:
        settings["t1w_version"] = 5  # its code changed; what was fitted directly stays
    return Dependencies(settings, atlas=_atlas(atlas, "space"))


def _template(atlas: Identity | None) -> dict[str, Any]:
    """An image that nilearn carries once stood in for this template, with other results."""
    return {"template": "templateflow"} if atlas and atlas.space == templateflow.SPACE else {}


def _denoise(config, cohort, atlas, task) -> Dependencies:
    options = config.preprocess
    settings = pick(options, "engine", "denoise", "high_pass_hz") | _template(atlas)
    if "ica" in options.denoise_steps and len(options.denoise_steps) > 1:
        settings["confounds"] = "whole"  # they once shared with the components that are kept
    if {"wm-csf", "acompcor"} & set(options.denoise_steps):
        settings["fluid"] = "deep"  # grey matter's signal once reached into it
    return Dependencies(settings, atlas=_atlas(atlas, "space"))


def _parcellate(config, cohort, atlas, task) -> Dependencies:
    names = ("sample_period_s", "high_pass_hz", "low_pass_hz", "min_coverage", "outputs")
    settings = pick(config.preprocess, *names) | _censor(config)
    return Dependencies(settings, atlas=_atlas(atlas, *_PARCELS))


def _censor(config) -> dict[str, Any]:
    """Of what is not censored nothing depends on the key, which came later."""
    censor = config.preprocess.censor
    if censor is None:
        return {}
    return {"censor": censor.model_dump()} | pick(config.preprocess, "min_duration_s")


def _volumes(config, cohort, atlas, task) -> Dependencies:
    names = ("min_duration_s", "sample_period_s", "high_pass_hz", "low_pass_hz", "min_coverage")
    said = pick(cohort, "repetition_time_s", "orientation", "space", "confounds") if cohort else {}
    settings = pick(config.preprocess, *names) | _censor(config)
    return Dependencies(settings, said, _atlas(atlas, *_PARCELS))


def _series(config, cohort, atlas, task) -> Dependencies:
    names = ("min_duration_s", "sample_period_s", "high_pass_hz", "low_pass_hz")
    said = pick(cohort, "repetition_time_s", "segmentation", "units") if cohort else {}
    settings = pick(config.preprocess, *names) | _censor(config)
    return Dependencies(settings, said, _atlas(atlas, *_PARCELS))


_PARCELS = ("name", "space", "image_sha256")


def _atlas(atlas: Identity | None, *names: str) -> dict[str, Any]:
    return {name: getattr(atlas, name) for name in names} if atlas else {}


def _shard(config, cohort, atlas, task) -> Dependencies:
    return Dependencies({"dtype": config.chunks.dtype})


def _model(config: Config) -> dict[str, Any]:
    """Keys of later versions count only where they are set."""
    later = ("start", "continue_training", "learned_parcels")
    return config.model.model_dump(exclude=set(later)) | pick_set(config.model, *later)


def _pretrain(config, cohort, atlas, task) -> Dependencies:
    of_preset = config.pretrain.of_preset(config.model.preset)
    options = of_preset.model_dump(exclude=set(Pretrain.FREE))
    if config.pretrain.beta2 is None:  # the key is younger than finished models, which stay
        del options["beta2"]
    if options["optimizer"] == "muon":  # the key is younger than finished models, which stay
        del options["optimizer"]
    return Dependencies({"model": _model(config), "pretrain": options})


def _embed(config, cohort, atlas, task) -> Dependencies:
    return Dependencies({"model": _model(config)})


def _finetune(config, cohort, atlas, task) -> Dependencies:
    settings = {"model": _model(config), "finetune": config.finetune.model_dump()}
    others = {"seeds", "networks"}  # a job per seed; networks are other methods
    return Dependencies(settings, task=task and task.model_dump(exclude=others))


def _evaluate(config, cohort, atlas, task) -> Dependencies:
    settings = {"model": _model(config), "evaluate": config.evaluate.model_dump()}
    return Dependencies(settings, task=task and task.model_dump())


# ---- the table ----------------------------------------------------------------------------------


def _made_by_denoise(options: Preprocess) -> tuple[str, ...]:
    return ("confounds", "mixing", "metrics", "maps") if options.uses_ica else ("confounds",)


def _made_by_parcellate(options: Preprocess) -> tuple[str, ...]:
    return "coverage", "filtered", "series", *(n.replace("-", "_") for n in options.outputs)


_IMAGE_MB = 12  # of memory per MB of file: 675 MB for a file of 26 MB, the base taken off
_PRETRAIN = Step(
    "pretrain",
    "train the masked autoencoder on the release; resumes by itself",
    depends=_pretrain,
    example="torchrun --standalone --nproc-per-node 8 -m brainlm pretrain",
)
_FINETUNE = Step(
    "finetune",
    "fine-tune on a task's column of the participants tables",
    version=5,
    depends=_finetune,
    example="brainlm finetune --task age --seed 1",
)

STEPS: dict[str, Step] = {
    step.name: step
    for step in (
        Step(
            "motion",
            "estimate rigid motion; write transforms, confounds, reference image and mask",
            of="recording",
            run="brainlm.preprocess.stages.motion_stage:run_motion",
            prepare="brainlm.preprocess.stages.motion_stage:prepare",
            version=6,
            depends=_motion,
            enters="motion",
            makes=lambda options: ("boldref", "mask", "tsnr", "transforms", "confounds"),
            cost=Cost(share=0.4, mb_per_file_mb=_IMAGE_MB),
            sentence="brainlm.preprocess.motion.motion_text:describe_motion",
        ),
        Step(
            "normalise",
            "fit the transform from the template to the recording",
            of="recording",
            run="brainlm.preprocess.stages.normalise_stage:run_normalise",
            prepare="brainlm.preprocess.stages.normalise_stage:prepare",
            version=5,
            depends=_normalise,
            enters="motion",
            makes=lambda options: ("normalisation",),
            cost=Cost(share=0.35, mb_per_file_mb=_IMAGE_MB),
            sentence="brainlm.preprocess.normalise.normalise_text:describe_normalisation",
        ),
        Step(
            "denoise",
            "fit an ICA and decide which components are artefacts",
            of="recording",
            run="brainlm.preprocess.stages.denoise_stage:run_denoise",
            prepare="brainlm.preprocess.stages.denoise_stage:prepare",
            version=4,
            depends=_denoise,
            enters="motion",
            makes=_made_by_denoise,
            cost=Cost(share=0.3, mb_per_file_mb=_IMAGE_MB),
            sentence="brainlm.preprocess.denoise.denoise_text:describe_denoising",
        ),
        Step(
            "parcellate",
            "sample the voxels once into parcels; filter, denoise, resample",
            of="recording",
            run="brainlm.preprocess.stages.parcellate_stage:run_parcellate",
            prepare="brainlm.preprocess.stages.parcellate_stage:prepare",
            version=6,
            depends=_parcellate,
            enters="motion",
            makes=_made_by_parcellate,
            cost=Cost(share=0.25, mb_per_file_mb=_IMAGE_MB),
            sentence="brainlm.preprocess.parcellate.parcellate_text:describe_parcellation",
        ),
        Step(
            "volumes",
            "parcellate images that are already in template space; filter, denoise, resample",
            of="recording",
            run="brainlm.preprocess.delivered.volumes:take_volumes",
            prepare="brainlm.preprocess.delivered.volumes:prepare",
            depends=_volumes,
            enters="volumes",
            makes=lambda options: ("coverage", "filtered", "series"),
            cost=Cost(share=0.5, mb_per_file_mb=_IMAGE_MB),
        ),
        Step(
            "series",
            "read parcel series that someone else made",
            of="recording",
            run="brainlm.preprocess.delivered.parcel_series:take_series",
            version=2,
            depends=_series,
            enters="series",
            makes=lambda options: ("series",),
        ),
        Step(
            "shard",
            "write a chunk's shard and its scaling statistics",
            of="chunk",
            run="brainlm.preprocess.collect:write_chunk_shard",
            depends=_shard,
            cost=Cost(seconds=0.1, job_mb=2000, worker_mb=0, mb_per_file_mb=0),
        ),
        Step(
            "pages",  # what changes a recording's results draws its page anew
            "write the pages of a chunk's recordings",
            of="chunk",
            run="brainlm.report.pages:write_chunk_pages",
            makes=lambda options: ("page",),
            cost=Cost(seconds=2.0),
        ),
        Step(
            "release",
            "freeze the reference shards and fit the robust scaling",
            example="brainlm release --config config.yaml",
        ),
        Step(
            "summary",
            "count the recordings by status and list the failures",
            example="brainlm summary",
        ),
        _PRETRAIN,
        replace(_PRETRAIN, name="sweep", help="train one model of a scaling task", example=""),
        _FINETUNE,
        replace(
            _FINETUNE,
            name="predict",
            help="predict external cohorts with a fine-tuned model",
            example="brainlm predict --task age --seed 1",
        ),
        Step(
            "embed",
            "embed scans with a finished model: raw BOLD images, images in template space, parcel "
            "series, a folder of them, or a cohort of config.yaml",
            depends=_embed,
            example="brainlm embed sub-01_task-rest_bold.nii.gz --model path/to/model",
        ),
        Step(
            "evaluate",
            "compare methods and baselines, with confidence intervals",
            version=3,
            depends=_evaluate,
            example="brainlm evaluate --task reconstruction   (or --task age)",
        ),
        Step("report", "write the report's pages", example="brainlm report"),
    )
}


def stages_of(layout: str) -> list[str]:
    """Steps of a recording in order, for a cohort that enters by this layout."""
    enters = LAYOUTS[layout].enters
    return [step.name for step in STEPS.values() if step.enters == enters]


def needs_template(config: Config) -> bool:
    """Whether raw images are fitted to a template that has to be fetched."""
    raw = any(is_raw(cohort) for cohort in config.cohorts)
    return raw and identify_atlas(config.atlas.name).space == templateflow.SPACE


def is_raw(cohort: Cohort) -> bool:
    """Whether a cohort's recordings are fitted to the template here."""
    return "normalise" in stages_of(cohort.layout)


# ---- what follows from it -----------------------------------------------------------------------


def trigger(
    name: str,
    config: Config,
    *,
    cohort: Cohort | None = None,
    atlas: Identity | None = None,
    first: Identity | None = None,
    task: Any = None,
    rows: Mapping[str, str] | None = None,
) -> str:
    """The code version and the facts of a step as one string: Snakemake reruns when it changes.

    `first` is the study's first atlas. A study that stays with it has the strings that it had
    before the atlas's space and checksum counted. `rows` are digests of what tables next to the
    configuration say; they are in no outcome key, since each recording's own outcome stays.
    """
    step = STEPS[name]
    facts = step.depends(config, cohort, atlas, task)
    parts: list[Any] = [step.version, facts.settings]
    parts += [facts.atlas["name"]] if "name" in facts.atlas else []
    parts += [facts.task] if facts.task else []
    said = _differing(facts, first) | dict(rows or {})
    return _as_json([*parts, said] if said else parts)


#: Dependencies of a cohort that outcome keys have named since the beginning, also where not set.
_ALWAYS_KEYED = {"repetition_time_s", "space", "confounds", "segmentation"}


def outcome_recipe(
    name: str, config: Config, cohort: Cohort, atlas: Identity, first: Identity | None = None
) -> str:
    """The versions and facts of a recording's step and of those before it, for the outcome key.

    It changes when the trigger of one of them does: both are of the same facts.
    """
    first = first or atlas
    order = stages_of(cohort.layout)
    before = order[: order.index(name) + 1] if name in order else [*order, name]
    facts = {n: STEPS[n].depends(config, cohort, atlas, None) for n in before}
    own = facts[name if name in order else order[-1]].atlas
    parts: dict[str, Any] = {
        "stages": [[n, STEPS[n].version, facts[n].settings] for n in before],
        "atlas": own.get("image_sha256") or own.get("space") or first.space,
        "repetition_time_s": None,
    }
    for one in facts.values():
        parts |= {k: v for k, v in one.cohort.items() if k in _ALWAYS_KEYED}
        parts |= {k: v for k, v in _differing(one, first).items() if k not in _ALWAYS_KEYED}
    return _as_json(parts)


def _differing(facts: Dependencies, first: Identity | None) -> dict[str, Any]:
    """What a cohort states beyond the defaults, and where the atlas is not the study's first."""
    default = {key: Cohort.model_fields[key].default for key in facts.cohort}
    said = {key: value for key, value in facts.cohort.items() if value != default[key]}
    other = {k: v for k, v in facts.atlas.items() if first and v != getattr(first, k)}
    return said | {f"atlas_{key}": value for key, value in other.items()}


def sidecar_parameters(name: str, config: Config, engine: Any = None) -> dict[str, Any]:
    """All settings that a step's result depends on, for the sidecar."""
    settings = dict(STEPS[name].depends(config, None, None, None).settings)
    settings.pop("outputs", None)
    return settings | getattr(engine, "SETTINGS", {})


#: Settings that decide which recordings are used or what else is written, no value of a series.
_NOT_OF_SERIES = {"min_duration_s", "outputs", "t1w_version"}
#: Keys that triggers leave out at their default, since they came later; by the stage.
_LATER = {
    "normalise": ("distortion",), "parcellate": ("censor",), "volumes": ("censor",),
    "series": ("censor",),
}  # fmt: skip
#: What was so before models said it.
_UNSAID = {"censor": None}
#: What comes in, by the stage at which it does.
_ENTERS = {
    "motion": "raw images",
    "volumes": "images in a template's space",
    "series": "parcel series",
}


def describe_series(config: Config, cohorts: Iterable[Cohort]) -> dict[str, Any]:
    """What decides the values of the cohorts' series, as JSON holds it: the settings of their
    steps, and under ``enters`` what came in. It goes into a model's config.json.
    """
    layouts = {cohort.layout for cohort in cohorts}
    enters = {_ENTERS[LAYOUTS[layout].enters] for layout in layouts}
    found: dict[str, Any] = {"enters": sorted(enters)}
    said = config.preprocess.model_dump(mode="json")
    for layout in layouts:
        for stage in stages_of(layout):
            found |= STEPS[stage].depends(config, None, None, None).settings
            found |= {key: said[key] for key in _LATER.get(stage, ())}
    return {
        key: value for key, value in json.loads(_as_json(found)).items()
        if key not in _NOT_OF_SERIES
    }  # fmt: skip


def list_other_settings(trained: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """A sentence for each setting of :func:`describe_series` that both know and that differs."""
    out = []
    if trained and not set(here["enters"]) <= set(trained["enters"]):
        came, before = (", ".join(of["enters"]) for of in (here, trained))
        out.append(f"made from {came}, the model's training data from {before}")
    known = _UNSAID | dict(trained) if trained else {}
    return out + [
        f"preprocess.{key} is {_as_written(here[key])}, of the model's training data "
        f"{_as_written(known[key])}"
        for key in sorted(known.keys() & here.keys() - {"enters"})
        if here[key] != known[key]
    ]


def _as_written(value: Any) -> str:
    """As in config.yaml."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {inner}' for key, inner in value.items())}}}"
    return "none" if value is None else str(value)


def read_first_atlas(config: Config) -> Identity | None:
    """The study's first atlas; None before the first plan."""
    path = config.paths.first_atlas
    return Registered(**read_json(path)) if path.exists() else None


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
