import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainlm.cohort.labels import (
    _MISSING,
    as_word,
    describe_match,
    read_column,
    read_labels,
    read_participants,
    read_target,
)
from brainlm.config import Cohort
from brainlm.errors import BrainLMError


def cohort(folder, text: str, name: str = "c") -> Cohort:
    folder.mkdir(exist_ok=True)
    (folder / "participants.tsv").write_text(text, encoding="utf-8")
    return Cohort(name=name, folder=folder)


def test_na_is_missing_and_prefixes_are_added(tmp_path):
    c = cohort(tmp_path / "a", "participant_id\tage\nsub-1\t30\n2\tn/a\n")
    target = read_target([c], "age")
    assert target[("c", "sub-1")] == 30
    assert np.isnan(target[("c", "sub-2")])


def test_a_cohort_without_the_column_contributes_nothing(tmp_path):
    a = cohort(tmp_path / "a", "participant_id\tage\nsub-1\t30\n", "a")
    b = cohort(tmp_path / "b", "participant_id\tsex\nsub-1\tF\n", "b")
    empty = Cohort(name="e", folder=tmp_path)
    assert list(read_target([a, b, empty], "age").index) == [("a", "sub-1")]
    with pytest.raises(BrainLMError, match=r"no participants table.*'iq'.*a: age; b: sex"):
        read_target([a, b], "iq")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id\tage\n1\t2\n", "expected a column participant_id .or eid.*found: id, age"),
        ("participant_id\tage\nsub-1\told\n", "'old', expected a number"),
        ("participant_id\tage\nsub-1\t1\nsub-1\t2\n", "appears in 2 rows"),
        ("", "expected a column participant_id .* found: nothing"),
        ("participant_id\tage\n1\t2\n2\t3\t4\n", "Row #3: Expected 2 columns, got 3"),
        ("participant_id\tage\n1\t2\t3\n", "not a readable table"),
    ],
)
def test_bad_tables_are_named(tmp_path, text, words):
    with pytest.raises(BrainLMError, match=words) as error:
        read_target([cohort(tmp_path / "a", text)], "age")
    assert "participants.tsv" in str(error.value)


def test_what_other_programs_write_is_read_as_it_was_meant(tmp_path):
    text = "participant_id\tdx\tcode\tage\nsub-1 \tNone\t1234567\tNA\nsub-2\tMDD\t1234568\t31\n"
    c = cohort(tmp_path / "a", text)
    assert read_column(c, "dx").tolist() == ["None", "MDD"]
    assert read_column(c, "code").tolist() == ["1234567", "1234568"]
    age = read_target([c], "age")
    assert np.isnan(age["c", "sub-1"]) and age["c", "sub-2"] == 31
    assert read_labels([c], "dx", "classification").classes == ("MDD", "None")


@pytest.mark.parametrize(
    ("value", "word"),
    [(1234567.0, "1234567"), (np.int64(3), "3"), (0.5, "0.5"), (" F ", "F"), (np.inf, "inf")],
)
def test_a_value_is_a_word_with_all_its_digits(value, word):
    assert as_word(value) == word


@pytest.mark.parametrize(("name", "sep"), [("t.CSV", ","), ("t.txt", ","), ("t.txt", "\t")])
def test_the_first_line_says_what_separates(tmp_path, name, sep):
    (tmp_path / name).write_text(f"eid{sep}age\n1000223.0{sep}61.5\n")
    c = Cohort(name="c", folder=tmp_path, layout="ukb", participants=tmp_path / name)
    assert read_target([c], "age")["c", "sub-1000223"] == 61.5
    assert read_column(c, "age").tolist() == ["61.5"]


def test_a_named_table_must_exist(tmp_path):
    with pytest.raises(BrainLMError, match="participants table not found"):
        read_participants(Cohort(name="c", folder=tmp_path, participants="none.tsv"))


