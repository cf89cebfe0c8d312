"""What people do on the chat page: open, send, rank, reword, stop, rename, delete, and what they then see.

Every function here is reached by a browser: each is given who asks and what was sent, and checks that the
conversation, the turn and the reply are theirs. What one look at the page started never draws over a later
one: answers carry the number of the look that asked (`look`). No events here; those are in chat.py.
"""

import hashlib
from dataclasses import dataclass, field
from html import escape

import gradio as gr

from chatbot.config import ServeConfig
from chatbot.pages import board as boards
from chatbot.pages import history as histories
from chatbot.pages import sidebar as sidebars
from chatbot.pages import words
from chatbot.pages.board import View
from chatbot.pages.composer import Answer, composer_view
from chatbot.pages.fair import Followers
from chatbot.pages.payload import Payload
from chatbot.turns import Turns
from data import conversations, messages, people, rankings
from data.database import Database, new_id
from data.errors import NotFound, Problem, Refused
from data.records import Message, Person
from data.text import MAX_CHARACTERS

MESSAGE_LENGTH = 200_000
"""Longer texts are not even read; `Turns` refuses from 32,000 characters with a sentence."""

_NONE = Answer()
"""The page waits for no message."""
Page = tuple[View, View, View, View]
"""What the page shows: history, board, composer, sidebar."""


