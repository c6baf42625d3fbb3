"""One attention function, four ways to compute it.

``auto`` lets PyTorch choose (its flash kernel on CUDA in half precision), ``flash`` insists on
the flash kernel, ``flash-attn`` uses the package of that name, ``math`` spells the formula out
(Vaswani et al. 2017, equation 1). No way takes a mask: a masked autoencoder drops tokens instead.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import BrainLMError

BACKENDS = ("auto", "flash", "flash-attn", "math")


def attend(query: Tensor, key: Tensor, value: Tensor, backend: str = "auto") -> Tensor:
    """softmax(q kᵀ / √d) v.

    Parameters
    ----------
    query : Tensor [B, heads, N, d]
    key, value : Tensor [B, heads, M, d]
    backend : str
        One of :data:`BACKENDS`.

    Raises
    ------
    BrainLMError
        An unknown backend, or a forced one that refuses these tensors, with its reasons.
    """
    if backend == "auto":
        return F.scaled_dot_product_attention(query, key, value)
    if backend == "math":
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return scores.softmax(-1) @ value
    if backend == "flash":
        return _forced_flash(query, key, value)
    if backend == "flash-attn":
        return _flash_attn_package()(*(x.transpose(1, 2) for x in (query, key, value))).transpose(
            1, 2
        )
    raise BrainLMError(f"no attention backend {backend!r}; one of: {', '.join(BACKENDS)}")


def _forced_flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with warnings.catch_warnings(record=True) as reasons:  # torch says why as warnings
        warnings.simplefilter("always")
        try:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return F.scaled_dot_product_attention(query, key, value)
        except RuntimeError as error:
            said = "; ".join(str(w.message).split(" (Triggered")[0] for w in reasons)
            raise BrainLMError(
                f"attention: flash was asked for, but {query.dtype} on {query.device.type} is "
                f"refused ({said or error}); use precision: bf16 on a GPU, or attention: auto"
            ) from None


def _flash_attn_package():
    try:
        from flash_attn import flash_attn_func
    except Exception as error:  # a build for another torch fails with all kinds of errors
        raise BrainLMError(
            f"attention: flash-attn was asked for, but the package does not import ({error}); "
            "pip install 'brainlm-pipeline[flash]', or attention: auto"
        ) from None
    return flash_attn_func


def kernel_name(backend: str, device: torch.device | str, dtype: torch.dtype, head: int) -> str:
    """What `backend` really runs for heads of width `head`, for the log and the run's record."""
    if backend != "auto":
        return backend
    sample = torch.zeros(1, 1, 64, head, device=device, dtype=dtype)
    choose = getattr(torch, "_fused_sdp_choice", None)
    if choose is None:
        return "auto"
    return f"auto: {SDPBackend(choose(sample, sample, sample)).name.lower()}"
