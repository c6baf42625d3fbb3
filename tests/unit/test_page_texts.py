"""Words about steps and tasks: next to their code, filled in, and true to the sidecars."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import string
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import brainlm
from brainlm.config import Preprocess
from brainlm.evaluation.tasks import KINDS
from brainlm.files import write_json
from brainlm.page_text import PageText
from brainlm.preprocess.io.derivatives import Derivatives, sidecar
from brainlm.preprocess.motion import motion_text
from brainlm.preprocess.stages.products import write_filtered
from brainlm.report import findings, methods_text
from brainlm.report.findings import TEXTS

sys.path.append(str(Path(__file__).resolve().parents[1] / "browser"))
from study import make_atlas

ROOMS = [
    module.name
    for module in pkgutil.walk_packages(brainlm.__path__, "brainlm.")
    if module.name.endswith("_text")
    and not module.name.startswith(("brainlm.report", "brainlm.page"))
]


def _texts(room: str) -> dict[str, PageText]:
    module = importlib.import_module(room)
    return {name: text for name, text in vars(module).items() if isinstance(text, PageText)}


def test_every_kind_of_task_has_words_and_a_way_to_be_shown():
    assert set(TEXTS) == set(KINDS) == set(findings._DESCRIBE)


@pytest.mark.parametrize("room", ROOMS)
def test_pages_use_every_caption_with_the_facts_it_asks_for(room):
    """A caption that no page shows, or one that a page cannot fill in, fails here."""
    folder = Path(findings.__file__).parent
    calls: dict[str, set[frozenset[str]]] = {}
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            alias.asname or alias.name: alias.name
            for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
            and f"brainlm.{node.module}" == room for alias in node.names
        }  # fmt: skip
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                and node.func.attr == "caption" and getattr(node.func.value, "id", "") in names
            ):  # fmt: skip
                text = getattr(importlib.import_module(room), names[node.func.value.id])
                wanted = node.args[0]
                assert isinstance(wanted, ast.Constant)
                facts = frozenset(k.arg for k in node.keywords)
                caption = text.captions[wanted.value]
                asked = {n for _, n, *_ in string.Formatter().parse(caption) if n}
                assert asked == facts, (wanted.value, asked, facts)
                calls.setdefault(wanted.value, set()).add(facts)
    assert set(calls) == {key for text in _texts(room).values() for key in text.captions}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_that_pages_read_import_nothing_heavy(room):
    tree = ast.parse(Path(importlib.import_module(room).__file__).read_text(encoding="utf-8"))
    found = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else
                     [alias.name for alias in node.names])
    }  # fmt: skip
    allowed = (
        r"__future__|pathlib|page_text|atlas|io\.derivatives|motion\.motion_text|typing"
        r"|collections\.abc|distortion\.distortion_text"
        r"|(training\.)?predictors"
    )
    assert all(re.fullmatch(allowed, name) for name in found), found


@pytest.fixture
def files(tmp_path):
    """Sidecars of a recording that was denoised by ICA with the builtin engine."""
    made = Derivatives(tmp_path, "sub-01_task-rest", make_atlas(tmp_path))
    made.filtered.parent.mkdir(parents=True, exist_ok=True)
    fit = {"Engine": "brainlm-pipeline", "SliceTimingCorrected": False, "Method": "direct",
           "NumberOfVolumesDiscardedByPipeline": 1, "Template": "A",
           "Iterations": 31, "Converged": True, "Parameters": {"engine": "builtin"}}  # fmt: skip
    for path in (made.boldref, made.normalisation, made.metrics):
        write_json(sidecar(path), fit)
    return made


def _write(files, **settings) -> str:
    import numpy as np

    config = Preprocess(**settings)
    write_filtered(
        files.filtered,
        np.zeros((2, 3)),
        config,
        config.model_dump(exclude={"denoise"}, mode="json"),
    )
    return methods_text.describe_methods(files, make_atlas(files.filtered.parent))[0]


def test_methods_are_those_of_the_sidecars_and_not_of_the_configuration(files):
    text = _write(files, high_pass_hz=0.02, low_pass_hz=0.15, sample_period_s=1.5)
    assert "high-pass 0.02 Hz, low-pass 0.15 Hz" in text
    assert "one value every 1.5 s" in text
    assert "1 non-steady-state volume at the start of the run was discarded." in text
    assert "normalised directly to A (Fonov" in text
    assert "31 iterations)" in text and "non-aggressively" in text


def test_an_ica_that_did_not_converge_is_named(files):
    made = {"Iterations": 200, "Converged": False, "Parameters": {"engine": "fsl"}}
    write_json(sidecar(files.metrics), made)
    assert "MELODIC (Beckmann & Smith 2004), 200 iterations, which did not converge" in _write(
        files
    )


@pytest.mark.parametrize("denoise", ["none", "motion24", "motion24+wm-csf", "acompcor+global"])
def test_confounds_are_those_that_were_regressed(files, denoise):
    sidecar(files.metrics).unlink()
    from brainlm.preprocess.denoise.denoise_text import CONFOUNDS

    steps = denoise.split("+")
    text = _write(files, denoise=denoise if denoise == "none" else steps)
    for name, confound in CONFOUNDS.items():
        assert (confound.text.lower() in text.lower()) == (name in steps)
    assert ("No confounds were regressed out." in text) == (denoise == "none")


def test_a_sentence_changed_in_its_room_changes_the_paragraph(files, monkeypatch):
    plain = motion_text.describe_motion

    def describe(files, atlas):
        return replace(
            plain(files, atlas), text="Heads were held still.", cites=("Somebody 2031",)
        )

    monkeypatch.setattr(motion_text, "describe_motion", describe)
    text, cited = methods_text.describe_methods(files, make_atlas(files.filtered.parent))
    assert text.startswith("Heads were held still. The mean image")
    assert cited[0] == "Somebody 2031"
