"""A linear layer for generating, in one of three formats; precision.py measures which is the fastest.

    float32    as it is
    bfloat16   on a CPU packed once for oneDNN, which would otherwise pack the weights for every product
    int8       a byte per weight and a scale per output; many rows at once compute in bfloat16 with the very
               same rounded weights, since the int8 kernel of the CPU is worth it for a few rows only

Decoding is bound by reading weights: half the bytes give up to twice the tokens a second.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Format = Literal["float32", "bfloat16", "int8"]
Linear = Callable[[Tensor], Tensor]
"""(N, in) -> (N, out)."""

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
    if form == "float32":
        return _plain(weight.float(), bias.float() if bias is not None else None)
    half = bias.bfloat16() if bias is not None else None
    return _int8(weight, half) if form == "int8" else _bfloat16(weight.bfloat16(), half)


def _plain(weight: Tensor, bias: Tensor | None) -> Linear:
    return lambda x: F.linear(x, weight, bias)


def _bfloat16(weight: Tensor, bias: Tensor | None) -> Linear:
    if not can_pack(weight):
        return _plain(weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)
    multiply = torch.ops.mkldnn._linear_pointwise

    def apply(x: Tensor) -> Tensor:
        if missing := padded_rows(len(x)) - len(x):
            x = F.pad(x, (0, 0, 0, missing))
        y: Tensor = multiply(x, packed, bias, "none", [], "")
        return y[: len(y) - missing]

    return apply


def _int8(weight: Tensor, bias: Tensor | None) -> Linear:
    weight = weight.float()
    scale = (weight.abs().amax(1) / 127).clamp(min=1e-12).bfloat16()
    rounded = (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    many = _bfloat16((rounded * scale.float()[:, None]).bfloat16(), bias)
    multiply = torch.ops.aten._weight_int8pack_mm

    def apply(x: Tensor) -> Tensor:
        if x.shape[0] > INT8_ROWS:
            return many(x)
        y: Tensor = multiply(x, rounded, scale)
        return y if bias is None else y + bias

    return apply


def can_pack(tensor: Tensor) -> bool:
    """Whether oneDNN multiplies it: bfloat16 on a CPU that has instructions for that."""
    if tensor.device.type != "cpu" or tensor.dtype is not torch.bfloat16:
        return False
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
