"""The ranking board: what it shows of a turn, and what a ranking that comes from it must be.

The board itself is board.js (with cards.js and compare.js), which builds its elements from the value made
here. Its template is constant: `{{value}}` in a template would be evaluated as code. A reply is blind:
its version is left out until this person has ranked it, and a skip ranks nothing. Everything that comes
back is checked against the database, and only ids are taken from it, never texts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from chatbot.pages import markdown
from chatbot.pages.payload import MISUNDERSTOOD, Payload
from chatbot.turns import LiveTurn, Turns
from data import conversations, rankings
from data.database import Database
from data.errors import Refused
from data.records import Message, Person, Placement, Ranking, RankingKind

HERE = Path(__file__).parent
MOST_SHOWN = 9
REASONS = ("correct", "helpful", "clear", "short", "detailed", "tone", "followed")
COMMENT_LENGTH = 2000
LONGEST_DWELL_MS = 24 * 3600 * 1000
BATCH_GAP_SECONDS = 0.5
"""Replies begun within this belong to one request; a later batch is a regeneration."""

View = dict[str, Any]


def script(*names: str) -> str:
    """The JavaScript of a component: these files, in order, in one scope."""
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)


class Board(gr.HTML):
    """The board as a component. Its events carry what the person did in `gr.EventData._data`.

    Gradio builds a component anew whenever an event writes to it, hence `arguments`, as in its siblings; a
    name that stands quoted in the script would be taken for an event of it.
    """

    def __init__(self, value: View | None = None, **arguments: Any) -> None:
        super().__init__(
            value=value,
            html_template="<div></div>",
            js_on_load=script("cards.js", "compare.js", "board.js"),
            apply_default_css=False,
            elem_id="board",
            **arguments,
        )


def empty_board(look: int = 0) -> View:
    """A board that shows nothing."""
    return {"look": look, "turn_id": "", "replies": []}


def shown_replies(db: Database, turn_id: str, person_id: str) -> list[Message]:
    """The model's replies to a turn as this person sees them: each request shuffled, regenerated ones after.

    At most nine; of more, the latest requests.
    """
    written = [reply for reply in conversations.replies(db, turn_id) if reply.author_id is None]
    batches: list[list[Message]] = []
    for reply in written:
        is_new = not batches or reply.created_at - batches[-1][-1].created_at > BATCH_GAP_SECONDS
        if is_new:
            batches.append([])
        batches[-1].append(reply)
    while sum(map(len, batches)) > MOST_SHOWN and len(batches) > 1:
        batches.pop(0)
    by_id = {reply.id: reply for reply in written}
    order = [rankings.shown_order(turn_id, person_id, [reply.id for reply in batch]) for batch in batches]
    return [by_id[id] for batch in order for id in batch][:MOST_SHOWN]


def latest_edits(db: Database, turn_id: str, person_id: str) -> dict[str, Message]:
    """This person's last rewording of each reply, by the id of the reply it replaces."""
    return {
        reply.replaces_id: reply
        for reply in conversations.replies(db, turn_id)
        if reply.replaces_id and reply.author_id == person_id
    }


def board_view(
    db: Database, turns: Turns, person: Person, turn_id: str, look: int, default_replies: int = 4
) -> View:
    """What the board shows of a turn now, whether it is being written or long ended."""
    live = turns.live(turn_id)
    turn = conversations.message(db, turn_id)
    shown = shown_replies(db, turn_id, person.id)
    edits = latest_edits(db, turn_id, person.id)
    ranking = rankings.current(db, turn_id, person.id)
    ranked = placed(ranking)
    views = [
        _reply_view(reply, letter, live, edits.get(reply.id), is_blind=reply.id not in ranked)
        for letter, reply in zip(rankings.LETTERS, shown, strict=False)
    ]
    is_writing = live is not None and not live.is_done
    return {
        "look": look,
        "conversation_id": turn.conversation_id,
        "turn_id": turn_id,
        "replies": views,
        "saved": ranking and _ranking_view(ranking, shown),
        "queue": live.queue_position if live and is_writing else 0,
        "dropped": live.dropped if live else 0,
        "default_replies": default_replies,
    }


