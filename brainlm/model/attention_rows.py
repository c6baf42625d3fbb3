"""Where a model looks: rows of its attention, recomputed from queries and keys.

Training never materialises attention (N x N per head and layer). Here a row is recomputed for the
queries that are asked for, ``softmax(q kᵀ / √d)``, in blocks: CLS alone costs O(N), all parcels
cost one block at a time.

Legend: B windows, R parcels, N tokens, S tokens of one parcel, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .mae import BrainLM

#: queries per block: 512 rows of 4,241 tokens and 4 heads are 35 MB
BLOCK = 512


@torch.no_grad()
def cls_attention(model: BrainLM, signal: Tensor, layer: int = -1) -> Tensor:
    """How much CLS attends to each parcel, relative to even attention (1).

    Parameters
    ----------
    model : BrainLM
    signal : Tensor [B, R, T]
        Scaled windows of one recording; a token without data in any of them is left out of all.
    layer : int
        Of the encoder; the last by default.

    Returns
    -------
    Tensor [B, R]
        Mean over heads and over the parcel's tokens; NaN for parcels without data. In the image
        family a token holds several parcels, which share its value.
    """
    query, key, kept = _queries_and_keys(model, signal, layer)
    row = _softmax_rows(query[:, :, :1], key)[:, 0, 1:]
    return _even(_by_parcel(model, row, kept))


@torch.no_grad()
def parcel_attention(model: BrainLM, signal: Tensor, layer: int = -1) -> Tensor:
    """How much each parcel attends to each other one, relative to even attention (1).

    Returns
    -------
    Tensor [R, R]
        Mean over windows, heads and the tokens of both parcels, a row per attending parcel; NaN
        where either has no data.
    """
    query, key, kept = _queries_and_keys(model, signal, layer)
    rows = []
    for first in range(1, query.shape[2], BLOCK):  # the first query is CLS
        block = _softmax_rows(query[:, :, first : first + BLOCK], key)[..., 1:].mean(0)
        rows.append(_even(_by_parcel(model, block, kept)))
    return _by_parcel(model, torch.cat(rows).T, kept).T


def _queries_and_keys(model: BrainLM, signal: Tensor, layer: int):
    """Queries and keys [B, H, 1 + K, d] of a layer, and which K of the N tokens they are of."""
    missing = model.grid.cut(signal)[2].any(0)  # in one window: left out of all
    gone = model.grid.paste(missing[None, :, None].expand(-1, -1, model.grid.values))[0]
    block = list(model.encoder)[layer]
    inputs: list[Tensor] = []
    hook = block.attention.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        known = model.tokens(signal.masked_fill(gone, torch.nan)).known
    finally:
        hook.remove()
    query, key, _ = block.attention.split(inputs[0])
    return query, key, known[0].nonzero()[:, 0]


def _softmax_rows(query: Tensor, key: Tensor) -> Tensor:
    """[B, Q, 1 + K] attention of some queries, mean over heads."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    return scores.float().softmax(-1).mean(1)


def _by_parcel(model: BrainLM, values: Tensor, kept: Tensor) -> Tensor:
    """Values of kept tokens [..., K] -> means over each parcel's tokens [..., R]."""
    full = values.new_full((*values.shape[:-1], model.num_tokens), torch.nan)
    full[..., kept] = values
    return full[..., model.grid.tokens_of_parcels().to(values.device)].nanmean(-1)


def _even(values: Tensor) -> Tensor:
    """Divided by the mean over parcels [..., R]."""
    return values / values.nanmean(-1, keepdim=True)
