"""A row of the exclusion table that excludes nobody is reported with the nearest id."""

import pytest

from brainlm.cohort.exclusions import describe_strangers, read_exclusions
from brainlm.cohort.index import update_index
from brainlm.config import Cohort
from brainlm.errors import BrainLMError
from brainlm.paths import Results


@pytest.fixture
def study(tmp_path):
    for k in range(1, 13):
        path = tmp_path / f"data/sub-{k:02d}/func/sub-{k:02d}_task-rest_run-1_bold.nii.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    cohort = Cohort(name="c", folder=tmp_path / "data", exclude=tmp_path / "exclude.tsv")
    return cohort, Results(tmp_path / "results").index("c")


def describe(study, *rows: str, end="\n"):
    cohort, index = study
    cohort.exclude.write_text(end.join(["recording_id\treason", *rows, ""]))
    update_index(cohort, index.parents[2], 100)
    return describe_strangers(cohort, index)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("sub-01", "sub-01_task-rest_run-1"),
        ("sub-02_task-rest_run-1_bold", "sub-02_task-rest_run-1"),
        ("sub-03_task-rest_run-1 ", "sub-03_task-rest_run-1"),
        ("sub-04_task-rest_run-01", "sub-04_task-rest_run-1"),
        ("sub-5_task-rest_run-1", "sub-05_task-rest_run-1"),
        ("12", "sub-12_task-rest_run-1"),
    ],
)
def test_a_row_that_names_no_recording_is_reported_with_the_nearest_id(study, name, nearest):
    line = describe(study, "sub-07_task-rest_run-1\tmoved", f"{name}\tmoved")
    assert line.startswith("1 of 2 rows of") and f"{name!r} (nearest: {nearest})" in line


def test_rows_that_name_recordings_are_no_news(study):
    rows = ["sub-01_task-rest_run-1\tmoved", "sub-02_task-rest_run-1\t"]
    assert describe(study, *rows) is None and describe(study, *rows, end="\r\n") is None
    assert read_exclusions(study[0]) == dict(row.split("\t") for row in rows)
    assert "5 of 5 rows" in describe(study, *(f"x{k}\t" for k in range(5)))
    with pytest.raises(BrainLMError, match="line 2 has 1 cells"):
        describe(study, "sub-01_task-rest_run-1")
