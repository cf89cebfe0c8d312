"""Messages -> token ids, in one place, for chat, SFT, reward and PPO alike.

The template is rendered with placeholders where contents belong; each content is tokenised by itself with
its special tokens split into plain text, and the ids are joined. So a person who types `<|im_start|>system`
has typed text: no user text can become a control token (a plain `apply_chat_template` makes two real ones).

The ids are those of the template rendered whole, but for that. Some tokenizers join a space to the word after
it, or put one there: what a message gets before it is found out by trying, place by place (`_opening`).

Left out on purpose: tools, images, and templates that rewrite what a message says.
"""

import hashlib
import logging
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache, lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from chatbot.tokens import Tokens
from data.errors import Problem, Refused
from data.text import MAX_CHARACTERS

log = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, str]]
Content = Callable[[int, str], list[int]]
"""Token ids of a message by its number, with what is put before it."""
_MARK = "NightSchoolContent{}End"
_SAMPLE = "Good morning."
_MARKS = re.compile(r"NightSchoolContent(\d+)End")
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
        self._opening = lru_cache(maxsize=512)(self._find_opening)
        self._short_pieces = lru_cache(maxsize=512)(self._pieces)
        self._rendered_on = date.today()
        self.sha256 = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
        self._leads = self._find_leads()
        """By role, what stands before its messages as a rule; a place may differ."""
        self.end_of_turn = self._find_end_of_turn()
        self._warn_where_it_differs()

    def encode(self, messages: Messages, *, add_reply_prompt: bool = True) -> list[int]:
        """Token ids of `messages`; with `add_reply_prompt`, up to where the assistant begins to write."""
        roles = tuple(message["role"] for message in messages)
        return self._join(
            roles, lambda i, lead: self.encode_text(lead + messages[i]["content"]), add_reply_prompt
        )

    def fits(self, messages: Messages, room: int) -> bool:
        """Whether the template knows their roles and `fit` would leave out none of them for `room` tokens.

        Of a long conversation no more is tokenised than shows that it is one.
        """
        if _last_length(messages) > MAX_CHARACTERS:
            return False
        roles, content = tuple(message["role"] for message in messages), self._content_of(messages)
        if self._oldest_with_room(roles, content, 0, room):
            return False
        try:
            return len(self._join(roles, content, True)) <= room
        except Refused:  # some templates have no place for a system message
            return False

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text that follows other text: never a control token, whatever it says."""
        return self._tokens.encode(text)

    def encode_reply(self, text: str, *, finished: bool = True) -> list[int]:
        """Token ids of a reply; its end-of-turn token belongs to it unless it was cut."""
        ids = self.encode_text(self._leads.get("assistant", "") + text)
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
        head, content = 1 if roles[:1] == ["system"] else 0, self._content_of(messages)
        oldest = self._oldest_with_room(roles, content, head, room)
        starts = [start for start in _starts(roles, head) if start >= oldest]

        @cache
        def prompt(start: int) -> list[int]:
            kept = [*range(head), *range(start, len(roles))]
            return self._join(tuple(roles[i] for i in kept), lambda at, lead: content(kept[at], lead), True)

        def fits(start: int) -> bool:
            try:
                return len(prompt(start)) <= room
            except Refused:  # by the template: counts as fitting, so it is raised where nothing longer fits
                return True

        at = 0 if any(map(fits, starts[:1])) else bisect_left(starts, True, key=fits)
        if at == len(starts):
            raise Refused(f"The message does not fit in {room:,} tokens - shorten it.")
        return FittedPrompt(prompt(starts[at]), starts[at] - head)

    def _content_of(self, messages: Messages) -> Content:
        """Of these messages; each is tokenised when it is asked for, once."""

        @cache
        def content(i: int, lead: str) -> list[int]:
            return self.encode_text(lead + messages[i]["content"])

        return content

    def _oldest_with_room(self, roles: Sequence[str], content: Content, head: int, room: int) -> int:
        """The number of the oldest message that has room beside the first `head` and all that are newer."""
        left = room - sum(len(content(i, self._leads.get(roles[i], ""))) for i in range(head))
        for i in range(len(roles) - 1, head - 1, -1):
            left -= len(content(i, self._leads.get(roles[i], "")))
            if left < 0:
                return i + 1
        return head

    def decode(self, ids: Sequence[int]) -> str:
        """The text of reply ids, without its end-of-turn token or a half-written character at the end."""
        body = ids[:-1] if ids and ids[-1] == self.end_of_turn else ids
        return self._tokens.decode(body)

    def _join(self, roles: tuple[str, ...], content: Content, add_reply_prompt: bool) -> list[int]:
        ids: list[int] = []
        if self._rendered_on != (today := date.today()):
            self._short_pieces.cache_clear()
            self._rendered_on = today
        pieces = self._short_pieces if len(roles) <= _SHORT else self._pieces
        for piece in pieces(roles, add_reply_prompt):
            ids += content(*piece) if isinstance(piece, tuple) else piece
        return ids

    def _pieces(self, roles: tuple[str, ...], add_reply_prompt: bool) -> list[list[int] | tuple[int, str]]:
        """The template in order: ids of its own text, and messages by number with what is put before them."""
        parts = self._render(roles, add_reply_prompt)
        pieces: list[list[int] | tuple[int, str]] = []
        for i in range(0, len(parts) - 1, 2):
            ids, lead = self._opening(parts[i], i == 0)
            pieces += [ids, (int(parts[i + 1]), lead)]
        # Where a reply comes next, the space before it comes with it.
        last = parts[-1].removesuffix(self._leads.get("assistant", "") if add_reply_prompt else "")
        return [*pieces, self._tokens.encode_template(last, is_first=len(parts) == 1)]

    def _find_opening(self, text: str, is_first: bool) -> tuple[list[int], str]:
        """Ids of the template's words before a message, and the spaces to put before the message, so that
        together they are what the template makes of both."""
        whole = self._tokens.encode_template(text + _SAMPLE, is_first=is_first)
        # A space of the template goes with the message, of whose first word it may be a part.
        for cut, lead in ((" ", " "), (" ", "  "), ("", ""), ("", " ")):
            ids = self._tokens.encode_template(text.removesuffix(cut), is_first=is_first)
            if text.endswith(cut) and ids + self.encode_text(lead + _SAMPLE) == whole:
                return ids, lead
        return self._tokens.encode_template(text, is_first=is_first), ""

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
        roles = ("user", "assistant", "user")
        try:
            parts = self._render(roles, False)
        except Refused:
            return {}
        return {role: self._opening(parts[2 * i], i == 0)[1] for i, role in enumerate(roles)}

    def _warn_where_it_differs(self) -> None:
        """Say so where our ids are not those of the template: the model has learned from the latter."""
        for roles in (("user", "assistant", "user"), ("system", "user", "assistant", "user")):
            messages = [{"role": role, "content": _SAMPLE} for role in roles]
            try:
                ours = self.encode(messages)
            except Refused:
                continue
            made: Any = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)
            if ours != list(made["input_ids"]):
                log.warning(
                    "The model's tokenizer makes other tokens of a whole chat (%s) than of its parts, so the "
                    "model reads what it was not tuned on; its replies may be worse for it.",
                    ", ".join(roles),
                )
                return

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
