"""Plain models: the base as it is, or with one adapter merged into its own weights. For generating.

A merged model, with W + scale * B A written over W, takes half the time a token at batch 1 of one that wears
its adapter beside the base (policy.py). It is built from the files, never by merging in place: in bfloat16
an unmerge does not give back the same bits.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from chatbot.basemodel import Base, quiet_transformers

ADAPTER_FILE = "adapter_model.safetensors"


def pick_device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of `precision`: `float32`, `bfloat16`, or `auto`: bfloat16 where the hardware has it."""
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    has_bf16 = device.type == "cuda" or bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return torch.bfloat16 if has_bf16 else torch.float32


def load_model(base: Base, *, device: torch.device, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The plain base model: frozen, without dropout, on `device`."""
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            base.directory, dtype=dtype, attn_implementation=attention, use_safetensors=True
        )
    model.requires_grad_(False)
    return cast(PreTrainedModel, cast(nn.Module, model).to(device).eval())


def merged_model(
    base: Base, adapter: Path | None, *, device: torch.device, dtype: torch.dtype, attention: str = "sdpa"
) -> PreTrainedModel:
    """A plain model with the PEFT adapter in `adapter` merged into its own weights."""
    model = load_model(base, device=device, dtype=dtype, attention=attention)
    if adapter is not None:
        settings = json.loads((adapter / "adapter_config.json").read_text())
        scale = float(settings["lora_alpha"]) / float(settings["r"])
        tensors = load_file(adapter / ADAPTER_FILE, device=str(device))
        for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
            path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            weight = cast(Tensor, model.get_submodule(path).weight)
            weight.copy_(merged_weight(weight, tensors[key], tensors[key.replace("lora_A", "lora_B")], scale))
    return model


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale * B A, summed in float32 so that a small delta is rounded once, together with its weight."""
    return weight.float() + scale * (b.float() @ a.float())


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
    """Float32 logits of hidden states, with the soft cap that Gemma-like models put on them."""
    head = cast(Any, model.get_output_embeddings())
    logits: Tensor = head(hidden).float()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits
