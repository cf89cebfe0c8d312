"""`chatbot chat`: the chat and its ranking in a terminal, through the same turns and rows as the page.

A model of its own answers, in the version that serves; the database is shared with a running server. Left
out on purpose: editing, branching and going back, which need a page.
"""

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chatbot.turns import LiveTurn, Turns
from data import people, rankings
from data.database import Database
from data.errors import Problem, Refused
from data.records import Person, Placement, RankingKind

TERMINAL_PERSON = "terminal"
LETTERS = rankings.LETTERS
HELP = "Type B > A = C to rank, B for the best alone, x if all are bad, or Enter for no ranking."


@dataclass(frozen=True)
class Order:
    """What somebody typed below the replies, as the store takes it."""

    kind: RankingKind
    placements: tuple[Placement, ...]


def chat(db: Database, turns: Turns, person: Person, *, replies: int, as_json: bool) -> None:
    """Read messages until the input ends; answer each, and ask for a ranking where there is a choice."""
    conversation_id, parent_id = None, None
    for text in _lines("" if as_json else "you> "):
        if not text.strip():
            continue
        try:
            live = turns.send(
                person, text, conversation_id=conversation_id, parent_id=parent_id, replies=replies
            )
        except Problem as problem:
            print(json.dumps({"error": str(problem)}) if as_json else problem, flush=True)
            continue
        _follow(live, is_quiet=as_json)
        conversation_id, chosen = live.conversation_id, 0
        if as_json:
            print(json.dumps(_as_data(live), ensure_ascii=False), flush=True)
        elif replies > 1:
            chosen = _ask_order(db, person, live)
        parent_id = live.replies[chosen].message_id


def terminal_person(db: Database, name: str | None) -> Person:
    """Who chats here: the person named, else the terminal's own, who cannot sign in. Raises Refused."""
    person = people.by_name(db, name or TERMINAL_PERSON)
    if person is None and name is None:
        return people.add(db, TERMINAL_PERSON)
    if person is None or person.is_disabled:
        raise Refused(f'Nobody called {name!r} may chat - run "chatbot person list" to see who there is.')
    return person


def parse_order(text: str, message_ids: Sequence[str]) -> Order | None:
    """`B > A = C` over the replies in shown order; None where nothing was typed. Raises Refused."""
    text = text.strip()
    if not text:
        return None
    if text.lower() in ("x", "all bad"):
        return Order("all_bad", tuple(Placement(id, 1, i) for i, id in enumerate(message_ids)))
    letters = LETTERS[: len(message_ids)]
    if not re.fullmatch(r"\w(\s*[>=]\s*\w)*", text):
        raise Refused(f"{text!r} is not an order - type something like B > A = C.")
    tiers = [re.findall(r"\w", tier) for tier in text.upper().split(">")]
    places = [(letter, place) for place, tier in enumerate(tiers, 1) for letter in tier]
    if strange := [letter for letter, _ in places if letter not in letters]:
        raise Refused(f"There is no reply {strange[0]!r} - use the letters {letters[0]} to {letters[-1]}.")
    if len({letter for letter, _ in places}) < len(places):
        raise Refused("A letter stands there twice - give each reply one place.")
    if len(places) == 1:
        best = letters.index(places[0][0])
        return Order("best", tuple(Placement(id, 1 + (i != best), i) for i, id in enumerate(message_ids)))
    index = {letter: letters.index(letter) for letter, _ in places}
    return Order("full", tuple(Placement(message_ids[index[a]], place, index[a]) for a, place in places))


def _ask_order(db: Database, person: Person, live: LiveTurn) -> int:
    """Ask until the order is understood, and store it; the index of the reply to go on from."""
    ids, began = [reply.message_id for reply in live.replies], time.monotonic()
    for text in _lines(f"{HELP}\nrank> "):
        try:
            order = parse_order(text, ids)
            if order is None:
                break
            ranking = rankings.save(
                db,
                turn_id=live.turn_id,
                person_id=person.id,
                kind=order.kind,
                placements=order.placements,
                dwell_ms=round(1000 * (time.monotonic() - began)),
            )
        except Problem as problem:
            print(problem)
            continue
        print(f"Saved: {rankings.order_text(ranking.placements)}, written by {live.version}.")
        return ids.index(min(ranking.placements, key=lambda entry: entry.place).message_id)
    return 0


def _follow(live: LiveTurn, *, is_quiet: bool) -> None:
    """Show a single reply as it grows, or several when they are whole; Ctrl-C ends them where they stand."""
    written = 0
    try:
        while True:
            is_done = live.wait(0.05)
            if len(live.replies) == 1 and not is_quiet:
                text = live.replies[0].text
                # A character may still be half written; it is shown with the next tokens.
                whole = text if is_done else text.rstrip("\ufffd")
                print(whole[written:], end="", flush=True)
                written = max(written, len(whole))
            if is_done:
                break
    except KeyboardInterrupt:
        live.stop()
        live.wait()
    if is_quiet:
        return
    if live.dropped:
        print(f"\n(The {live.dropped} oldest messages did not fit the model's context.)", end="")
    print("\n" if len(live.replies) == 1 else "\n".join(_cards(live)))


def _cards(live: LiveTurn) -> Iterator[str]:
    for letter, reply in zip(LETTERS, live.replies, strict=False):
        mark = "" if reply.finish_reason == "stop" else f" ({reply.finish_reason})"
        yield f"\n[{letter}]{mark} {reply.text.strip()}"
    yield ""


def _as_data(live: LiveTurn) -> dict[str, object]:
    return {
        "conversation_id": live.conversation_id,
        "turn_id": live.turn_id,
        "version": live.version,
        "replies": [
            {
                "id": reply.message_id,
                "text": reply.text,
                "tokens": reply.tokens,
                "finish_reason": reply.finish_reason,
            }
            for reply in live.replies
        ],
    }


def _lines(prompt: str) -> Iterator[str]:
    """Typed lines until the input ends; the prompt appears only to somebody who types."""
    while True:
        if prompt and sys.stdin.isatty():
            print(prompt, end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line.rstrip("\n")
