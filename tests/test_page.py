"""The chat page in a real Chromium against a real server on the tiny model: what a person sees and does."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from chatbot.pages.board import shown_replies
from chatbot.pages.markdown import blocks
from data import conversations, messages, rankings
from data.database import Database
from data.records import Message, Ranking, Sampling
from tests.browser import Server, Visitor, visit, wait_for
from tests.stories import a_turn, rank, somebody

# ruff: noqa: RUF001 - Chinese is written with full-width punctuation.
pytestmark = pytest.mark.browser
SITE = ("--max-new-tokens", "24", "--compare-share", "0")
ARRIVAL = Callable[..., Visitor]


@pytest.fixture
def arrive(
    browser: Browser, site: tuple[Server, Database], request: pytest.FixtureRequest
) -> Iterator[ARRIVAL]:
    """Signs somebody new in; afterwards their page must have had no error and asked no other host."""
    visitors: list[Visitor] = []

    def come(**options: object) -> Visitor:
        name = options.pop("name", None) or f"{request.node.name[:40]} {len(visitors)}"
        visitors.append(visit(browser, *site, str(name), **options))  # type: ignore[arg-type]
        return visitors[-1]

    yield come
    for visitor in visitors:
        visitor.context.close()
        assert visitor.foreign == [] and visitor.errors == []


@pytest.fixture
def db(site: tuple[Server, Database]) -> Database:
    return site[1]


def the_turn(db: Database, visitor: Visitor) -> Message:
    """The latest turn of the visitor's latest conversation."""
    chat = conversations.list_for(db, visitor.person.id)[0]
    return [message for message in messages.list_for(db, chat.id) if message.role == "user"][-1]


def the_ranking(db: Database, visitor: Visitor) -> Ranking:
    ranking = rankings.current(db, the_turn(db, visitor).id, visitor.person.id)
    assert ranking is not None
    return ranking


def save(page: Page) -> None:
    page.keyboard.press("Control+Enter")
    expect(page.locator(".saved")).to_have_text("Saved")


TEXT_OF = """(html) => {
  const node = document.createElement('div');
  node.innerHTML = html;
  return node.textContent;
}"""


def test_a_ranking_by_keyboard_is_saved_as_shown_and_continued(arrive: ARRIVAL, db: Database) -> None:
    visitor = arrive()
    page = visitor.page
    visitor.say("Tell me something.")
    expect(page.locator(".card")).to_have_count(4)
    visitor.wait_until_written()
    shown = [
        page.get_by_role("listitem", name=f"Reply {letter}").locator("> .written").text_content() or ""
        for letter in "ABCD"
    ]
    for key in "B1A2C2D3":
        page.keyboard.press(key)
    expect(page.locator(".order")).to_have_text("B > A = C > D")
    save(page)
    ranking = the_ranking(db, visitor)
    assert rankings.order_text(ranking.placements) == "B > A = C > D"
    replies = [messages.get(db, place.message_id).content for place in ranking.placements]
    texts = [page.evaluate(TEXT_OF, "".join(blocks(reply))) for reply in replies]
    letters = [re.sub(r"\W+", "", text)[:8] for text in texts]
    assert letters == [re.sub(r"\W+", "", text)[:8] for text in shown]

    page.keyboard.press("/")
    visitor.say("And then?")
    expect(page.locator(".answered")).to_have_count(1)
    visitor.wait_until_written()
    best = ranking.placements[1].message_id
    assert the_turn(db, visitor).parent_id == best

    page.reload()
    visitor.start_chat()
    visitor.wait_until_written()
    expect(page.locator(".said")).to_have_count(2)
    expect(page.locator(".answered .tag")).to_have_text("B > A = C > D")


def test_a_ranking_by_mouse(arrive: ARRIVAL, db: Database) -> None:
    visitor = arrive()
    page = visitor.page
    visitor.say("Hello.")
    visitor.wait_until_written()
    page.get_by_role("radio", name="Reply B: rank 1").check(force=True)
    page.get_by_role("radio", name="Reply D: rank 4").check(force=True)
    page.get_by_role("button", name="Clear", exact=True).first.click()
    page.get_by_role("textbox", name="Comment").fill("Better words.")
    expect(page.locator(".order")).to_have_text("B > D")
    page.get_by_role("button", name="Save ranking").click()
    expect(page.locator(".saved")).to_have_text("Saved")
    ranking = the_ranking(db, visitor)
    assert (ranking.reasons, ranking.comment) == (("clear",), "Better words.")
    assert [place.place for place in ranking.placements] == [1, 2]
    assert ranking.dwell_ms