@dataclass(frozen=True)
class Actions:
    """What people can do on the chat page, for whoever asks."""

    db: Database
    turns: Turns
    config: ServeConfig
    followers: Followers = field(default_factory=Followers)

    def person(self, request: gr.Request) -> Person:
        """Who asks. Refused where the session has ended meanwhile."""
        try:
            person = people.get(self.db, request.username or "")
        except NotFound:
            person = None
        if person is None or person.is_disabled:
            language = words.language_of(request.cookies, request.headers)
            raise Refused(words.word("signed_out", language))
        return person

    def own_turn(self, person: Person, turn_id: str) -> Message:
        """A turn of this person's own conversation."""
        turn = messages.get(self.db, turn_id)
        conversations.get(self.db, turn.conversation_id, person.id)
        if turn.role != "user":
            raise Refused("Only a person's message is a turn - reload the page.")
        return turn

    # What the page shows

    def show(
        self, person: Person, conversation_id: str, look: int, turn_id: str = "", answer: Answer = _NONE
    ) -> Page:
        """The whole page at a turn of a conversation: the given one, else the latest; empty is a new chat."""
        side = self.sidebar(person, conversation_id, look)
        composer = self._asked(look, composer_view(conversation_id, answer))
        history = histories.empty_history()
        if conversation_id:
            conversation = conversations.get(self.db, conversation_id, person.id)
            turn_id = turn_id or histories.latest_turn_id(self.db, conversation_id)
            history = histories.history_view(self.db, person, conversation, turn_id)
        return self._asked(look, history), self.board(person, turn_id, look), composer, side

    def board(self, person: Person, turn_id: str, look: int) -> View:
        """The board alone; empty without a turn."""
        view = boards.board_view(self.db, self.turns, person, turn_id) if turn_id else boards.empty_board()
        return self._asked(look, view)

    def sidebar(self, person: Person, conversation_id: str, look: int, search: str = "") -> View:
        """The sidebar alone."""
        view = sidebars.sidebar_view(self.db, self.turns, person, conversation_id, search)
        return self._asked(look, view)

    def _asked(self, look: int, view: View) -> View:
        """A part of the page, with the look that asked for it and how many replies a message usually gets."""
        return view | {"look": look, "default_replies": self.config.replies}

    # What a person does: each takes who asks and what the browser sent

    def open_chat(self, person: Person, sent: Payload) -> tuple[Page, str]:
        """Open a conversation where it was left, or an empty page.

        A message whose answer the page still waits for, `pending`, is told to be stored if it is: its own
        answer may have been lost.
        """
        conversation_id, pending = sent.text("conversation_id"), sent.text("pending")
        answer = Answer(pending, is_sent=True) if self._stored(person, pending) else _NONE
        page = self.show(person, conversation_id, sent.look, answer=answer)
        return page, str(page[1]["turn_id"])

    def stay(self, person: Person, sent: Payload, reason: str = "") -> tuple[Page, str]:
        """Where the person was when something went wrong; an empty page where even that cannot be shown."""
        answer = Answer(sent.text("key"), is_sent=False, reason=reason)
        try:
            turn_id = sent.text("turn_id")
            here = self.own_turn(person, turn_id).conversation_id if turn_id else sent.text("conversation_id")
            page = self.show(person, here, sent.look, turn_id, answer)
        except Problem:
            page = self.show(person, "", sent.look, answer=answer)
        return page, str(page[1]["turn_id"])

    def unsent(self, sent: Payload, reason: str) -> View:
        """The composer's answer where the page cannot be shown: the message was not taken."""
        answer = Answer(sent.text("key"), is_sent=False, reason=reason)
        return self._asked(sent.look, composer_view(sent.text("conversation_id"), answer))

    def revisit(self, person: Person, sent: Payload) -> tuple[Page, str]:
        """Go back to an earlier turn, to rank it or to go on from there."""
        turn = self.own_turn(person, sent.text("turn_id"))
        return self.show(person, turn.conversation_id, sent.look, turn.id), turn.id

    def switch_branch(self, person: Person, sent: Payload) -> tuple[Page, str]:
        """Another branch of the conversation, given by its first turn, where it was left."""
        turn = self.own_turn(person, sent.text("turn_id"))
        turn = messages.latest_turn_from(self.db, turn.id)
        return self.show(person, turn.conversation_id, sent.look, turn.id), turn.id

    def send(self, person: Person, sent: Payload) -> tuple[Page, str]:
        """A message under the reply the person continues from, with the ranking they had not saved yet.

        One that no answer reached comes again under its key: it is stored and answered once.
        """
        key, text = sent.text("key"), sent.text("text", MESSAGE_LENGTH)
        conversation_id, turn_id = sent.text("conversation_id"), sent.text("turn_id")
        parent = None
        if stored := self._stored(person, key):
            conversation_id = stored.conversation_id
        elif conversation_id and turn_id:
            turn = self.own_turn(person, turn_id)
            self._save_left(person, turn, sent)
            parent = boards.continued_reply(self.db, person, turn.id, sent.text("chosen"))
            if parent is None:
                raise Refused(
                    "This turn has no finished reply - wait for one, press Regenerate, or edit the message."
                )
        turn = self._begin(person, sent, text, conversation_id, parent.id if parent else None)
        return self._shown(person, turn, sent)

    def branch(self, person: Person, sent: Payload) -> tuple[Page, str]:
        """Another wording of an earlier message: a sibling of it, with replies of its own.

        The ranking that was not saved yet is of the turn on the board, `ranked`, which may be a later one.
        """
        turn = self.own_turn(person, sent.text("turn_id"))
        if not self._stored(person, sent.text("key")) and (ranked := sent.text("ranked")):
            self._save_left(person, self.own_turn(person, ranked), sent)
        text = sent.text("text", MESSAGE_LENGTH)
        return self._shown(
            person, self._begin(person, sent, text, turn.conversation_id, turn.parent_id), sent
        )

    def regenerate(self, person: Person, sent: Payload) -> tuple[Page, str]:
        """More replies to the same message, with the ranking of those that are there; they stay.

        As many as are wanted and the board has room for. Raises Refused where it has none.
        """
        turn = self.own_turn(person, sent.text("turn_id"))
        wanted = sent.number("replies", 1, 9, self.config.replies)
        self._save_left(person, turn, sent)
        room = boards.MOST_SHOWN - len(boards.shown_replies(self.db, turn.id, person.id))
        if room < 1:
            raise Refused(
                "This message has nine replies, as many as can be compared - rank them, or edit the message."
            )
        self.turns.regenerate(person, turn.id, min(wanted, room))
        return self.show(person, turn.conversation_id, sent.look, turn.id), turn.id

    def _save_left(self, person: Person, turn: Message, sent: Payload) -> None:
        """Store the ranking that the person had made and not saved, where there is one."""
        if ranking := sent.part("ranking"):
            boards.save_ranking(self.db, person, turn, ranking)

    def save_ranking(self, person: Person, sent: Payload) -> View:
        turn = self.own_turn(person, sent.text("turn_id"))
        boards.save_ranking(self.db, person, turn, sent)
        return self.board(person, turn.id, sent.look)

    def withdraw(self, person: Person, sent: Payload) -> View:
        """Undo: the person says nothing of this turn any more."""
        turn = self.own_turn(person, sent.text("turn_id"))
        rankings.withdraw(self.db, turn.id, person.id)
        return self.board(person, turn.id, sent.look)

    def demonstrate(self, person: Person, sent: Payload) -> View:
        """Keep a person's own wording of a reply: a demonstration, better than what it replaces."""
        turn = self.own_turn(person, sent.text("turn_id"))
        reply_id = sent.text("message_id")
        if reply_id not in {reply.id for reply in boards.shown_replies(self.db, turn.id, person.id)}:
            raise Refused("This reply does not belong to the turn - reload the page.")
        conversations.add_edit(self.db, reply_id, sent.text("text", MAX_CHARACTERS), person.id)
        return self.board(person, turn.id, sent.look)

    def stop_reply(self, person: Person, sent: Payload) -> View:
        """End one reply where it stands."""
        turn = self.own_turn(person, sent.text("turn_id"))
        self.turns.stop(person, turn.id, sent.text("message_id"))
        return self.board(person, turn.id, sent.look)

    def stop_turn(self, person: Person, sent: Payload) -> View:
        """End all replies of a turn where they stand."""
        turn = self.own_turn(person, sent.text("turn_id"))
        self.turns.stop(person, turn.id)
        return self.board(person, turn.id, sent.look)

    # What a person does in the sidebar

    def search_chats(self, person: Person, sent: Payload, **more: object) -> View:
        """The sidebar, filtered by what stands in the search box."""
        search = sent.text("search", sidebars.SEARCH_LENGTH)
        return self.sidebar(person, sent.text("conversation_id"), sent.look, search) | more

    def rename_chat(self, person: Person, sent: Payload) -> View:
        target = sidebars.target(self.db, person, sent)
        conversations.rename(self.db, target, sent.text("title", 200))
        named = {"id": target, "title": conversations.get(self.db, target, person.id).title}
        return self.search_chats(person, sent, named=named)

    def export_chat(self, person: Person, sent: Payload) -> View:
        file = sidebars.exported(self.db, sidebars.target(self.db, person, sent), new_id())
        return self.search_chats(person, sent, file=file)

    def set_training(self, person: Person, sent: Payload) -> View:
        """Whether nights may learn from an open chat."""
        here = conversations.get(self.db, sent.text("conversation_id"), person.id)
        conversations.set_may_train(self.db, here.id, sent.yes("may_train"))
        return self.search_chats(person, sent)

    def delete_chat(self, person: Person, sent: Payload) -> tuple[Page, str]:
        """Remove a conversation; the page stays at its turn unless that was the open one."""
        gone, here = sidebars.target(self.db, person, sent), sent.text("conversation_id")
        left, turn = ("", "") if gone == here else (here, sent.text("turn_id"))
        if turn and self.own_turn(person, turn).conversation_id != left:
            turn = ""
        for message in messages.list_for(self.db, gone):
            if message.role == "user" and self.turns.live(message.id):
                self.turns.stop(person, message.id)
        conversations.delete(self.db, gone)
        *page, _ = self.show(person, left, sent.look, turn)
        side = self.sidebar(person, left, sent.look, sent.text("search", sidebars.SEARCH_LENGTH))
        return (page[0], page[1], page[2], side), str(page[1]["turn_id"])

    def _stored(self, person: Person, key: str) -> Message | None:
        """The turn that this person's message of this key has become."""
        return messages.by_request_key(self.db, person.id, key) if key else None

    def _begin(
        self, person: Person, sent: Payload, text: str, conversation_id: str, parent_id: str | None
    ) -> Message:
        """The turn, stored and being answered; where the engine is busy, stored, to be regenerated."""
        key = sent.text("key")
        try:
            live = self.turns.send(
                person,
                text,
                conversation_id=conversation_id or None,
                parent_id=parent_id,
                replies=self._count(sent, key or text),
                request_key=key or None,
                may_train=sent.yes("may_train", True),
            )
        except Problem as problem:
            stored = self._stored(person, key)
            if stored is None:
                raise
            if not messages.replies(self.db, stored.id):
                gr.Warning(escape(str(problem)))
            return stored
        return messages.get(self.db, live.turn_id)

    def _count(self, sent: Payload, key: str) -> int:
        """How many replies a message gets: those asked for; where that is one, now and then two to compare.

        Drawn by the message's key: one that is sent again gets as many.
        """
        wanted = sent.number("replies", 1, 9, self.config.replies)
        draw = int.from_bytes(hashlib.sha256(f"compare {key}".encode()).digest()[:8], "big")
        return 2 if wanted == 1 and draw < self.config.compare_share * 2**64 else wanted

    def _shown(self, person: Person, turn: Message, sent: Payload) -> tuple[Page, str]:
        answer = Answer(sent.text("key"), is_sent=True)
        return self.show(person, turn.conversation_id, sent.look, turn.id, answer), turn.id
