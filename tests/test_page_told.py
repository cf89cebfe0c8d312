"""What the page tells people of what they did: what is deleted, named, saved or sent, and where to look."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from chatbot import accounts
from chatbot.pages import words
from data import conversations
from data.database import Database
from data.records import Sampling
from tests.browser import EVENTS, Server, Visitor, before_three, is_in_view, wait_for
from tests.test_page_lost import late

pytestmark = pytest.mark.browser
SITE = ("--max-new-tokens", "12")
LONG = "\n\n".join(f"Paragraph {number} of a long reply." for number in range(12))


@pytest.fixture
def visitor(
    browser: Browser, site: tuple[Server, Database], request: pytest.FixtureRequest
) -> Iterator[Visitor]:
    with before_three(browser, site, request.node.name[-40:], [LONG, LONG, LONG]) as visitor:
        yield visitor


@pytest.fixture
def page(visitor: Visitor) -> Page:
    return visitor.page


@pytest.fixture
def db(site: tuple[Server, Database]) -> Database:
    return site[1]


def open_menu(page: Page) -> None:
    page.locator(".chats li").hover()
    page.locator(".chats .menu summary").click()


def type_name(page: Page, name: str) -> None:
    open_menu(page)
    page.get_by_role("button", name="Rename").click()
    page.get_by_role("textbox", name="Rename").fill(name)


def the_title(db: Database, visitor: Visitor) -> str:
    return conversations.list_for(db, visitor.person.id)[0].title


def test_a_menu_that_was_closed_asks_again_before_it_deletes(page: Page) -> None:
    open_menu(page)
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="Really delete?")).to_be_visible()
    page.locator(".top-bar .title").click()
    open_menu(page)
    expect(page.get_by_role("button", name="Delete", exact=True)).to_be_visible()


def test_a_renamed_chat_has_its_new_name_everywhere(page: Page) -> None:
    type_name(page, "On counting")
    page.keyboard.press("Enter")
    expect(page.locator(".top-bar .title")).to_have_text("On counting")
    expect(page).to_have_title("On counting · Night School")


def test_a_name_is_kept_where_one_clicks_elsewhere_and_not_after_escape(
    page: Page, visitor: Visitor, db: Database
) -> None:
    type_name(page, "Thrown away")
    page.keyboard.press("Escape")
    type_name(page, "Kept")
    page.locator(".composer textarea").click()
    wait_for(page, lambda: the_title(db, visitor) == "Kept")
    expect(page.locator(".chats .chat-title")).to_have_text("Kept")


def test_a_name_that_is_being_typed_stays_while_the_list_is_drawn_anew(
    page: Page, visitor: Visitor, db: Database
) -> None:
    with late(page):
        type_name(page, "First")
        page.keyboard.press("Enter")
        type_name(page, "Half")
    expect(page.locator(".top-bar .title")).to_have_text("First")
    expect(page.get_by_role("textbox", name="Rename")).to_be_focused()
    page.keyboard.type(" and whole")
    assert the_title(db, visitor) == "First"
    page.keyboard.press("Enter")
    expect(page.locator(".top-bar .title")).to_have_text("Half and whole")


def test_beside_the_box_stands_how_much_too_long_a_message_is(page: Page) -> None:
    box, told = page.locator(".composer textarea"), page.locator(".composer .length")
    box.fill("x" * 30_000)
    expect(told).to_have_text("30,000 / 32,000")
    box.fill("x" * 33_500)
    expect(told).to_have_text("1,500 characters too many")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    box.fill("")
    expect(told).to_be_empty()


def test_marks_that_are_cleared_leave_the_saved_ranking_and_the_foot_says_so(page: Page) -> None:
    for key in ("Escape", *"A1B2"):  # out of the box for a message, then two marks
        page.keyboard.press(key)
    page.keyboard.press("Control+Enter")
    expect(page.locator(".saved")).to_have_text("Saved")
    page.get_by_role("button", name="Start over").click()
    said = "Saved, and it still counts: A > B. To take it back, press Undo."
    expect(page.locator(".order")).to_have_text(said)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".order")).to_contain_text("Rank at least two")


def test_no_two_buttons_of_the_board_have_one_name(page: Page) -> None:
    for key in ("Escape", *"A1"):
        page.keyboard.press(key)
    names = [
        name for name in page.locator(":is(.ranking, .board-foot) button:visible").all_inner_texts() if name
    ]
    assert "Clear" in names and len(names) == len(set(names))


def test_new_replies_come_into_view(page: Page) -> None:
    again = page.get_by_role("button", name="Regenerate")
    again.scroll_into_view_if_needed()
    again.click()
    expect(page.locator(".card")).to_have_count(7)
    fourth = page.locator(".card").nth(3)
    wait_for(page, lambda: is_in_view(page, fourth))


@pytest.mark.parametrize("act", ["send", "rank"])
def test_who_was_signed_out_elsewhere_reads_it_once_with_the_way_back(
    visitor: Visitor, page: Page, act: str
) -> None:
    visitor.context.clear_cookies(name=accounts.COOKIE)
    if act == "send":
        visitor.say("Are you there?")
    else:
        for key in ("Escape", *"A1B2", "Control+Enter"):
            page.keyboard.press(key)
    alert = page.get_by_role("alert").filter(has_text="signed out")
    expect(alert).to_have_count(1)
    page.wait_for_timeout(4000)  # by then a page that goes on asking has asked three times more
    expect(page.get_by_text("sign", exact=False).and_(page.locator(".toast-body"))).to_have_count(0)
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    if act == "send":
        expect(page.locator(".composer textarea")).to_have_value("Are you there?")
    alert.get_by_role("link", name="Sign in").click()
    page.wait_for_url("**/login?next=*")


def test_who_asks_for_too_much_at_once_reads_so_and_keeps_the_text(visitor: Visitor, page: Page) -> None:
    said = words.word("too_much")
    page.route(EVENTS, lambda route: route.fulfill(status=429, json={"detail": said}), times=1)
    visitor.say("Hello.")
    expect(page.locator(".toast-body").get_by_text(said)).to_be_visible()
    expect(page.get_by_text("No answer came.")).to_be_visible()
    expect(page.locator(".composer textarea")).to_have_value("Hello.")


def test_replies_that_a_stopped_server_cut_off_and_why_a_message_was_refused(
    visitor: Visitor, page: Page, site: tuple[Server, Database], db: Database
) -> None:
    chat = conversations.create(db, visitor.person.id)
    turn = conversations.add_user_message(db, chat.id, None, "Count on.", visitor.person.id)
    for reply in conversations.start_replies(db, turn.id, "base", Sampling(), range(2)):
        conversations.finish_reply(db, reply.id, "", 0, "interrupted")
    page.goto(f"{site[0].url}/?c={chat.id}")
    visitor.start_chat()
    notice = page.get_by_text("The server was stopped before the replies were complete.")
    expect(notice).to_be_visible()
    visitor.say("And now?")
    said = (
        "Not sent. Your text is still here. This turn has no finished reply - wait for one, press Regenerate"
    )
    expect(page.locator(".unsent")).to_contain_text(said)
    page.locator(".composer textarea").fill("Something else?")
    expect(page.locator(".unsent")).to_be_hidden()
