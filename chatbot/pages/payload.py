"""What a browser sent, read with suspicion: right types, bounded lengths, else Refused.

The page's own script never sends anything else, so a person meets these sentences only after an update of the
server, when an old page is still open.
"""

from collections.abc import Mapping

import gradio as gr

from data.errors import Refused

ID_LENGTH = 64
MISUNDERSTOOD = "The page sent something the server does not understand - reload it."


class Payload:
    """The named values of one event."""

    def __init__(self, values: object) -> None:
        if not isinstance(values, Mapping):
            raise Refused(MISUNDERSTOOD)
        self._values = values

    @classmethod
    def of(cls, event: gr.EventData) -> "Payload":
        return cls(event._data)

    def text(self, name: str, limit: int = ID_LENGTH) -> str:
        """A text of at most `limit` characters; missing reads as empty."""
        value = self._values.get(name) or ""
        if not isinstance(value, str) or len(value) > limit:
            raise Refused(MISUNDERSTOOD)
        return value

    def number(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number from `low` to `high`; missing reads as `default` where there is one."""
        value = self._values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise Refused(MISUNDERSTOOD)
        return value

    def bounded(self, name: str, low: int, high: int) -> int:
        """A whole number, brought to between `low` and `high`; missing reads as `low`."""
        value = self._values.get(name, low)
        if not isinstance(value, int) or isinstance(value, bool):
            raise Refused(MISUNDERSTOOD)
        return min(max(value, low), high)

    def yes(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            raise Refused(MISUNDERSTOOD)
        return value

    def texts(self, name: str, most: int, limit: int = ID_LENGTH) -> list[str]:
        """At most `most` texts."""
        values = self._values.get(name) or []
        if not isinstance(values, list) or len(values) > most:
            raise Refused(MISUNDERSTOOD)
        if not all(isinstance(value, str) and len(value) <= limit for value in values):
            raise Refused(MISUNDERSTOOD)
        return list(values)

    def numbers(self, name: str, most: int, low: int, high: int) -> dict[str, int]:
        """At most `most` whole numbers, each from `low` to `high`, by name."""
        values = self._values.get(name) or {}
        if not isinstance(values, Mapping) or len(values) > most:
            raise Refused(MISUNDERSTOOD)
        inner = Payload(values)
        return {str(key): inner.number(key, low, high) for key in values}

    def part(self, name: str) -> "Payload | None":
        """Named values inside these; None where there are none."""
        values = self._values.get(name)
        return None if values is None else Payload(values)

    @property
    def look(self) -> int:
        """Which look at the page asked; the answer carries it back, so that a late one can be told."""
        return self.number("look", 0, 1_000_000_000, default=0)
