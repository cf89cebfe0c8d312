"""Linear layers in each format: what they compute, alone and for many rows, and how far int8 rounds."""

import pytest
import torch
from torch import Tensor

from chatbot import kernels
from chatbot.kernels import INT8_ROWS, Format, linear, padded_rows

ROWS = [1, 4, INT8_ROWS, INT8_ROWS + 1, 40, 67]


def a_layer(bias: bool) -> tuple[Tensor, Tensor | None]:
    dice = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=dice) / 8
    return weight, torch.randn(96, generator=dice) if bias else None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("form", "error"), [("float32", 1e-6), ("bfloat16", 0.02), ("int8", 0.03)])
def test_every_format_computes_the_layer(form: Format, error: float, rows: int, bias: bool) -> None:
    weight, b = a_layer(bias)
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(1))
    y = linear(weight, b, form)(x if form == "float32" else x.bfloat16()).float()
    wanted = torch.nn.functional.linear(x, weight, b)
    assert y.shape == (rows, 96)
    assert float((y - wanted).abs().max()) < error * float(wanted.abs().max())


def test_the_counts_of_rows_that_onednn_sees_are_few_and_little_larger() -> None:
    padded = [padded_rows(rows) for rows in range(1, 1025)]
    assert all(rows <= more <= 1.25 * rows or more - rows < 8 for rows, more in enumerate(padded, start=1))
    assert len(set(padded)) <= 50 and padded[:9] == [1, 2, 3, 4, 5, 6, 7, 8, 16] and padded[511] == 512


def test_few_rows_and_many_rows_in_int8_have_the_same_weights() -> None:
    """Two kernels, one layer: what differs is the rounding of sums, far below that of the weights."""
    weight, _ = a_layer(False)
    apply = linear(weight, None, "int8")
    x = torch.randn(INT8_ROWS, 64).bfloat16()
    many = apply(torch.cat([x, torch.zeros(40, 64).bfloat16()]))[:INT8_ROWS]
    torch.testing.assert_close(apply(x).float(), many.float(), atol=0.03, rtol=0.02)


@pytest.mark.parametrize("bias", [False, True])
def test_many_rows_in_int8_are_computed_in_float32_where_bfloat16_would_be_emulated(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "has_bfloat16", lambda tensor: False)
    weight, b = a_layer(bias)
    apply = linear(weight, b, "int8")
    assert kernels.bytes_a_weight("int8") == 5
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.profiler.profile() as profile:
        y = apply(x)
    assert y.dtype is torch.bfloat16
    few = torch.cat([apply(part) for part in x.split(INT8_ROWS)])
    torch.testing.assert_close(y.float(), few.float(), atol=0.03, rtol=0.02)
    assert "mkldnn::_linear_pointwise" in {event.key for event in profile.key_averages()}


def test_weights_of_float32_are_packed_too() -> None:
    """Otherwise four rows take twice as long as one: a reply alone would cost half of four."""
    weight, b = a_layer(True)
    apply = linear(weight, b, "float32")
    with torch.profiler.profile() as profile:
        apply(torch.ones(4, 64))
    assert "mkldnn::_linear_pointwise" in {event.key for event in profile.key_averages()}


def test_an_output_whose_weights_are_all_zero_stays_zero_in_int8() -> None:
    weight, _ = a_layer(False)
    weight[7] = 0
    assert linear(weight, None, "int8")(torch.ones(2, 64).bfloat16())[:, 7].tolist() == [0.0, 0.0]
