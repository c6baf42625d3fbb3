"""What pages say about forecasting."""

from __future__ import annotations

from ...page_text import TaskText

TEXT = TaskText(
    title="Forecasting",
    metric="r2",
    model="fine-tuned",
    subject="the fine-tuned model is",
    captions={
        "steps": "Forecasts for held-out participants: R² (not clipped) of every step ahead; the "
        "band is the 95 % bootstrap interval over participants of the fine-tuned model. Below, "
        "steps at which its squared error differs from another method's (paired bootstrap t "
        "test over participants, Holm-corrected over methods and steps): * better, x worse. The "
        "{drawn} best other methods are drawn; the data file has all.",
        "table": "Forecasting, all steps together, value [95 % interval].",
        "examples": "Examples: the measured signal, and the forecasts of the fine-tuned model and "
        "of the two best other methods, for parcels from the first to the third quartile of "
        "spread.",
    },
)
