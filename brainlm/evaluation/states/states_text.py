"""What pages say about states."""

from __future__ import annotations

from ...page_text import TaskText

TEXT = TaskText(
    title="States",
    metric="balanced_accuracy",
    model="attentive probe",
    subject="the attentive probe is",
    captions={
        "dots": "Share of clips whose condition ({label}) is recognised, the mean over "
        "conditions, in participants that no method has seen; 95 % bootstrap intervals over "
        "participants. Probes read the frozen model's tokens; 'untrained' is its network with "
        "random weights; 'majority' always answers the most frequent condition.",
        "table": "States, value [95 % interval]. Every method but the majority decides as if the "
        "conditions were equally common.",
        "conditions": "Share of each condition's clips that is recognised.",
        "confusion": "Of the clips of each condition (rows), the share that the {method} takes "
        "for each (columns) in {cohort}; it is the probe of the model with the highest balanced "
        "accuracy there.",
    },
)
