"""What no person of this installation typed: prompts to practise and judge on, probes of a model, files.

All of it ships as package data, written for this project. Practice and judging share nothing: what the
trainer practised on never judges it. The probes test what no vote may cost: harmless prompts that sound
dangerous, short items with one right choice, a fixed text, and prompts in two wordings.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from data.errors import Refused
from data.files import lines_of
from data.records import MessageRole, Prompt
from data.text import MAX_CHARACTERS, clean, from_json


@cache
def practice_prompts(language: str | None = None) -> tuple[Prompt, ...]:
    """What PPO rolls out on where people have not asked enough, in `en` or `zh`, or in both."""
    return _shipped("practice", language)


@cache
def judging_prompts(language: str | None = None) -> tuple[Prompt, ...]:
    """What the gate compares versions on, beside what people ask, in `en` or `zh`, or in both."""
    return _shipped("judging", language)


@dataclass(frozen=True)
class Paraphrase:
    """One question in two wordings, and two replies that suit both: a reward model should not mind which."""

    prompt: str
    reworded: str
    replies: tuple[str, str]


@dataclass(frozen=True)
class Item:
    """The beginning of a sentence and ways to end it, of which one is right."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    """The place of the right choice."""


@cache
def borderline_prompts(language: str | None = None) -> tuple[Prompt, ...]:
    """Harmless prompts that sound dangerous, in `en` or `zh`, or in both; refusing one is a mistake."""
    return _shipped("borderline", language)


@cache
def paraphrases() -> tuple[Paraphrase, ...]:
    """Prompts with a second wording and two plausible replies."""
    rows = map(json.loads, _rows("paraphrases.jsonl"))
    return tuple(Paraphrase(r["prompt"], r["reworded"], (r["replies"][0], r["replies"][1])) for r in rows)


@cache
def capability_items() -> tuple[Item, ...]:
    """Short items of everyday knowledge and grammar, four choices each."""
    rows = map(json.loads, _rows("capability.jsonl"))
    return tuple(Item(row["prompt"], tuple(row["choices"]), row["answer"]) for row in rows)


@cache
def passage() -> str:
    """A fixed text of about a thousand words, for perplexity."""
    return _text("passage.txt")


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSONL file, plain or gzip'd: {"prompt": [{"role": ..., "content": ...}, ...]} a row.

    Refused with the number of the first line that is none.
    """
    prompts = _parse(lines_of(path), str(path), path.name)
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
        check_length(entry["content"])
        messages.append({"role": entry["role"], "content": clean(entry["content"])})
    return tuple(messages)


def check_length(text: str) -> None:
    """Refused, with a clause, where a message or reply of a file is longer than one in a chat may be."""
    if len(text) > MAX_CHARACTERS:
        raise Refused(f"a text has {len(text):,} characters, more than {MAX_CHARACTERS:,}")


def _shipped(name: str, language: str | None) -> tuple[Prompt, ...]:
    wanted = [row for row in _rows(f"{name}.jsonl") if language in (None, json.loads(row)["language"])]
    return tuple(_parse(wanted, f"{name}.jsonl", name))


def _rows(file: str) -> list[str]:
    return _text(file).strip().split("\n")


def _text(file: str) -> str:
    return resources.files("data.assets").joinpath(file).read_text(encoding="utf-8")


def _parse(rows: Iterable[str | bytes], place: str, source: str) -> list[Prompt]:
    prompts = []
    for line, row in enumerate(rows, start=1):
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


def _prompt(row: str | bytes) -> tuple[dict[str, str], ...]:
    value = from_json(row)
    messages = chat_messages(value.get("prompt") if isinstance(value, dict) else None)
    if messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise Refused("the last message is not a user's, or is empty")
    return messages
