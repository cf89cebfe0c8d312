"""The chat page where answers are late or lost: texts stay, none is stored twice, private stays private."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from chatbot import accounts
from data import conversations, messages, people, rankings
from data.database import Database, open_database
from data.home import open_home
from data.records import Conversation, Person
from tests.browser import EVENTS, PATIENCE, Server, Visitor, running_server, visit, wait_for
from tests.stories import a_turn, rank, somebody

pytestmark = pytest.mark.browser
SITE = ("--max-new-tokens", "12")
PASSWORD = "a quiet night"


@pytest.fixture
def visitor(
    browser: Browser, site: tuple[Server, Database], request: pytest.FixtureRequest
) -> Iterator[Visitor]:
    """Somebody new who has one earlier chat, about apples."""
    name = request.node.name[5:45]
    a_turn(site[1], somebody(site[1], name), question="About apples")
    visitor = visit(browser, *site, name)
    yield visitor
    visitor.context.close()


@pytest.fixture
def db(site: tuple[Server, Database]) -> Database:
    return site[1]


@contextmanager
def late(page: Page) -> Iterator[None]:
    """The first event of this block reaches the server only after the block."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route(EVENTS, hold, times=1)
    yield
    wait_for(page, lambda: held)
    held[0].continue_()


def box(page: Page) -> Locator:
    return page.locator(".composer textarea")


def switch(page: Page) -> Locator:
    return page.get_by_role("switch", name="Don't train on this chat")


def can_send(page: Page) -> None:
    """Waits until the message that went off last is answered, or given up."""
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_enabled()


def the_chat(db: Database, visitor: Visitor) -> Conversation:
    """The one chat that the visitor has begun; its one message is the visitor's, and was answered once."""
    [chat] = [one for one in conversations.list_for(db, visitor.person.id) if one.title != "About apples"]
    assert [message.role for message in messages.list_for(db, chat.id)] == ["user", *["assistant"] * 4]
    return chat


def test_what_is_typed_while_a_message_is_on_its_way_stays(visitor: Visitor) -> None:
    page = visitor.page
    with late(page):
        visitor.say("Hello.")
        box(page).press_sequentially(" And then?")
    visitor.wait_until_written()
    expect(box(page)).to_have_value("And then?")
    expect(page.locator(".said .bubble")).to_have_text(["Hello."])
    page.reload()
    expect(box(page)).to_have_value("And then?")


TYPES_AS_THE_REPLIES_COME = """() => document.addEventListener('night:answered', () => {
  window.addEventListener('night:turn', () => {
    const box = document.querySelector('.composer textarea');
    box.value = 'And then?';
    box.dispatchEvent(new Event('input'));
  }, { capture: true, once: true });
}, { once: true })"""


def test_the_box_keeps_the_keys_of_who_types_on_before_the_replies_come(visitor: Visitor) -> None:
    page = visitor.page
    page.evaluate(TYPES_AS_THE_REPLIES_COME)
    visitor.say("Hello.")
    visitor.wait_until_written()
    expect(box(page)).to_have_value("And then?")
    expect(box(page)).to_be_focused()


def test_a_late_answer_leaves_another_chats_draft_alone(visitor: Visitor, db: Database) -> None:
    page = visitor.page
    page.locator(".chat-title", has_text="About apples").click()
    expect(page.locator(".said .bubble")).to_have_text(["About apples"])
    box(page).fill("Half a thought")
    page.locator(".new-chat").click()
    expect(box(page)).to_have_value("")
    with late(page):
        visitor.say("Hello.")
        page.locator(".chat-title", has_text="About apples").click()
        expect(box(page)).to_have_value("Half a thought")
    can_send(page)
    wait_for(page, lambda: len(conversations.list_for(db, visitor.person.id)) == 2)
    expect(page.locator(".said .bubble")).to_have_text(["About apples"])
    expect(box(page)).to_have_value("Half a thought")
    page.locator(".new-chat").click()
    expect(box(page)).to_have_value("")


