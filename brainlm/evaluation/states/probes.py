"""What a decoder sees of clips, and the probe that learns which tokens to look at."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...config import Finetune
from ...model import BrainLM
from ...model.blocks import PredictionHead
from ...model.own_series import cut_windows
from ...model.pooling import Tokens
from ...training.learner import Trainee
from ...training.loop import keep_best
from ..clinical.baselines import Known, Predictor, balance, prediction_loss, soften
from ..clinical.views import correlate_parcels

HIDDEN, RATE = 256, 1e-3  # units of the MLP; of learning


class AttentiveProbe(nn.Module):
    """One learned query that weighs the tokens of a clip, and a linear read-out.

    It begins with even weights: as a linear probe on the mean token.

    Parameters
    ----------
    mean, std : ndarray [D]
        Of the training tokens, by which tokens are standardised.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: np.ndarray, std: np.ndarray, outputs: int):
        super().__init__()
        width = len(mean)
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).clamp(min=1e-6))
        self.query = nn.Parameter(torch.zeros(width))
        self.readout = nn.Linear(width, outputs)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """Tokens [B, N, D] and which are known [B, N] -> [B, outputs]."""
        values, known = inputs
        x = (values.float() - self.mean) / self.std
        scores = x @ self.query * len(self.query) ** -0.5
        weights = scores.masked_fill(~known, -torch.inf).softmax(1)
        return self.readout((weights[..., None] * x).sum(1))


class TokenStore:
    """Tokens of clips in float16, in a file without a name: all of them may not fit memory.

    Parameters
    ----------
    folder : Path
        Where the file is; it goes when the store does.
    """

    def __init__(self, folder: Path, count: int):
        self._folder, self._count, self._filled = folder, count, 0
        self.values: np.ndarray = np.empty(0)  # [S, N, D]
        self.known: np.ndarray = np.empty(0)  # [S, N]

    def add(self, tokens: Tokens) -> None:
        values = tokens.values.half().cpu().numpy()
        if not self._filled:
            self._folder.mkdir(parents=True, exist_ok=True)
            shape = (self._count, *values.shape[1:])
            with tempfile.TemporaryFile(dir=self._folder) as file:
                self.values = np.memmap(file, np.float16, "w+", shape=shape)
            self.known = np.zeros(shape[:2], bool)
        span = slice(self._filled, self._filled + len(values))
        self.values[span], self.known[span] = values, tokens.known.cpu().numpy()
        self._filled = span.stop

    def take(self, which: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
        values = torch.from_numpy(np.ascontiguousarray(self.values[which]))
        return values.to(device), torch.from_numpy(self.known[which]).to(device)

    def moments(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation [D] over the known tokens of clips."""
        total, squares, count = np.zeros(self.values.shape[2]), np.zeros(self.values.shape[2]), 0
        for clip in which:
            x = self.values[clip][self.known[clip]].astype(np.float64)
            total, squares, count = total + x.sum(0), squares + (x * x).sum(0), count + len(x)
        mean = total / max(count, 1)
        return mean, np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 0))


def fit_attentive(store: TokenStore, known: Known, options: Finetune, device: torch.device):
    """Train a probe; the features of `known` are places in the store.

    Returns
    -------
    callable
        Tokens -> scores [B, C].
    """
    torch.manual_seed(known.seed)
    net = AttentiveProbe(*store.moments(known.train), known.classes).to(device)
    _train(net, lambda places: store.take(places, device), known, options, device)

    def score(tokens: Tokens) -> np.ndarray:
        with torch.inference_mode():
            logits = net.eval()((tokens.values.half(), tokens.known))
        return balance(logits.softmax(1).cpu().numpy(), known.y)

    return score


def fit_mlp(known: Known, options: Finetune, device: torch.device) -> Predictor:
    """The model's three-layer head on features [S, F]; missing values count as the mean."""
    seen = np.isfinite(known.train)
    mean = np.where(seen, known.train, 0).sum(0) / np.maximum(seen.sum(0), 1)
    spread = float(known.train[seen].std()) or 1.0

    def ready(features: np.ndarray) -> Tensor:
        return torch.from_numpy(np.nan_to_num((features - mean) / spread)).float().to(device)

    torch.manual_seed(known.seed)
    net = PredictionHead(known.train.shape[1], HIDDEN, known.classes).to(device)
    _train(net, ready, known, options, device)

    def score(features: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return balance(soften(net(ready(features)).cpu().numpy()), known.y)

    return score


def _train(net: nn.Module, ready: Callable, known: Known, options: Finetune,
           device: torch.device) -> None:  # fmt: skip
    """Leave `net` with its best weights; `ready` makes its input of some rows of `known`."""
    random = np.random.default_rng(known.seed)
    target = torch.tensor(known.y, device=device)

    def losses(epoch: int) -> Iterator[Tensor]:
        batches = -(-len(known.y) // options.batch_size)
        for some in np.array_split(random.permutation(len(known.y)), batches):
            yield nn.functional.cross_entropy(net(ready(known.train[some])), target[some])

    @torch.inference_mode()
    def validate() -> float | None:
        if not len(known.y_validation):
            return None
        net.eval()
        batches = -(-len(known.y_validation) // options.batch_size)
        parts = np.array_split(known.validation, batches)
        out = np.concatenate([net(ready(part)).cpu().numpy() for part in parts])
        return prediction_loss(balance(soften(out), known.y), known.y_validation, known.classes)

    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.05)
    keep_best(Trainee(net, optimizer), RATE, options.epochs, losses, validate)


def describe_clips(clips: list[np.ndarray], points: int) -> dict[str, np.ndarray]:
    """What needs no model: features [K, F] of clips [P, R], NaN where there is no data."""
    raw = np.full((len(clips), points, clips[0].shape[1]), np.nan, np.float32)
    for row, clip in zip(raw, clips, strict=True):
        row[: len(clip)] = clip
    known = np.isfinite(raw)
    with np.errstate(invalid="ignore"):
        pattern = np.where(known, raw, 0).sum(1) / known.sum(1)  # 0 / 0: a parcel without data
    return {
        "pattern": pattern,
        "connectivity": np.stack([correlate_parcels(clip) for clip in clips]),
        "raw": raw.reshape(len(raw), -1),
    }


def encode_clips(model: BrainLM, clips: list[np.ndarray]) -> Tokens:
    """Tokens of clips, each at the start of a window whose rest is missing."""
    windows = [cut_windows(model, clip, count=1, short="pad")[0] for clip in clips]
    return model.tokens(torch.cat(windows).float().to(model.cls_token.device))
