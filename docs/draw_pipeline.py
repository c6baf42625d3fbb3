"""Draw the picture in architecture.md from the rules: python docs/draw_pipeline.py"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKS = re.compile(r"(<!-- pipeline:.*?-->\n```mermaid\n).*?(```\n<!-- /pipeline -->)", re.S)
CONFIG = """
cohorts: [{name: study, folder: bids}]
tasks: [reconstruction, age]
atlas: {name: demo424}
"""


def draw() -> str:
    """Mermaid text of the rule graph of a study with one raw cohort."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder)
        for name in ("workflow", "rules", "envs"):
            (clone / name).symlink_to(ROOT / name)
        (clone / "config.yaml").write_text(CONFIG)
        func = clone / "bids/sub-01/func"
        func.mkdir(parents=True)
        (func / "sub-01_bold.nii.gz").touch()
        (clone / "bids/participants.tsv").write_text("participant_id\tage\n")
        graph = subprocess.run(
            [sys.executable, "-m", "snakemake", "--rulegraph", "mermaid-js"],
            cwd=clone, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    names = dict(re.findall(r"(id\d+)\[(\w+)\]", graph))
    edges = re.findall(r"(id\d+) --> (id\d+)", graph)
    lines = sorted(f"  {names[a]} --> {names[b]}" for a, b in edges if names[b] != "all")
    return "\n".join(["flowchart LR", "  BIDS([raw BIDS]) --> motion", *lines, ""])


def main() -> None:
    page = ROOT / "docs" / "architecture.md"
    text, count = MARKS.subn(lambda m: m[1] + draw() + m[2], page.read_text(encoding="utf-8"))
    if count != 1:
        raise SystemExit(f"{page}: the marks of the picture are missing")
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
