"""A fit in a file: what every engine's normalisation is saved as."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Self

import numpy as np

from ...errors import BrainLMError
from ...files import atomic_path


class SavedFit:
    """A dataclass that saves its arrays, ``quality`` and ``method``."""

    quality: dict[str, float]
    method: str

    def save(self, path: str | Path, **more: np.ndarray) -> None:
        """Write an npz file, with `more` arrays; it appears whole."""
        about = json.dumps({"quality": self.quality, "method": self.method})
        arrays = {name: getattr(self, name) for name in self.array_names()} | more
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(handle, about=about, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in cls.array_names()}
                about = json.loads(str(stored["about"]))
        except (OSError, ValueError, KeyError) as error:
            raise BrainLMError(f"{path}: expected a saved normalisation ({error})") from None
        return cls(**arrays, **about)

    @classmethod
    def array_names(cls) -> list[str]:
        """What is saved besides ``quality`` and ``method``."""
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        return [name for name in names if name not in ("quality", "method")]