def test_versions_are_hidden_until_the_vote_and_undo_hides_them_again(arrive: ARRIVAL, db: Database) -> None:
    visitor = arrive()
    page = visitor.page
    visitor.say("Hello.")
    visitor.wait_until_written()
    assert page.locator(".card .version").all_inner_texts() == [""] * 4
    page.keyboard.press("A")
    page.keyboard.press("Enter")
    save(page)
    expect(page.locator(".card .version").first).to_have_text("base")
    assert the_ranking(db, visitor).kind == "best"
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".card .version").first).to_have_text("")
    assert rankings.current(db, the_turn(db, visitor).id, visitor.person.id) is None


@pytest.mark.parametrize(("key", "kind"), [("x", "all_bad"), ("s", "skip")])
def test_all_bad_and_skip_by_key(arrive: ARRIVAL, db: Database, key: str, kind: str) -> None:
    visitor = arrive()
    visitor.say("Hello.")
    visitor.wait_until_written()
    visitor.page.keyboard.press(key)
    if kind == "all_bad":
        save(visitor.page)
    expect(visitor.page.locator(".saved")).to_have_text("Saved")
    assert the_ranking(db, visitor).kind == kind


def test_why_all_are_bad_is_asked_in_words_of_its_own(arrive: ARRIVAL, db: Database) -> None:
    visitor = arrive()
    page = visitor.page
    visitor.say("Hello.")
    visitor.wait_until_written()
    chips = page.locator(".reason:visible")
    page.keyboard.press("A")
    page.keyboard.press("Enter")
    expect(chips.first).to_have_text("Correct")
    chips.first.click()
    page.keyboard.press("x")
    expect(chips).to_have_text(["Wrong", "Unhelpful", "Unclear", "Too long", "Off topic", "Unsafe"])
    page.get_by_role("button", name="Unsafe").click()
    save(page)
    ranking = the_ranking(db, visitor)
    assert (ranking.kind, ranking.reasons) == ("all_bad", ("unsafe",))


@pytest.mark.parametrize("key", ["2", "Enter"])
def test_a_key_that_is_of_one_reply_asks_for_the_reply_first(arrive: ARRIVAL, key: str) -> None:
    visitor = arrive()
    page, hint = visitor.page, visitor.page.get_by_text("Choose a reply first: press its letter.")
    visitor.say("Hello.")
    visitor.wait_until_written()
    page.keyboard.press(key)
    expect(hint).to_be_visible()
    expect(page.locator(".order")).to_contain_text("Which do you like best?")
    page.keyboard.press("x")
    expect(hint).to_have_count(0)
    page.keyboard.press("x")
    page.locator(".settings summary").click()
    page.get_by_role("switch", name="Keyboard shortcuts").press(key)  # which is not of the board there
    expect(hint).to_have_count(0)
    page.keyboard.press("c")
    expect(hint).to_have_count(0)
    page.keyboard.press(key)
    expect(page.locator(".order")).to_contain_text("C first." if key == "2" else "C is best")


def test_keys_do_nothing_while_a_person_types(arrive: ARRIVAL) -> None:
    visitor = arrive()
    visitor.say("Hello.")
    visitor.wait_until_written()
    visitor.page.locator(".composer textarea").press_sequentially("a1b2 x s")
    assert visitor.page.locator(".card input:checked").count() == 0
    expect(visitor.page.locator(".composer textarea")).to_have_value("a1b2 x s")