def test_who_was_signed_out_sends_the_same_text_once_back_in(visitor: Visitor, db: Database) -> None:
    page, context = visitor.page, visitor.context
    cookies = context.cookies()
    context.clear_cookies()
    visitor.say("Hello.")
    can_send(page)
    expect(box(page)).to_have_value("Hello.")
    context.add_cookies(cookies)  # type: ignore[arg-type]
    box(page).press("Enter")
    visitor.wait_until_written()
    expect(box(page)).to_have_value("")
    the_chat(db, visitor)


def say_without_an_answer(visitor: Visitor, db: Database) -> None:
    """Send a message that the server stores and whose answer is lost."""

    def lose(route: Route) -> None:
        route.fetch()
        route.fulfill(status=500, json={"detail": "lost on the way"})

    visitor.page.route(EVENTS, lose, times=1)
    visitor.say("Hello.")
    expect(visitor.page.get_by_text("No answer came.")).to_be_visible()
    wait_for(visitor.page, lambda: len(conversations.list_for(db, visitor.person.id)) == 2)


def test_a_message_whose_answer_is_lost_is_stored_once(visitor: Visitor, db: Database) -> None:
    page = visitor.page
    say_without_an_answer(visitor, db)
    box(page).press("Enter")
    visitor.wait_until_written()
    expect(box(page)).to_have_value("")
    the_chat(db, visitor)


def test_a_message_whose_answer_is_lost_leaves_the_box_with_the_next_chat(
    visitor: Visitor, db: Database
) -> None:
    page = visitor.page
    say_without_an_answer(visitor, db)
    page.locator(".chat-title", has_text="About apples").click()
    expect(page.locator(".said .bubble")).to_have_text(["About apples"])
    page.locator(".new-chat").click()
    expect(box(page)).to_have_value("")


def test_after_a_lost_answer_the_board_still_says_what_is_saved(visitor: Visitor) -> None:
    page = visitor.page
    page.locator(".chat-title", has_text="About apples").click()
    page.locator(".card").first.wait_for()
    page.route(EVENTS, lambda route: route.fulfill(status=500, json={"detail": "lost"}), times=1)
    visitor.say("Hello.")
    expect(page.get_by_text("No answer came.")).to_be_visible()
    page.locator(".card").first.focus()
    page.keyboard.press("x")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".saved")).to_have_text("Saved")


HEARS_WHEN_ONE_MAY_ACT_AGAIN = """() => {
  window.again = new Promise((hear) => {
    document.addEventListener('night:again', () => hear(), { once: true });
  });
}"""


def test_after_a_lost_regeneration_the_board_still_says_what_is_saved(visitor: Visitor) -> None:
    page = visitor.page
    page.locator(".chat-title", has_text="About apples").click()
    page.locator(".card").first.wait_for()
    page.route(EVENTS, lambda route: route.fulfill(status=500, json={"detail": "lost"}), times=1)
    page.evaluate(HEARS_WHEN_ONE_MAY_ACT_AGAIN)
    page.get_by_role("button", name="Regenerate").click()
    page.evaluate("window.again")  # after ten seconds
    page.locator(".card").first.focus()
    page.keyboard.press("x")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".saved")).to_have_text("Saved")


def delete_in_vain(page: Page) -> list[Route]:
    """Delete the chat about apples, which is lost on its way; a message that goes off before is held."""
    held: list[Route] = []

    def hinder(route: Route) -> None:
        sent = route.request.post_data or ""
        if '"target"' in sent:
            route.fulfill(status=500, json={"detail": "lost"})
        elif '"text"' in sent and not held:
            held.append(route)
        else:
            route.continue_()

    page.route(EVENTS, hinder)
    if box(page).input_value():
        box(page).press("Enter")
        wait_for(page, lambda: held)
    page.locator(".chats li", has_text="About apples").hover()
    page.locator(".chats li", has_text="About apples").locator("summary").click()
    page.get_by_role("button", name="Delete").click()
    with page.expect_response(lambda answer: answer.status == 500):
        page.get_by_role("button", name="Really delete?").click()
    return held


