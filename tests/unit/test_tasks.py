"""Tasks are declared: what a task's file may say, and what is answered to a wrong one."""

import pytest

from brainlm.errors import BrainLMError
from brainlm.evaluation.job import EVALUATORS
from brainlm.evaluation.tasks import KINDS, REGISTRY, find_task, load_task, load_tasks, parse_task
from brainlm.steps import load


def test_every_built_in_file_is_valid_and_every_kind_has_one():
    tasks = load_tasks(sorted(path.stem for path in REGISTRY.glob("*.yaml")))
    assert {task.kind for task in tasks.values()} == set(KINDS)
    assert tasks["gad7"].transform == tasks["pcl5"].transform == "log_minmax"
    assert tasks["neuroticism"].transform == "minmax"
    assert len(tasks["age"].seeds) == 5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "regresion", "target": "age"}, "did you mean 'regression'"),
        ({"target": "age"}, "kind is None; one of: reconstruction"),
        ({"kind": "regression"}, "target: Field required"),
        ({"kind": "regression", "target": "age", "group": "site"}, "did you mean 'groups'"),
        ({"kind": "regression", "target": "age", "metric": "auc"}, "metric: Input should be"),
        ({"kind": "regression", "target": "age", "seeds": []}, "seeds: .* at least 1"),
        ({"kind": "forecasting", "ahead": 0}, "ahead: .* \\(found 0\\)"),
    ],
)
def test_wrong_declarations_are_answered_in_words(values, words):
    with pytest.raises(BrainLMError, match=words) as error:
        parse_task(values, "mine", "mine.yaml")
    assert str(error.value).startswith("mine.yaml: ")


def test_a_users_file_enters_by_its_path_and_shadows_a_built_in_name(tmp_path):
    path = tmp_path / "age.yaml"
    path.write_text("{kind: regression, target: age_at_scan, seeds: [7]}")
    assert find_task([str(path)], "age").target == "age_at_scan"
    assert find_task([], "age").target == "age"
    with pytest.raises(BrainLMError, match="two are named 'age'"):
        load_tasks(["age", str(path)])
    with pytest.raises(BrainLMError, match=r"no task 'agee' in .*; did you mean 'age'"):
        load_task("agee")
    with pytest.raises(BrainLMError, match=r"none.yaml: .* not found"):
        load_task(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_has_an_evaluator(kind):
    assert callable(load(f"brainlm.evaluation.{EVALUATORS[kind]}"))
