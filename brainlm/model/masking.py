"""Which tokens the encoder sees. In a mask, 1 means removed (hidden from the encoder)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import BrainLMError

if TYPE_CHECKING:
    from .grids import Grid

MASKS = ("random", "future", "future-exact")


@dataclass
class Masking:
    """One draw.

    Attributes
    ----------
    ids_shuffle : Tensor [B, N]
        Token numbers, visible ones first.
    ids_restore : Tensor [B, N]
        Where each token of the raster went in the shuffled order.
    visible : int
        K, how many tokens the encoder sees; the same for every sample of a batch.
    """

    ids_shuffle: Tensor
    ids_restore: Tensor
    visible: int

    @classmethod
    def draw(cls, noise: Tensor, visible: int) -> Masking:
        """Keep the `visible` tokens of smallest noise [B, N], in order of their noise."""
        ids_shuffle = noise.argsort(dim=1, stable=True)
        return cls(ids_shuffle, ids_shuffle.argsort(1), visible)

    @property
    def mask(self) -> Tensor:
        """[B, N] bool, True = removed."""
        return self.ids_restore >= self.visible

    def keep(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, K, D], visible tokens only."""
        return take(tokens, self.ids_shuffle[:, : self.visible])


def draw_masking(grid: Grid, missing: Tensor, ratio: float, mask: str = "random",
                 noise: Tensor | None = None, generator: torch.Generator | None = None,
                 visible: int | None = None) -> Masking:  # fmt: skip
    """A draw that never shows a token without data; see :meth:`brainlm.model.BrainLM.forward`.

    Parameters
    ----------
    missing : Tensor [B, N] bool
    visible : int, optional
        K. Without it the data decide, which waits for the device that `missing` is on.

    Raises
    ------
    BrainLMError
        An unknown kind of mask.
    """
    B, N = missing.shape
    if mask not in MASKS:
        raise BrainLMError(f"no mask {mask!r}; one of: {', '.join(MASKS)}")
    if visible is None:
        visible = _count(grid, missing, ratio, mask)
    if mask != "random":
        noise = raster_noise(B, N, missing.device) if noise is None else noise
        noise = noise + grid.future(grid.points(ratio), whole=mask == "future-exact")
    elif noise is None:
        noise = torch.rand(B, N, device=missing.device, generator=generator)
    return Masking.draw(noise.masked_fill(missing, 2.0 + N), visible)


def count_visible(grid: Grid, signal: Tensor | None, ratio: float, mask: str = "random") -> int:
    """K for a batch: what the mask leaves, or all there is in the sample with most missing
    parcels. With a grid on the host it can be asked before the batch goes to a device.

    Parameters
    ----------
    signal : Tensor [B, R, T] or None
        None stands for a batch in which nothing is missing.
    """
    missing = torch.zeros(1, grid.num_tokens, dtype=torch.bool)
    if signal is not None:
        _, _, missing = grid.cut(signal)
    return _count(grid, missing, ratio, mask)


def _count(grid: Grid, missing: Tensor, ratio: float, mask: str) -> int:
    N = missing.shape[1]
    if mask == "random":
        visible, removed = int(N * (1 - ratio)), missing
    else:
        hidden = grid.future(grid.points(ratio), whole=mask == "future-exact")
        visible, removed = N - int(hidden.sum()), missing | hidden
    return max(1, min(visible, N - int(removed.sum(1).max())))


def take(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows `ids` [B, K] of `tokens` [B or 1, N, D]."""
    tokens = tokens.expand(len(ids), -1, -1)
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))


def raster_noise(batch: int, tokens: int, device: torch.device) -> Tensor:
    """[B, N] noise that keeps tokens in their order: what makes embeddings deterministic."""
    return torch.arange(tokens, device=device, dtype=torch.float32).expand(batch, -1) / tokens
