"""The model: two families, four sizes, published weights in and trained models out."""

from .attention_kernels import BACKENDS, attend, kernel_name
from .blocks import PredictionHead, set_attention
from .hub import push_to_hub
from .mae import BrainLM, MaskedReconstruction
from .own_series import make_windows
from .pooling import Tokens
from .prediction import Prediction
from .presets import PRESETS, preset
from .shape import BrainLMConfig

from_pretrained = BrainLM.from_pretrained

__all__ = [
    "BACKENDS", "PRESETS", "BrainLM", "BrainLMConfig", "MaskedReconstruction", "Prediction",
    "PredictionHead", "Tokens", "attend", "from_pretrained", "kernel_name", "make_windows",
    "preset", "push_to_hub", "set_attention",
]  # fmt: skip
