"""A turn: a person's message, K replies to it, streamed and stored. The only way a turn happens.

The chat page, the terminal and the simulated raters all come through here. The message is fitted to the
context, since one that can never be answered is not taken; it is stored; the replies are begun as unfinished
rows with version, seed and sampling; the engine writes, and a thread of the turn stores each when it ends.
Who shows a turn only follows it: closing a page loses nothing, nor does a database that is locked or full.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from chatbot.chatformat import Messages
from chatbot.generation import DEADLINE, LONG_DEADLINE, Asked, Generation, ReplyStream, room_for_prompt
from chatbot.interface import AnyEngine
from data import conversations, messages, rankings
from data.database import Database
from data.errors import NotFound, Problem, Refused
from data.records import FinishReason, Message, Person, Sampling
from data.text import clean

log = logging.getLogger(__name__)

_KEEP_ENDED_SECONDS = 60.0
_STORE_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class LiveReply:
    """One reply of a turn that is being written, or was a moment ago."""

    message_id: str
    stream: ReplyStream

    @property
    def text(self) -> str:
        return self.stream.text

    @property
    def tokens(self) -> int:
        return self.stream.tokens

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.stream.finish_reason


class LiveTurn:
    """A turn in memory; its replies stand in the order in which its person sees them."""

    def __init__(
        self, turn: Message, person_id: str, replies: list[LiveReply], generation: Generation
    ) -> None:
        self.conversation_id = turn.conversation_id
        self.turn_id = turn.id
        self.person_id = person_id
        self.replies = replies
        self._generation = generation
        self._is_over = threading.Event()

    @property
    def version(self) -> str:
        return self._generation.version

    @property
    def dropped(self) -> int:
        """How many of the oldest messages the model did not see, because the context is full."""
        return self._generation.dropped

    @property
    def queue_position(self) -> int:
        return self._generation.queue_position

    @property
    def is_done(self) -> bool:
        """All replies have ended and are stored, or could not be (the log says why)."""
        return self._is_over.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Until every reply has ended and is stored; False where `timeout` seconds passed first."""
        return self._is_over.wait(timeout)

    def stop(self, message_id: str | None = None) -> None:
        """End one reply, or all, where they stand."""
        for reply in self.replies:
            if message_id in (None, reply.message_id):
                reply.stream.stop()

    def store(self, write: Callable[[LiveReply], bool]) -> None:
        """Hand each reply that has ended to `write` until it says True. Runs in the turn's own thread."""
        left = list(self.replies)
        while left:
            self._generation.wait(0.2)
            self._generation.end_if_late()  # the engine cannot where it hangs in a step
            left = [reply for reply in left if not (reply.finish_reason and write(reply))]

    def end(self) -> None:
        """Nothing more will be stored: wake who waits."""
        self._is_over.set()


