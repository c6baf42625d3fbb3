"""Windows: what is read, in which order, and that nothing else decides it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from synthetic import make_study

from brainlm.errors import BrainLMError
from brainlm.shards import Corpus, Scaling
from brainlm.shards.store import locate_series
from brainlm.training.masked_r2 import (
    MaskedR2,
    average_visible,
    interpolate_linear,
    r2_interval,
    sums_by_window,
)
from brainlm.training.windows import Loader, MappedSeries, Prefetch, Windows, choose_rows


@pytest.fixture(scope="module", params=["float16", "float32"])
def study(request, tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"), dtype=request.param)


def windows(study, **options):
    corpus = Corpus(study.shards)
    rows, _ = choose_rows(corpus, 40, "train")
    return Windows(corpus, Scaling.load(study.scaling), 40, rows, **{"num_tokens": 8, **options})


def test_mapped_series_equal_the_corpus(study):
    corpus = Corpus(study.shards)
    mapped = MappedSeries(corpus)
    for row in corpus.usable():
        assert np.array_equal(mapped[row], corpus.series(row), equal_nan=True)
    found = np.concatenate(list(mapped._places.values()))
    assert (found >= 0).sum() == len(corpus.usable())  # found in the files, every one


def test_nobody_looks_for_what_the_release_has_found(study, monkeypatch):
    corpus = Corpus(study.shards)
    corpus.places = {k: locate_series(path) for k, path in enumerate(study.shards)}
    monkeypatch.setattr("brainlm.training.windows.locate_series", None)
    mapped = MappedSeries(corpus)
    for row in corpus.usable():
        assert np.array_equal(mapped[row], corpus.series(row), equal_nan=True)
    corpus.places[0] += 2
    with pytest.raises(BrainLMError, match="not the shard that its release was frozen with"):
        MappedSeries(corpus)[corpus.usable()[0]]


def test_compressed_shards_are_read_all_the_same(study, tmp_path):
    table = pq.read_table(study.shards[0])
    pq.write_table(table, tmp_path / "z.parquet", compression="zstd")
    corpus = Corpus([tmp_path / "z.parquet"])
    row = int(corpus.usable()[0])
    assert np.array_equal(MappedSeries(corpus)[row], corpus.series(row), equal_nan=True)


def test_a_window_is_a_scaled_slice(study):
    w, corpus = windows(study), Corpus(study.shards)
    scaling = Scaling.load(study.scaling)
    row = int(w.rows[0])
    whole = corpus.scaled(row, scaling).T
    for window in w.even(row, 3).numpy():
        starts = range(whole.shape[1] - 39)
        assert any(np.allclose(window, whole[:, s : s + 40], equal_nan=True, atol=1e-5)
                   for s in starts)  # fmt: skip
    assert w.even(1, 1)[0, 2].isnan().all()  # a missing parcel stays missing


def test_random_but_repeatable(study):
    first, again = windows(study), windows(study)
    a, b = first.batch(first.stream(3, 5)), again.batch(again.stream(3, 5))
    assert torch.equal(a.signal.nan_to_num(), b.signal.nan_to_num())
    assert torch.equal(a.noise, b.noise)
    later = first.batch([(epoch + 1, row) for epoch, row in first.stream(3, 5)])
    assert not torch.equal(a.noise, later.noise)
    other = windows(study, seed=1)
    assert other.stream(0, 14) != first.stream(0, 14)


def test_a_window_does_not_depend_on_its_neighbours(study):
    w = windows(study)
    picks = w.stream(0, 6)
    whole, parts = w.batch(picks), [w.batch(picks[i : i + 2]) for i in (0, 2, 4)]
    assert torch.equal(whole.noise, torch.cat([p.noise for p in parts]))
    joined = torch.cat([p.signal for p in parts])
    assert torch.equal(whole.signal.nan_to_num(), joined.nan_to_num())


def test_every_recording_once_an_epoch(study):
    w = windows(study)
    n = len(w)
    picks = w.stream(n, 2 * n)
    assert {epoch for epoch, _ in picks} == {1, 2}
    for epoch in (1, 2):
        assert sorted(row for e, row in picks if e == epoch) == sorted(w.rows)
    assert w.stream(n + 3, 5) == picks[3:8]


def test_prefetch_keeps_the_order(study):
    w = windows(study)
    wanted = [w.stream(i, 2) for i in range(0, 20, 2)]
    got = [batch.rows.tolist() for batch in Prefetch(w.batch, iter(wanted), threads=3)]
    assert got == [[row for _, row in picks] for picks in wanted]


def loader(w, rank=0, world=1, **options):
    given = {"size": 6, "micro": 1} | options
    return Loader(w, rank=rank, world=world, **given)


def test_the_order_does_not_depend_on_the_number_of_processes(study):
    w = windows(study)
    for world, micro in ((2, 3), (3, 1), (2, 1)):
        parts = [loader(w, rank, world, micro=micro) for rank in range(world)]
        iterators = [iter(part) for part in parts]
        for update in range(4):
            rows = [next(it).rows for it in iterators for _ in range(6 // micro // world)]
            expected = [row for _, row in w.stream(6 * update, 6)]
            assert sorted(np.concatenate(rows)) == sorted(expected)
        assert {part.state_dict()["windows"] for part in parts} == {24}


def test_loader_goes_on_from_its_state(study):
    w = windows(study)
    first, again = loader(w, micro=3), loader(windows(study), micro=3)
    batches = iter(first)
    for _ in range(4):  # two updates; the batches read ahead do not count
        next(batches)
    state = first.state_dict()
    assert state == {"seed": 0, "recordings": len(w), "windows": 12}
    again.load_state_dict(state)
    assert torch.equal(next(iter(again)).noise, next(batches).noise)
    with pytest.raises(BrainLMError, match="with seed 0, found 14 with seed 1"):
        loader(windows(study, seed=1)).load_state_dict(state)
    with pytest.raises(BrainLMError, match="multiple of the batch size"):
        loader(w, size=7).load_state_dict(state)


def test_loader_error_reaches_the_consumer(study):
    with pytest.raises(IndexError):
        list(Prefetch(windows(study).batch, iter([[(0, 10_000)]])))


def test_no_recording_is_long_enough(study):
    corpus = Corpus(study.shards)
    with pytest.raises(BrainLMError, match=r"the longest is sub-\d+_task-rest with 62"):
        choose_rows(corpus, 100, "train")
    rows, left_out = choose_rows(corpus, 61, "train")
    assert len(rows) < len(corpus.usable(split="train"))
    assert left_out["bad_data"] == 1
    assert left_out["shorter than the window of 61 time points"] == 5


@pytest.mark.parametrize(("name", "value"), [("atlas_sha256", "b" * 64),
                                             ("sample_period_s", 2.0)])  # fmt: skip
def test_scaling_of_another_atlas_or_sample_period(study, name, value):
    from dataclasses import replace

    scaling = replace(Scaling.load(study.scaling), **{name: value})
    with pytest.raises(BrainLMError, match=f"{name} is .* the model's scaling has {value}"):
        Windows(Corpus(study.shards), scaling, 40, [0])


def test_linear_interpolation_equals_numpy():
    random = np.random.default_rng(0)
    signal = torch.from_numpy(random.standard_normal((2, 5, 30)))
    hidden = torch.from_numpy(random.random((2, 5, 30)) < 0.6)
    hidden[0, 0] = True
    found = interpolate_linear(signal, hidden).numpy()
    for b in range(2):
        for r in range(5):
            seen = np.flatnonzero(~hidden[b, r].numpy())
            expected = np.zeros(30)
            if len(seen):
                expected = np.interp(np.arange(30), seen, signal[b, r].numpy()[seen])
            assert np.allclose(found[b, r], expected)


def test_mean_of_the_visible_parcels():
    signal = torch.tensor([[[1.0, 2, 3], [3, 4, 5], [torch.nan, 0, 1]]])
    hidden = torch.tensor([[[True, False, True], [False, False, True], [False, False, True]]])
    found = average_visible(signal, hidden)
    assert torch.allclose(found[0, 1], torch.tensor([3.0, 2.0, 0.0]))  # NaN is not visible
    assert found.shape == signal.shape


def test_masked_r2_equals_scikit_learn():
    from sklearn.metrics import r2_score

    random = np.random.default_rng(0)
    y, p = random.standard_normal((2, 4, 3, 10))
    hidden = random.random((4, 3, 10)) < 0.5
    meter = MaskedR2(("r2", "r2_zero"))
    for k in range(4):
        args = [torch.from_numpy(x[k : k + 1]) for x in (y, hidden, p)]
        meter.add(*args, torch.zeros(1, 3, 10))
    scores = meter.result()
    assert scores["r2"] == pytest.approx(r2_score(y[hidden], p[hidden]))
    assert scores["r2_zero"] == pytest.approx(r2_score(y[hidden], 0 * p[hidden]))
    assert MaskedR2().result() == {"r2": None}


#: reads a corpus larger than what it may keep, in another process, and says what it kept
STREAM = """
import sys
from pathlib import Path
from brainlm.shards import Corpus, Scaling
from brainlm.shards.store import locate_series
from brainlm.training.windows import Windows, Loader, choose_rows
def kept():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith("RssAnon")).split()[1]) / 1024
folder = Path(sys.argv[1])
corpus = Corpus(sorted(folder.glob("*.parquet")))
rows, _ = choose_rows(corpus, 200, "train")
w = Windows(corpus, Scaling.load(folder / "scaling.json"), 200, rows, num_tokens=8)
loader = Loader(w, 4, 4)
before = most = kept()
seen = 0
for batch in loader:
    seen += len(batch.rows)
    most = max(most, kept())
    if seen >= len(rows):
        break
