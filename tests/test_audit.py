"""audit.py: who did what, newest first."""

from data import audit
from data.database import Database
from data.records import AuditEntry


def test_the_last_deeds_come_first(db: Database) -> None:
    audit.record(db, "ada", "publish", {"version": "v000001"})
    audit.record(db, "bob", "rollback", {"why": "Grüße \ud800"})
    last, first = audit.entries(db)
    assert (last.person, last.detail) == ("bob", {"why": "Grüße \ufffd"})
    assert isinstance(first, AuditEntry)
    assert audit.entries(db, limit=1) == [last]


def test_one_can_ask_for_some_actions_only(db: Database) -> None:
    for action in ("publish", "export", "rollback"):
        audit.record(db, audit.TRAINER, action, {})
    assert [entry.action for entry in audit.entries(db, "publish", "rollback")] == ["rollback", "publish"]
    assert audit.entries(db, "forget") == []


def test_the_newest_row_of_an_action_is_found_below_others(db: Database) -> None:
    assert audit.newest(db) is None
    for number, action in enumerate(("export", "export", "publish")):
        audit.record(db, audit.COMMAND_LINE, action, {"number": number})
    exported, last = audit.newest(db, "export"), audit.newest(db)
    assert exported and last and (exported.detail["number"], last.detail["number"]) == (1, 2)
