"""What one person may ask of a page at once, so that nobody keeps others from being answered.

Gradio has a slot for every event under way, and keeps each answer until the page session that asked has read
it, for ever where none does. Here a person's events are counted before they join, what was read or will not
be is forgotten, and of the pages on which somebody follows turns the latest go on.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from fastapi import HTTPException, Request

from chatbot.openai_errors import RETRY_SECONDS
from chatbot.pages import words

MOST_OF_ONE = 24
"""Events of one person under way or waiting: room for all the looks below, and for what is done meanwhile."""
MOST_FOLLOWED = 16
"""Looks at turns under way, of one person."""
MOST_UNREAD = 100
"""Messages in all page sessions of one person; a page reads its own within the second."""
UNREAD_SECONDS = 600.0
"""After this long without an event, nobody will read what a page session has left."""


class Fair:
    """Stands before the queue of one page."""

    def __init__(self, page: gr.Blocks) -> None:
        self._queue = page._queue
        self._push = page._queue.push
        self._sessions: dict[str, tuple[str, float]] = {}
        """Who sent the latest event of a page session, and when."""
        page._queue.push = self.push  # type: ignore[method-assign]

    async def push(self, body: Any, request: Request, username: str | None) -> Any:
        """Gradio's `push`; HTTPException 429 for whom this is too much, 403 in somebody else's page session.

        Until the event has its place in the queue, nothing here or there waits and lets another count too.
        """
        person, language = username or "", words.language_of(request.cookies, request.headers)
        if self._sessions.get(body.session_hash, (person, 0.0))[0] != person:
            raise HTTPException(403, words.word("not_yours", language))
        if sum(event.username == username for event in self._events()) >= MOST_OF_ONE:
            retry = {"retry-after": str(RETRY_SECONDS)}
            raise HTTPException(429, words.word("too_much", language), retry)
        self._forget_what_is_over()
        while sum((unread := self._unread(person)).values()) > MOST_UNREAD:
            self._forget(max(unread, key=unread.__getitem__))
        self._sessions[body.session_hash] = person, time.monotonic()
        return await self._push(body, request, username)

    def _events(self) -> list[Any]:
        """Under way or waiting. Gradio's list of all of them may keep one that was cancelled as it ended."""
        under_way = (event for job in self._queue.active_jobs for event in job or ())
        lines = self._queue.event_queue_per_concurrency_id.values()
        return [*under_way, *(event for line in lines for event in line.queue)]

    def _unread(self, person: str) -> dict[str, int]:
        """How many messages wait in each page session of a person."""
        messages = self._queue.pending_messages_per_session
        mine = (session for session, (whose, _) in self._sessions.items() if whose == person)
        return {session: messages[session].qsize() for session in mine if session in messages}

    def _forget_what_is_over(self) -> None:
        """Page sessions without an event whose answers were read, or were not for too long. Of one that was
        closed in the middle of a stream Gradio has forgotten the messages already."""
        kept, expected = self._queue.pending_messages_per_session, self._queue.pending_event_ids_session
        long_ago = time.monotonic() - UNREAD_SECONDS
        has_events = {event.session_hash for event in self._events()}
        for session in {*self._sessions, *kept, *expected} - has_events:
            messages, (_, latest) = kept.get(session), self._sessions.get(session, ("", 0.0))
            is_read = messages is None or (messages.empty() and not expected.get(session))
            if is_read or latest < long_ago:
                self._forget(session)

    def _forget(self, session: str) -> None:
        """Its events say nothing more and end; a stream that still reads it hears so within ten seconds."""
        for event in self._events():
            if event.session_hash == session:
                event.alive = False  # before its messages have no place to go
        self._queue.pending_messages_per_session.pop(session, None)
        self._sessions.pop(session, None)
        self._queue.pending_event_ids_session.pop(session, None)


class Followers:
    """Who follows turns, so that a person who opens ever more pages on one keeps to their slots."""

    def __init__(self) -> None:
        self._of: defaultdict[str, list[tuple[str, object]]] = defaultdict(list)

    @contextmanager
    def one_more(self, person_id: str, page: str) -> Iterator[Callable[[], bool]]:
        """Gives whether to go on, which ends with the oldest follower of whichever page session has most."""
        mine, this = self._of[person_id], (page, object())
        mine.append(this)
        if len(mine) > MOST_FOLLOWED:
            [(fullest, _)] = Counter(page for page, _ in mine).most_common(1)
            mine.remove(next(other for other in mine if other[0] == fullest))
        try:
            yield lambda: this in mine
        finally:
            if this in mine:
                mine.remove(this)
            if not mine and self._of.get(person_id) is mine:
                del self._of[person_id]
