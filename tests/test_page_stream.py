"""The chat page while replies stream slowly, and while they try to break out: stop, come back, attacks."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, expect

from data import conversations, messages
from data.database import Database
from tests.attacks import ATTACKS
from tests.browser import Server, Visitor, running_site, visit, wait_for
from tests.stories import a_turn, somebody

pytestmark = pytest.mark.browser
FORBIDDEN = "img, iframe, object, script, link, meta, base, video, math, form:not(.composer)"


@pytest.fixture(scope="module")
def slow_site(
    browser: Browser, tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Database]]:
    """A server whose replies go on until they are stopped."""
    root = tmp_path_factory.mktemp("slow") / "var"
    flags = ("--max-new-tokens", "900", "--compare-share", "0")
    with running_site(tiny_directory, root, *flags, program="tests.endless") as site:
        yield site


def talk_at_length(visitor: Visitor) -> Locator:
    """The four replies that are being written."""
    visitor.say("Talk at length, please.")
    busy = visitor.page.locator(".card[aria-busy='true']")
    expect(busy).to_have_count(4)
    return busy


def how_replies_ended(db: Database, visitor: Visitor) -> list[str | None]:
    """To the latest message; None is still being written."""
    chat = conversations.list_for(db, visitor.person.id)[0]
    turns = [message for message in messages.list_for(db, chat.id) if message.role == "user"]
    return [reply.finish_reason for reply in messages.replies(db, turns[-1].id)]


def test_stopping_one_and_all_and_coming_back_in_mid_stream(
    browser: Browser, slow_site: tuple[Server, Database]
) -> None:
    visitor = visit(browser, *slow_site, "patient")
    page = visitor.page
    busy = talk_at_length(visitor)
    page.reload()
    visitor.start_chat()
    expect(busy).to_have_count(4)
    busy.first.locator(".tools button:visible").first.click()
    expect(busy).to_have_count(3)
    expect(page.locator(".card .state:visible", has_text="stopped")).to_have_count(1)
    wait_for(page, lambda: "cancelled" in how_replies_ended(slow_site[1], visitor))
    assert how_replies_ended(slow_site[1], visitor).count(None) == 3
    page.keyboard.press("Escape")
    expect(busy).to_have_count(0)
    wait_for(page, lambda: how_replies_ended(slow_site[1], visitor) == ["cancelled"] * 4)
    assert visitor.errors == [] and visitor.foreign == []
    visitor.context.close()


ESCAPE_OF_AN_INPUT_METHOD = """box => box.dispatchEvent(
  new KeyboardEvent('keydown', { key: 'Escape', isComposing: true, bubbles: true })
)"""


def test_escape_leaves_the_message_box_and_only_the_next_one_stops_the_replies(
    browser: Browser, slow_site: tuple[Server, Database]
) -> None:
    visitor = visit(browser, *slow_site, "thoughtful")
    page, box = visitor.page, visitor.page.locator(".composer textarea")
    talk_at_length(visitor)
    box.fill("My next thought")
    box.evaluate(ESCAPE_OF_AN_INPUT_METHOD)
    expect(box).to_be_focused()
    page.keyboard.press("Escape")
    expect(box).not_to_be_focused()
    page.wait_for_timeout(500)  # as long as a stop may take to arrive
    assert "cancelled" not in how_replies_ended(slow_site[1], visitor)
    page.keyboard.press("Escape")
    wait_for(page, lambda: "cancelled" in how_replies_ended(slow_site[1], visitor))
    visitor.context.close()


NUDGES = """async () => {
  const after = (ms) => new Promise((done) => setTimeout(done, ms));
  const props = { value: { look: 0 } };
  let hear;
  let nudges = 0;
  const count = () => { nudges += 1; };
  document.addEventListener('night:nudge', count);
  const fire = night.patient(() => {}, (name, told) => { hear = told; }, props);
  fire('send', { look: 2 });
  props.value = { look: 1 };
  hear();
  await after(1500);
  const unanswered = nudges;
  props.value = { look: 2 };
  hear();
  await after(2500);
  document.removeEventListener('night:nudge', count);
  return [unanswered, nudges - unanswered];
}"""


def test_the_answer_to_an_earlier_look_ends_no_waiting(
    browser: Browser, slow_site: tuple[Server, Database]
) -> None:
    """Somebody who writes while the page still loads: its answer came, and closed the stream, first."""
    visitor = visit(browser, *slow_site, "quick")
    unanswered, answered = visitor.page.evaluate(NUDGES)
    assert unanswered >= 1
    assert answered == 0
    visitor.context.close()


def test_no_attack_runs_as_reply_or_as_message(browser: Browser, slow_site: tuple[Server, Database]) -> None:
    db = slow_site[1]
    mallory = somebody(db, "mallory")
    for start in range(0, len(ATTACKS), 9):
        texts = [f"{attack}\n\n{start + n}" for n, attack in enumerate(ATTACKS[start : start + 9])]
        replies = a_turn(db, mallory, texts, question=ATTACKS[start])
        conversations.add_edit(db, replies[0].id, ATTACKS[start], mallory.id)
    parent = None
    chat = conversations.create(db, mallory.id, title=ATTACKS[1])
    for attack in ATTACKS:
        turn = conversations.add_user_message(db, chat.id, parent, attack, mallory.id)
        parent = conversations.add_written_reply(db, turn.id, attack, None).id
    visitor = visit(browser, *slow_site, "mallory")
    page = visitor.page
    page.on("dialog", lambda dialog: visitor.errors.append(f"a dialog: {dialog.message}"))
    chats = conversations.list_for(db, mallory.id)
    expect(page.locator(".chat-title")).to_have_count(len(chats))
    for index, shown in enumerate(chats):
        page.locator(".chat-title").nth(index).click()
        expect(page.locator(".chat-title").nth(index)).to_have_attribute("aria-current", "page")
        settled = len(ATTACKS) - 1 if shown.id == chat.id else 0  # the last one stands on the board
        expect(page.locator(".answered")).to_have_count(settled)
        page.locator(".card .written").first.wait_for()
        page.wait_for_timeout(200)
        assert page.evaluate("window.pwned") is None
        assert page.locator(f"#room :is({FORBIDDEN})").count() == 0
        for link in page.locator(".written a").all():
            assert re.match("https?:|mailto:", str(link.get_attribute("href")))
    assert visitor.errors == [] and visitor.foreign == []
    visitor.context.close()
