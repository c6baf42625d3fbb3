"""What pages say about clinical variables."""

from __future__ import annotations

from ...page_text import TaskText

TEXT = TaskText(
    title="",  # each is named for its variable
    model="fine-tuned",
    subject="the fine-tuned model is",
    captions={
        "overview": "Every clinical variable, its headline metric by each method, value [95 % "
        "bootstrap interval over participants]. Predictions are in the units of the participants "
        "table; errors and tests of differences are in the section of each variable.",
        "table": "{name}: one prediction per participant (averaged over recordings), in the units "
        "of the participants table, value [95 % bootstrap interval over participants]. 'mean FD' "
        "uses head motion only, 'mean' uses nothing.",
        "scatter": "Predicted against true {name}; each dot is a participant, and the line is "
        "perfect prediction.",
    },
)
