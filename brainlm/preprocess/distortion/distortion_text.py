"""What pages say about susceptibility distortion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...page_text import PageText, Sentence

ANDERSSON_2003 = "Andersson et al. 2003, NeuroImage 20:870"
RUTHOTTO = "Ruthotto et al. 2012, Physics in Medicine and Biology 57:5715"
JEZZARD = "Jezzard & Balaban 1995, Magnetic Resonance in Medicine 34:65"

_FIELD = {
    "pepolar": "estimated from images of opposite phase encoding (Andersson et al. 2003; Ruthotto "
    "et al. 2012)",
    "phasediff": "measured by the phase difference of two echoes (Jezzard & Balaban 1995)",
    "phases": "measured by the phases of two echoes (Jezzard & Balaban 1995)",
    "fieldmap": "taken from a measured field map (Jezzard & Balaban 1995)",
}

TEXT = PageText(
    title="Distortion",
    command="brainlm normalise",
    captions={
        "distortion": "The reference image in {space} without and with the correction of "
        "susceptibility distortion; the slider fades the corrected image over the image as it was "
        "acquired. The brain is displaced by {mean} mm on average and by up to {peak} mm.",
        "agreement": "Correlation with the image that the field was measured with: {before} "
        "before, {after} after the correction.",
        "template": "Correlation of the affine fit with the template: {before} before, {after} "
        "after the correction.",
    },
)


def describe_distortion(made: Mapping[str, Any] | None) -> Sentence:
    """The methods sentence, from what the normalisation's sidecar says about it."""
    if not made:
        return Sentence("Susceptibility distortion was not corrected.")
    sizes = made["Figures"]
    mean, peak = sizes["distortion_mean_mm"], sizes["distortion_peak_mm"]
    text = (
        "Susceptibility distortion was corrected first, in the mean image and with its intensity "
        f"modulation: the field was {_FIELD[made['Method']]} and displaces the brain by "
        f"{mean:.1f} mm on average and by up to {peak:.1f} mm; it is part of the one "
        "interpolation."
    )
    cites = (ANDERSSON_2003, RUTHOTTO) if made["Method"] == "pepolar" else (JEZZARD,)
    return Sentence(text, cites)
