"""The ranking board: what it shows of a turn, and what a ranking that comes from it must be.

The board itself is board.js (with cards.js, compare.js and keys.js), which builds its elements from the value
made here. Its template is constant: `{{value}}` in a template would be evaluated as code. A reply is blind:
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
from data import messages, rankings
from data.database import Database
from data.errors import Refused
from data.records import Message, Person, Placement, Ranking, RankingKind

HERE = Path(__file__).parent
MOST_SHOWN = 9
REASONS = ("correct", "helpful", "clear", "short", "detailed", "tone", "followed")
"""Why one reply is better than others."""
FAULTS = ("wrong", "unhelpful", "unclear", "too_long", "off_topic", "unsafe")
"""Why all are bad. Both lists are accepted for either vote: pages opened before an update still send REASONS
with an all-bad vote."""
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
            js_on_load=script("cards.js", "compare.js", "keys.js", "board.js"),
            apply_default_css=False,
            elem_id="board",
            **arguments,
        )


def empty_board() -> View:
    """A board that shows nothing, as it is before the page has asked for anything."""
    return {"look": 0, "turn_id": "", "replies": []}


def shown_replies(db: Database, turn_id: str, person_id: str) -> list[Message]:
    """The model's replies to a turn as this person sees them: each request shuffled, regenerated ones after.

    Without those that ended before a word was written. At most nine; of more, the latest requests.
    """
    written = [reply for reply in messages.replies(db, turn_id) if reply.author_id is None]
    batches: list[list[Message]] = []
    for reply in written:
        is_new = not batches or reply.created_at - batches[-1][-1].created_at > BATCH_GAP_SECONDS
        if is_new:
            batches.append([])
        batches[-1].append(reply)
    batches = [kept for batch in batches if (kept := [reply for reply in batch if _is_shown(reply)])]
    while sum(map(len, batches)) > MOST_SHOWN and len(batches) > 1:
        batches.pop(0)
    by_id = {reply.id: reply for reply in written}
    order = [rankings.shown_order(turn_id, person_id, [reply.id for reply in batch]) for batch in batches]
    return [by_id[id] for batch in order for id in batch][:MOST_SHOWN]


def _is_shown(reply: Message) -> bool:
    """It is being written, or can be judged: as `data.messages.WRITTEN` has it."""
    return not reply.is_finished or reply.content != "" or reply.finish_reason in ("stop", "length")


def latest_edits(db: Database, turn_id: str, person_id: str) -> dict[str, Message]:
    """This person's last rewording of each reply, by the id of the reply it replaces."""
    return {
        reply.replaces_id: reply
        for reply in messages.replies(db, turn_id)
        if reply.replaces_id and reply.author_id == person_id
    }


def board_view(db: Database, turns: Turns, person: Person, turn_id: str) -> View:
    """What the board shows of a turn now, whether it is being written or long ended."""
    live = turns.live(turn_id)
    turn = messages.get(db, turn_id)
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
        "conversation_id": turn.conversation_id,
        "turn_id": turn_id,
        "replies": views,
        "saved": ranking and _ranking_view(ranking, shown),
        "revisions": len(rankings.revisions(db, turn_id, person.id)),
        "queue": live.queue_position if live and is_writing else 0,
        "dropped": live.dropped if live else 0,
        "is_cut_off": not shown and _was_cut_off(db, turn_id),
    }


def _was_cut_off(db: Database, turn_id: str) -> bool:
    """Whether the server was stopped while replies to the turn were being written."""
    return any(reply.finish_reason == "interrupted" for reply in messages.replies(db, turn_id))


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
        "blocks": markdown.settled_blocks(text) if reply.is_finished else markdown.blocks(text),
        "text": text if reply.is_finished else "",
        "state": state,
        "version": None if is_blind else reply.version,
        "edit": edit and {"blocks": markdown.settled_blocks(edit.content), "text": edit.content},
    }


def _ranking_view(ranking: Ranking, shown: Sequence[Message]) -> View:
    places = placed(ranking)
    return vote_view(ranking, shown) | {
        "places": {reply.id: places[reply.id] for reply in shown if reply.id in places},
        "reasons": list(ranking.reasons),
        "comment": ranking.comment,
    }


def vote_view(ranking: Ranking, shown: Sequence[Message]) -> View:
    """A vote for the page: the key of its words, and what fills them, `B > A = C` and its first letter.

    Only a full ranking means its order: the replies beside the best one do not tie, nor do those all bad.
    """
    places = placed(ranking)
    seen = [Placement(reply.id, places[reply.id], at) for at, reply in enumerate(shown) if reply.id in places]
    order = rankings.order_text(seen)
    is_one_bad = ranking.kind == "all_bad" and len(places) == 1
    word = "order_bad" if is_one_bad else f"order_{ranking.kind}"
    return {"kind": ranking.kind, "word": word, "order": order, "letter": order[:1]}


def save_ranking(db: Database, person: Person, turn: Message, sent: Payload) -> Ranking:
    """Store what the board sent for this person's own turn.

    Refused where there are replies the person has not seen, or `data.rankings.save` finds the places wrong.
    How long they looked is a hint: a page left open for days, or a clock set back, costs nobody a vote.
    """
    shown = [reply.id for reply in shown_replies(db, turn.id, person.id)]
    kind = sent.text("kind")
    if kind not in get_args(RankingKind):
        raise Refused(MISUNDERSTOOD)
    if [id for id in sent.texts("shown", MOST_SHOWN) if id in shown] != shown:
        raise Refused("Replies were added in another tab - open the chat again to see and rank them.")
    places = sent.numbers("places", MOST_SHOWN, 1, MOST_SHOWN)
    known = (*REASONS, *FAULTS)
    reasons = sent.texts("reasons", len(known))
    if not set(places) <= set(shown) or not set(reasons) <= set(known):
        raise Refused(MISUNDERSTOOD)
    return rankings.save(
        db,
        turn_id=turn.id,
        person_id=person.id,
        kind=kind,  # type: ignore[arg-type]
        placements=[Placement(id, places[id], shown.index(id)) for id in shown if id in places],
        dwell_ms=sent.bounded("dwell_ms", 0, LONGEST_DWELL_MS),
        reasons=[reason for reason in known if reason in reasons],
        comment=sent.text("comment", COMMENT_LENGTH),
        idempotency_key=sent.text("key") or None,
    )


def continued_reply(db: Database, person: Person, turn_id: str, chosen: str = "") -> Message | None:
    """The reply that the next message answers: the chosen one, else the best ranked, else the first finished.

    One that was called bad only where there is no other. Where the person has reworded the reply, their
    wording. None where nothing was written yet.
    """
    shown = [reply for reply in shown_replies(db, turn_id, person.id) if reply.is_finished]
    ranking = rankings.current(db, turn_id, person.id)
    places = placed(ranking)
    ranked = sorted((reply for reply in shown if reply.id in places), key=lambda reply: places[reply.id])
    others = [reply for reply in shown if reply.id not in places]
    is_all_bad = ranking is not None and ranking.kind == "all_bad"
    in_turn = [*others, *shown] if is_all_bad else [*ranked, *others]
    preferred = [reply for reply in shown if reply.id == chosen] + in_turn
    if not preferred:
        return None
    return latest_edits(db, turn_id, person.id).get(preferred[0].id, preferred[0])


def placed(ranking: Ranking | None) -> dict[str, int]:
    """The place of each reply that was ranked, by its id; none before the vote, none of a skip."""
    return {entry.message_id: entry.place for entry in ranking.placements} if ranking else {}
