"""Where everything under ``results/`` is: each path is stated here, and only here.

Methods take names and give paths; given Snakemake's wildcards (``"{cohort}"``) they give the
patterns of the rules. docs/architecture.md shows the same folder as a tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: What a fit begins with: the pretrained model, or the same network untrained.
STARTS = ("finetune", "scratch")
#: in a release's folder, see :func:`brainlm.shards.release.read_places`
PLACES = "places.parquet"


@dataclass(frozen=True)
class Results:
    """The results folder of a study.

    Attributes
    ----------
    folder : Path
        ``results`` of the configuration.
    release : str or None
        Which release's models and tables are meant; needed for those only.
    """

    folder: Path
    release: str | None = None

    # ---- the study ----

    @property
    def config(self) -> Path:
        """The resolved configuration, which jobs read."""
        return self.folder / "config.json"

    @property
    def first_atlas(self) -> Path:
        """The atlas that the study began with: what is made with another says so."""
        return self.folder / "first_atlas.json"

    @property
    def running(self) -> Path:
        """There while a run is going on, or after one that was killed."""
        return self.folder / ".running"

    @property
    def summary(self) -> Path:
        """Recordings by cohort and status."""
        return self.folder / "summary.tsv"

    @property
    def failures(self) -> Path:
        """Recordings without a series, and why."""
        return self.folder / "failures.tsv"

    # ---- cohorts ----

    def index(self, cohort: str) -> Path:
        """All recordings of a cohort."""
        return self._index(cohort) / "recordings.tsv"

    def index_mark(self, cohort: str) -> Path:
        """There while the tables of the index are being written."""
        return self._index(cohort) / ".updating"

    def last_look(self, cohort: str) -> Path:
        """The day on which the cohort's folder was last looked at."""
        return self._index(cohort) / "looked.json"

    def refused(self, cohort: str) -> Path:
        """Files that may be recordings and cannot be taken, with the reasons."""
        return self._index(cohort) / "refused.json"

    def companions(self, cohort: str) -> Path:
        """What sidecars, T1w images and confounds of a cohort's recordings were when looked at."""
        return self._index(cohort) / "companions.json"

    def last_retry(self, cohort: str) -> Path:
        """The last ``retry_failed`` that was carried out."""
        return self._index(cohort) / "retried"

    def chunk_table(self, cohort: str, chunk: str) -> Path:
        """Recordings of a chunk."""
        return self._index(cohort) / "chunks" / f"{chunk}.tsv"

    def list_chunks(self, cohort: str) -> list[str]:
        """Chunks of an indexed cohort, in order."""
        tables = self.chunk_table(cohort, "").parent.glob("*.tsv")
        return sorted(path.stem for path in tables if not path.name.startswith("."))

    def _index(self, cohort: str) -> Path:
        return self.folder / "index" / cohort

    def derivatives(self, cohort: str) -> Path:
        """BIDS derivatives; brainlm.preprocess.io.derivatives names the files in it."""
        return self.folder / "derivatives" / cohort

    def stage_table(self, cohort: str, chunk: str, stage: str) -> Path:
        """What became of each recording of a chunk in a stage."""
        return self.folder / "work" / cohort / chunk / f"{stage}.tsv"

    def list_stage_tables(self, cohort: str) -> list[Path]:
        """All stage tables of a cohort, by chunk and stage."""
        return sorted((self.folder / "work" / cohort).glob("*/[!.]*.tsv"))

    def outcome(self, cohort: str, stage: str, recording: str) -> Path:
        """A stage's outcome of one recording, which a rerun need not compute again."""
        return self.folder / "work" / cohort / "outcomes" / stage / f"{recording}.json"

    def series(self, cohort: str) -> Path:
        """Folder of the parcel series that go into the shards."""
        return self.folder / "work" / cohort / "series"

    def series_file(self, cohort: str, recording: str) -> Path:
        """Parcel series of one recording."""
        return self.series(cohort) / f"{recording}.npz"

    def shard(self, cohort: str, chunk: str) -> Path:
        """The contract: all series of a chunk."""
        return self._shards(cohort) / f"{chunk}.parquet"

    def quantiles(self, cohort: str, chunk: str) -> Path:
        """Mergeable statistics of a shard's training recordings."""
        return self._shards(cohort) / f"{chunk}.quantiles.parquet"

    def list_shards(self, cohort: str) -> list[Path]:
        """The shards of a cohort that are there."""
        found = self._shards(cohort).glob("[!.]*.parquet")
        return sorted(path for path in found if not path.name.endswith(".quantiles.parquet"))

    def seal(self, cohort: str) -> Path:
        """Stands for all shards of a sealed cohort."""
        return self._shards(cohort) / "sealed.tsv"

    def finished(self, cohort: str) -> Path:
        """Stands for the shards of the chunks that need no more work."""
        return self._shards(cohort) / "finished.tsv"

    def _shards(self, cohort: str) -> Path:
        return self.folder / "shards" / cohort

    # ---- the release, its models and their evaluation ----

    @property
    def release_folder(self) -> Path:
        return self._of_release("releases")

    @property
    def release_shards(self) -> Path:
        """The frozen list of shards."""
        return self.release_folder / "shards.tsv"

    @property
    def release_places(self) -> Path:
        """Where in their files the series of the release's shards begin."""
        return self.release_folder / PLACES

    @property
    def scaling(self) -> Path:
        """The frozen scaling."""
        return self.release_folder / "scaling.json"

    @property
    def label_digests(self) -> Path:
        """What the participants tables said in the columns of each task, as digests."""
        return self.release_folder / "labels.json"

    @property
    def pretrained(self) -> Path:
        """Folder of the pretrained model; :class:`ModelFolder` names the files in it."""
        return self._of_release("models") / "pretrain"

    def sweep(self, preset: str, share: str | float, seed: str | int) -> Path:
        """Folder of one pretraining of a scaling task."""
        part = share if isinstance(share, str) else f"{share:g}"
        return self._of_release("models") / "sweep" / f"{preset}-{part}-{seed}"

    def fit(self, start: str, task: str, seed: str | int) -> Path:
        """Folder of one seed's fit; `start` is one of :data:`STARTS`."""
        return self._of_release("models") / f"{start}-{task}" / f"seed-{seed}"

    def table(self, task: str) -> Path:
        """Results of a task."""
        return self._of_release("evaluation") / f"{task}.parquet"

    def embeddings(self, cohort: str, part: str = "") -> Path:
        """A vector for every recording and window of a cohort, or of a part of it."""
        return self._of_release("embeddings") / _in_parts(cohort, part)

    def predicted(self, cohort: str, part: str = "") -> Path:
        """Predictions of every task for a cohort of role predict, or for a part of it."""
        return self._of_release("predictions") / _in_parts(cohort, part)

    def side_table(self, task: str, what: str, suffix: str = ".parquet") -> Path:
        """What the figures of a task need besides its table."""
        return side_table(self.table(task), what, suffix)

    def list_tables(self) -> dict[tuple[str, str], Path]:
        """All tables of the release that are there, by (task, what); what is "" for results."""
        found = sorted(self._of_release("evaluation").glob("[!.]*.parquet"))
        names = {path: path.stem.rpartition(".") for path in found}
        return {(t, w) if t else (w, ""): path for path, (t, _, w) in names.items()}

    def _of_release(self, kind: str) -> Path:
        if self.release is None:
            raise ValueError("Results was made without a release")
        return self.folder / kind / self.release

    # ---- pages ----

    @property
    def recording_pages(self) -> Path:
        """Folder of the recordings' pages."""
        return self.folder / "recordings"

    def recording_page(self, cohort: str, recording: str) -> Path:
        return self.recording_pages / cohort / f"{recording}.html"

    def list_recording_pages(self, cohort: str) -> dict[str, Path]:
        """Pages of a cohort that are there, by recording."""
        found = (self.recording_pages / cohort).glob("[!.]*.html")
        return {path.stem: path for path in found}

    @property
    def report(self) -> Path:
        """Folder of the study report."""
        return self.folder / "report"

    @property
    def report_page(self) -> Path:
        """Where the study report is opened."""
        return self.report / "index.html"

    @property
    def report_figures(self) -> Path:
        """Folder of the figures of the study's page, for papers."""
        return self.report / "figures"

    def cohort_page(self, cohort: str) -> Path:
        return self.report / f"{cohort}.html"

    # ---- what jobs said ----

    def log(self, name: str) -> Path:
        """Of a job that a study has once."""
        return self.folder / "logs" / f"{name}.log"

    def chunk_log(self, stage: str, cohort: str, chunk: str) -> Path:
        return self.folder / "logs" / stage / cohort / f"{chunk}.log"

    def chunk_record(self, stage: str, cohort: str, chunk: str) -> Path:
        """How far a chunk's job is; see :func:`brainlm.progress.read_record`."""
        return self.chunk_log(stage, cohort, chunk).with_suffix(".jsonl")

    def release_log(self, stage: str, *parts: str) -> Path:
        """Of a job of a release; `parts` tell its jobs apart."""
        return self._release_job("logs", stage, parts, ".log")

    def release_record(self, stage: str, *parts: str) -> Path:
        """How far a job of a release is; see :func:`brainlm.progress.read_record`."""
        return self.release_log(stage, *parts).with_suffix(".jsonl")

    def chunk_benchmark(self, stage: str, cohort: str, chunk: str) -> Path:
        """Time and memory of a chunk's job, as Snakemake measures them."""
        return self.folder / "benchmarks" / stage / cohort / f"{chunk}.tsv"

    def release_benchmark(self, stage: str, *parts: str) -> Path:
        return self._release_job("benchmarks", stage, parts, ".tsv")

    def _release_job(self, kind: str, stage: str, parts: tuple[str, ...], suffix: str) -> Path:
        if self.release is None:
            raise ValueError("Results was made without a release")
        return self.folder / kind / stage / f"{'-'.join((self.release, *parts))}{suffix}"


