"""Summaries of a window: what the tokens of an encoder are put together to.

Legend as in mae.py; F is the width of a summary, :func:`summary_width`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import BrainLMError
from .shape import BrainLMConfig

#: cls: the CLS token; mean: of the others; all: of all (the published fine-tuning head);
#: cls+mean: side by side; connectivity: :func:`connectivity` of the parcels' tokens; components:
#: the same between spatial components, :func:`component_connectivity`
POOLS = ("cls", "mean", "all", "cls+mean", "connectivity", "components")


class Tokens(NamedTuple):
    """What the encoder makes of windows.

    Attributes
    ----------
    values : Tensor [B, N, D]
        In raster order (see grids.py); zero where `known` is False.
    known : Tensor [B, N] bool
        Tokens that the window has data for, and that were encoded.
    cls : Tensor [B, D]
    """

    values: Tensor
    known: Tensor
    cls: Tensor


def check_pool(config: BrainLMConfig, pool: str) -> None:
    """Raise :class:`BrainLMError` if a model of this shape has no such summary."""
    if pool not in POOLS:
        raise BrainLMError(f"no pooling {pool!r}; one of: {', '.join(POOLS)}")
    if pool == "connectivity" and config.family != "parcel":
        raise BrainLMError(
            "pooling by connectivity needs a token per parcel (preset 13m or tiny); a token of "
            f"the {config.preset or config.family} model holds {config.patch_parcels} parcels: "
            "choose pool: mean or cls"
        )
    if pool == "components" and not config.components:
        raise BrainLMError(
            "this model carries no spatial components (parcel models of this version do): choose "
            "pool: connectivity, mean or cls"
        )


def summary_width(config: BrainLMConfig, pool: str) -> int:
    """F, how many values a summary has."""
    if pool == "connectivity":
        return config.num_parcels * (config.num_parcels - 1) // 2
    if pool == "components":
        return config.num_components * (config.num_components + 1) // 2
    return 2 * config.width if pool == "cls+mean" else config.width


def summarise_tokens(tokens: Tokens, pool: str, components: Tensor) -> Tensor:
    """[B, F] with the model's components [R, C]; NaN where a window has nothing to summarise."""
    if pool == "cls":
        return tokens.cls
    if pool == "connectivity":
        return connectivity(tokens, len(components))
    if pool == "components":
        return component_connectivity(tokens, components)
    total, count = tokens.values.sum(1), tokens.known.sum(1, keepdim=True)
    if pool == "all":
        return (tokens.cls + total) / (1 + count)
    mean = total / count
    return torch.cat([tokens.cls, mean], -1) if pool == "cls+mean" else mean


def connectivity(tokens: Tokens, num_parcels: int) -> Tensor:
    """How alike the encodings of each pair of parcels are.

    Parcels are compared over the time that any of them has; one that lacks some of it is missing.

    Returns
    -------
    Tensor [B, R (R - 1) / 2]
        Fisher z of the correlation between two parcels' tokens, all time steps side by side,
        less what all parcels share; upper triangle row by row; NaN where either is missing.
    """
    x, whole = _compare_parcels(tokens, num_parcels)
    z = torch.atanh((x @ x.mT).clamp(-0.999, 0.999))  # duplicate parcels stay finite
    z = z.masked_fill(~(whole[:, :, None] & whole[:, None]), torch.nan)
    rows, columns = torch.triu_indices(num_parcels, num_parcels, 1, device=z.device)
    return z[:, rows, columns]


def component_connectivity(tokens: Tokens, components: Tensor) -> Tensor:
    """:func:`connectivity` as far as C orthogonal patterns of parcels [R, C] tell it.

    Returns
    -------
    Tensor [B, C (C + 1) / 2]
        V' K V of the parcels' correlations K, upper triangle row by row; pairs count √2, so that
        distances between vectors are distances between matrices. Missing parcels are left out;
        NaN where all are missing.
    """
    x, whole = _compare_parcels(tokens, len(components))
    y = components.to(x).mT @ x
    rows, columns = torch.triu_indices(*y.shape[1:2] * 2, device=y.device)
    values = (y @ y.mT)[:, rows, columns] * torch.where(rows == columns, 1.0, 2**0.5)
    return values.masked_fill(~whole.any(1, keepdim=True), torch.nan)


def _compare_parcels(tokens: Tokens, num_parcels: int) -> tuple[Tensor, Tensor]:
    """[B, R, F] whose inner products are correlations of parcels, [B, R] which have them (zero
    the others)."""
    x = tokens.values.float().unflatten(1, (num_parcels, -1))  # [B, R, S, D]
    known = tokens.known.unflatten(1, (num_parcels, -1))
    steps = known.any(1, keepdim=True)  # [B, 1, S]
    whole = (known == steps).all(2)  # [B, R]
    used = (whole[..., None] & steps)[..., None]
    share = x.mul(used).sum(1, keepdim=True) / whole.sum(1)[:, None, None, None]
    x = (x - share) * used  # what all share says nothing of a pair
    mean = x.sum((2, 3), keepdim=True) / (steps.sum(2) * x.shape[3])[..., None, None]
    return torch.nn.functional.normalize(((x - mean) * used).flatten(2), dim=2), whole
