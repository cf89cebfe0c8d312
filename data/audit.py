"""The audit log: who did what. A row never changes, but where the name of a forgotten person stands in it.

What an operator asks of the trainer (requests.py), and what the trainer tells the operator (forecast.py,
recovery.py), are rows of it too: of each action the newest holds.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

from data.database import Database
from data.records import AuditEntry
from data.text import clean, to_json

TRAINER, COMMAND_LINE = "trainer", "command line"
"""Who did it where no person is known: what happens by itself, and whoever can reach the database."""


def record(db: Database, actor: str, action: str, detail: Mapping[str, Any]) -> None:
    """Writes down what was done. `actor` is a person's name, TRAINER or COMMAND_LINE."""
    with db.write() as conn:
        conn.execute(
            "INSERT INTO audit (at, person, action, detail) VALUES (?, ?, ?, ?)",
            (time.time(), clean(actor), action, to_json(dict(detail))),
        )


def newest(db: Database, *actions: str) -> AuditEntry | None:
    """What was done last, of these actions or of all; None where nothing was."""
    return next(iter(entries(db, *actions, limit=1)), None)


def entries(db: Database, *actions: str, limit: int = 100) -> list[AuditEntry]:
    """What was done, newest first; of these actions, or of all where none is named. -1 is no limit."""
    named = f" WHERE action IN ({', '.join('?' * len(actions))})" if actions else ""
    rows = db.query(
        f"SELECT at, person, action, detail FROM audit{named} ORDER BY id DESC LIMIT ?", (*actions, limit)
    )
    return [AuditEntry(row["at"], row["person"], row["action"], json.loads(row["detail"])) for row in rows]
