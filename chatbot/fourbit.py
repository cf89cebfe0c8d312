"""A base in four bits: linear layers as NF4 by bitsandbytes (QLoRA, arXiv 2305.14314), a quarter the memory.

Nothing is ever merged into such a base: NF4 knows sixteen values, and rounding to them would swallow what a
night has learned. So a generating copy keeps the adapter beside its weights, as the training copy does.

The only file that touches bitsandbytes, and only where four bits are asked for: a machine without it can do
all else. Embeddings, norms and the output layer stay in the dtype that was asked for.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from chatbot.basemodel import hollow_model
from data.errors import Refused

_BLOCK = 64
"""Weights that share a scale."""


def four_bit_settings(config: Any, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` needs to load a base of this `config` as NF4 weights that compute in `dtype`.

    Raises Refused where bitsandbytes cannot be imported.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise Refused(
            f"A base in four bits needs bitsandbytes, which cannot be imported here ({error}) - "
            'run "pip install bitsandbytes", or leave --four-bit out.'
        ) from error
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_left_whole(config),
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def _left_whole(config: Any) -> list[str]:
    """The linear layers that stay as they are: the output layer, and those whose rows are not made of blocks.

    Where a block crosses from one row to the next, the CPU kernels of bitsandbytes 0.50 read the wrong scales
    (at 96 inputs the weights come back with an error of 76 % instead of 9 %), without an error.
    """
    model = hollow_model(config)
    output = model.get_output_embeddings()
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name, module in linear if module is output or module.in_features % _BLOCK]


def is_four_bit(layer: nn.Module) -> bool:
    """Whether the weights of `layer` are in four bits, with or without an adapter beside them."""
    return isinstance(layer, Beside) or hasattr(getattr(layer, "weight", None), "quant_state")


def set_packing(model: PreTrainedModel, is_allowed: bool) -> None:
    """Whether layers may repack their weights for the bfloat16 kernel of newer CPUs, at their first use.

    Twice the tokens a second, but no gradient passes a packed layer, and bitsandbytes would pack one at any
    forward pass without gradients. So a training copy never may; nor may a layer that the kernel
    cannot cut into tiles of 32 outputs.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            linear = cast(Any, module)
            fits = linear.out_features % 32 == 0
            linear.support_avx512bf16_for_cpu = is_allowed and fits and _has_bfloat16_kernel()


def _has_bfloat16_kernel() -> bool:
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


class Beside(nn.Module):
    """A four-bit layer and one adapter: W x + scale * B A x."""

    a: Tensor  # (r, in)
    b: Tensor  # (out, r), the scale in it

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return cast(Tensor, self.layer(x)) + F.linear(F.linear(x, self.a), self.b)


def put_beside(model: PreTrainedModel, path: str, a: Tensor, b: Tensor, scale: float) -> None:
    """Let the layer at `path` wear this adapter instead of the one it wore."""
    layer = model.get_submodule(path)
    if not isinstance(layer, Beside):
        layer = Beside(layer)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer)
    layer.a = a.to(model.device, model.dtype)
    layer.b = (scale * b).to(model.device, model.dtype)
