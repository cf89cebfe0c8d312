"""Text as the database can hold it."""

import json
from typing import Any


def clean(text: str) -> str:
    """`text` as it can be stored: a lone surrogate or a NUL becomes the replacement character."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def to_json(value: Any) -> str:
    """JSON as stored in a column."""
    return clean(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
