"""Plain models: the base as it is, or with one adapter merged into its own weights. For generating.

A merged model, with W + scale * B A written over W, takes half the time a token at batch 1 of one that wears
its adapter beside the base (policy.py). It is built from the files, never by merging in place: in bfloat16
an unmerge does not give back the same bits. A base in four bits is not merged into at all (fourbit.py).
"""

import json
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from chatbot import fourbit
from chatbot.adapters import CONFIG, TENSORS
from chatbot.basemodel import Base, quiet_transformers
from chatbot.logits import factor_of


def pick_device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def usual_reply(device: torch.device) -> int:
    """Tokens of a reply where nobody says how many it may have."""
    return 256 if device.type == "cuda" else 128


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
    factor_of(loaded)  # now, so that it is refused before it is used
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