def _in_parts(cohort: str, part: str) -> str:
    return f"{cohort}/{part}.parquet" if part else f"{cohort}.parquet"


def side_table(table: Path, what: str, suffix: str = ".parquet") -> Path:
    """What the figures of a task need besides its `table`."""
    return table.with_suffix(f".{what}{suffix}")


def table_record(table: Path) -> Path:
    """How far a task's evaluation is; see :func:`brainlm.progress.read_record`."""
    return side_table(table, "progress", ".jsonl")


@dataclass(frozen=True)
class ModelFolder:
    """The files in the folder of a model or a fit, wherever it is."""

    folder: Path

    @property
    def config(self) -> Path:
        """Sizes and facts of the model."""
        return self.folder / "config.json"

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def scaling(self) -> Path:
        """The scaling that the model learnt with."""
        return self.folder / "scaling.json"

    @property
    def gaussian(self) -> Path:
        """What a covariance matrix of the training participants knows, to compare with."""
        return self.folder / "gaussian.safetensors"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.folder / "README.md"

    @property
    def metrics(self) -> Path:
        """The losses of the training so far, a JSON line each."""
        return self.folder / "metrics.jsonl"

    @property
    def record(self) -> Path:
        """How far the training is; see :func:`brainlm.progress.read_record`."""
        return self.folder / "progress.jsonl"

    @property
    def run(self) -> Path:
        """Facts of the training: recordings, seconds, machine."""
        return self.folder / "run.json"

    @property
    def done(self) -> Path:
        """There when the training has ended."""
        return self.folder / "done.json"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def predictions(self) -> Path:
        """Of a fit: predictions for the release's recordings."""
        return self.folder / "predictions.parquet"

    @property
    def external(self) -> Path:
        """Of a fit: predictions for external cohorts."""
        return self.folder / "external.parquet"
