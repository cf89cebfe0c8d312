"""What one person may ask of a page at once; Gradio's own queue, which nothing works off."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from fastapi import HTTPException
from gradio.data_classes import PredictBodyInternal

from chatbot.pages import fair
from chatbot.pages.fair import Fair, Followers

REQUEST: Any = SimpleNamespace(cookies={}, headers={})


class Waiting:
    """A page whose events all wait."""

    def __init__(self) -> None:
        with gr.Blocks() as page:
            page.load(lambda: None)
        page.queue()
        self.fair = Fair(page)
        self.queue = page._queue

    async def join(self, person: str, session: str) -> Any:
        """The event."""
        body = PredictBodyInternal(session_hash=session, fn_index=0, data=[])
        _, event_id, _ = await self.queue.push(body, REQUEST, person)
        return self.queue.event_ids_to_events[str(event_id)]

    def end(self, event: Any) -> None:
        """As Gradio does when an event is over; its page session has its messages, or not yet. One that is
        cancelled meanwhile may stay in `event_ids_to_events` for ever."""
        self.queue.event_queue_per_concurrency_id[event.concurrency_id].queue.remove(event)

    def read(self, event: Any) -> None:
        """As a stream does that hands on all messages, the last one included."""
        messages = self.queue.pending_messages_per_session[event.session_hash]
        while not messages.empty():
            messages.get_nowait()
        self.queue.pending_event_ids_session[event.session_hash].remove(event._id)

    def kept(self) -> set[str]:
        """Whose messages are kept."""
        return set(self.queue.pending_messages_per_session)


def waiting(story: Callable[[Waiting], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test inside a running loop, as outside of one Gradio opens one of its own and never closes it."""

    async def tell() -> None:
        await story(Waiting())

    def test() -> None:
        asyncio.run(tell())

    return test


@waiting
async def test_nobody_has_more_events_at_once_than_their_share(page: Waiting) -> None:
    events = [await page.join("ada", f"tab {n}") for n in range(fair.MOST_OF_ONE)]
    with pytest.raises(HTTPException, match="too much at once - wait") as refused:
        await page.join("ada", "one more")
    assert refused.value.status_code == 429 and "one more" not in page.kept()
    await page.join("eve", "tab of eve")
    page.end(events[0])
    await page.join("ada", "one more")


@waiting
async def test_nobody_asks_in_a_page_session_of_somebody_else(page: Waiting) -> None:
    await page.join("ada", "tab")
    with pytest.raises(HTTPException, match="belongs to somebody else - reload") as refused:
        await page.join("eve", "tab")
    assert refused.value.status_code == 403
    await page.join("ada", "tab")


@waiting
async def test_what_was_read_is_forgotten_and_no_sooner(page: Waiting) -> None:
    event = await page.join("ada", "tab")
    await page.join("eve", "tab of eve")
    assert "tab" in page.kept()
    page.end(event)
    await page.join("eve", "tab of eve")
    assert "tab" in page.kept()
    page.read(event)
    await page.join("eve", "tab of eve")
    assert page.kept() == {"tab of eve"}


@waiting
async def test_nothing_is_left_of_a_page_that_was_closed_in_the_middle_of_a_stream(page: Waiting) -> None:
    event = await page.join("ada", "closed tab")
    del page.queue.pending_messages_per_session["closed tab"]  # as Gradio does, which knows who went
    page.end(event)
    await page.join("eve", "tab of eve")
    assert set(page.fair._sessions) == set(page.queue.pending_event_ids_session) == {"tab of eve"}


@waiting
async def test_what_nobody_reads_is_forgotten_where_it_is_too_much(page: Waiting) -> None:
    unread = await page.join("ada", "unread")
    others = [await page.join("ada", "tab"), await page.join("eve", "tab of eve")]
    for event in (unread, others[1]):
        messages = page.queue.pending_messages_per_session[event.session_hash]
        for _ in range(fair.MOST_UNREAD):
            messages.put_nowait(SimpleNamespace())
    others.append(await page.join("ada", "another tab"))
    assert page.kept() == {"tab", "tab of eve", "another tab"}
    assert not unread.alive and all(event.alive for event in others)
    page.queue.broadcast_estimations(unread.concurrency_id)  # to all who wait: it must not miss the messages


@waiting
async def test_what_nobody_read_for_long_is_forgotten(page: Waiting) -> None:
    event = await page.join("ada", "closed tab")
    page.end(event)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fair, "UNREAD_SECONDS", 0.0)
        await page.join("eve", "tab of eve")
    assert page.kept() == {"tab of eve"}


def test_of_the_page_that_follows_most_the_oldest_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair, "MOST_FOLLOWED", 3)
    followers = Followers()
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(followers.one_more("ada", page)) for page in "aba")
        other = stack.enter_context(followers.one_more("eve", "e"))
        assert first() and second() and third() and other()
        fourth = stack.enter_context(followers.one_more("ada", "c"))
        assert [goes_on() for goes_on in (first, second, third, fourth, other)] == [
            False,
            True,
            True,
            True,
            True,
        ]
        stack.enter_context(followers.one_more("ada", "d"))
        assert not second() and third()
    assert not followers._of
