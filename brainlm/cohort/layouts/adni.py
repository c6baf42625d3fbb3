"""ADNI, as ``clinica convert adni-to-bids`` writes it: raw BIDS.

LONI hands out DICOM or single images; Clinica makes one BIDS tree of them, in which the
participant ``002_S_0295`` is ``sub-ADNI002S0295`` and the visit at 48 months is ``ses-M048``. A
table joins by its column PTID, one row per participant: ADNIMERGE has one per visit, so keep one
of them (the baseline, ``VISCODE == "bl"``).

    sub-ADNI002S0295/
      ses-M048/
        anat/sub-ADNI002S0295_ses-M048_T1w.nii.gz
        func/sub-ADNI002S0295_ses-M048_task-rest_bold.nii.gz (and .json)
"""

from __future__ import annotations

from . import bids
from .base import Layout, plain_label


def label(identifier: str) -> str:
    """``002_S_0295`` -> ``ADNI002S0295``."""
    plain = plain_label(identifier)
    return plain if plain.startswith("ADNI") else f"ADNI{plain}"


ADNI = Layout(
    "adni",
    "motion",
    "sub-ADNI*/ses-M*/func/sub-ADNI*_ses-M*_task-rest_bold.nii.gz",
    bids.find,
    label=label,
)
