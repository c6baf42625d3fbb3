"""Code versions of the stages and the settings that change their results. Imports nothing heavy.

Raise a stage's version when its code changes its output: exactly that stage and those after it
are then run again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..cohort.layouts import LAYOUTS
from ..config import Preprocess

STAGE_VERSIONS = {
    "motion": 6, "normalise": 3, "denoise": 3, "parcellate": 6, "volumes": 1, "series": 2,
    "pages": 1,
}  # fmt: skip


def _pick(*names: str) -> Callable[[Preprocess], dict[str, Any]]:
    return lambda options: {name: getattr(options, name) for name in names}


def _normalise(options: Preprocess) -> dict[str, Any]:
    """The code of the way through the T1w changed once; what was fitted directly stays."""
    chosen = _pick("engine", "use_t1w")(options)
    return chosen | {"t1w_version": 2} if options.use_t1w else chosen


def _denoise(options: Preprocess) -> dict[str, Any]:
    """FIX's settings only where it judges: what others made stays as it is."""
    chosen = _pick("engine", "denoise", "high_pass_hz")(options)
    if options.fix_weights is not None:
        chosen |= {"fix_weights": str(options.fix_weights), "fix_threshold": options.fix_threshold}
    return chosen


PARAMETERS: dict[str, Callable[[Preprocess], dict[str, Any]]] = {
    "motion": _pick("engine", "min_duration_s", "slice_timing"),
    "normalise": _normalise,
    "denoise": _denoise,
    "parcellate": _pick(
        "sample_period_s", "high_pass_hz", "low_pass_hz", "min_coverage", "outputs"
    ),
    "volumes": _pick(
        "min_duration_s", "sample_period_s", "high_pass_hz", "low_pass_hz", "min_coverage"
    ),
    "pages": _pick(),  # what changes a recording's results draws its page anew
    "series": _pick("min_duration_s", "sample_period_s", "high_pass_hz", "low_pass_hz"),
}


def stages_of(layout: str) -> list[str]:
    """Stage names in order, for a cohort that enters by this layout."""
    enters = LAYOUTS[layout].enters
    return ["motion", "normalise", "denoise", "parcellate"] if enters == "motion" else [enters]


def state_parameters(stage: str, config: Preprocess, engine: Any = None) -> dict[str, Any]:
    """All that a stage's result depends on beside its input, for the sidecar."""
    chosen = PARAMETERS[stage](config)
    chosen.pop("outputs", None)
    return chosen | getattr(engine, "SETTINGS", {})
