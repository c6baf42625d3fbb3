"""Everything that decides the shape of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
    gain : bool
        Each window is divided by the root mean square of the values that the encoder sees, and
        predictions are multiplied by it; the loss is in divided units. Recordings differ in
        size, and else the largest are nearly all that is learnt.
    zero_last : bool
        A new model's last layer is zero, so that the first predictions are the mean: half
        precision is least stable there (MedARC's CortexMAE).
    pre_norm, convolution, learned_parcels, position_dropout, image_size, pad_value, loss
        Where the published layouts differ from ours.
    components : int
        How many spatial components of the training series the model carries for the pool of that
        name; 0: none (image models, earlier models, models on another atlas).
    head_outputs, pool, label_mean, label_std, label_log
        Of a fine-tuned model: 0 outputs means no head; with `label_log` it learnt log(1 + label).
    target, classes
        The label's name, and of a classifier the names of its classes, in the order of the head's
        outputs (of two classes one output, the log odds of the second).
    ranges : dict
        What the training data ranged over: ``repetition_time_s``, ``coverage``, ``mean_fd_mm``
        and of a fine-tuned regression ``label``; minimum, 5 %, median, 95 %, maximum.
    preprocess : dict
        What decided the values of the training series, see
        :func:`brainlm.steps.describe_series`; empty where it is not known.
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
    gain: bool = False
    zero_last: bool = False
    loss: str = "mse"
    mask_ratio: float = 0.75
    eps: float = 1e-6
    init_std: float = 0.02
    components: int = 0
    head_outputs: int = 0
    head_dropout: float = 0.1
    pool: str = "cls"
    label_mean: float = 0.0
    label_std: float = 1.0
    label_log: bool = False
    target: str = ""
    classes: tuple[str, ...] = ()
    ranges: dict[str, tuple[float, ...]] = field(default_factory=dict)
    preset: str = ""
    preprocess: dict[str, Any] = field(default_factory=dict)

    @property
    def num_components(self) -> int:
        """C: there are no more than parcels."""
        return min(self.components, self.num_parcels)
