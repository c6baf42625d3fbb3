"""The study report from files: what it says, what it refuses to invent, hostile names."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from brainlm.preprocess.io.derivatives import Derivatives
from brainlm.preprocess.normalise.normalise_text import TEXT as NORMALISE
from brainlm.preprocess.stages.context import Context
from brainlm.report import build_report
from brainlm.report.cautions import list_cautions
from brainlm.report.cohort_pages import _count_statuses, find_outliers
from brainlm.report.facts import read_facts
from brainlm.report.page_blocks import show, show_interval
from brainlm.report.pages import write_chunk_pages
from brainlm.steps import describe_series

sys.path.append(str(Path(__file__).resolve().parents[1] / "browser"))
from study import HOSTILE, build, make_atlas, make_pages, make_results

HOME = [f"sub-home{n:03d}_task-rest" for n in range(6)]


class _Page(HTMLParser):
    """Tags, attributes, text and ids of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text, self.ids, self.links = [], "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs[k] for k in ("href", "src", "xlink:href") if k in attrs]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    config = make_results(tmp_path_factory.mktemp("study"))
    out = build(config)
    return config, out, _Page((out / "index.html").read_text(encoding="utf-8"))


def test_every_recording_that_is_not_usable_is_named_with_its_reason(study):
    _, out, page = study
    table = pd.read_csv(out / "data" / "not-usable.csv", keep_default_na=False)
    assert len(table) == 6  # unreadable, too_short and pending, in two cohorts
    for row in table.itertuples():
        assert row.recording in page.text
        assert row.reason in page.text


def test_a_cohort_is_shown_with_the_doi_of_its_dataset(study):
    *_, page = study
    assert "home: DOI of the dataset" in page.text and "10.1/home" in page.text
    assert "away: " not in page.text and "commit of the dataset" not in page.text


def test_hostile_text_is_text(study):
    *_, page = study
    assert HOSTILE in page.text
    assert [tag for tag, _ in page.tags if tag == "b"] == []
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [
        {"defer": None, "src": "static/page.js"}
    ]


def test_the_page_needs_nothing_but_its_folder(study):
    _, out, page = study
    text = (out / "index.html").read_text(encoding="utf-8")
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        elif not link.startswith("data:"):
            assert (out / link).is_file(), link
    assert "url(http" not in text
    assert text.count("<image") == text.count('<image xlink:href="data:image/png;base64,')


def test_figures_take_their_colours_from_the_style_sheet(study):
    _, out, _ = study
    text = (out / "index.html").read_text(encoding="utf-8")
    assert "var(--ink)" in text
    assert "var(--series-1)" in text
    for fixed in ("#0072b2", "#010203", "#040506", "#000000"):
        assert fixed not in text, fixed


@pytest.mark.parametrize(("cohort", "few"), [("home", True), ("away", False)])
def test_headline_figures_are_shown_with_their_baseline_with_intervals(study, cohort, few):
    config, _, page = study
    result = read_facts(config).results["reconstruction"]
    part = result[(result["target"] == "random 75%") & (result["cohort"] == cohort)]
    part = part[(part["level"] == "pooled") & (part["metric"] == "r2")].set_index("method")
    text = show_interval(*part.loc["linear", ["value", "low", "high"]])
    words = f"best predictor without a network (linear interpolation in time): {text}"
    label, count = f"Masked R², random 75% hidden, {cohort}", int(part["n"].max())
    assert (count < 10) is few and (words in page.text) is not few
    assert (f"{label} ({count} participants)" in page.text) is few


@pytest.mark.parametrize(("metric", "model", "other", "says"), [
    ("r", (-0.2, 0.6), (-0.9, 0.95), False), ("r", (-0.2, 0.6), (0.1, 0.9), True),
    ("r2", (-0.3, -0.1), (0.0, 0.0), True), ("auc", (0.4, 0.9), (0.5, 0.8), False),
    ("auc", (0.2, 0.4), (0.45, 0.8), True), ("r", (None, None), (None, None), False),
    ("accuracy", (0.1, 0.9), (None, None), True),
])  # fmt: skip
def test_what_cannot_be_told_from_chance_is_no_headline(metric, model, other, says):
    from brainlm.report.study import Headline

    rows = pd.DataFrame([
        {"method": "model", "metric": metric, "value": 0.2, "low": model[0], "high": model[1]},
        {"method": "ridge", "metric": metric, "value": 0.3, "low": other[0], "high": other[1]},
        {"method": "third", "metric": metric, "value": 0.9, "low": 0.8, "high": 1.0},
    ])  # fmt: skip
    for n, enough in ((9, False), (10, True)):
        headline = Headline("age, r", rows.assign(n=n), "model", "best other", "ridge")
        assert headline.says_something is (says and enough)