@pytest.mark.parametrize(
    ("layout", "column", "written", "label"),
    [
        ("ukb", "eid", "1000223", "sub-1000223"),
        ("hcp", "Subject", "100307", "sub-100307"),
        ("bids", "participant_id", "07", "sub-07"),
        ("parcels", "participant_id", "A424_example", "sub-A424example"),
        ("embarc", "src_subject_id", "NDAR_INV01", "sub-NDARINV01"),
        ("adni", "PTID", "002_S_0295", "sub-ADNI002S0295"),
    ],
)
def test_any_table_joins_by_its_own_column_of_ids(tmp_path, layout, column, written, label):
    table = tmp_path / "phenotypes.csv"
    table.write_text(f'"Notes, free",age,{column}\n"a, b",61,{written}\n')
    c = Cohort(name="c", folder=tmp_path, layout=layout, participants=table)
    assert read_target([c], "age")[("c", label)] == 61
    assert list(read_participants(c, ["age"]).columns) == ["age"]


def test_participants_without_recordings_and_the_reverse_are_counted(tmp_path):
    c = cohort(tmp_path / "a", "participant_id\tage\nsub-1\t3\nsub-2\t4\nsub-3\t5\n")
    found = describe_match(c, {"sub-1", "sub-9"})
    assert found.startswith("1 of 2 participants with recordings are in")
    assert found.endswith("(not: sub-9); 2 of its 3 rows have no recording")
    with pytest.raises(BrainLMError, match=r"no row matches a participant.*rows: sub-1.*sub-8"):
        describe_match(c, {"sub-8"})
    assert describe_match(Cohort(name="c", folder=tmp_path), {"sub-1"}) is None


def test_a_row_without_an_id_is_named(tmp_path):
    c = cohort(tmp_path / "a", "participant_id\tage\nsub-1\t3\nn/a\t4\n")
    with pytest.raises(BrainLMError, match="row 3 has no participant_id"):
        read_participants(c)


CELL = st.text(st.characters(exclude_characters="\t\n\r", codec="utf-8"), max_size=8) | (
    st.sampled_from(['"', '"left handed', 'a "b"', "'", "7", "-1.5", "1e3", "0x1A", "1_0", "inf",
                     "1,5", "True", "n/a", "NAN", "²", "٣"]))  # fmt: skip


@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=6),
    st.booleans(), st.sampled_from(["\n", "\r\n"]),
)  # fmt: skip
def test_no_label_moves_to_another_participant(tmp_path, rows, bom, end):
    """Every value is that of Python's own split at the tabs, whatever stands in other cells."""
    lines = ["note\tparticipant_id\tdx\tlast"]
    lines += [f"{note}\tsub-{k}\t{dx}\t{last}" for k, (note, dx, last) in enumerate(rows)]
    text = end.join([*lines, ""])
    (tmp_path / "participants.tsv").write_bytes(b"\xef\xbb\xbf" * bom + text.encode())
    found = read_column(Cohort(name="c", folder=tmp_path), "dx")
    assert list(found.index.get_level_values(1)) == [f"sub-{k}" for k in range(len(rows))]
    for line, value in zip(lines[1:], found, strict=True):
        written = line.split("\t")[2].strip()
        if isinstance(value, str) and value != written:  # numbers lose ".0" and the like
            assert float(value) == float(written)
        elif not isinstance(value, str):
            assert written in _MISSING


@pytest.mark.parametrize(
    "word", ["23 years", "1,5", "twenty", "inf", "0x1A", "1_0", "True", "NAN", "-", "²"]
)
def test_a_word_is_never_taken_for_a_number(tmp_path, word):
    c = cohort(tmp_path / "a", f"participant_id\tage\nsub-1\t30\nsub-2\t{word}\n")
    with pytest.raises(BrainLMError, match=r"age of sub-2 is .*expected a number or n/a"):
        read_target([c], "age")


