"""What pages say about reconstruction."""

from __future__ import annotations

from ..page_text import TaskText
from ..training.predictors import EXPLAINED, PREDICTORS

TEXT = TaskText(
    title="Reconstruction",
    metric="r2",
    model="model",
    subject="the model is",
    where="{name}, {target} hidden, {cohort}",
    names=PREDICTORS,
    negligible=0.05,
    captions={
        "dots": "R² on hidden points of participants the model has not seen, pooled over all "
        "hidden values and not clipped: 1 is perfect, 0 is as good as the mean, below 0 is worse. "
        "Lines are 95 % bootstrap intervals over participants. " + EXPLAINED,
        "table": "Reconstruction, value [95 % interval].",
        "levels": "R² of single recordings and of single parcels: how far they spread.",
        "traces": "Examples: one parcel of each of {count}, {hidden} hidden (grey). The parcel is "
        "the one of median spread, not the best one.",
    },
)
