"""Eight prompts with replies and what an exact build says of them, for the manifest of a version.

The server computes the same with its own build before the version may answer anybody (chatbot/following.py):
an adapter that was trained but has no effect, or another effect, is found out there.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from chatbot.basemodel import Base, hollow_model
from chatbot.manifest import Canary
from chatbot.memory import LOADING, free_bytes
from chatbot.models import merged_model, pick_device, pick_dtype
from data.records import Prompt, Sampling
from trainer.forward import logprobs_of
from trainer.sampler import sample_replies

_COUNT = 8
_TOKENS = 24
_FOUR_BITS = 0.6
"""Bytes of a weight in four bits, with its part of the scales."""


def canaries(
    base: Base, adapter: Path, prompts: Sequence[Prompt], *, seed: int, four_bit: bool = False
) -> list[Canary]:
    """Replies of `adapter` to the first eight of `prompts`, with the mean log-probability of their tokens.

    They are read as `exact_format` says; a canary tells where that was not float32. With `four_bit` the base
    is quantised as it was in training: its log-probabilities are other ones.
    """
    device, dtype = exact_format(base, four_bit=four_bit)
    with device:  # onto a GPU from the files, not by way of as much of the machine's own memory
        model = merged_model(base, adapter, device=device, dtype=dtype, four_bit=four_bit)
    ids = [base.format.fit(prompt.messages, base.context // 2).ids for prompt in prompts[:_COUNT]]
    sampling = Sampling(max_new_tokens=_TOKENS)
    end = base.format.end_of_turn
    replies = sample_replies(  # where a large base is read, there is room for one of its kind
        model, ids, sampling=sampling, end_of_turn=end, seed=seed, rows=_COUNT, copies=False
    )
    logprobs = logprobs_of(model, ids, [r.reply for r in replies], temperature=1.0)
    told: list[Canary] = [
        {
            "ids": r.ids,
            "reply_start": len(r.prompt),
            "logprob": float(values.mean()),
            "four_bit": four_bit,
        }
        for r, values in zip(replies, logprobs, strict=True)
    ]
    if dtype == torch.bfloat16:
        for canary in told:
            canary["bfloat16"] = True
    return told


def exact_format(base: Base, *, four_bit: bool) -> tuple[torch.device, torch.dtype]:
    """Where, and in which dtype, a plain model of `base` is read most exactly.

    In float32 on the GPU, or else on the CPU, if there is room for that beside what is there; else in what
    the hardware computes in by itself.
    """
    needed, usual = _float32_bytes(base, four_bit), pick_device()
    for device in (usual, torch.device("cpu")):
        if free_bytes(device) > needed:
            return device, torch.float32
    return usual, pick_dtype("auto", usual)


def _float32_bytes(base: Base, four_bit: bool) -> int:
    """What it takes to load a plain model in float32, with its linear layers in four bits if asked for."""
    model = hollow_model(base.config)
    output, small = model.get_output_embeddings(), 0
    if four_bit:
        linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not output]
        small = sum(layer.weight.numel() for layer in linear)
    whole = sum(parameter.numel() for parameter in model.parameters()) - small
    return int(LOADING * (4 * whole + _FOUR_BITS * small))