def test_keys_of_one_character_can_be_turned_off_for_every_tab(arrive: ARRIVAL, db: Database) -> None:
    a_turn(db, somebody(db, "no keys"))
    visitor = arrive(name="no keys")
    page = visitor.page
    page.locator(".chat-title").click()
    page.locator(".card").first.wait_for()
    other = visitor.context.new_page()
    other.goto(page.url)
    other.locator(".settings summary").click()
    other.get_by_role("switch", name="Keyboard shortcuts").uncheck()
    for key in ["b", "1", "x", "s", "/", "Enter"]:
        page.keyboard.press(key)
    expect(page.locator(".order")).to_contain_text("Which do you like best?")
    expect(page.get_by_text("press its letter")).to_have_count(0)
    expect(page.locator(".saved")).to_be_empty()
    assert page.evaluate("document.activeElement.className") != "card is-selected"
    page.locator(".keys summary").click()
    expect(page.locator(".keys kbd")).to_have_text(["Enter", "Ctrl Enter", "Esc"])
    page.locator(".card").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator(".order")).to_have_text("B is best")
    save(page)
    assert the_ranking(db, visitor).kind == "best"
    page.locator(".settings summary").click()
    page.get_by_role("switch", name="Keyboard shortcuts").check()
    expect(other.get_by_role("switch", name="Keyboard shortcuts")).to_be_checked()
    page.locator(".card").first.focus()
    page.keyboard.press("x")
    expect(page.locator(".order")).to_have_text("None of them is good")


def test_a_rewording_a_comparison_and_a_regeneration(arrive: ARRIVAL, db: Database) -> None:
    visitor = arrive()
    page = visitor.page
    visitor.say("Hello.")
    visitor.wait_until_written()
    page.get_by_role("button", name="Edit reply A").click()
    page.get_by_role("textbox", name="Your version of reply A").fill("A **better** reply.")
    page.get_by_role("button", name="Save as demonstration").click()
    expect(page.locator(".edited strong")).to_have_text("better")
    page.get_by_role("button", name="Compare").click()
    page.locator(".difference :is(ins, del)").first.wait_for()
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".card")).to_have_count(8)
    visitor.wait_until_written()
    page.get_by_role("combobox", name="Rank of reply H").select_option("1")
    page.get_by_role("combobox", name="Rank of reply A").select_option("2")
    expect(page.locator(".order")).to_have_text("H > A")


def test_a_reply_chosen_by_hand_is_continued(arrive: ARRIVAL, db: Database) -> None:
    visitor = arrive()
    visitor.say("Hello.")
    visitor.wait_until_written()
    chosen = shown_replies(db, the_turn(db, visitor).id, visitor.person.id)[2].id
    visitor.page.get_by_role("button", name="Continue from reply C").click()
    visitor.say("Go on.")
    expect(visitor.page.locator(".answered")).to_have_count(1)
    visitor.wait_until_written()
    assert the_turn(db, visitor).parent_id == chosen


def test_writing_on_saves_the_ranking_and_continues_from_the_best(arrive: ARRIVAL, db: Database) -> None:
    visitor = arrive()
    visitor.say("Hello.")
    visitor.wait_until_written()
    first = the_turn(db, visitor)
    for key in "D1A2":
        visitor.page.keyboard.press(key)
    visitor.say("Go on.")
    expect(visitor.page.locator(".answered .tag")).to_have_text("D > A")
    ranking = rankings.current(db, first.id, visitor.person.id)
    assert ranking and rankings.order_text(ranking.placements) == "D > A"
    visitor.wait_until_written()
    assert the_turn(db, visitor).parent_id == shown_replies(db, first.id, visitor.person.id)[3].id


def test_one_reply_is_a_plain_chat(arrive: ARRIVAL) -> None:
    visitor = arrive()
    page = visitor.page
    page.locator(".settings summary").click()
    page.get_by_role("combobox", name="Replies per turn").select_option("1")
    visitor.say("Hello.")
    visitor.wait_until_written()
    expect(page.locator(".card")).to_have_count(1)
    expect(page.get_by_role("radio")).to_have_count(0)
    expect(page.get_by_role("button", name="Save ranking")).to_be_hidden()


