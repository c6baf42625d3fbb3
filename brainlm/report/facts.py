"""Read what the stages wrote. What is not there is None or empty, never invented."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from .. import __version__
from ..atlas import load_atlas
from ..config import Config
from ..errors import BrainLMError
from ..evaluation.reconstruction import load_traces
from ..evaluation.tasks import CLINICAL, tasks_of
from ..files import read_json
from ..paths import ModelFolder
from ..shards import Scaling, ShardInfo, read_info
from ..tables import read_tsv

_SHARD_COLUMNS = [
    "recording_id", "participant_id", "cohort", "split", "status", "reason", "repetition_time_s",
    "duration_s", "num_timepoints", "units", "mean_fd_mm", "mean_dvars", "tsnr", "coverage",
    "warnings", "censored",
]  # fmt: skip
_PACKAGES = (
    "numpy", "scipy", "pandas", "pyarrow", "torch", "scikit-learn", "nibabel", "nilearn",
    "snakemake", "matplotlib",
)  # fmt: skip


@dataclass
class Facts:
    """Everything a study report tells.

    Attributes
    ----------
    recordings : DataFrame
        One row per indexed recording; status ``pending`` if no stage has seen it.
    coverage : ndarray [R] or None
        Mean share of each parcel inside the field of view.
    curve : DataFrame
        metrics.jsonl of the pretraining; empty if there is none.
    results : dict
        Task -> tidy table.
    sides : dict
        Further tables of a task, by (task, what), such as ("age", "predictions").
    card : str
        README.md of the pretrained model.
    places : ndarray [R, 3] or None
        Coordinates of the atlas, MNI mm.
    """

    config: Config
    recordings: pd.DataFrame
    coverage: np.ndarray | None
    info: ShardInfo | None
    scaling: Scaling | None
    curve: pd.DataFrame
    run: dict
    model: dict
    results: dict[str, pd.DataFrame]
    sides: dict[tuple[str, str], pd.DataFrame]
    traces: dict[str, np.ndarray]
    release: pd.DataFrame
    card: str
    tasks: dict[str, Any]
    places: np.ndarray | None

    @property
    def clinical(self) -> list[str]:
        """Names of the study's regression and classification tasks."""
        return [name for name, task in self.tasks.items() if isinstance(task, CLINICAL)]

    def side(self, task: str, what: str) -> pd.DataFrame | None:
        """A further table of a task; None if it has none."""
        return self.sides.get((task, what))


def read_facts(config: Config) -> Facts:
    """Collect the facts of a study's results.

    Raises
    ------
    BrainLMError
        A file is there and cannot be read.
    """
    paths, model = config.paths, ModelFolder(config.paths.pretrained)
    shards = [path for cohort in config.cohorts for path in paths.list_shards(cohort.name)]
    recordings, coverage = read_recordings(config, shards)
    tables = {key: _read_parquet(path) for key, path in paths.list_tables().items()}
    return Facts(
        config=config,
        recordings=recordings,
        coverage=coverage,
        info=read_info(shards[0]) if shards else None,
        scaling=Scaling.load(paths.scaling) if paths.scaling.exists() else None,
        curve=_read_jsonl(model.metrics),
        run=_read_optional(model.run),
        model=_read_optional(model.config),
        results={task: table for (task, what), table in tables.items() if not what},
        sides={key: table for key, table in tables.items() if key[1]},
        traces=load_traces(paths.side_table("reconstruction", "traces", ".npz")),
        release=_read_tsv(paths.release_shards),
        card=_read_card(model.card),
        tasks=dict(tasks_of(config)),
        places=_read_places(config),
    )


