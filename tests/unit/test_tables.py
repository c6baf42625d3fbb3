"""The one reader and writer of tab-separated tables."""

import csv
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainlm.errors import BrainLMError
from brainlm.tables import format_tsv, read_tsv, write_tsv

CELL = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r"), max_size=12) | (
    st.sampled_from(['"', '""', '"a', 'a "quoted" word', "'", "#", "\\t", "\x0b", "\x1c", "\u2028",
                     "\x85", "NA", "None", "007", "1234567", " ", "é"]))  # fmt: skip


@st.composite
def tables(draw):
    width = draw(st.integers(2, 5))
    row = st.lists(CELL, min_size=width, max_size=width)
    header = draw(st.lists(CELL.filter(bool), min_size=width, max_size=width, unique=True))
    return header, draw(st.lists(row, max_size=6))


FILE = settings(max_examples=150, deadline=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip


@FILE
@given(tables(), st.booleans(), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_no_cell_moves(tmp_path, table, bom, end, last):
    header, rows = table
    header = ["\ufeff".join(header[0].split("\ufeff")) or "a", *header[1:]]
    if header[0].startswith("\ufeff"):
        return  # is a byte order mark
    lines = ["\t".join(row).encode() for row in (header, *rows)]
    path = tmp_path / "t.tsv"
    path.write_bytes(b"\xef\xbb\xbf" * bom + end.join(lines) + end * last)
    found = read_tsv(path)
    assert list(found.columns) == lines[0].decode().split("\t")
    assert found.rows == [line.decode().split("\t") for line in lines[1:]]
    assert found.frame().to_numpy().tolist() == found.rows


@FILE
@given(tables())
def test_what_was_written_is_read_back(tmp_path, table):
    header, rows = table
    if header[0].startswith("\ufeff"):
        return
    write_tsv(tmp_path / "t.tsv", header, rows)
    found = read_tsv(tmp_path / "t.tsv")
    assert (list(found.columns), found.rows) == (header, rows)


def test_normal_content_has_the_bytes_that_it_always_had():
    header = ["recording_id", "status", "seconds", "n"]
    rows = [["sub-01_task-rest", "ok", 1.25, 3], ["sub-02", "too_short: 3 s", 1e-9, ""]]
    out = io.StringIO()
    csv.writer(out, delimiter="\t", lineterminator="\n").writerows([header, *rows])
    assert format_tsv(header, rows) == out.getvalue()
    assert format_tsv(["a", "b"], [[None, "x"]]) == "a\tb\nn/a\tx\n"


@pytest.mark.parametrize("cell", ["a\tb", "a\nb", "a\rb"])
def test_a_cell_that_would_break_a_row_is_refused(cell):
    with pytest.raises(BrainLMError, match=r"t\.tsv: .*tab or a line break"):
        format_tsv(["a", "b"], [["x", cell]], "t.tsv")
    with pytest.raises(ValueError, match="3 cells for 2"):
        format_tsv(["a", "b"], [["x", "y", "z"]])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\r\n", "empty"),
        (b"a\tb\n1\t2\t3\n", "line 2 has 3 cells, expected 2"),
        (b"a\tb\n\n1\n", "line 3 has 1 cells, expected 2"),
        (b"a\tb\ta\n", "named more than once: a"),
        (b"a\tb\t\t\n1\t2\t\t\n", "column 3 of 4 has no name"),
        (b"a\tb\r1\t2\r", "line 1 holds a carriage return"),
        (
            "a\tb\nMüller\t1\n".encode("latin-1"),
            "line 2 .* 0xfc.*save the table as UTF-8",
        ),
        (b"a\tc\n", "expected a column 'b', found: a, c"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path, content, words):
    path = tmp_path / "t.tsv"
    path.write_bytes(content)
    with pytest.raises(BrainLMError, match=words) as error:
        read_tsv(path, "b")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_the_index_that_pandas_writes_is_a_column_without_a_name(tmp_path):
    (tmp_path / "t.tsv").write_text("\tonset\n0\t1.5\n")
    assert read_tsv(tmp_path / "t.tsv", "onset").records() == [{"": "0", "onset": "1.5"}]


def test_a_table_that_is_not_there_says_what_to_do(tmp_path):
    with pytest.raises(BrainLMError, match=r"no\.tsv: not found; run: brainlm index"):
        read_tsv(tmp_path / "no.tsv", hint="run: brainlm index")
