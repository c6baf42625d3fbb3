"""The README says what is true of the code."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))


def test_the_picture_is_drawn_from_the_rules():
    from draw_pipeline import draw

    assert draw() in (ROOT / "README.md").read_text(), "run: python docs/draw_pipeline.py"


def test_files_and_verbs_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (ROOT / path).exists(), path
    from brainlm.cli import build_parser

    verbs = next(iter(build_parser()._subparsers._group_actions)).choices
    for verb in re.findall(r"`brainlm (\w+)", text):
        assert verb in verbs, verb
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"\bmake ([a-z]+)\b", text):
        assert target in targets, target
