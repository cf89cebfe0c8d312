"""Eight prompts with replies and what a float32 build says of them, for the manifest of a version.

The server computes the same with its own build before the version may answer anybody (chatbot/following.py):
an adapter that was trained but has no effect, or another effect, is found out there.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from chatbot.basemodel import Base
from chatbot.manifest import Canary
from chatbot.models import merged_model
from data.records import Prompt, Sampling
from trainer.forward import sample_replies
from trainer.rollout import logprobs_of

_COUNT = 8
_TOKENS = 24


def canaries(
    base: Base, adapter: Path, prompts: Sequence[Prompt], *, seed: int, four_bit: bool = False
) -> list[Canary]:
    """Replies of `adapter` to the first eight of `prompts`, with the mean log-probability of their tokens.

    With `four_bit` the base is quantised as it was in training: its log-probabilities are other ones.
    """
    model = merged_model(base, adapter, device=torch.device("cpu"), dtype=torch.float32, four_bit=four_bit)
    ids = [base.format.fit(prompt.messages, base.context // 2).ids for prompt in prompts[:_COUNT]]
    sampling = Sampling(max_new_tokens=_TOKENS)
    end = base.format.end_of_turn
    replies = sample_replies(  # in float32 a large base has room for one of its kind
        model, ids, sampling=sampling, end_of_turn=end, seed=seed, rows=_COUNT, copies=False
    )
    logprobs = logprobs_of(model, ids, [r.reply for r in replies], temperature=1.0)
    return [
        {
            "ids": r.ids,
            "reply_start": len(r.prompt),
            "logprob": float(values.mean()),
            "four_bit": four_bit,
        }
        for r, values in zip(replies, logprobs, strict=True)
    ]
