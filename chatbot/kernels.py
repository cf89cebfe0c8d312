"""A linear layer for generating, in one of three formats; precision.py measures which is the fastest.

    float32    exact
    bfloat16   half the bytes
    int8       a byte per weight and a scale per output; many rows at once compute with the very same rounded
               weights in bfloat16 (float32 on a CPU without instructions for that), since the int8 kernel of
               the CPU is worth it for a few rows only

Decoding is bound by reading weights: half the bytes give up to twice the tokens a second. On a CPU they are
packed once for oneDNN: without that four rows take twice as long as one (measured with AVX2).
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Format = Literal["float32", "bfloat16", "int8"]
Linear = Callable[[Tensor], Tensor]
"""(N, in) -> (N, out)."""

KERNELS = 2
"""Counts the changes after which another format may be the fastest one."""
INT8_ROWS = 6
"""Up to so many rows the int8 kernel is the faster one; measured, see benchmarks/RESULTS.md."""
_PACKED_FOR = 16
"""Rows that the layout of packed weights is best for; others are nearly as fast."""


def padded_rows(rows: int) -> int:
    """`rows` rounded up to one of few counts: each new one costs oneDNN a millisecond and 0.8 MB."""
    step = 1 if rows <= 8 else 8 if rows <= 128 else 16 if rows <= 256 else 64
    return -(-rows // step) * step


def linear(weight: Tensor, bias: Tensor | None, form: Format) -> Linear:
    """The layer `x W^T + b` in that format. int8 is there on CPUs only."""
    if form == "int8":
        return _int8(weight.float(), bias)
    dtype = torch.float32 if form == "float32" else torch.bfloat16
    return _packed(weight.to(dtype), bias.to(dtype) if bias is not None else None)


def _packed(weight: Tensor, bias: Tensor | None) -> Linear:
    if not can_pack(weight):
        return lambda x: F.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)
    multiply = torch.ops.mkldnn._linear_pointwise

    def apply(x: Tensor) -> Tensor:
        if missing := padded_rows(len(x)) - len(x):
            x = F.pad(x, (0, 0, 0, missing))
        y: Tensor = multiply(x, packed, bias, "none", [], "")
        return y[: len(y) - missing]

    return apply


def _int8(weight: Tensor, bias: Tensor | None) -> Linear:
    scale = (weight.abs().amax(1) / 127).clamp(min=1e-12).bfloat16()
    rounded = (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    many = _for_many_rows(rounded * scale.float()[:, None], bias)
    bias = bias.bfloat16() if bias is not None else None
    multiply = torch.ops.aten._weight_int8pack_mm

    def apply(x: Tensor) -> Tensor:
        if x.shape[0] > INT8_ROWS:
            return many(x)
        y: Tensor = multiply(x, rounded, scale)
        return y if bias is None else y + bias

    return apply


def _for_many_rows(weight: Tensor, bias: Tensor | None) -> Linear:
    """Of bfloat16 rows, with weights that int8 rounded."""
    if has_bfloat16(weight[:1].bfloat16()):
        return linear(weight, bias, "bfloat16")
    exact = linear(weight, bias, "float32")
    return lambda x: exact(x.float()).bfloat16()


def bytes_a_weight(form: Format) -> int:
    """That a layer keeps on a CPU."""
    half = 2 if has_bfloat16(torch.empty(0, dtype=torch.bfloat16)) else 4
    return {"float32": 4, "bfloat16": 2, "int8": 1 + half}[form]


def can_pack(tensor: Tensor) -> bool:
    """Whether oneDNN multiplies it: on a CPU, bfloat16 only where that has instructions for it."""
    if tensor.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return tensor.dtype is torch.float32 or has_bfloat16(tensor)


def has_bfloat16(tensor: Tensor) -> bool:
    """Whether it is of bfloat16, on a CPU that has instructions to multiply it."""
    is_here = tensor.device.type == "cpu" and tensor.dtype is torch.bfloat16
    return is_here and bool(
        torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
