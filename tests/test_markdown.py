"""Markdown becomes safe HTML: nothing a person or a model wrote runs, submits, or fetches."""

import time
from html import escape
from html.parser import HTMLParser

import pytest
from pygments.lexers import get_lexer_by_name

from chatbot.pages.markdown import (
    LANGUAGES,
    LONGEST_HIGHLIGHTED,
    LONGEST_MARKDOWN,
    MOST_HIGHLIGHTED,
    MOST_LINES,
    _takes_long,
    blocks,
    code_css,
    is_safe_link,
    render,
    settled_blocks,
)
from tests.attacks import ATTACKS

ALLOWED_TAGS = {
    *(
        "p",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "ul",
        "ol",
        "li",
        "em",
        "strong",
        "code",
        "pre",
        "span",
        "div",
    ),
    *("a", "blockquote", "hr", "br", "table", "thead", "tbody", "tr", "th", "td"),
}
ALLOWED_ATTRIBUTES = {"href", "rel", "target", "class", "start", "style", "title"}


class Elements(HTMLParser):
    """Collects what a browser would see as elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_becomes_harmless_elements(attack: str) -> None:
    for tag, attributes in Elements(render(attack)).found:
        assert tag in ALLOWED_TAGS
        assert set(attributes) <= ALLOWED_ATTRIBUTES
        assert tag != "a" or is_safe_link(str(attributes["href"]))


def test_the_usual_marks_are_rendered() -> None:
    html = render("# Title\n\n*soft* **loud** `code`\n\n- one\n- two\n\n> said")
    for piece in (
        "<h1>Title</h1>",
        "<em>soft</em>",
        "<strong>loud</strong>",
        "<code>code</code>",
        "<li>one</li>",
    ):
        assert piece in html


def test_a_table_may_scroll_in_a_box_of_its_own() -> None:
    assert render("|a|\n|-|\n|1|").startswith('<div class="table"><table>')


def test_html_is_shown_as_text() -> None:
    assert render("<b>bold</b>") == "<p>&lt;b&gt;bold&lt;/b&gt;</p>\n"


def test_links_open_elsewhere_and_say_nothing_of_us() -> None:
    [link] = [
        attributes for tag, attributes in Elements(render("[x](https://a.example)")).found if tag == "a"
    ]
    assert link == {"href": "https://a.example", "rel": "noopener nofollow", "target": "_blank"}


@pytest.mark.parametrize("url", ["http://a", "https://a/b?c", "mailto:a@b.example"])
def test_web_and_mail_links_are_safe(url: str) -> None:
    assert is_safe_link(url)


@pytest.mark.parametrize(
    "url", ["javascript:x", "data:text/html,x", "//a.example", "/logout", "file:///etc", "http://["]
)
def test_other_links_stay_text(url: str) -> None:
    assert not is_safe_link(url)


def test_an_image_is_only_its_description() -> None:
    assert render("![a *cat*](http://evil.example/x)") == '<p><span class="image">a cat</span></p>\n'


def test_code_is_highlighted_in_a_language_that_is_known() -> None:
    assert '<span class="k">def</span>' in render("```python\ndef f(): pass\n```")
    assert "<span class=" not in blocks("```nolanguage\ndef\n```")[0].split("<pre>")[1]


@pytest.mark.parametrize(
    "code",
    ["x = 1\n" * 334, "x" + "\n" * 100 + "y\n", "y\n" + " " * 100 + "x\n"],
    ids=["long", "blank lines", "blanks"],
)
def test_long_code_is_shown_whole_without_colours(code: str) -> None:
    [block] = blocks(f"```python\n{code}```")
    assert (
        block
        == f'<div class="code"><span class="code-language">python</span><pre><code>{code}</code></pre></div>'
    )


def test_the_last_of_much_code_is_shown_without_colours() -> None:
    pieces = blocks("```python\n" + "x = 1\n" * 300 + "```\n" + "```python\nx = 1\n```\n" * 100)
    coloured = [block for block in pieces if '<span class="n">x</span>' in block]
    assert sum(block.count('"n">x') for block in coloured) <= MOST_HIGHLIGHTED / 6
    assert len(pieces) == 101 and all("x" in block for block in pieces)


@pytest.mark.parametrize(
    "text",
    ["[" * 4001, "# <b> & [a](http://b)\n" * 1000, "> a\n" * 2001, "|a" * 30 + "\n|-" * 30 + "\n|" * 800],
    ids=["brackets", "long", "lines", "cells"],
)
def test_text_that_would_take_long_is_shown_as_it_was_written(text: str) -> None:
    [block] = blocks(text)
    assert block == f'<p class="plain">{escape(text)}</p>\n'


LEXERS = sorted({get_lexer_by_name(language).name for language in LANGUAGES})
CODE = [
    *(one * LONGEST_HIGHLIGHTED for one in "a'\"\\[({</#$-"),
    *(("x" + "\n" * 98) * 30, ("x" + " " * 98) * 30, "a\n" * 1000),
    *(opening * 1000 for opening in ("<?php /", "<script>", '"\\', "a<", "a.")),
]


@pytest.mark.parametrize("name", LEXERS)
def test_no_code_that_gets_colours_takes_long(name: str) -> None:
    """Thrice the second that is stated, of this thread alone: what else runs here does not count."""
    language = next(language for language in LANGUAGES if get_lexer_by_name(language).name == name)
    for code in CODE:
        started = time.thread_time()
        block = render(f"~~~{language}\n{code[: LONGEST_HIGHLIGHTED - 1]}\n~~~")
        assert time.thread_time() - started < 3, repr(code[:20])
        assert block.count("<") > 6 or code.isalpha(), "it was coloured"


@pytest.mark.parametrize(
    "text",
    [
        *(
            piece * (LONGEST_MARKDOWN // len(piece))
            for piece in ("*a_", "a**b", "`a", "> ", "<a ", "\\", "&a")
        ),
        *(piece * MOST_LINES for piece in ("- a\n", "# a\n", "[a]: b\n", "[![")),
        *("> " * 30 + "a\n" * 1999, "|a" * 10 + "\n" + "|-" * 10 + "\n" + "|\n" * 998),
    ],
)
def test_no_text_takes_long(text: str) -> None:
    """As above, for text that is parsed."""
    started = time.thread_time()
    assert not _takes_long(text) and blocks(text)
    assert time.thread_time() - started < 3


def test_pipes_in_one_place_leave_the_rest_of_a_long_answer_its_markup() -> None:
    text = (
        "# Title\n\n"
        + "a\n\n" * 150
        + "```bash\n"
        + "x"
        + "|y" * 40
        + "\n```\n"
        + "|a|b|\n|-|-|\n"
        + "|c|d|\n" * 20
    )
    whole = render(text)
    assert "<h1>" in whole and "<table>" in whole and 'class="plain"' not in whole


@pytest.mark.parametrize("language", ["autohotkey", "autoit", "csharp", "make", "nolanguage"])
def test_only_languages_whose_lexers_were_measured_get_colours(language: str) -> None:
    assert "<span" not in blocks(f"```{language}\nx := 1 ; a\n```")[0].split("<pre>")[1]


def test_a_block_that_is_finished_does_not_change_as_the_text_grows() -> None:
    text = "First.\n\n- a\n- b\n\n```python\nx = 1\n```\n\nThe last one grows"
    before, after = blocks(text), blocks(text + " and grows.\n\nAnd more")
    assert before[:3] == after[:3] and len(before) == 4 and len(after) == 5


def test_a_lone_surrogate_becomes_a_question_mark() -> None:
    assert render("a\ud800b") == "<p>a?b</p>\n"


@pytest.mark.parametrize(
    "text", ["", " \n", "\0", "[" * 5000, "> " * 2000 + "x", "*a_" * 5000, "`" * 9999, "|a" * 5000]
)
def test_strange_text_is_rendered_in_time(text: str) -> None:
    started = time.thread_time()
    render(text)
    assert time.thread_time() - started < 5


def test_code_has_colours_for_light_and_dark() -> None:
    assert code_css(dark=False).startswith(".code .") and code_css(dark=True).startswith(".dark .code .")
    assert ".err " not in code_css(dark=False) + code_css(dark=True)


def test_a_settled_text_has_the_same_blocks_whatever_became_of_those_given_before() -> None:
    text = "# One\n\ntwo **three**"
    settled_blocks(text).clear()
    assert settled_blocks(text) == blocks(text) and len(blocks(text)) == 2