def test_limitations_are_listed(study):
    *_, page = study
    for words in (
        "has only 8 participants",
        "is not shown to beat connectivity + ridge",
        "This study uses the demonstration atlas",
        "One model was pretrained (seed 1234)",
        "2 usable recordings are shorter than a window of the model (40 time points)",
    ):
        assert words in page.text


def test_only_what_was_fitted_once_is_said_to_have_one_seed(study):
    config, *_ = study
    facts = read_facts(config)
    assert (len(facts.tasks["age"].seeds), len(facts.tasks["scaling"].seeds)) == (5, 1)
    found = [line for line in list_cautions(facts) if "one seed only" in line]
    assert len(found) == 1 and found[0].startswith("scaling: one seed only")
    for name in ("age", "forecasting"):
        facts.tasks[name] = facts.tasks[name].model_copy(update={"seeds": (7,)})
    found = [line for line in list_cautions(facts) if "one seed only" in line]
    assert len(found) == 1 and found[0].startswith("age, forecasting and scaling: one seed only")
    facts.model, facts.results = {}, {}  # nothing was trained, so nothing differs
    assert not any("seed" in line for line in list_cautions(facts))


def test_every_table_and_figure_can_be_downloaded(study):
    config, out, _ = study
    files = {path.name for path in (out / "data").iterdir()}
    assert {"reconstruction.csv", "target-age.csv", "curve.csv", "statuses.csv"} <= files
    pages = [_Page(path.read_text(encoding="utf-8")) for path in out.glob("*.html")]
    links = [link for page in pages for link in page.links if link.startswith("data/")]
    assert {link.removeprefix("data/") for link in links} == files
    stored = pd.read_parquet(config.paths.table("reconstruction"))
    offered = pd.read_parquet(out / "data" / "reconstruction.parquet")
    tables = [table.astype(object).where(table.notna(), None) for table in (offered, stored)]
    pd.testing.assert_frame_equal(*tables)
    text = pd.read_csv(out / "data" / "reconstruction.csv")
    assert text.columns.tolist() == stored.columns.tolist() and len(text) == len(stored)
    np.testing.assert_allclose(text["value"], stored["value"], rtol=1e-6)


def test_accessibility_basics(study):
    *_, page = study
    tags = [tag for tag, _ in page.tags]
    assert dict(page.tags[0][1]).get("lang") == "en" or ("html", {"lang": "en"}) in page.tags
    assert tags.count("h1") == 1
    assert tags.count("main") == 1
    assert tags.count("table") == tags.count("caption")
    drawings = [attrs for _, attrs in page.tags if attrs.get("role") == "img"]
    assert drawings
    assert all(len(attrs["aria-label"]) > 20 for attrs in drawings)
    assert all(attrs.get("scope") == "col" for tag, attrs in page.tags if tag == "th")


def test_missing_pieces_are_said_and_never_faked(tmp_path):
    config = make_results(tmp_path, subjects=6, evaluated=False)
    build_report(config)
    page = _Page((config.results / "report" / "index.html").read_text(encoding="utf-8"))
    assert "No model has been trained yet." in page.text
    assert "Reconstruction was not evaluated yet." in page.text
    assert "age was not evaluated yet." in page.text
    assert "There is no pretraining journal" in page.text


def test_an_empty_results_folder_still_gives_a_page(tmp_path):
    config = make_results(tmp_path / "other", subjects=5, evaluated=False)
    config = config.model_copy(update={"results": tmp_path / "nothing"})
    build_report(config)
    assert "No recordings are indexed" in config.paths.report_page.read_text()


def test_an_evaluation_without_participants_gives_the_reason(tmp_path):
    config = make_results(tmp_path, subjects=6, evaluated=False)
    from brainlm.evaluation.rows import write_results

    row = {"task": "reconstruction", "cohort": "home", "split": "test", "method": "model",
           "level": "pooled", "n": 0, "left_out": 1,
           "note": "1 with fewer than 200 time points"}  # fmt: skip
    folder = config.results / "evaluation" / "r1"
    write_results([row], folder / "reconstruction.parquet", 1)
    write_results([row | {"split": None}], folder / "age.parquet", 1)
    build_report(config)
    text = (config.results / "report" / "index.html").read_text()
    assert (
        "No participant could be evaluated. home, test: 1 with fewer than 200 time points." in text
    )
    assert "age: no participant could be evaluated in home (every split)." in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (np.nan, "–"), (0.12345, "0.123"), (-3.0, "−3"), (12, "12"), (0.0, "0"),
     (1234.5678, "1235"), ("a", "a"), (0.00002, "0.0000"), (2.5e7, "2.5e+07")],
)  # fmt: skip
def test_numbers_are_shown_as_a_reader_wants_them(value, text):
    assert show(value) == text


