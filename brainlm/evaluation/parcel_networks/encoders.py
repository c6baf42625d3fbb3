"""Networks that turn a parcel's series into features: what attention rows are compared with.

Paper, section 4.5: a variational autoencoder of three plus three layers and a graph convolution
network of four, both trained to fill in hidden tokens, as the model is. The paper gives no widths.

Legend: B batch, R parcels, T time points, P values per token, D features.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from ...training.loop import squared_error

MASK_RATIO = 0.75


class MaskedAutoencoder(nn.Module):
    """Base: ``features(signal)`` [B, R, D] and ``forward``, the series filled in [B, R, T]."""

    penalty: Tensor | float = 0.0

    def features(self, signal: Tensor) -> Tensor:
        raise NotImplementedError


class ParcelVAE(MaskedAutoencoder):
    """Three layers in, a normal distribution of codes, three layers out; parcel by parcel."""

    def __init__(self, window: int, width: int = 32, weight: float = 1e-3):
        super().__init__()
        self.weight = weight
        self.encoder = nn.Sequential(
            nn.Linear(window, 8 * width), nn.ReLU(), nn.Linear(8 * width, 4 * width), nn.ReLU(),
            nn.Linear(4 * width, 2 * width),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, 8 * width), nn.ReLU(),
            nn.Linear(8 * width, window),
        )  # fmt: skip

    def features(self, signal: Tensor) -> Tensor:
        return self.encoder(signal).chunk(2, -1)[0]

    def forward(self, signal: Tensor) -> Tensor:
        mean, log_variance = self.encoder(signal).chunk(2, -1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)
        self.penalty = self.weight * divergence.mean()
        if self.training:
            mean = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(mean)


class ParcelGCN(MaskedAutoencoder):
    """Four graph convolutions (Kipf & Welling 2017); features are the third layer's.

    Parameters
    ----------
    graph : Tensor [R, R]
        Weights of the edges, see :func:`nearest_graph`.
    """

    graph: Tensor

    def __init__(self, window: int, graph: Tensor, width: int = 128):
        super().__init__()
        self.register_buffer("graph", graph)
        sizes = [window, width, width, width, window]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def features(self, signal: Tensor) -> Tensor:
        for layer in list(self.layers)[:-1]:
            signal = torch.relu(self.graph @ layer(signal))
        return signal

    def forward(self, signal: Tensor) -> Tensor:
        return self.graph @ self.layers[-1](self.features(signal))


def nearest_graph(connectivity: Tensor, neighbours: int = 10) -> Tensor:
    """[R, R] symmetric, normalised edges to the parcels of highest correlation, and to itself."""
    score = connectivity.nan_to_num(-1.0).fill_diagonal_(-2.0)
    nearest = score.topk(min(neighbours, len(score) - 1), dim=1).indices
    edges = torch.zeros_like(score).scatter_(1, nearest, 1.0)
    edges = torch.maximum(edges, edges.T).fill_diagonal_(1.0)
    degree = edges.sum(1).rsqrt()
    return degree[:, None] * edges * degree


def masked_error(network: MaskedAutoencoder, signal: Tensor, patch: int) -> Tensor:
    """Hide :data:`MASK_RATIO` of the tokens of P points, fill them in; squared error there."""
    tokens = signal[..., ::patch]
    hidden = torch.rand_like(tokens) < MASK_RATIO
    hidden = hidden.repeat_interleave(patch, -1)[..., : signal.shape[-1]]
    filled = network(signal.nan_to_num(0.0).masked_fill(hidden, 0.0))
    return squared_error(filled, signal, hidden) + network.penalty * network.training
