import dataclasses
import errno
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from brainlm.errors import BrainLMError
from brainlm.paths import Results
from brainlm.shards import (
    Corpus,
    ParcelQuantiles,
    Recording,
    Scaling,
    ShardInfo,
    read_info,
    read_shard,
    write_shard,
)
from brainlm.shards.release import freeze_release, read_release
from brainlm.shards.scaling import RELATIVE_TOLERANCE
from brainlm.shards.store import locate_series

INFO = ShardInfo(atlas="toy", atlas_sha256="00ff", num_parcels=5, sample_period_s=1.0)


def recording(k: int, series=None, **facts) -> Recording:
    base = {"recording_id": f"sub-{k}_task-rest", "participant_id": f"sub-{k}", "cohort": "c"}
    return Recording(**{**base, "split": "train", "series": series, **facts})


def noise(seed: int, length: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((length, 5))


@pytest.fixture
def shard(tmp_path):
    series = noise(1)
    series[:, 2] = np.nan
    rows = [
        recording(1, series, coverage=np.array([1, 1, 0, 0.9, 1]), tsnr=60.0),
        recording(2, status="too_short", reason="20 s", duration_s=20.0),
        recording(3, noise(3, 60), split="test"),
    ]
    path = tmp_path / "00000.parquet"
    write_shard(path, rows, INFO, dtype="float32")
    return path, rows


def test_round_trip(shard):
    path, rows = shard
    back = read_shard(path)
    assert [r.recording_id for r in back] == [r.recording_id for r in rows]
    np.testing.assert_array_equal(back[0].series, rows[0].series.astype(np.float32))
    assert back[1].series is None
    assert (back[1].status, back[1].duration_s) == ("too_short", 20.0)
    np.testing.assert_allclose(back[0].coverage, rows[0].coverage, rtol=1e-6)
    assert read_info(path) == INFO


def test_the_documented_decode_works_in_pandas_pyarrow_and_duckdb(shard):
    path, rows = shard
    wanted = rows[0].series.astype(np.float32)
    row = pd.read_parquet(path).iloc[0]
    np.testing.assert_array_equal(
        np.frombuffer(row.series, row.series_dtype).reshape(row.num_timepoints, -1), wanted
    )
    raw = pq.read_table(path).to_pylist()[0]
    np.testing.assert_array_equal(
        np.frombuffer(raw["series"], raw["series_dtype"]).reshape(raw["num_timepoints"], -1),
        wanted,
    )
    series, length = duckdb.sql(
        f"select series, num_timepoints from '{path}' where status = 'ok' limit 1"
    ).fetchall()[0]
    np.testing.assert_array_equal(np.frombuffer(series, "float32").reshape(length, -1), wanted)


def test_float16_error_is_what_the_documentation_says(tmp_path):
    rng = np.random.default_rng(0)
    series = rng.standard_normal((300, 5)) * [0.3, 1, 3, 10, 30]  # percent of the parcel mean
    write_shard(tmp_path / "a.parquet", [recording(1, series)], INFO, dtype="float16")
    back = read_shard(tmp_path / "a.parquet")[0].series.astype(float)
    assert np.max(np.abs(back - series) / np.maximum(np.abs(series), 1e-3)) < 0.0005
    rms = np.sqrt(np.mean((back - series) ** 2, 0)) / series.std(0)
    assert rms.max() < 0.0005


@pytest.mark.parametrize("scale", [1e6, 1e-5, 1e-9, 1e-20])
def test_values_beyond_float16_are_kept_as_they_are_next_to_others(tmp_path, scale):
    """One recording in a scanner's large or small units must not stop its chunk, or become 0."""
    large, path = noise(2) * scale, tmp_path / "a.parquet"
    write_shard(path, [recording(1, noise(1)), recording(2, large)], INFO)
    first, second = read_shard(path)
    assert (first.series.dtype, second.series.dtype) == ("float16", "float32")
    np.testing.assert_allclose(second.series, large, rtol=1e-6)
    corpus = Corpus([path])
    np.testing.assert_allclose(corpus.series(1), large, rtol=1e-6)


def test_wrong_width_duplicates_are_refused_and_leave_nothing(tmp_path):
    path = tmp_path / "a.parquet"
    with pytest.raises(BrainLMError, match=r"expected \[T, 5\]"):
        write_shard(path, [recording(1, np.zeros((9, 4)))], INFO)
    with pytest.raises(BrainLMError, match="named twice"):
        write_shard(path, [recording(1, noise(1)), recording(1, noise(2))], INFO)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(table, where, **_):
        with open(where, "wb") as handle:
            handle.write(b"PAR1 half a shard")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(BrainLMError, match="No space left on device"):
        write_shard(tmp_path / "a.parquet", [recording(1, noise(1))], INFO)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_shards(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(BrainLMError, match="not a readable Parquet"):
        read_info(tmp_path / "a.parquet")
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(BrainLMError, match="schema version"):
        read_info(tmp_path / "b.parquet")


def test_corpus_reads_series_and_refuses_mixtures(shard, tmp_path):
    path, rows = shard
    corpus = Corpus([path])
    assert list(corpus.usable()) == [0, 2]
    assert list(corpus.usable(split="test")) == [2]
    assert list(corpus.usable(min_timepoints=50)) == [2]
    np.testing.assert_array_equal(corpus.series(2), rows[2].series.astype(np.float32))
    other = ShardInfo(atlas="toy", atlas_sha256="other", num_parcels=5, sample_period_s=1.0)
    write_shard(tmp_path / "b.parquet", [recording(9, noise(9))], other)
    with pytest.raises(BrainLMError, match="atlas_sha256"):
        Corpus([path, tmp_path / "b.parquet"])
    with pytest.raises(BrainLMError, match="no shards"):
        Corpus([])


values = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 60), st.just(3)),
    elements=st.one_of(st.floats(-1e4, 1e4, width=32), st.just(np.nan)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(values, min_size=1, max_size=4), st.sampled_from([0.25, 0.5, 0.75]))
