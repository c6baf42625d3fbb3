"""A small study with structure: parcels of a few networks, a label in the networks' strength."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from brainlm.atlas import Atlas
from brainlm.config import parse_config
from brainlm.evaluation.job import Job
from brainlm.evaluation.tasks import parse_task
from brainlm.shards import ParcelQuantiles, Recording, Scaling, ShardInfo, write_shard

R = 12
SHA = "a" * 64


@dataclass
class Study:
    shards: list[Path]
    scaling: Path
    atlas: Atlas
    labels: pd.Series


def make_study(folder: Path, *, participants: int = 20, seed: int = 0, timepoints: int = 60,
               dtype: str = "float16", censor: float = 0.0) -> Study:  # fmt: skip
    """`participants` recordings [T, R] in shards of eight: 70, 20 and 10 % by split; of every
    second one a share of the time is censored."""
    random = np.random.default_rng(seed)
    info = ShardInfo("toy", SHA, R, 1.0)
    recordings, labels = [], {}
    for subject in range(participants):
        name, strength = f"sub-{subject:03d}", random.uniform(0.5, 2)
        courses = np.cumsum(random.standard_normal((timepoints + subject % 3, 3)), 0)
        courses = (courses - courses.mean(0)) / courses.std(0)
        series = strength * courses[:, np.arange(R) % 3]  # parcels of a network move together
        series = series + 0.3 * random.standard_normal(series.shape)
        if subject % 6 == 1:
            series[:, 2] = np.nan
        if censor and subject % 2:
            series[random.random(len(series)) < censor] = np.nan
        split = "train" if subject % 10 < 7 else "validation" if subject % 10 < 9 else "test"
        recordings.append(Recording(f"{name}_task-rest", name, "toy", split, series=series,
                                    sample_period_s=1.0, units="percent"))  # fmt: skip
        labels["toy", name] = 20 + 30 * strength
    recordings.append(Recording("sub-bad_task-rest", "sub-bad", "toy", "train",
                                status="bad_data", reason="constant"))  # fmt: skip
    shards = []
    for start in range(0, len(recordings), 8):
        shards.append(folder / f"shard-{start:03d}.parquet")
        write_shard(shards[-1], recordings[start : start + 8], info, dtype=dtype)
    train = [r.series for r in recordings if r.split == "train" and r.series is not None]
    facts = {"atlas": "toy", "atlas_sha256": SHA, "sample_period_s": 1.0}
    Scaling.fit(ParcelQuantiles.of(train, R), **facts).save(folder / "scaling.json")
    index = pd.MultiIndex.from_tuples(list(labels), names=["cohort", "participant_id"])
    return Study(shards, folder / "scaling.json", toy_atlas(),
                 pd.Series(list(labels.values()), index))  # fmt: skip


def make_job(
    out: Path,
    task: dict[str, Any],
    *,
    model: Path,
    shards: list[Path],
    cohorts: dict[str, Path] | None = None,
    external: tuple[str, ...] = (),
    **settings: Any,
) -> Job:
    """A task on a model and shards wherever they are, its table at `out`; `settings` as in
    config.yaml, `cohorts` by name with their folders."""
    places = cohorts or dict.fromkeys(("toy", *external), out.parent)
    listed = [{"name": name, "folder": str(place),
               "role": "external" if name in external else "reference"}
              for name, place in places.items()]  # fmt: skip
    values = {"results": str(out.parent / "results"), "cohorts": listed, **settings}
    config = parse_config(values, "config.yaml")
    return Job(parse_task(task, out.stem, out.stem), config, model, shards, out)


def expected_p(rows: pd.DataFrame) -> np.ndarray:
    """p of `rows` (paired differences with one Holm correction) from their value, interval and n,
    as docs/evaluation.md defines it."""
    error = (rows["high"] - rows["low"]) / (2 * 1.959964) * np.sqrt(rows["n"] / (rows["n"] - 1))
    p = 2 * stats.t.sf(rows["value"].abs() / error, rows["n"] - 1)
    p = np.maximum(p, 0.5 ** (rows["n"].to_numpy() - 1))
    order, out = np.argsort(p), np.empty(len(p))
    out[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return out


def of_others(recording: Recording, cohort: str) -> Recording:
    """The same recording of a participant of another cohort: nobody seen in training."""
    series = None if recording.series is None else -recording.series
    name = f"{recording.participant_id}x"
    return replace(recording, cohort=cohort, participant_id=name, series=series)


def small_model(family: str, *, num_parcels: int, window: int, patch: int,
                coordinates=None):  # fmt: skip
    """A new model as `tiny`, of either family."""
    from brainlm.model import PRESETS, BrainLM, BrainLMConfig

    settings = PRESETS["tiny"] | {"family": family}
    if family == "image":
        settings |= {"decoder_context": "all", "decode_share": 1.0, "components": 0}
    config = BrainLMConfig(num_parcels=num_parcels, window=window, patch=patch,
                           has_coordinates=coordinates is not None, **settings)  # fmt: skip
    return BrainLM(config, coordinates)


def toy_atlas() -> Atlas:
    points = np.random.default_rng(7).uniform(-60, 60, (R, 3))
    return Atlas("toy", None, R, None, SHA, points, tuple(f"p{i}" for i in range(R)), "", "")
