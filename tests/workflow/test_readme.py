"""The README says what is true of the code."""

import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))


def test_the_picture_is_drawn_from_the_rules():
    from draw_pipeline import draw

    assert draw() in (ROOT / "docs/architecture.md").read_text(), (
        "run: python docs/draw_pipeline.py"
    )


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a page: letters, marks, decimal digits, - and _."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.*)$", text, re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = "".join(
            "-" if c == " " else c
            for c in words
            if c in " -"
            or unicodedata.category(c)[0] in "LM"
            or unicodedata.category(c) in ("Nd", "Pc")
        )
        again = sum(
            re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found
        )
        found.append(f"{slug}-{again}" if again else slug)
    return set(found)


def test_anchors_are_named_by_the_rule_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# 10⁶ `recordings`, all_of them\n```bash\n# no heading\n```\n## A [b](c.md)\n## A b\n"
    )
    assert anchors(page) == {"10-recordings-all_of-them", "a-b", "a-b-1"}


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("atlases/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for path, anchor in re.findall(r"\]\((?!http)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_verbs_and_targets_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text()
    from brainlm.cli import build_parser

    verbs = next(iter(build_parser()._subparsers._group_actions)).choices
    for verb in re.findall(r"`brainlm (\w+)", text):
        assert verb in verbs, verb
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"\bmake ([a-z]+)\b", text):
        assert target in targets, target


def test_the_first_tutorial_begins_as_it_says(tmp_path, monkeypatch):
    """The end-to-end test runs it on a study that is through: without its own configuration, and
    without the simulation, which is only called here."""
    from brainlm.cli import build_parser
    from brainlm.evaluation.tasks import load_tasks

    def simulate(command: list[str], **_) -> None:
        called = build_parser().parse_args(command[3:])
        Path(called.folder).mkdir(parents=True)
        (Path(called.folder) / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\n")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", simulate)
    shutil.copy(ROOT / "config.yaml", tmp_path)
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow")
    names: dict = {}
    code = (ROOT / "docs/tutorials/01_from_bids_to_report.py").read_text()
    exec(code[: code.index("# ## 3. ")], names)
    config = names["config"]
    assert (str(config.results), config.model.preset) == ("results/tutorial", "tiny")
    assert set(load_tasks(config.tasks)) == {"reconstruction", "age"}
    assert (tmp_path / "data/tutorial/participants.tsv").exists()
