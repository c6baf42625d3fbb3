"""The model: two families, four sizes, published weights in and trained models out."""

from .attention import BACKENDS, attend, kernel_name
from .blocks import Head, set_attention
from .hub import from_pretrained, push_to_hub
from .mae import BrainLM, BrainLMConfig, Reconstruction
from .own_series import make_windows
from .presets import PRESETS, preset

__all__ = [
    "BACKENDS", "PRESETS", "BrainLM", "BrainLMConfig", "Head", "Reconstruction", "attend",
    "from_pretrained", "kernel_name", "make_windows", "preset", "push_to_hub", "set_attention",
]  # fmt: skip