def test_an_interval_decides_the_digits():
    assert show_interval(0.41234, 0.35, 0.47) == "0.41 [0.35, 0.47]"
    assert show_interval(-12.3456, -20.0, 3.0) == "−12 [−20, 3]"
    assert show_interval(0.5, None, None) == "0.500 (no interval)"
    assert show_interval(None, None, None) == "–"


def test_outliers_are_on_the_bad_side_only():
    values = pd.Series([*np.linspace(0.1, 0.2, 20), 2.0, -2.0, None])
    assert np.flatnonzero(find_outliers(values, "high")).tolist() == [20]
    assert np.flatnonzero(find_outliers(values, "low")).tolist() == [21]
    assert not find_outliers(pd.Series([1.0] * 9 + [5.0]), "high").any()  # no spread to measure by
    assert not find_outliers(pd.Series([None, None]), "high").any()


def test_the_cohort_page_has_every_recording_in_its_data(study):
    config, out, _ = study
    text = (out / "data" / "home-recordings.js").read_text(encoding="utf-8")
    data = json.loads(text[text.index("] = ") + 4 : -2])
    table = pd.read_csv(out / "data" / "home-recordings.csv")
    assert len(data["rows"]) == len(table) == 61
    shown = {row[0]: row for row in data["rows"]}
    stored = pd.read_parquet(config.paths.shard("home", "00000")).set_index("recording_id")
    table = table.set_index("recording_id").loc[stored.index]
    assert table["status"].tolist() == stored["status"].tolist()
    np.testing.assert_allclose(table["mean_fd_mm"], stored["mean_fd_mm"], rtol=1e-5)
    for name in stored.index[stored["status"] == "ok"][:5]:
        assert any(cell.startswith(show(stored["mean_fd_mm"][name])) for cell in shown[name])
    failed = stored.index[stored["status"] == "unreadable"][0]
    assert shown[failed][1] == "unreadable" and stored["reason"][failed] in shown[failed]


def test_a_recording_page_shows_registration_and_says_what_is_missing(study):
    _, out, _ = study
    folder = out.parent / "recordings" / "home"
    whole = (folder / "sub-home000_task-rest.html").read_text(encoding="utf-8")
    assert "outline of the template" in _Page(whole).text
    assert "1 of 6 components are removed" in whole
    bare = (folder / "sub-home001_task-rest.html").read_text(encoding="utf-8")
    assert NORMALISE.missing in bare
    failed = _Page((folder / "sub-home003_task-rest.html").read_text(encoding="utf-8"))
    assert HOSTILE in failed.text


def test_the_page_of_a_refused_registration_shows_the_fit(tmp_path, nlin6):
    config = make_results(tmp_path, subjects=6, evaluated=False)
    files = Derivatives(config.results / "derivatives/home", HOME[0], make_atlas(tmp_path))
    files.normalisation.rename(files.refused)
    make_pages(config)
    text = (config.results / "recordings/home" / f"{HOME[0]}.html").read_text(encoding="utf-8")
    assert NORMALISE.caption("refused") in text
    assert 'id="registration-over"' in text


def test_a_recording_page_names_what_the_model_cannot_use(study):
    _, out, _ = study
    folder = out.parent / "recordings" / "home"
    short, whole = (
        _Page((folder / f"{name}.html").read_text()).text for name in (HOME[5], HOME[1])
    )
    assert "39 time points, 40 needed" in short
    assert "shorter than a window" not in whole


def test_a_model_that_beats_only_a_bad_predictor_is_not_praised(study):
    config, *_ = study
    facts = read_facts(config)
    table = facts.results["reconstruction"].copy()
    pooled = (table["level"] == "pooled") & (table["metric"] == "r2")
    table.loc[pooled & (table["method"] == "model"), ["value", "low", "high"]] = 0.01, 0.0, 0.02
    worse = pooled & (table["method"] == "model minus zero")
    table.loc[worse, ["value", "low", "high"]] = -0.1, -0.2, -0.05
    facts.results["reconstruction"] = table
    text = " ".join(list_cautions(facts))
    assert "the model is worse than predicting zero" in text
    assert "the model explains almost nothing (R² 0.010 [0.000, 0.020])" in text


def test_series_in_other_units_than_the_model_learnt_are_said(study):
    config, *_ = study
    facts = read_facts(config)
    assert not any("are as delivered" in line for line in list_cautions(facts))
    facts.recordings.loc[facts.recordings["cohort"] == "away", "units"] = "as delivered"
    found = [line for line in list_cautions(facts) if "are as delivered" in line]
    assert len(found) == 1
    assert found[0].startswith("Series of away are as delivered, but the model was trained on")


