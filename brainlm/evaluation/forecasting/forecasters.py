"""Networks that forecast: the given time points of all parcels to the ones that follow.

All take ``past`` [B, R, G] in scaled units, NaN where there is no data, and give [B, R, H].

Legend: B batch, R parcels, G given and H forecast time points, D width.

References: LSTM, Hochreiter & Schmidhuber 1997; neural ODE, Chen et al. 2018; latent ODE (a
recurrent encoder, a variational initial state), Rubanova et al. 2019. The paper compares these
(section 4.3) without giving their sizes: one width for all three here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import BrainLMError
from ...model import BrainLM, MaskedReconstruction
from ...model.masking import Masking, take
from ...training.loop import squared_error

#: share of the given tokens that the transformer sees while it trains, the newest first: as in
#: pretraining, it regularises and is several times as fast; forecasts are made from every token
TOKEN_KEEP = 0.25


class Forecaster(nn.Module):
    """Base: ``forward(past)`` forecasts; ``penalty`` is added to the squared error in training."""

    penalty: Tensor | float = 0.0
    horizon: int


class TransformerForecaster(Forecaster):
    """The masked autoencoder asked for the last tokens of its window (paper, section 4.3).

    A linear layer adds what it reads in the encoding of the newest given token of the same
    parcels (a flattened head: Nie et al., "A time series is worth 64 words", ICLR 2023). The
    decoder would first have to learn to find that token by attention.

    Training drops most of the older tokens; in evaluation mode every given token is seen, and
    the windows of a batch must lack the same values, as uncensored ones of one recording do.

    Parameters
    ----------
    model : BrainLM
        With a decoder; its window is G + H.
    horizon : int
        H, a multiple of the model's patch.
    """

    def __init__(self, model: BrainLM, horizon: int):
        super().__init__()
        if horizon % model.config.patch or not 0 < horizon < model.config.window:
            raise BrainLMError(
                f"forecasting: a horizon of {horizon} time points; the model forecasts whole "
                f"patches of {model.config.patch} in a window of {model.config.window}"
            )
        self.model, self.horizon = model, horizon
        ahead = model.grid.future(horizon)
        newest = model.grid.future(horizon + model.config.patch) & ~ahead
        self.register_buffer("ahead", ahead, persistent=False)
        self.register_buffer("newest", newest, persistent=False)
        values = model.grid.values * int(ahead.sum()) // int(newest.sum())
        self.carry = _readout(model.config.width, values)

    def forward(self, past: Tensor) -> Tensor:
        future = past.isnan().all(-1, keepdim=True).to(past.dtype)  # 1: a parcel without data
        future = torch.where(future > 0, torch.nan, 0.0).expand(-1, -1, self.horizon)
        window = torch.cat([past, future], -1)
        out = self.model(window, self._draw(window))
        return (out.prediction + self._carry_on(out))[..., -self.horizon :]

    def _carry_on(self, out: MaskedReconstruction) -> Tensor:
        """[B, R, T], the future read from the newest given tokens; 0 before."""
        visible, where = out.masking.visible, out.masking.ids_restore[:, self.newest]
        tokens = take(out.latent[:, 1:], where.clamp(max=visible - 1))
        tokens = tokens * (where < visible)[..., None]  # nothing known of a parcel without data
        future = self.carry(tokens)  # [B, rows of tokens, values of their future]
        values = future.new_zeros(len(future), len(self.ahead), self.model.grid.values)
        values[:, self.ahead] = future.reshape(len(future), -1, values.shape[2])
        return self.model.grid.paste(values) * out.unit

    def _draw(self, window: Tensor) -> Masking:
        """The newest given tokens first, the future right behind the visible ones."""
        missing = self.model.grid.cut(window)[2]
        B, N = missing.shape
        older = ~(self.ahead | self.newest)
        count = max(1, int((~missing & ~self.ahead).sum(1).min()))
        raster = torch.arange(N, device=window.device) / N
        if not self.training:
            noise = (raster + 3 * self.ahead).expand(B, -1)
            return Masking.draw(noise.masked_fill(missing, torch.inf), count)
        newest = int((~missing & self.newest).sum(1).min())
        visible = min(count, max(newest + 1, int(TOKEN_KEEP * count)))
        random = torch.rand(B, N, device=window.device)
        noise = torch.where(older, 1 + random, raster)  # newest < 1, older in 1..2
        noise = torch.where(self.ahead, self._behind(noise, missing | self.ahead, visible), noise)
        if self.model.decoder is not None:
            self.model.decoder.share = (int(self.ahead.sum()) + 0.5) / (N - visible)
        return Masking.draw(noise.masked_fill(missing, torch.inf), visible)

    @staticmethod
    def _behind(noise: Tensor, others: Tensor, visible: int) -> Tensor:
        """Noise [B, 1] between given tokens K and K + 1, so that the future comes right then."""
        order = noise.masked_fill(others, 3.0).sort(1).values
        return (order[:, visible - 1 : visible] + order[:, visible : visible + 1]) / 2


def _readout(width: int, values: int) -> nn.Linear:
    """A last layer whose first forecast is zero, the median."""
    layer = nn.Linear(width, values)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class LSTMForecaster(Forecaster):
    """An LSTM reads what is given, then forecasts step by step from its own output."""

    def __init__(self, parcels: int, horizon: int, width: int = 128):
        super().__init__()
        self.horizon = horizon
        self.cell = nn.LSTM(parcels, width, batch_first=True)
        self.out = _readout(width, parcels)

    def forward(self, past: Tensor) -> Tensor:
        series = past.nan_to_num(0.0).transpose(1, 2)  # [B, G, R]
        hidden, state = self.cell(series)
        steps = [self.out(hidden[:, -1:])]
        while len(steps) < self.horizon:
            hidden, state = self.cell(steps[-1], state)
            steps.append(self.out(hidden))
        return torch.cat(steps, 1).transpose(1, 2)


class _Flow(nn.Module):
    """dz/dt = f(z), integrated by Runge-Kutta 4 with one step per time point."""

    def __init__(self, width: int):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))

    def forward(self, start: Tensor, steps: int) -> Tensor:
        """z [B, D] -> [B, D, steps] at times 1..steps (of the sample period)."""
        from torchdiffeq import odeint

        times = torch.arange(steps + 1, dtype=start.dtype, device=start.device)
        path = odeint(lambda _, z: self.f(z), start, times, method="rk4")
        return path[1:].permute(1, 2, 0)


class NeuralODEForecaster(Forecaster):
    """The state is a projection of the last given moment; it flows on from there."""

    def __init__(self, parcels: int, horizon: int, width: int = 128):
        super().__init__()
        self.horizon = horizon
        self.into, self.flow = nn.Linear(parcels, width), _Flow(width)
        self.out = _readout(width, parcels)

    def forward(self, past: Tensor) -> Tensor:
        path = self.flow(self.into(past[..., -1].nan_to_num(0.0)), self.horizon)
        return self.out(path.transpose(1, 2)).transpose(1, 2)


class LatentODEForecaster(Forecaster):
    """A GRU reads what is given into a normal distribution of states; a draw flows on.

    The mean is used for forecasts. `weight` is that of the divergence from the standard normal
    prior, per forecast value.
    """

    def __init__(self, parcels: int, horizon: int, width: int = 128, weight: float = 1e-3):
        super().__init__()
        self.horizon, self.weight = horizon, weight
        self.read = nn.GRU(parcels, width, batch_first=True)
        self.state, self.flow = nn.Linear(width, 2 * width), _Flow(width)
        self.out = _readout(width, parcels)

    def forward(self, past: Tensor) -> Tensor:
        _, last = self.read(past.nan_to_num(0.0).transpose(1, 2))
        mean, log_variance = self.state(last[0]).chunk(2, -1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)
        self.penalty = self.weight * divergence.mean()
        if self.training:
            mean = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        path = self.flow(mean, self.horizon)
        return self.out(path.transpose(1, 2)).transpose(1, 2)


def forecast_error(forecaster: Forecaster, window: Tensor) -> Tensor:
    """Squared error of the last H points of windows [B, R, T] from the ones before."""
    past, future = window[..., : -forecaster.horizon], window[..., -forecaster.horizon :]
    return squared_error(forecaster(past), future) + forecaster.penalty * forecaster.training
