"""Prompts that no person of this installation typed: those we practise on, those we judge on, and files.

The two sets ship as package data and share nothing: what the trainer practised on never judges it.
"""

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from data.database import clean
from data.errors import NotFound, Refused
from data.records import MessageRole, Prompt


@cache
def practice_prompts() -> tuple[Prompt, ...]:
    """What PPO rolls out on where people have not asked enough."""
    return _shipped("practice")


@cache
def judging_prompts() -> tuple[Prompt, ...]:
    """What the gate compares versions on."""
    return _shipped("judging")


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSONL file, a row each: {"prompt": [{"role": ..., "content": ...}, ...]}.

    Refused with the number of the first line that is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"There is no file {str(path)!r} - check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(
            f"The file {str(path)!r} cannot be read ({error}) - give a JSONL file in UTF-8."
        ) from error
    prompts = _parse(text, str(path), path.name)
    if not prompts:
        raise Refused(f"The file {str(path)!r} has no prompts - give at least one row.")
    return prompts


def chat_messages(value: Any) -> tuple[dict[str, str], ...]:
    """`value` as chat messages, cleaned; Refused with what is wrong, as a clause without its remedy."""
    if not isinstance(value, list) or not value:
        raise Refused("the messages are not a list with at least one entry")
    messages = []
    for entry in value:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise Refused("a message has no text in 'content'")
        if entry.get("role") not in get_args(MessageRole):
            raise Refused(f"a message has the role {entry.get('role')!r}")
        messages.append({"role": entry["role"], "content": clean(entry["content"])})
    return tuple(messages)


def _shipped(name: str) -> tuple[Prompt, ...]:
    text = resources.files("data.assets").joinpath(f"{name}.jsonl").read_text(encoding="utf-8")
    return tuple(_parse(text, f"{name}.jsonl", name))


def _parse(text: str, place: str, source: str) -> list[Prompt]:
    prompts = []
    for line, row in enumerate(text.split("\n"), start=1):
        if not row.strip():
            continue
        try:
            prompts.append(Prompt(_prompt(row), None, source))
        except (ValueError, Refused) as error:
            raise Refused(
                f'Line {line} of {place!r} is no prompt ({error}) - write {{"prompt": [{{"role": "user", '
                '"content": "..."}]}.'
            ) from error
    return prompts


def _prompt(row: str) -> tuple[dict[str, str], ...]:
    value = json.loads(row)
    messages = chat_messages(value.get("prompt") if isinstance(value, dict) else None)
    if messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise Refused("the last message is not a user's, or is empty")
    return messages
