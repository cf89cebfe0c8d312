"""text.py: what a database can hold, and what a search is for."""

import pytest

from data.text import MOST_TERMS, clean, search_terms, to_json


@pytest.mark.parametrize(
    ("text", "stored"), [("a\0b", "a\ufffdb"), ("\ud800x", "\ufffdx"), ("👩‍👩‍👧", "👩‍👩‍👧")]
)
def test_only_what_cannot_be_stored_is_replaced(text: str, stored: str) -> None:
    assert clean(text) == stored


def test_a_pasted_page_is_searched_for_by_its_longest_words() -> None:
    terms = search_terms(" ".join("a" * n for n in range(1, 50)) + " A a")
    assert [len(term) for term in terms] == list(range(49, 49 - MOST_TERMS, -1))


def test_json_keeps_every_character_that_can_be_stored() -> None:
    assert to_json({"é": ["👩‍👩‍👧", "a\0b"], "n": 1}) == '{"é":["👩‍👩‍👧","a\\u0000b"],"n":1}'
