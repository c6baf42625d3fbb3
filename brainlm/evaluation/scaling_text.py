"""What pages say about scaling with model size and data."""

from __future__ import annotations

from ..page_text import TaskText

TEXT = TaskText(
    title="Scaling",
    captions={
        "lines": "Masked R² on held-out participants by model size and number of training "
        "participants; 95 % bootstrap intervals over participants. Every point is a model trained "
        "from scratch with the same budget.",
        "table": "Scaling, value [95 % interval].",
    },
)
