"""Summaries of a window: what the tokens of an encoder are put together to.

Legend as in mae.py; F is the width of a summary, :func:`summary_width`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import BrainLMError

if TYPE_CHECKING:
    from .mae import BrainLMConfig

#: cls: the CLS token; mean: of the others; all: of all (the published fine-tuning head);
#: cls+mean: side by side; connectivity: :func:`connectivity` of the parcels' tokens
POOLS = ("cls", "mean", "all", "cls+mean", "connectivity")


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


def summary_width(config: BrainLMConfig, pool: str) -> int:
    """F, how many values a summary has."""
    if pool == "connectivity":
        return config.num_parcels * (config.num_parcels - 1) // 2
    return 2 * config.width if pool == "cls+mean" else config.width


def summarise_tokens(latent: Tensor, pool: str) -> Tensor:
    """[B, 1 + K, D], CLS first -> [B, D], or [B, 2 D] for cls+mean."""
    cls, mean = latent[:, 0], latent[:, 1:].mean(1)
    if pool == "cls+mean":
        return torch.cat([cls, mean], -1)
    return {"cls": cls, "mean": mean, "all": latent.mean(1)}[pool]


def connectivity(latent: Tensor, known: Tensor) -> Tensor:
    """How alike the encodings of each pair of parcels are.

    Parameters
    ----------
    latent : Tensor [B, 1 + K, D]
        CLS, then for one time step after the other the tokens of the known parcels, in order.
    known : Tensor [R] bool
        Parcels that the recordings have.

    Returns
    -------
    Tensor [B, R (R - 1) / 2]
        Fisher z of the correlation between two parcels' tokens, all time steps side by side,
        less what all parcels share; upper triangle row by row; NaN where either is missing.
    """
    B, _, D = latent.shape
    x = latent[:, 1:].float().reshape(B, -1, int(known.sum()), D).transpose(1, 2).flatten(2)
    x = x - x.mean(1, keepdim=True)  # what all share says nothing of a pair
    x = torch.nn.functional.normalize(x - x.mean(2, keepdim=True), dim=2)
    z = torch.atanh((x @ x.mT).clamp(-0.999, 0.999))  # duplicate parcels stay finite
    full = z.new_full((B, len(known), len(known)), float("nan"))
    where = known.nonzero()[:, 0]
    full[:, where[:, None], where] = z
    rows, columns = torch.triu_indices(len(known), len(known), 1, device=z.device)
    return full[:, rows, columns]
