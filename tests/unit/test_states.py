"""Decoding states: events and their blocks, clips, and planted conditions that are found."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic import SHA, R, make_job, toy_atlas

from brainlm.cohort.events import ConditionBlock, EventFiles, read_events
from brainlm.config import Cohort
from brainlm.errors import BrainLMError
from brainlm.evaluation.clinical.baselines import inner_folds
from brainlm.evaluation.states import decoding
from brainlm.evaluation.states.clips import clip_points, cut_blocks, list_clips
from brainlm.evaluation.states.decoding import (
    ATTENTIVE,
    CONNECTIVITY,
    LINEAR,
    MAJORITY,
    MLP,
    PATTERN,
    UNTRAINED,
    count_hits,
    evaluate_states,
)
from brainlm.evaluation.tasks import parse_task
from brainlm.model import preset
from brainlm.shards import Corpus, ParcelQuantiles, Recording, Scaling, ShardInfo, write_shard
from brainlm.simulate.activity import BLOCK_S, draw_patterns, make_activity
from brainlm.tables import write_tsv

PERIOD, PATCH, WINDOW, LENGTH = 2.0, 5, 20, 150
COLUMNS = ("onset", "duration", "trial_type")


def states(**keys):
    keys = {"kind": "states", "seeds": [1, 2], "epochs": 10, **keys}
    return parse_task(keys, "states", "states.yaml")


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tsv(path, COLUMNS, rows)
    return path


# ---- events


def test_events_in_any_order_become_blocks(tmp_path):
    path = write(
        tmp_path / "e.tsv",
        (40, 2, "face"), (10, 1, "face"), (13.5, 1, "face"), (12, 1, "face"),  # 10 to 14.5
        (46, 0, "face"),  # 4 s after 42: another block, of no length
        (20, 5, "house"), (22, 1, "house"),  # the second lies inside the first
        (28.9, 2, "house"), ("n/a", 1, "house"), (60, "n/a", "face"), (70, 3, "n/a"),
    )  # fmt: skip
    found = read_events(path)
    assert found.blocks == [
        ConditionBlock("face", 10, 14.5),
        ConditionBlock("house", 20, 30.9),
        ConditionBlock("face", 40, 42),
        ConditionBlock("face", 46, 46),
    ]
    assert found.skipped == 2
    assert {b.condition for b in read_events(path, conditions=["house"]).blocks} == {"house"}
    assert read_events(path, "duration").blocks[0].condition == "1"  # any column may name them


@pytest.mark.parametrize(
    ("header", "row", "words"),
    [
        (COLUMNS, (1, -2, "a"), "line 2: expected a duration of 0 s or more, found -2"),
        (COLUMNS, ("1,5", 2, "a"), "line 2: expected onset in seconds or n/a, found '1,5'"),
        (COLUMNS, (1, "nan", "a"), "expected duration in seconds"),
        (("onset", "duration"), (1, 2), "expected a column 'trial_type', found: onset, duration"),
    ],
)
def test_events_that_cannot_be_right_are_refused_by_name(tmp_path, header, row, words):
    path = tmp_path / "sub-1_task-x_events.tsv"
    write_tsv(path, header, [row])
    with pytest.raises(BrainLMError, match=f"sub-1_task-x_events.tsv.*{words}"):
        read_events(path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["task-x_events.tsv"], 0),  # at the top: inherited
        (["task-x_events.tsv", "sub-1/ses-2/func/sub-1_ses-2_task-x_run-1_events.tsv"], 1),
        (["task-x_events.tsv", "sub-1/sub-1_task-x_events.tsv"], 1),
        (["task-x_events.tsv", "task-x_run-1_events.tsv"], 1),  # more of the run's entities
        (["task-y_events.tsv", "sub-1/ses-2/func/sub-1_ses-2_task-x_run-2_events.tsv"], None),
        (["sub-2/ses-2/func/sub-2_ses-2_task-x_run-1_events.tsv"], None),
        (["../task-x_events.tsv"], None),  # outside the dataset
    ],
)
def test_events_are_found_as_bids_inherits_them(tmp_path, names, expected):
    folder = tmp_path / "bids"
    folder.mkdir()
    paths = [write(folder / name, (1, 1, "a")) for name in names]
    run = "sub-1_ses-2_task-x_run-01"
    place, derived = "sub-1/ses-2/func", f"{run}_space-MNI_desc-preproc_bold.nii.gz"
    for source in (f"{place}/{run}_bold.nii.gz", f"{place}/{derived}", f"{run}.npy"):
        found = EventFiles(folder).find(run, source)
        assert found == (None if expected is None else paths[expected])


def test_events_of_a_real_block_design(shared):
    name = "sub-01_task-oneback_run-1"
    folder = shared / "data" / "bids_real"
    events = read_events(EventFiles(folder).find(name, f"sub-01/func/{name}_bold.nii.gz"))
    counts = pd.Series([block.condition for block in events.blocks]).value_counts()
    assert counts.to_dict() == dict.fromkeys(
        ["body", "face", "house", "object", "scene", "scramble"], 2
    )
    lasts = [block.stop_s - block.start_s for block in events.blocks]
    assert min(lasts) > 15 and max(lasts) < 17 and events.skipped == 0
    clips = cut_blocks(events.blocks, 312, 15, 1.0, shift_s=5.0, min_share=0.8)
    assert sorted(name for *_, name in clips) == sorted(list(counts.index) * 2)


# ---- clips


@pytest.mark.parametrize(("delay_s", "start_s"), [(0, 0), (5, 0), (6, 4), (0, 30)])
def test_a_clip_begins_with_its_block_after_the_delay(delay_s, start_s):
    blocks = [ConditionBlock("a", 20, 36), ConditionBlock("b", 46, 70)]
    clips = cut_blocks(blocks, 60, 5, 2.0, shift_s=delay_s - start_s, min_share=0.8)
    expected = []
    for block, parts in zip(blocks, (1, 2), strict=True):
        first = int(np.ceil((block.start_s + delay_s - start_s) / 2))
        expected += [(first + 5 * k, first + 5 * k + 5, block.condition) for k in range(parts)]
    if start_s == 30:  # of a, 3 points are left at the start of the series: too few
        expected = expected[1:]
    assert clips == expected  # of 8 points 5 and, with a share of 0.8 of 5, not the other 3
    # ... unless less is asked for
    assert len(cut_blocks(blocks, 60, 5, 2.0, shift_s=0, min_share=0.6)) > len(clips)


def test_a_clip_of_two_conditions_is_none():
    blocks = [ConditionBlock("a", 0, 20), ConditionBlock("b", 4, 24)]
    assert cut_blocks(blocks, 12, 5, 2.0, shift_s=0, min_share=0.8) == []
    assert cut_blocks([], 12, 5, 2.0, shift_s=0, min_share=0.8) == []
    assert cut_blocks(blocks[:1], 4, 5, 2.0, shift_s=0, min_share=0.8) == []  # a short series


@pytest.mark.parametrize("seed", range(3))
def test_clips_never_overlap_and_are_of_their_condition(seed):
    random = np.random.default_rng(seed)
    edges = np.cumsum(random.uniform(1, 20, 40))
    blocks = [ConditionBlock(random.choice(["a", "b", "c"]), a, b) for a, b in pairwise(edges)]
    clips = cut_blocks(blocks, 300, 6, 1.5, shift_s=3.0, min_share=0.7)
    assert clips
    assert all(a[1] <= b[0] for a, b in pairwise(clips))
    for start, stop, condition in clips:
        times = np.arange(start, stop) * 1.5 - 3.0
        inside = [any(b.condition == condition and b.start_s <= t < b.stop_s for b in blocks)
                  for t in times]  # fmt: skip
        assert inside[0] and np.mean(inside) >= 0.7


def test_a_clip_is_whole_patches():
    assert clip_points(states(), 5, 20, 2.0) == 5
    assert clip_points(states(label="task"), 5, 20, 2.0) == 20
    assert clip_points(states(clip_s=29.9), 5, 20, 2.0) == 10
    for wrong in (9, 51):
        with pytest.raises(BrainLMError, match=f"clip_s is {wrong} s; expected from 10 s .*40 s"):
            clip_points(states(clip_s=wrong), 5, 20, 2.0)


# ---- planted conditions


def make(
    folder, *, conditions=2, participants=18, shuffle=False, strength=1.0, cohort="c", seed=3
):
    """Runs with planted conditions, their events in a folder like BIDS, and a shard."""
    random = np.random.default_rng(seed if cohort == "c" else [seed, 1])  # others, as ids are
    patterns = strength * draw_patterns(seed, conditions, R)
    rows = []
    for subject in range(participants):
        who = f"sub-{'' if cohort == 'c' else cohort}{subject:02d}"
        name = f"{who}_task-blocks"
        activity = make_activity(random, np.arange(LENGTH + 2) * PERIOD, patterns)
        noise = random.standard_normal((LENGTH + 2, R))
        for t in range(1, len(noise)):
            noise[t] = 0.6 * noise[t - 1] + 0.8 * noise[t]
        series = (noise + activity.series)[2:]  # the first two volumes are discarded
        series[:, 7] = np.nan  # a parcel without data
        series[:, 3 if subject % 5 == 1 else 7] = np.nan
        blocks = pd.DataFrame(activity.events, columns=COLUMNS)
        if shuffle:  # whole blocks change their names
            number = (blocks["onset"].diff() > 5).cumsum()
            names = random.permutation(blocks.groupby(number)["trial_type"].first())
            blocks["trial_type"] = names[number]
        write(folder / who / "func" / f"{name}_events.tsv",
              *blocks.itertuples(index=False))  # fmt: skip
        split = ("train", "train", "test", "validation")[subject % 4]
        rows.append(Recording(
            name, who, cohort, split, task="blocks" if subject % 2 else "rest",
            series=series, sample_period_s=PERIOD, units="percent", start_s=2 * PERIOD,
            source=f"{who}/func/{name}_bold.nii.gz",
        ))  # fmt: skip
    shard = folder / f"{cohort}.parquet"
    write_shard(shard, rows, ShardInfo("toy", SHA, R, PERIOD))
    return SimpleNamespace(shard=shard, rows=rows, cohort=Cohort(name=cohort, folder=folder))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network that has learnt nothing, with a scaling of the planted runs."""
    folder = tmp_path_factory.mktemp("model")
    made = make(folder / "data")
    quantiles = ParcelQuantiles.of([row.series for row in made.rows if row.split == "train"], R)
    scaling = Scaling.fit(quantiles, atlas="toy", atlas_sha256=SHA, sample_period_s=PERIOD)
    torch.manual_seed(5)
    places = toy_atlas().coordinates
    network = preset("tiny", num_parcels=R, window=WINDOW, patch=PATCH, coordinates=places)
    network.save_pretrained(folder / "model", scaling, "")
    return folder / "model"


