"""The methods paragraph of one recording, from the sidecars of what was written for it."""

from __future__ import annotations

from .. import __version__
from ..atlas import Atlas
from ..preprocess.io.derivatives import Derivatives
from ..steps import STEPS, load


def describe_methods(files: Derivatives, atlas: Atlas) -> tuple[str, list[str]]:
    """What was done to this recording, and the works that it cites.

    Each step describes itself from its sidecars; a step without a sidecar was not done.
    """
    describes = dict.fromkeys(step.sentence for step in STEPS.values() if step.sentence)
    found = [made for name in describes if (made := load(name)(files, atlas)).text]
    if not found:
        return "", []
    text = " ".join(sentence.text for sentence in found)
    cited = dict.fromkeys(work for sentence in found for work in sentence.cites)
    return f"{text} Pipeline: brainlm-pipeline {__version__}.", list(cited)
