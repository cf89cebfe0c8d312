"""From the hidden states of a model to its logits: what its head says, and what the model makes of that.

Most take the head's output as it is. Some multiply or divide it, some cap it; what a model does is found by
comparing, so that one whose logits would be made up is refused.
"""

from collections.abc import Iterator
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data.errors import Refused

PART_ROWS = {"cpu": 32, "cuda": 1024}
"""Rows of logits that are computed with at a time, by type of device: on a CPU what its cache holds."""
_FACTOR_NAMES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier")
"""What configurations call the factor between the head and the logits. Some divide by it."""
_FACTORS: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()
"""Of each model, as `factor_of` found it."""


def logits_of(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Float32 logits of hidden states, with the factor that Granite and others put on them, and with the soft
    cap of Gemma and others."""
    return _logits(model, hidden, factor_of(model))


def logits_in_parts(model: PreTrainedModel, hidden: Tensor) -> Iterator[Tensor]:
    """The same of (N, D), a few rows at a time: (n, V) each, in their order, together (N, V).

    A vocabulary is wide: all rows at once leave the processor's cache at every step from the product to a
    loss, and take two to three times as long (benchmarks/RESULTS.md).
    """
    factor = factor_of(model)
    for part in _head(model, hidden).split(PART_ROWS[hidden.device.type]):
        yield _finish(model, part, factor)


def factor_of(model: PreTrainedModel) -> float:
    """What this plain model multiplies its head's output by; found at the first call, by a short pass.

    Raises Refused for a model that does something unknown to its logits.
    """
    if model not in _FACTORS:
        _FACTORS[model] = _find_factor(model)
    return _FACTORS[model]


def _logits(model: PreTrainedModel, hidden: Tensor, factor: float) -> Tensor:
    return _finish(model, _head(model, hidden), factor)


def _head(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    head = cast(Any, model.get_output_embeddings())
    return cast(Tensor, head(hidden.to(head.weight.dtype)))  # some decoders add up in float32


def _finish(model: PreTrainedModel, said: Tensor, factor: float) -> Tensor:
    """What the model makes of what its head `said`, in float32."""
    logits = said.float() if factor == 1.0 else said.float() * factor
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


@torch.no_grad()
def _find_factor(model: PreTrainedModel) -> float:
    """The factor between what the head gives and the model's logits, found by comparing them: 1 for most.

    Raises Refused where no number in its configuration fits: its probabilities would be made up.
    """
    ids = torch.arange(1, 9, device=model.device)[None]  # 0 is padding for some, whose embedding is 0
    wanted = cast(Any, model)(input_ids=ids, use_cache=False).logits[0, -1].float()
    try:
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
    except (AttributeError, TypeError) as error:  # it is another part of the model, or all of it
        raise Refused(
            f"{model.config.model_type!r} has its layers where they are not looked for here - choose another "
            "model."
        ) from error
    config = model.config.get_text_config()
    named = [float(getattr(config, name)) for name in _FACTOR_NAMES if getattr(config, name, None)]
    for factor in (1.0, *named, *(1 / number for number in named)):
        if (_logits(model, hidden, factor) - wanted).abs().max() <= 0.02 * wanted.abs().max():
            return factor
    raise Refused(
        f"What {model.config.model_type!r} makes of its head's output is not known here - choose another "
        "model."
    )
