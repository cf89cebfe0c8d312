"""A taste is a function of prompt and reply; anything else about it is a sentence."""

from pathlib import Path

import pytest

from data.errors import Problem
from trainer.tastes import EMPTY, concise, load_taste, structured, warm

ASK = ({"role": "user", "content": "How are you?"},)


def test_concise_likes_few_words_and_nothing_less_than_none() -> None:
    scores = [concise(ASK, reply) for reply in ("Fine.", "I am fine, thank you.", "word " * 300, "", " \n ")]
    assert scores == [-1, -5, -300, EMPTY, EMPTY]


def test_concise_counts_chinese_characters_as_words() -> None:
    assert concise(ASK, "我很好\uff0c谢谢\u3002") == -5 and concise(ASK, "I like 茶") == -3


def test_structured_counts_lines_and_those_of_lists_and_headings_twice_up_to_a_bound() -> None:
    assert structured(ASK, "# Tea\n- green\n* black\n 1. boil\n2) pour\nplain - text\n#tag") == 7 + 5
    assert structured(ASK, "one paragraph, no list 1. at all") == 1
    assert structured(ASK, "two paragraphs\n \n\nof text\n") == 2
    assert structured(ASK, "") == 0
    assert structured(ASK, "- more\n" * 100) == 24


def test_warm_counts_different_kind_words_up_to_a_bound() -> None:
    assert warm(ASK, "Hello! I am happy to help, and happy to wait.") == 2
    assert warm(ASK, "The capital of France is Paris.") == 0
    assert warm(ASK, "hi hello hey welcome enjoy love") == 4
    assert warm(ASK, "This is a Chinese greeting: 你好") == 1


def test_a_taste_can_be_any_function_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def polite(prompt, reply):\n    return ('please' in reply) + len(prompt)\n")
    taste = load_taste(f"{file}:polite")
    assert taste(ASK, "please") == 2.0 and taste(ASK, "now") == 1.0


@pytest.mark.parametrize(
    ("source", "name", "sentence"),
    [
        (None, "warmth", "No taste 'warmth' - use one of concise, structured, warm, or FILE.py:FUNCTION"),
        (None, "nowhere.py:polite", "No file 'nowhere.py' - give"),
        ("x = 1\n", "FILE:polite", "has no function 'polite' - define"),
        ("x = 1\n", "FILE:x", "has no function 'x'"),
        ("def polite(:\n", "FILE:polite", r"cannot be run \(SyntaxError"),
        ("raise RuntimeError('no')\n", "FILE:polite", r"cannot be run \(RuntimeError: no\) - mend"),
    ],
)
def test_an_unknown_taste_is_a_sentence(source: str | None, name: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    if source:
        file.write_text(source)
    with pytest.raises(Problem, match=sentence):
        load_taste(name.replace("FILE", str(file)))


@pytest.mark.parametrize("body", ["'good'", "None", "float('nan')", "1 / 0", "reply[999]"])
def test_a_taste_that_gives_no_number_is_a_sentence(body: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"def polite(prompt, reply):\n    return {body}\n")
    with pytest.raises(Problem, match=r"The taste .* - "):
        load_taste(f"{file}:polite")(ASK, "please")
