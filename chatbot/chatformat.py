"""Messages -> token ids, in one place, for chat, SFT, reward and PPO alike.

The template is rendered with placeholders where contents belong; each content is tokenised by itself with
its special tokens split into plain text, and the ids are joined. So a person who types `<|im_start|>system`
has typed text: no user text can become a control token (a plain `apply_chat_template` makes two real ones).

The ids are those of the template rendered whole, but for that. Where a tokenizer joins a space to the word
after it, a template's space before a message goes with the message.

Left out on purpose: tools, images, and templates that rewrite what a message says.
"""

import hashlib
import logging
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache, lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from chatbot.tokens import Tokens
from data.errors import Problem, Refused

log = logging.getLogger(__name__)

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
        self._tokens = Tokens(tokenizer)
        self._template_ids = lru_cache(maxsize=512)(self._tokens.encode_template)
        self._short_pieces = lru_cache(maxsize=512)(self._pieces)
        self._rendered_on = date.today()
        self.sha256 = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
        self._leads = self._find_leads()
        self.end_of_turn = self._find_end_of_turn()
        self._warn_where_it_differs()

    def encode(self, messages: Messages, *, add_reply_prompt: bool = True) -> list[int]:
        """Token ids of `messages`; with `add_reply_prompt`, up to where the assistant begins to write."""
        roles = tuple(message["role"] for message in messages)
        return self._join(roles, [self._encode_content(m) for m in messages], add_reply_prompt)

    def fits(self, messages: Messages, room: int) -> bool:
        """Whether the template knows their roles and `fit` would leave out none of them for `room` tokens."""
        if _last_length(messages) > MAX_CHARACTERS:
            return False
        try:
            return len(self.encode(messages)) <= room
        except Refused:  # some templates have no place for a system message
            return False

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text that follows other text: never a control token, whatever it says."""
        return self._tokens.encode(text)

    def encode_reply(self, text: str, *, finished: bool = True) -> list[int]:
        """Token ids of a reply; its end-of-turn token belongs to it unless it was cut."""
        ids = self._encode_content({"role": "assistant", "content": text})
        return ids + ([self.end_of_turn] if finished else [])

    def fit(self, messages: Messages, room: int) -> FittedPrompt:
        """The newest messages that fit in `room` tokens; a leading system message always stays.

        What is far too old is not even tokenised, and few beginnings are tried: a conversation may be of any
        length. Raises Refused where the last message alone is too long.
        """
        length = _last_length(messages)
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
        contents = {i: self._encode_content(messages[i]) for i in range(head)}
        left = room - sum(map(len, contents.values()))
        for i in range(len(messages) - 1, head - 1, -1):
            ids = self._encode_content(messages[i])
            left -= len(ids)
            if left < 0:
                break
            contents[i] = ids
        return contents

    def decode(self, ids: Sequence[int]) -> str:
        """The text of reply ids, without its end-of-turn token or a half-written character at the end."""
        body = ids[:-1] if ids and ids[-1] == self.end_of_turn else ids
        return self._tokens.decode(body)

    def _encode_content(self, message: Mapping[str, str]) -> list[int]:
        """A message as it stands behind the template's words."""
        return self.encode_text(self._leads.get(message["role"], "") + message["content"])

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
        parts = self._render(roles, add_reply_prompt)
        pieces: list[list[int] | int] = []
        for i in range(0, len(parts), 2):
            text, number = parts[i], int(parts[i + 1]) if i + 1 < len(parts) else None
            lead = "" if number is None else self._leads.get(roles[number], "")
            pieces.append(self._template_ids(text.removesuffix(lead), is_first=i == 0))
            pieces += [] if number is None else [number]
        return pieces

    def _render(self, roles: tuple[str, ...], add_reply_prompt: bool) -> list[str]:
        """The template's words and, between them, the numbers of the messages, as text. Raises Refused."""
        marked = [{"role": role, "content": _MARK.format(i)} for i, role in enumerate(roles)]
        try:
            text = self._tokenizer.apply_chat_template(
                marked, tokenize=False, add_generation_prompt=add_reply_prompt
            )
        except Exception as error:  # a template may raise anything, jinja's errors or its own
            raise Refused(
                f"The model's chat template refuses these roles, {', '.join(roles)}: {error}"
            ) from error
        return _MARKS.split(str(text))

    def _find_leads(self) -> dict[str, str]:
        """Role -> the space before its messages, where the tokenizer joins spaces to words."""
        roles = ("user", "assistant", "user")
        if not self._tokens.adds_space or not self._allows(roles):
            return {}
        parts = self._render(roles, False)
        return {role: " " for role, text in zip(roles, parts[::2], strict=False) if text.endswith(" ")}

    def _allows(self, roles: tuple[str, ...]) -> bool:
        try:
            self._render(roles, False)
        except Refused:
            return False
        return True

    def _warn_where_it_differs(self) -> None:
        """Say so where our ids are not those of the template: the model has learned from the latter."""
        roles = ("user", "assistant", "user")
        if not self._allows(roles):
            return
        messages = [{"role": role, "content": "Good morning."} for role in roles]
        made: Any = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        if self.encode(messages) != list(made["input_ids"]):
            log.warning(
                "The model's tokenizer makes other tokens of a whole chat than of its parts, so the model "
                "reads what it was not tuned on; its replies may be worse for it."
            )

    def _find_end_of_turn(self) -> int:
        """The first control token after an assistant's content: what the model must write to end a turn."""
        pieces = self._pieces(("user", "assistant"), False)
        after = pieces[-1]
        assert isinstance(after, list), "split leaves text at the end"
        found = next(
            (token for token in after if token in self._tokens.control), self._tokenizer.eos_token_id
        )
        if not isinstance(found, int):
            raise Problem("The model's chat template ends no turn - use an instruction-tuned model.")
        return found


def _last_length(messages: Messages) -> int:
    """Characters of the last message."""
    return len(messages[-1]["content"]) if messages else 0


def _starts(roles: Sequence[str], head: int) -> Iterator[int]:
    """What can be the oldest message that is kept, the first `head` aside: whole turns are dropped, so that
    what is left begins with the user again."""
    start = head
    while start < len(roles) or start == head:
        yield start
        is_pair = len(roles) - start > 2 and roles[start + 1] == "assistant"
        start += 2 if is_pair else 1
