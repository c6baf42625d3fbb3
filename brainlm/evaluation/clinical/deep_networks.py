"""Deep networks of others that the transformer has to beat, from ``ml4fmri``.

The same participants, windows, budget and early stopping as fine-tuning: at most
``Finetune.epochs`` passes, one random window of each recording a pass, the weights of the best
validation loss kept.
Missing values are 0, the scaled median. Each is fitted at its authors' learning rate, meant for
hundreds of passes, and at :data:`RATE`; validation participants decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...config import Finetune
from ...training.device import get_device
from ...training.learner import Trainee
from ...training.loop import Fitted, best_of, keep_best
from ...training.windows import Windows
from .baselines import Known, Predictor, balance, prediction_loss, soften
from .views import WINDOWS

#: Networks that read a window's correlations; the others read the window.
OF_CORRELATIONS = ("BrainNetCNN", "BNT")
RATE = 1e-3


def fit_network(name: str, known: Known, windows: Windows, options: Finetune) -> Predictor:
    """A network of ml4fmri on windows; the features of `known` are rows of the corpus, an array
    per participant."""
    import ml4fmri.models

    kind = getattr(ml4fmri.models, name)
    build = partial(kind, windows.series.num_parcels, max(1, known.classes))
    device = get_device()
    subject = np.repeat(np.arange(len(known.train)), [len(rows) for rows in known.train])
    recordings = np.concatenate(list(known.train))
    shift, scale = (0.0, 1.0) if known.classes else (known.y.mean(), known.y.std() or 1.0)
    target = torch.from_numpy((known.y - shift) / scale).float().to(device)

    def look(signal: Tensor) -> Tensor:
        signal = signal.to(device)
        if name in OF_CORRELATIONS:
            return correlations(signal)
        return signal.nan_to_num(0.0).transpose(1, 2)

    @torch.inference_mode()
    def predict(net: nn.Module, rows: np.ndarray) -> np.ndarray:
        net.eval()
        signals = (torch.cat([windows.even(int(r), WINDOWS) for r in some]) for some in rows)
        out = np.stack([net(look(signal))[0].mean(0).cpu().numpy() for signal in signals])
        return balance(soften(out), known.y) if known.classes else out[:, 0] * scale + shift

    def train_at(rate: float) -> Fitted:
        torch.manual_seed(known.seed)
        random = np.random.default_rng(known.seed)
        net = build().to(device)

        def losses(epoch: int) -> Iterator[Tensor]:
            batches = -(-len(recordings) // options.batch_size)
            for some in np.array_split(random.permutation(len(recordings)), batches):
                picks = [(epoch, int(row)) for row in recordings[some]]
                output, parts = net(look(windows.batch(picks).signal))
                y = target[torch.from_numpy(subject[some])]
                if known.classes:
                    yield net.compute_loss(parts, y.long())[0]
                else:
                    yield F.mse_loss(output[:, 0], y)

        def validate() -> float | None:
            if not len(known.y_validation):
                return None
            guess = predict(net, known.validation)
            return prediction_loss(guess, known.y_validation, known.classes)

        trainee = Trainee(net, net.get_optimizer(rate))
        return keep_best(trainee, rate, options.epochs, losses, validate)

    rates = (build().lr, RATE) if len(known.y_validation) else (RATE,)
    return partial(predict, best_of(rates, train_at).network)


def correlations(signal: Tensor) -> Tensor:
    """[B, R, T] -> [B, R, R] over known time; 0 where a parcel is missing or constant."""
    unit = F.normalize((signal - signal.nanmean(-1, keepdim=True)).nan_to_num(0.0), dim=-1)
    return unit @ unit.transpose(1, 2)
