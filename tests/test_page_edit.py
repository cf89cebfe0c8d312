"""The text boxes in which words are written anew: what is typed there is not lost, and Escape is theirs."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from data import conversations, messages, rankings
from data.database import Database
from tests.browser import EVENTS, Server, Visitor, before_three, wait_for

pytestmark = pytest.mark.browser
SITE = ("--max-new-tokens", "12")


@pytest.fixture
def visitor(
    browser: Browser, site: tuple[Server, Database], request: pytest.FixtureRequest
) -> Iterator[Visitor]:
    with before_three(browser, site, request.node.name[-40:]) as visitor:
        yield visitor


@pytest.fixture
def page(visitor: Visitor) -> Page:
    return visitor.page


def reply_box(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Your version of reply A")


def reword_reply(page: Page) -> Locator:
    page.get_by_role("button", name="Edit reply A").click()
    return reply_box(page)


def save_reply(page: Page) -> None:
    page.get_by_role("button", name="Save as demonstration").click()


def reword_message(page: Page) -> Locator:
    page.locator(".said").hover()
    page.get_by_role("button", name="Edit your message").click()
    return page.get_by_role("textbox", name="Edit your message")


def rename(page: Page) -> Locator:
    page.locator(".chats li").hover()
    page.locator(".menu summary").click()
    page.get_by_role("button", name="Rename").click()
    return page.get_by_role("textbox", name="Rename")


BOXES = {"reply": reword_reply, "message": reword_message, "title": rename}


def branch_button(page: Page) -> Locator:
    return page.get_by_role("button", name="Send as a new branch")


def said(site: tuple[Server, Database], visitor: Visitor) -> list[str]:
    """The visitor's messages, in all branches of their one chat."""
    [chat] = conversations.list_for(site[1], visitor.person.id)
    return [one.content for one in messages.list_for(site[1], chat.id) if one.role == "user"]


def test_what_was_marked_and_not_saved_goes_with_a_reworded_message(
    page: Page, site: tuple[Server, Database], visitor: Visitor
) -> None:
    [chat] = conversations.list_for(site[1], visitor.person.id)
    [turn] = [one for one in messages.list_for(site[1], chat.id) if one.role == "user"]
    page.get_by_role("button", name="Best").nth(1).click()
    reword_message(page).fill("Another question")
    branch_button(page).click()
    expect(page.locator(".said .bubble")).to_have_text("Another question")
    ranking = rankings.current(site[1], turn.id, visitor.person.id)
    assert ranking is not None and ranking.kind == "best"


def test_a_refused_rewording_stays_in_its_box_over_a_reload(page: Page) -> None:
    box = reword_reply(page)
    almost = box.input_value() + " "
    box.fill(almost)
    save_reply(page)
    expect(page.get_by_text("word for word")).to_be_visible()
    expect(box).to_have_value(almost)
    page.reload()
    expect(box).to_have_value(almost)
    box.fill("Better.")
    save_reply(page)
    expect(page.locator(".edited:visible .written")).to_have_text("Better.")
    expect(box).to_have_count(0)
    page.reload()
    expect(page.locator(".edited:visible .written")).to_have_text("Better.")
    expect(box).to_have_count(0)


def test_more_replies_leave_an_open_box_alone(page: Page) -> None:
    reword_reply(page).fill("Half a rewording")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".card")).to_have_count(7)
    expect(page.locator(".card textarea")).to_have_value("Half a rewording")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".card textarea")).to_have_count(0)
    page.reload()
    expect(page.locator(".card")).to_have_count(7)
    expect(page.locator(".card textarea")).to_have_count(0)


def test_a_refused_branch_keeps_its_words_and_is_sent_again(
    visitor: Visitor, page: Page, site: tuple[Server, Database]
) -> None:
    def spoil(route: Route) -> None:
        sent = route.request.post_data or ""
        assert '"text":"Other words."' in sent
        route.continue_(post_data=sent.replace('"text":"Other words."', '"text":5'))

    box = reword_message(page)
    box.fill("Other words.")
    page.route(EVENTS, spoil, times=1)
    branch_button(page).click()
    expect(page.get_by_text("does not understand")).to_be_visible()
    expect(box).to_have_value("Other words.")
    branch_button(page).click()
    expect(page.locator(".said .bubble")).to_have_text(["Other words."])
    visitor.wait_until_written()
    assert said(site, visitor) == ["Count for me.", "Other words."]


def test_a_double_click_makes_one_branch(visitor: Visitor, page: Page, site: tuple[Server, Database]) -> None:
    reword_message(page).fill("Other words.")
    branch_button(page).dblclick()
    expect(page.locator(".said .bubble")).to_have_text(["Other words."])
    visitor.wait_until_written()
    assert said(site, visitor) == ["Count for me.", "Other words."]


def test_a_branch_whose_answer_is_lost_is_stored_once(
    visitor: Visitor, page: Page, site: tuple[Server, Database]
) -> None:
    def lose(route: Route) -> None:
        route.fetch()
        route.fulfill(status=500, json={"detail": "lost on the way"})

    box = reword_message(page)
    box.fill("Other words.")
    page.route(EVENTS, lose, times=1)
    branch_button(page).click()
    expect(branch_button(page)).to_be_enabled()
    expect(box).to_have_value("Other words.")
    wait_for(page, lambda: len(said(site, visitor)) == 2)
    branch_button(page).click()
    expect(page.locator(".said .bubble")).to_have_text(["Other words."])
    visitor.wait_until_written()
    assert said(site, visitor) == ["Count for me.", "Other words."]


@pytest.mark.parametrize("name", BOXES)
def test_escape_closes_a_box_and_does_nothing_else(page: Page, name: str) -> None:
    box = BOXES[name](page)
    page.evaluate("document.addEventListener('keydown', (event) => { window.lastKey = event.key; })")
    box.press("x")
    box.press("Escape")
    expect(box).to_have_count(0)
    assert page.evaluate("window.lastKey") == "x", "elsewhere on the page Escape stops the replies"


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("key", ["Enter", "Escape"])
def test_an_input_method_has_its_keys_to_itself(page: Page, name: str, key: str) -> None:
    box = BOXES[name](page)
    box.fill("zhongwen")
    box.dispatch_event("keydown", {"key": key, "isComposing": True})
    expect(box).to_have_value("zhongwen")
