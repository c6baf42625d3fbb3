"""What pages say about motion correction."""

from __future__ import annotations

from ...atlas import Atlas
from ...page_text import PageText, Sentence
from ..io.derivatives import Derivatives, read_own_sidecar

POWER = "Power et al. 2012, NeuroImage 59:2142"
NICHOLS = "Nichols 2013, Notes on creating a standardized version of DVARS"
POSSE = "Posse et al. 1999, Magnetic Resonance in Medicine 42:87"
JENKINSON = "Jenkinson et al. 2002, NeuroImage 17:825"

TEXT = PageText(
    title="Motion and signal in time",
    command="brainlm motion, brainlm denoise, brainlm parcellate",
    missing="There are neither motion estimates nor a series to show.",
    captions={
        "traces": "From the top: translation and rotation of the head; framewise displacement "
        "(FD); DVARS and global signal before denoising.",
    },
)
IMAGE = PageText(
    title="Brain mask and tSNR",
    command="brainlm motion",
    missing="There is no image: the recording came as parcel series, or could not be read.",
    captions={
        "mask": "The reference image of motion correction in scanner space, with the outline of "
        "the brain mask.",
        "tsnr": "Below, the temporal signal-to-noise ratio (mean / SD) of the same slices on a "
        "coarse grid of voxels, after motion correction and detrending and before denoising.",
    },
)


def describe_motion(files: Derivatives, atlas: Atlas) -> Sentence:
    """The methods sentence, from the reference image's sidecar."""
    made = read_own_sidecar(files.boldref)
    if not made:
        return Sentence()
    dropped = made["NumberOfVolumesDiscardedByPipeline"]
    parts = []
    if dropped:
        parts.append(
            f"{dropped} non-steady-state {'volume' if dropped == 1 else 'volumes'} at the start "
            f"of the run {'was' if dropped == 1 else 'were'} discarded."
        )
    if times := made.get("EchoTimes"):
        echoes = ", ".join(f"{1000 * time:.3g}" for time in times)
        parts.append(
            f"The {len(times)} echoes (TE {echoes} ms) were combined with weights "
            "TE exp(−TE / T2*) (Posse et al. 1999), T2* fitted to each voxel's means over time."
        )
    if made["SliceTimingCorrected"]:
        parts.append("Slice timing was corrected by cubic interpolation.")
    fsl = made["Engine"].startswith("FSL")
    how = "MCFLIRT (Jenkinson et al. 2002)" if fsl else "linearised least squares"
    parts.append(
        f"Head motion was estimated as one rigid transform per volume ({made['Engine']}, {how}); "
        "framewise displacement follows Power et al. 2012, and DVARS is standardised after "
        "Nichols 2013."
    )
    sources = ((POSSE,) if times else ()) + ((JENKINSON,) if fsl else ())
    return Sentence(" ".join(parts), (*sources, POWER, NICHOLS))
