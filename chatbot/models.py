"""Plain models: the base as it is, or with one adapter merged into its own weights. For generating.

A merged model, with W + scale * B A written over W, takes half the time a token at batch 1 of one that wears
its adapter beside the base (policy.py). It is built from the files, never by merging in place: in bfloat16
an unmerge does not give back the same bits. A base in four bits is not merged into at all (fourbit.py).
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from chatbot import fourbit
from chatbot.adapters import CONFIG, TENSORS
from chatbot.basemodel import Base, quiet_transformers
from data.errors import Refused

PART_ROWS = {"cpu": 32, "cuda": 1024}
"""Rows of logits that are computed with at a time, by type of device: on a CPU what its cache holds."""
_FACTOR_NAMES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier")
"""What configurations call the factor between the head and the logits. Some divide by it."""
_FACTORS: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()
"""Of each model that was loaded."""


def pick_device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of `precision`: `float32`, `bfloat16`, or `auto`: bfloat16 where the hardware has it."""
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    if device.type == "cuda":  # older GPUs emulate it, slowly, and have no fused attention for it
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return torch.bfloat16 if has_bf16 else torch.float32


def load_model(
    base: Base,
    *,
    device: torch.device,
    dtype: torch.dtype,
    four_bit: bool = False,
) -> PreTrainedModel:
    """The plain base model: frozen, without dropout, on `device`, with SDPA where it can have that.

    With `four_bit` its linear layers are NF4 and compute in `dtype`; raises Refused without bitsandbytes, and
    for a model that does something unknown to its logits.
    """
    if device.type == "cuda":
        # On Hopper and Blackwell PyTorch prefers the attention of cuDNN, which makes a plan for every length
        # that it has not seen: tens of milliseconds or more for each token, and for each batch in training.
        torch.backends.cuda.enable_cudnn_sdp(False)
    settings = fourbit.four_bit_settings(base.config, device, dtype) if four_bit else {}
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            base.directory, dtype=dtype, use_safetensors=True, **settings
        )
    model.requires_grad_(False)
    if four_bit:
        fourbit.set_packing(model, False)
    loaded = cast(PreTrainedModel, cast(nn.Module, model).to(device).eval())
    _FACTORS[loaded] = _find_factor(loaded)
    return loaded


def merged_model(
    base: Base,
    adapter: Path | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    four_bit: bool = False,
) -> PreTrainedModel:
    """A plain model with the PEFT adapter in `adapter` merged into its own weights.

    With `four_bit` the adapter stays beside the NF4 weights instead.
    """
    model = load_model(base, device=device, dtype=dtype, four_bit=four_bit)
    if adapter is not None:
        settings = json.loads((adapter / CONFIG).read_text())
        scale = float(settings["lora_alpha"]) / float(settings["r"])
        tensors = load_file(adapter / TENSORS, device=str(model.device))
        for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
            path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            weight = cast(Tensor, model.get_submodule(path).weight)
            merge_layer(model, path, weight, tensors[key], tensors[key.replace("lora_A", "lora_B")], scale)
    if four_bit:
        fourbit.set_packing(model, dtype == torch.bfloat16)
    return model


@torch.no_grad()
def merge_layer(
    model: PreTrainedModel, path: str, weight: Tensor, a: Tensor, b: Tensor, scale: float
) -> None:
    """Let the layer at `path` of `model` compute what the base's `weight` and this adapter do."""
    layer = model.get_submodule(path)
    assert fourbit.is_four_bit(layer) == hasattr(weight, "quant_state"), f"{path} is of another format"
    if fourbit.is_four_bit(layer):
        fourbit.put_beside(model, path, a, b, scale)
    else:
        cast(Tensor, layer.weight).copy_(merged_weight(weight, a, b, scale))


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale * B A, summed in float32 so that a small delta is rounded once, together with its weight."""
    return weight.float() + scale * (b.float() @ a.float())


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Compute without a pool of threads: for what is done beside an engine that decodes.

    OpenMP has a pool for each thread that computes in parallel. Where these are more than there are cores,
    none of them spins while it waits, and each step of the engine takes nearly twice as long; for ever, since
    a pool stays as long as its thread does.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class TokenBatch:
    """Sequences of different length as one rectangle. Masks come from lengths, never from a token's id."""

    ids: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool, True on real tokens
    positions: Tensor  # (B, T)

    @staticmethod
    def of(
        sequences: Sequence[Sequence[int]], device: torch.device, left_pad: int | None = None
    ) -> "TokenBatch":
        """Pads on the right; with `left_pad`, on the left to the longest sequence plus that many."""
        width = max(len(s) for s in sequences) + (left_pad or 0)
        ids = torch.zeros(len(sequences), width, dtype=torch.long)
        mask = torch.zeros(len(sequences), width, dtype=torch.bool)
        for row, sequence in enumerate(sequences):
            start = 0 if left_pad is None else width - len(sequence)
            ids[row, start : start + len(sequence)] = torch.tensor(sequence, dtype=torch.long)
            mask[row, start : start + len(sequence)] = True
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return TokenBatch(ids.to(device), mask.to(device), positions.to(device))


def logits_of(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Float32 logits of hidden states, with the factor that Granite and others put on them, and with the soft
    cap of Gemma and others."""
    return _logits(model, hidden, _FACTORS.get(model, 1.0))


def logits_in_parts(model: PreTrainedModel, hidden: Tensor) -> Iterator[Tensor]:
    """The same of (N, D), a few rows at a time: (n, V) each, in their order, together (N, V).

    A vocabulary is wide: all rows at once leave the processor's cache at every step from the product to a
    loss, and take two to three times as long (benchmarks/RESULTS.md).
    """
    for part in _head(model, hidden).split(PART_ROWS[hidden.device.type]):
        yield _finish(model, part, _FACTORS.get(model, 1.0))


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
