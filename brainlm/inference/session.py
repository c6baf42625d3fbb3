"""``brainlm embed`` and ``brainlm predict``: a model, some scans, a table and a page."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from .. import templateflow
from ..atlas import load_atlas
from ..config import Atlas as AtlasOptions
from ..config import Config, Preprocess, parse_config
from ..errors import BrainLMError
from ..progress import Count
from ..shards import Corpus, Scaling
from ..steps import describe_series, list_other_settings, needs_template
from .page import write_session_page
from .scans import dataset_root, guess_layout, open_cohort, open_scans, preprocess
from .vectors import write_vectors

if TYPE_CHECKING:
    from ..model import BrainLM

#: What is made of a corpus by a model, with notes for each row, told of every recording that is
#: done: a table with a row per window and per recording.
Inference = Callable[["BrainLM", Corpus, list[str], Callable[[int], None]], pd.DataFrame]
#: Settings of programs and files that another machine need not have: said where they differ.
_LOCAL = {"engine"}


@dataclass(frozen=True)
class Session:
    """A model and the scans that it is run on.

    Attributes
    ----------
    source : str
        An image, a parcel series, a folder, or a cohort of `study`.
    model : str or None
        The model of `study`, or a folder, or ``owner/name[/subfolder]`` on the Hugging Face hub.
    study : Config or None
        A configuration: its cohorts can be named, its atlas folder and preprocessing are used.
    cohort : dict
        What the source's files do not say, under the keys of a cohort in config.yaml (layout,
        repetition_time_s, units, confounds, space).
    scaling : Path or None
        For a model that carries none.
    short : str
        ``pad`` takes recordings that are shorter than a window too.
    workers : int
        Recordings at a time.
    part : str
        Of a cohort of `study`: this part of it only.
    """

    source: str
    model: str | None = None
    study: Config | None = None
    cohort: dict[str, Any] = field(default_factory=dict)
    scaling: Path | None = None
    short: str = "refuse"
    workers: int = os.cpu_count() or 1
    part: str = ""

    def run(
        self,
        verb: str,
        method: Inference,
        out: Path,
        form: str,
        check: Callable[[BrainLM], object],
        log: Callable[[str], None] = print,
    ) -> pd.DataFrame:
        """Preprocess the scans, run `method`, write its table to `out` and a page next to it.

        What preprocessing made is next to it too, in a folder named after the source: another
        `method`, or another model of the same preprocessing, begins there.

        `check` refuses a model that `method` cannot use, before any scan is looked at.

        Raises
        ------
        BrainLMError
            `out` exists; the source or the model cannot be used; nothing could be made of any
            scan. No table is written then.
        """
        if out.exists():
            raise BrainLMError(f"{out}: exists; remove it, or name another file with --out")
        of_study = self._of_study()
        if self.part and not of_study:
            raise BrainLMError(f"{self.source}: --part is for cohorts of the configuration")
        model = self.open_model()
        check(model)
        if of_study and self.study:
            corpus = open_cohort(self.study, self.source, self.part)
            notes, paths = list_differences(model, self.study, self.source), self.study.paths
            names = [self.source, self.part] if self.part else [self.source]
            count = Count(verb, len(corpus), paths.release_record(verb, *names), log)
            table = method(model, corpus, notes, count)
        else:
            config = self._configure(model, out.with_name(f"{self.name}_files"))
            notes = list_differences(model, config)
            for note in notes:
                log(f"note: {note}")
            corpus = self._preprocess(model, config, log)
            count = Count(verb, len(corpus), config.paths.release_record(verb), log)
            table = method(model, corpus, notes, count)
            page = write_session_page(table, model, self.model_name, self.source, config)
            self._check_any(table, page)
            log(f"{page}: what came out, and how good the recordings are")
        for path in write_vectors(table, out, form):
            failed = int(table["status"].ne("ok").sum())
            log(f"{path}: {len(table)} rows, {failed} without a result")
        return table

    def _check_any(self, table: pd.DataFrame, page: Path) -> None:
        if table["status"].eq("ok").any():
            return
        first = table.iloc[0]
        raise BrainLMError(
            f"{self.source}: none of {len(table)} recordings could be used; "
            f"{first['recording_id']}: {first['status']}: {first['reason']}; see {page}"
        )

    @property
    def name(self) -> str:
        """The source's, for the files that are made of it."""
        return Path(self.source).absolute().name.split(".")[0]

    @property
    def model_name(self) -> str:
        """What the user named, or the study's own model.

        Raises
        ------
        BrainLMError
            Nothing is named, and the source is no cohort of a study.
        """
        if self.model:
            return self.model
        if self.study is None:
            raise BrainLMError("--model: name a model folder or owner/name[/subfolder]")
        return str(self.study.paths.pretrained)

    def open_model(self) -> BrainLM:
        """The model with its scaling, on the process's device.

        Raises
        ------
        BrainLMError
            No such model, or one that carries no scaling, and none is named.
        """
        from ..model import from_pretrained
        from ..model.hub import split_name
        from ..training.device import choose_device, prepare

        if self.study:
            choose_device(self.study.pretrain)

        scaling, points = None, None
        if self.scaling:
            scaling = Scaling.load(self.scaling)
            folder = (self.study.atlas if self.study else AtlasOptions()).folder
            points = load_atlas(scaling.atlas, folder).coordinates
        model = from_pretrained(*split_name(self.model_name), coordinates=points)
        own = model.scaling
        if scaling is not None and own is None:
            model.scaling = scaling
        elif scaling is not None and own is not None:
            if own.atlas_sha256 == scaling.atlas_sha256:
                raise BrainLMError(
                    f"{self.model_name}: carries its own scaling; leave --scaling out"
                )
            model = model.on_atlas(points, scaling)
        if model.scaling is None:
            raise BrainLMError(
                f"{self.model_name}: carries no scaling (published weights have none): name one "
                "with --scaling results/releases/<release>/scaling.json, fitted on a reference "
                "cohort of yours"
            )
        return prepare(model)

    def _of_study(self) -> bool:
        names = [cohort.name for cohort in self.study.cohorts] if self.study else []
        if self.source not in names and not Path(self.source).exists():
            known = f"; cohorts of the configuration: {', '.join(names)}" if names else ""
            raise BrainLMError(f"{self.source}: no such file or folder{known}")
        return self.source in names

    def _preprocess(self, model: BrainLM, config: Config, log) -> Corpus:
        assert model.scaling is not None
        source = Path(self.source).absolute()
        atlas = load_atlas(config.atlas.name, config.atlas.folder)
        if atlas.image_sha256 != model.scaling.atlas_sha256:
            raise BrainLMError(
                f"{self.model_name}: made with another {atlas.name} atlas (checksum "
                f"{model.scaling.atlas_sha256[:12]}) than {config.atlas.folder} holds "
                f"({atlas.image_sha256[:12]})"
            )
        if needs_template(config):
            templateflow.get_files()
        return preprocess(open_scans(source, config), atlas, workers=self.workers, log=log)

    def _configure(self, model: BrainLM, files: Path) -> Config:
        """The configuration of a study of one cohort, the source, for this model: the series are
        made as its training data were, except for what a given configuration sets itself."""
        assert model.scaling is not None
        source = Path(self.source).absolute()
        base = self.study.model_dump(mode="json") if self.study else {}
        values: dict[str, Any] = {key: base[key] for key in ("atlas", "chunks") if key in base}
        period, window = model.scaling.sample_period_s, model.config.window
        stored = set(model.config.preprocess) & set(Preprocess.model_fields) - _LOCAL
        preprocess = {key: model.config.preprocess[key] for key in stored}
        if self.study:
            said = self.study.preprocess.model_fields_set
            preprocess |= {k: v for k, v in base["preprocess"].items() if k in said}
        preprocess["sample_period_s"] = period
        if self.short == "pad":
            preprocess["min_duration_s"] = min(30.0, window * period)
        cohort = {
            "name": "scans",
            "folder": str(source if source.is_dir() else dataset_root(source)),
            "role": "predict",
            "watch": "full",
            "layout": guess_layout(source),
        } | {key: value for key, value in self.cohort.items() if value is not None}
        if cohort["layout"] == "parcels" and model.scaling.units == "percent":
            cohort.setdefault("units", "percent")
        values["atlas"] = values.get("atlas", {}) | {"name": model.scaling.atlas}
        values |= {"results": str(files), "cohorts": [cohort], "preprocess": preprocess}
        values["model"] = {"start": self.model_name}
        return parse_config(values, self.source)


def list_differences(model: BrainLM, config: Config, cohort: str = "") -> list[str]:
    """What decides the series of a cohort (the only one, if none is named) otherwise than those
    that the model was trained on; nothing where the model does not know."""
    own = config.cohort(cohort) if cohort else config.cohorts[0]
    return list_other_settings(model.config.preprocess, describe_series(config, [own]))