def _reply_view(
    reply: Message, letter: str, live: LiveTurn | None, edit: Message | None, *, is_blind: bool
) -> View:
    """A reply counts as finished once it is stored, since only then can it be ranked."""
    text, state = reply.content, str(reply.finish_reason or "interrupted")
    streaming = next((one for one in live.replies if one.message_id == reply.id), None) if live else None
    if streaming and not reply.is_finished:
        text = streaming.text
        state = "writing" if text else "waiting"
    return {
        "id": reply.id,
        "letter": letter,
        "blocks": markdown.blocks(text),
        "text": text if reply.is_finished else "",
        "state": state,
        "version": None if is_blind else reply.version,
        "edit": edit and {"blocks": markdown.blocks(edit.content), "text": edit.content},
    }


def _ranking_view(ranking: Ranking, shown: Sequence[Message]) -> View:
    letters = {reply.id: letter for letter, reply in zip(rankings.LETTERS, shown, strict=False)}
    places = {entry.message_id: entry.place for entry in ranking.placements if entry.message_id in letters}
    return {
        "kind": ranking.kind,
        "places": places,
        "order": order_in_letters(places, letters),
        "reasons": list(ranking.reasons),
        "comment": ranking.comment,
    }


def order_in_letters(places: dict[str, int], letters: dict[str, str]) -> str:
    """`B > A = C` of the places by reply id."""
    positions = {id: rankings.LETTERS.index(letter) for id, letter in letters.items()}
    return rankings.order_text([Placement(id, place, positions[id]) for id, place in places.items()])


def save_ranking(db: Database, person: Person, turn: Message, sent: Payload) -> Ranking:
    """Store what the board sent for this person's own turn.

    Refused where the replies are not those the person sees, or `data.rankings.save` finds the places wrong.
    """
    shown = [reply.id for reply in shown_replies(db, turn.id, person.id)]
    kind = sent.text("kind")
    if kind not in get_args(RankingKind) or sent.texts("shown", MOST_SHOWN) != shown:
        raise Refused(MISUNDERSTOOD)
    places = sent.numbers("places", MOST_SHOWN, 1, MOST_SHOWN)
    reasons = sent.texts("reasons", len(REASONS))
    if not set(places) <= set(shown) or not set(reasons) <= set(REASONS):
        raise Refused(MISUNDERSTOOD)
    return rankings.save(
        db,
        turn_id=turn.id,
        person_id=person.id,
        kind=kind,  # type: ignore[arg-type]
        placements=[Placement(id, places[id], shown.index(id)) for id in shown if id in places],
        dwell_ms=sent.number("dwell_ms", 0, LONGEST_DWELL_MS, default=0),
        reasons=[reason for reason in REASONS if reason in reasons],
        comment=sent.text("comment", COMMENT_LENGTH),
        idempotency_key=sent.text("key") or None,
    )


def continued_reply(db: Database, person: Person, turn_id: str, chosen: str = "") -> Message | None:
    """The reply that the next message answers: the chosen one, else the best ranked, else the first finished.

    Where the person has reworded it, their wording. None where nothing was written yet.
    """
    shown = [reply for reply in shown_replies(db, turn_id, person.id) if reply.is_finished]
    ranking = rankings.current(db, turn_id, person.id)
    places = {} if ranking and ranking.kind == "all_bad" else placed(ranking)
    ranked = sorted((reply for reply in shown if reply.id in places), key=lambda reply: places[reply.id])
    preferred = [reply for reply in shown if reply.id == chosen] + ranked + shown
    if not preferred:
        return None
    return latest_edits(db, turn_id, person.id).get(preferred[0].id, preferred[0])


def placed(ranking: Ranking | None) -> dict[str, int]:
    """The place of each reply that was ranked, by its id; none before the vote, none of a skip."""
    return {entry.message_id: entry.place for entry in ranking.placements} if ranking else {}
