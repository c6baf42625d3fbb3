import numpy as np
import pytest

from brainlm.cohort.labels import read_participants, read_target
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
        ("id\tage\n1\t2\n", "expected a column participant_id, found: id, age"),
        ("participant_id\tage\nsub-1\told\n", "'old', expected a number"),
        ("participant_id\tage\nsub-1\t1\nsub-1\t2\n", "stands in 2 rows"),
        ("", "not a readable table"),
    ],
)
def test_bad_tables_are_named(tmp_path, text, words):
    with pytest.raises(BrainLMError, match=words) as error:
        read_target([cohort(tmp_path / "a", text)], "age")
    assert "participants.tsv" in str(error.value)


def test_a_named_table_must_exist(tmp_path):
    with pytest.raises(BrainLMError, match="participants table not found"):
        read_participants(Cohort(name="c", folder=tmp_path, participants="none.tsv"))
