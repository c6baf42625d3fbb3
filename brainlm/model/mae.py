"""BrainLM: a masked autoencoder of brain activity.

Reference: Ortega Caro et al., "BrainLM: A foundation model for brain activity recordings",
ICLR 2024, section 3; masked autoencoders: He et al., CVPR 2022.

Legend: B batch, R parcels, T time points, P values per token, N tokens, K visible tokens, D width.
A window of scaled series [B, R, T] is cut into tokens, most tokens are removed, the encoder sees
the rest (and CLS), the decoder predicts the removed ones from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import BrainLMError
from ..shards.scaling import Scaling
from .blocks import Head
from .decoder import Decoder, stack
from .grids import ImageGrid, ParcelGrid
from .masking import Masking, draw_masking, raster_noise, take
from .pooling import check_pool, connectivity, summarise_tokens, summary_width


@dataclass(frozen=True)
class BrainLMConfig:
    """Everything that decides the shape of a model.

    Attributes
    ----------
    family : str
        ``parcel`` (a token is `patch` time points of one parcel) or ``image`` (a token is
        `patch_parcels` × `patch` values of the window seen as an image).
    num_parcels, window, patch : int
        R, T and time points per token.
    decoder_depth : int
        0: no decoder, an encoder with a head (a fine-tuned model).
    decoder_context : str
        ``all``: every decoder token attends to every other (the paper). ``visible``: only to the
        visible ones; a mask token knows nothing but its place, so little is lost and the
        decoder costs K / N of it (Fu et al., "Rethinking patch dependence", 2024).
    decode_share : float
        Share of the removed tokens that training predicts, drawn at random (``visible`` context
        only, where predictions do not depend on each other); evaluation predicts all.
    fourier_places : bool
        Places of the parcel family as Fourier features, so that tokens of one time point, or of
        neighbouring parcels, are alike from the first step; False: as published.
    coordinate_unit_mm : float
        Coordinates are divided by this before they are projected.
    divisor : float
        The signal is divided by this on the way in and multiplied on the way out; the loss is in
        divided units. 1 but for the published image models.
    pre_norm, convolution, learned_parcels, position_dropout, image_size, pad_value, loss
        Where the published layouts differ from ours.
    head_outputs, pool, label_mean, label_std, label_log
        Of a fine-tuned model: 0 outputs means no head; with `label_log` it learnt log(1 + label).
    """

    family: str
    num_parcels: int
    window: int
    patch: int
    width: int
    depth: int
    heads: int
    ffn: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    decoder_ffn: int
    decoder_context: str = "all"
    decode_share: float = 1.0
    patch_parcels: int = 16
    has_coordinates: bool = False
    learned_parcels: bool = True
    fourier_places: bool = True
    coordinate_unit_mm: float = 25.0
    pre_norm: bool = True
    convolution: int = 0
    position_dropout: float = 0.0
    image_size: tuple[int, int] | None = None
    pad_value: float = 0.0
    divisor: float = 1.0
    loss: str = "mse"
    mask_ratio: float = 0.75
    eps: float = 1e-6
    init_std: float = 0.02
    head_outputs: int = 0
    head_dropout: float = 0.1
    pool: str = "cls"
    label_mean: float = 0.0
    label_std: float = 1.0
    label_log: bool = False
    preset: str = ""


@dataclass
class Reconstruction:
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
    """

    loss: Tensor
    error_sum: Tensor
    count: Tensor
    prediction: Tensor
    mask: Tensor
    pixel_mask: Tensor
    latent: Tensor
    masking: Masking


