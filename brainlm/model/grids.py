"""The two ways to cut a window [B, R, T] into tokens, and where each token is.

* :class:`ParcelGrid`: one token is P time points of one parcel; raster order is parcel-major.
* :class:`ImageGrid`: one token is a rectangle of parcels × time points of the window seen as an
  image whose rows are the parcels from back to front (ascending Y, ties in atlas order).

A value is *known* where the recording has data, else NaN: a parcel outside the field of view, or
a censored time point. A token is *missing* where less than half of its time points are known; it
is never shown. Unknown values in a token that is shown are 0, the scaled median, and no unknown
value counts in a loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import fourier_codes, grid_sinusoid, interleaved_sinusoid
from .gaussian import decompose
from .shape import BrainLMConfig

#: root mean square of the places of parcels without coordinates
_PLACE = 0.7


class ParcelPositions(nn.Module):
    """Space + time of parcel tokens.

    Ours: learned Fourier features of mm (Tancik et al. 2020), whose inner product falls with
    distance; a learned vector per parcel; time codes that are orthogonal between steps.
    As published: a linear projection of mm and the usual sinusoid.
    """

    def __init__(self, config: BrainLMConfig, width: int):
        super().__init__()
        self.unit_mm, self.fourier = config.coordinate_unit_mm, config.fourier_places
        features = width // 2 if self.fourier else width
        self.space = nn.Linear(3, features) if config.has_coordinates else None
        self.parcel = None
        if config.learned_parcels:
            self.parcel = nn.Parameter(torch.empty(config.num_parcels, width))
        steps = config.window // config.patch
        table = fourier_codes if self.fourier else interleaved_sinusoid
        self.register_buffer("time", table(steps, width), persistent=False)

    def start(self, std: float) -> None:
        """Initial values; without coordinates every parcel starts as a place of its own."""
        if self.fourier and self.space is not None:
            nn.init.normal_(self.space.weight)
        if self.parcel is not None:
            nn.init.normal_(self.parcel, std=std if self.space is not None else _PLACE)

    @torch.no_grad()
    def start_parcels(self, covariance: Tensor) -> None:
        """Give parcels places whose inner products are their correlations.

        As far as D principal components can tell: attention, which starts alike, then begins with
        parcels that move together (docs/results/abide.md: as good as three times the updates).

        Parameters
        ----------
        covariance : Tensor [R, R]
            Of the training series.
        """
        if self.parcel is None:
            return
        c = covariance.double().cpu()
        size = c.diagonal().clamp(min=1e-12).sqrt()
        values, vectors = decompose(c / size / size[:, None])
        codes = vectors * values.clamp(min=0).sqrt()
        codes = nn.functional.normalize(codes[:, : self.parcel.shape[1]], dim=1)
        self.parcel.zero_()[:, : codes.shape[1]] = codes * (_PLACE * self.parcel.shape[1] ** 0.5)

    def forward(self, coordinates: Tensor) -> Tensor:
        """[R, 3] mm -> [1, N, D]."""
        space = torch.zeros((), device=coordinates.device)
        if self.space is not None:
            space = self.space(coordinates / self.unit_mm)
            space = torch.cat([space.sin(), space.cos()], -1) if self.fourier else space
        if self.parcel is not None:
            space = space + self.parcel
        return (space[:, None] + self.time).flatten(0, 1)[None]


class ImagePositions(nn.Module):
    """Fixed two-dimensional sinusoid."""

    def __init__(self, config: BrainLMConfig, width: int):
        super().__init__()
        table = grid_sinusoid(*ImageGrid.shape(config), width)
        self.register_buffer("table", table[None], persistent=False)

    def start(self, std: float) -> None:
        """Nothing is learned here."""

    def forward(self, coordinates: Tensor) -> Tensor:
        return self.table


class TokenGrid(nn.Module):
    """What both grids share: ``times``, the time point of every value of a token."""

    times: Tensor  # [N, P]; in padding outside 0..T-1
    window: int
    num_tokens: int

    def points(self, ratio: float) -> int:
        """How many time points a share of the window is; at least one."""
        return max(1, round(ratio * self.window))

    def last_values(self, points: int) -> Tensor:
        """[N, P] bool: values in the last `points` time points (padding rows too)."""
        return (self.times >= self.window - points) & (self.times < self.window)

    def future(self, points: int, *, whole: bool = False) -> Tensor:
        """[N] bool: tokens that hold any of (`whole`: nothing but) the last `points` points."""
        some = self.last_values(points).any(-1)
        return some & (self.times >= self.window - points).all(-1) if whole else some


class ParcelGrid(TokenGrid):
    """Tokens of one parcel and P time points each; N = R * T / P."""

    positions = ParcelPositions

    def __init__(self, config: BrainLMConfig, coordinates: Tensor):
        super().__init__()
        self.patch = config.patch
        self.num_parcels, self.window = config.num_parcels, config.window
        self.steps = config.window // config.patch
        self.num_tokens = config.num_parcels * self.steps
        self.values = config.patch
        times = torch.arange(self.window).view(1, -1, self.patch).expand(self.num_parcels, -1, -1)
        self.register_buffer("times", times.reshape(self.num_tokens, -1), persistent=False)

    def cut(self, signal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, R, T] -> patches [B, N, P], known [B, N, P], missing [B, N]."""
        patches = signal.reshape(len(signal), self.num_tokens, self.patch)
        known = ~patches.isnan()
        return patches.nan_to_num(0.0), known, 2 * known.sum(-1) < self.patch

    def paste(self, patches: Tensor) -> Tensor:
        """[B, N, P] -> [B, R, T]."""
        return patches.reshape(len(patches), self.num_parcels, self.window)

    def tokens_of_parcels(self) -> Tensor:
        """[R, S] the tokens that hold a parcel, in order of time."""
        return torch.arange(self.num_tokens).view(self.num_parcels, self.steps)


