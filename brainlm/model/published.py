"""The published layouts: old_13M (parcel tokens), vitmae_111M and vitmae_650M (images).

Their tensors are renamed and merged into ours without changing what is computed:

* query, key and value become one projection;
* the image models repeat the signal on three channels and average three predicted ones: the
  channels of the input projection are summed, those of the output averaged;
* position tables are computed, after a check that the file holds the same; the unused
  ``decoder_pred`` of the parcel layout is dropped.

Nothing else may be missing or left over.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BrainLMError
from .blocks import grid_sinusoid, interleaved_sinusoid
from .grids import ImageGrid
from .shape import BrainLMConfig

#: What the image models' inputs were divided by after scaling, in the published notebooks.
IMAGE_DIVISOR = 5.6430855
#: Where the published forms differ from ours, whatever their size.
_BOTH = {"learned_parcels": False, "fourier_places": False, "coordinate_unit_mm": 1.0,
         "eps": 1e-12, "gain": False}  # fmt: skip
PARCEL = _BOTH | {"pre_norm": False, "convolution": 65, "position_dropout": 0.1}
IMAGE = _BOTH | {"pad_value": -1.0, "divisor": IMAGE_DIVISOR}

_LAYER = re.compile(r"(vit\.encoder\.layer|decoder\.decoder_layers)\.(\d+)\.(.+)\.(weight|bias)")
_LAYER_PARTS = {
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "norm1",
    "attention.self.conv": "attention.convolution",
    "output.LayerNorm": "norm2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.0",
    "output.dense": "mlp.2",
}
_NAMES = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.signal_embedding_projection": "project",
    "vit.embeddings.patch_embeddings.projection": "project",
    "vit.embeddings.xyz_embedding_projection": "positions.space",
    "vit.layernorm": "encoder_norm",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.decoder_embed": "decoder.embed",
    "decoder.decoder_xyz_projection": "decoder.positions.space",
    "decoder.decoder_norm": "decoder.norm",
    "decoder.decoder_pred1": "decoder.predict.0",
    "decoder.decoder_pred2": "decoder.predict.2",
    "decoder.decoder_pred": "decoder.predict",
    "mlp_pred_head.lin1": "head.0",
    "mlp_pred_head.lin2": "head.3",
    "mlp_pred_head.lin3": "head.6",
}

#: What config.json must say of each layout.
_CONFIG_KEYS = {
    "both": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
             "decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads",
             "decoder_intermediate_size", "layer_norm_eps", "mask_ratio", "initializer_range"),
    "parcel": ("segment_means_seq_len", "num_landmarks", "num_brain_voxels",
               "num_timepoints_per_voxel", "timepoint_patching_size", "conv_kernel_size",
               "loss_fn"),
    "image": ("image_size", "patch_size", "hidden_dropout_prob"),
}  # fmt: skip


def convert(
    folder, config: dict[str, Any], weights: dict[str, Tensor], coordinates
) -> tuple[BrainLMConfig, dict[str, Tensor]]:
    """Our shape and tensors from a published config.json and its tensors.

    Parameters
    ----------
    coordinates : array [R, 3]
        MNI mm in atlas order (the published files do not carry them): the parcel model reads
        them, the image models sort rows by them.

    Raises
    ------
    BrainLMError
        A layout that is not known, no coordinates, or tensors that do not fit.
    """
    family = _family(folder, config, weights)
    if coordinates is None:
        raise BrainLMError(
            f"{folder}: published weights carry neither parcel coordinates nor a scaling; give "
            'both: from_pretrained(..., coordinates=load_atlas("a424", folder).coordinates, '
            "scaling=Scaling.load(path)), or --scaling on the command line"
        )
    coordinates = np.asarray(coordinates)
    make = {"parcel": _parcel_config, "image": _image_config}[family]
    ours = make(config, weights, len(coordinates))
    _check_tables(folder, ours, weights)
    converted = rename(weights, family)
    converted["coordinates"] = torch.as_tensor(coordinates).float()
    if ours.head_outputs:  # the published head takes summaries as they are
        width = converted["head.0.weight"].shape[1]
        converted["head.mean"], converted["head.std"] = torch.zeros(width), torch.ones(width)
        converted["head.skip"] = torch.zeros(ours.head_outputs, width)
    return ours, converted


def _family(folder, config: dict, weights: dict) -> str:
    """By the tensors, checked against config.json; its model_type is not reliable."""
    if "vit.embeddings.xyz_embedding_projection.weight" in weights:
        found = "parcel"
    elif "vit.embeddings.patch_embeddings.projection.weight" in weights:
        found = "image"
    else:
        raise BrainLMError(f"{folder}: neither our format nor a published BrainLM layout "
                           f"(tensors: {', '.join(sorted(weights)[:3])}, …)")  # fmt: skip
    names = config.get("architectures") or []
    said = "parcel" if "num_brain_voxels" in config else "image"
    prefix = {"parcel": "BrainLM", "image": "ViTMAE"}[found]
    if said != found or not all(name.startswith(prefix) for name in names):
        raise BrainLMError(f"{folder}: config.json is of the {said} layout (architectures "
                           f"{names}), but the tensors are of the {found} layout; one of the "
                           "two files belongs to another model")  # fmt: skip
    absent = [key for key in _CONFIG_KEYS["both"] + _CONFIG_KEYS[found] if key not in config]
    if absent:
        raise BrainLMError(f"{folder}/config.json: lacks {', '.join(absent)}, which the "
                           f"published {found} layout has")  # fmt: skip
    return found


def _common(config: dict, weights: dict, form: dict[str, Any]) -> dict[str, Any]:
    decodes = any(key.startswith("decoder.") for key in weights)
    return {
        **form,
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "ffn": config["intermediate_size"],
        "decoder_width": config["decoder_hidden_size"],
        "decoder_depth": config["decoder_num_hidden_layers"] if decodes else 0,
        "decoder_heads": config["decoder_num_attention_heads"],
        "decoder_ffn": config["decoder_intermediate_size"],
        "eps": config["layer_norm_eps"],
        "mask_ratio": config["mask_ratio"],
        "init_std": config["initializer_range"],
        "has_coordinates": True,
    }


def _parcel_config(config: dict, weights: dict, parcels: int) -> BrainLMConfig:
    if config["segment_means_seq_len"] != config["num_landmarks"]:
        raise BrainLMError("published parcel model with Nyström landmarks: only exact attention "
                           "(segment_means_seq_len == num_landmarks) is known")  # fmt: skip
    if config.get("use_tanh_decoder"):
        raise BrainLMError("published parcel model with use_tanh_decoder is not supported")
    if config["num_brain_voxels"] != parcels:
        raise BrainLMError(f"the model has {config['num_brain_voxels']} parcels, the coordinates "
                           f"{parcels}")  # fmt: skip
    return BrainLMConfig(
        family="parcel", num_parcels=parcels, window=config["num_timepoints_per_voxel"],
        patch=config["timepoint_patching_size"], loss=config["loss_fn"],
        **_common(config, weights, PARCEL) | {"convolution": config["conv_kernel_size"]},
    )  # fmt: skip


def _image_config(config: dict, weights: dict, parcels: int) -> BrainLMConfig:
    size = config["image_size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    head = "mlp_pred_head.lin3.weight" in weights
    extra = {}
    if head:
        extra = {"head_outputs": len(weights["mlp_pred_head.lin3.weight"]),
                 "head_dropout": config["hidden_dropout_prob"],
                 "pool": "all" if config.get("use_mean_pooling") else "cls"}  # fmt: skip
    return BrainLMConfig(
        family="image", num_parcels=parcels, window=200, patch=config["patch_size"],
        patch_parcels=config["patch_size"], image_size=size,
        **_common(config, weights, IMAGE), **extra,
    )  # fmt: skip


def rename(weights: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """Published tensors under our names."""
    out: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    unused: tuple[str, ...] = ("position_embeddings", "decoder_pos_embed", "pos_embedding.pe")
    if family == "parcel":
        unused += ("decoder.decoder_pred.weight", "decoder.decoder_pred.bias")
    for key, tensor in weights.items():
        if key.endswith(unused):
            continue
        match = _LAYER.fullmatch(key)
        if match is None:
            stem, _, kind = key.rpartition(".")
            name = _NAMES.get(key) or (f"{_NAMES[stem]}.{kind}" if stem in _NAMES else key)
            out[name] = tensor
            continue
        stack, number, part, kind = match.groups()
        place = f"{'encoder' if stack.startswith('vit') else 'decoder.blocks'}.{number}"
        if part.rpartition(".")[2] in ("query", "key", "value"):
            qkv = parts.setdefault(f"{place}.attention.qkv.{kind}", {})
            qkv[part.rpartition(".")[2]] = tensor
        else:
            out[f"{place}.{_LAYER_PARTS.get(part, part)}.{kind}"] = tensor
    for name, three in parts.items():
        out[name] = torch.cat([three[x] for x in ("query", "key", "value") if x in three])
    return _merge_channels(out) if family == "image" else out


def _merge_channels(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Three equal input channels are one with summed weights; outputs are averaged."""
    projection = weights["project.weight"]
    weights["project.weight"] = projection.sum(1).flatten(1)
    for kind in ("weight", "bias"):
        name = f"decoder.predict.{kind}"
        if name in weights:  # rows are (row, column, channel)
            weights[name] = weights[name].unflatten(0, (-1, projection.shape[1])).mean(1)
    return weights


def _check_tables(folder, config: BrainLMConfig, weights: dict[str, Tensor]) -> None:
    """The position tables in the file must be the ones that are computed here."""
    for key, table in weights.items():
        if key.endswith("pos_embedding.pe"):
            expected = interleaved_sinusoid(*table.shape)
        elif key.endswith(("position_embeddings", "decoder_pos_embed")):
            grid = grid_sinusoid(*ImageGrid.shape(config), table.shape[-1])
            expected = torch.cat([torch.zeros(1, table.shape[-1]), grid])[None]
        else:
            continue
        if table.shape != expected.shape or (table - expected).abs().max() > 1e-3:
            raise BrainLMError(f"{folder}: {key} is not the fixed sinusoid of this layout")


def toolkit_compat(recording: np.ndarray, median: np.ndarray, iqr: np.ndarray) -> np.ndarray:
    """``x - median / IQR``: what the published toolkit computes where it means robust scaling.

    Operator precedence makes it a shift (upstream issue 19). Only for data that must match
    other participants' files made that way; :class:`brainlm.shards.Scaling` is the right one.
    """
    return recording - median / iqr