def evaluate(model, out, *made, task=None, external=()):
    job = make_job(
        out / "states.parquet", {"kind": "states"}, model=model,
        shards=[one.shard for one in made], external=external, evaluate={"bootstrap": 200},
        cohorts={one.cohort.name: one.cohort.folder for one in made},
    )  # fmt: skip
    table = evaluate_states(replace(job, task=task or states()))
    return table, pd.read_parquet(out / "states.confusion.parquet")


def value(table, method, metric="balanced_accuracy", column="value", **where):
    rows = table[(table["method"] == method) & (table["metric"] == metric)]
    rows = rows[rows["level"] == where.pop("level", "pooled")]
    for key, wanted in where.items():
        rows = rows[rows[key] == wanted]
    assert len(rows) == 1
    return rows.iloc[0][column]


@pytest.fixture(scope="module")
def decoded(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("decoded")
    here = make(out / "c", strength=1.5)
    other = make(out / "other", cohort="other", participants=5, strength=1.5)
    for row in sorted((out / "other").rglob("*_events.tsv"))[:1]:
        row.unlink()  # a participant without events
    return evaluate(model, out, here, other, external=("other",))


def test_planted_conditions_are_decoded(decoded):
    table, _ = decoded
    for cohort in ("c", "other"):
        assert value(table, PATTERN, cohort=cohort) > 0.9
        assert value(table, MAJORITY, cohort=cohort) == 0.5
        assert value(table, MLP, cohort=cohort) > 0.7
        for probe in (LINEAR, ATTENTIVE, UNTRAINED):  # even of a network that learnt nothing
            assert value(table, probe, cohort=cohort) > 0.65
        gap = value(table, f"{PATTERN} minus {MAJORITY}", cohort=cohort)
        assert gap == pytest.approx(value(table, PATTERN, cohort=cohort) - 0.5)
    assert value(table, f"{PATTERN} minus {CONNECTIVITY}", cohort="c") > 0.2
    assert set(table["split"]) == {"test", "all"}


def test_rows_say_who_was_left_out_and_what_a_clip_is(decoded):
    table, _ = decoded
    row = table[table["cohort"] == "other"].iloc[0]
    assert (row["n"], row["left_out"]) == (4, 1)
    assert "1 without an events.tsv" in row["note"] and "clips of 10 s" in row["note"]
    assert (table["n_train"] == 10).all()
    here = table[table["cohort"] == "c"]
    assert set(here["n"]) == {4} and set(here["left_out"]) == {0}


def test_confusions_add_up_to_the_recall(decoded):
    table, confusion = decoded
    part = confusion[(confusion["cohort"] == "c") & (confusion["method"] == PATTERN)]
    wide = part.pivot_table("n", "true", "predicted")
    for condition in wide.index:
        recall = wide.loc[condition, condition] / wide.loc[condition].sum()
        found = value(table, PATTERN, "recall", level="condition", unit=condition, cohort="c")
        assert recall == pytest.approx(found)
    accuracy = np.trace(wide.to_numpy()) / wide.to_numpy().sum()
    assert accuracy == pytest.approx(value(table, PATTERN, "accuracy", cohort="c"))
    totals = confusion.groupby(["cohort", "method"])["n"].sum().unstack()
    assert (totals.nunique(axis=1) == 1).all()  # of the same clips


def test_conditions_with_shuffled_names_are_not_decoded(model, tmp_path):
    made = make(tmp_path / "c", shuffle=True, participants=24)
    table, _ = evaluate(model, tmp_path, made, task=states(seeds=[1], epochs=3))
    assert 0.3 < value(table, PATTERN) < 0.7 and 0.3 < value(table, LINEAR) < 0.7


def test_nobodys_clips_are_on_both_sides(model, tmp_path, monkeypatch):
    seen = {}

    class Watched(decoding.ClipDecoder):
        def _see(self, clips):
            seen.setdefault("fitted" if not seen else "tested", clips)
            return super()._see(clips)

    monkeypatch.setattr(decoding, "ClipDecoder", Watched)
    made = make(tmp_path / "c", participants=12)
    evaluate(model, tmp_path, made, task=states(seeds=[1], epochs=1))
    fitted, tested = (set(seen[name]["participant_id"]) for name in ("fitted", "tested"))
    assert len(fitted) == 9 and len(tested) == 3 and not fitted & tested
    assert set(seen["fitted"]["split"]) == {"train", "validation"}


def test_inner_folds_keep_participants_together():
    groups, labels = np.repeat(np.arange(12), 5), np.tile([0, 1, 0, 1, 0], 12)
    folds = inner_folds(labels, 0, groups)
    assert len(folds) == 5
    assert all(not set(groups[a]) & set(groups[b]) for a, b in folds)
    # a condition that one participant has cannot be on both sides
    assert inner_folds(np.where(groups == 3, 2, labels), 0, groups) == []
    assert len(inner_folds(labels, 0)) == 5


def test_where_nothing_can_be_decoded_the_table_says_why(model, tmp_path):
    made = make(tmp_path / "c", participants=8)
    for task, words in [
        (states(conditions=["condition1"]), "fewer than 2 conditions can be learnt"),
        (states(conditions=["nothing"]), "without a clip of one condition"),
        (states(events={"c": tmp_path / "elsewhere"}), "without an events.tsv"),
    ]:
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        table, confusion = evaluate(model, tmp_path, made, task=task)
        assert table["n"].tolist() == [0] and words in table["note"][0] and confusion.empty
    broken = next((tmp_path / "c").rglob("sub-02*_events.tsv"))
    broken.write_text("onset\tduration\n1\t2\n")
    corpus = Corpus([made.shard])
    clips = list_clips(corpus, states(), PATCH, {"c": made.cohort.folder})
    assert clips.reasons.to_dict() == {2: "with events that cannot be read"}
    assert "sub-02_task-blocks_events.tsv: expected a column" in clips.errors["c"]
    assert len(set(clips.table["participant_id"])) == 7


def test_events_of_a_cohort_or_folder_that_is_not_there_are_refused(model, tmp_path):
    made = make(tmp_path / "c", participants=3)
    for events, words in [({"d": tmp_path}, "cohort 'd'; known: c"),
                          ({"c": tmp_path / "none"}, "found none at .*none")]:  # fmt: skip
        with pytest.raises(BrainLMError, match=words):
            evaluate(model, tmp_path, made, task=states(events=events))


def test_runs_are_told_apart_by_their_task(model, tmp_path):
    made = make(tmp_path / "c", participants=16)
    for row in made.rows:  # rest is what has no blocks: here, slower
        if row.task == "rest":
            row.series[:] = np.cumsum(row.series, 0) - np.cumsum(row.series, 0).mean(0)
    write_shard(made.shard, made.rows, ShardInfo("toy", SHA, R, PERIOD))
    corpus = Corpus([made.shard])
    clips = list_clips(corpus, states(label="task"), WINDOW, {}).table
    assert set(clips["condition"]) == {"rest", "blocks"}
    assert (clips["stop"] - clips["start"] == WINDOW).all()
    assert clips.groupby("row").size().unique().tolist() == [LENGTH // WINDOW]
    short = list_clips(corpus, states(label="task"), 2 * LENGTH, {}).table
    assert (short["stop"] == LENGTH).all() and len(short) == 16  # shorter runs are one clip


def test_a_series_of_unknown_beginning_is_said(tmp_path):
    made = make(tmp_path / "c", participants=3)
    rows = [Recording(**{**vars(row), "start_s": None}) for row in made.rows]
    write_shard(made.shard, rows, ShardInfo("toy", SHA, R, PERIOD))
    clips = list_clips(Corpus([made.shard]), states(), PATCH, {"c": made.cohort.folder})
    assert sum(clips.notes.values()) == 3 and len(clips.table)


def test_hits_are_counted_by_participant_and_condition():
    y, who = np.array([0, 0, 2, 2, 2]), np.array([0, 1, 1, 1, 0])
    guess = np.array([[0, 2], [0, 0], [2, 2], [0, 0], [2, 0]])
    right, total = count_hits(y, guess, who, np.array([0, 2]))
    np.testing.assert_array_equal(total, [[1, 1], [1, 2]])
    np.testing.assert_array_equal(right, [[[1, 1], [1, 1]], [[0, 0], [1, 1]]])


def test_planted_activity_follows_its_events():
    times = np.arange(0, 300, 0.5)
    patterns = draw_patterns(1, 3, 8)
    made = make_activity(np.random.default_rng(0), times, patterns)
    onset, _, name = made.events[0]
    pattern = patterns[int(name[-1]) - 1]
    late = (times > onset + 10) & (times < onset + BLOCK_S)
    np.testing.assert_allclose(
        made.series[late].mean(0), pattern, atol=0.1 * np.abs(pattern).max()
    )
    assert np.abs(made.series[times < onset]).max() < 1e-9
    counts = pd.Series([name for *_, name in made.events]).value_counts()
    assert len(counts) == 3 and counts.max() - counts.min() <= BLOCK_S


def test_the_page_shows_the_methods_the_conditions_and_what_is_taken_for_what(decoded):
    from brainlm.report.findings import describe_tasks

    table, confusion = decoded
    facts = SimpleNamespace(clinical=[], tasks={"states": states()}, results={"states": table},
                            side=lambda name, what: confusion)  # fmt: skip
    (section,) = describe_tasks(facts)
    named = {block.name: block for block in section.blocks if hasattr(block, "name")}
    assert section.title == "States"
    assert {"states-dots", "states-parts", "states-confusion-c"} <= set(named)
    best = max((LINEAR, ATTENTIVE), key=lambda name: value(table, name, cohort="c"))
    assert f"the {best} takes" in named["states-confusion-c"].caption
    assert named["states-confusion-c"].svg.count("condition1") >= 2
    shown = named["states-parts"].shown["condition"]
    assert list(shown[:2]) == ["condition1", "condition2"]
    nothing = table.iloc[:1].assign(n=0, metric=None, value=None)
    facts.results = {"states": nothing}
    assert "dots" not in str([getattr(b, "name", "") for b in describe_tasks(facts)[0].blocks])