@pytest.mark.parametrize("hand", ["mouse", "keyboard"])
def test_a_single_reply_can_be_called_bad_and_why(arrive: ARRIVAL, db: Database, hand: str) -> None:
    [reply] = a_turn(db, somebody(db, f"one {hand}"), ["one"])
    visitor = arrive(name=f"one {hand}")
    page = visitor.page
    page.locator(".chat-title").click()
    thumb = page.get_by_role("button", name="Bad reply")
    thumb.wait_for()
    expect(page.locator(".ranking")).to_be_hidden()

    def dislike() -> None:
        if hand == "mouse":
            thumb.click()
        else:
            page.locator(".card").focus()
            page.keyboard.press("x")

    if hand == "mouse":
        thumb.evaluate("button => { button.click(); button.click(); }")  # before it is saved
    else:
        dislike()
    expect(page.locator(".saved")).to_have_text("Saved")
    expect(thumb).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".order")).to_have_text("Not a good reply")
    page.get_by_role("button", name="Unsafe").click()
    page.get_by_role("button", name="Save changes").click()
    expect(page.locator(".saved")).to_have_text("Saved")
    assert the_ranking(db, visitor).reasons == ("unsafe",)
    page.reload()
    expect(thumb).to_have_attribute("aria-pressed", "true")
    dislike()
    expect(page.locator(".ranking")).to_be_hidden()
    expect(thumb).to_have_attribute("aria-pressed", "false")
    assert rankings.current(db, str(reply.parent_id), visitor.person.id) is None


def test_an_edited_message_branches_and_an_earlier_turn_can_be_seen_again(
    arrive: ARRIVAL, db: Database
) -> None:
    visitor = arrive()
    page = visitor.page
    visitor.say("First words.")
    visitor.wait_until_written()
    visitor.say("Second words.")
    expect(page.locator(".said")).to_have_count(2)
    visitor.wait_until_written()
    page.get_by_role("button", name="See the replies").click()
    expect(page.locator(".said")).to_have_count(1)
    page.get_by_role("button", name="Back to the latest turn").click()
    expect(page.locator(".said")).to_have_count(2)
    page.locator(".said").first.hover()
    page.get_by_role("button", name="Edit your message").first.click()
    page.get_by_role("textbox", name="Edit your message").fill("Other words.")
    page.get_by_role("button", name="Send as a new branch").click()
    expect(page.locator(".said .bubble")).to_have_text(["Other words."])
    visitor.wait_until_written()
    assert the_turn(db, visitor).parent_id is None
    fork = page.get_by_role("group", name="Branch 2 of 2")
    fork.get_by_role("button", name="Previous branch").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".said .bubble")).to_have_text(["First words.", "Second words."])
    expect(page.get_by_role("group", name="Branch 1 of 2")).to_have_text("1/2")
    expect(page.get_by_role("button", name="Next branch")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".said .bubble")).to_have_text(["Other words."])


ENTERED = """() => {
  window.entered = [];
  new MutationObserver((changes) => changes.forEach(
    (change) => change.addedNodes.forEach((node) => window.entered.push(node.className))
  )).observe(document.querySelector('.log'), { childList: true });
}"""


def test_only_what_is_new_enters_the_log_that_screen_readers_read_out(arrive: ARRIVAL, db: Database) -> None:
    a_turn(db, somebody(db, "listener"), ["one", "two"])
    visitor = arrive(name="listener")
    page = visitor.page
    page.locator(".chat-title").click()
    page.locator(".card").first.wait_for()
    page.evaluate(ENTERED)
    for number, text in enumerate(["First words.", "Second words."], start=1):
        visitor.say(text)
        expect(page.locator(".said")).to_have_count(number + 1)
        visitor.wait_until_written()
    page.get_by_role("button", name="See the replies").last.click()
    expect(page.locator(".said")).to_have_count(2)
    expect(page.locator(".answered")).to_have_count(1)
    assert page.evaluate("window.entered") == ["answered", "said"] * 2


def test_what_is_done_at_an_earlier_turn_hides_none_of_the_later(arrive: ARRIVAL) -> None:
    visitor = arrive()
    page = visitor.page
    for text in ("First words.", "Second words."):
        visitor.say(text)
        expect(page.locator(".said .bubble").last).to_have_text(text)
        visitor.wait_until_written()
    page.get_by_role("button", name="See the replies").click()
    expect(page.locator(".said")).to_have_count(1)
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".card")).to_have_count(8)
    visitor.wait_until_written()
    page.get_by_role("button", name="Back to the latest turn").click()
    expect(page.locator(".said .bubble")).to_have_text(["First words.", "Second words."])
    page.reload()
    expect(page.locator(".said .bubble")).to_have_text(["First words.", "Second words."])


