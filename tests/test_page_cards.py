"""What a card of the board looks like: nothing of a reply is cut off or covered, and none looks broken."""

import re
from collections.abc import Callable, Iterator, Sequence

import pytest
from playwright.sync_api import Browser, Page, expect

from data.database import Database
from tests.browser import Server, Visitor, is_in_view, visit, wait_for
from tests.stories import a_turn, somebody

# ruff: noqa: RUF001 - Chinese is written with full-width punctuation.
pytestmark = pytest.mark.browser
SITE = ("--max-new-tokens", "12")
OPEN = Callable[..., Page]


@pytest.fixture
def open_turn(
    browser: Browser, site: tuple[Server, Database], request: pytest.FixtureRequest
) -> Iterator[OPEN]:
    """Opens the page of somebody new, at a turn with these replies."""
    visitors: list[Visitor] = []

    def open_turn(texts: Sequence[str], **options: object) -> Page:
        name = request.node.name[-40:]
        chat = a_turn(site[1], somebody(site[1], name), texts)[0].conversation_id
        visitors.append(visit(browser, *site, name, path=f"/?c={chat}", **options))
        expect(visitors[-1].page.locator(".card")).to_have_count(len(texts))
        return visitors[-1].page

    yield open_turn
    for visitor in visitors:
        visitor.context.close()


def test_a_text_without_markup_keeps_its_lines_and_blanks(open_turn: OPEN) -> None:
    text = "def f(x):\n        return x\n" + "[" * 5000
    page = open_turn([text, text])
    assert page.locator(".card .plain").first.inner_text().startswith("def f(x):\n        return x\n[")


@pytest.mark.parametrize("first", [1, 98, 1990])
def test_the_numbers_of_a_long_list_are_whole(open_turn: OPEN, first: int) -> None:
    items = "\n".join(f"{number}. apples" for number in range(first, first + 12))
    page = open_turn([items, items, items])
    page.add_style_tag(content=".card .written { max-height: none !important; }")
    card = page.locator(".card").first
    shown = card.screenshot()
    page.add_style_tag(content=".card .written { overflow: visible !important; }")
    assert card.screenshot() == shown


OVERLAPS = """(card) => {
  const [label, code] = ['.code-language', 'code'].map((name) => {
    const range = document.createRange();
    range.selectNodeContents(card.querySelector(name));
    return range.getBoundingClientRect();
  });
  return label.bottom > code.top;
}"""


def test_the_language_of_a_code_block_covers_none_of_it(open_turn: OPEN) -> None:
    code = "```python\nprint(sum(number for number in range(1000) if number % 3 == 0))\n```"
    page = open_turn([code, code, code])
    expect(page.locator(".code-language")).to_have_text(["python"] * 3)
    assert not page.locator(".card").first.evaluate(OVERLAPS)


@pytest.mark.parametrize(("locale", "words"), [("en-US", "(empty reply)"), ("zh-CN", "（空回复）")])
def test_a_reply_without_a_word_says_so(open_turn: OPEN, locale: str, words: str) -> None:
    page = open_turn(["", " \n", "three"], locale=locale)
    expect(page.locator(".card .state", has_text=words)).to_have_count(2)
    expect(page.locator(".card", has_text="three").locator(".state")).to_be_hidden()


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_the_comparison_comes_into_view_when_it_is_opened(open_turn: OPEN, motion: str) -> None:
    text = "\n\n".join(f"Paragraph {number} of a long reply." for number in range(12))
    page = open_turn([text, f"{text} It is longer.", "three"], reduced_motion=motion)
    page.get_by_role("button", name="Compare").scroll_into_view_if_needed()
    page.get_by_role("button", name="Compare").click()
    wait_for(page, lambda: is_in_view(page, page.locator(".compare")))
    assert is_in_view(page, page.locator(".compare")), "and stays there"


