"""The sizes. Plain functions of plain numbers."""

from __future__ import annotations

from ..errors import BrainLMError
from .mae import BrainLM
from .published import IMAGE, PARCEL
from .shape import BrainLMConfig

#: What a preset fixes; the rest comes from the data and the configuration.
PRESETS: dict[str, dict] = {
    # parcel-token family (paper, section 3.3): pre-norm, no convolution, and a decoder over all
    # tokens whose keys are the visible ones (benchmarks/presets.py)
    "tiny": {
        "family": "parcel", "gain": True, "components": 128,
        "width": 64, "depth": 2, "heads": 2, "ffn": 256,
        "decoder_width": 64, "decoder_depth": 1, "decoder_heads": 2, "decoder_ffn": 128,
        "decoder_context": "visible", "decode_share": 0.25,
    },
    "13m": {
        "family": "parcel", "gain": True, "components": 128,
        "width": 512, "depth": 4, "heads": 4, "ffn": 1024,
        "decoder_width": 512, "decoder_depth": 2, "decoder_heads": 4, "decoder_ffn": 1024,
        "decoder_context": "visible", "decode_share": 0.25,
    },
    # image family: ViT-MAE base and huge on a rectangular grid without padding in time, with the
    # same decoder, which reconstructs no worse for it (docs/results/presets.md)
    "111m": {
        "family": "image", "gain": True, "zero_last": True,
        "width": 768, "depth": 12, "heads": 12, "ffn": 3072,
        "decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16, "decoder_ffn": 2048,
        "decoder_context": "visible", "decode_share": 0.25,
    },
    "650m": {
        "family": "image", "gain": True, "zero_last": True,
        "width": 1280, "depth": 32, "heads": 16, "ffn": 5120,
        "decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16, "decoder_ffn": 2048,
        "decoder_context": "visible", "decode_share": 0.25,
    },
}  # fmt: skip
_WHOLE_DECODER = {"decoder_context": "all", "decode_share": 1.0}
#: The published forms under their published names, to be trained anew next to ours.
PRESETS |= {
    "old_13M": PRESETS["13m"] | PARCEL | _WHOLE_DECODER | {"components": 0},
    "vitmae_111M": PRESETS["111m"]
    | IMAGE
    | _WHOLE_DECODER
    | {"image_size": (432, 432), "zero_last": False},
    "vitmae_650M": PRESETS["650m"]
    | IMAGE
    | _WHOLE_DECODER
    | {"image_size": (434, 434), "patch": 14, "patch_parcels": 14, "zero_last": False},
}

#: Time points per token where the user names none: the paper's 20, and the image family's square
#: patches, which reconstruct better than 16 × 20 (docs/results/presets.md)
PATCH = {"parcel": 20, "image": 16}


def preset(name: str, *, num_parcels: int, window: int, patch: int | None = None,
           decoder_context: str | None = None, learned_parcels: bool | None = None,
           coordinates=None) -> BrainLM:  # fmt: skip
    """A new model.

    Parameters
    ----------
    name : str
        ``tiny``, ``13m`` (tokens of one parcel) | ``111m``, ``650m`` (image of 16-parcel rows), or
        a published form: ``old_13M`` | ``vitmae_111M``, ``vitmae_650M``.
    num_parcels, window : int
        R and T.
    patch : int, optional
        Time points per token; default :data:`PATCH`.
    decoder_context : str, optional
        ``visible`` or ``all``; default the preset's.
    learned_parcels : bool, optional
        False: parcels are known by their coordinates alone, so that the model takes other atlases
        (:meth:`BrainLM.on_atlas`); default the preset's.
    coordinates : array [R, 3], optional
        MNI mm. Without them the parcel family learns where parcels are, and the image family
        keeps them in atlas order.

    Raises
    ------
    BrainLMError
        An unknown name, a window that is not a multiple of the patch, or a published parcel model
        without coordinates (they are all that it knows of a parcel).
    """
    if name not in PRESETS:
        raise BrainLMError(f"no model preset {name!r}; one of: {', '.join(PRESETS)}")
    settings = {"patch": PATCH[PRESETS[name]["family"]], **PRESETS[name]}
    asked = {"patch": patch, "decoder_context": decoder_context,
             "learned_parcels": learned_parcels}  # fmt: skip
    settings |= {key: value for key, value in asked.items() if value is not None}
    if learned_parcels is not None and settings["family"] != "parcel":
        raise BrainLMError(f"{name}: model.learned_parcels is of presets with a token per parcel "
                           "(tiny, 13m)")  # fmt: skip
    if coordinates is None and not settings.get("learned_parcels", True) and (
        settings["family"] == "parcel"
    ):  # fmt: skip
        raise BrainLMError(f"{name}: without learned parcels the model knows them by their "
                           "coordinates alone, and this atlas has none; use 13m with "
                           "learned_parcels")  # fmt: skip
    config = BrainLMConfig(num_parcels=num_parcels, window=window, preset=name,
                           has_coordinates=coordinates is not None, **settings)  # fmt: skip
    return BrainLM(config, coordinates)