@pytest.mark.parametrize("is_saved", [True, False])
def test_all_bad_is_said_only_of_the_replies_that_were_there(
    arrive: ARRIVAL, db: Database, is_saved: bool
) -> None:
    visitor = arrive()
    page = visitor.page
    visitor.say("Hello.")
    visitor.wait_until_written()
    first = the_turn(db, visitor)
    page.keyboard.press("x")
    if is_saved:
        save(page)
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".card")).to_have_count(8)
    visitor.wait_until_written()
    expect(page.get_by_role("button", name="All bad")).to_have_attribute("aria-pressed", "false")
    visitor.say("Go on.")
    expect(page.locator(".answered .tag")).to_have_text("None of them is good")
    visitor.wait_until_written()
    ranking = rankings.current(db, first.id, visitor.person.id)
    assert ranking and ranking.kind == "all_bad" and len(ranking.placements) == 4
    assert the_turn(db, visitor).parent_id not in {entry.message_id for entry in ranking.placements}


def test_the_best_of_the_first_replies_beats_none_that_came_later(arrive: ARRIVAL, db: Database) -> None:
    visitor = arrive()
    page = visitor.page
    visitor.say("Hello.")
    visitor.wait_until_written()
    first = the_turn(db, visitor)
    page.get_by_role("button", name="Reply B is best").click()
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".card")).to_have_count(8)
    visitor.wait_until_written()
    expect(page.locator(".saved")).to_have_text("Saved")
    visitor.say("Go on.")
    expect(page.locator(".answered .tag")).to_have_text(re.compile("^[A-H] is best$"))
    [ranking] = rankings.revisions(db, first.id, visitor.person.id)
    assert ranking.kind == "best" and len(ranking.placements) == 4


def test_a_vote_of_some_replies_is_not_widened_by_writing_on(arrive: ARRIVAL, db: Database) -> None:
    """As where the best was saved while the others were still being written."""
    replies = a_turn(db, somebody(db, "early"), ["one", "two", "three", "four"])
    rank(db, somebody(db, "early"), replies[:2], [1, 2], kind="best")
    visitor = arrive(name="early")
    visitor.page.locator(".chat-title").click()
    expect(visitor.page.locator(".saved")).to_have_text("Saved")
    visitor.say("Go on.")
    expect(visitor.page.locator(".answered")).to_have_count(1)
    [ranking] = rankings.revisions(db, str(replies[0].parent_id), visitor.person.id)
    assert len(ranking.placements) == 2


def test_a_vote_outlasts_the_replies_that_another_tab_asked_for(arrive: ARRIVAL, db: Database) -> None:
    turn_id = str(a_turn(db, somebody(db, "double"))[0].parent_id)
    visitor = arrive(name="double")
    page = visitor.page
    page.locator(".chat-title").click()
    page.locator(".card").first.focus()
    page.keyboard.press("x")
    [late] = conversations.start_replies(db, turn_id, "base", Sampling(), [1])
    conversations.finish_reply(db, late.id, "late", 1, "stop")
    visitor.say("Go on.")
    expect(page.locator(".unsent")).to_contain_text("Replies were added in another tab")
    expect(page.locator(".card")).to_have_count(4)
    page.locator(".composer textarea").press("Enter")
    expect(page.locator(".answered .tag")).to_have_text("None of them is good")
    [ranking] = rankings.revisions(db, turn_id, visitor.person.id)
    assert late.id not in {entry.message_id for entry in ranking.placements}
    visitor.wait_until_written()
    assert the_turn(db, visitor).parent_id == late.id


def test_a_rank_too_few_to_save_outlasts_a_regeneration(arrive: ARRIVAL) -> None:
    visitor = arrive()
    page = visitor.page
    visitor.say("Hello.")
    visitor.wait_until_written()
    for key in "B1":
        page.keyboard.press(key)
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".card")).to_have_count(8)
    visitor.wait_until_written()
    expect(page.locator(".order")).to_have_text(re.compile("^[A-H] first. Rank one more"))


