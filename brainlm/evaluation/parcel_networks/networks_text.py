"""What pages say about functional networks."""

from __future__ import annotations

from ...page_text import TaskText

TEXT = TaskText(
    title="Functional networks",
    metric="accuracy",
    model="attention rows",
    subject="attention rows are",
    captions={
        "dots": "Share of left-out parcels whose functional network is found from their nearest "
        "neighbours, by features of the parcels; 95 % bootstrap intervals over participants. "
        "'majority' always answers the largest network; 'shuffled' is trained on permuted labels.",
        "table": "Network accuracy, value [95 % interval].",
        "networks": "Share of each network's parcels that are found.",
    },
)
