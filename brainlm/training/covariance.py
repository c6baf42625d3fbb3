"""The predictors of :mod:`brainlm.model.gaussian`, fitted on what a model trains on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ..model.gaussian import Gaussian
from ..model.masking import Masker
from ..shards.moments import Moments
from .distributed import Ranks
from .masked_r2 import MaskedR2
from .windows import Windows

RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3)
WEIGHTS = (25.0, 50.0, 100.0, 200.0, 400.0)
_MOST = 64  # held-out windows that choose


def fit_gaussian(train: Windows, check: Windows, ranks: Ranks) -> Gaussian:
    """Second moments of all training recordings; ridge and weight by masked R² on held-out ones.

    Parameters
    ----------
    train : Windows
    check : Windows
        With a masker: as large a share of its tokens is hidden, at random. Without recordings
        ridge and weight stay the defaults.
    """

    def series() -> Iterator[np.ndarray]:
        for row in train.rows[ranks.rank :: ranks.world]:
            yield train.whole(int(row))

    part = Moments.of(series(), train.series.num_parcels, train.window)
    sums = [ranks.sum(torch.from_numpy(sum_).to(ranks.device)) for sum_ in part.parts]
    moments = Moments(*(sum_.cpu().numpy() for sum_ in sums))
    covariance = torch.from_numpy(moments.covariance())
    lags = torch.from_numpy(moments.autocorrelation())
    fitted = Gaussian(covariance, lags)
    if len(check) and check.masker is not None:
        signal = check.batch([(0, int(row)) for row in check.rows[:_MOST]]).signal
        _choose(fitted, signal, Masker(check.masker.grid, check.masker.ratio))
    return fitted.to(ranks.device)


def _choose(fitted: Gaussian, signal: torch.Tensor, masker: Masker) -> None:
    """Set ridge, then weight, to the best for these windows."""
    grid = masker.grid
    missing = grid.cut(signal)[2]
    noise = torch.rand(missing.shape, generator=torch.Generator().manual_seed(0))
    removed = masker.draw(noise, missing).mask[..., None]
    hidden = grid.paste(removed.expand(-1, -1, grid.values)) | signal.isnan()

    def score(prediction: torch.Tensor) -> float:
        meter = MaskedR2()
        meter.add(signal, hidden & ~signal.isnan(), prediction)
        return meter.result()["r2"] or 0.0

    for knob, values, fill in (
        (fitted.ridge, RIDGES, fitted.fill),
        (fitted.weight, WEIGHTS, fitted.fill_own),
    ):
        scores = []
        for value in values:
            knob.fill_(value)
            scores.append(score(fill(signal, hidden)))
        knob.fill_(values[int(np.argmax(scores))])
