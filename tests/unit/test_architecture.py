"""One name means one thing, and no module imports itself through others."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

import brainlm

PACKAGE = Path(brainlm.__file__).parent
#: A section of the configuration and what it names; a page's parts and what they show.
PAIRS = {"Atlas", "Section", "Table"}


#: Functions that several modules have on purpose, since they answer the same question.
PROTOCOLS = {
    *("find", "companions"),  # of a layout
    "prepare",  # of a stage
    *("estimate_motion", "normalise", "fit_ica"),  # of an engine
    *("main", "build_parser"),  # of a program
}


def defined(kind: type) -> dict[str, list[str]]:
    """Public names of the package's modules -> the modules that define them."""
    modules = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, kind) and not node.name.startswith("_"):
                modules[node.name].append(str(path.relative_to(PACKAGE)))
    return {name: where for name, where in modules.items() if len(where) > 1}


def test_no_two_classes_share_a_name():
    assert set(defined(ast.ClassDef)) == PAIRS, defined(ast.ClassDef)


def test_no_two_functions_share_a_name():
    assert set(defined(ast.FunctionDef)) == PROTOCOLS, defined(ast.FunctionDef)


def test_no_two_modules_or_folders_share_a_name():
    paths = [p for p in PACKAGE.rglob("*") if p.suffix == ".py" or (p / "__init__.py").exists()]
    names = Counter(path.stem for path in paths if not path.stem.startswith("__"))
    assert len(names) > 100 and names.most_common(1)[0][1] == 1, names.most_common(5)


def test_no_module_imports_itself_through_others():
    graph = grimp.build_graph("brainlm", cache_dir=None)
    imports = {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}
    assert "brainlm.cli" in list(TopologicalSorter(imports).static_order())  # CycleError if not
