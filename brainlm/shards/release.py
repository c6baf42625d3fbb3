"""A release: the frozen list of shards and the frozen scaling that a training run reads.

Later cohorts do not disturb a release; a new one is a new name in config.yaml.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import BrainLMError
from ..files import atomic_path, read_json, sha256
from ..paths import PLACES, Results
from ..tables import read_tsv, write_tsv
from .scaling import ParcelQuantiles, Scaling
from .store import locate_series, read_info

_COLUMNS = ("shard", "size", "mtime_ns", "sha256")


def freeze_release(shards: Sequence[Path], quantiles: Sequence[Path], paths: Results) -> Scaling:
    """Write the list of shards and the scaling of the release of `paths`.

    Raises
    ------
    BrainLMError
        No training recording in any shard, or shards that differ in atlas, sample period or
        units.
    """
    name = paths.release
    if not shards:
        raise BrainLMError(
            f"release {name!r} is empty: no shard of a cohort with role 'reference' was made"
        )
    infos = [read_info(path) for path in shards]
    for path, info in zip(shards, infos, strict=True):
        if (info.atlas_sha256, info.sample_period_s) != (
            infos[0].atlas_sha256,
            infos[0].sample_period_s,
        ):
            raise BrainLMError(
                f"{path}: atlas {info.atlas} at {info.sample_period_s} s, but {shards[0]} has "
                f"{infos[0].atlas} at {infos[0].sample_period_s} s; one release, one atlas"
            )
    statistics = ParcelQuantiles.merge(map(ParcelQuantiles.load, quantiles))
    if not statistics.num_recordings:
        raise BrainLMError(
            f"release {name!r}: no usable recording falls in the training split, so the scaling "
            "cannot be fitted; add recordings, or see results/failures.tsv for why they failed"
        )
    scaling = Scaling.fit(
        statistics,
        atlas=infos[0].atlas,
        atlas_sha256=infos[0].atlas_sha256,
        sample_period_s=infos[0].sample_period_s,
        units=_agree_units(shards),
        release=name or "",
    )
    rows = []
    for path in map(Path, shards):
        status = path.stat()
        own = path == paths.shard(path.parent.name, path.stem)
        place = path.relative_to(paths.folder) if own else path.absolute()
        rows.append((place, status.st_size, status.st_mtime_ns, sha256(path)))
    places = [locate_series(path) for path in shards]
    with atomic_path(paths.release_places) as temporary:
        table = {"shard": [str(row[0]) for row in rows], "first_byte": places}
        pq.write_table(pa.table(table), temporary)
    scaling.save(paths.scaling)
    write_tsv(paths.release_shards, _COLUMNS, rows)
    return scaling


def _agree_units(shards: Sequence[Path]) -> str:
    """Units of the training recordings: one scaling cannot serve two."""
    first: tuple[str, Path] | None = None
    for path in shards:
        table = pq.read_table(path, columns=["status", "split", "units"]).to_pandas()
        train = table[(table["status"] == "ok") & (table["split"] == "train")]
        for units in train["units"].fillna("percent").unique():
            first = first or (units, path)
            if units != first[0]:
                raise BrainLMError(
                    f"{path}: series {units}, but {first[1]} has them {first[0]}; one release, "
                    "one unit: if delivered series are raw means or percent of them, say so in "
                    "config.yaml (units: scanner or percent of their cohort); else give them "
                    "role: external, or a release of their own"
                )
    return first[0] if first else "percent"


def read_places(release: Path, shards: Sequence[Path]) -> dict[int, np.ndarray]:
    """Where in their files the series of a release's shards begin, by number of the shard.

    As :func:`~brainlm.shards.store.locate_series` finds it; a release made before this was kept
    leaves that to its readers.
    """
    path = release / PLACES
    if not path.exists():
        return {}
    kept = pq.read_table(path).to_pydict()
    there = {tuple(Path(s).parts[-2:]): np.asarray(p, np.int64)
             for s, p in zip(kept["shard"], kept["first_byte"], strict=True)}  # fmt: skip
    names = [tuple(Path(shard).parts[-2:]) for shard in shards]
    return {number: there[name] for number, name in enumerate(names) if name in there}


def read_release(paths: Results) -> list[Path]:
    """Shards of the release of `paths`, in order.

    Raises
    ------
    BrainLMError
        The list, or a shard in it, is missing or is not the one that was frozen.
    """
    path = paths.release_shards
    shards = []
    for row in read_tsv(path, hint="run: brainlm release").records():
        shard = _find(paths, row["shard"])
        if not shard.exists():
            raise BrainLMError(f"{shard}: named by {path}, not found; run snakemake to rebuild it")
        status = shard.stat()
        same = (status.st_size, status.st_mtime_ns) == (int(row["size"]), int(row["mtime_ns"]))
        if not same and sha256(shard) != row["sha256"]:  # hash only what looks touched
            raise BrainLMError(
                f"{shard}: changed since {path} was frozen (a recording was replaced?); set a new "
                "release name in config.yaml to train on the new data"
            )
        shards.append(shard)
    return shards


def _find(paths: Results, place: str) -> Path:
    """A shard of the list: of this results folder, wherever that was when the release was frozen
    (earlier releases named the way from the working folder)."""
    path = Path(place)
    own = paths.shard(path.parent.name, path.stem)
    is_other = path.is_absolute() and path.parent.parent.name != own.parent.parent.name
    return path if is_other else own


def check_release(
    paths: Results, cohorts: Collection[str], atlas: str, external: Collection[str] = ()
) -> None:
    """Refuse a frozen release that is another study's, before anything is preprocessed for it.

    Parameters
    ----------
    paths : Results
        Of a release that is frozen.
    cohorts : collection of str
        Names of the study's cohorts; one of them in the release is enough. None: any will do.
    atlas : str
        Name of the study's atlas.
    external : collection of str
        Cohorts that are only to be evaluated: none of them may be in the release.

    Raises
    ------
    BrainLMError
        It has another atlas, no shard of any of these cohorts, or one of an external cohort.
    """
    advice = (
        "A frozen release never changes; in config.yaml give this study a release of its own "
        "(release: r2), or a folder of its own (results: results/mystudy)"
    )
    path = paths.scaling
    found = read_json(path)["atlas"]
    if found != atlas:
        raise BrainLMError(
            f"{path}: frozen with atlas {found}, but atlas.name is {atlas}. {advice}"
        )
    path = paths.release_shards
    frozen = {Path(row["shard"]).parent.name: None for row in read_tsv(path).records()}
    if inside := [name for name in frozen if name in external]:
        raise BrainLMError(
            f"{path}: cohort {inside[0]!r} is in release {paths.release}, which is trained on it, "
            "and cannot be external to it: put its role back to reference, or make a release of "
            "the others (release: r2)"
        )
    other = next(iter(frozen), "")
    if other and cohorts and not frozen.keys() & set(cohorts):
        raise BrainLMError(
            f"{path}: frozen with shards of cohort {other!r} and of none of this study "
            f"({', '.join(cohorts)}): nothing of it would be trained on. {advice}"
        )
