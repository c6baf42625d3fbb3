"""What pages say about attention maps."""

from __future__ import annotations

from ...page_text import TaskText

TEXT = TaskText(
    title="Attention",
    captions={
        "map": "Attention of the CLS token to each parcel in {cohort}: {groups}.",
        "contrast": "{differ} of {total} parcels differ (permutation of the largest |t|, "
        "corrected p < 0.05); they are the large dots of the difference.",
        "means": "Means over participants.",
        "no coordinates": "The atlas has no coordinates, so parcels are shown in its order.",
        "table": "Contrasts of attention, value [95 % interval].",
    },
)