def test_conversations_are_found_renamed_exported_and_deleted(arrive: ARRIVAL, db: Database) -> None:
    somebody(db, "keeper")
    for question in ("About apples", "About pears"):
        a_turn(db, somebody(db, "keeper"), question=question)
    page = arrive(name="keeper").page
    expect(page.locator(".chat-title")).to_have_text(["About pears", "About apples"])
    page.get_by_role("searchbox", name="Search chats").fill("apples")
    expect(page.locator(".chat-title")).to_have_text(["About apples"])
    page.locator(".chats li").hover()
    page.locator(".menu summary").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    assert "About apples" in Path(download.value.path()).read_text()
    page.locator(".menu summary").click()
    page.get_by_role("button", name="Rename").click()
    page.get_by_role("textbox", name="Rename").fill("Fruit apples")
    page.keyboard.press("Enter")
    expect(page.locator(".chat-title")).to_have_text(["Fruit apples"])
    expect(page.locator(".menu summary")).to_be_focused()
    page.locator(".menu summary").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Really delete?").click()
    expect(page.locator(".chat-title")).to_have_count(0)
    assert [chat.title for chat in conversations.list_for(db, somebody(db, "keeper").id)] == ["About pears"]


def test_a_chat_that_is_not_deleted_after_all_leaves_the_board_as_it_was(
    arrive: ARRIVAL, db: Database
) -> None:
    a_turn(db, somebody(db, "waverer"))
    page = arrive(name="waverer").page
    page.locator(".chat-title").click()
    page.locator(".card").first.wait_for()
    page.locator(".chats li").hover()
    page.locator(".menu summary").click()
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="Really delete?")).to_be_visible()
    page.locator(".card").first.focus()
    page.keyboard.press("x")
    save(page)  # nothing was asked of the server: no answer is awaited, and none is ignored


def test_of_very_many_chats_the_list_says_how_the_older_are_found(arrive: ARRIVAL, db: Database) -> None:
    ada = somebody(db, "ada of 201 chats")
    for number in range(201):
        conversations.create(db, ada.id, f"Chat {number}")
    visitor = arrive(name=ada.name)
    page, note = visitor.page, "Older chats are found by searching."
    expect(page.locator(".chat-title")).to_have_count(200)
    expect(page.locator(".chats li").last).to_have_text(note)
    search = page.get_by_role("searchbox", name="Search chats")
    search.fill("chat")
    expect(page.locator(".chats li").last).to_have_text("More chats match. Type more to find them.")
    search.fill('"Chat 0"')
    expect(page.locator(".chat-title")).to_have_text(["Chat 0"])
    expect(page.get_by_text(note)).to_have_count(0)
    conversations.delete(db, conversations.list_for(db, ada.id, '"Chat 0"')[0].id)
    search.fill("")
    expect(page.locator(".chat-title")).to_have_count(200)
    expect(page.get_by_text(note)).to_have_count(0)


ARABIC = "مرحبا بالعالم"


def test_words_that_are_written_from_right_to_left_are_shown_so(arrive: ARRIVAL, db: Database) -> None:
    ada = somebody(db, "ada who writes Arabic")
    mixed = f"{ARABIC}\n\nPlain English.\n\n- {ARABIC}\n\n`sum` {ARABIC}\n\n```python\n# {ARABIC}\n```"
    [reply, _] = a_turn(db, ada, [mixed, f"# {ARABIC}"], question=ARABIC)
    visitor = arrive(name=ada.name, path=f"/?c={reply.conversation_id}")
    page = visitor.page

    def direction(selector: str) -> list[str]:
        page.locator(selector).first.wait_for()
        return page.locator(selector).evaluate_all(
            "nodes => nodes.map((node) => getComputedStyle(node).direction)"
        )

    card = page.locator(".card", has_text="Plain English.").get_attribute("aria-label")
    written = f".card[aria-label='{card}'] .written"
    assert direction(".bubble") == ["rtl"]
    assert direction(f"{written} .piece > :is(p, ul)") == ["rtl", "ltr", "rtl", "rtl"]
    assert direction(f"{written} :is(code, .code, pre)") == ["ltr"] * 4
    page.get_by_role("button", name="Edit reply A").click()
    page.get_by_role("button", name="Reply A is best").click()
    for box in page.locator("textarea").all():
        box.fill(ARABIC)
    assert direction("textarea:visible") == ["rtl"] * 3  # a rewording, a comment, a message
    page.get_by_role("button", name="Continue from reply A").click()
    visitor.say(ARABIC)
    page.locator(".answered").wait_for()
    assert direction(".answered .piece")[0] == "rtl"
    visitor.wait_until_written()


