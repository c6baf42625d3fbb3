"""The decoder: from the latent of the visible tokens to the values of the removed ones.

Legend: B batch, N tokens, K visible tokens, P values per token, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Block, mlp_or_linear
from .masking import Masking, take
from .shape import BrainLMConfig


def stack(config: BrainLMConfig, width: int, depth: int, heads: int, ffn: int) -> nn.ModuleList:
    """`depth` blocks of the configuration's kind."""
    return nn.ModuleList(
        Block(width, heads, ffn, pre_norm=config.pre_norm, convolution=config.convolution,
              eps=config.eps)
        for _ in range(depth)
    )  # fmt: skip


class Decoder(nn.Module):
    """Visible tokens and mask tokens, each with its place, to values [B, N, P]."""

    def __init__(self, config: BrainLMConfig, grid: nn.Module):
        super().__init__()
        width = config.decoder_width
        self.context, self.share = config.decoder_context, config.decode_share
        self.embed = nn.Linear(config.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.mask_token, std=config.init_std)
        self.positions = grid.positions(config, width)
        self.dropout = nn.Dropout(config.position_dropout)
        self.blocks = stack(config, width, config.decoder_depth, config.decoder_heads,
                             config.decoder_ffn)  # fmt: skip
        self.norm = nn.LayerNorm(width, eps=config.eps)
        self.predict = mlp_or_linear(width, grid.values, hidden=config.family == "parcel")

    def forward(self, latent: Tensor, masking: Masking, coordinates: Tensor):
        """Latent [B, 1 + K, D] -> values [B, N, P], and which tokens were predicted [B, N, 1]."""
        context = {"all": self._all, "visible": self._from_visible}[self.context]
        return context(latent, masking, self.positions(coordinates))

    def _all(self, latent: Tensor, masking: Masking, places: Tensor) -> tuple[Tensor, Tensor]:
        cls, visible = self.embed(latent).split([1, masking.visible], 1)
        count = masking.ids_restore.shape[1] - masking.visible
        hidden = self.mask_token.to(visible.dtype).expand(len(visible), count, -1)
        tokens = take(torch.cat([visible, hidden], 1), masking.ids_restore)
        x = torch.cat([cls, self.dropout(tokens + places)], 1)
        for block in self.blocks:
            x = block(x)
        values = self.predict(self.norm(x[:, 1:]))
        return values, torch.ones_like(masking.mask)[..., None]

    def _from_visible(self, latent: Tensor, masking: Masking, places: Tensor):
        N, K = masking.ids_restore.shape[1], masking.visible
        count = max(1, int((N - K) * self.share)) if self.training and K < N else N - K
        cls, visible = self.embed(latent).split([1, K], 1)
        hidden = self.mask_token.to(visible.dtype).expand(len(visible), count, -1)
        ids = masking.ids_shuffle[:, : K + count]  # visible tokens in front: they are the context
        tokens = torch.cat([visible, hidden], 1) + take(places, ids)
        x = torch.cat([cls, self.dropout(tokens)], 1)
        for block in self.blocks:
            x = block(x, K + 1)
        values = F.pad(self.predict(self.norm(x[:, 1:])), (0, 0, 0, N - K - count))
        return take(values, masking.ids_restore), masking.ids_restore[..., None] < K + count