print(seen, most - before)
"""


def test_a_corpus_larger_than_memory(tmp_path):
    from brainlm.shards import ParcelQuantiles, Recording, ShardInfo, write_shard

    random, facts = np.random.default_rng(0), ("big", "c" * 64, 424, 1.0)
    series = random.standard_normal((2000, 424)).astype(np.float16)
    for shard in range(3):
        rows = [Recording(f"{shard}-{i}", f"{shard}-{i}", "big", "train", series=series)
                for i in range(40)]  # fmt: skip
        write_shard(tmp_path / f"{shard}.parquet", rows, ShardInfo(*facts))
    Scaling.fit(ParcelQuantiles.of([series[:200]], 424), atlas="big", atlas_sha256="c" * 64,
                sample_period_s=1.0).save(tmp_path / "scaling.json")  # fmt: skip
    size = sum(path.stat().st_size for path in tmp_path.glob("*.parquet")) / 2**20
    done = subprocess.run([sys.executable, "-c", STREAM, str(tmp_path)], capture_output=True,
                          text=True, timeout=240, check=True)  # fmt: skip
    seen, kept = map(float, done.stdout.split())
    assert seen == 120  # every recording
    assert size > 190  # MB on disk
    assert kept < size / 3


def test_an_interval_of_r2_draws_participants():
    random = np.random.default_rng(0)
    y, p = random.standard_normal((2, 40, 3, 10))
    p = 0.5 * p + y
    hidden = torch.from_numpy(random.random((40, 3, 10)) < 0.5)
    signal, prediction = torch.from_numpy(y), torch.from_numpy(p)
    sums = sums_by_window(signal, hidden, prediction)
    meter = MaskedR2()
    meter.add(signal, hidden, prediction)
    count, total, squares, error = sums.sum(0)
    assert 1 - error / (squares - total**2 / count) == pytest.approx(meter.result()["r2"])
    apart = r2_interval(sums.numpy(), [f"p{i}" for i in range(40)])
    assert apart[0] < meter.result()["r2"] < apart[1]
    together = r2_interval(sums.numpy(), ["one"] * 40)
    assert together[0] == together[1] == pytest.approx(meter.result()["r2"])
