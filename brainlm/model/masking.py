"""Which tokens the encoder sees. In a mask, 1 means removed (hidden from the encoder)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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


def take(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows `ids` [B, K] of `tokens` [B or 1, N, D]."""
    tokens = tokens.expand(len(ids), -1, -1)
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))


def raster_noise(batch: int, tokens: int, device: torch.device) -> Tensor:
    """[B, N] noise that keeps tokens in their order: what makes embeddings deterministic."""
    return torch.arange(tokens, device=device, dtype=torch.float32).expand(batch, -1) / tokens
