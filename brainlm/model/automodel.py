"""``AutoModel.from_pretrained`` for our folders (extra: hf)."""

from __future__ import annotations

from ..errors import BrainLMError
from .mae import BrainLM


def register() -> None:
    """Teach ``transformers.AutoConfig`` and ``AutoModel`` our ``model_type``.

    Call it once; then ``AutoModel.from_pretrained(folder_or_hub_id)`` gives a
    :class:`brainlm.model.BrainLM`. No code is ever loaded from a repository.

    Raises
    ------
    BrainLMError
        transformers is not installed.
    """
    try:
        from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
    except ImportError:
        raise BrainLMError(
            "AutoModel needs transformers: pip install 'brainlm-pipeline[hf]'"
        ) from None

    class BrainLMPretrainedConfig(PretrainedConfig):
        model_type = "brainlm"

    class BrainLMPreTrainedModel(PreTrainedModel):
        config_class = BrainLMPretrainedConfig

        @classmethod
        def from_pretrained(cls, path, *_, subfolder=None, revision=None, cache_dir=None, **__):
            return BrainLM.from_pretrained(
                path, subfolder or None, revision=revision, cache_dir=cache_dir
            )

    AutoConfig.register("brainlm", BrainLMPretrainedConfig, exist_ok=True)
    AutoModel.register(BrainLMPretrainedConfig, BrainLMPreTrainedModel, exist_ok=True)
