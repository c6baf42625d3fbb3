"""Any model folder of this pipeline in Brainmarks, the public benchmark of fMRI models.

Brainmarks finds this file by its place (a namespace package)::

    python -m brainmarks.main_logistic brainlm_pipeline cls abide_dx \\
        --overrides model_kwargs.model=results/models/r1/pretrain device=cpu

Without ``model`` the folder is taken from the environment's ``BRAINLM_MODEL``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from brainmarks.models.base import Embeddings
from brainmarks.models.registry import register_model
from torch import Tensor, nn

from brainlm.errors import BrainLMError
from brainlm.model import BrainLM, from_pretrained, make_windows
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

        A clip that is shorter than a window is padded with missing values.
        """
        values, scaling = _series(sample), self.model.scaling
        assert scaling is not None
        raw_means = bool(
            (sample["mean"] > sample["std"]).all()
        )  # no image is as dark as its noise
        units = "scanner" if scaling.units == "percent" and raw_means else None
        windows = make_windows(
            self.model, values, tr_s=float(sample["tr"]), units=units, short="pad"
        )
        kept = {k: v for k, v in sample.items() if k not in ("bold", "mean", "std", "tr")}
        return {**kept, "windows": windows}


def _series(sample: dict) -> np.ndarray:
    return (sample["bold"] * sample["std"] + sample["mean"]).double().numpy()


class Encoder(nn.Module):
    """The frozen encoder as Brainmarks calls it.

    ``cls`` is the model's pooled window (`pool`), the mean over a recording's windows; ``patch``
    are its tokens, those without data as zeros.
    """

    def __init__(self, model: BrainLM, pool: str, space: str):
        super().__init__()
        self.model, self.pool, self.__space__ = model, pool, space

    def forward(self, batch: dict[str, Tensor]) -> Embeddings:
        windows: Tensor = batch["windows"]  # [B, K, R, T]
        B, K = windows.shape[:2]
        pooled = self.model.embed(windows.flatten(0, 1), self.pool).unflatten(0, (B, K))
        tokens = self.model.tokens(windows.flatten(0, 1)).values.unflatten(0, (B, K))
        return Embeddings(pooled.nan_to_num().mean(1, keepdim=True), None, tokens.flatten(1, 2))


@register_model
def brainlm_pipeline(
    model: str | None = None,
    pool: str = "mean",
    space: str | None = None,
    untrained: bool = False,
    refit_scaling: bool = False,
    seed: int = 0,
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
    return Windows(opened, refit_scaling), Encoder(opened, pool, space or _space(opened))


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
