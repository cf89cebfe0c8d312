"""What a program asks of /v1/chat/completions, read and checked before a token is spent.

Four kinds of parameters. Those in `READ` do something. `NEUTRAL` ones would change the reply, and this
server cannot: they are refused, unless their value asks for nothing. `HINTS` change no reply and are left
unread. Any other is refused as unknown, as OpenAI does: a misspelt `temprature` must not pass in silence.

Left out on purpose: tools, images, sound, penalties, JSON mode, and the log-probabilities of other tokens.
"""

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chatbot.generation import MAX_REPLIES
from chatbot.openai_errors import Invalid
from data.records import Sampling
from data.text import MAX_CHARACTERS

MAX_MESSAGES = 2_000
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 200
MAX_TOKENS = 100_000
USUAL_TOKENS = 1024
"""The `max_tokens` of a request that names none, where there is room for it."""
MAX_SEED = 2**62
_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")
"""A surrogate by itself, which JSON can name and no reply can have."""

LEAST_TOP_P = 1e-6
"""What a `top_p` of 0 stands for: the likeliest token alone."""
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
READ = {
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "model",
    "n",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
}
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "web_search_options": (),
}
"""Each with the values that ask for nothing; null always does."""
HINTS = {
    "metadata",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
}


@dataclass(frozen=True)
class ChatRequest:
    """A request that makes sense; whether there is room for it, the engine says."""

    model: str
    messages: list[dict[str, str]]
    replies: int
    sampling: Sampling
    has_limit: bool
    """Whether it names how many tokens a reply may have; else less will do where there is no room for it."""
    seed: int | None
    stop: tuple[str, ...]
    streams: bool
    counts_tokens: bool
    """Whether a stream ends with its usage; whole answers always have it."""
    has_logprobs: bool

    def draw_seeds(self) -> list[int]:
        """One a reply, others at each call where none is given; that of the first reply depends on no `n`."""
        first = random.getrandbits(31) if self.seed is None else self.seed
        return [first + i for i in range(self.replies)]


def read_request(body: bytes) -> ChatRequest:
    """The request in `body`. Raises Invalid or Refused."""
    asked = _parsed(body)
    _check_names(asked)
    options = asked.get("stream_options")
    streams = _flag(asked, "stream")
    if options is not None and not (isinstance(options, dict) and streams):
        raise Invalid("'stream_options' is an object beside `stream: true` - leave it out.", "stream_options")
    newer, older = "max_completion_tokens", "max_tokens"
    limit = _whole(asked, newer if asked.get(newer) is not None else older, 1, MAX_TOKENS)
    default = Sampling()
    return ChatRequest(
        model=_model(asked.get("model")),
        messages=_messages(asked.get("messages")),
        replies=_whole(asked, "n", 1, MAX_REPLIES) or 1,
        sampling=Sampling(
            temperature=_number(asked, "temperature", 0, 5, default.temperature),
            top_p=_number(asked, "top_p", 0, 1, default.top_p) or LEAST_TOP_P,
            max_new_tokens=limit or USUAL_TOKENS,
        ),
        has_limit=limit is not None,
        seed=_whole(asked, "seed", -MAX_SEED, MAX_SEED),
        stop=_stop(asked.get("stop")),
        streams=streams,
        counts_tokens=_flag(options or {}, "include_usage"),
        has_logprobs=_flag(asked, "logprobs"),
    )


def _parsed(body: bytes) -> dict[str, Any]:
    """The JSON object in the body; NaN and infinities, which Python would take, are no JSON."""
    try:
        asked = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise Invalid("The body is no JSON object - send one with `model` and `messages`.")
    return asked


def _no_number(name: str) -> None:
    raise ValueError(name)


def _check_names(asked: dict[str, Any]) -> None:
    for name, value in asked.items():
        if name in NEUTRAL:
            if value is not None and not any(_is_same(value, neutral) for neutral in NEUTRAL[name]):
                raise Invalid(
                    f"{name!r} is not supported here with this value - leave it out.",
                    name,
                    "unsupported_parameter",
                )
        elif name not in READ and name not in HINTS:
            raise Invalid(
                f"There is no parameter {_shown(name)} - check how it is written, or leave it out.",
                None,
                "unknown_parameter",
            )


def _is_same(value: Any, neutral: Any) -> bool:
    """Equality, but for `False == 0`."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


def _shown(value: Any) -> str:
    """A value as part of a sentence: short, and with nothing in it that cannot be printed."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _flag(asked: dict[str, Any], name: str) -> bool:
    value = asked.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise Invalid(f"{name!r} is {_shown(value)} - use true or false.", name)


def _whole(asked: dict[str, Any], name: str, least: int, most: int) -> int | None:
    value = asked.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Invalid(f"{name!r} is {_shown(value)} - use a whole number from {least:,} to {most:,}.", name)
    return value


def _number(asked: dict[str, Any], name: str, least: float, most: float, default: float) -> float:
    value = asked.get(name)
    if value is None:
        return default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        raise Invalid(f"{name!r} is {_shown(value)} - use a number from {least} to {most}.", name)
    return float(value)


def _model(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise Invalid("'model' is missing - use one that /v1/models names, such as 'night-school'.", "model")
    return name


def _stop(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or len(texts) > MAX_STOPS:
        raise Invalid(f"'stop' is {_shown(value)} - use a text, or a list of up to {MAX_STOPS}.", "stop")
    for text in texts:
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            length = f"1 to {MAX_STOP_CHARACTERS} characters"
            raise Invalid(f"'stop' has {_shown(text)} in it - use texts of {length}.", "stop")
        if _HALF_A_CHARACTER.search(text):
            raise Invalid(f"'stop' has half a character in {_shown(text)} - use whole ones.", "stop")
    return tuple(texts)


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise Invalid("'messages' is empty or no list - send at least one message.", "messages")
    if len(value) > MAX_MESSAGES:
        raise Invalid(
            f"There are {len(value):,} messages, more than {MAX_MESSAGES:,} - send the last ones.", "messages"
        )
    return [_message(message, f"messages[{i}]") for i, message in enumerate(value)]


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise Invalid(f"{where} is {_shown(message)} - send an object with `role` and `content`.", where)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(ROLES)
        raise Invalid(f"The role of {where} is {_shown(role)} - use one of {known}.", f"{where}.role")
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            raise Invalid(f"{where} has {name!r}, which is not read here - leave it out.", f"{where}.{name}")
    text = _text(message.get("content"), f"{where}.content")
    if len(text) > MAX_CHARACTERS:
        raise Invalid(
            f"{where} has {len(text):,} characters, more than {MAX_CHARACTERS:,} - shorten it.", where
        )
    return {"role": ROLES[role], "content": text}


def _text(content: Any, where: str) -> str:
    """A message's content: a text, or parts of which each is text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise Invalid(f"{where} is {_shown(content)} - send a text, or a list of text parts.", where)
    texts = [part.get("text") if isinstance(part, dict) else None for part in content]
    for part, text in zip(content, texts, strict=True):
        if not isinstance(text, str) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else part
            raise Invalid(f"{where} has a part {_shown(kind)} - only parts of type 'text' are read.", where)
    return "\n".join(str(text) for text in texts)
