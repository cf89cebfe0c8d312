"""The chat page: the components, and which event of theirs calls which action. The page only follows.

A turn lives in the database and in `Turns`; a browser that goes away loses nothing, and one that comes back
(`load`) follows again where it was. Following costs no thread while nothing happens. Left out on purpose:
gr.State, which would keep one connection per tab open; where a person is stands in the address (`?c=`).
"""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html import escape
from typing import Any, TypeVar

import gradio as gr

from chatbot.config import ServeConfig
from chatbot.pages import words
from chatbot.pages.actions import Actions, Page
from chatbot.pages.board import Board, View, empty_board
from chatbot.pages.composer import Composer
from chatbot.pages.fair import Fair
from chatbot.pages.history import History
from chatbot.pages.payload import Payload
from chatbot.pages.sidebar import Sidebar
from chatbot.turns import Turns
from data.database import Database
from data.errors import NotFound, Problem
from data.records import Person

FOLLOW_SECONDS = 0.25
"""Between two looks at a turn that is being written."""
MOST_EVENTS = 400
"""Events at a time, of which Gradio has 40 by itself: each turn under way holds one for every page on it."""

Result = TypeVar("Result")

_THREADS = ThreadPoolExecutor(6, "pages")
"""Of the pages alone: what takes long here holds up no program at /v1. Nor the server's end, which does not
wait for threads (os._exit in __main__.py)."""

QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "trigger_mode": "multiple",
    "api_visibility": "private",
    "concurrency_limit": None,
}
"""Every event: no spinner, none swallowed while an earlier one still streams, none described as an API."""


def build_chat(db: Database, turns: Turns, config: ServeConfig) -> gr.Blocks:
    """The page at `/`, ready to be mounted with an `auth_dependency` that gives the person's id."""
    actions = Actions(db, turns, config)
    page = gr.Blocks(title="Night School", fill_width=True, analytics_enabled=False)
    with page:
        sidebar = Sidebar()
        with gr.Column(elem_id="room"):
            history = History()
            board = Board(empty_board())
            composer = Composer()
        all_of_it = [history, board, composer, sidebar]
        page.load(_loading(actions), None, all_of_it, **QUIET)
        for component, name in (
            (history, "open_chat"),
            (history, "revisit"),
            (history, "switch_branch"),
            (history, "branch"),
            (composer, "send"),
            (board, "regenerate"),
            (sidebar, "delete_chat"),
        ):
            on = getattr(component, name)
            on(_following(actions, getattr(actions, name)), None, all_of_it, **QUIET)
        for name in ("save_ranking", "withdraw", "demonstrate", "stop_reply", "stop_turn"):
            getattr(board, name)(_answering(actions, getattr(actions, name)), None, board, **QUIET)
        for name in ("search_chats", "rename_chat", "export_chat", "set_training"):
            getattr(sidebar, name)(_answering(actions, getattr(actions, name)), None, sidebar, **QUIET)
        history.nudge(_nothing, None, None, **QUIET)
    page.max_threads = MOST_EVENTS  # before `queue`, which reads it
    page.queue(default_concurrency_limit=8, max_size=256, api_open=False)
    Fair(page)
    return page


def _nothing() -> None:
    """Opens the stream anew where Gradio closed it over an answer; see `patient` in page.js."""


def _loading(actions: Actions) -> Callable[[gr.Request], AsyncIterator[Any]]:
    """The page as its address says; a turn that is being written is followed again."""

    async def load(request: gr.Request) -> AsyncIterator[Any]:
        sent = Payload({"conversation_id": str(request.query_params.get("c", ""))[:64], "look": 0})
        async for seen in follow(actions, actions.open_chat, request, sent):
            yield seen

    return load


def _following(
    actions: Actions, action: Callable[[Person, Payload], tuple[Page, str]]
) -> Callable[[gr.EventData, gr.Request], AsyncIterator[Any]]:
    """An event that moves the page to a turn and then follows it."""

    async def event(evt: gr.EventData, request: gr.Request) -> AsyncIterator[Any]:
        try:
            sent = Payload.of(evt)
        except Problem as problem:
            gr.Warning(escape(str(problem)))
            return
        async for seen in follow(actions, action, request, sent):
            yield seen

    return event


def _answering(
    actions: Actions, action: Callable[[Person, Payload], View]
) -> Callable[[gr.EventData, gr.Request], Any]:
    """An event that changes one component and is done. A problem is said and changes nothing."""

    def event(evt: gr.EventData, request: gr.Request) -> Any:
        try:
            return action(actions.person(request), Payload.of(evt))
        except Problem as problem:
            gr.Warning(escape(str(problem)))
            return gr.skip()

    return event


def _done(
    actions: Actions, action: Callable[[Person, Payload], tuple[Page, str]], person: Person, sent: Payload
) -> tuple[Page, str]:
    """The page after the action; where that is refused, the page as it was."""
    try:
        return action(person, sent)
    except Problem as problem:
        gr.Warning(escape(str(problem)))
        return actions.stay(person, sent, str(problem))


async def follow(
    actions: Actions,
    action: Callable[[Person, Payload], tuple[Page, str]],
    request: gr.Request,
    sent: Payload,
) -> AsyncIterator[Any]:
    """Do the action, show the page, then the board again and again until the turn has ended and is stored, or
    this person follows too many."""
    try:
        person = await _aside(actions.person, request)
        page, turn_id = await _aside(_done, actions, action, person, sent)
    except Problem as problem:
        gr.Warning(escape(str(problem)))
        yield gr.skip(), gr.skip(), actions.unsent(sent, str(problem)), gr.skip()
        return
    yield page
    is_done = not turn_id
    with actions.followers.one_more(person.id, request.session_hash or "") as goes_on:
        while goes_on() and not is_done:
            live = actions.turns.live(turn_id)
            is_done = live is None or live.is_done
            try:
                board = await _aside(actions.board, person, turn_id, sent.look)
            except NotFound:  # the conversation was deleted meanwhile
                return
            except Problem:  # the database is busy: look again
                is_done, board = False, gr.skip()
            yield gr.skip(), board, gr.skip(), gr.skip()
            if not is_done:
                await asyncio.sleep(FOLLOW_SECONDS)
        if not is_done:
            gr.Warning(words.word("not_followed", words.language_of(request.cookies, request.headers)))


async def _aside(function: Callable[..., Result], *arguments: Any) -> Result:
    """`asyncio.to_thread`, in the pages' own threads."""
    run = partial(contextvars.copy_context().run, function, *arguments)
    return await asyncio.get_running_loop().run_in_executor(_THREADS, run)
