"""schema.py: every migration from blank, from each former schema, and what the tables refuse."""

from pathlib import Path

import pytest
import sqlite_utils

from data import people
from data.backups import backup_files
from data.database import Database, connect, open_database
from data.home import Home
from data.schema import MIGRATIONS, prepare
from tests.stories import somebody

EXPECTED: dict[str, set[str]] = {
    "m001_people": {"people", "sessions", "sign_in_links", "audit"},
    "m002_conversations": {"conversations", "messages"},
    "m003_rankings": {"rankings", "placements"},
    "m004_runs": {"runs", "run_rankings", "metrics"},
    "m005_versions": {"versions", "serving", "schedule"},
    "m006_reference": set(),
    "m007_api_keys": {"api_keys"},
    "m008_lessons": {"run_lessons"},
}


def own_tables(tables: sqlite_utils.Database) -> set[str]:
    return {name for name in tables.table_names() if not name.startswith(("_", "sqlite_"))}


@pytest.fixture
def blank(tmp_path: Path) -> sqlite_utils.Database:
    return sqlite_utils.Database(connect(tmp_path / "blank.db"), execute_plugins=False)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_migration_from_blank_adds_its_tables(blank: sqlite_utils.Database, name: str) -> None:
    names = list(EXPECTED)
    before = set().union(*(EXPECTED[earlier] for earlier in names[: names.index(name)]))
    MIGRATIONS.apply(blank, stop_before=name)
    assert own_tables(blank) == before
    MIGRATIONS.apply(blank, stop_before=names[names.index(name) + 1 :])
    assert own_tables(blank) == before | EXPECTED[name]
    blank.conn.close()


@pytest.mark.parametrize("name", EXPECTED)
def test_every_former_schema_reaches_the_present_one(blank: sqlite_utils.Database, name: str) -> None:
    MIGRATIONS.apply(blank, stop_before=name)
    prepare(blank)
    assert own_tables(blank) == set().union(*EXPECTED.values())
    assert [entry.name for entry in MIGRATIONS.applied(blank)] == list(EXPECTED)
    blank.conn.close()


def test_a_serving_row_from_before_the_reference_keeps_what_it_says(blank: sqlite_utils.Database) -> None:
    MIGRATIONS.apply(blank, stop_before="m006_reference")
    blank.execute("UPDATE serving SET current = 'v000007', previous = 'base', reason = 'It won.'")
    prepare(blank)
    (row,) = blank.query("SELECT current, previous, reason, reference FROM serving")
    assert tuple(row.values()) == ("v000007", "base", "It won.", None)
    blank.conn.close()


def test_every_table_is_strict(db: Database) -> None:
    rows = db.query("SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND type = 'table'")
    loose = {
        row["name"] for row in rows if not row["strict"] and not row["name"].startswith(("_", "sqlite_"))
    }
    assert loose == set()


def test_a_migration_of_a_filled_database_is_preceded_by_a_backup(home: Home) -> None:
    tables = sqlite_utils.Database(connect(home.database), execute_plugins=False)
    MIGRATIONS.apply(tables, stop_before="m002_conversations")
    tables.execute("INSERT INTO people VALUES ('1', 'ada', 'user', 'human', NULL, 0, 0)")
    tables.conn.close()
    db = open_database(home)
    assert people.by_name(db, "ada")
    db.close()
    (made,) = backup_files(home)
    assert made.stem.endswith("-before-migration")
    copy = Database(made)
    assert people.count(copy) == 1
    copy.close()


def test_opening_again_migrates_nothing_and_makes_no_backup(db: Database, home: Home) -> None:
    open_database(home).close()
    assert backup_files(home) == []


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO people VALUES ('1', 'eve', 'king', 'human', NULL, 0, 0)",
        "INSERT INTO people VALUES ('1', 'eve', 'user', 'human', NULL, 'no', 0)",
        "INSERT INTO conversations VALUES ('1', 'nobody', 'title', 1, 0, 0)",
        "INSERT INTO serving (id, current, reason, changed_at) VALUES (2, 'base', '', 0)",
        "INSERT INTO audit (at, person, action, detail) VALUES (0, '', '', 'no json')",
        "INSERT INTO sessions VALUES ('t', 'nobody', 0, 0)",
        "UPDATE serving SET reference = 'v000099'",
        "INSERT INTO api_keys VALUES ('1', 'nobody', hex(zeroblob(32)), 'ns-', '', 0, NULL, NULL)",
    ],
)
def test_the_tables_refuse_what_makes_no_sense(db: Database, statement: str) -> None:
    somebody(db)
    with pytest.raises(Exception, match=r"constraint failed|cannot store"), db.write() as conn:
        conn.execute(statement)
