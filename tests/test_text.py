"""text.py: what a database can hold."""

import pytest

from data.text import clean, to_json


@pytest.mark.parametrize(
    ("text", "stored"), [("a\0b", "a\ufffdb"), ("\ud800x", "\ufffdx"), ("👩‍👩‍👧", "👩‍👩‍👧")]
)
def test_only_what_cannot_be_stored_is_replaced(text: str, stored: str) -> None:
    assert clean(text) == stored


def test_json_keeps_every_character_that_can_be_stored() -> None:
    assert to_json({"é": ["👩‍👩‍👧", "a\0b"], "n": 1}) == '{"é":["👩‍👩‍👧","a\\u0000b"],"n":1}'
