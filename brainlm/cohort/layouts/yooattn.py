"""YooAttn (general measure of attention, Yoo et al. 2022, Nature Human Behaviour 6:782).

The study's images are not public, so the tree is the one that fMRIPrep makes of them: sustained
attention (gradCPT), multiple object tracking (MOT), visual short-term memory (VSTM), rest and
movies, each a task.

    sub-001/
      func/sub-001_task-gradCPT_run-1_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz
      func/sub-001_task-gradCPT_run-1_desc-confounds_timeseries.tsv
      func/sub-001_task-MOT_run-1_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz
      ...
"""

from __future__ import annotations

from dataclasses import replace

from .fmriprep import FMRIPREP

YOOATTN = replace(FMRIPREP, name="yooattn")
