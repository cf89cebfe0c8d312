"""/v1: what programs that speak to OpenAI can ask of this server instead.

    client = OpenAI(base_url="http://127.0.0.1:7860/v1", api_key="ns-...")
    client.chat.completions.create(model="night-school", messages=[{"role": "user", "content": "Hello"}])

`model` is an alias, answered by whatever serves, or an exact version; the answer names the exact one. A
prompt that does not fit is refused, where the chat page would leave the oldest messages out: a program must
know what was read. Who names no `max_tokens` gets what there is room for, up to 1,024. Nothing of a request
or an answer is stored, and nothing of it teaches. A client that hangs up ends its replies. What cannot be
asked for stands in openai_request.py.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from chatbot import accounts
from chatbot.basemodel import Base
from chatbot.bell import Bell
from chatbot.chatformat import FittedPrompt
from chatbot.generation import API_DEADLINE, Asked, Generation
from chatbot.interface import AnyEngine
from chatbot.openai_errors import Invalid, error_answer, error_object, problem_answer
from chatbot.openai_reply import FINISHED, Completion, ReplyReader
from chatbot.openai_request import ChatRequest, read_request
from chatbot.turns import Turns
from data import api_keys, versions
from data.api_keys import ApiKey
from data.database import Database
from data.errors import Busy, NotFound, Problem
from data.records import Sampling

if TYPE_CHECKING:
    from chatbot.web import Site

ALIASES = ("night-school", "current")
"""Both are the version that serves."""
THREADS = 2
"""Requests that are read, or answers put together, at a time: more would only keep the loop waiting."""
SILENCE_SECONDS = 15.0
"""After so long without news a stream sends a comment, lest a proxy takes it for dead."""
NOTHING_ELSE = error_answer(
    404, "There is no such endpoint - POST to /v1/chat/completions or GET /v1/models."
)
"""The application for all other paths below /v1, whatever the method: a key must reach nothing behind it."""


def openai_routes(site: "Site", turns: Turns) -> APIRouter:
    """The routes below /v1; the guard lets only those through who show an API key."""
    router = APIRouter(prefix="/v1")
    door = _Door(turns.engine)

    @router.get("/models")
    def list_models() -> Response:
        return JSONResponse({"object": "list", "data": list(models_of(site, turns).values())})

    @router.get("/models/{name:path}")
    def show_model(name: str) -> Response:
        models = models_of(site, turns)
        if name not in models:
            raise _no_model(name)
        return JSONResponse(models[name])

    @router.post("/chat/completions")
    async def complete_chat(request: Request) -> Response:
        body = await request.body()
        try:
            async with door.passed():
                # Reading and tokenising take their time, and others wait for this loop.
                wanted, generation = await asyncio.to_thread(_begin, site, turns, request, body)
        except Problem as problem:
            return problem_answer(problem)
        completion = Completion(generation, build_of(turns))
        decode = turns.engine.base.format.decode
        readers = [ReplyReader(reply, wanted.stop, decode) for reply in generation.replies]
        if wanted.streams:
            frames = _events(wanted, generation, readers, completion, turns.engine.bell)
            return EventStream(frames, generation)
        async with _while_listened_to(request.receive, generation):
            await turns.engine.bell.until(lambda: generation.is_done)
        if failed := failure(generation):
            return error_answer(*failed)
        async with door.threads:  # decoding nine long replies token by token takes a third of a second
            return await asyncio.to_thread(_whole_answer, completion, readers, wanted)

    return router


def _whole_answer(completion: Completion, readers: Sequence[ReplyReader], wanted: ChatRequest) -> Response:
    """Every reply at once. Runs in a thread."""
    return JSONResponse(completion.whole(readers, has_logprobs=wanted.has_logprobs))


def models_of(site: "Site", turns: Turns) -> dict[str, dict[str, Any]]:
    """What can be named as `model`: the aliases, and every version in memory; `root` is what answers."""
    engine = turns.engine
    roots = dict.fromkeys(ALIASES, engine.version) | {name: name for name in engine.known_versions}
    return {
        name: {
            "id": name,
            "object": "model",
            "created": _made_at(site.db, root),
            "owned_by": "night-school",
            "root": root,
        }
        for name, root in roots.items()
    }


def _made_at(db: Database, version: str) -> int:
    """When a version was made, in seconds; 0 where nobody knows, as for the base."""
    try:
        return int(versions.get(db, version).created_at)
    except NotFound:  # loaded by hand
        return 0


def build_of(turns: Turns) -> str:
    """What beside version and seed decides a reply: the base's weights and their format."""
    return f"{turns.engine.base.sha256[:8]}-{turns.engine.form}"


def failure(generation: Generation) -> tuple[int, str] | None:
    """Status and sentence where a reply did not end well; None where all did."""
    reasons = {reply.finish_reason for reply in generation.replies}
    if "interrupted" in reasons:
        return 503, "The server is shutting down - try again in a moment."
    if "failed" in reasons:
        return 500, "The model failed at this prompt - try again, or tell the operator."
    if "cancelled" in reasons and not any(reply.tokens for reply in generation.replies):
        return 503, f"Nothing was written within {API_DEADLINE:.0f} seconds - try again later."
    return None