def test_series_that_are_made_or_censored_otherwise_than_the_models_are_said(study):
    config, *_ = study
    facts = read_facts(config)

    def say(part):
        return [line for line in list_cautions(facts) if part in line]

    assert not say("otherwise") and not say("censored")
    own = describe_series(config, config.cohorts)
    facts.model["preprocess"] = own | {"censor": {"fd_mm": 0.2}}
    assert say("otherwise") == [
        f"Series of {name} are made otherwise than those that the model was trained on: "
        "preprocess.censor is none, of the model's training data {fd_mm: 0.2}."
        for name in ("home", "away")
    ]
    rows = facts.recordings.query("cohort == 'away' and status == 'ok'").index[:2]
    facts.recordings["censored"] = facts.recordings["censored"].astype(object)
    for row, points in zip(rows, ([3, 9], [1, 2, 5, 6]), strict=True):
        facts.recordings.at[row, "censored"] = np.array(points)
    share = 4 / facts.recordings.at[rows[1], "num_timepoints"]
    assert not say("trained on none")  # not known
    for most, expected in ((0.0, 1), (0.3, 0)):
        facts.model["ranges"] = {"censored_share": [0.0, 0.0, 0.0, 0.0, most]}
        assert len(say(f"2 recordings of away have censored time (up to {share:.0%})")) == expected


def test_warnings_are_counted_by_kind_in_the_study_and_on_its_cohorts_page(study):
    config, *_ = study
    facts = read_facts(config)
    assert not any("warnings" in line for line in list_cautions(facts))
    home = facts.recordings.index[facts.recordings["cohort"] == "home"][:3]
    words = "orientation: the qform is used", "ICA: not converged after 200 iterations"
    facts.recordings.loc[home, "warnings"] = words[0]
    facts.recordings.loc[home[0], "warnings"] = " | ".join(words)
    found = [line for line in list_cautions(facts) if "warnings" in line]
    assert found[0].startswith("3 recordings with warnings: orientation (3) and ICA (1)")
    table = facts.recordings[facts.recordings["cohort"] == "home"].set_index("recording_id")
    block = _count_statuses(table, "home")[-1]
    assert block.frame["recordings"].tolist() == [3, 1]
    assert block.frame["example"].tolist() == [table.index[0]] * 2


def test_what_forecasts_better_than_the_model_is_said(study):
    config, *_ = study
    facts = read_facts(config)
    rows = [("AR", -0.2, -0.3, -0.1), ("VAR", -0.1, -0.2, -0.05), ("LSTM", 0.01, -0.01, 0.03),
            ("zero", 0.1, 0.05, 0.2)]  # fmt: skip
    facts.tasks["forecasting"] = SimpleNamespace(kind="forecasting")
    facts.results["forecasting"] = pd.DataFrame(
        [(f"fine-tuned minus {name}", *values) for name, *values in rows],
        columns=["method", "value", "low", "high"],
    ).assign(metric="r2", level="pooled", cohort="home", split="test", target="", n=50)
    found = list_cautions(facts)
    assert "forecasting, home: the fine-tuned model is worse than AR and VAR." in found
    assert "forecasting, home: the fine-tuned model is not shown to beat LSTM." in found


def test_the_pages_of_a_chunk_are_drawn_once(tmp_path):
    config = make_results(tmp_path, subjects=5, evaluated=False)
    table = config.results / "index/away/chunks/00000.tsv"
    table.parent.mkdir()
    columns = (
        "recording_id participant_id session_id task run source t1w size mtime_ns retry chunk"
    )
    lines = ["\t".join(columns.split())]
    for number in range(5):
        subject = f"sub-away{number:03d}"
        cells = (
            f"{subject}_task-rest",
            subject,
            "n/a",
            "rest",
            "n/a",
            "x",
            "n/a",
            1,
            1,
            0,
            "00000",
        )
        lines.append("\t".join(map(str, cells)))
    table.write_text("\n".join(lines) + "\n")
    atlas, said = make_atlas(tmp_path), []
    context = Context(config, config.cohort("away"), atlas)
    for todo in (5, 0):
        rows = write_chunk_pages("00000", context, log=said.append)
        assert [row["status"] for row in rows] == ["ok"] * 5
        assert f"5 recordings, {todo} to do" in "\n".join(said)
    pages = sorted((config.results / "recordings/away").glob("*.html"))
    assert len(pages) == 5
    words = _Page(pages[0].read_text(encoding="utf-8")).text
    assert "as delivered" in words
    assert "away, external" in words and "away, train" not in words
    assert HOSTILE in _Page(pages[3].read_text(encoding="utf-8")).text
    assert not list(config.results.glob("recordings/away/data/*"))
