"""What a stage's function is given, and how it runs: reproducibly, with the time of every step.

A stage reads what the one before wrote, so each can be run again alone. It writes small fits as
BIDS derivatives and returns figures for the stage table. What it writes depends on its input and
its parameters only, byte for byte; times are in the figures alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from ...atlas import Atlas
from ...cohort.recordings import Entry
from ...config import Cohort, Config, Preprocess
from ...steps import sidecar_parameters
from ..io.derivatives import Derivatives, sidecar

Figures = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """A cohort within its study: all that a stage knows besides the recording."""

    config: Config
    cohort: Cohort
    atlas: Atlas

    @property
    def options(self) -> Preprocess:
        return self.config.preprocess

    @property
    def derivatives(self) -> Path:
        """The BIDS derivatives of the cohort."""
        return self.config.paths.derivatives(self.cohort.name)

    @property
    def series(self) -> Path:
        """Where the shard writer looks for parcel series."""
        return self.config.paths.series(self.cohort.name)

    def files(self, entry: Entry) -> Derivatives:
        """The derivatives of a recording."""
        return Derivatives(self.derivatives, entry.recording_id, self.atlas)

    def made(self, entry: Entry, names: Iterable[str]) -> list[Path]:
        """Files of a recording by name: of :class:`Derivatives`, which have sidecars, or
        ``series`` or ``page``."""
        paths, cohort, files = self.config.paths, self.cohort.name, self.files(entry)
        alone = {
            "series": paths.series_file(cohort, entry.recording_id),
            "page": paths.recording_page(cohort, entry.recording_id),
        }
        found = [getattr(files, name) for name in names if name not in alone]
        return [*found, *map(sidecar, found), *(alone[name] for name in names if name in alone)]

    def engine(self, builtin: Any) -> Any:
        """The module that fits: `builtin`, or the FSL engine, which has the same functions.

        Raises
        ------
        BrainLMError
            The programs of the configured engine are not there.
        """
        if self.options.engine == "builtin":
            return builtin
        from ..fsl import commands, engine

        commands.require_commands(self.options)
        return engine

    @property
    def engine_name(self) -> str:
        """For the sidecars: what fitted, and FSL's version where it is known."""
        if self.options.engine == "builtin":
            return "brainlm-pipeline"
        from ..fsl.commands import read_version

        return f"FSL {read_version()}"

    def parameters(self, stage: str, engine: Any = None) -> dict[str, Any]:
        """For the sidecars: the settings that a stage's result depends on."""
        return sidecar_parameters(stage, self.config, engine)


@contextmanager
def timed(figures: Figures, step: str):
    start = time.perf_counter()
    yield
    figures[f"{step}_s"] = round(time.perf_counter() - start, 3)


def reproducible(function: Callable[..., Figures]) -> Callable[..., Figures]:
    """One thread for matrix products: their rounding, and so the bytes, depend on the number.

    It is also faster where recordings run side by side: threads that wait for a busy core spin.
    """

    @wraps(function)
    def run(*arguments: Any) -> Figures:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, user_api="blas"):
            return function(*arguments)

    return run