PARAGRAPHS = "\n\n".join(
    f"Paragraph {number} of a reply of ordinary length, with a few words." for number in range(7)
)


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["desk", "phone"])
def test_the_order_and_save_stay_in_view_while_one_ranks_by_keyboard(
    open_turn: OPEN, size: tuple[int, int]
) -> None:
    page = open_turn([PARAGRAPHS] * 4, viewport={"width": size[0], "height": size[1]})
    page.locator(".order").wait_for()
    for key in ("Escape", *"b1a2c2d3"):
        page.keyboard.press(key)
    expect(page.locator(".order")).to_have_text("B > A = C > D")
    for said in (page.locator(".order"), page.get_by_role("button", name="Save ranking")):
        wait_for(page, lambda said=said: is_in_view(page, said))
    for key in ("d", "0"):
        page.keyboard.press(key)
    chips = page.locator(".card").nth(3).locator(".ranks")
    wait_for(page, lambda: is_in_view(page, page.locator(".ranking")))
    row, below = page.locator(".ranking").bounding_box(), chips.bounding_box()
    assert row and below and below["y"] + below["height"] <= row["y"], "of the chosen card nothing is covered"
    page.keyboard.press("a")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".saved")).to_have_text("Saved")
    assert is_in_view(page, page.locator(".saved"))


@pytest.mark.parametrize("count", [1, 2])
def test_why_a_reply_is_bad_is_asked_in_view(open_turn: OPEN, count: int) -> None:
    page = open_turn([PARAGRAPHS * 2] * count, viewport={"width": 390, "height": 844})
    page.get_by_role("button", name="Bad reply" if count == 1 else "All bad").click()
    for said in (".ranking", ".why"):
        wait_for(page, lambda said=said: is_in_view(page, page.locator(said)))
    page.wait_for_timeout(500)  # it has come to rest
    assert is_in_view(page, page.locator(".ranking")) and is_in_view(page, page.locator(".why"))


def test_what_is_said_moves_no_card_from_under_the_mouse(open_turn: OPEN) -> None:
    page = open_turn([PARAGRAPHS] * 4, viewport={"width": 1280, "height": 800})
    for letter in "AB":
        before = page.get_by_role("radio", name=f"Reply {letter}: rank 2")
        before.check(force=True)
        at = page.evaluate("scrollY")
        page.get_by_role("button", name=f"Reply {letter} is best").click()
        assert page.evaluate("scrollY") == at and is_in_view(page, page.locator(".ranking"))


def test_no_more_replies_are_offered_where_no_more_can_be_compared(open_turn: OPEN) -> None:
    more = open_turn(["one"] * 8).get_by_role("button", name="Regenerate")
    expect(more).to_be_enabled()
    expect(more).to_have_attribute("title", "")
    full = open_turn(["one"] * 9).get_by_role("button", name="Regenerate")
    expect(full).to_be_disabled()  # to screen readers: a click says why
    full.click(force=True)
    expect(full.page.get_by_text("This message has nine replies, as many as can").first).to_be_visible()
    expect(full).to_have_attribute("title", re.compile("^This message has nine replies, as many as can be"))


def test_the_list_of_keys_says_when_skip_is_one(open_turn: OPEN) -> None:
    page = open_turn(["one", "two"])
    page.locator(".keys summary").click()
    expect(page.locator(".keys dd", has_text="skip")).to_have_text("skip, while nothing is marked")


def test_the_comparison_begins_with_the_chosen_reply_and_the_best_or_its_rewording(open_turn: OPEN) -> None:
    page = open_turn(["one", "two", "three", "four"])
    compare = page.get_by_role("button", name="Compare")
    picked = page.locator(".compare select")

    def shown() -> list[str]:
        return [picked.nth(at).locator("option:checked").inner_text() for at in (0, 1)]

    compare.click()
    wait_for(page, lambda: shown() == ["A", "B"])
    compare.click()
    for key in ("Escape", *"d1c2"):
        page.keyboard.press(key)
    compare.click()
    wait_for(page, lambda: shown() == ["C", "D"])
    page.get_by_role("button", name="Edit reply C").click()
    page.get_by_role("textbox", name="Your version of reply C").fill("mine")
    page.get_by_role("button", name="Save as demonstration").click()
    page.locator(".card .edited:visible").wait_for()
    compare.click()
    compare.click()
    wait_for(page, lambda: shown() == ["C", "C: Edited by you"])
    expect(page.locator(".difference ins")).to_have_text("mine")
