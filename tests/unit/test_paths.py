"""Where the results are: said once, in brainlm.paths; the layout of a finished study stays."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from brainlm.paths import ModelFolder, Results

LAYOUT = """
first_atlas.json
    config.json
    .running
    summary.tsv
    failures.tsv
    index/COHORT/recordings.tsv
    index/COHORT/.updating
    index/COHORT/looked.json
    index/COHORT/refused.json
    index/COHORT/companions.json
    index/COHORT/retried
    index/COHORT/chunks/CHUNK.tsv
    derivatives/COHORT
    work/COHORT/CHUNK/STAGE.tsv
    work/COHORT/outcomes/STAGE/RECORDING.json
    work/COHORT/series
    work/COHORT/series/RECORDING.npz
    shards/COHORT/CHUNK.parquet
    shards/COHORT/CHUNK.quantiles.parquet
    shards/COHORT/sealed.tsv
    shards/COHORT/finished.tsv
    releases/r1
    releases/r1/shards.tsv
    releases/r1/labels.json
    releases/r1/places.parquet releases/r1/scaling.json
    models/r1/pretrain
    models/r1/sweep/PRESET-SHARE-SEED
    models/r1/START-TASK/seed-SEED
    embeddings/r1/COHORT.parquet predictions/r1/COHORT.parquet
    evaluation/r1/TASK.parquet
    evaluation/r1/TASK.WHAT.parquet
    recordings
    recordings/COHORT/RECORDING.html
    report
    report/index.html
    report/figures
    report/COHORT.html
    logs/NAME.log
    logs/STAGE/COHORT/CHUNK.log
    logs/STAGE/COHORT/CHUNK.jsonl
    logs/STAGE/r1-PARTS.log
    logs/STAGE/r1-PARTS.jsonl
    benchmarks/STAGE/COHORT/CHUNK.tsv
    benchmarks/STAGE/r1-PARTS.tsv
"""


def every_path(owner, fill) -> dict[str, Path]:
    """Name of a property or method -> its path; every argument is `fill` of its name."""
    found = {}
    for name, member in inspect.getmembers(type(owner)):
        if name.startswith(("_", "list_")):
            continue
        if isinstance(member, property):
            found[name] = getattr(owner, name)
        elif inspect.isfunction(member):
            asked = [p for p in inspect.signature(member).parameters.values() if p.name != "self"]
            given = [fill(p.name) for p in asked if p.default is p.empty]
            found[name] = getattr(owner, name)(*given)
    return found


def test_the_layout_of_a_finished_study():
    made = every_path(Results(Path("results"), "r1"), str.upper)
    assert sorted(str(path.relative_to("results")) for path in made.values()) == sorted(
        LAYOUT.split()
    )


@pytest.mark.parametrize("owner", [Results(Path("a b/results"), "r 1"), ModelFolder(Path("m"))])
def test_a_pattern_filled_in_is_the_path(owner):
    names = every_path(owner, lambda name: f"<{name}>")
    patterns = every_path(owner, lambda name: f"{{{name}}}")
    assert len(set(names.values())) == len(names)  # no two things in one place
    for name, path in names.items():
        assert str(patterns[name]).replace("{", "<").replace("}", ">") == str(path)


def test_what_is_there_is_listed_without_files_that_are_being_written(tmp_path):
    paths = Results(tmp_path, "r1")
    for path in (
        paths.shard("c", "00000"), paths.quantiles("c", "00000"),
        paths.chunk_table("c", "00000"), paths.stage_table("c", "00000", "motion"),
        paths.table("age"), paths.side_table("age", "predictions"),
        paths.recording_page("c", "sub-01"),
    ):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        path.with_name(f".{path.name}.0123abcd.tmp{path.suffix}").write_text("")
    assert paths.list_chunks("c") == ["00000"]
    assert paths.list_shards("c") == [paths.shard("c", "00000")]
    assert paths.list_stage_tables("c") == [paths.stage_table("c", "00000", "motion")]
    assert set(paths.list_tables()) == {("age", "predictions"), ("age", "")}
    assert list(paths.list_recording_pages("c")) == ["sub-01"]
    assert paths.list_chunks("none") == [] and not paths.list_recording_pages("none")


def test_models_of_no_release_are_refused():
    for name in ("pretrained", "scaling"):
        with pytest.raises(ValueError, match="without a release"):
            getattr(Results(Path("results")), name)


def test_no_other_module_joins_these_names():
    names = {part for line in LAYOUT.split() for part in line.split("/") if part.islower()} - {
        "r1"
    }
    root, found = Path(inspect.getfile(Results)).parent, []
    for path in sorted(root.rglob("*.py")):
        if path.name in ("paths.py", "hub.py"):  # hub.py: folders of other programs
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            joined = [node.right] if isinstance(node, ast.BinOp) and _is_division(node) else []
            words = [c.value for j in joined for c in ast.walk(j) if isinstance(c, ast.Constant)]
            found += [(path.name, w) for w in words if names & set(str(w).split("/"))]
    assert not found
    for path in [*root.parent.glob("rules/*.smk"), root.parent / "workflow/Snakefile"]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'"[^"\n]*\b(logs|shards|models|evaluation|index)/', text), path


def _is_division(node: ast.BinOp) -> bool:
    return isinstance(node.op, ast.Div)
