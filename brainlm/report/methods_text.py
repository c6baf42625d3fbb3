"""The methods paragraph of one recording, from the sidecars of what was written for it."""

from __future__ import annotations

from .. import __version__
from ..atlas import Atlas
from ..preprocess.denoise.denoise_text import describe_denoising
from ..preprocess.io.derivatives import Derivatives
from ..preprocess.motion.motion_text import describe_motion
from ..preprocess.normalise.normalise_text import describe_normalisation
from ..preprocess.parcellate.parcellate_text import describe_parcellation

STEPS = (describe_motion, describe_normalisation, describe_denoising, describe_parcellation)


def describe_methods(files: Derivatives, atlas: Atlas) -> tuple[str, list[str]]:
    """What was done to this recording, and the works that it cites.

    Each step describes itself from its sidecars; a step without a sidecar was not done.
    """
    found = [sentence for step in STEPS if (sentence := step(files, atlas)).text]
    if not found:
        return "", []
    text = " ".join(sentence.text for sentence in found)
    cited = dict.fromkeys(work for sentence in found for work in sentence.cites)
    return f"{text} Pipeline: brainlm-pipeline {__version__}.", list(cited)
