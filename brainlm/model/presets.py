"""The sizes. Plain functions of plain numbers."""

from __future__ import annotations

from ..errors import BrainLMError
from .mae import BrainLM, BrainLMConfig

#: What a preset fixes; the rest comes from the data and the configuration.
PRESETS: dict[str, dict] = {
    # parcel-token family (paper, section 3.3): pre-norm, no convolution, and a decoder over all
    # tokens whose keys are the visible ones (benchmarks/presets.py)
    "tiny": {
        "family": "parcel", "width": 64, "depth": 2, "heads": 2, "ffn": 256,
        "decoder_width": 64, "decoder_depth": 1, "decoder_heads": 2, "decoder_ffn": 128,
        "decoder_context": "visible", "decode_share": 0.25,
    },
    "13m": {
        "family": "parcel", "width": 512, "depth": 4, "heads": 4, "ffn": 1024,
        "decoder_width": 512, "decoder_depth": 2, "decoder_heads": 4, "decoder_ffn": 1024,
        "decoder_context": "visible",
    },
    # image family: ViT-MAE base and huge on a rectangular grid without padding in time
    "111m": {
        "family": "image", "width": 768, "depth": 12, "heads": 12, "ffn": 3072,
        "decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16, "decoder_ffn": 2048,
    },
    "650m": {
        "family": "image", "width": 1280, "depth": 32, "heads": 16, "ffn": 5120,
        "decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16, "decoder_ffn": 2048,
    },
}  # fmt: skip


#: Time points per token where the user names none: the paper's 20, and the image family's square
#: patches, which reconstruct better than 16 × 20 (docs/results/presets.md)
PATCH = {"parcel": 20, "image": 16}


def preset(
    name: str, *, num_parcels: int, window: int, patch: int | None = None, coordinates=None
) -> BrainLM:
    """A new model.

    Parameters
    ----------
    name : str
        ``tiny``, ``13m`` (tokens of one parcel) | ``111m``, ``650m`` (image of 16-parcel rows).
    num_parcels, window : int
        R and T.
    patch : int, optional
        Time points per token; default :data:`PATCH`.
    coordinates : array [R, 3], optional
        MNI mm. Without them the parcel family learns where parcels are, and the image family
        keeps them in atlas order.

    Raises
    ------
    BrainLMError
        An unknown name, or a window that is not a multiple of the patch.
    """
    if name not in PRESETS:
        raise BrainLMError(f"no model preset {name!r}; one of: {', '.join(PRESETS)}")
    patch = patch or PATCH[PRESETS[name]["family"]]
    config = BrainLMConfig(num_parcels=num_parcels, window=window, patch=patch, preset=name,
                           has_coordinates=coordinates is not None, **PRESETS[name])  # fmt: skip
    return BrainLM(config, coordinates)