class _Door:
    """Lets no more requests in at a time than the engine has room for: a burst is refused before any work.

    Only the event loop passes it, so it needs no lock.
    """

    def __init__(self, engine: AnyEngine) -> None:
        self._engine = engine
        self._passing = 0
        self.threads = asyncio.Semaphore(THREADS)
        """Where tokens are made of text, or text of tokens."""

    @contextlib.asynccontextmanager
    async def passed(self) -> AsyncIterator[None]:
        """Inside, a request is read and handed to the engine. Raises Busy where that would be in vain."""
        if self._passing >= self._engine.room:
            waiting = self._passing + self._engine.load_now[1]
            raise Busy(f"{waiting} requests are waiting already - try again in a moment.")
        self._passing += 1
        try:
            async with self.threads:
                yield
        finally:
            self._passing -= 1


def _begin(site: "Site", turns: Turns, request: Request, body: bytes) -> tuple[ChatRequest, Generation]:
    """Read a request and hand it to the engine. Runs in a thread. Raises Problem."""
    person = accounts.require(request)
    key: ApiKey = request.scope["api_key"]
    with contextlib.suppress(Problem):  # a full disk is no reason to be silent: nothing else is stored here
        api_keys.note_use(site.db, key)
    wanted = read_request(body)
    if wanted.model not in ALIASES and wanted.model not in turns.engine.known_versions:
        raise _no_model(wanted.model)
    prompt = _whole_prompt(turns.engine.base, wanted)
    sampling = _sampling(turns.engine, prompt, wanted)
    asked = Asked(prompt, sampling, wanted.draw_seeds(), person.id, "api", wanted.stop, API_DEADLINE)
    return wanted, turns.engine.accept(asked, None if wanted.model in ALIASES else wanted.model)


def _no_model(name: str) -> NotFound:
    return NotFound(
        f"No model is called {name[:80]!a}, and no version that is loaded - "
        f"use {ALIASES[0]!r}, or one that /v1/models names."
    )


def _whole_prompt(base: Base, wanted: ChatRequest) -> FittedPrompt:
    """All messages as tokens. Raises Invalid where some would have to be left out to make them fit."""
    ids, longest = base.format.encode(wanted.messages), wanted.sampling.max_new_tokens
    are = f"The messages are {len(ids):,} tokens"
    problem = None
    if wanted.has_limit and len(ids) + longest > base.context:
        problem = (
            f"{are} and the reply may have {longest:,}, more than the {base.context:,} that fit - "
            "shorten them, or lower `max_tokens`."
        )
    elif len(ids) >= base.context:
        problem = f"{are}, more than the {base.context - 1:,} that fit beside a reply - shorten them."
    if problem:
        raise Invalid(problem, "messages", "context_length_exceeded")
    return FittedPrompt(ids, 0)


def _sampling(engine: AnyEngine, prompt: FittedPrompt, wanted: ChatRequest) -> Sampling:
    """With the length that was asked for, else with what the context leaves and memory has for programs."""
    if wanted.has_limit:
        return wanted.sampling
    left = min(wanted.sampling.max_new_tokens, engine.base.context - len(prompt.ids))
    longest = engine.longest_that_fits(len(prompt.ids), wanted.replies, left)
    return replace(wanted.sampling, max_new_tokens=longest)


@contextlib.asynccontextmanager
async def _while_listened_to(receive: Receive, generation: Generation) -> AsyncIterator[None]:
    """End the replies the moment their client hangs up, and whatever happens when the block is left."""

    async def wait_for_the_end() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        generation.stop()

    listening = asyncio.create_task(wait_for_the_end())
    try:
        yield
    finally:
        listening.cancel()
        generation.stop()


class EventStream(Response):
    """Frames as they come. Starlette's own would be cut off in mid-frame, and the engine not be told."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncIterator[bytes], generation: Generation) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._frames = frames
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with _while_listened_to(receive, self._generation):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for frame in self._frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _events(
    wanted: ChatRequest,
    generation: Generation,
    readers: Sequence[ReplyReader],
    completion: Completion,
    bell: Bell,
) -> AsyncIterator[bytes]:
    """Every reply's beginning, its pieces as they are written, its end; then the usage, then [DONE]."""
    opening = {"role": "assistant", "content": "", "refusal": None}
    yield b"".join(_event(completion.chunk(i, opening)) for i in range(len(readers)))
    told_at = time.monotonic()
    while True:
        ring = bell.next_ring()
        pieces = b"".join(_event(chunk) for chunk in _news(wanted, readers, completion))
        if failed := failure(generation):  # asked last: so no reply that failed is taken for one that ended
            yield pieces + _event(error_object(*failed))
            return
        if pieces or time.monotonic() >= told_at + SILENCE_SECONDS:
            yield pieces or b": still here\n\n"
            told_at = time.monotonic()
        if all(reader.has_ended for reader in readers):
            break
        await asyncio.wait([ring], timeout=SILENCE_SECONDS)
    if wanted.counts_tokens:
        yield _event(completion.last_chunk())
    yield b"data: [DONE]\n\n"


def _news(
    wanted: ChatRequest, readers: Sequence[ReplyReader], completion: Completion
) -> Iterator[dict[str, Any]]:
    """The chunks that tell what was written since the last look."""
    for index, reader in enumerate(readers):
        if reader.has_ended:
            continue
        text, tokens = reader.news()
        if text or (tokens and wanted.has_logprobs):
            yield completion.chunk(index, {"content": text}, tokens=tokens if wanted.has_logprobs else None)
        if reader.finish_reason in FINISHED:
            yield completion.chunk(index, {}, finish=reader.finish_reason)


def _event(chunk: dict[str, Any]) -> bytes:
    """One server-sent event. JSON in ASCII has no line end of any kind in it."""
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n".encode()
