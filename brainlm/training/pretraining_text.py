"""What pages say about the pretraining."""

from __future__ import annotations

from ..page_text import PageText
from .predictors import EXPLAINED

TEXT = PageText(
    title="Pretraining",
    command="brainlm pretrain",
    missing="There is no pretraining journal (metrics.jsonl) yet.",
    captions={
        "curve": "Pretraining. Left: mean squared error on hidden points. Right: R² on hidden "
        "points of validation recordings (not clipped), next to predictors that need no network: "
        + EXPLAINED,
        "no validation": "There was no validation recording, so the curve shows training only.",
        "end": "At the end (update {step:.0f}), masked R²: {scores}.",
        "throughput": "Throughput and cost of the training run.",
    },
)