def _read_card(path: Path) -> str:
    """Text of a model's README.md behind its header for hubs."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text.split("---\n", 2)[-1].strip()


def _read_places(config: Config) -> np.ndarray | None:
    """Coordinates of the atlas, if its files are here already."""
    try:
        return load_atlas(config.atlas.name, config.atlas.folder, download=False).coordinates
    except BrainLMError:
        return None  # the pages show parcels by number


def read_recordings(config: Config, shards: list[Path]) -> tuple[pd.DataFrame, np.ndarray | None]:
    """The index joined with what became of each recording, and the coverage per parcel [R]."""
    indexed = [
        _read_tsv(config.paths.index(cohort.name)).assign(cohort=cohort.name)
        for cohort in config.cohorts
    ]
    columns = ["cohort", "recording_id", "participant_id", "chunk"]
    known = pd.concat(indexed).reindex(columns=columns).astype(object)  # empty ones merge too
    done = pd.concat(
        [_read_shard(path) for path in shards] or [pd.DataFrame(columns=_SHARD_COLUMNS)]
    )
    shares = [np.asarray(value, float) for value in done.pop("coverage") if value is not None]
    failed = _read_failures(config)
    key = ["cohort", "recording_id"]
    table = known.merge(done.drop(columns="participant_id"), on=key, how="left")
    table = table.merge(failed, on=key, how="left", suffixes=("", "_failed"))
    for column in ("status", "reason"):
        table[column] = table[column].fillna(table.pop(f"{column}_failed"))
    table["status"] = table["status"].fillna("pending")
    return table, np.mean(shares, axis=0) if shares else None


def _read_shard(path: Path) -> pd.DataFrame:
    """Rows without their series; warnings as one text, each as ``kind: words``."""
    there = set(pq.read_schema(path).names)  # a column may be younger than the shard
    columns = [name for name in _SHARD_COLUMNS if name in there]
    table = pq.read_table(path, columns=columns).to_pandas().reindex(columns=_SHARD_COLUMNS)
    found = table["warnings"]
    table["warnings"] = [" | ".join(w) if isinstance(w, np.ndarray) else None for w in found]
    return table


def count_warnings(recordings: pd.DataFrame) -> pd.Series:
    """Recordings by kind of warning, the most frequent first."""
    texts = recordings["warnings"].dropna().astype(str).str.split(" | ", regex=False)
    kinds = texts.map(lambda parts: sorted({part.split(":")[0] for part in parts}))
    return kinds.explode().value_counts()


def _read_failures(config: Config) -> pd.DataFrame:
    """Failures of recordings whose shard is not written yet, from the stage tables."""
    columns = ["cohort", "recording_id", "status", "reason"]
    rows = [pd.DataFrame(columns=columns)]
    for cohort, path in _stage_tables(config):
        table = _read_tsv(path)
        if {"recording_id", "status", "reason"} <= set(table.columns):
            rows.append(table[table["status"] != "ok"].assign(cohort=cohort)[columns])
    return pd.concat(rows).drop_duplicates(["cohort", "recording_id"], keep="last")


def stage_seconds(config: Config) -> pd.DataFrame:
    """Recordings and mean seconds per stage and cohort."""
    rows = []
    for cohort, path in _stage_tables(config):
        table = _read_tsv(path)
        if "seconds" in table:
            seconds = pd.to_numeric(table["seconds"], errors="coerce")
            rows += [(cohort, path.stem, value) for value in seconds.dropna()]
    table = pd.DataFrame(rows, columns=["cohort", "stage", "seconds"])
    return (
        table.groupby(["cohort", "stage"], sort=False)["seconds"]
        .agg(["count", "mean"])
        .reset_index()
    )


def _stage_tables(config: Config) -> Iterator[tuple[str, Path]]:
    for cohort in config.cohorts:
        for path in config.paths.list_stage_tables(cohort.name):
            yield cohort.name, path


def _read_tsv(path: Path) -> pd.DataFrame:
    """All cells as text (names like ``007`` and ``NA`` stay what they are); empty if absent."""
    return read_tsv(path).frame() if path.exists() else pd.DataFrame()


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pq.read_table(path).to_pandas()
    except (OSError, ValueError) as error:
        raise BrainLMError(f"{path}: not a readable table ({error}); evaluate again") from None
    for name in table.columns[
        table.dtypes.map(lambda kind: not pd.api.types.is_numeric_dtype(kind))
    ]:
        table[name] = table[name].astype(object).where(table[name].notna(), None)
    return table


def _read_jsonl(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame()
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the last line of a run that was killed while it wrote
    return pd.DataFrame(rows)


def _read_optional(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def software_versions() -> dict[str, str]:
    """Versions of what computed the results."""
    versions = {"brainlm-pipeline": __version__, "Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def code_commit() -> str | None:
    """Git commit of this package, with ``+ changes`` if files differ from it; None outside git."""
    folder = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout

    try:
        commit = git("rev-parse", "--short=12", "HEAD").strip()
        return commit + (" + changes" if git("status", "--porcelain", "--", ".").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None
