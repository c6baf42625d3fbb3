"""Transformer blocks, position tables, and the three-layer head.

Legend: B batch, N tokens, D width, H heads, d = D / H.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_kernels import attend


class SelfAttention(nn.Module):
    """Multi-head self-attention, optionally with a convolution over the values.

    The convolution (depthwise over the token sequence, added to the context) exists for the
    published 13M weights only, whose layers inherit it from the Nyströmformer.
    """

    def __init__(self, width: int, heads: int, convolution: int = 0):
        super().__init__()
        self.heads = heads
        self.backend = "auto"
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.convolution = None
        if convolution:
            self.convolution = nn.Conv2d(heads, heads, (convolution, 1), groups=heads,
                                         padding=(convolution // 2, 0), bias=False)  # fmt: skip

    def forward(self, x: Tensor, context: int | None = None) -> Tensor:
        """Attend from every token of x [B, N, D] to its first `context` tokens (default all)."""
        B, N, D = x.shape
        query, key, value = self.split(x)
        mixed = attend(query, key[:, :, :context], value[:, :, :context], self.backend)
        if self.convolution is not None:
            mixed = mixed + self.convolution(value)
        return self.out(mixed.transpose(1, 2).reshape(B, N, D))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, N, d] of x [B, N, D]."""
        B, N, _ = x.shape
        query, key, value = self.qkv(x).view(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return query, key, value

    @torch.no_grad()
    def start_alike(self, gain: float = 1.4) -> None:
        """Start with equal, orthogonal query and key weights: like attends to like.

        Attention then finds tokens of the same time and of neighbouring parcels at once instead
        of after thousands of steps (mimetic initialisation, Trockman & Kolter, ICML 2023).
        """
        query, key, _ = self.qkv.weight.chunk(3)
        nn.init.orthogonal_(query, gain)
        key.copy_(query)


class Norm(nn.LayerNorm):
    """Layer norm with float32 weights, also where a sharded block works on bf16 copies."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class Block(nn.Module):
    """Attention and feed-forward, each with a residual; layer norm before or after."""

    def __init__(self, width: int, heads: int, ffn: int, *, pre_norm: bool, convolution: int,
                 eps: float):  # fmt: skip
        super().__init__()
        self.pre_norm = pre_norm
        self.norm1 = Norm(width, eps=eps)
        self.attention = SelfAttention(width, heads, convolution)
        self.norm2 = Norm(width, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(width, ffn), nn.GELU(), nn.Linear(ffn, width))

    def forward(self, x: Tensor, context: int | None = None) -> Tensor:
        if self.pre_norm:
            x = x + self.attention(self.norm1(x), context)
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attention(x, context))
        return self.norm2(x + self.mlp(x))


class PredictionHead(nn.Sequential):
    """Three linear layers with dropout: predicts a label from a summary [B, F] (paper, 3.4).

    Summaries of different participants differ by a few percent of their size, so they are
    standardised first, with the ``mean`` and ``std`` of the training set (as He et al. 2022 do for
    probing); 0 and 1, which change nothing, until :meth:`fit_scale`. A value that a summary lacks
    (NaN) counts as the training set's mean. A summary much wider than the layers is made smaller,
    so that one step of Adam, which moves every weight as far, does not throw the output about.

    Parameters
    ----------
    linear : bool
        Next to the layers a linear path from summary to output, zero until :meth:`start_linear`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, hidden: int, outputs: int = 1, dropout: float = 0.1, *,
                 linear: bool = False):  # fmt: skip
        super().__init__(
            nn.Linear(width, hidden), nn.Dropout(dropout), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.Dropout(dropout), nn.ReLU(),
            nn.Linear(hidden, outputs),
        )  # fmt: skip
        self.gain = (2 * hidden / width) ** 0.5 if width > 2 * hidden else 1.0
        skip = nn.Parameter(torch.zeros(outputs, width)) if linear else None
        self.register_parameter("skip", skip)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def fit_scale(self, summaries: Tensor) -> None:
        """Standardise by these summaries [B, F] of training windows from now on."""
        self.mean.copy_(summaries.nanmean(0).nan_to_num(0.0))
        spread = (summaries - self.mean).square().nanmean(0).sqrt().nan_to_num(0.0)
        self.std.copy_(spread.clamp(min=1e-3 * float(summaries.square().nanmean().sqrt()) + 1e-12))

    @torch.no_grad()
    def start_linear(self, weights: Tensor, bias: Tensor) -> None:
        """Give ``summary @ weights + bias`` from now on ([F, outputs], [outputs]), until trained:
        the layers begin at zero."""
        width = len(weights)
        self.skip.copy_((weights * self.std[:, None]).T * width**0.5)
        self[-1].weight.zero_()
        self[-1].bias.copy_(bias + self.mean @ weights)

    def forward(self, summary: Tensor) -> Tensor:
        x = ((summary - self.mean) / self.std).nan_to_num(0.0)
        out = super().forward(self.gain * x)
        if self.skip is None:
            return out
        return out + x.shape[-1] ** -0.5 * F.linear(x, self.skip)  # made smaller for Adam, too


def interleaved_sinusoid(count: int, width: int) -> Tensor:
    """[count, width] sine and cosine in turn over the channels (Vaswani et al. 2017, 3.5)."""
    step = torch.arange(0, width, 2, dtype=torch.float32) * (-torch.log(torch.tensor(1e4)) / width)
    angle = torch.arange(count, dtype=torch.float32)[:, None] * step.exp()
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :width]


def fourier_codes(count: int, width: int) -> Tensor:
    """[count, width] sine and cosine of evenly spaced rates up to π: orthogonal between rows."""
    half = width // 2
    rate = torch.pi * (torch.arange(half, dtype=torch.float32) + 0.5) / half
    angle = torch.arange(count, dtype=torch.float32)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)


def grid_sinusoid(rows: int, columns: int, width: int) -> Tensor:
    """[rows * columns, width]: first half of the channels for the column, second for the row."""

    def axis(count: int) -> Tensor:
        rate = 1e4 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
        angle = torch.arange(count, dtype=torch.float64)[:, None] * rate
        return torch.cat([angle.sin(), angle.cos()], 1)

    column = axis(columns).expand(rows, -1, -1)
    row = axis(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([column, row], -1).flatten(0, 1).float()


def set_attention(model: nn.Module, backend: str) -> None:
    """Choose the attention backend of every layer of `model`."""
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.backend = backend


def mlp_or_linear(width: int, out: int, *, hidden: bool) -> nn.Module:
    """The last layer of the decoder: linear, or with one LeakyReLU layer of half the width."""
    if not hidden:
        return nn.Linear(width, out)
    return nn.Sequential(nn.Linear(width, width // 2), nn.LeakyReLU(0.1),
                         nn.Linear(width // 2, out))  # fmt: skip


__all__ = [
    "Block", "PredictionHead", "SelfAttention", "fourier_codes", "grid_sinusoid",
    "interleaved_sinusoid", "mlp_or_linear", "set_attention",
]  # fmt: skip
