"""Which tokens the encoder sees. In a mask, 1 means removed (hidden from the encoder)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import BrainLMError
from .grids import TokenGrid

MASKS = ("random", "future", "future-exact")


@dataclass(frozen=True)
class Masking:
    """One draw for a batch.

    Attributes
    ----------
    ids_shuffle : Tensor [B, N]
        Token numbers, visible ones first.
    ids_restore : Tensor [B, N]
        Where each token of the raster went in the shuffled order.
    visible : int
        K, how many tokens the encoder sees; the same for every sample of a batch.
    values : Tensor [N, P] bool, optional
        The values to predict, hidden also where their token is visible; by default all values of
        the removed tokens.
    """

    ids_shuffle: Tensor
    ids_restore: Tensor
    visible: int
    values: Tensor | None = None

    @classmethod
    def draw(cls, noise: Tensor, visible: int, values: Tensor | None = None) -> Masking:
        """Keep the `visible` tokens of smallest noise [B, N], in order of their noise."""
        ids_shuffle = noise.argsort(dim=1, stable=True)
        places = torch.arange(noise.shape[1], device=noise.device).expand_as(ids_shuffle)
        ids_restore = torch.empty_like(ids_shuffle).scatter_(1, ids_shuffle, places)
        return cls(ids_shuffle, ids_restore, visible, values)

    @classmethod
    def show(cls, shown: Tensor, visible: int) -> Masking:
        """Keep the tokens `shown` [B, N] bool, `visible` in every sample, in raster order."""
        return cls.draw((~shown).byte(), visible)

    @property
    def mask(self) -> Tensor:
        """[B, N] bool, True = removed."""
        return self.ids_restore >= self.visible

    @property
    def ids_keep(self) -> Tensor:
        """[B, K] the visible tokens."""
        return self.ids_shuffle[:, : self.visible]

    def keep(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, K, D], visible tokens only."""
        return take(tokens, self.ids_keep)

    def to(self, device: torch.device) -> Masking:
        """The same draw on a device; from page-locked memory without waiting."""
        return self._each(lambda ids: ids.to(device, non_blocking=True))

    def pin_memory(self) -> Masking:
        return self._each(Tensor.pin_memory)

    def _each(self, change) -> Masking:
        values = None if self.values is None else change(self.values)
        return replace(self, ids_shuffle=change(self.ids_shuffle),
                       ids_restore=change(self.ids_restore), values=values)  # fmt: skip


@dataclass(frozen=True)
class Masker:
    """Draws of one kind; they never show a token without data.

    Parameters
    ----------
    grid : TokenGrid
        On the device of the windows that it will be asked about.
    ratio : float
        Share of tokens removed (``random``) or of time points (``future``).
    mask : str
        One of :data:`MASKS`, see :meth:`brainlm.model.BrainLM.forward`.

    Raises
    ------
    BrainLMError
        An unknown kind of mask.
    """

    grid: TokenGrid
    ratio: float
    mask: str = "random"

    def __post_init__(self):
        if self.mask not in MASKS:
            raise BrainLMError(f"no mask {self.mask!r}; one of: {', '.join(MASKS)}")

    def __call__(self, noise: Tensor, signal: Tensor | None = None) -> Masking:
        """A draw from noise [B, N] for windows [B, R, T]; without windows nothing is missing."""
        missing = None if signal is None else self.grid.cut(signal)[2]
        return self.draw(noise, missing)

    def draw(self, noise: Tensor, missing: Tensor | None = None) -> Masking:
        """A draw from noise [B, N] for windows that lack the tokens `missing` [B, N]."""
        exact = self.mask == "future-exact"
        N = noise.shape[1]
        if self.mask == "random":
            visible, hidden = int(N * (1 - self.ratio)), None
        else:
            hidden = self.grid.future(self.grid.points(self.ratio), whole=exact)
            visible = N - int(hidden.sum())
            noise = noise + hidden
        if missing is not None:
            noise = noise.masked_fill(missing, torch.inf)
            removed = missing if hidden is None else missing | hidden
            visible = min(visible, N - int(removed.sum(1).max()))
        values = self.grid.last_values(self.grid.points(self.ratio)) if exact else None
        return Masking.draw(noise, max(1, visible), values)


def keep_tokens(shown: Tensor, noise: Tensor, share: float) -> Tensor:
    """[B, N] bool: of the tokens `shown` the given share, those of smallest noise [B, N]."""
    count = (shown.sum(1).double() * share).long().clamp(min=1)
    order = noise.masked_fill(~shown, torch.inf).argsort(dim=1, stable=True)
    return shown & (order.argsort(1) < count[:, None])


def keep_steps(shown: Tensor, noise: Tensor, share: float, parcels: int) -> Tensor:
    """As :func:`keep_tokens`, whole time steps of tokens that are parcel-major."""
    by_parcel = shown.unflatten(1, (parcels, -1))
    some = keep_tokens(by_parcel.any(1), noise[:, : by_parcel.shape[2]], share)
    return (by_parcel & some[:, None]).flatten(1)


def take(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows `ids` [B, K] of `tokens` [B or 1, N, D]."""
    tokens = tokens.expand(len(ids), -1, -1)
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))


def raster_noise(like: Tensor) -> Tensor:
    """Noise in 0..1 of the shape [B, N] of another tensor that keeps tokens in their order."""
    B, N = like.shape
    return torch.arange(N, device=like.device, dtype=torch.float32).expand(B, -1) / N
