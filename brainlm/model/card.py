"""The README.md of a model folder: its header for the hub, its limits, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..shards.scaling import Scaling
from .shape import BrainLMConfig

TAGS = ("fmri", "neuroscience", "brain", "masked-autoencoder", "brainlm")
#: of the weights; the publisher decides, and the header is no valid license before
UNDECIDED = "license: other\nlicense_name: undecided"


class Described(Protocol):
    """What the card needs to know of a model."""

    config: BrainLMConfig
    scaling: Scaling | None

    def parameters(self) -> Any: ...


@dataclass(frozen=True)
class Metric:
    """A figure for the hub's model-index, and for participants.

    Attributes
    ----------
    name, kind : str
        In words, and the hub's type of metric (``r_squared``, ``mae``, ``accuracy``).
    value : float
    low, high : float, optional
        95 % interval, bootstrap over participants.
    split : str
        Of which participants.
    """

    name: str
    kind: str
    value: float
    low: float | None = None
    high: float | None = None
    split: str = "test"

    @property
    def words(self) -> str:
        interval = (
            "" if self.low is None else f" (95 % interval {self.low:.3f} to {self.high:.3f})"
        )
        return f"{self.name} of {self.split} participants: {self.value:.3f}{interval}"


def write_card(
    model: Described, title: str = "", body: Sequence[str] = (), metrics: Sequence[Metric] = ()
) -> str:
    """The card's text.

    Parameters
    ----------
    body : sequence of str
        Lines between the title and the limits: data, training, results.
    metrics : sequence of Metric
        For the header; figures that are not finite are left out.
    """
    title = title or f"BrainLM {model.config.preset or model.config.family}"
    parts = [_header(model, title, metrics), f"# {title}", "\n".join(body or _describe(model))]
    return "\n\n".join([*parts, _license(), _limits(model), _usage(model)]) + "\n"


def wrap_card(model: Described, theirs: str, source: str) -> str:
    """The card `theirs` of a model that was taken from `source`, whole, and ours around it.

    A card that this package wrote says already what input must be and how the model is used.
    """
    scaling = model.scaling
    taken = f"Taken as it is from `{source}`"
    if scaling is not None:
        taken += f"; scaled by release `{scaling.release or 'unnamed'}`, atlas `{scaling.atlas}`"
    if not theirs.strip():
        return write_card(
            model, source, [f"{taken}. No card came with it.", "", *_describe(model)]
        )
    added = ["## Where this copy is from", f"{taken}. The text above came with it."]
    if "library_name: brainlm" not in theirs:
        added += [_limits(model), _usage(model)]
    return "\n\n".join([theirs.rstrip(), *added]) + "\n"


def set_license(card: str, license: str) -> str:
    """The card with the license that the publisher names (an identifier of the hub)."""
    return card.replace(UNDECIDED, f"license: {license}").replace(_license(), (
        f"## License\n\n`{license}`."
    ))  # fmt: skip


def _header(model: Described, title: str, metrics: Sequence[Metric]) -> str:
    """YAML, each value written as JSON, which is YAML too."""
    task = model.config.target or "masked reconstruction"
    lines = ["---", UNDECIDED, "library_name: brainlm", f"tags: {json.dumps([*TAGS])}"]
    known = [m for m in metrics if m.value == m.value and abs(m.value) < float("inf")]
    if known:
        kind = "classification" if model.config.classes else "other"
        lines += ["model-index:", f"- name: {json.dumps(title, ensure_ascii=False)}", "  results:",
                  f"  - task: {json.dumps({'type': kind, 'name': task})}",
                  f"    dataset: {json.dumps({'type': 'private', 'name': _dataset(model)})}",
                  "    metrics:"]  # fmt: skip
        for metric in known:
            facts = {"type": metric.kind, "value": round(metric.value, 4), "name": metric.words}
            lines.append(f"    - {json.dumps(facts, ensure_ascii=False)}")
    return "\n".join([*lines, "---"])


def _dataset(model: Described) -> str:
    if model.scaling is None:
        return "unknown"
    return f"release {model.scaling.release or 'unnamed'}, atlas {model.scaling.atlas}"


def _describe(model: Described) -> list[str]:
    c, size = model.config, sum(p.numel() for p in model.parameters())
    return [f"A masked autoencoder of brain activity ({c.family} tokens, {size:,} parameters), "
            f"window {c.window} × {c.num_parcels} parcels, patch {c.patch}."]  # fmt: skip


def _license() -> str:
    return (
        "## License\n\nThe code is Apache-2.0. The license of the weights is up to whoever "
        "publishes them, and to the\nterms of use of the data: name it in "
        '`push_to_hub(..., license="...")`.'
    )


def _limits(model: Described) -> str:
    c, scaling = model.config, model.scaling
    wanted = f"Input must be series of {c.num_parcels} parcels"
    if scaling is None:
        wanted += ", scaled as in training; this folder carries no scaling."
    else:
        wanted += (f" of atlas `{scaling.atlas}` in its order, sampled every "
                   f"{scaling.sample_period_s:g} s,\n  scaled with this folder's `scaling.json`. "
                   "Other input gives plausible nonsense.")  # fmt: skip
    lines = [
        "## Limits", "",
        "* Research only: not validated for any clinical use, and not for decisions about a "
        "person.", f"* {wanted}",
        "* Figures are on held-out participants of the cohorts trained on; expect less on other "
        "scanners and\n  populations.",
    ]  # fmt: skip
    if c.ranges:
        lines += ["", "Ranges of the training data (predictions outside of it carry a "
                  "warning):", "", "| | minimum | 5 % | median | 95 % | maximum |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        lines += [f"| {name} | {' | '.join(f'{x:.4g}' for x in five)} |"
                  for name, five in c.ranges.items()]  # fmt: skip
    return "\n".join(lines)


def _usage(model: Described) -> str:
    call = "model.embed(windows)  # [K, D]"
    if model.config.head_outputs:
        call = "model.predict(windows)  # values [K, C] and their names"
    return f"""## Use

```python
from brainlm.model import from_pretrained, make_windows
model = from_pretrained("this/folder")  # or owner/name on the hub
windows = make_windows(model, series, tr_s=2.0)  # series [time, parcel] -> [K, R, T]
found = {call}
```

With transformers: `AutoModel.from_pretrained("this/folder", trust_remote_code=True)`; the code
file in this folder only imports the package: `pip install 'brainlm-pipeline[hf]'`."""
