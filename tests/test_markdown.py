"""Markdown becomes safe HTML: nothing a person or a model wrote runs, submits, or fetches."""

import time
from html.parser import HTMLParser

import pytest

from chatbot.pages.markdown import blocks, code_css, is_safe_link, render, settled_blocks
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
    start = time.monotonic()
    render(text)
    assert time.monotonic() - start < 5


def test_code_has_colours_for_light_and_dark() -> None:
    assert code_css(dark=False).startswith(".code .") and code_css(dark=True).startswith(".dark .code .")
    assert ".err " not in code_css(dark=False) + code_css(dark=True)


def test_a_settled_text_has_the_same_blocks_whatever_became_of_those_given_before() -> None:
    text = "# One\n\ntwo **three**"
    settled_blocks(text).clear()
    assert settled_blocks(text) == blocks(text) and len(blocks(text)) == 2