class BrainLM(nn.Module):
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
    """

    def __init__(self, config: BrainLMConfig, coordinates=None):
        super().__init__()
        _check(config, coordinates)
        self.config = config
        self.scaling: Scaling | None = None
        points = torch.zeros(0, 3) if coordinates is None else torch.as_tensor(coordinates)
        self.register_buffer("coordinates", points.float().clone())
        self.grid = {"parcel": ParcelGrid, "image": ImageGrid}[config.family](config, points)
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
            self.head = Head(width, config.width // 2, config.head_outputs, config.head_dropout,
                             linear=True)  # fmt: skip
        self.apply(self._initialise)
        if config.fourier_places and config.family == "parcel":
            for block in [*self.encoder, *(self.decoder.blocks if self.decoder else [])]:
                block.attention.start_alike()
        nn.init.normal_(self.cls_token, std=config.init_std)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, self.grid.positions):
            module.start(self.config.init_std)

    def forward(self, signal: Tensor, *, mask_ratio: float | None = None, mask: str = "random",
                noise: Tensor | None = None, generator: torch.Generator | None = None,
                visible: int | None = None) -> Reconstruction:  # fmt: skip
        """Remove tokens, encode the rest, predict the removed ones.

        Parameters
        ----------
        signal : Tensor [B, R, T] float32
            Scaled series. Missing parcels are NaN: their tokens never reach the encoder and
            their values never count in the loss.
        mask_ratio : float, optional
            Share of tokens removed (``random``) or of time points (``future``).
        mask : str
            ``random``; ``future``: the last ``mask_ratio * T`` time points, rounded up to whole
            tokens; ``future-exact``: only tokens wholly inside those time points are removed,
            the other points to predict are set to 0, and exactly they count in the loss.
        noise : Tensor [B, N], optional
            Tokens of smallest noise stay visible; drawn from `generator` if not given.
        visible : int, optional
            K, to spare the look at the data (:func:`brainlm.model.masking.count_visible`).
        """
        ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
        signal = signal / self.config.divisor
        patches, known, missing = self.grid.cut(signal)
        masking = draw_masking(self.grid, missing, ratio, mask, noise, generator, visible)
        shown, target = patches, masking.mask[..., None]
        if mask == "future-exact":
            target = self.grid.last_values(self.grid.points(ratio))
            shown = patches.masked_fill(target, 0.0)
        latent = self.encode(shown, masking)
        predicted, decoded = self._need_decoder()(latent, masking, self.coordinates)
        return self._compare(patches, predicted, target & known & decoded, masking, latent)

    def encode(self, patches: Tensor, masking: Masking) -> Tensor:
        """[B, N, P] -> latent [B, 1 + K, D], CLS first."""
        tokens = self.project(masking.keep(patches))
        places = take(self.positions(self.coordinates), masking.ids_shuffle[:, : masking.visible])
        tokens = self.dropout(tokens + places)
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        for block in self.encoder:
            x = block(x)
        return self.encoder_norm(x)

    def _compare(self, patches, predicted, hidden, masking, latent) -> Reconstruction:
        error = predicted.float() - patches
        error = error.abs() if self.config.loss == "mae" else error.square()
        error_sum, count = error.mul(hidden).sum(), hidden.sum()
        return Reconstruction(
            loss=error_sum / count.clamp(min=1),
            error_sum=error_sum,
            count=count,
            prediction=self.grid.paste(predicted) * self.config.divisor,
            mask=masking.mask,
            pixel_mask=self.grid.paste(hidden),
            latent=latent,
            masking=masking,
        )

    def _need_decoder(self) -> Decoder:
        if self.decoder is None:
            raise BrainLMError("this model has no decoder (it was fine-tuned): it predicts "
                               "labels and embeds, but does not reconstruct")  # fmt: skip
        return self.decoder

    @torch.no_grad()
    def embed(self, signal: Tensor, pool: str = "cls") -> Tensor:
        """Deterministic summary [B, F]: no masking, raster order, evaluation mode.

        Samples with missing parcels are encoded from the tokens that they have, so a sample's
        embedding does not depend on its batch.
        """
        was_training = self.training
        self.eval()
        try:
            return self.summarise(signal, pool)
        finally:
            self.train(was_training)

    def summarise(self, signal: Tensor, pool: str = "cls", noise: Tensor | None = None,
                  mask_ratio: float = 0.0) -> Tensor:  # fmt: skip
        """As :meth:`embed`, differentiable, in the current mode, with masking if asked.

        Parameters
        ----------
        signal : Tensor [B, R, T]
        pool : str
            One of :data:`brainlm.model.pooling.POOLS`.
        noise : Tensor [B, N], optional
            Tokens of smallest noise stay; raster order if not given.
        mask_ratio : float
            Share of the tokens left out; of ``connectivity``, which compares parcels over the
            same time, whole time steps.
        """
        check_pool(self.config, pool)
        patches, _, missing = self.grid.cut(signal / self.config.divisor)
        B, N = missing.shape
        noise = raster_noise(B, N, missing.device) if noise is None else noise
        if pool == "connectivity":
            return self._compare_parcels(patches, missing, noise, mask_ratio)
        noise = noise.masked_fill(missing, 2.0)
        visible = ((~missing).sum(1) * (1 - mask_ratio)).long().clamp(min=1)
        if not missing.any():
            visible = torch.full_like(visible, max(1, int(N * (1 - mask_ratio))))
        out = None
        for count in visible.unique().tolist():
            rows = (visible == count).nonzero()[:, 0]
            latent = self.encode(patches[rows], Masking.draw(noise[rows], count))
            pooled = summarise_tokens(latent, pool)
            if out is None:
                out = pooled.new_zeros(B, pooled.shape[1])
            out = out.index_copy(0, rows, pooled)
        return out

    def _compare_parcels(self, patches, missing, noise, mask_ratio: float) -> Tensor:
        """Samples that lack the same parcels together."""
        steps = max(1, int(self.grid.steps * (1 - mask_ratio)))
        order, known = self.grid.by_time(noise, missing)
        parts, places = [], []
        for pattern in known.unique(dim=0):
            rows = (known == pattern).all(1).nonzero()[:, 0]
            masking = Masking.draw(order[rows], steps * int(pattern.sum()))
            parts.append(connectivity(self.encode(patches[rows], masking), pattern))
            places.append(rows)
        return torch.cat(parts)[torch.cat(places).argsort()]

    @torch.no_grad()
    def predict(self, signal: Tensor) -> Tensor:
        """Labels [B, outputs] of a fine-tuned model, in the label's own units."""
        if self.head is None:
            raise BrainLMError("this model has no head; fine-tune it first (brainlm finetune)")
        was_training = self.training
        out = self.eval().head(self.embed(signal, self.config.pool))
        self.train(was_training)
        out = out * self.config.label_std + self.config.label_mean
        return out.expm1() if self.config.label_log else out

    def save_pretrained(self, folder, scaling: Scaling, card: str) -> None:
        """Write config.json, model.safetensors, scaling.json and README.md; see hub.py."""
        from .hub import save_pretrained

        save_pretrained(self, folder, scaling, card)

    @classmethod
    def from_pretrained(cls, path_or_hub_id, subfolder: str | None = None, **options) -> BrainLM:
        """Open a folder or a hub repository; see :func:`brainlm.model.from_pretrained`."""
        from .hub import from_pretrained

        return from_pretrained(path_or_hub_id, subfolder, **options)

    def flops_per_window(self, mask_ratio: float) -> float:
        """Multiply-adds × 2 of one forward pass on one window (matrix products only)."""
        c, N = self.config, self.num_tokens
        K = int(N * (1 - mask_ratio)) + 1
        total = _flops(c.depth, K, K, c.width, c.ffn)
        if c.decoder_depth:
            seen = N + 1 if c.decoder_context == "all" else K
            total += _flops(c.decoder_depth, N + 1, seen, c.decoder_width, c.decoder_ffn)
        return total + 2 * self.grid.values * (K * c.width + N * c.decoder_width)


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
