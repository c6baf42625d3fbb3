"""The methods paragraph of one recording, from the sidecars of what was written for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import __version__
from ..atlas import Atlas
from ..config import Preprocess
from ..files import read_json
from ..preprocess.io.derivatives import Derivatives, sidecar

REFERENCES = {
    "friston": "Friston et al. 1996, Magnetic Resonance in Medicine 35:346",
    "behzadi": "Behzadi et al. 2007, NeuroImage 37:90",
    "power": "Power et al. 2012, NeuroImage 59:2142",
    "nichols": "Nichols 2013, Notes on creating a standardized version of DVARS",
    "ashburner": "Ashburner & Friston 1999, Human Brain Mapping 7:254",
    "golub": "Golub & Pereyra 1973, SIAM Journal on Numerical Analysis 10:413",
    "fonov": "Fonov et al. 2011, NeuroImage 54:313",
    "mcflirt": "Jenkinson et al. 2002, NeuroImage 17:825",
    "fnirt": "Andersson et al. 2007, FMRIB technical report TR07JA2",
    "melodic": "Beckmann & Smith 2004, IEEE Transactions on Medical Imaging 23:137",
    "fastica": "Hyvärinen 1999, IEEE Transactions on Neural Networks 10:626",
    "aroma": "Pruim et al. 2015, NeuroImage 112:267",
    "fix": "Salimi-Khorshidi et al. 2014, NeuroImage 90:449",
    "lindquist": "Lindquist et al. 2019, Human Brain Mapping 40:2358",
}


def describe_methods(
    files: Derivatives, settings: Preprocess, atlas: Atlas
) -> tuple[str, list[str]]:
    """What was done to this recording, and the works that it cites.

    Engines, versions and counts come from the sidecars; where a sidecar is missing, its step is
    not described, because it was not done.
    """
    steps = (_motion, _normalisation, _denoising, _parcellation)
    found = [step(files, settings, atlas) for step in steps]
    text = " ".join(words for words, _ in found if words)
    cited = list(dict.fromkeys(name for _, names in found for name in names))
    if not text:
        return "", []
    return f"{text} Pipeline: brainlm-pipeline {__version__}.", [REFERENCES[n] for n in cited]


def _read(path: Path) -> dict[str, Any]:
    beside = sidecar(path)
    return read_json(beside) if beside.exists() else {}


def _motion(files: Derivatives, settings: Preprocess, atlas: Atlas) -> tuple[str, list[str]]:
    made = _read(files.boldref)
    if not made:
        return "", []
    dropped = made["NumberOfVolumesDiscardedByPipeline"]
    lead = f"{dropped} non-steady volumes at the start were discarded. " if dropped else ""
    if made["SliceTimingCorrected"]:
        lead += "Slice times were corrected by cubic interpolation. "
    fsl = made["Engine"].startswith("FSL")
    how = "MCFLIRT" if fsl else "linearised least squares"
    return (
        f"{lead}Head motion was estimated as one rigid transform per volume "
        f"({made['Engine']}, {how}{' (Jenkinson et al. 2002)' if fsl else ''}); framewise "
        "displacement follows Power et al. 2012, DVARS is standardised after Nichols 2013. "
        "Susceptibility distortion was left as it is."
    ), [*(["mcflirt"] if fsl else []), "power", "nichols"]


def _normalisation(
    files: Derivatives, settings: Preprocess, atlas: Atlas
) -> tuple[str, list[str]]:
    made = _read(files.normalisation)
    if not made:
        return "", []
    through = "through the T1-weighted image" if made["Method"] == "t1w" else "directly"
    space = made["Template"]
    if made["TemplateImage"] != space:
        space += f" (image: {made['TemplateImage']})"
    if made["Engine"].startswith("FSL"):
        how = "FLIRT and FNIRT (Jenkinson et al. 2002; Andersson et al. 2007)"
        names = ["mcflirt", "fnirt"]
    else:
        how = (
            "an affine and a low-frequency cosine bend fitted to a mixture of tissue maps "
            "(Ashburner & Friston 1999; Golub & Pereyra 1973)"
        )
        names = ["ashburner", "golub"]
    return (
        f"The mean image was normalised {through} to {space} (Fonov et al. 2011) by {how} "
        f"({made['Engine']}). {made.get('TemplateNote', '')}".rstrip()
    ), [*names, "fonov"]


def _denoising(files: Derivatives, settings: Preprocess, atlas: Atlas) -> tuple[str, list[str]]:
    if not files.filtered.exists():
        return "", []
    regressed = [step for step in settings.denoise_steps if step in _CONFOUNDS]
    words = " and ".join(_CONFOUNDS[step][0] for step in regressed)
    names = [name for step in regressed for name in _CONFOUNDS[step][1]]
    if not settings.uses_ica:
        return (
            f"{words} were regressed out." if words else "No artefacts were regressed out."
        ), names
    made = _read(files.metrics)
    fsl = settings.engine == "fsl"
    ica = "MELODIC (Beckmann & Smith 2004)" if fsl else "symmetric FastICA (Hyvärinen 1999)"
    end = "" if made.get("Converged", True) else ", which did not converge"
    way = "aggressively" if "ica-aggressive" in settings.denoise_steps else "non-aggressively"
    weights = made.get("Parameters", {}).get("fix_weights")
    where = "at 4 mm after 6 mm smoothing"
    judge = "the four features and published thresholds of ICA-AROMA (Pruim et al. 2015)"
    if weights:
        where = "in the run's own space"
        judge = (
            f"FIX (Salimi-Khorshidi et al. 2014) with the weights {Path(weights).name} at "
            f"threshold {made['Parameters']['fix_threshold']}"
        )
    return (
        f"Artefacts were found by spatial ICA {where} ({ica}, "
        f"{made.get('Iterations', 'unknown')} iterations{end}), judged by {judge}, and regressed "
        f"out {way}{', together with ' + words if words else ''}."
    ), ["melodic" if fsl else "fastica", "fix" if weights else "aroma", *names]


#: What the confound steps are called, and the works to cite.
_CONFOUNDS: dict[str, tuple[str, list[str]]] = {
    "motion6": ("6 motion parameters", []),
    "motion24": ("24 motion parameters (Friston et al. 1996)", ["friston"]),
    "wm-csf": ("mean signals of deep white matter and ventricles", []),
    "acompcor": ("ten aCompCor components (Behzadi et al. 2007)", ["behzadi"]),
    "global": ("the global signal", []),
}


def _parcellation(files: Derivatives, settings: Preprocess, atlas: Atlas) -> tuple[str, list[str]]:
    if not files.filtered.exists():
        return "", []
    low = f", low-pass {settings.low_pass_hz:g} Hz" if settings.low_pass_hz else ""
    return (
        f"Parcel means of atlas {atlas.name} ({atlas.num_parcels} parcels; {atlas.source}) were "
        "sampled once from the raw volumes; filter (cosine basis, high-pass "
        f"{settings.high_pass_hz:g} Hz{low}) and regression were one projection (Lindquist et "
        "al. 2019). Series are percent of the temporal mean, resampled to "
        f"{settings.sample_period_s:g} s; parcels with less than {settings.min_coverage:.0%} in "
        "the field of view are missing."
    ), ["lindquist"]
