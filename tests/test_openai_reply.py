"""A reply as it is told: its pieces are its text, whatever the tokens are and whenever one looks."""

import random
from collections.abc import Sequence

import pytest

from chatbot.chatformat import ChatFormat, FittedPrompt
from chatbot.generation import Asked, Generation, ReplyStream
from chatbot.openai_reply import ReplyReader, Token, safe_length
from data.records import Sampling
from tests.tiny import byte_tokenizer, spelling_tokenizer

TEXT = "Grüße, 世界! 👩\u200d🚀 e\u0301 \ufffd \n" * 4


@pytest.fixture(scope="module", params=[byte_tokenizer, spelling_tokenizer])
def chat(request: pytest.FixtureRequest) -> ChatFormat:
    """With a tokenizer of bytes, and with one that spells in bytes what it has no token for."""
    return ChatFormat(request.param())


def read_while_written(
    chat: ChatFormat, ids: Sequence[int], stop: Sequence[str], dice: random.Random
) -> tuple[ReplyStream, list[str], list[Token]]:
    """The reply at its end, and what was told of it by looking now and then while it was written."""
    generation = Generation(chat, lambda g: 0, Asked(FittedPrompt([], 0), Sampling(), [1], stop=stop), "base")
    (row,), (reply,) = generation.rows, generation.replies
    reading, told, tokens = ReplyReader(reply, stop, chat.decode), [], []
    for token in ids:
        row.logprobs.append(-dice.random())
        row.token_ids.append(token)
        generation.notice()
        if row.finish_reason:
            break
        if dice.random() < 0.6:
            text, new = reading.news()
            told.append(text)
            tokens += new
            assert reply.text.startswith("".join(told))
    generation.stop("length")
    text, new = reading.news()
    assert reading.has_ended and reading.news() == ("", [])
    return reply, [*told, text], tokens + new


def scrambled(chat: ChatFormat, dice: random.Random) -> list[int]:
    """Bytes of real text cut anywhere, in the middle of characters too, and bytes that are no text at all."""
    whole, ids = chat.encode_text(TEXT), list[int]()
    for _ in range(8):
        begin = dice.randrange(len(whole))
        ids += whole[begin : begin + dice.randrange(30)]
        ids += [dice.randrange(3, 259) for _ in range(dice.randrange(40))]
    return ids


@pytest.mark.parametrize("seed", range(60))
def test_the_pieces_of_any_bytes_are_the_text(chat: ChatFormat, seed: int) -> None:
    dice = random.Random(seed)
    reply, told, tokens = read_while_written(chat, scrambled(chat, dice), (), dice)
    assert "".join(told) == reply.text == "".join(token.text for token in tokens)


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_told_that_a_stop_text_takes_back(chat: ChatFormat, seed: int) -> None:
    dice = random.Random(seed)
    ids = chat.encode_text("".join(dice.choice("aab ") for _ in range(150)))
    written = chat.decode(ids)  # which may lack a space at the very beginning
    stops = ["".join(dice.choice("aab") for _ in range(dice.randrange(3, 7))) for _ in range(3)]
    reply, told, tokens = read_while_written(chat, ids, stops, dice)
    assert "".join(told) == reply.text == "".join(token.text for token in tokens)
    assert written.startswith(reply.text) and not any(stop in reply.text for stop in stops)
    assert (reply.finish_reason == "stop") == any(stop in written for stop in stops)


def test_a_whole_text_of_many_characters_is_told_character_by_character(chat: ChatFormat) -> None:
    ids = [*chat.encode_text(TEXT), chat.end_of_turn]
    _, told, tokens = read_while_written(chat, ids, (), random.Random(0))
    assert "".join(told) == TEXT == "".join(token.text for token in tokens)
    assert b"".join(bytes(token.as_json()["bytes"]) for token in tokens) == TEXT.encode()
    assert "\ufffd" not in "".join(told).replace(" \ufffd ", "")


def test_reading_a_long_reply_decodes_a_window_not_all_of_it(chat: ChatFormat) -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return chat.decode(ids)

    generation = Generation(chat, lambda g: 0, Asked(FittedPrompt([], 0), Sampling(), [1]), "base")
    (row,), (reply,) = generation.rows, generation.replies
    row.token_ids += (ids := chat.encode_text(TEXT * 5))
    row.logprobs += [-1.0] * len(ids)
    assert ReplyReader(reply, (), decode).news()[0] == TEXT * 5
    assert longest < 50 < len(ids)


@pytest.mark.parametrize(
    "text, stops, length",
    [
        ("abc", (), 3),
        ("abc", ("x",), 3),
        ("abc", ("c",), 2),
        ("abc", ("cd",), 2),
        ("abcc", ("ccd",), 2),
        ("abab", ("abac",), 2),
        ("abcd", ("bc", "d"), 1),
        ("", ("x",), 0),
    ],
)
def test_what_may_be_told_ends_where_a_stop_text_may_begin(
    text: str, stops: tuple[str, ...], length: int
) -> None:
    assert safe_length(text, stops) == length
