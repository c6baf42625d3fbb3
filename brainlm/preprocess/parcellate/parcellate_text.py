"""What pages say about parcellation and filtering."""

from __future__ import annotations

from ...atlas import Atlas
from ...page_text import PageText, Sentence
from ..io.derivatives import Derivatives, read_own_sidecar

POWER = "Power et al. 2014, NeuroImage 84:320"
LINDQUIST = "Lindquist et al. 2019, Human Brain Mapping 40:2358"

TEXT = PageText(
    title="Parcels",
    command="brainlm parcellate",
    missing="There is no parcel series.",
    captions={
        "coverage": "Share of each parcel of {atlas} inside the field of view; {whole} of {total} "
        "lie wholly inside.",
        "connectivity": "Correlation between parcels ({series}) and its distribution over pairs "
        "of parcels; {missing} of {total} parcels have no data (blank).",
    },
)


def describe_parcellation(files: Derivatives, atlas: Atlas) -> Sentence:
    """The methods sentence, from the sidecar of the filtered series."""
    if not (written := read_own_sidecar(files.filtered)):
        return Sentence()
    made = written["Parameters"]
    low = f", low-pass {made['low_pass_hz']:g} Hz" if made["low_pass_hz"] else ""
    text = (
        f"Parcel means of the atlas {atlas.name} ({atlas.num_parcels} parcels; {atlas.source}) "
        "were sampled once, from the raw volumes; temporal filter (cosine basis, high-pass "
        f"{made['high_pass_hz']:g} Hz{low}) and regression were one projection (Lindquist et al. "
        "2019). Series are in percent of the temporal mean and resampled to one value every "
        f"{made['sample_period_s']:g} s; parcels with less than {made['min_coverage']:.0%} inside "
        "the field of view are missing."
    )
    if censor := made.get("censor"):
        text += (
            f" Volumes with a framewise displacement above {censor['fd_mm']:g} mm were censored: "
            "filter and regression were fitted to the others (Power et al. 2014), and values "
            "within half a sample of them are missing."
        )
    return Sentence(text, (LINDQUIST, *([POWER] if censor else [])))