def test_a_quotation_mark_is_a_character(tmp_path):
    ages = {f"sub-{k}": 10.0 * k for k in range(1, 6)}
    notes = ['"left handed', "ok", 'a "word"', '"ok', '"']
    rows = [
        f"{who}\t{note}\t{age:g}" for (who, age), note in zip(ages.items(), notes, strict=True)
    ]
    text = "\n".join(["participant_id\tnote\tage", *rows])
    assert read_target([cohort(tmp_path / "a", text)], "age")["c"].to_dict() == ages
    quoted = cohort(tmp_path / "b", '"participant_id"\t"age"\n"sub-1"\t"3"\n')
    with pytest.raises(BrainLMError, match="without quotation marks"):
        read_target([quoted], "age")


@pytest.mark.parametrize("column", ["participant_id", "age", "sex"])
def test_a_column_that_stands_twice_is_one_line_of_error(tmp_path, column):
    header = ["participant_id", "age", "sex", column]
    c = cohort(tmp_path / "a", "\t".join(header) + "\nsub-1\t3\tF\tx\n")
    with pytest.raises(BrainLMError, match=f"named more than once: {column}") as error:
        read_target([c], "age")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "participant_id\tage\t\t\nsub-1\t3\t\t\n",  # a spreadsheet with four columns once
        ",participant_id,age\n0,sub-1,3\n",  # pandas with its index
        " participant_id \t age\nsub-1\t3\n",
        "\ufeffparticipant_id\tage\r\nsub-1\t3\r\n",
    ],
)
def test_headers_that_spreadsheets_and_pandas_write(tmp_path, text):
    c = cohort(tmp_path / "a", text)
    assert read_target([c], "age").to_dict() == {("c", "sub-1"): 3}


def test_lines_that_end_in_cr_are_one_line_of_error(tmp_path):
    c = cohort(tmp_path / "a", "participant_id\tage\rsub-1\t3\r")
    with pytest.raises(BrainLMError, match=r"participants\.tsv: line 1 holds a carriage return"):
        read_target([c], "age")


def test_encodings_and_links(tmp_path):
    text = "participant_id\tage\tname\r\nsub-1\t3\tMüller\r\n"
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "participants.tsv").write_bytes(text.encode(encoding))
        assert read_target([Cohort(name="c", folder=tmp_path)], "age")["c", "sub-1"] == 3
    (tmp_path / "participants.tsv").write_bytes(text.encode("latin-1"))
    with pytest.raises(BrainLMError, match="save the table as UTF-8"):
        read_column(Cohort(name="c", folder=tmp_path), "name")
    (tmp_path / "participants.tsv").unlink()
    (tmp_path / "participants.tsv").symlink_to("nowhere")
    with pytest.raises(BrainLMError, match=r"participants\.tsv: .*get its content"):
        read_target([Cohort(name="c", folder=tmp_path)], "age")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["F", "f", "M"], "F (1), f (1)"),
        (["Female", "F", "Male", "M"], "F (1), Female (1); M (1), Male (1)"),
        (["F", "female ", "m"], "F (1), female (1)"),
        (["MDD", "mdd", "HC"], "MDD (1), mdd (1)"),
        (["yes", "Y", "no"], "Y (1), yes (1)"),
        (["bipolar-1", "bipolar 1", "HC"], "bipolar 1 (1), bipolar-1 (1)"),
        (["1", "1.0", "unknown"], "1 (1), 1.0 (1)"),
    ],
)
def test_a_class_in_several_spellings_is_refused_with_the_mapping(tmp_path, words, found):
    rows = "".join(f"sub-{k}\t{word}\n" for k, word in enumerate(words))
    c = cohort(tmp_path / "a", "participant_id\tdx\n" + rows)
    with pytest.raises(BrainLMError) as error:
        read_labels([c], "dx", "classification")
    assert found in str(error.value) and "spellings: {" in str(error.value)
    mapping = yaml.safe_load(str(error.value).split("spellings: ")[-1].split(" (or")[0])
    labels = read_labels([c], "dx", "classification", spellings=mapping)
    assert len(labels.classes) == len({w.strip() for w in words}) - len(mapping)


