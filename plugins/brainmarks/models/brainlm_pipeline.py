"""Any model folder of this pipeline in Brainmarks, the public benchmark of fMRI models.

Brainmarks finds this file by its place (a namespace package)::

    python -m brainmarks.main_logistic brainlm_pipeline cls abide_dx \\
        --overrides model_kwargs.model=results/models/r1/pretrain device=cpu

Without ``model`` the folder is taken from the environment's ``BRAINLM_MODEL``.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from brainmarks.models.base import Embeddings
from brainmarks.models.registry import register_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from brainlm.errors import BrainLMError
from brainlm.model import BrainLM, from_pretrained, make_windows
from brainlm.model.pooling import Tokens, check_pool, summarise_tokens
from brainlm.shards import ParcelQuantiles, Scaling


class Windows:
    """From a sample of Brainmarks to windows of the model, on the door that our own series take.

    Parameters
    ----------
    model : BrainLM
    refit : bool
        Fit the scaling on the benchmark's training set, for series in other units than the
        model was trained on (of another pipeline, or surface averages).
    """

    def __init__(self, model: BrainLM, refit: bool):
        self.model, self.refit = model, refit

    def fit(self, train_dataset: Iterable[dict]) -> None:
        """Median and IQR per parcel of the training samples, where they are asked for."""
        if not self.refit:
            return
        own = self.model.scaling
        assert own is not None
        series = [_series(sample) - sample["mean"].numpy() for sample in train_dataset]
        statistics = ParcelQuantiles.of(series, own.num_parcels)
        self.model.scaling = Scaling.fit(
            statistics, atlas=own.atlas, atlas_sha256=own.atlas_sha256,
            sample_period_s=own.sample_period_s, units="as delivered", release="brainmarks",
        )  # fmt: skip

    def __call__(self, sample: dict) -> dict:
        """``bold`` [T, R] (z scores), ``mean`` and ``std`` [1, R], ``tr`` s -> windows [K, R, T].

        As few as cover the whole clip, evenly spread, so that they may overlap. A clip that is
        shorter than a window is padded with missing values.
        """
        values, scaling = _series(sample), self.model.scaling
        assert scaling is not None
        # no image is as dark as its noise
        raw_means = bool((sample["mean"] > sample["std"]).all())
        units = "scanner" if scaling.units == "percent" and raw_means else None
        tr_s, lasts_s = float(sample["tr"]), self.model.config.window * scaling.sample_period_s
        count = max(1, math.ceil(len(values) * tr_s / lasts_s - 1e-6))
        windows = make_windows(
            self.model, values, tr_s=tr_s, units=units, short="pad", count=count
        )
        kept = {k: v for k, v in sample.items() if k not in ("bold", "mean", "std", "tr")}
        return {**kept, "windows": windows}


def _series(sample: dict) -> np.ndarray:
    return (sample["bold"] * sample["std"] + sample["mean"]).double().numpy()


class Encoder(nn.Module):
    """The frozen encoder as Brainmarks calls it.

    ``cls`` is the model's pooled window (`pool`), the mean over a recording's windows; ``patch``
    are its tokens, those without data as zeros. With `kept`, a folder, tokens that were made once
    are read from there: the benchmark encodes the same recordings for each of its tasks.
    """

    def __init__(self, model: BrainLM, pool: str, space: str, kept: Path | None = None):
        super().__init__()
        self.model, self.pool, self.__space__, self.kept = model, pool, space, kept

    def forward(self, batch: dict[str, Tensor]) -> Embeddings:
        windows: Tensor = batch["windows"]  # [B, K, R, T]
        B, K = windows.shape[:2]
        tokens = self._encode(windows.flatten(0, 1))
        pooled = summarise_tokens(tokens, self.pool, self.model.components)
        pooled = pooled.unflatten(0, (B, K)).nan_to_num().mean(1, keepdim=True)
        return Embeddings(pooled, None, tokens.values.unflatten(0, (B, K)).flatten(1, 2))

    def _encode(self, windows: Tensor) -> Tokens:
        if self.kept is None:
            return self.model.tokens(windows)
        digest = hashlib.sha256(windows.cpu().numpy().tobytes()).hexdigest()
        path = self.kept / f"{digest}.safetensors"
        if not path.exists():
            made = self.model.tokens(windows)._asdict()
            save_file({name: value.contiguous() for name, value in made.items()}, path)
        return Tokens(**load_file(path))


@register_model
def brainlm_pipeline(
    model: str | None = None,
    pool: str = "mean",
    space: str | None = None,
    untrained: bool = False,
    refit_scaling: bool = False,
    seed: int = 0,
    kept: str | None = None,
) -> tuple[Windows, Encoder]:
    """A model folder of ours, or with `untrained` the same network as it was initialised.

    Raises
    ------
    BrainLMError
        No folder is named, or it cannot be opened.
    """
    folder = model or os.environ.get("BRAINLM_MODEL")
    if not folder:
        raise BrainLMError("name a model folder: model_kwargs.model=PATH, or BRAINLM_MODEL")
    opened = from_pretrained(folder)
    if untrained:
        torch.manual_seed(seed)
        places = opened.coordinates if opened.config.has_coordinates else None
        fresh = BrainLM(replace(opened.config), places).eval()
        fresh.scaling = opened.scaling
        opened = fresh
    check_pool(opened.config, pool)
    encoder = Encoder(opened, pool, space or _space(opened), Path(kept) if kept else None)
    return Windows(opened, refit_scaling), encoder


@register_model
def connectome_pipeline(space: str) -> nn.Module:
    """Brainmarks' own baseline, in any space: here those that it has no name for."""
    from brainmarks.models.connectome import Connectome

    connectome = Connectome()
    connectome.__space__ = space
    return connectome


def _space(model: BrainLM) -> str:
    assert model.scaling is not None
    return model.scaling.atlas