def test_merged_quantiles_equal_numpys_within_the_stated_tolerance(parts, q):
    merged = ParcelQuantiles.merge(ParcelQuantiles.of([part], 3) for part in parts)
    together = ParcelQuantiles.of(parts, 3)
    np.testing.assert_array_equal(merged.codes, together.codes)
    np.testing.assert_array_equal(merged.counts, together.counts)
    found, stacked = merged.quantile(q), np.concatenate(parts).astype(float)
    for parcel in range(3):
        column = stacked[:, parcel][np.isfinite(stacked[:, parcel])]
        if column.size == 0:
            assert np.isnan(found[parcel])
            continue
        # between two order statistics the tolerance is that of the larger one
        low, high = np.quantile(column, q, method="lower"), np.quantile(column, q, method="higher")
        bound = RELATIVE_TOLERANCE * max(abs(low), abs(high)) + 1e-37
        assert abs(found[parcel] - np.quantile(column, q)) <= bound


def test_scaling_is_the_formula_and_missing_parcels_stay_missing(tmp_path):
    series = np.random.default_rng(0).normal(3, 2, (4000, 5)).astype(np.float32)
    series[:, 1] = 7.0  # constant
    series[:, 4] = np.nan  # never seen
    scaling = Scaling.fit(
        ParcelQuantiles.of([series], 5), atlas="toy", atlas_sha256="0", sample_period_s=1.0
    )
    assert list(scaling.usable) == [True, False, True, True, False]
    scaled = scaling.apply(series)
    assert np.isnan(scaled[:, [1, 4]]).all()
    q25, q50, q75 = np.quantile(series[:, 0].astype(float), [0.25, 0.5, 0.75])
    np.testing.assert_allclose(scaled[:, 0], (series[:, 0] - q50) / (q75 - q25), atol=0.02)
    scaling.save(tmp_path / "scaling.json")
    back = Scaling.load(tmp_path / "scaling.json")
    np.testing.assert_array_equal(back.median, scaling.median)
    np.testing.assert_array_equal(back.iqr, scaling.iqr)
    with pytest.raises(BrainLMError, match="is for 5 parcels"):
        scaling.apply(np.zeros((3, 4)))


