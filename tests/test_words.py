"""The words of the pages: every text in both languages, and every key that a script asks for."""

import re
from string import Formatter

import pytest

from chatbot.pages.board import FAULTS, HERE, REASONS
from chatbot.pages.words import LANGUAGES, WORDS, language_of, table, word

SCRIPTS = sorted(HERE.glob("*.js"))
COMPUTED = {"state", "reason", "keys", "theme", "order", "branch"}
"""Keys that scripts put together: `state_${...}`."""


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


@pytest.mark.parametrize("key", WORDS)
def test_both_languages_say_it_with_the_same_blanks(key: str) -> None:
    english, chinese = WORDS[key]
    assert english and chinese
    assert placeholders(english) == placeholders(chinese)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_asks_only_for_words_that_exist(path: object) -> None:
    asked = set(re.findall(r"\bt\('(\w+)'", path.read_text()))  # type: ignore[attr-defined]
    assert asked <= set(WORDS)


def test_there_is_a_word_for_every_reason() -> None:
    assert {f"reason_{reason}" for reason in (*REASONS, *FAULTS)} <= set(WORDS)


@pytest.mark.parametrize(("name", "reasons"), [("REASONS", REASONS), ("FAULTS", FAULTS)])
def test_the_board_offers_the_reasons_that_the_server_takes(name: str, reasons: tuple[str, ...]) -> None:
    [listed] = re.findall(rf"const {name} = \[(.*)\];", (HERE / "board.js").read_text())
    assert tuple(re.findall(r"'(\w+)'", listed)) == reasons


def test_every_word_is_used_somewhere() -> None:
    code = "".join(path.read_text() for path in [*SCRIPTS, *HERE.glob("*.py")] if path.name != "words.py")
    used = {key for key in WORDS if f"'{key}'" in code or f'"{key}"' in code}
    assert {key for key in set(WORDS) - used if key.split("_")[0] not in COMPUTED} == set()


def test_blanks_are_filled() -> None:
    assert word("talking_to", version="v000003") == "You are talking to v000003"
    assert word("talking_to", "zh-CN", version="v000003") == "您正在与 v000003 对话"


def test_an_unknown_language_reads_as_english() -> None:
    assert word("send", "tlh") == "Send"


def test_a_table_has_every_word_of_its_language() -> None:
    assert table("zh-CN").keys() == WORDS.keys() and table("zh-CN")["send"] == "发送"


@pytest.mark.parametrize(
    ("cookie", "header", "language"),
    [
        ("zh-CN", "en", "zh-CN"),
        ("", "zh-TW,zh;q=0.9", "zh-CN"),
        ("", "de", "en"),
        ("xx", "zh", "zh-CN"),
        ("en", "zh", "en"),
    ],
)
def test_the_chosen_language_goes_before_the_browsers(cookie: str, header: str, language: str) -> None:
    assert language in LANGUAGES
    assert language_of({"night_language": cookie}, {"accept-language": header}) == language
