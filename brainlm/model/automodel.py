"""``AutoModel.from_pretrained`` for our folders (extra: hf)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from ..errors import BrainLMError
from .blocks import set_attention
from .hub import HUB_OPTIONS
from .mae import BrainLM

#: attn_implementation -> our backend
_ATTENTION = {"sdpa": "auto", "eager": "math", "flash_attention_2": "flash-attn"}
#: What transformers passes by itself.
_OWN = ("trust_remote_code", "adapter_kwargs", "code_revision", "proxies")


def register() -> None:
    """Teach ``transformers.AutoConfig``, ``AutoModel`` and ``AutoModelForPreTraining`` our
    ``model_type``; then no ``trust_remote_code`` is needed.

    Raises
    ------
    BrainLMError
        transformers is not installed.
    """
    config, model, pretraining = make_classes()
    from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

    AutoConfig.register("brainlm", config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForPreTraining.register(config, pretraining, exist_ok=True)


@functools.cache
def make_classes() -> tuple[type, type, type]:
    """A configuration and two models for transformers: any model, and one with a decoder."""
    try:
        from transformers import PretrainedConfig, PreTrainedModel
    except ImportError:
        raise BrainLMError(
            "AutoModel needs transformers: pip install 'brainlm-pipeline[hf]'"
        ) from None

    class BrainLMAutoConfig(PretrainedConfig):
        model_type = "brainlm"

    class BrainLMAutoModel(PreTrainedModel):
        config_class = BrainLMAutoConfig

        @classmethod
        def from_pretrained(cls, path, *inputs, **options):
            """A :class:`brainlm.model.BrainLM`; see :func:`open_model`."""
            if inputs:
                raise BrainLMError(f"{path}: unexpected arguments {inputs}")
            return open_model(path, **options)

    class BrainLMAutoModelForPreTraining(BrainLMAutoModel):
        @classmethod
        def from_pretrained(cls, path, *inputs, **options):
            """As of the base class, with a decoder."""
            model = super().from_pretrained(path, *inputs, **options)
            model.require_decoder()
            return model

    return BrainLMAutoConfig, BrainLMAutoModel, BrainLMAutoModelForPreTraining


def open_model(
    path, *, config=None, subfolder=None, dtype=None, torch_dtype=None, device_map=None, **options
) -> BrainLM:
    """What ``AutoModel.from_pretrained`` gives; every option is honoured or refused.

    Parameters
    ----------
    dtype : torch.dtype or str
        Of the weights, e.g. ``torch.bfloat16``; ``auto``: as stored.
    config : PretrainedConfig, optional
        As transformers read it; ``attn_implementation`` travels in it.
    device_map : str, device or dict
        One device for the whole model; ``auto``: a GPU where there is one.

    Raises
    ------
    BrainLMError
        An option that means nothing to these models, a configuration other than the folder's, or
        anything that :meth:`BrainLM.from_pretrained` raises.
    """
    hub = {name: options.pop(name) for name in HUB_OPTIONS if options.get(name) is not None}
    given = {
        k: v
        for k, v in options.items()
        if k not in (*HUB_OPTIONS, *_OWN) and not k.startswith("_")
    }
    given = {k: v for k, v in given.items() if v is not None and v is not False}
    if given:
        raise BrainLMError(
            f"{path}: unknown options for a BrainLM: {', '.join(sorted(given))}; known: "
            f"dtype, device_map, subfolder, {', '.join(HUB_OPTIONS)}"
        )
    model = BrainLM.from_pretrained(path, subfolder or None, **hub)
    _check_config(path, model, config)
    asked = getattr(config, "_attn_implementation", None)
    if asked is not None:
        if asked not in _ATTENTION:
            raise BrainLMError(f"{path}: attn_implementation {asked!r}: expected one of "
                               f"{', '.join(_ATTENTION)}")  # fmt: skip
        set_attention(model, _ATTENTION[asked])
    kind = dtype if dtype is not None else torch_dtype
    if kind is not None and kind != "auto":
        model = model.to(_to_dtype(path, kind))
    return model if device_map is None else model.to(_to_device(path, device_map))


def _check_config(path, model: BrainLM, config) -> None:
    """Transformers takes options by the names of a configuration's keys as changes of it."""
    stored = dataclasses.asdict(model.config)
    known = vars(config) if config is not None else {}
    changed = [k for k in stored if k in known and _plain(known[k]) != _plain(stored[k])]
    if changed:
        raise BrainLMError(
            f"{path}: {', '.join(changed)} cannot be changed when a model is loaded; a mask is an "
            "argument of the call: model(windows, mask_ratio=0.5)"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _to_dtype(path, name) -> torch.dtype:
    kind = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else name
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise BrainLMError(f"{path}: dtype {name!r} is not a floating-point type of torch")
    return kind


def _to_device(path, device_map) -> torch.device:
    if isinstance(device_map, dict):
        if len(set(map(str, device_map.values()))) != 1:
            raise BrainLMError(f"{path}: device_map: a BrainLM is on one device, not on several")
        device_map = next(iter(device_map.values()))
    if device_map == "auto":
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device_map)
    except (RuntimeError, TypeError):
        raise BrainLMError(
            f"{path}: device_map {device_map!r}: expected one device (cpu, cuda, cuda:1) or auto"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BrainLMError(f"{path}: device_map {device_map!r}: PyTorch sees no GPU here")
    return device
