"""Copies of the metrics in other participants' tools, only where the configuration asks for them.

metrics.jsonl is always written and is the record; see journal.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import BrainLMError


class TensorBoard:
    """Event files in ``<run>/tensorboard``; a resumed run hides what it is going to repeat."""

    def __init__(self, folder: Path, settings: str, step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", error) from None
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._writer.add_text("settings", f"```\n{settings}\n```", step)

    def record(self, values: dict[str, Any]) -> None:
        """One line of metrics; ``step`` and ``split`` name it."""
        for name, value in _numbers(values):
            self._writer.add_scalar(name, value, values["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A W&B run in project ``brainlm``; where it goes is up to wandb's own environment variables.

    The same folder and settings are the same run, so a resumed training goes on in it.
    """

    def __init__(self, folder: Path, settings: str, step: int):
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb", error) from None
        import json

        name = hashlib.sha256(f"{folder.resolve()} {settings}".encode()).hexdigest()[:16]
        self._run = wandb.init(project="brainlm", id=name, resume="allow", dir=str(folder),
                               config=json.loads(settings))  # fmt: skip

    def record(self, values: dict[str, Any]) -> None:
        """One line of metrics; ``step`` and ``split`` name it."""
        self._run.log(dict(_numbers(values)), step=values["step"])

    def close(self) -> None:
        self._run.finish()


_KINDS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def open_trackers(names: Sequence[str], folder: Path, settings: str, step: int = 0) -> list[Any]:
    """Start the named trackers.

    Parameters
    ----------
    names : sequence of ``tensorboard`` | ``wandb``
    folder : Path
        Of the run.
    settings : str
        JSON, kept with the metrics.
    step : int
        Updates done: later lines of an interrupted run are replaced.

    Raises
    ------
    BrainLMError
        The package is not installed.
    """
    return [_KINDS[name](Path(folder), settings, step) for name in dict.fromkeys(names)]


def _numbers(values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if name not in ("step", "split") and value is not None:
            yield f"{values['split']}/{name}", value


def _missing(package: str, error: ImportError) -> BrainLMError:
    return BrainLMError(
        f"pretrain.trackers names {package}, which does not import ({error}); "
        "pip install 'brainlm-pipeline[track]', or take it off the list"
    )
