"""Keys and values that outlive their reply: the next turn of a conversation begins with them.

The prompt of the K replies to a turn is kept once, and each reply beside it; whichever reply the person goes
on from, the next prompt begins with prompt and reply, and only what is new is read. The entry that was used
longest ago goes first; where programs have more than a quarter, it is one of theirs. No entry takes more than
half of the memory: of a longer prompt the beginning is kept.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from chatbot.shelves import Place


@dataclass(eq=False)
class _Kept:
    """What tokens left behind: (L, H, T, D) each."""

    token_ids: tuple[int, ...]
    keys: Tensor
    values: Tensor
    priority: int = 0
    """Of the most urgent request that had it."""
    replies: "dict[tuple[int, ...], _Kept]" = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes, with its replies."""
        own = self.keys.nbytes + self.values.nbytes
        return own + sum(reply.size for reply in self.replies.values())


class Prefixes:
    """The memory of one version's runner."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._held = 0
        self._prompts: OrderedDict[tuple[int, ...], _Kept] = OrderedDict()

    def remember(self, prompt: Sequence[int], reply: Sequence[int], place: Place, priority: int = 0) -> None:
        """Keep what `place` holds of a prompt and of the reply to it, up to half of the memory. `priority`
        is that of the request; 0 is a chat."""
        if place.length < len(prompt):
            return
        one = _column_bytes(place)
        key = tuple(prompt[: self._most // 2 // one])
        if not key:
            return
        entry = self._prompts.get(key)
        if entry is None:
            entry = self._prompts[key] = _Kept(key, *place.copy(0, len(key)), priority)
            self._held += entry.size
        entry.priority = min(entry.priority, priority)
        self._prompts.move_to_end(key)
        said = tuple(reply[: place.length - len(prompt)]) if len(key) == len(prompt) else ()
        fits = entry.size + len(said) * one <= self._most // 2
        if said and fits and said not in entry.replies:
            entry.replies[said] = _Kept(said, *place.copy(len(prompt)))
            self._held += entry.replies[said].size
        while self._held > self._most and self._prompts:
            theirs = [key for key, kept in self._prompts.items() if kept.priority > 0]
            is_much = sum(self._prompts[key].size for key in theirs) > self._most // 4
            oldest = theirs[0] if is_much else next(iter(self._prompts))
            self._held -= self._prompts.pop(oldest).size

    def recall(self, prompt: Sequence[int], place: Place) -> int:
        """Put what is known of the beginning of `prompt` into the empty `place`: how many tokens that is.

        At least the last token is left to be read: its logits are wanted.
        """
        most, best = len(prompt) - 1, 0
        chosen: tuple[_Kept, _Kept | None] | None = None
        for key, entry in self._prompts.items():
            count = _common(key, prompt)
            reply = None
            if count == len(key):
                rest = prompt[count:]
                found = [(_common(said, rest), kept) for said, kept in entry.replies.items()]
                length, reply = max(found, key=lambda pair: pair[0], default=(0, None))
                count += length
            if min(count, most) > best:
                best, chosen = min(count, most), (entry, reply)
        if chosen is None:
            return 0
        entry, reply = chosen
        self._prompts.move_to_end(entry.token_ids)
        first = min(best, len(entry.token_ids))
        place.put(entry.keys[:, :, :first], entry.values[:, :, :first])
        if reply is not None and best > first:
            place.put(reply.keys[:, :, : best - first], reply.values[:, :, : best - first])
        return best


def _column_bytes(place: Place) -> int:
    """Of keys and values of one token."""
    keys, values = place.shelf.keys, place.shelf.values  # (L, families, H, T, D) each
    return (keys.nbytes + values.nbytes) // (keys.shape[1] * keys.shape[3])


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count
