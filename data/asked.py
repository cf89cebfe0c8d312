"""What people asked, for the nights: the turns to practise on, and a share that is kept for judging.

Only turns that may teach: of people (not simulated raters) who are not disabled, in chats that may train. The
share is one conversation in five, whole and for ever the same, so that what one night practises on never
judges a later one.
"""

import hashlib
import json
from collections.abc import Collection

from data.comparisons import in_rounds
from data.database import Database
from data.errors import NotFound
from data.messages import end_of
from data.records import Prompt
from data.snapshots import opening_of
from data.text import to_json

_LOOKED_AT = 20
"""Times as many turns as are wanted are read at the most: a program may have asked the same for ever."""

_LONGEST = 12_000
"""Characters of a prompt with what stood before it: more than the 384 tokens of the longest that a night
practises or judges on (trainer/practice.py), as long as these have 31 each."""

_MAY_TEACH = (
    "FROM messages m JOIN conversations c ON c.id = m.conversation_id JOIN people p ON p.id = c.person_id"
    " WHERE m.role = 'user' AND c.may_train AND p.kind = 'human' AND NOT p.is_disabled"
)


def user_prompts(db: Database, limit: int, *, for_judging: bool) -> list[Prompt]:
    """What people really asked, with what stood before it, each once: everybody's newest first, then
    everybody's second newest. So the first few are not one person's, however much they asked. What is far
    too long for a night is left out.

    `for_judging` gives the share that is kept for it, else the others.
    """
    rows = db.query(f"SELECT m.id, m.conversation_id, c.person_id {_MAY_TEACH} ORDER BY m.id DESC")
    share = [row for row in rows if _is_kept_for_judging(row["conversation_id"]) == for_judging]
    found: dict[str, Prompt] = {}
    for row in in_rounds(share, lambda row: row["person_id"])[: _LOOKED_AT * limit]:
        if len(found) >= limit:
            break
        try:
            chat, is_whole = end_of(db, row["id"], _LONGEST)
        except NotFound:  # deleted meanwhile
            continue
        if is_whole:
            chat_id = row["conversation_id"]
            prompt = Prompt(chat, row["id"], "people", chat_id, opening_of(db, chat_id))
            found.setdefault(json.dumps(chat), prompt)
    return list(found.values())


def still_teaching(db: Database, turn_ids: Collection[str]) -> set[str]:
    """Those of these turns that are still there and may still teach."""
    wanted = "m.id IN (SELECT value FROM json_each(?))"
    rows = db.query(f"SELECT m.id {_MAY_TEACH} AND {wanted}", (to_json(list(turn_ids)),))
    return {row["id"] for row in rows}


def _is_kept_for_judging(conversation_id: str) -> bool:
    """Reads other bytes of the hash than `RankedTurn.part` (comparisons.py): neither tells the other."""
    digest = hashlib.sha256(conversation_id.encode()).digest()
    return int.from_bytes(digest[8:16], "big") % 5 == 0