def test_back_leads_past_a_chat_that_was_deleted(arrive: ARRIVAL, db: Database) -> None:
    person = somebody(db, "walker")
    chats = {name: a_turn(db, person, question=name)[0].conversation_id for name in ("One", "Two", "Three")}
    page = arrive(name="walker", path=f"/?c={chats['One']}").page
    said = page.locator(".said .bubble")
    for name in ("Two", "Three"):
        page.locator(".chat-title", has_text=name).click()
        expect(said).to_have_text([name])
    conversations.delete(db, chats["Two"])
    page.go_back()
    expect(said).to_have_count(0)
    expect(page).to_have_url(re.compile("/$"))
    page.go_back()
    expect(said).to_have_text(["One"])
    page.go_forward()
    expect(said).to_have_count(0)
    page.go_forward()
    expect(said).to_have_text(["Three"])


def test_escape_closes_the_menu_of_a_chat_and_does_nothing_else(arrive: ARRIVAL, db: Database) -> None:
    a_turn(db, somebody(db, "esc"), question="About apples")
    page = arrive(name="esc").page
    page.locator(".chats li").hover()
    page.locator(".menu summary").click()
    page.get_by_role("button", name="Rename").focus()
    page.evaluate("document.addEventListener('keydown', (event) => { window.lastKey = event.key; })")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Rename")).to_be_hidden()
    expect(page.locator(".menu summary")).to_be_focused()
    assert page.evaluate("window.lastKey") is None, "elsewhere on the page Escape stops the replies"


def test_a_chat_can_be_kept_from_training(arrive: ARRIVAL, db: Database) -> None:
    visitor = arrive()
    visitor.page.get_by_role("switch", name="Don't train on this chat").check()
    visitor.say("Between us.")
    visitor.wait_until_written()
    assert not conversations.list_for(db, visitor.person.id)[0].may_train
    visitor.page.get_by_role("switch", name="Don't train on this chat").uncheck()
    wait_for(visitor.page, lambda: conversations.list_for(db, visitor.person.id)[0].may_train)


def test_a_phone_shows_one_column_and_a_closed_sidebar(arrive: ARRIVAL) -> None:
    visitor = arrive(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page = visitor.page
    expect(page.locator(".sidebar")).not_to_be_visible()
    visitor.say("Hello.")
    visitor.wait_until_written()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator(".ranks .chip").first.tap()
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    foot, composer = page.locator(".board-foot").bounding_box(), page.locator("#composer").bounding_box()
    assert foot and composer and foot["y"] + foot["height"] <= composer["y"] + 12
    page.get_by_role("button", name="Menu").click()
    expect(page.locator(".sidebar")).to_be_visible()


def test_the_way_between_branches_is_wide_enough_for_a_thumb(arrive: ARRIVAL, db: Database) -> None:
    ada = somebody(db, "thumb")
    reply = a_turn(db, ada, ["one"])[0]
    conversations.add_user_message(db, reply.conversation_id, None, "Other words.", ada.id)
    page = arrive(name="thumb", viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True).page
    page.goto(f"{page.url}?c={reply.conversation_id}")
    way = page.get_by_role("button", name="Previous branch")
    box = way.bounding_box()
    assert box and min(box["width"], box["height"]) >= 44
    way.tap()
    expect(page.locator(".said .bubble")).to_have_text(["Count for me."])


def test_the_page_follows_the_system_into_the_dark(arrive: ARRIVAL) -> None:
    page = arrive(color_scheme="dark").page
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 17, 27)"
    page.locator(".settings summary").click()
    page.get_by_role("combobox", name="Theme").select_option("light")
    page.reload()
    page.locator(".composer").wait_for()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 246, 251)"


def test_the_page_speaks_chinese(arrive: ARRIVAL) -> None:
    visitor = arrive(locale="zh-CN")
    page = visitor.page
    visitor.say("你好！")
    visitor.wait_until_written()
    expect(page.get_by_role("radio", name="回复 B：第 1 名")).to_be_attached()
    expect(page.get_by_role("button", name="保存排序")).to_be_visible()
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.locator(".settings summary").click()
    page.get_by_role("combobox", name="语言").select_option("en")
    expect(page.get_by_role("button", name="Save ranking")).to_be_visible()
