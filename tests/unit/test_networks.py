"""Networks of parcels: tables of networks, the classifier, and what it is compared with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic import R, make_job, make_study, toy_atlas

from brainlm.atlas import load_atlas, read_networks
from brainlm.config import Config
from brainlm.errors import BrainLMError
from brainlm.evaluation.job import Job
from brainlm.evaluation.parcel_networks import readout
from brainlm.evaluation.parcel_networks.encoders import (
    ParcelGCN,
    ParcelVAE,
    masked_error,
    nearest_graph,
)
from brainlm.evaluation.parcel_networks.readout import (
    MAJORITY,
    MODEL,
    SHUFFLED,
    _trained,
    classify_parcels,
    divide_parcels,
    evaluate_networks,
)
from brainlm.evaluation.tasks import parse_task
from brainlm.model import from_pretrained, preset
from brainlm.shards import Corpus, Scaling
from brainlm.training.loop import Fitted


def test_a_table_of_networks_is_read_by_number_or_by_row(tmp_path):
    path = tmp_path / "networks.tsv"
    path.write_text("parcel\tnetwork\n3\tVisual\n1\tnone\n2\tDefault\n")
    assert read_networks(path, "network", 4) == (None, "Default", "Visual", None)
    assert read_networks(path, "network", 3, without=["visual"]) == (None, "Default", None)
    path.write_text("name\tnetwork\na\tVisual\nb\t\n")
    assert read_networks(path, "network", 2) == ("Visual", None)
    for text, problem in [
        ("name\tnetwork\na\tVisual\n", "expected 2 rows"),
        ("parcel\tnetwork\n3\tVisual\n", r"parcels 1\.\.2 at most once"),
        ("parcel\tnetwork\n1\tVisual\n1\tDefault\n", "at most once"),
        ("parcel\tnetwork\n1\tn/a\n", "no parcel has a network"),
        ("parcel\tyeo\n1\tVisual\n", "column 'network', found: parcel, yeo"),
    ]:
        path.write_text(text)
        with pytest.raises(BrainLMError, match=problem):
            read_networks(path, "network", 2)


def test_the_demo_atlas_has_seven_networks_and_cc200_none(tmp_path):
    assert len(set(load_atlas("demo424", tmp_path).networks)) == 7
    assert load_atlas("cc200", tmp_path).networks is None


def test_an_atlas_without_networks_is_refused_with_what_to_do(tmp_path):
    task = parse_task({"kind": "networks"}, "networks", "networks.yaml")
    config = Config(cohorts=({"name": "a", "folder": "a"},),
                    atlas={"name": "cc200", "folder": tmp_path})  # fmt: skip
    with pytest.raises(
        BrainLMError, match=r"cc200 has no table of networks.*name one in the task"
    ):
        evaluate_networks(Job(task, config, tmp_path, [], tmp_path / "networks.parquet"))


def test_raw_series_of_a_real_recording_give_the_known_accuracy(shared):
    """Known from an independent check: .575 for 5 neighbours, majority .228, of 360 parcels."""
    atlas = load_atlas("a424", shared / "atlases", download=False)
    series = np.loadtxt(shared / "data" / "a424_example" / "A424_example.dat").T
    known = np.array([name is not None for name in atlas.networks])
    names, labels = np.unique([n for n in atlas.networks if n], return_inverse=True)
    assert known.sum() == 360 and len(names) == 7
    accuracy = []
    for seed in range(20):
        train, test = divide_parcels(labels, seed)
        assert len(test) == 72 and not set(train) & set(test)
        accuracy.append(
            np.mean(classify_parcels(series[known], labels, train, test) == labels[test])
        )
    assert np.mean(accuracy) == pytest.approx(0.575, abs=0.03)
    assert np.bincount(labels).max() / len(labels) == pytest.approx(0.228, abs=0.001)


def test_both_networks_learn_to_fill_in_what_is_hidden():
    torch.manual_seed(0)
    course = torch.sin(torch.linspace(0, 12, 40) + 6.28 * torch.rand(64, 1, 1))
    signal = course.expand(-1, 6, -1) + 0.1 * torch.randn(64, 6, 40)
    signal[:, 4] = torch.nan  # a parcel without data
    graph = nearest_graph(torch.ones(6, 6), 5)
    torch.testing.assert_close(graph, torch.full((6, 6), 1 / 6))
    for network in (ParcelVAE(40, 16), ParcelGCN(40, graph, 64)):
        optimizer = torch.optim.Adam(network.parameters(), 5e-3)
        for _ in range(150):
            loss = masked_error(network.train(), signal, 10)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            assert masked_error(network.eval(), signal, 10) < 0.4  # 0.5: nothing learned
            assert network.features(signal.nan_to_num(0)).shape[:2] == (64, 6)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    made = make_study(folder, participants=40, dtype="float32")
    torch.manual_seed(0)
    model = preset("tiny", num_parcels=R, window=40, patch=10, coordinates=toy_atlas().coordinates)
    model.save_pretrained(folder / "model", Scaling.load(made.scaling), "")
    return folder, made


def job_of(folder, made, **task):
    return make_job(folder / "networks.parquet", {"kind": "networks", **task},
                    model=folder / "model", shards=made.shards, evaluate={"bootstrap": 100}
                    )  # fmt: skip


def test_methods_share_parcels_and_chance_is_shown_next_to_them(study, monkeypatch):
    monkeypatch.setattr(readout, "NEIGHBOURS", 1)  # 3 training parcels each
    folder, made = study
    networks = [f"network {i % 3}" for i in range(R)]
    networks[11] = None
    monkeypatch.setattr(readout, "_find_networks", lambda job: (networks, made.atlas.coordinates))
    table = evaluate_networks(job_of(folder, made, epochs=1, seeds=[1, 2, 20240101]))
    pooled = table[table["level"] == "pooled"].set_index("method")
    assert {MODEL, "raw series", "connectivity rows", "VAE", "GCN", "places", SHUFFLED,
            MAJORITY} < set(pooled.index)  # fmt: skip
    assert set(pooled["n"]) == {4}
    assert "1 parcels without a network" in pooled["note"].iloc[0]
    assert pooled["value"]["raw series"] > 0.9  # parcels of a network share their course
    assert pooled["value"][SHUFFLED] < 0.6
    gap = pooled["value"][MODEL] - pooled["value"]["raw series"]
    assert pooled["value"][f"{MODEL} minus raw series"] == pytest.approx(gap)
    recalls = table[(table["level"] == "network") & (table["method"] == "raw series")]
    assert set(recalls["unit"]) == {"network 0", "network 1", "network 2"}
    shares = []  # of the tested parcels that are of the network most frequent in training
    corpus = Corpus(made.shards)
    for row, index in enumerate(corpus.usable(split="test", min_timepoints=40)):
        known = np.isfinite(corpus.series(index)).any(0)
        labels = np.array([i % 3 for i in range(11) if known[i]])
        divided = [divide_parcels(labels, readout._mix(seed, row)) for seed in (1, 2, 20240101)]
        shares.append(np.mean([
            labels[test] == np.bincount(labels[train]).argmax() for train, test in divided
        ]))  # fmt: skip
    recordings = table[(table["level"] == "recording") & (table["method"] == MAJORITY)]
    np.testing.assert_allclose(recordings["value"], shares)
    assert pooled["value"][MAJORITY] == pytest.approx(np.mean(shares), abs=0.02)


def test_external_participants_train_nothing(study, monkeypatch):
    folder, made = study
    corpus, model = Corpus(made.shards), from_pretrained(folder / "model")
    seen = []

    def note(build, loss, train, check, budget):
        seen[:] = train.rows, check.rows
        return Fitted(build(), 0.0, 1e-3, 1)

    monkeypatch.setattr("brainlm.training.loop.fit", note)
    moved = corpus.table.index[corpus.table["participant_id"] < "sub-020"]
    corpus.table.loc[moved, "cohort"] = "other"
    _trained(model, corpus, {"toy": "reference", "other": "external"}, 1, 4, 1, lambda: None)
    for split, rows in zip(("train", "validation"), seen, strict=True):
        table = corpus.table.loc[rows]
        assert set(table["cohort"]) == {"toy"} and set(table["split"]) == {split}
        assert len(table) == (14 if split == "train" else 4)
    with pytest.raises(BrainLMError, match="no training recording has 40 time points"):
        _trained(model, corpus, {"toy": "external", "other": "external"}, 1, 4, 1, lambda: None)


def test_a_table_for_another_atlas_or_of_one_network_is_refused(study, monkeypatch):
    folder, made = study
    for networks, problem in [(["a"] * 5, "a table for 5 parcels"), (["a"] * R, "names 1")]:
        monkeypatch.setattr(readout, "_find_networks", lambda job, n=networks: (n, None))
        with pytest.raises(BrainLMError, match=problem):
            evaluate_networks(job_of(folder, made))
