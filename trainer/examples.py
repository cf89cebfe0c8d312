"""Demonstrations as token ids: what fine-tuning learns from and is measured on, and what PPO-ptx repeats.

Now and then a demonstration is longer than memory allows: then its prompt loses its oldest turns, and of a
reply longer than its limit only the beginning teaches, which has no end of turn.
"""

import hashlib
import math
from collections.abc import Sequence
from contextlib import suppress

from chatbot.basemodel import Base
from data.demonstrations import Demonstration
from data.errors import Refused
from trainer.forward import Reply

LONGEST = 1024
"""Tokens of a demonstration with its prompt."""
LONGEST_REPLY = 512
HELD_OUT = 0.1
"""Share of the dialogues that only measure."""


def split(found: Sequence[Demonstration]) -> tuple[list[Demonstration], list[Demonstration]]:
    """What teaches and what measures, a dialogue whole in one of them; one dialogue only teaches.

    Imported rows that begin alike are one dialogue, though each is a conversation of its own.
    """
    groups = [demonstration.group for demonstration in found]
    order = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    measuring = set(order[: math.ceil(len(order) * HELD_OUT)]) if len(order) > 1 else set()
    parts: tuple[list[Demonstration], list[Demonstration]] = ([], [])
    for demonstration, group in zip(found, groups, strict=True):
        parts[group in measuring].append(demonstration)
    return parts


def as_replies(found: Sequence[Demonstration], base: Base) -> list[Reply]:
    """Token ids by the one chat format, without those whose last question alone is too long."""
    room = min(LONGEST, base.context)
    out = []
    for demonstration in found:
        reply = base.format.encode_reply(demonstration.reply)
        kept = reply[: min(LONGEST_REPLY, room // 2)]
        with suppress(Refused):  # the message does not fit
            prompt = base.format.fit(demonstration.messages, room - len(kept)).ids
            out.append(Reply(prompt, kept, len(kept) == len(reply)))
    return out
