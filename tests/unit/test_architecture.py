"""One name means one thing, and no module imports itself through others."""

from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

import brainlm

PACKAGE = Path(brainlm.__file__).parent
#: A section of the configuration and what it names; a page's parts and what they show.
PAIRS = {"Atlas", "Section", "Table"}


def test_no_two_classes_share_a_name():
    modules = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "fsl":  # it does what our own steps do, with FSL's programs
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                modules[node.name].append(str(path.relative_to(PACKAGE)))
    shared = {name: where for name, where in modules.items() if len(where) > 1}
    assert set(shared) == PAIRS, shared


def test_no_module_imports_itself_through_others():
    graph = grimp.build_graph("brainlm", cache_dir=None)
    imports = {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}
    assert "brainlm.cli" in list(TopologicalSorter(imports).static_order())  # CycleError if not
