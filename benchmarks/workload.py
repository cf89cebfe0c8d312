"""What serving.py asks of every side: rounds of the same scenes, each with prompts of its own.

A scene is sixteen requests at once, or one prompt alone with one reply or four. A prompt is made of practice
prompts, so its length is chosen and its words are not; no two are alike beyond the chat template.
"""

import random
from collections.abc import Iterator
from typing import Any

from chatbot.basemodel import Base
from data.prompts import practice_prompts

PROMPTS = (40, 160, 72, 256, 56, 120, 96, 200, 48, 224, 64, 176, 88, 136, 104, 240)
REPLIES = (16, 128, 40, 96, 24, 64, 112, 48, 32, 88, 72, 56, 104, 20, 80, 68)
"""Tokens of the sixteen prompts, at most, and of their replies, exactly: 1,048 in all."""
ALONE = (64, 512)
"""Tokens of the prompts that are answered alone."""
ALONE_TOKENS = 64
MIXED = "mixed"

Request = dict[str, Any]
"""`text`, its `ids` in the template, how many `new` tokens, how many `replies`, at which `temperature`."""
Round = dict[str, list[Request]]
"""The requests of each scene."""


def make_rounds(base: Base, count: int) -> list[Round]:
    """Each round: the sixteen, greedy; then one reply and four, sampled so that the four differ."""
    supply = texts()
    rounds = []
    for _ in range(count):
        sizes = zip(PROMPTS, REPLIES, strict=True)
        scenes = {MIXED: [request(base, supply, longest, new) for longest, new in sizes]}
        for longest in ALONE:
            for replies in (1, 4):
                scenes[alone(longest, replies)] = [request(base, supply, longest, ALONE_TOKENS, replies, 0.8)]
        rounds.append(scenes)
    return rounds


def alone(longest: int, replies: int) -> str:
    """The name of the scene of `replies` replies to one prompt of `longest` tokens."""
    return f"{replies} to {longest}"


def texts() -> Iterator[str]:
    """Practice prompts without end, every time round in another order."""
    order, once = random.Random(0), [prompt.messages[-1]["content"] for prompt in practice_prompts()]
    while True:
        order.shuffle(once)
        yield from once


def request(
    base: Base, supply: Iterator[str], longest: int, new: int, replies: int = 1, temperature: float = 0.0
) -> Request:
    """Texts in a row until they have `longest` tokens, less the words that are too many."""
    text = next(supply)
    while len(ids_of(base, text)) < longest:
        text += " " + next(supply)
    while len(ids := ids_of(base, text)) > longest and " " in text:
        text = text.rsplit(" ", 1)[0]
    return {"text": text, "ids": ids, "new": new, "replies": replies, "temperature": temperature}


def ids_of(base: Base, text: str) -> list[int]:
    """The prompt as every side reads it."""
    return base.format.encode([{"role": "user", "content": text}])
