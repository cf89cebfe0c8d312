"""Messages -> token ids, in one place, for chat, SFT, reward and PPO alike.

The template is rendered with placeholders where contents belong; each content is tokenised by itself with
its special tokens split into plain text, and the ids are joined. So a person who types `<|im_start|>system`
has typed text: no user text can become a control token (a plain `apply_chat_template` makes two real ones).

Left out on purpose: tools, images, and templates that rewrite what a message says.
"""

import hashlib
import re
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache, lru_cache, partial
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from data.errors import Problem, Refused

Messages = Sequence[Mapping[str, str]]
_MARK = "NightSchoolContent{}End"
_MARKS = re.compile(r"NightSchoolContent(\d+)End")
MAX_CHARACTERS = 32_000
"""The longest text of one message, checked before anything is tokenised."""
_SHORT = 64
"""Up to this many messages, a rendered template is kept for other conversations with the same roles that day:
some templates say what date it is."""


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A prompt that leaves room for its reply."""

    ids: list[int]
    dropped: int
    """How many of the oldest messages were left out to make it fit."""


class ChatFormat:
    """The chat template of one tokenizer, made safe."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # Whether control tokens are split is state of the tokenizer: two threads at once would mix it up, and
        # one's text could become the other's control tokens.
        self._lock = threading.Lock()
        self._template_ids = lru_cache(maxsize=512)(partial(self._ids, is_plain=False))
        self._short_pieces = lru_cache(maxsize=512)(self._pieces)
        self._rendered_on = date.today()
        self.sha256 = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
        self._control = self._find_control_tokens()
        self.end_of_turn = self._find_end_of_turn()

    def encode(self, messages: Messages, *, add_reply_prompt: bool = True) -> list[int]:
        """Token ids of `messages`; with `add_reply_prompt`, up to where the assistant begins to write."""
        roles = tuple(message["role"] for message in messages)
        return self._join(roles, [self.encode_text(m["content"]) for m in messages], add_reply_prompt)

    def fits(self, messages: Messages, room: int) -> bool:
        """Whether the template knows their roles and they have at most `room` tokens."""
        try:
            return len(self.encode(messages)) <= room
        except Refused:  # some templates have no place for a system message
            return False

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text: never a control token, whatever it says."""
        clean = text.encode("utf-8", "replace").decode()
        return self._ids(clean, is_plain=True)

    def encode_reply(self, text: str, *, finished: bool = True) -> list[int]:
        """Token ids of a reply; its end-of-turn token belongs to it unless it was cut."""
        return self.encode_text(text) + ([self.end_of_turn] if finished else [])

    def fit(self, messages: Messages, room: int) -> FittedPrompt:
        """The newest messages that fit in `room` tokens; a leading system message always stays.

        What is far too old is not even tokenised, and few beginnings are tried: a conversation may be of any
        length. Raises Refused where the last message alone is too long.
        """
        length = len(messages[-1]["content"]) if messages else 0
        if length > MAX_CHARACTERS:
            raise Refused(
                f"The message has {length:,} characters, more than {MAX_CHARACTERS:,} - shorten it."
            )
        roles = [message["role"] for message in messages]
        head = 1 if roles[:1] == ["system"] else 0
        contents = self._newest_contents(messages, head, room)
        starts = [start for start in _starts(roles, head) if start in contents or start == len(roles)]

        @cache
        def prompt(start: int) -> list[int]:
            kept = [*range(head), *range(start, len(roles))]
            return self._join(tuple(roles[i] for i in kept), [contents[i] for i in kept], True)

        def fits(start: int) -> bool:
            try:
                return len(prompt(start)) <= room
            except Refused:  # by the template: counts as fitting, so it is raised where nothing longer fits
                return True

        at = 0 if any(map(fits, starts[:1])) else bisect_left(starts, True, key=fits)
        if at == len(starts):
            raise Refused(f"The message does not fit in {room:,} tokens - shorten it.")
        return FittedPrompt(prompt(starts[at]), starts[at] - head)

    def _newest_contents(self, messages: Messages, head: int, room: int) -> dict[int, list[int]]:
        """Token ids by message number: the system message, and the newest ones that have room beside it."""
        contents = {i: self.encode_text(messages[i]["content"]) for i in range(head)}
        left = room - sum(map(len, contents.values()))
        for i in range(len(messages) - 1, head - 1, -1):
            ids = self.encode_text(messages[i]["content"])
            left -= len(ids)
            if left < 0:
                break
            contents[i] = ids
        return contents

    def decode(self, ids: Sequence[int]) -> str:
        """The text of reply ids, without its end-of-turn token or a half-written character at the end."""
        body = ids[:-1] if ids and ids[-1] == self.end_of_turn else ids
        with self._lock:
            text: Any = self._tokenizer.decode(list(body), skip_special_tokens=False)
        return str(text).rstrip("\ufffd")

    def _join(
        self, roles: tuple[str, ...], contents: Sequence[list[int]], add_reply_prompt: bool
    ) -> list[int]:
        ids: list[int] = []
        if self._rendered_on != (today := date.today()):
            self._short_pieces.cache_clear()
            self._rendered_on = today
        pieces = self._short_pieces if len(roles) <= _SHORT else self._pieces
        for piece in pieces(roles, add_reply_prompt):
            ids += contents[piece] if isinstance(piece, int) else piece
        return ids

    def _pieces(self, roles: tuple[str, ...], add_reply_prompt: bool) -> list[list[int] | int]:
        """The template as token ids (its own text) and message numbers (where contents go), in order."""
        marked = [{"role": role, "content": _MARK.format(i)} for i, role in enumerate(roles)]
        try:
            text = str(
                self._tokenizer.apply_chat_template(
                    marked, tokenize=False, add_generation_prompt=add_reply_prompt
                )
            )
        except Exception as error:  # a template may raise anything, jinja's errors or its own
            raise Refused(
                f"The model's chat template refuses these roles, {', '.join(roles)}: {error}"
            ) from error
        pieces: list[list[int] | int] = []
        for i, part in enumerate(_MARKS.split(text)):
            pieces.append(int(part) if i % 2 else self._template_ids(part))
        return pieces

    def _ids(self, text: str, *, is_plain: bool) -> list[int]:
        with self._lock:
            made: Any = self._tokenizer(text, add_special_tokens=False, split_special_tokens=is_plain)
        return list(made["input_ids"])

    def _find_control_tokens(self) -> set[int]:
        """The ids that no text may become; some tokenizers list only part of them as special by name."""
        added: dict[int, Any] = cast(Any, self._tokenizer).added_tokens_decoder
        named: Any = self._tokenizer.all_special_ids
        control = {i for i, token in added.items() if token.special} | set(named)
        control -= {self._tokenizer.unk_token_id, None}
        typed = " ".join(str(self._tokenizer.convert_ids_to_tokens(i)) for i in sorted(control))
        if control & set(self.encode_text(typed)):
            raise Problem("The model's tokenizer cannot tell text from control tokens - use another model.")
        return control

    def _find_end_of_turn(self) -> int:
        """The first control token after an assistant's content: what the model must write to end a turn."""
        pieces = self._pieces(("user", "assistant"), False)
        after = pieces[-1]
        assert isinstance(after, list), "split leaves text at the end"
        found = next((token for token in after if token in self._control), self._tokenizer.eos_token_id)
        if not isinstance(found, int):
            raise Problem("The model's chat template ends no turn - use an instruction-tuned model.")
        return found


def _starts(roles: Sequence[str], head: int) -> Iterator[int]:
    """What can be the oldest message that is kept, the first `head` aside: whole turns are dropped, so that
    what is left begins with the user again."""
    start = head
    while start < len(roles) or start == head:
        yield start
        is_pair = len(roles) - start > 2 and roles[start + 1] == "assistant"
        start += 2 if is_pair else 1
