"""Text as the database can hold it, and find it again."""

import json
import unicodedata
from typing import Any


def clean(text: str) -> str:
    """`text` as it can be stored: a lone surrogate or a NUL becomes the replacement character."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def folded(text: str) -> str:
    """`text` as a search compares it: in whichever case, and however its accents are composed."""
    return unicodedata.normalize("NFC", text).casefold()


def to_json(value: Any) -> str:
    """JSON as stored in a column."""
    return clean(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
