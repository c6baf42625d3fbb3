"""EMBARC (antidepressant response; NIMH Data Archive collection 2199) as raw BIDS.

The archive hands out one image at a time; the expected tree is what BIDS makes of them, with the
site's letters in the label (CU, MG, TX, UM), the baseline visit as ses-1 and week one as ses-2.
A table joins by its column src_subject_id, one row per participant. The archive's files have a
second header line of descriptions, and a row per visit: take both out first.

    sub-CU0009/
      ses-1/
        anat/sub-CU0009_ses-1_T1w.nii.gz
        func/sub-CU0009_ses-1_task-rest_run-1_bold.nii.gz (and .json)
      ses-2/...
"""

from __future__ import annotations

from . import bids
from .base import Layout

EMBARC = Layout(
    "embarc", "motion", "sub-*/ses-*/func/sub-*_ses-*_task-*_[run-*_]bold.nii.gz", bids.find
)