class Turns:
    """Sends turns through one engine and remembers those being written."""

    def __init__(self, db: Database, engine: AnyEngine, *, max_new_tokens: int | None = None) -> None:
        self._db = db
        self._engine = engine
        longest = max_new_tokens or engine.longest_reply
        room_for_prompt(engine.base, longest)  # told now, not at every turn
        self.sampling = Sampling(max_new_tokens=longest)
        """What a turn uses where nothing else is asked for."""
        self._lock = threading.Condition()
        self._beginning: set[str] = set()  # turns whose replies are just being begun
        self._live: dict[str, LiveTurn] = {}
        self._storing = threading.Lock()
        self._is_refused = False  # the database took no reply of late, and the log says so
        self._closing = threading.Event()

    @property
    def engine(self) -> AnyEngine:
        return self._engine

    def send(
        self,
        person: Person,
        text: str,
        *,
        conversation_id: str | None = None,
        parent_id: str | None = None,
        replies: int = 4,
        sampling: Sampling | None = None,
        request_key: str | None = None,
        may_train: bool = True,
    ) -> LiveTurn:
        """Store what `person` said and begin `replies` replies to it.

        Without `conversation_id` a new conversation is made, which teaches where it `may_train`; `parent_id`
        is the message it answers. The same `request_key` twice is one turn. Raises Refused for a key
        whose turn was answered long ago, and, with nothing stored, for bad or too long text, another's
        conversation, an unfinished parent or a count out of range. Raises Busy where the queue is full: then
        the message is stored, and the same key asks again.
        """
        if not text.strip():
            raise Refused("The message is empty - write something first.")
        if conversation_id is not None:
            conversations.get(self._db, conversation_id, person.id)
        asked = self._asked(person, self._said(person, text, parent_id, request_key), replies, sampling)
        turn = self._store_message(person, text, conversation_id, parent_id, request_key, may_train)
        with self._alone_with(turn.id):
            live = self.live(turn.id)
            if live is None and messages.replies(self._db, turn.id):
                raise Refused("This message was answered already - reload the page to see its replies.")
            return live or self._begin(person, turn, asked)

    def regenerate(self, person: Person, turn_id: str, replies: int = 4) -> LiveTurn:
        """Ask again for replies to a turn; the earlier ones stay. Raises Refused while it is answered."""
        turn = self._own_turn(person, turn_id)
        if turn.role != "user":
            raise Refused("Only a person's message can be answered - choose one of yours.")
        asked = self._asked(person, messages.prompt_of(self._db, turn_id), replies)
        with self._alone_with(turn_id):
            live = self.live(turn_id)
            if live and not live.is_done:
                raise Refused("This turn is still being answered - stop it first.")
            return self._begin(person, turn, asked)

    def live(self, turn_id: str) -> LiveTurn | None:
        """The turn while it is written and a minute after; later it is in the database alone."""
        with self._lock:
            return self._live.get(turn_id)

    def stop(self, person: Person, turn_id: str, message_id: str | None = None) -> None:
        """End a turn's replies, or one of them, where they stand. Harmless where it has ended."""
        self._own_turn(person, turn_id)
        if live := self.live(turn_id):
            live.stop(message_id)

    def close(self, timeout: float = 5.0) -> None:
        """Wait until what the engine interrupted is stored; what then is not, is lost."""
        deadline = time.monotonic() + timeout
        with self._lock:
            turns = list(self._live.values())
        for turn in turns:
            turn.wait(max(0.0, deadline - time.monotonic()))
        self._closing.set()

    def _own_turn(self, person: Person, turn_id: str) -> Message:
        """A turn in one of the person's conversations. Raises NotFound, and Refused for another's."""
        turn = messages.get(self._db, turn_id)
        conversations.get(self._db, turn.conversation_id, person.id)  # refuses: no more is wanted of it
        return turn

    def _said(self, person: Person, text: str, parent_id: str | None, key: str | None) -> Messages:
        """The message after all that it answers; as it is stored already, where the key was used."""
        if key and (earlier := messages.by_request_key(self._db, person.id, key)):
            return messages.prompt_of(self._db, earlier.id)
        if parent_id is not None and not messages.get(self._db, parent_id).is_finished:
            raise Refused("This reply is still being written - wait for it, or stop it.")
        answered = messages.prompt_of(self._db, parent_id) if parent_id is not None else ()
        return [*answered, {"role": "user", "content": clean(text)}]

    def _asked(self, person: Person, said: Messages, replies: int, sampling: Sampling | None = None) -> Asked:
        """What the engine is to do. Raises Refused where it cannot."""
        is_waiting = person.kind == "human"  # simulated raters have all of the queue, and time
        return Asked.of(
            self._engine.base,
            said,
            replies=replies,
            sampling=sampling or self.sampling,
            person=person.id if is_waiting else None,
            deadline=DEADLINE if is_waiting else LONG_DEADLINE,
        )

    @contextmanager
    def _alone_with(self, turn_id: str) -> Iterator[None]:
        """Two clicks at once begin one set of replies: the second waits for the first, other turns do not."""
        with self._lock:
            self._lock.wait_for(lambda: turn_id not in self._beginning)
            self._beginning.add(turn_id)
        try:
            yield
        finally:
            with self._lock:
                self._beginning.remove(turn_id)
                self._lock.notify_all()

    def _store_message(
        self,
        person: Person,
        text: str,
        conversation_id: str | None,
        parent_id: str | None,
        key: str | None,
        may_train: bool,
    ) -> Message:
        """The turn, now in the conversation given or a new one; where the key was used, that of then."""
        with self._db.write():
            if key and (earlier := messages.by_request_key(self._db, person.id, key)):
                return earlier
            if conversation_id is None:
                conversation_id = conversations.create(self._db, person.id, may_train=may_train).id
            return conversations.add_user_message(
                self._db, conversation_id, parent_id, text, person.id, request_key=key
            )

    def _begin(self, person: Person, turn: Message, asked: Asked) -> LiveTurn:
        generation = self._engine.accept(asked)
        try:
            rows = conversations.start_replies(
                self._db, turn.id, generation.version, asked.sampling, asked.seeds
            )
        except Exception:
            generation.stop()
            raise
        streams = {row.id: stream for row, stream in zip(rows, generation.replies, strict=True)}
        order = rankings.shown_order(turn.id, person.id, list(streams))
        live = LiveTurn(turn, person.id, [LiveReply(i, streams[i]) for i in order], generation)
        with self._lock:
            self._live[turn.id] = live
        threading.Thread(target=self._follow, args=(live,), name=f"turn {turn.id}", daemon=True).start()
        return live

    def _follow(self, live: LiveTurn) -> None:
        try:
            live.store(self._store_reply)
        except NotFound:  # the conversation was deleted meanwhile
            live.stop()
        except Exception:
            log.exception("The replies to turn %s could not be stored.", live.turn_id)
            live.stop()
        live.end()
        time.sleep(_KEEP_ENDED_SECONDS)
        with self._lock:
            if self._live.get(live.turn_id) is live:
                del self._live[live.turn_id]

    def _store_reply(self, reply: LiveReply) -> bool:
        """Write a reply that has ended; False, after a pause, where the database does not take it now. One
        turn at a time, so that other writes do not queue behind many waits for a locked database. Raises
        NotFound where the turn was deleted, and the database's Problem where we are closing."""
        assert reply.finish_reason, "only ended replies are stored"
        with self._storing:
            try:
                conversations.finish_reply(
                    self._db, reply.message_id, reply.text, reply.tokens, reply.finish_reason
                )
            except NotFound:
                raise
            except Problem as problem:
                if not self._is_refused:
                    log.warning("Replies are kept and tried again until they can be stored: %s", problem)
                self._is_refused = True
                if self._closing.wait(_STORE_AGAIN_SECONDS):
                    raise
                return False
            self._is_refused = False
        return True
