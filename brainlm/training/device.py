"""What models run on: chosen once per process by the verb that runs them; and making one ready.

A process has one device and one precision, as it has one number of threads: both follow from the
machine and its configuration, and what stands between a verb and its model (fine-tuning, tasks of
an evaluation, tables of predictions) would hand them on without reading them. What a model runs
in is its own (``BrainLM.matmul_dtype``), decided once by :func:`prepare`. ``pretrain.gpus: 0``
means the CPU for everything that runs a model; a caller who chooses nothing gets a GPU where there
is one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import Pretrain
from ..errors import BrainLMError
from ..model import BrainLM, set_attention
from ..output import tell

#: windows in one pass of an encoder that learns nothing: on the CPU more are no faster
_ON_CPU = 16
#: tokens that keep a GPU busy; of the widest layer 0.3 GB of values (13m) to 1.3 GB (650m) in bf16
TOKENS_ON_GPU = 2**17
_chosen: torch.device | None = None
_precision = "auto"


def choose_device(options: Pretrain, local: int = 0) -> torch.device:
    """Use the GPU number `local`, or with ``gpus`` 0 the CPU, and the stated precision from now
    on.

    Raises
    ------
    BrainLMError
        A GPU is asked for and none is visible.
    """
    global _chosen, _precision
    gpus = options.gpus
    if gpus and not torch.cuda.is_available():
        raise BrainLMError(f"pretrain.gpus is {gpus}, but PyTorch sees no GPU here; set it to 0, "
                           "or run where there is one")  # fmt: skip
    _chosen = torch.device("cuda", local) if gpus else torch.device("cpu")
    _precision = options.precision
    if gpus:
        torch.cuda.set_device(_chosen)
        torch.set_float32_matmul_precision("high")  # TF32 in what is not half precision
    return _chosen


def get_device() -> torch.device:
    """The device that was chosen; else a GPU where there is one."""
    if _chosen is not None:
        return _chosen
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(network: nn.Module) -> torch.device:
    """Where a network is, and so its inputs must be."""
    return next(network.parameters()).device


def prepare(model: BrainLM, device: torch.device | None = None, precision: str | None = None,
            compile: bool | str = False, *, attention: str | None = None,
            checkpointing: bool = False,
            say: Callable[[str], None] = tell) -> BrainLM:  # fmt: skip
    """`model` ready to run, whether it is to learn, to embed or to predict.

    The order matters: attention, device, precision, activation checkpointing, compilation.

    Parameters
    ----------
    device : optional
        Default :func:`get_device`.
    precision : str, optional
        ``float32`` | ``bf16``: matrix products in it, weights, sums and losses in float32 |
        ``auto``: bf16 on CUDA. Default what the process chose.
    compile : bool or "auto"
        Each block; ``auto``: on CUDA. It pays where many passes are of one shape: recordings that
        lack parcels have fewer tokens, which is another shape.
    attention : str, optional
        One of :data:`brainlm.model.BACKENDS`; default what the model has.
    checkpointing : bool
        Keep less for the backward pass.
    """
    if attention is not None:
        set_attention(model, attention)
    device = device or get_device()
    model.to(device)
    on_gpu, precision = device.type == "cuda", precision or _precision
    half = precision == "bf16" or (precision == "auto" and on_gpu)
    model.matmul_dtype = torch.bfloat16 if half else torch.float32
    if checkpointing:
        for block in model.blocks():
            block.forward = _keep_the_input_only(block.forward)
    if compile is True or (compile == "auto" and on_gpu):
        model.is_compiled = compile_blocks(model, say)
    return model


def windows_at_once(model: BrainLM) -> int:
    """How many windows one pass takes where nothing is learnt."""
    if device_of(model).type == "cpu":
        return _ON_CPU
    return max(1, TOKENS_ON_GPU // model.num_tokens)


def compile_blocks(model: BrainLM, say: Callable[[str], None]) -> bool:
    """Compile each block; where that fails (no compiler on the node) say so, and go on without.

    The first block is tried at once: forward and backward, on two tokens.
    """
    blocks = model.blocks()
    for block in blocks:
        block.compile()
    weight = next(blocks[0].parameters())
    tokens = torch.zeros(1, 2, model.config.width, device=weight.device, requires_grad=True)
    try:
        with model.at_work():
            blocks[0](tokens).float().sum().backward()
    except Exception as error:
        for block in blocks:
            block._compiled_call_impl = None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        say(f"the blocks are not compiled, training is slower: {type(error).__name__}: {reason}")
        return False
    finally:
        model.zero_grad(set_to_none=True)
        torch._dynamo.reset()  # or the real shape would be the second one, and compiled for any
    return True


def _keep_the_input_only(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`forward`, computed a second time for the backward pass.

    A function of its own, and no ``functools.partial``: torch.compile looks into functions, and
    leaves a bare call of torch's `checkpoint` uncompiled without a word.
    """

    def run(*inputs) -> Tensor:
        return checkpoint(forward, *inputs, use_reentrant=False)

    return run
