"""What pages say about normalisation."""

from __future__ import annotations

from collections.abc import Mapping

from ...atlas import Atlas
from ...page_text import PageText, Sentence
from ..distortion.distortion_text import describe_distortion
from ..io.derivatives import Derivatives, read_own_sidecar
from ..motion.motion_text import JENKINSON

ASHBURNER = "Ashburner & Friston 1999, Human Brain Mapping 7:254"
GOLUB = "Golub & Pereyra 1973, SIAM Journal on Numerical Analysis 10:413"
FONOV = "Fonov et al. 2011, NeuroImage 54:313"
GREVE = "Greve & Fischl 2009, NeuroImage 48:63"
ANDERSSON = "Andersson et al. 2007, FMRIB technical report TR07JA2"

TEXT = PageText(
    title="Registration",
    command="brainlm normalise",
    missing="There is no registration to show.",
    captions={
        "registration": "The reference image resampled to {space} through the fitted transform; "
        "the slider fades it into the template. Lines show the outline of the template's brain "
        "and of its white matter: they should follow the edges in the image.",
        "ways": "Two ways were tried: {ways}.",
        "refused": "This fit did not pass the checks, and nothing was made with it.",
    },
)


def describe_ways(quality: Mapping[str, float]) -> str:
    """Both ways' figures, where there was a T1w image; "" where there was none."""
    if "boundary_t1w" not in quality:
        return ""
    border, tissue = (
        "{:.3f} directly and {:.3f} through the T1w".format(
            *(quality[f"{figure}_{way}"] for way in ("direct", "t1w"))
        )
        for figure in ("boundary", "correlation")
    )
    return (
        f"contrast at the border of white matter {border}, correlation with tissue maps {tissue}"
    )


def describe_normalisation(files: Derivatives, atlas: Atlas) -> Sentence:
    """The methods sentence, from the transform's sidecar."""
    made = read_own_sidecar(files.normalisation)
    if not made:
        return Sentence()
    through = "through the T1-weighted image" if made["Method"] == "t1w" else "directly"
    space = made["Template"]
    if (image := made.get("TemplateImage", space)) != space:  # of an earlier version
        space += f" (image: {image})"
    if made["Engine"].startswith("FSL"):
        bent = made["Method"] == "t1w"
        how = "FLIRT and FNIRT" if bent else "FLIRT with 12 parameters"
        how += f" (Jenkinson et al. 2002{'; Andersson et al. 2007' if bent else ''})"
        cites: tuple[str, ...] = (JENKINSON, ANDERSSON) if bent else (JENKINSON,)
    else:
        how = (
            "an affine transform and a smooth deformation (low-frequency cosines) fitted to a "
            "mixture of tissue maps (Ashburner & Friston 1999; Golub & Pereyra 1973)"
        )
        cites = (ASHBURNER, GOLUB)
        if made["Method"] == "t1w":
            how += ", the T1w brought to the mean image by the border of white matter"
            how += " (Greve & Fischl 2009)"
            cites = (*cites, GREVE)
    distortion = describe_distortion(made.get("Distortion"))
    text = (
        f"The mean image was normalised {through} to {space} (Fonov et al. 2011) by {how} "
        f"({made['Engine']}). {made.get('TemplateNote', '')}"
    )
    return Sentence(f"{text.rstrip()} {distortion.text}", (*cites, FONOV, *distortion.cites))