def test_release_freezes_and_notices_a_changed_shard(tmp_path, shard):
    path, _ = shard
    quantiles = tmp_path / "q.parquet"
    ParcelQuantiles.of([noise(1)], 5).save(quantiles)
    scaling = freeze_release([path], [quantiles], Results(tmp_path, "r1"))
    assert scaling.num_recordings == 1
    assert read_release(Results(tmp_path, "r1")) == [path]
    other = Path(shutil.copy(path, tmp_path / "other.parquet"))
    corpus = Corpus([other, path], Results(tmp_path, "r1").release_folder)
    np.testing.assert_array_equal(corpus.places[1], locate_series(path))
    assert list(corpus.places) == [1]  # where the other's series are nobody has found yet
    write_shard(path, [recording(1, noise(8))], INFO)
    with pytest.raises(BrainLMError, match="changed since"):
        read_release(Results(tmp_path, "r1"))
    path.unlink()
    with pytest.raises(BrainLMError, match="not found"):
        read_release(Results(tmp_path, "r1"))


@pytest.mark.parametrize("way", ["{there}/", "results/", ""])
def test_a_copied_study_reads_its_own_shards(tmp_path, way):
    """A release names its shards from the root, from the working folder or from results."""
    there = Results(tmp_path / "results", "r1")
    shard, quantiles = there.shard("c", "00000"), tmp_path / "q.parquet"
    shard.parent.mkdir(parents=True)
    write_shard(shard, [recording(1, noise(1))], INFO)
    ParcelQuantiles.of([noise(1)], 5).save(quantiles)
    freeze_release([shard], [quantiles], there)
    text = there.release_shards.read_text()
    assert "\nshards/c/00000.parquet\t" in text
    there.release_shards.write_text(
        text.replace("\nshards/", f"\n{way.format(there=there.folder)}shards/")
    )
    here = Results(tmp_path / "copy", "r1")
    shutil.copytree(there.folder, here.folder, copy_function=shutil.copyfile)  # times are lost
    assert read_release(here) == [here.shard("c", "00000")]
    here.shard("c", "00000").unlink()
    with pytest.raises(BrainLMError, match=r"copy/shards/c/00000.parquet: .* not found"):
        read_release(here)


def test_a_release_has_one_unit(tmp_path):
    quantiles = tmp_path / "q.parquet"
    ParcelQuantiles.of([noise(1)], 5).save(quantiles)
    shards = []
    for name, units, split in (("a", "percent", "train"), ("b", "as delivered", "test"),
                               ("c", "as delivered", "train")):  # fmt: skip
        row = dataclasses.replace(recording(1, noise(1)), units=units, split=split)
        write_shard(tmp_path / name, [row], INFO)
        shards.append(tmp_path / name)
    made = [freeze_release(some, [quantiles], Results(tmp_path, "r")).units
            for some in (shards[:1], shards[:2], shards[2:])]  # fmt: skip
    assert made == ["percent", "percent", "as delivered"]
    with pytest.raises(BrainLMError, match=r"c: series as delivered, but .*a has them percent"):
        freeze_release(shards, [quantiles], Results(tmp_path, "r"))


def test_release_without_training_recordings_is_refused(tmp_path, shard):
    path, _ = shard
    quantiles = tmp_path / "q.parquet"
    ParcelQuantiles.of([], 5).save(quantiles)
    with pytest.raises(BrainLMError, match="training split"):
        freeze_release([path], [quantiles], Results(tmp_path, "r1"))
    with pytest.raises(BrainLMError, match="is empty"):
        freeze_release([], [], Results(tmp_path, "r1"))


def test_a_shard_that_is_older_than_a_column_is_read_without_it(tmp_path, shard):
    path, rows = shard
    older = tmp_path / "older.parquet"
    table = pq.read_table(path).drop_columns(["start_s"])
    pq.write_table(table, older, row_group_size=16, compression="NONE")
    younger = tmp_path / "younger.parquet"
    write_shard(younger, [recording(9, noise(9), start_s=4.5)], INFO)
    corpus = Corpus([older, younger])
    assert corpus.table["start_s"].isna().tolist() == [True, True, True, False]
    assert corpus.table["start_s"].iloc[-1] == 4.5
    np.testing.assert_array_equal(corpus.series(0), rows[0].series.astype(np.float32))
    assert [r.start_s for r in read_shard(older)] == [None] * 3
