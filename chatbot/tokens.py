"""Text and token ids of one tokenizer: no text becomes a control token, and no character is shown by halves.

Tokenizers of SentencePiece's kind put a space before whatever they are given. The parts of a longer text are
tokenised as they stand within it: without that space.
"""

import re
import threading
from collections.abc import Sequence
from itertools import groupby
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from data.errors import Problem

_ANCHOR = "\x01"
"""A character that merges with no text after it."""
_SPELLED = "\N{CJK UNIFIED IDEOGRAPH-9F98}"
"""A character for which small vocabularies have no token of its own."""


class Tokens:
    """One tokenizer, for any number of threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises Problem where it cannot tell text from control tokens."""
        self._tokenizer = tokenizer
        # Whether control tokens are split is state of the tokenizer: two threads at once would mix it up, and
        # one's text could become the other's control tokens.
        self._lock = threading.Lock()
        self._before = self._ids(_ANCHOR, is_plain=True)
        self.adds_space = self._ids("a", is_plain=True) != self._ids_after_anchor("a", is_plain=True)
        """Whether it puts a space before a text."""
        self._bytes = self._find_bytes()
        self._byte_ids = {byte: id for id, byte in self._bytes.items()}
        self.control = self._find_control()
        """The ids that no text may become."""
        self._control_text = re.compile("|".join(map(re.escape, self._names(self.control))) or "(?!)")

    def encode(self, text: str) -> list[int]:
        """Ids of plain text that follows other text: never a control token, whatever it says."""
        clean = text.encode("utf-8", "replace").decode()
        encode = self._ids_after_anchor if self.adds_space else self._ids
        return encode(clean, is_plain=True)

    def encode_template(self, text: str, *, is_first: bool) -> list[int]:
        """Ids of a template's own words; those after a message follow it, up to a control token."""
        if is_first or not self.adds_space:
            return self._ids(text, is_plain=False)
        control = self._control_text.search(text)
        at = control.start() if control else len(text)
        rest = self._ids(text[at:], is_plain=False) if control else []
        return self._ids_after_anchor(text[:at], is_plain=False) + rest

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, with a mark in the place of each broken character; none at the end."""
        whole = self._with_whole_characters(ids)
        with self._lock:
            text: Any = self._tokenizer.decode(
                whole, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        return str(text).rstrip("\ufffd")

    def _with_whole_characters(self, ids: Sequence[int]) -> list[int]:
        """The same where all characters are whole, and a mark in the place of each that is not.

        Where a tokenizer spells what it has no token for in bytes, its decoder makes marks of a whole run of
        bytes if a single character of them is broken: text that was there would go again.
        """
        if not self._bytes:
            return list(ids)
        whole: list[int] = []
        for is_spelled, run in groupby(ids, self._bytes.__contains__):
            if is_spelled:
                text = bytes(self._bytes[id] for id in run).decode("utf-8", "replace")
                whole += [self._byte_ids[byte] for byte in text.encode()]
            else:
                whole += run
        return whole

    def _ids_after_anchor(self, text: str, *, is_plain: bool) -> list[int]:
        """Token ids of text that follows other text: without the space that some tokenizers put before it."""
        both, at = self._ids(_ANCHOR + text, is_plain=is_plain), len(self._before)
        return both[at:] if both[:at] == self._before else self._ids(text, is_plain=is_plain)

    def _ids(self, text: str, *, is_plain: bool) -> list[int]:
        with self._lock:
            made: Any = self._tokenizer(text, add_special_tokens=False, split_special_tokens=is_plain)
        return list(made["input_ids"])

    def _find_control(self) -> set[int]:
        """The ids that no text may become; some tokenizers list only part of them as special by name."""
        added: dict[int, Any] = cast(Any, self._tokenizer).added_tokens_decoder
        named: Any = self._tokenizer.all_special_ids
        control = {i for i, token in added.items() if token.special} | set(named)
        control -= {self._tokenizer.unk_token_id, None}
        if control & set(self.encode(" ".join(self._names(control)))):
            raise Problem("The model's tokenizer cannot tell text from control tokens - use another model.")
        return control

    def _names(self, ids: set[int]) -> list[str]:
        return [str(self._tokenizer.convert_ids_to_tokens(i)) for i in sorted(ids)]

    def _find_bytes(self) -> dict[int, int]:
        """Token id -> byte, where the tokenizer spells in bytes what it has no token for; else empty."""
        vocabulary = self._tokenizer.get_vocab()
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        if not all(name in vocabulary for name in names):
            return {}
        spelled = [vocabulary[names[byte]] for byte in _SPELLED.encode()]
        is_read_so = str(self._tokenizer.decode(spelled)).strip() == _SPELLED
        return {vocabulary[name]: byte for byte, name in enumerate(names)} if is_read_so else {}
