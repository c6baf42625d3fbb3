"""Parts of a large cohort: the table that they make together is the one that one job makes."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest
from fakes import write_parcel_run
from test_inference import embed, home  # noqa: F401

from brainlm.atlas import load_atlas
from brainlm.cohort import parts
from brainlm.cohort.parts import list_part_inputs, list_parts
from brainlm.cohort.seal import read_seal
from brainlm.config import load_config
from brainlm.inference.scans import open_scans, preprocess
from brainlm.inference.vectors import gather_parts
from brainlm.paths import Results
from brainlm.tables import write_parquet, write_tsv


def test_chunks_keep_their_part_when_a_cohort_grows():
    chunks = [f"{k:05d}" for k in range(70)]
    assert list_parts(chunks[:32]) == {} == list_parts([])
    before, now = list_parts(chunks[:65]), list_parts(reversed(chunks))
    assert list(now) == ["000", "001", "002"] and now["002"][0] == "00064"
    assert {part: now[part] for part in ("000", "001")} == {p: before[p] for p in ("000", "001")}
    assert [c for part in now.values() for c in part] == chunks


def test_what_stands_for_a_parts_shards_counts_only_if_one_of_them_is_newer(tmp_path):
    paths = Results(tmp_path, "r1")
    chunks = [f"{k:05d}" for k in range(3)]
    shards = [paths.shard("a", chunk) for chunk in chunks]
    made, finished = paths.embeddings("a", "000"), paths.finished("a")

    def inputs(**through):
        return list_part_inputs(paths, "a", chunks, {k[1:]: v for k, v in through.items()}, made)

    assert inputs() == shards
    assert inputs(_00000=10, _00002=30, _00035=90) == [shards[1], finished]  # nothing is made
    made.parent.mkdir(parents=True)
    made.touch()
    os.utime(made, ns=(30, 30))
    assert inputs(_00000=10, _00002=30, _00035=90) == [shards[1]]  # another part's is newer
    every = {"_00000": 10, "_00001": 31, "_00002": 30}
    assert inputs(**every) == [finished]
    rows = [(shard.name, 5, every[f"_{shard.stem}"]) for shard in shards]
    write_tsv(paths.seal("a"), ("shard", "size", "mtime_ns"), rows)
    assert list_part_inputs(paths, "a", chunks, read_seal(tmp_path, "a"), made) == [
        paths.seal("a")
    ]


def test_embedded_in_parts_is_embedded_at_once(home, tmp_path, monkeypatch, capsys):  # noqa: F811
    """A shard each; of one part no recording can be embedded."""
    raw = np.random.default_rng(5).normal(900, 9, (200, 424)).astype(np.float32)
    for label, seconds in (("01", 131), ("02", 50), ("03", 200), ("04", 121)):
        write_parcel_run(tmp_path / "series", f"sub-{label}_task-rest", raw[:seconds])
    study = tmp_path / "study.yaml"
    study.write_text(
        f"results: {tmp_path}/results\nchunks: {{recordings: 1}}\n"
        f"cohorts: [{{name: a, folder: {tmp_path}/series, layout: parcels, units: scanner}}]\n"
        f"atlas: {{name: demo424, folder: {home}/atlas}}\n"
    )
    config = load_config(study)
    preprocess(open_scans(tmp_path / "series", config), load_atlas("demo424", home / "atlas"),
               workers=1)  # fmt: skip
    monkeypatch.setattr(parts, "_CHUNKS", 1)

    def table(name, *options):
        out = tmp_path / name
        code, _ = embed(home, "a", out, "--config", str(study), *options)
        return out if code == 0 else None

    whole = table("whole.parquet")
    made = [table(f"{part}.parquet", "--part", part) for part in ("000", "001", "002", "003")]
    together = table("together.parquet", "--gather", *map(str, made))
    assert together.read_bytes() == whole.read_bytes()
    found = pd.read_parquet(whole)
    assert found["status"].to_list().count("too_short") == 1
    assert [len(pd.read_parquet(path)) for path in made] == [3, 1, 4, 3]
    assert table("other.parquet", "--part", "004") is None
    assert "no part '004'; its parts: 000, 001, 002, 003" in capsys.readouterr().err
    assert embed(home, tmp_path / "series", tmp_path / "o.parquet", "--part", "000")[0] == 1
    assert "--part is for cohorts of the configuration" in capsys.readouterr().err


@pytest.mark.parametrize("cuts", [[3], [1, 2], [1, 2, 3, 4]])
def test_predictions_of_parts_stand_by_task(tmp_path, cuts):
    recordings = pd.DataFrame({
        "recording_id": list("abcde"), "status": ["ok", "too_short", "ok", "ok", "ok"],
        "reason": [None, "50 s", None, None, None], "session_id": [None] * 5,
    })  # fmt: skip
    values = np.array([0.25, np.nan, 0.5, 1, 2])

    def predict(rows: slice) -> pd.DataFrame:
        mine = recordings[rows]
        age = mine.assign(target="age", prediction=values[rows], seeds=2)
        group = mine.assign(target="age", predicted_class=np.where(
            np.isnan(values[rows]), None, "old"), seeds=3)  # fmt: skip
        return pd.concat([age, group], ignore_index=True)

    write_parquet(tmp_path / "whole.parquet", predict(slice(None)))
    files = [tmp_path / f"{k}.parquet" for k in range(len(cuts) + 1)]
    for path, low, high in zip(files, [0, *cuts], [*cuts, 5], strict=True):
        write_parquet(path, predict(slice(low, high)))
    gather_parts(files, tmp_path / "together.parquet")
    assert (tmp_path / "together.parquet").read_bytes() == (
        tmp_path / "whole.parquet"
    ).read_bytes()
