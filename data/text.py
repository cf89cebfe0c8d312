"""Text as the database can hold it, and find it again."""

import json
import re
import unicodedata
from typing import Any

MAX_CHARACTERS = 32_000
"""The longest text of one message or reply, whether it is typed, sent or read from a file."""
MOST_TERMS = 8
"""Of a search: each may have all of a person's messages read."""


def clean(text: str) -> str:
    """`text` as it can be stored: a lone surrogate or a NUL becomes the replacement character."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def folded(text: str) -> str:
    """`text` as a search compares it: in whichever case, and however its accents are composed."""
    return unicodedata.normalize("NFC", text).casefold()


def search_terms(text: str) -> list[str]:
    """What a search is for, folded: its words, and what stands in quotes as one; the longest `MOST_TERMS`."""
    found = re.findall(r'"([^"]*)"?|([^\s"]+)', re.sub("[“”„]", '"', folded(clean(text))))
    terms = {term for pair in found if (term := "".join(pair).strip())}
    return sorted(terms, key=lambda term: (-len(term), term))[:MOST_TERMS]


def from_json(text: str | bytes) -> Any:
    """The value of JSON that anybody may have written; ValueError where it is none, or goes too deep."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def to_json(value: Any) -> str:
    """JSON as stored in a column."""
    return clean(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
