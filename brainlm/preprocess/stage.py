"""What a stage is, and how its function runs: reproducibly, with the time of every step."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from ..atlas import Atlas
from ..cohort.recordings import Entry
from ..config import Preprocess

Figures = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A stage, and what its result depends on.

    Attributes
    ----------
    function : callable
        ``(entry, out, series_dir, config, atlas) -> figures``.
    version : int
        Raised when the code changes its output.
    parameters : callable
        The configuration keys that change this stage's result.
    """

    name: str
    function: Callable[[Entry, Path, Path, Preprocess, Atlas], Figures]
    version: int
    parameters: Callable[[Preprocess], dict[str, Any]]


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
