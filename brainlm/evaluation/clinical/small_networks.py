"""Small networks that a transformer has to beat: MLP on features; LSTM and GCN on the series.

The same people, windows, budget and early stopping as fine-tuning: at most ``Finetune.epochs``
passes, one random window of each recording a pass, the weights of the best validation loss kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...config import Finetune
from ...model.blocks import PredictionHead
from ...training.device import get_device
from ...training.windows import Windows
from .baselines import Known, Predictor, balance, prediction_loss, soften
from .views import WINDOWS

PATIENCE = 8
WIDTH = 64
_RATE, _DECAY = 1e-3, 0.05


class LSTM(nn.Module):
    """One layer over time, the states averaged; three-layer head."""

    def __init__(self, parcels: int, window: int, outputs: int):
        super().__init__()
        self.lstm = nn.LSTM(parcels, WIDTH, batch_first=True)
        self.head = PredictionHead(WIDTH, WIDTH // 2, outputs)

    def forward(self, signal: Tensor) -> Tensor:
        """[B, R, T] -> [B, outputs]."""
        states, _ = self.lstm(signal.transpose(1, 2))
        return self.head(states.mean(1))


class GCN(nn.Module):
    """Two graph convolutions (Kipf & Welling, ICLR 2017) on the window's own correlations.

    Nodes are parcels, their features the series; an edge is one of the strongest tenth of the
    window's correlations, dense, with self-loops and symmetric normalisation.
    """

    def __init__(self, parcels: int, window: int, outputs: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(window, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.head = PredictionHead(WIDTH, WIDTH // 2, outputs)

    def forward(self, signal: Tensor) -> Tensor:
        """[B, R, T] -> [B, outputs]."""
        graph, x = correlation_graph(signal), signal
        for layer in self.layers:
            x = F.relu(graph @ layer(x))
        return self.head(x.mean(1))


def correlation_graph(signal: Tensor, share: float = 0.1) -> Tensor:
    """[B, R, T] -> normalised adjacency [B, R, R] of the strongest `share` of correlations."""
    unit = F.normalize(signal - signal.mean(-1, keepdim=True), dim=-1)
    r = unit @ unit.transpose(1, 2)
    r = r - torch.diag_embed(r.diagonal(dim1=1, dim2=2))
    cut = r.flatten(1).quantile(1 - share, dim=1)[:, None, None]
    edges = (r > cut).float() + torch.eye(r.shape[1], device=r.device)
    root = edges.sum(-1).rsqrt()
    return edges * root[:, :, None] * root[:, None, :]


def fit_mlp(known: Known, options: Finetune) -> Predictor:
    """The model's three-layer head on features [S, F]; missing values count as the mean."""
    mean, spread = np.nanmean(known.train, 0), float(np.nanstd(known.train)) or 1.0

    def ready(features: np.ndarray) -> Tensor:
        return torch.from_numpy(np.nan_to_num((features - mean) / spread)).float()

    torch.manual_seed(known.seed)
    width = known.train.shape[1]
    net = PredictionHead(width, width // 2, max(1, known.classes))
    inputs = ready(known.train)
    random = np.random.default_rng(known.seed)

    def batches(epoch: int) -> Iterator[tuple[Tensor, np.ndarray]]:
        order = random.permutation(len(inputs))
        for first in range(0, len(order), options.batch_size):
            some = order[first : first + options.batch_size]
            yield inputs[some], some

    def predict(features: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return net.eval()(ready(features)).numpy()

    return _train(net, batches, predict, known, options)


def fit_series(
    kind: type[nn.Module], known: Known, windows: Windows, options: Finetune
) -> Predictor:
    """`kind` on windows; the features of `known` are rows of the corpus, an array per person."""
    torch.manual_seed(known.seed)
    device = get_device()
    net = kind(windows.series.num_parcels, windows.window, max(1, known.classes)).to(device)
    random = np.random.default_rng(known.seed)
    person = np.repeat(np.arange(len(known.train)), [len(rows) for rows in known.train])
    recordings = np.concatenate(list(known.train))

    def batches(epoch: int) -> Iterator[tuple[Tensor, np.ndarray]]:
        order = random.permutation(len(recordings))
        for first in range(0, len(order), options.batch_size):
            some = order[first : first + options.batch_size]
            picks = [(epoch, int(row)) for row in recordings[some]]
            yield windows.batch(picks).signal.nan_to_num(0.0).to(device), person[some]

    def predict(rows: np.ndarray) -> np.ndarray:
        out = []
        with torch.inference_mode():
            for some in rows:
                signal = torch.cat([windows.even(int(row), WINDOWS) for row in some])
                out.append(net.eval()(signal.nan_to_num(0.0).to(device)).mean(0).cpu().numpy())
        return np.stack(out)

    return _train(net, batches, predict, known, options)


def _train(net: nn.Module, batches: Callable, predict: Callable, known: Known,
           options: Finetune) -> Predictor:  # fmt: skip
    """Epochs until the validation loss stops falling; a predictor with the best weights."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY)
    device = next(net.parameters()).device
    target = torch.from_numpy(known.y.copy()).to(device)
    shift, scale = (0.0, 1.0) if known.classes else (known.y.mean(), known.y.std() or 1.0)

    def decode(features) -> np.ndarray:
        output = predict(features)
        if not known.classes:
            return output[:, 0] * scale + shift
        return balance(soften(output), known.y)

    best, best_epoch, kept = np.inf, 0, {k: v.clone() for k, v in net.state_dict().items()}
    for epoch in range(options.epochs):
        net.train()
        for inputs, some in batches(epoch):
            y = target[torch.from_numpy(some)]
            output = net(inputs)
            if known.classes:
                loss = F.cross_entropy(output, y.long())
            else:
                loss = F.mse_loss(output[:, 0], ((y - shift) / scale).float())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        if not len(known.y_validation):
            best_epoch = epoch
            continue
        held_out = prediction_loss(decode(known.validation), known.y_validation, known.classes)
        if held_out < best:
            best, best_epoch = held_out, epoch
            kept = {k: v.clone() for k, v in net.state_dict().items()}
        elif epoch - best_epoch >= PATIENCE:
            break
    if len(known.y_validation):
        net.load_state_dict(kept)
    return decode
