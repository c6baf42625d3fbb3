"""The README.md of a model folder: what it was trained on, how well, and what it is not for."""

from __future__ import annotations

from ..model import BrainLM
from .predictors import PREDICTORS

_HEAD = """---
library_name: brainlm
tags: [fmri, neuroscience, masked-autoencoder]
---

# {title}

"""

_LIMITS = """
## Limits

* Research only: not validated for any clinical use, and not for decisions about a person.
* Input must be series of atlas `{atlas}` ({parcels} parcels in that order), sampled every
  {period:g} s, scaled with this folder's `scaling.json`. Other input gives plausible nonsense.
* Figures are on held-out subjects of the cohorts trained on; expect less on other scanners and
  populations.

```python
from brainlm.model import from_pretrained
model = from_pretrained("this/folder")
summary = model.embed(signal)  # [B, R, T] scaled with model.scaling -> [B, D]
```
"""

#: what a head reads, by pool
POOLED = {
    "connectivity": "the correlations between the parcels' encodings",
    "mean": "the mean of the tokens",
    "cls": "the CLS token",
}


def _figure(value, digits: int = 3) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"


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
        f"{facts['seconds']:.0f} s on {facts['device']}.",
    ]  # fmt: skip
    scores = facts["validation"]
    if scores:
        lines += [
            "", "## Masked reconstruction on held-out subjects", "",
            "| predictor | R² |", "|---|---|", f"| this model | {_figure(scores['r2'])} |",
            *[f"| {words} | {_figure(scores[f'r2_{name}'])} |"
              for name, words in PREDICTORS.items() if f"r2_{name}" in scores],
        ]  # fmt: skip
    return _finish(f"BrainLM {c.preset}", lines, model, facts)


def finetuned_card(model: BrainLM, facts: dict) -> str:
    """Card of a fine-tuned model."""
    lines = [
        f"Predicts `{facts['target']}` ({facts['kind']}) from a window of brain activity; "
        f"started from {facts['start']}. Its head reads {POOLED[facts['pool']]}.", "",
        "## Data", "",
        *[f"* {split}: {n} labelled recordings" for split, n in facts["recordings"].items()],
        f"* left out: {facts['short']} labelled recordings shorter than the window",
        "", "## Held-out subjects", "",
        *[f"* {name}: {_figure(value)}" for name, value in facts["scores"].items()],
    ]  # fmt: skip
    return _finish(f"BrainLM {model.config.preset}: {facts['target']}", lines, model, facts)


def _finish(title: str, lines: list[str], model: BrainLM, facts: dict) -> str:
    limits = _LIMITS.format(atlas=facts["atlas"], parcels=model.config.num_parcels,
                            period=facts["sample_period_s"])  # fmt: skip
    return _HEAD.format(title=title) + "\n".join(lines) + "\n" + limits
