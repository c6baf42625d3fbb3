"""What pages say about denoising."""

from __future__ import annotations

from ...atlas import Atlas
from ...page_text import PageText, Sentence
from ..io.derivatives import Derivatives, read_own_sidecar

FRISTON = "Friston et al. 1996, Magnetic Resonance in Medicine 35:346"
BEHZADI = "Behzadi et al. 2007, NeuroImage 37:90"
BECKMANN = "Beckmann & Smith 2004, IEEE Transactions on Medical Imaging 23:137"
HYVARINEN = "Hyvärinen 1999, IEEE Transactions on Neural Networks 10:626"
PRUIM = "Pruim et al. 2015, NeuroImage 112:267"

TEXT = PageText(
    title="Components",
    command="brainlm denoise",
    missing="There is no ICA for this recording.",
    captions={
        "carpets": "Carpet plots: one line per parcel in atlas order, grey from −2 to 2 standard "
        "deviations, each parcel scaled by its own. Stripes across all parcels below FD peaks are "
        "motion.",
        "censored": "Blank columns are censored time, which counts nowhere.",
        "denoised": "The lower carpet shows what denoising left of them.",
        "rule": "{removed} of {total} components are removed. The dashed line is the rule's limit "
        "for motion at the edge of the brain; components in CSF or of high frequency are removed "
        "wherever they lie.",
        "stopped": "The ICA stopped after {iterations} iterations without converging: the "
        "components of the last iteration were used as they are. Look at the maps and at the "
        "lower carpet before relying on this recording.",
        "table": "Every component: its map seen from the side, the front and above (red positive, "
        "blue negative), its power spectrum from 0 to the Nyquist frequency, the verdict, the "
        "rule that decided it, and the features that the rules use.",
    },
)

#: What the confound steps are called, and the works to cite.
CONFOUNDS: dict[str, Sentence] = {
    "motion6": Sentence("6 motion parameters"),
    "motion24": Sentence("24 motion parameters (Friston et al. 1996)", (FRISTON,)),
    "wm-csf": Sentence("mean signals of deep white matter and ventricles"),
    "acompcor": Sentence("ten aCompCor components (Behzadi et al. 2007)", (BEHZADI,)),
    "global": Sentence("the global signal"),
}


def describe_denoising(files: Derivatives, atlas: Atlas) -> Sentence:
    """The methods sentence, from the sidecars of the filtered series and of the components."""
    if not (written := read_own_sidecar(files.filtered)):
        return Sentence()
    steps = written["Parameters"]["denoise"]
    regressed = [CONFOUNDS[step] for step in steps if step in CONFOUNDS]
    words = " and ".join(confound.text for confound in regressed)
    cites = tuple(work for confound in regressed for work in confound.cites)
    made = read_own_sidecar(files.metrics)
    if not made:
        if not words:
            return Sentence("No confounds were regressed out.")
        return Sentence(f"{words[0].upper()}{words[1:]} were regressed out.", cites)
    settings = made.get("Parameters", {})
    fsl = settings.get("engine") == "fsl"
    ica = "MELODIC (Beckmann & Smith 2004)" if fsl else "symmetric FastICA (Hyvärinen 1999)"
    end = "" if made.get("Converged", True) else ", which did not converge"
    way = "aggressively" if "ica-aggressive" in steps else "non-aggressively"
    text = (
        f"Artefacts were identified by spatial ICA at 4 mm after smoothing to 6 mm ({ica}, "
        f"{made.get('Iterations', 'unknown')} iterations{end}), classified by the four features "
        "and published thresholds of ICA-AROMA (Pruim et al. 2015), and "
        f"regressed out {way}{', and ' + words + ' wholly' if words else ''}, in one model."
    )
    return Sentence(text, (BECKMANN if fsl else HYVARINEN, PRUIM, *cites))
