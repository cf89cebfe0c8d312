"""A refresh asked for by hand, from the operator's page to the trainer: `ask`, `withdraw`, `pending`.

No table of its own. An operator's wish is a row of the audit log that carries the key its run will have; a
run's key is unique, so however many processes see the wish, one of them claims it and it waits no more.

`trainer watch` looks here at each tick:  key = pending(db);  run = runs.claim(db, key, ...) if key else None
"""

from data import audit, runs
from data.database import Database
from data.records import Person

ASKED = "ask_refresh"
WITHDRAWN = "withdraw_refresh"


def ask(db: Database, person: Person) -> str:
    """Ask for a refresh, on behalf of `person`; the key that its run will have."""
    with db.write():
        key = pending(db) or runs.new_key("manual")
        audit.record(db, person.name, ASKED, {"key": key})
    return key


def withdraw(db: Database, person: Person) -> bool:
    """Take back a wish that no run has taken yet. False where there is none."""
    with db.write():
        key = pending(db)
        if key is not None:
            audit.record(db, person.name, WITHDRAWN, {"key": key})
    return key is not None


def pending(db: Database) -> str | None:
    """The key of the refresh that is asked for and not yet claimed; None where nobody waits."""
    last = audit.newest(db, ASKED, WITHDRAWN)
    if last is None or last.action == WITHDRAWN:
        return None
    key = str(last.detail["key"])
    return None if db.one("SELECT 1 FROM runs WHERE key = ?", (key,)) else key