class ImageGrid(TokenGrid):
    """Tokens of ``patch_parcels`` × P values of an image padded, centred, to whole patches."""

    positions = ImagePositions

    def __init__(self, config: BrainLMConfig, coordinates: Tensor):
        super().__init__()
        self.height, self.width = config.patch_parcels, config.patch
        self.rows, self.columns = self.shape(config)
        self.num_tokens, self.values = self.rows * self.columns, self.height * self.width
        self.pad_value, self.size = config.pad_value, (config.num_parcels, config.window)
        self.window = config.window
        extra = (self.rows * self.height - self.size[0], self.columns * self.width - self.size[1])
        self.top, self.left = extra[0] // 2, extra[1] // 2
        self.margins = (self.left, extra[1] - self.left, self.top, extra[0] - self.top)
        order = torch.arange(config.num_parcels)
        if config.has_coordinates:
            order = coordinates[:, 1].sort(stable=True).indices
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("order_back", order.argsort(), persistent=False)
        inside = F.pad(torch.ones(1, *self.size), self.margins)
        inside = self._patches(inside) > 0
        self.register_buffer("least", self._count_times(inside)[0] / 2, persistent=False)
        times = torch.arange(self.columns * self.width, dtype=torch.float32) - self.left
        times = self._patches(times.expand(1, self.rows * self.height, -1))[0].long()
        self.register_buffer("times", times, persistent=False)

    @staticmethod
    def shape(config: BrainLMConfig) -> tuple[int, int]:
        """Rows and columns of the token grid."""
        height, width = config.image_size or (config.num_parcels, config.window)
        return -(-height // config.patch_parcels), -(-width // config.patch)

    def _patches(self, image: Tensor) -> Tensor:
        cut = image.unflatten(1, (self.rows, self.height)).unflatten(3, (self.columns, self.width))
        return cut.transpose(2, 3).reshape(len(image), self.num_tokens, self.values)

    def cut(self, signal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, R, T] -> patches [B, N, P], known [B, N, P], missing [B, N]."""
        image = signal[:, self.order]
        known = self._patches(F.pad((~image.isnan()).float(), self.margins)) > 0
        image = F.pad(image.nan_to_num(0.0), self.margins, value=self.pad_value)
        return self._patches(image), known, self._count_times(known) < self.least

    def _count_times(self, known: Tensor) -> Tensor:
        """[B, N] time points of each token [B, N, P] at which any of its parcels is known."""
        return known.unflatten(2, (self.height, self.width)).any(2).sum(2)

    def paste(self, patches: Tensor) -> Tensor:
        """[B, N, P] -> [B, R, T], padding cut off, parcels in atlas order."""
        grid = patches.reshape(-1, self.rows, self.columns, self.height, self.width)
        image = grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        image = image[:, self.top :, self.left :][:, : self.size[0], : self.size[1]]
        return image[:, self.order_back]

    def tokens_of_parcels(self) -> Tensor:
        """[R, S] the tokens that hold a parcel (shared by its neighbours in the image)."""
        row = (self.order_back.cpu() + self.top) // self.height
        return row[:, None] * self.columns + torch.arange(self.columns)


def token_grid(config: BrainLMConfig, coordinates: Tensor) -> TokenGrid:
    """The grid of a model of this shape."""
    return {"parcel": ParcelGrid, "image": ImageGrid}[config.family](config, coordinates)