def test_what_comes_during_a_lost_deletion_is_shown_after_it(visitor: Visitor) -> None:
    page = visitor.page
    page.locator(".chat-title", has_text="About apples").click()
    page.locator(".card").first.wait_for()
    delete_in_vain(page)
    page.locator(".card").first.focus()
    page.keyboard.press("x")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".saved")).to_have_text("Saved")


def test_a_chat_that_begins_during_a_lost_deletion_is_gone_on_with(visitor: Visitor, db: Database) -> None:
    page = visitor.page
    box(page).fill("Hello.")
    [message] = delete_in_vain(page)
    message.continue_()
    expect(page.locator(".said .bubble")).to_have_text(["Hello."])
    visitor.wait_until_written()
    expect(box(page)).to_have_value("")
    visitor.say("And then?")
    expect(page.locator(".said .bubble")).to_have_text(["Hello.", "And then?"])
    assert len(conversations.list_for(db, visitor.person.id)) == 2


def marked(visitor: Visitor) -> Page:
    """The three replies about apples, of which two are ranked, with a reason and a comment; none is saved."""
    page = visitor.page
    page.locator(".chat-title", has_text="About apples").click()
    expect(page.locator(".card")).to_have_count(3)
    for key in "B1C2":
        page.keyboard.press(key)
    page.get_by_role("button", name="Did as asked").click()
    page.get_by_role("textbox", name="Comment").fill("It counts well.")
    return page


def expect_marks(page: Page) -> None:
    """What `marked` has marked is there, and can be saved."""
    expect(page.locator(".order")).to_have_text("B > C")
    expect(page.get_by_role("radio", name="Reply B: rank 1")).to_be_checked()
    expect(page.get_by_role("button", name="Did as asked")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("textbox", name="Comment")).to_have_value("It counts well.")
    expect(page.get_by_role("button", name="Save ranking")).to_be_enabled()


def expect_no_marks(page: Page) -> None:
    expect(page.locator(".card")).to_have_count(3)
    expect(page.locator(".order")).to_contain_text("Which do you like best?")
    expect(page.locator(".ranks input:checked")).to_have_count(0)


def test_marks_that_are_not_saved_outlast_a_reload_and_another_chat(visitor: Visitor, db: Database) -> None:
    page = marked(visitor)
    page.reload()
    expect_marks(page)
    page.locator(".new-chat").click()
    expect(page.locator(".board")).to_be_hidden()
    page.locator(".chat-title", has_text="About apples").click()
    expect_marks(page)
    page.keyboard.press("Control+Enter")
    expect(page.locator(".saved")).to_have_text("Saved")
    [chat] = conversations.list_for(db, visitor.person.id)
    turn = messages.list_for(db, chat.id)[0]
    ranking = rankings.current(db, turn.id, visitor.person.id)
    assert ranking is not None and rankings.order_text(ranking.placements) == "B > C"
    assert (ranking.reasons, ranking.comment) == (("followed",), "It counts well.")
    page.reload()
    expect(page.locator(".saved")).to_have_text("Saved")


@pytest.mark.parametrize("mark", ["Best", "All bad"])
def test_best_and_all_bad_outlast_a_reload(visitor: Visitor, mark: str) -> None:
    page = visitor.page
    page.locator(".chat-title", has_text="About apples").click()
    pressed = page.get_by_role("button", name="Reply B is best" if mark == "Best" else mark)
    pressed.click()
    page.reload()
    expect(pressed).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="Save ranking")).to_be_enabled()


