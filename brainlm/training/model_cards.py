"""The README.md of a model folder: what it was trained on, how well, and what it is not for."""

from __future__ import annotations

from collections.abc import Sequence

from ..model import BrainLM
from ..model.card import Metric, write_card
from .predictors import PREDICTORS

#: what a head reads, by pool
POOLED = {
    "connectivity": "the correlations between the parcels' encodings",
    "mean": "the mean of the tokens",
    "cls": "the CLS token",
}


def _figure(value, digits: int = 3) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"


def _shares(spent_s: dict[str, float]) -> str:
    total = max(sum(spent_s.values()), 1e-9)
    return ", ".join(f"{kind} {s / total:.1%}" for kind, s in spent_s.items())


def pretrained_card(model: BrainLM, facts: dict) -> str:
    """Card of a pretrained model."""
    c, recordings = model.config, facts["recordings"]
    size = sum(p.numel() for p in model.parameters())
    lines = [
        f"A masked autoencoder of brain activity (`{c.preset}`, {c.family} tokens, {size:,} "
        f"parameters), window {c.window} × {c.num_parcels} parcels, patch {c.patch}.", "",
        "## Data", "",
        f"* {recordings['train']} training and {recordings['validation']} validation recordings"
        f" (release `{facts['release'] or 'unnamed'}`), split by subject.",
        *[f"* left out: {n} training recordings: {why}" for why, n in facts["left_out"].items()],
        "", "## Training", "",
        f"* {facts['updates']} updates, {facts['epochs']:g} epochs, mask {facts['mask']} "
        f"{facts['mask_ratio']:.0%}, {facts['precision']}, {facts['processes']} process(es), "
        f"{facts['seconds']:.0f} s on {facts['device']} ({_shares(facts['spent_s'])}).",
    ]  # fmt: skip
    scores = facts["validation"]
    if scores:
        lines += [
            "", "## Masked reconstruction on held-out subjects", "",
            "| predictor | R² |", "|---|---|", f"| this model | {_figure(scores['r2'])} |",
            *[f"| {words} | {_figure(scores[f'r2_{name}'])} |"
              for name, words in PREDICTORS.items() if f"r2_{name}" in scores],
        ]  # fmt: skip
    metrics = []
    if scores and scores["r2"] is not None:
        low, high = facts["r2_interval"] or (None, None)
        metrics.append(Metric("R² of masked values", "r_squared", scores["r2"], low, high,
                              "validation"))  # fmt: skip
    return write_card(model, f"BrainLM {c.preset}", lines, metrics)


def finetuned_card(model: BrainLM, facts: dict, metrics: Sequence[Metric]) -> str:
    """Card of a fine-tuned model."""
    lines = [
        f"Predicts `{facts['target']}` ({facts['kind']}) from a window of brain activity; "
        f"started from {facts['start']}. Its head reads {POOLED[facts['pool']]}.", "",
        *([f"Classes: {', '.join(model.config.classes)}.", ""] if model.config.classes else []),
        "## Data", "",
        *[f"* {split}: {n} labelled recordings" for split, n in facts["recordings"].items()],
        f"* left out: {facts['short']} labelled recordings shorter than the window",
        "", "## Held-out subjects", "",
        *[f"* {metric.words}" for metric in metrics],
    ]  # fmt: skip
    return write_card(model, f"BrainLM {model.config.preset}: {facts['target']}", lines,
                      [metric for metric in metrics if metric.split == "test"])  # fmt: skip
