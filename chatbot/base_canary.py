"""What the base's own weights say of one short text: by it a vLLM server shows that it holds the same base.

Computed once for a base, on the CPU, since the GPU is the servers', and remembered beside the adapter that
changes nothing (null_adapter.py). Where the weights do not fit into the memory that is free, nothing is
computed, and the servers are compared with the first of them alone (replicas.py).

Always without quantisation: a server in four bits is held to OTHER_FORMAT_TOLERANCE of canary.py.
"""

import logging
from pathlib import Path
from typing import cast

import torch

from chatbot.basemodel import Base, hollow_model
from chatbot.manifest import Canary
from chatbot.memory import LOADING, free_bytes, give_back
from chatbot.models import load_model
from chatbot.remembered import recall, remember
from data.errors import Refused

log = logging.getLogger(__name__)

TEXT = (
    "A school that opens at night has a short list of rules. Everybody may speak, nobody has to. What was "
    "said by day is read aloud once, and the youngest pupil writes down what should be said better tomorrow."
)
"""In the embedded model bfloat16 moves its end by 0.005 nats a token; noise of a twentieth of the spread of
each layer's weights does by 0.14."""
TOKENS = 32
"""Of its end."""
_REMEMBERED = "canary.json"


def text_ids(base: Base) -> tuple[list[int], int]:
    """Token ids, and from which on their log-probability is asked for."""
    ids = base.format.encode([{"role": "user", "content": TEXT}])
    return ids, max(1, len(ids) - TOKENS)


def base_canaries(base: Base, directory: Path) -> list[Canary]:
    """What `base` is held to, remembered in `directory`; nothing where its weights cannot be read here."""
    file = directory / _REMEMBERED
    if (canary := _remembered(base, file)) is None and (canary := _compute(base)) is not None:
        remember(file, dict(canary))
    return [] if canary is None else [canary]


def _remembered(base: Base, file: Path) -> Canary | None:
    """None where there is no such file, or where it is damaged or of another text."""
    match recall(file):
        case {"ids": ids, "reply_start": start, "logprob": float()} as canary:
            return cast(Canary, canary) if (ids, start) == text_ids(base) else None
    return None


@torch.inference_mode()
def _compute(base: Base) -> Canary | None:
    """None where there is no room, or where the model is none that is read here; said in the log."""
    cpu = torch.device("cpu")
    weights = sum(p.numel() for p in hollow_model(base.config).parameters())
    free = free_bytes(cpu)
    fits = (d for d in (torch.float32, torch.bfloat16) if LOADING * weights * d.itemsize < free)
    if (dtype := next(fits, None)) is None:
        log.warning(
            "The weights of %s do not fit into the %.1f GiB of memory that are free: whether the first "
            "engine holds the same base is not checked - free some memory and start again, or see to it "
            "yourself.",
            base.name,
            free / 2**30,
        )
        return None
    try:
        model = load_model(base, device=cpu, dtype=dtype)
    except Refused as refusal:
        log.warning("Whether the first engine holds the same base is not checked: %s", refusal)
        return None
    ids, start = text_ids(base)
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, start - 1 : -1].float()
    logprobs = logits.log_softmax(-1).gather(1, torch.tensor(ids[start:])[:, None])
    canary: Canary = {"ids": ids, "reply_start": start, "logprob": float(logprobs.mean())}
    if dtype == torch.bfloat16:
        canary["bfloat16"] = True
    del model, logits
    give_back(cpu)
    return canary
