"""What people asked, for the nights: the turns to practise on, and a share that is kept for judging.

Only turns that may teach: of people (not simulated raters) who are not disabled, in chats that may train. The
share is one conversation in five, whole and for ever the same, so that what one night practises on never
judges a later one.
"""

import hashlib
import json
from collections.abc import Collection

from data.database import Database
from data.errors import NotFound
from data.messages import prompt_of
from data.records import Prompt
from data.snapshots import opening_of
from data.text import to_json

_MAY_TEACH = (
    "FROM messages m JOIN conversations c ON c.id = m.conversation_id JOIN people p ON p.id = c.person_id"
    " WHERE m.role = 'user' AND c.may_train AND p.kind = 'human' AND NOT p.is_disabled"
)


def user_prompts(db: Database, limit: int, *, for_judging: bool) -> list[Prompt]:
    """What people really asked, with what stood before it: newest first, each once.

    `for_judging` gives the share that is kept for it, else the others.
    """
    found: dict[str, Prompt] = {}
    for row in db.query(f"SELECT m.id, m.conversation_id {_MAY_TEACH} ORDER BY m.id DESC"):
        if len(found) >= limit:
            break
        if _is_kept_for_judging(row["conversation_id"]) == for_judging:
            try:
                chat = prompt_of(db, row["id"])
            except NotFound:  # deleted meanwhile
                continue
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
