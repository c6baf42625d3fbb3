"""Attention rows against the full matrix, and contrasts of maps against planted differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic import SHA, R, make_job, make_study, toy_atlas

from brainlm.config import Cohort
from brainlm.errors import BrainLMError
from brainlm.evaluation.attention import maps as module
from brainlm.evaluation.attention.maps import evaluate_attention, split_in_two
from brainlm.evaluation.seen import SEEN
from brainlm.model import BrainLM, BrainLMConfig, preset
from brainlm.model.attention_rows import cls_attention, parcel_attention
from brainlm.shards import Recording, Scaling, ShardInfo, write_shard

WINDOW, PATCH = 40, 10


def _model(family: str) -> BrainLM:
    torch.manual_seed(1)
    points = toy_atlas().coordinates
    if family == "parcel":
        return preset("tiny", num_parcels=R, window=WINDOW, patch=PATCH, coordinates=points).eval()
    return BrainLM(BrainLMConfig(
        family="image", num_parcels=R, window=WINDOW, patch=PATCH, width=16, depth=2, heads=2,
        ffn=16, decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_ffn=16,
        patch_parcels=5, has_coordinates=True), points).eval()  # fmt: skip


def _full(model: BrainLM, signal: torch.Tensor) -> np.ndarray:
    """[B, 1 + N, 1 + N] last-layer attention, mean over heads, the textbook way."""
    if model.config.gain:
        signal = signal / signal.square().mean((1, 2), keepdim=True).sqrt()
    patches, _, missing = model.grid.cut(signal)
    assert not missing.any()
    tokens = model.project(patches) + model.positions(model.coordinates)
    x = torch.cat([model.cls_token.expand(len(tokens), -1, -1), tokens], 1)
    for block in list(model.encoder)[:-1]:
        x = block(x)
    attention = model.encoder[-1].attention
    B, N, D = x.shape
    q, k, _ = attention.qkv(model.encoder[-1].norm1(x)).chunk(3, -1)
    q, k = (t.view(B, N, attention.heads, -1).transpose(1, 2) for t in (q, k))
    return (q @ k.transpose(2, 3) / np.sqrt(D / attention.heads)).softmax(-1).mean(1)


@pytest.mark.parametrize("family", ["parcel", "image"])
def test_rows_equal_those_of_the_full_matrix(family, monkeypatch):
    monkeypatch.setattr("brainlm.model.attention_rows.BLOCK", 7)  # several uneven blocks
    model, signal = _model(family), torch.randn(2, R, WINDOW)
    with torch.no_grad():
        full = _full(model, signal)
    if family == "parcel":
        of = np.arange(R * 4).reshape(R, 4)
    else:  # row of the image, from back to front, five parcels to a token, centred: 15 - 12 = 3
        row = np.argsort(np.argsort(toy_atlas().coordinates[:, 1], kind="stable"))
        of = ((row + 1) // 5)[:, None] * 4 + np.arange(4)
    cls = full[:, 0, 1:].numpy()[:, of].mean(-1)
    expected = cls / cls.mean(-1, keepdims=True)
    np.testing.assert_allclose(cls_attention(model, signal).numpy(), expected, rtol=1e-4)
    rows = full[:, 1:, 1:].mean(0).numpy()[:, of].mean(-1)
    rows = (rows / rows.mean(-1, keepdims=True))[of].mean(1)
    np.testing.assert_allclose(parcel_attention(model, signal).numpy(), rows, rtol=1e-4)


def test_parcels_without_data_have_no_attention_and_leave_the_rest_even():
    model, signal = _model("parcel"), torch.randn(1, R, WINDOW)
    signal[:, 3] = torch.nan
    row, rows = cls_attention(model, signal), parcel_attention(model, signal)
    assert row.isnan().nonzero().tolist() == [[0, 3]]
    assert row.nanmean() == pytest.approx(1, rel=1e-5)
    assert rows.isnan().sum() == 2 * R - 1
    other = signal.clone()
    other[:, 3] = 5.0  # a model that sees the parcel gives other values: it really was left out
    assert not torch.allclose(cls_attention(model, other)[0, 4:], row[0, 4:], rtol=1e-4)


def test_groups_are_two_values_two_halves_or_an_error():
    labels, names = split_in_two(pd.Series([3, 1, 2, 9, None]), None, "score")
    assert names == ("low", "high")
    assert labels.tolist()[:4] == ["high", "low", "low", "high"]
    assert pd.isna(labels[4])
    _, names = split_in_two(pd.Series([0, 1, 1]), None, "sex")
    assert names == ("0", "1")
    site = pd.Series(["a", "b", "c"])
    with pytest.raises(BrainLMError, match="found 3: a, b, c"):
        split_in_two(site, None, "site")
    labels, names = split_in_two(site, ("c", "a"), "site")
    assert names == ("c", "a") and labels.notna().sum() == 2
    with pytest.raises(BrainLMError, match="no participant is d"):
        split_in_two(site, ("a", "d"), "site")


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """60 participants, 20 parcels; parcel 5 differs by diagnosis, parcel 9 by site and task."""
    rng = np.random.default_rng(3)
    participants = [f"sub-{n:02d}" for n in range(60)]
    sick, site = np.arange(60) % 2 == 1, np.arange(60) // 30
    table = pd.DataFrame({"participant_id": participants, "diagnosis": np.where(sick, "yes", "no"),
                          "site": site, "score": rng.normal(size=60)})  # fmt: skip
    table.loc[59, "diagnosis"] = None
    table.to_csv(tmp_path / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    rows = []
    for n, name in enumerate(participants):
        trait = rng.normal(size=20)
        for task in ("rest", "movie") if n < 40 else ("rest",):
            values = trait + 0.3 * rng.normal(size=20)
            values[5] += 2 * sick[n]
            values[9] += 3 * site[n] + 2 * (task == "movie")
            rows.append({"cohort": "c", "participant_id": name, "task": task, "map": values,
                         "mean_fd_mm": np.nan})  # fmt: skip
    maps = pd.DataFrame(rows)
    maps.loc[0, "map"][7] = np.nan
    return lambda **more: _evaluate(monkeypatch, tmp_path, maps, **more), tmp_path


def _evaluate(monkeypatch, folder, maps, others=(), bootstrap=100, **more) -> pd.DataFrame:
    """The task on these maps; cohort c in `folder` has somebody whose recording cannot be used."""
    left_out = {"c": {"without a usable recording": 1}}
    recorded = [*zip(maps["cohort"], maps["participant_id"], strict=True), ("c", "sub-bad")]
    found = maps, left_out, pd.MultiIndex.from_tuples(recorded).unique()
    monkeypatch.setattr(module, "attention_maps", lambda *_: found)
    cohorts = [Cohort(name="c", folder=folder), *others]
    task = {"kind": "attention", "permutations": 300} | more
    job = make_job(folder / "attention.parquet", task, model=folder, shards=[],
                   evaluate={"bootstrap": bootstrap})  # fmt: skip
    config = job.config.model_copy(update={"cohorts": tuple(cohorts)})
    return evaluate_attention(replace(job, config=config))


def _parcels(table: pd.DataFrame) -> set[str]:
    return set(table[(table["level"] == "parcel") & (table["p"] < 0.05)]["unit"])


def test_a_difference_between_groups_is_found_where_it_was_planted(planted):
    evaluate, folder = planted
    table = evaluate(contrast="diagnosis")
    assert _parcels(table) == {"6"}
    sixth = table[table["unit"] == "6"].iloc[0]
    assert sixth["low"] < 2 < sixth["high"] and sixth["p"] == pytest.approx(1 / 301)
    assert sixth["n"] == 59 and sixth["left_out"] == 2
    assert "yes 29; 1 without a usable recording; 1 without diagnosis" in sixth["note"]
    maps = pd.read_parquet(folder / "attention.maps.parquet")
    assert maps.groupby("group")["parcel"].count().to_dict() == {"no": 20, "yes": 20}
    assert (maps["low"] < maps["mean"]).all() and (maps["mean"] < maps["high"]).all()


def test_participants_without_another_group_at_their_site_are_left_out(planted):
    evaluate, folder = planted
    table = pd.read_csv(folder / "participants.tsv", sep="\t")
    table["site"] = table["site"].astype(str)
    table.loc[[0, 2, 4], "site"] = "healthy only"
    table.to_csv(folder / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    row = evaluate(contrast="diagnosis", within="site").iloc[0]
    assert (
        row["n"] == 56
        and "3 without a participant of the other group of the same site" in row["note"]
    )


def test_participants_with_a_label_and_no_recording_are_counted(planted):
    evaluate, folder = planted
    table = pd.read_csv(folder / "participants.tsv", sep="\t")
    for name, diagnosis in [("sub-never", "yes"), ("sub-bad", "no"), ("sub-unknown", None)]:
        table.loc[len(table), ["participant_id", "diagnosis"]] = name, diagnosis
    table.to_csv(folder / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    row = evaluate(contrast="diagnosis").iloc[0]
    assert row["left_out"] == 3 and "1 with a label and no recording at all" in row["note"]
    assert evaluate(contrast="diagnosis", groups=("no", "yes")).iloc[0]["left_out"] == 3


def test_a_contrast_within_sites_does_not_take_a_site_for_a_group(planted):
    evaluate, _ = planted
    assert _parcels(evaluate(contrast="site")) == {"10"}
    with pytest.raises(BrainLMError, match="c: no two differ in site and share"):
        evaluate(contrast="site", within="site")
    with pytest.raises(BrainLMError, match="c: its participants table has no 'scanner'"):
        evaluate(contrast="site", within="scanner")


def test_a_cohort_that_cannot_be_compared_does_not_stop_the_others(planted, monkeypatch):
    _, folder = planted
    rng, others, parts = np.random.default_rng(5), [], []
    for name, sexes in [("c", "MF"), ("one", "MM"), ("unmeasured", "MF")]:
        participants = [f"sub-{n:02d}" for n in range(20)]
        table = pd.DataFrame({"participant_id": participants, "sex": list(sexes) * 10})
        if name != "unmeasured":
            table["score"] = rng.normal(size=20)
        (folder / name).mkdir()
        table.to_csv(folder / name / "participants.tsv", sep="\t", index=False)
        maps = list(rng.normal(size=(20, 4)))
        parts.append(pd.DataFrame({"cohort": name, "participant_id": participants, "map": maps,
                                   "task": "rest", "mean_fd_mm": np.nan}))  # fmt: skip
        others.append(Cohort(name=name, folder=folder / name))
    maps = pd.concat(parts)

    def run(**more):
        return _evaluate(monkeypatch, folder / "c", maps, others[1:], **more)

    table = run(contrast="sex", adjust=["score"])
    first = table.drop_duplicates("cohort").set_index("cohort")
    assert first["n"].to_dict() == {"c": 20, "one": 0, "unmeasured": 0}
    assert first["left_out"].to_dict() == {"c": 1, "one": 20, "unmeasured": 20}
    assert "expected two groups, found 1: M" in first.loc["one", "note"]
    assert "has no 'score'" in first.loc["unmeasured", "note"]
    maps.loc[maps["cohort"].eq("c") & (maps.index % 2 == 0), "task"] = "movie"
    again = maps[maps["cohort"] == "c"]
    again = again.assign(task=np.where(again["task"] == "rest", "movie", "rest"),
                         map=list(rng.normal(size=(20, 4))))  # fmt: skip
    maps = pd.concat([maps, again])
    found = run(contrast="task").drop_duplicates("cohort").set_index("cohort")
    assert found["n"].to_dict() == {"c": 20, "one": 0, "unmeasured": 0}
    assert "found 1: rest" in found.loc["one", "note"]


def test_conditions_of_the_same_participants_take_no_covariates(planted):
    evaluate, _ = planted
    for held in ({"within": "anything"}, {"adjust": ["score"]}):
        for contrast in ("task", None):
            with pytest.raises(BrainLMError, match="are for groups of participants"):
                evaluate(contrast=contrast, **held)


def test_a_covariate_is_held_constant_and_has_to_be_of_numbers(planted):
    evaluate, folder = planted
    table = pd.read_csv(folder / "participants.tsv", sep="\t")
    table["motion"] = (table["diagnosis"] == "yes") + 0.01 * table["score"]
    table.loc[5, "motion"] = None
    table.to_csv(folder / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    assert _parcels(evaluate(contrast="diagnosis", adjust=["score"])) == {"6"}
    adjusted = evaluate(contrast="diagnosis", adjust=["motion"])
    assert _parcels(adjusted) == set()
    assert "1 without motion" in adjusted["note"].iloc[0] and set(adjusted["n"]) == {58}
    with pytest.raises(BrainLMError, match=r"\(c\): diagnosis of sub-00 is 'no', expected"):
        evaluate(contrast="site", adjust=["score", "diagnosis"])


def test_measured_motion_is_a_covariate_and_the_tables_stands_in_for_it(planted, monkeypatch):
    _, folder = planted
    rng = np.random.default_rng(8)
    table = pd.read_csv(folder / "participants.tsv", sep="\t").assign(mean_fd=5.0)
    table.loc[59, ["mean_fd", "diagnosis"]] = None, "yes"
    table.to_csv(folder / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    participants = table["participant_id"].repeat(2)
    second = (table["diagnosis"] == "yes").repeat(2).to_numpy()
    moved = second + rng.normal(size=120)
    moved[2 * 59 :] = np.nan  # neither measured nor in the table
    moved[:2] = np.nan  # sub-00: of the table
    maps = pd.DataFrame({"cohort": "c", "participant_id": participants, "task": "rest",
                         "mean_fd_mm": moved, "map": list(rng.normal(size=(120, 3)))})  # fmt: skip
    got = _evaluate(monkeypatch, folder, maps, contrast="diagnosis", adjust=["mean_fd_mm"])
    assert set(got["n"]) == {59} and "1 without mean_fd_mm" in got["note"].iloc[0]
    subject = np.stack(maps["map"].to_list()).reshape(60, 2, 3).mean(1)
    motion = maps.groupby("participant_id")["mean_fd_mm"].mean().to_numpy(copy=True)
    motion[0] = 5.0
    design = np.column_stack([np.ones(60), motion, second[::2]])[:59]
    expected = np.linalg.lstsq(design, subject[:59], rcond=None)[0][2]
    np.testing.assert_allclose(got["value"][got["metric"] == "difference"], expected)


def test_a_whole_table_is_not_read_for_one_column(planted, monkeypatch):
    evaluate, _ = planted
    seen, read = [], module.read_participants

    def note(cohort, columns):
        seen.append(set(columns))
        return read(cohort, columns)

    monkeypatch.setattr(module, "read_participants", note)
    evaluate(contrast="diagnosis", within="site", adjust=["score"])
    assert seen == [{"diagnosis", "site", "score"}]


def test_conditions_are_compared_within_participants(planted):
    evaluate, _ = planted
    table = evaluate(contrast="task")
    assert _parcels(table) == {"10"}
    assert set(table["n"]) == {40} and set(table["left_out"]) == {21}
    tenth = table[table["unit"] == "10"].iloc[0]  # movie first, as the alphabet has it
    assert tenth["value"] == pytest.approx(-2, abs=0.3)


def test_a_score_is_cut_at_the_median_and_a_missing_column_is_refused(planted):
    evaluate, _ = planted
    assert "low 30, high 30" in evaluate(contrast="score")["note"].iloc[0]
    assert set(evaluate()["n"]) == {60}
    with pytest.raises(BrainLMError, match="c: its participants table has no 'iq'"):
        evaluate(contrast="iq")


def test_maps_of_a_model_have_one_row_per_recording(tmp_path):
    study = make_study(tmp_path, participants=9)
    _model("parcel").save_pretrained(tmp_path / "model", Scaling.load(study.scaling), "")
    maps, left_out, recorded = module.attention_maps(
        make_job(tmp_path / "a.parquet", {"kind": "attention"}, model=tmp_path / "model",
                 shards=study.shards)
    )  # fmt: skip
    assert len(recorded) == 10
    assert sum(left_out["toy"].values()) == 1  # sub-bad
    assert len(maps) == 9
    learnt = maps[maps["split"] != "test"]["participant_id"]
    assert len(learnt)  # who was trained on is left out of an external cohort
    again = [
        Recording(f"{name}_again", name, "away", "test", series=np.random.randn(WINDOW, R))
        for name in [*maps["participant_id"], "sub-new"]
    ]
    write_shard(tmp_path / "away.parquet", again, ShardInfo("toy", SHA, R, 1.0))
    shards = [*study.shards, tmp_path / "away.parquet"]
    found, why, _ = module.attention_maps(
        make_job(tmp_path / "a.parquet", {"kind": "attention"}, model=tmp_path / "model",
                 shards=shards, external=("away",))
    )  # fmt: skip
    assert sum(found["cohort"] == "away") == 10 - len(learnt)
    assert why["away"][SEEN] == len(learnt)
    stacked = np.stack(maps["map"])
    np.testing.assert_allclose(np.nanmean(stacked, 1), 1, rtol=1e-5)
    assert np.isnan(stacked[1, 2]) and np.isfinite(stacked[0]).all()
