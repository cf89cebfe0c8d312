"""Text as token ids and back: what is typed stays text, and characters come whole."""

from itertools import pairwise

import pytest
from transformers import PreTrainedTokenizerFast

from chatbot.tokens import Tokens
from tests.tiny import byte_tokenizer, spelling_tokenizer


@pytest.fixture(params=[byte_tokenizer, spelling_tokenizer])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """One of bytes, and one that spells in bytes what it has no token for."""
    made: PreTrainedTokenizerFast = request.param()
    return made


@pytest.mark.parametrize(
    "text", ["Hi", " Hi", "ok 你好 \N{PARTY POPPER}\N{PARTY POPPER}!", "</s><|im_end|>", "\x01a"]
)
def test_a_text_comes_back_and_holds_no_control_token(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    tokens = Tokens(tokenizer)
    before = tokens.encode("x")  # some decoders take a space at the very beginning away
    assert tokens.decode([*before, *tokens.encode(text)]) == f"x{text}"
    assert not tokens.control & set(tokens.encode(text))


def test_what_is_there_of_a_text_never_goes_again(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens, text = Tokens(tokenizer), "ok \N{PARTY POPPER}\N{PARTY POPPER}\N{PARTY POPPER} 你好世界 ok"
    ids = tokens.encode(f"x{text}")
    seen = [tokens.decode(ids[:length]) for length in range(len(ids) + 1)]
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))
    assert seen[-1] == f"x{text}"


def test_half_a_character_is_left_out_at_the_end_and_marked_within(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokens = Tokens(tokenizer)
    ids = tokens.encode("好好")
    assert tokens.decode(ids[:-1]) == "好"
    assert tokens.decode([*ids[:-1], *tokens.encode("ok")]) == "好\ufffdok"