def test_a_lost_click_on_bad_reply_can_be_taken_back_after_a_reload(visitor: Visitor, db: Database) -> None:
    a_turn(db, visitor.person, ["one"], question="About one pear")
    page = visitor.page
    page.reload()
    page.locator(".chat-title", has_text="About one pear").click()
    thumb = page.get_by_role("button", name="Bad reply")
    thumb.wait_for()
    page.route(EVENTS, lambda route: route.fulfill(status=500, json={"detail": "lost"}), times=1)
    thumb.click()
    expect(thumb).to_have_attribute("aria-pressed", "true")
    page.reload()
    expect(thumb).to_have_attribute("aria-pressed", "true")
    thumb.click()
    expect(thumb).to_have_attribute("aria-pressed", "false")
    thumb.click()
    expect(page.locator(".saved")).to_have_text("Saved")


def test_marks_made_over_a_saved_ranking_outlast_a_reload_and_undo_takes_all(visitor: Visitor) -> None:
    page = marked(visitor)
    page.get_by_role("button", name="Save ranking").click()
    expect(page.locator(".saved")).to_have_text("Saved")
    page.get_by_role("radio", name="Reply A: rank 3").check(force=True)
    page.reload()
    expect(page.locator(".order")).to_have_text("B > C > A")
    expect(page.get_by_role("button", name="Save changes")).to_be_enabled()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("button", name="Undo")).not_to_be_visible()
    page.reload()
    expect_no_marks(page)


@pytest.mark.parametrize("elsewhere", ["saved", "saved and undone"])
def test_marks_end_with_a_change_elsewhere(visitor: Visitor, db: Database, elsewhere: str) -> None:
    page = marked(visitor)
    [chat] = conversations.list_for(db, visitor.person.id)
    turn, *replies = messages.list_for(db, chat.id)
    rank(db, visitor.person, replies, [1, 1, 1])
    if elsewhere == "saved":
        page.reload()
        expect(page.locator(".order")).to_have_text("A = B = C")
        expect(page.locator(".saved")).to_have_text("Saved")
    rankings.withdraw(db, turn.id, visitor.person.id)
    page.reload()
    expect_no_marks(page)


def test_what_is_marked_while_a_save_is_on_its_way_outlasts_a_reload(visitor: Visitor) -> None:
    page = marked(visitor)
    with late(page):
        page.get_by_role("button", name="Save ranking").click()
        page.get_by_role("textbox", name="Comment").press_sequentially(" And kindly.")
    expect(page.get_by_role("button", name="Save changes")).to_be_enabled()
    page.reload()
    expect(page.get_by_role("textbox", name="Comment")).to_have_value("It counts well. And kindly.")
    expect(page.get_by_role("button", name="Save changes")).to_be_enabled()


def test_marks_are_kept_of_no_more_than_the_latest_hundred_turns(visitor: Visitor) -> None:
    kept = visitor.page.evaluate(
        """() => {
          for (let turn = 0; turn < 150; turn += 1) night.keepOne('marks', `turn ${turn}`, { turn });
          return [night.keptOne('marks', 'turn 49'), night.keptOne('marks', 'turn 50').turn];
        }"""
    )
    assert kept == [None, 50]


def test_the_switch_of_a_new_chat_outlasts_what_is_done_in_the_sidebar(
    visitor: Visitor, db: Database
) -> None:
    page = visitor.page
    switch(page).check()
    page.get_by_role("searchbox", name="Search chats").fill("nothing like it")
    expect(page.get_by_text("No chats found")).to_be_visible()
    page.get_by_role("searchbox", name="Search chats").fill("")
    page.locator(".chats li").hover()
    page.locator(".menu summary").click()
    with page.expect_download():
        page.get_by_role("button", name="Export").click()
    page.locator(".menu summary").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Really delete?").click()
    expect(page.locator(".chat-title")).to_have_count(0)
    expect(switch(page)).to_be_checked()
    visitor.say("Between us.")
    visitor.wait_until_written()
    assert not the_chat(db, visitor).may_train


def test_the_switch_of_a_new_chat_outlasts_a_refused_message(visitor: Visitor, db: Database) -> None:
    page = visitor.page

    def spoil(route: Route) -> None:
        sent = route.request.post_data or ""
        assert '"text":"Between us."' in sent
        route.continue_(post_data=sent.replace('"text":"Between us."', '"text":5'))

    switch(page).check()
    page.route(EVENTS, spoil, times=1)
    visitor.say("Between us.")
    expect(page.get_by_text("Not sent.")).to_be_visible()
    expect(switch(page)).to_be_checked()
    box(page).press("Enter")
    visitor.wait_until_written()
    assert not the_chat(db, visitor).may_train


