"""What a job prints goes into its log, whoever reads it."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from brainlm.cli import build_parser, main

RULES = Path(__file__).resolve().parents[2] / "rules"


def test_the_log_is_appended_to_and_has_errors(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "logs" / "fit.log"
    for _ in range(2):
        assert main(["finetune", "--task", "age", "--log-file", str(log)]) == 1
    said = capsys.readouterr().err
    assert said == log.read_text() and said.count("brainlm finetune: ") == 2


@pytest.mark.parametrize("with_log", [False, True])
def test_a_reader_that_is_gone_stops_nothing(tmp_path, with_log):
    log = tmp_path / "a.log"
    script = f"""
import sys
from pathlib import Path
from brainlm.output import logged, tell
sys.stdin.readline()
with logged(Path({str(log)!r}) if {with_log} else None):
    for number in range(3):
        tell(f"line {{number}}")
    {'print("in passing", file=sys.stderr)' if with_log else ""}
sys.exit(75)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": str(RULES.parent)})  # fmt: skip
    process.stdout.close()
    if with_log:
        process.stderr.close()
    process.stdin.write(b"go\n")
    process.stdin.close()
    assert process.wait(60) == 75
    if with_log:
        assert log.read_text() == "line 0\nline 1\nline 2\nin passing\n"


@pytest.mark.parametrize("name", ["pretrain", "sweep", "finetune"])
def test_nothing_stands_between_a_job_that_saves_and_its_signals(name):
    """A shell or a `tee` would end at a SIGTERM to all, and its end would be the job's."""
    text = "".join(path.read_text() for path in RULES.glob("*.smk"))
    (shell,) = re.findall(rf"^rule {name}:.*?shell:\n(.*?)(?=^\S|\Z)", text, re.M | re.S)
    assert re.match(r'\s*f?"exec ', shell) and "|" not in shell and "--log-file" in shell


def test_torchrun_takes_no_option_of_a_training_for_its_own():
    """It accepts abbreviations of its options anywhere: `--log` of ours was one of `--log-dir`."""
    from torch.distributed.run import get_args_parser

    verbs = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    options = [o for o in verbs.choices["pretrain"]._option_string_actions if o.startswith("--")]
    words = ["-m", "brainlm", "pretrain", *(w for o in options for w in (o, "x"))]
    assert get_args_parser().parse_args(words).training_script_args == words[2:]
