"""Many pages at once on a real server: whoever waits for replies keeps nobody else from being answered."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import uvicorn

from chatbot import accounts
from chatbot.basemodel import Base
from chatbot.config import ServeConfig
from chatbot.engine import Engine
from chatbot.pages import fair
from chatbot.pages.board import shown_replies
from chatbot.runner import LlamaRunner
from chatbot.turns import Turns
from data import conversations, messages, rankings
from data.database import Database
from data.home import Home
from data.records import Message, Person
from tests.site import built_app
from tests.stories import a_turn, somebody
from tests.waiting import until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pandas, called by Gradio
NAMES = [f"person {n}" for n in range(45)]
PATIENCE = 240.0
"""Seconds in which an event must be answered, however busy the machine."""


@pytest.fixture
def may_write(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until it is set no engine writes a token, and every turn is under way."""
    gate, step = threading.Event(), LlamaRunner.step

    def held(self: LlamaRunner, beside: int) -> None:
        gate.wait()
        step(self, beside)

    monkeypatch.setattr(LlamaRunner, "step", held)
    yield gate
    gate.set()


@pytest.fixture
def url(db: Database, tiny_base: Base, home: Home, may_write: threading.Event) -> Iterator[str]:
    """The whole application on a real port, with room for the crowd."""
    engine = Engine(tiny_base, precision="float32", max_waiting=len(NAMES))
    engine.start()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = ServeConfig(port=listening.getsockname()[1], compare_share=0)
        app = built_app(db, Turns(db, engine, max_new_tokens=4), home, config)
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        yield config.url
        server.should_exit = True
        thread.join(10)
    may_write.set()
    engine.close()


class Tab:
    """One person's page, as far as it is HTTP."""

    def __init__(self, url: str, db: Database, person: Person) -> None:
        cookies = {accounts.COOKIE: accounts.open_session(db, person)}
        self._client = httpx2.AsyncClient(
            base_url=url, cookies=cookies, headers={"origin": url}, timeout=PATIENCE
        )
        self._session = f"tab-of-{person.name}"

    async def join(self, event: str, sent: dict[str, Any] | None = None) -> httpx2.Response:
        """An event's place in the queue, or why it has none."""
        config = (await self._client.get("/config")).json()
        numbers = {target[1]: fn["id"] for fn in config["dependencies"] for target in fn["targets"]}
        body = {"data": [], "event_data": sent, "fn_index": numbers[event], "session_hash": self._session}
        return await self._client.post("/gradio_api/queue/join", json=body)

    async def fire(self, event: str, sent: dict[str, Any] | None = None) -> AsyncIterator[dict[str, Any]]:
        """What the server says of an event, until it is done."""
        joined = await self.join(event, sent)
        assert joined.status_code == 200, joined.text
        stream = self._client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self._session})
        async with stream as answer:
            async for line in answer.aiter_lines():
                said = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                yield said
                if said.get("msg") == "process_completed":
                    return

    async def answer(self, event: str, sent: dict[str, Any] | None = None) -> dict[str, Any]:
        """The last that the server says of an event."""
        return [said async for said in self.fire(event, sent)][-1]

    async def close(self) -> None:
        await self._client.aclose()


@asynccontextmanager
async def tabs(url: str, db: Database, names: list[str]) -> AsyncIterator[list[Tab]]:
    opened = [Tab(url, db, somebody(db, name)) for name in names]
    yield opened
    for tab in opened:
        await tab.close()


def best_of(db: Database, person: Person, replies: list[Message]) -> dict[str, Any]:
    """What the board sends where the first card is best."""
    turn_id = str(replies[0].parent_id)
    shown = [reply.id for reply in shown_replies(db, turn_id, person.id)]
    places = {id: 1 if id == shown[0] else 2 for id in shown}
    return {"turn_id": turn_id, "kind": "best", "places": places, "shown": shown}


async def meet(url: str, db: Database, may_write: threading.Event, vote: dict[str, Any]) -> None:
    """Everybody of the crowd sends a message and waits; then ada votes and opens the page."""
    waiting = 0

    async def wait_for_replies(tab: Tab) -> dict[str, Any]:
        nonlocal waiting
        last: dict[str, Any] = {}
        async for last in tab.fire("send", {"text": "Hello.", "replies": 1}):
            waiting += last.get("msg") == "process_starts"
        return last

    async with tabs(url, db, ["ada", *NAMES]) as (mine, *others):
        crowd = [asyncio.create_task(wait_for_replies(tab)) for tab in others]
        async with asyncio.timeout(PATIENCE):
            while waiting < len(crowd):
                await asyncio.sleep(0.05)
            saved = await mine.answer("save_ranking", vote)
            loaded = await mine.answer("load")
        assert saved["success"] and loaded["success"]
        assert not any(task.done() for task in crowd)
        may_write.set()
        answers = await asyncio.gather(*crowd)
    assert all(answer["success"] for answer in answers)


def test_a_vote_and_a_page_are_answered_while_a_crowd_waits(
    url: str, db: Database, may_write: threading.Event
) -> None:
    ada = somebody(db)
    vote = best_of(db, ada, a_turn(db, ada))
    asyncio.run(meet(url, db, may_write, vote))
    ranking = rankings.current(db, vote["turn_id"], ada.id)
    assert ranking is not None and ranking.kind == "best"
    for name in NAMES:
        [chat] = conversations.list_for(db, somebody(db, name).id)
        [_, reply] = messages.list_for(db, chat.id)
        assert reply.is_finished


async def take_it_all(url: str, db: Database, may_write: threading.Event) -> list[httpx2.Response]:
    """Mallory looks at a turn under way again and again and reads none of it; then ada opens the page. What
    mallory was told each time."""
    async with tabs(url, db, ["ada", "mallory"]) as (mine, theirs):
        turn = asyncio.create_task(theirs.answer("send", {"text": "Hello.", "replies": 1}))
        async with asyncio.timeout(PATIENCE):
            while not (chats := conversations.list_for(db, somebody(db, "mallory").id)):
                await asyncio.sleep(0.05)
            unread = Tab(url, db, somebody(db, "mallory"))
            unread._session = "unread"
            looks = [unread.join("open_chat", {"conversation_id": chats[0].id, "look": 0}) for _ in range(60)]
            answers = await asyncio.gather(*looks)
            assert (await mine.answer("load"))["success"]
        may_write.set()
        assert (await turn)["success"]
        await unread.close()
    return answers


def test_who_asks_for_too_much_at_once_is_told_so_and_keeps_nobody_out(
    url: str, db: Database, may_write: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fair, "MOST_OF_ONE", 4)  # fewer than end by themselves meanwhile on a slow machine
    answers = asyncio.run(take_it_all(url, db, may_write))
    refused = [answer.json()["detail"] for answer in answers if answer.status_code == 429]
    assert 60 > len(refused) > 0 and "wait a moment" in refused[0]