def test_classes_that_a_task_names_may_look_alike(tmp_path):
    c = cohort(tmp_path / "a", "participant_id\tdx\nsub-1\tM\nsub-2\tmale\nsub-3\tHC\n")
    own = {"M": "M", "male": "male"}
    assert read_labels([c], "dx", "classification", spellings=own).classes == ("HC", "M", "male")


# ---- external cohorts that say it otherwise


TRAINED = {"age": [20, 35, 50, 80], "sex": ["F", "M", "F", "M"], "code": [0, 1, 0, 1]}


def _cohorts(tmp_path, **away) -> list[Cohort]:
    """A reference cohort and an external one with other columns, of as many participants."""
    cohorts = []
    for name, columns, role in (("home", TRAINED, "reference"), ("away", away, "external")):
        folder = tmp_path / name
        folder.mkdir()
        names = [f"sub-{name}{k}" for k in range(4)]
        table = pd.DataFrame({"participant_id": names} | columns)
        table.to_csv(folder / "participants.tsv", sep="\t", index=False, na_rep="n/a")
        cohorts.append(Cohort(name=name, folder=folder, role=role))
    return cohorts


@pytest.mark.parametrize(
    ("target", "values", "words"),
    [
        ("age", None, "its participants table has no column 'age'"),
        ("age", [252, 420, 600, 950], "months for years"),
        ("age", [9000, 12000, 18000, 25000], "days for years"),
        ("age", [30, 40, -9999, 50], "-9999 for 1 participants (sub-away2 in away"),
        ("age", [30, 40, -999.0, -999.0], "-999 for 2 participants"),
        ("age", [30, 40, "old", 50], "expected a number"),
        ("sex", [1, 2, 1, 2], "sex is 1, 2, where the model learnt F, M"),
        ("sex", ["male", "female", "male", "female"], "use the same words"),
        ("code", [1, 2, 1, 2], "code is 1, 2, where the model learnt 0, 1"),
    ],
)
def test_an_external_cohort_that_is_coded_otherwise_is_left_out_alone(
    tmp_path, target, values, words
):
    cohorts = _cohorts(tmp_path, **({} if values is None else {target: values}))
    kind = "regression" if target == "age" else "classification"
    labels = read_labels(cohorts, target, kind)
    assert words in labels.refused["away"]
    assert set(labels.values.dropna().index.get_level_values(0)) == {"home"}
    alone = read_labels(cohorts[:1], target, kind)
    pd.testing.assert_series_equal(labels.values, alone.values)
    assert labels.classes == alone.classes


@pytest.mark.parametrize(
    ("target", "values", "known"),
    [
        ("age", [60, 70, 85, 99], 4),  # 99 may well be somebody's age
        ("age", [81, 85, 90, None], 3),  # older, and in years
        ("sex", ["M", "F", None, "other"], 3),  # a class that nobody was trained on
        ("code", [1, 1, 1, 1], 4),
    ],
)
def test_an_external_cohort_may_differ_from_the_training(tmp_path, target, values, known):
    kind = "regression" if target == "age" else "classification"
    labels = read_labels(_cohorts(tmp_path, **{target: values}), target, kind)
    assert labels.refused == {}
    assert labels.values["away"].notna().sum() == known


def test_a_code_for_missing_among_training_values_is_refused(tmp_path):
    cohorts = _cohorts(tmp_path)
    path = tmp_path / "home/participants.tsv"
    path.write_text(path.read_text().replace("\t35\t", "\t-9999\t"))
    with pytest.raises(BrainLMError, match=r"age is -9999 .*others have 20 to 80.*n/a"):
        read_labels(cohorts, "age", "regression")
