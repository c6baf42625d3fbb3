"""What pages say about the latent space."""

from __future__ import annotations

from ..page_text import TaskText

TEXT = TaskText(
    title="Latent space",
    captions={
        "map": "{count} in two dimensions (UMAP), from the CLS token and from the mean of all "
        "tokens, coloured by {column}. Distances between groups that lie far apart mean nothing.",
        "seen": "The model was trained on {trained} of them.",
        "table": "How well a variable is found from the nearest recordings of other participants, "
        "value [95 % interval].",
    },
)