def test_the_switch_turned_on_while_the_first_message_is_on_its_way_counts(
    visitor: Visitor, db: Database
) -> None:
    page = visitor.page
    with late(page):
        visitor.say("Between us.")
        switch(page).check()
    visitor.wait_until_written()
    expect(switch(page)).to_be_checked()
    wait_for(page, lambda: not the_chat(db, visitor).may_train)


def test_the_switch_belongs_to_its_chat(visitor: Visitor, db: Database) -> None:
    page = visitor.page
    switch(page).check()
    page.locator(".chat-title", has_text="About apples").click()
    expect(page.locator(".said .bubble")).to_have_text(["About apples"])
    expect(switch(page)).not_to_be_checked()
    page.locator(".new-chat").click()
    expect(switch(page)).to_be_checked()  # with the draft of the new chat, its switch
    visitor.say("Between us.")
    expect(page.locator(".said .bubble")).to_have_text(["Between us."])
    visitor.wait_until_written()
    page.locator(".new-chat").click()
    expect(switch(page)).not_to_be_checked()
    assert not the_chat(db, visitor).may_train


def with_password(db: Database, name: str) -> Person:
    return people.add(db, name, password_hash=accounts.hash_password(PASSWORD))


def sign_in(page: Page, server: Server, person: Person) -> None:
    page.goto(f"{server.url}/login")
    page.get_by_label("Name").fill(person.name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator(".who .name")).to_have_text(person.name)


@pytest.mark.parametrize("way", ["Sign out", "Sign out everywhere"])
def test_the_next_person_finds_nothing_that_was_typed(
    visitor: Visitor, site: tuple[Server, Database], way: str
) -> None:
    page, server = visitor.page, site[0]
    typist, next_person = (with_password(site[1], f"{who}, {way}") for who in ("typist", "next"))
    sign_in(page, server, typist)
    box(page).fill("Half a thought")
    page.goto(f"{server.url}/account/")
    page.get_by_role("button", name=way, exact=True).click()
    page.wait_for_url("**/login")
    sign_in(page, server, next_person)
    expect(box(page)).to_have_value("")


def test_who_signs_in_again_finds_what_was_typed(visitor: Visitor, site: tuple[Server, Database]) -> None:
    page, person = visitor.page, with_password(site[1], "forgetful")
    sign_in(page, site[0], person)
    box(page).fill("Half a thought")
    visitor.context.clear_cookies(name=accounts.COOKIE)
    sign_in(page, site[0], person)
    expect(box(page)).to_have_value("Half a thought")


def test_a_server_that_stops_under_a_new_chat_costs_neither_text_nor_switch(
    browser: Browser, tiny_directory: Path, tmp_path: Path
) -> None:
    root = tmp_path / "var"
    with ExitStack() as stack:
        with running_server(tiny_directory, root, "--max-new-tokens", "12") as server:
            db = open_database(open_home(root))
            stack.callback(db.close)
            visitor = visit(browser, server, db, "ada")
            stack.callback(visitor.context.close)
            page = visitor.page
            switch(page).check()
        visitor.say("Between us.")
        can_send(page)
        expect(box(page)).to_have_value("Between us.")
        with page.expect_event("load", timeout=2 * PATIENCE):  # Gradio reloads a page that it had lost
            port = str(urlsplit(server.url).port)
            stack.enter_context(running_server(tiny_directory, root, "--port", port))
        visitor.start_chat()
        expect(box(page)).to_have_value("Between us.")
        expect(switch(page)).to_be_checked()
        box(page).press("Enter")
        visitor.wait_until_written()
        expect(box(page)).to_have_value("")
        assert not the_chat(db, visitor).may_train
