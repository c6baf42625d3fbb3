"""BrainLM: a masked autoencoder of brain activity.

Reference: Ortega Caro et al., "BrainLM: A foundation model for brain activity recordings",
ICLR 2024, section 3; masked autoencoders: He et al., CVPR 2022.

Legend: B batch, R parcels, T time points, P values per token, N tokens, K visible tokens, D width.
A window of scaled series [B, R, T] is cut into tokens, most tokens are removed, the encoder sees
the rest (and CLS), the decoder predicts the removed ones from them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import BrainLMError
from ..shards.scaling import Scaling
from .blocks import PredictionHead
from .decoder import Decoder, stack
from .gaussian import decompose
from .grids import ParcelPositions, token_grid
from .hub import Shared
from .masking import Masker, Masking, keep_steps, keep_tokens, raster_noise, take
from .pooling import Tokens, check_pool, summarise_tokens, summary_width
from .prediction import Prediction, decode_outputs
from .shape import BrainLMConfig

#: smallest root mean square of a window, in scaled units: one without any signal stays near zero
_SMALLEST = 1e-2


@dataclass
class MaskedReconstruction:
    """What one forward pass gives.

    Attributes
    ----------
    loss : Tensor []
        ``error_sum / count``: mean over all removed, known values of the batch; 0 if there are
        none (mask_ratio 0).
    error_sum, count : Tensor []
        Its two halves, so that batches can be pooled exactly.
    prediction : Tensor [B, R, T]
    mask : Tensor [B, N] bool
        True (1) = token removed. Missing tokens are removed too.
    pixel_mask : Tensor [B, R, T] bool
        True where the loss looks: removed, and known.
    latent : Tensor [B, 1 + K, D]
        Encoder output, CLS first, visible tokens in the order of `masking`.
    unit : Tensor [B, 1, 1]
        What the windows were divided by: the unit of what the network sees and says.
    """

    loss: Tensor
    error_sum: Tensor
    count: Tensor
    prediction: Tensor
    mask: Tensor
    pixel_mask: Tensor
    latent: Tensor
    masking: Masking
    unit: Tensor


class BrainLM(Shared):
    """The masked autoencoder of both families.

    Parameters
    ----------
    config : BrainLMConfig
    coordinates : array [R, 3], optional
        MNI mm of the parcels; required if ``config.has_coordinates``.

    Attributes
    ----------
    scaling : Scaling or None
        The artefact that makes this model's input, set by :func:`from_pretrained`.
    matmul_dtype : torch.dtype
        What matrix products are computed in; weights, sums and the loss stay as they are.
    is_compiled : bool
        Whether its blocks are.
    """

    def __init__(self, config: BrainLMConfig, coordinates=None):
        super().__init__()
        _check(config, coordinates)
        self.config = config
        self.scaling: Scaling | None = None
        self.matmul_dtype, self.is_compiled = torch.float32, False
        points = torch.zeros(0, 3) if coordinates is None else torch.as_tensor(coordinates)
        self.register_buffer("coordinates", points.float().clone())
        components = torch.eye(config.num_parcels, config.num_components)
        self.register_buffer("components", components, persistent=config.components > 0)
        self.grid = token_grid(config, points)
        self.num_tokens = self.grid.num_tokens
        self.project = nn.Linear(self.grid.values, config.width)
        self.positions = self.grid.positions(config, config.width)
        self.dropout = nn.Dropout(config.position_dropout)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.encoder = stack(config, config.width, config.depth, config.heads, config.ffn)
        self.encoder_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.decoder = None
        if config.decoder_depth:
            self.decoder = Decoder(config, self.grid)
        self.head = None
        if config.head_outputs:
            width = summary_width(config, config.pool)
            self.head = PredictionHead(width, config.width // 2, config.head_outputs,
                                       config.head_dropout, linear=True)  # fmt: skip
        self.apply(self._initialise)
        if config.fourier_places and config.family == "parcel":
            for block in self.blocks():
                block.attention.start_alike()
        if config.zero_last and self.decoder is not None:
            nn.init.zeros_(self.decoder.predict.weight)
        nn.init.normal_(self.cls_token, std=config.init_std)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, self.grid.positions):
            module.start(self.config.init_std)

    def start_parcels(self, covariance: Tensor) -> None:
        """Begin with what moves together [R, R]: see :class:`~.grids.ParcelPositions`; its
        leading eigenvectors are the components of :mod:`~.pooling`."""
        self.components.copy_(decompose(covariance)[1][:, : self.config.num_components])
        for module in self.modules():
            if isinstance(module, ParcelPositions):
                module.start_parcels(covariance)

    def forward(self, signal: Tensor, masking: Masking | None = None, *,
                mask_ratio: float | None = None, mask: str = "random",
                noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> MaskedReconstruction:  # fmt: skip
        """Remove tokens, encode the rest, predict the removed ones.

        Parameters
        ----------
        signal : Tensor [B, R, T] float32
            Scaled series, NaN without data: such values never count in the loss, and a token
            with less than half of its time points never reaches the encoder (grids.py).
        masking : Masking, optional
            A draw for these windows; the other parameters make one where it is not given, which
            waits for the device that `signal` is on.
        mask_ratio : float, optional
            Share of tokens removed (``random``) or of time points (``future``).
        mask : str
            ``random``; ``future``: the last ``mask_ratio * T`` time points, rounded up to whole
            tokens; ``future-exact``: only tokens wholly inside those time points are removed,
            the other points to predict are set to 0, and exactly they count in the loss.
        noise : Tensor [B, N], optional
            Tokens of smallest noise stay visible; drawn from `generator` if not given.
        """
        patches, known, missing = self._cut(signal)
        if masking is None:
            ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
            masking = self._draw(Masker(self.grid, ratio, mask), missing, noise, generator)
        shown, target = patches, masking.mask[..., None]
        if masking.values is not None:
            target = masking.values
            shown = patches.masked_fill(target, 0.0)
        gain = self._gain(patches, known & ~(target | masking.mask[..., None]))
        with self.at_work():
            latent = self.encode(shown / gain, masking)
            predicted, decoded = self.require_decoder()(latent, masking, self.coordinates)
        hidden = target & known & decoded
        return self._compare(patches / gain, predicted, hidden, masking, latent, gain)

    def _gain(self, patches: Tensor, seen: Tensor) -> Tensor:
        """[B, 1, 1] root mean square of the values `seen` [B, N, P]; 1 without `config.gain`."""
        if not self.config.gain:
            return patches.new_ones(len(patches), 1, 1)
        squares = patches.square().mul(seen).sum((1, 2)) / seen.sum((1, 2)).clamp(min=1)
        return squares.sqrt().clamp(min=_SMALLEST)[:, None, None]

    def _cut(self, signal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patches [B, N, P], known [B, N, P], missing [B, N] of windows [B, R, T]."""
        wanted = [self.config.num_parcels, self.config.window]
        if signal.ndim != 3 or list(signal.shape[1:]) != wanted:
            raise BrainLMError(
                f"expected windows [B, {wanted[0]} parcels, {wanted[1]} time points], found "
                f"{list(signal.shape)}; make_windows(model, series, tr_s=...) makes them"
            )
        return self.grid.cut(signal / self.config.divisor)

    @staticmethod
    def _draw(masker: Masker, missing: Tensor, noise: Tensor | None, generator) -> Masking:
        if noise is None and masker.mask == "random":
            noise = torch.rand(missing.shape, device=missing.device, generator=generator)
        elif noise is None:
            noise = raster_noise(missing)
        return masker.draw(noise, missing)

    def encode(self, patches: Tensor, masking: Masking) -> Tensor:
        """[B, N, P] -> latent [B, 1 + K, D], CLS first."""
        tokens = self.project(masking.keep(patches).to(self.project.weight.dtype))
        places = take(self.positions(self.coordinates), masking.ids_keep)
        tokens = self.dropout(tokens + places)
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        for block in self.encoder:
            x = block(x)
        return self.encoder_norm(x)

    def _compare(self, patches, predicted, hidden, masking, latent, gain) -> MaskedReconstruction:
        error = predicted.float() - patches
        error = error.abs() if self.config.loss == "mae" else error.square()
        unit = gain * self.config.divisor
        error_sum, count = error.mul(hidden).sum(), hidden.sum()
        return MaskedReconstruction(
            loss=error_sum / count.clamp(min=1),
            error_sum=error_sum,
            count=count,
            prediction=self.grid.paste(predicted) * unit,
            mask=masking.mask,
            pixel_mask=self.grid.paste(hidden),
            latent=latent,
            masking=masking,
            unit=unit,
        )

    def at_work(self) -> contextlib.AbstractContextManager:
        """What forward passes run in: autocast to `matmul_dtype`, where that is not float32."""
        if self.matmul_dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.cls_token.device.type, self.matmul_dtype)

    def blocks(self) -> list[nn.Module]:
        """All transformer blocks, of the encoder and of the decoder if there is one."""
        return [*self.encoder, *(self.decoder.blocks if self.decoder else ())]

    def require_decoder(self) -> Decoder:
        """The decoder; an error of a model that has none."""
        if self.decoder is None:
            raise BrainLMError("this model has no decoder (it was fine-tuned): it predicts "
                               "labels and embeds, but does not reconstruct")  # fmt: skip
        return self.decoder

    @torch.no_grad()
    def tokens(self, signal: Tensor) -> Tokens:
        """Encode everything that is known of windows [B, R, T]: deterministic, in raster order.

        No token is masked, and the model is in evaluation mode. Missing tokens are left out, so
        that what is made of a window does not depend on the others of its batch.
        """
        with self._evaluating():
            patches, known, missing = self._cut(signal.to(self.cls_token.device))
            return self._encode(patches, known, ~missing)

    @torch.no_grad()
    def embed(self, signal: Tensor, pool: str = "cls") -> Tensor:
        """Summary [B, F] of the :meth:`tokens` of windows [B, R, T].

        Parameters
        ----------
        pool : str
            One of :data:`brainlm.model.pooling.POOLS`.
        """
        check_pool(self.config, pool)
        return summarise_tokens(self.tokens(signal), pool, self.components)

    def summarise(self, signal: Tensor, pool: str, noise: Tensor, mask_ratio: float) -> Tensor:
        """As :meth:`embed`, differentiable, in the current mode, of some of the tokens.

        Parameters
        ----------
        noise : Tensor [B, N]
            Known tokens of smallest noise stay.
        mask_ratio : float
            Share of the known tokens left out; of ``connectivity`` and ``components``, which
            compare parcels over the same time, whole time steps.
        """
        check_pool(self.config, pool)
        patches, known, missing = self._cut(signal)
        R = self.config.num_parcels
        if pool in ("connectivity", "components"):
            shown = keep_steps(~missing, noise, 1 - mask_ratio, R)
        else:
            shown = keep_tokens(~missing, noise, 1 - mask_ratio)
        return summarise_tokens(self._encode(patches, known, shown), pool, self.components)

    def _encode(self, patches: Tensor, known: Tensor, shown: Tensor) -> Tokens:
        """The tokens `shown` [B, N], samples that have equally many together."""
        patches = patches / self._gain(patches, known & shown[..., None])
        counts, N = shown.sum(1), self.num_tokens
        values, cls, places = [], [], []
        for count in counts.unique().tolist():
            rows = (counts == count).nonzero()[:, 0]
            masking = Masking.show(shown[rows], count)
            with self.at_work():
                latent = self.encode(patches[rows], masking)
            ids = masking.ids_keep[..., None].expand(-1, -1, latent.shape[2])
            empty = latent.new_zeros(len(rows), N, latent.shape[2])
            values.append(empty.scatter(1, ids, latent[:, 1:]) if count < N else latent[:, 1:])
            cls.append(latent[:, 0])
            places.append(rows)
        order = torch.cat(places).argsort()
        return Tokens(torch.cat(values)[order], shown, torch.cat(cls)[order])

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    @torch.no_grad()
    def predict(self, signal: Tensor) -> Prediction:
        """What a fine-tuned model says of each window [B, R, T].

        Probabilities of the classes by name, or a value in the label's units.

        Raises
        ------
        BrainLMError
            The model was not fine-tuned.
        """
        if self.head is None:
            raise BrainLMError("this model has no head; fine-tune it first (brainlm finetune)")
        with self._evaluating():
            return decode_outputs(self.config, self.head(self.embed(signal, self.config.pool)))

    def on_atlas(self, coordinates, scaling: Scaling) -> BrainLM:
        """The same weights for the parcels of another atlas, which it knows by their places.

        Parameters
        ----------
        coordinates : array [R, 3]
            MNI mm of the other atlas's parcels.
        scaling : Scaling
            Of series of that atlas; of the same sample period as the model's own.

        Raises
        ------
        BrainLMError
            A model that knows parcels by more than their places (learned identities, an image, a
            head on pairs of parcels), or another sample period.
        """
        c, own = self.config, self.scaling
        if c.family != "parcel" or not c.has_coordinates or c.learned_parcels:
            raise BrainLMError(
                "this model knows the parcels of its own atlas only; one that takes any atlas "
                "with coordinates is trained with model: {learned_parcels: false}"
            )
        if self.head is not None and c.pool == "connectivity":
            raise BrainLMError("the head of this model reads pairs of its own atlas's parcels; "
                               "fine-tune with finetune: {pool: mean}")  # fmt: skip
        if own is not None and own.sample_period_s != scaling.sample_period_s:
            raise BrainLMError(
                f"the scaling is of series sampled every {scaling.sample_period_s:g} s, the model "
                f"of {own.sample_period_s:g} s"
            )
        points = torch.as_tensor(coordinates).float()
        model = type(self)(replace(c, num_parcels=len(points), components=0), points)
        kept = {k: v for k, v in self.state_dict().items() if k != "components"}
        model.load_state_dict(kept | {"coordinates": points})
        model.scaling = scaling
        return model.to(self.coordinates.device).train(self.training)

    def flops_per_window(self, mask_ratio: float) -> float:
        """Multiply-adds × 2 of a forward pass on a window in training (matrix products only)."""
        c, N = self.config, self.num_tokens
        K = int(N * (1 - mask_ratio)) + 1
        total, decoded = _flops(c.depth, K, K, c.width, c.ffn), N
        if c.decoder_depth:
            seen = N + 1
            if c.decoder_context == "visible":
                seen, decoded = K, int(K + c.decode_share * (N + 1 - K)) - 1
            total += _flops(c.decoder_depth, decoded + 1, seen, c.decoder_width, c.decoder_ffn)
        return total + 2 * self.grid.values * (K * c.width + decoded * c.decoder_width)


def _flops(depth: int, tokens: int, context: int, width: int, ffn: int) -> float:
    linear = tokens * width * (4 * width + 2 * ffn)
    return 2.0 * depth * (linear + 2 * tokens * context * width)


def _check(config: BrainLMConfig, coordinates) -> None:
    if config.family == "parcel" and config.window % config.patch:
        raise BrainLMError(
            f"window ({config.window}) must be a multiple of patch ({config.patch}) time points"
        )
    size = (config.num_parcels, config.window)
    if config.image_size and any(a > b for a, b in zip(size, config.image_size, strict=True)):
        raise BrainLMError(f"window of {size[0]} parcels × {size[1]} time points: the image has "
                           f"{config.image_size[0]} × {config.image_size[1]}")  # fmt: skip
    found = None if coordinates is None else tuple(coordinates.shape)
    wanted = (config.num_parcels, 3) if config.has_coordinates else None
    if found != wanted:
        raise BrainLMError(f"coordinates: expected {wanted or 'none'}, found {found or 'none'}")
    if coordinates is not None and not math.isfinite(
        float(torch.as_tensor(coordinates, device="cpu").sum())
    ):
        raise BrainLMError("coordinates: expected finite mm, found NaN or infinity")
