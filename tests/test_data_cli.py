"""python -m data: each command's answer, its JSON, its sentences for mistakes; and forgetting a person."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data import conversations, people, rankings, runs, versions
from data.__main__ import main
from data.comparisons import take_snapshot, write_snapshot
from data.database import Database, open_database
from data.errors import Busy
from data.forgetting import forget
from data.home import Home
from data.records import Person
from tests.stories import a_turn, rank, somebody

CANARY = "canary-7f3a91"


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    """What the command prints with --json."""
    assert main([*arguments, "--json"]) == code
    out, err = capsys.readouterr()
    return json.loads(err if code else out)


def test_stats_count_what_there_is(db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    ada = somebody(db)
    replies = a_turn(db, ada)
    rank(db, ada, replies, [1, 2, 3])
    conversations.add_edit(db, replies[0].id, "better", ada.id)
    found = told(capsys, "stats")
    assert (found["people"], found["turns"], found["replies"], found["demonstrations"]) == (1, 1, 3, 1)
    assert (found["rankings"], found["new_rankings"], found["kinds"]) == (1, 1, {"full": 1})
    assert (found["serving"], found["versions"], found["newest_backup"]) == ("base", 0, None)


def test_stats_are_readable(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats"]) == 0
    out = capsys.readouterr().out
    assert "serving           base\n" in out
    assert "kinds             none\n" in out


def test_export_and_import_carry_rankings_over(
    db: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = somebody(db)
    rank(db, ada, a_turn(db, ada), [1, 2, 2])
    path = tmp_path / "out.jsonl"
    assert told(capsys, "export", str(path), "--format", "tiers")["rows"] == 1
    monkeypatch.setenv("NIGHTSCHOOL_HOME", str(tmp_path / "elsewhere"))
    assert told(capsys, "import", str(path), "--format", "tiers") == {"added": 1, "skipped": []}
    assert main(["import", str(path), "--format", "tiers"]) == 0
    assert capsys.readouterr().out == "Line 1 is left out: it is here already.\nAdded 0, left out 1.\n"


def test_an_export_to_the_terminal_is_rows_only(db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    ada = somebody(db)
    rank(db, ada, a_turn(db, ada), [1, 2, 2])
    assert main(["export", "-"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["chosen"][0]["content"] for line in out.splitlines()] == ["one", "one"]
    assert err == "Wrote 2 rows.\n"


def test_backup_and_restore_bring_a_day_back(
    db: Database, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    somebody(db)
    made = told(capsys, "backup")["backup"]
    people.add(db, "eve")
    assert "in use - stop the server" in told(capsys, "restore", code=2)["error"]
    db.close()
    assert told(capsys, "restore")["restored"] == made
    assert told(capsys, "stats")["people"] == 1


def test_a_backup_can_go_anywhere(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "copy.db"
    assert told(capsys, "backup", "--output", str(path))["bytes"] == path.stat().st_size
    assert (
        "no directory" in told(capsys, "backup", "--output", str(tmp_path / "no" / "x.db"), code=2)["error"]
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["import", "none.jsonl"], "There is no file 'none.jsonl' - check the path."),
        (["restore"], "There is no backup in"),
        (["restore", "none.db"], "There is no backup 'none.db'"),
        (["export", "/none/out.jsonl"], "'/none/out.jsonl' cannot be written (No such file or directory)"),
        (["forget", "nobody"], "There is nobody called 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_a_code(
    home: Home, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(sentence)


@pytest.mark.parametrize("command", ["stats", "export", "import", "backup", "restore", "forget"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "--json" in capsys.readouterr().out


def test_it_runs_as_a_module(home: Home) -> None:
    command = [sys.executable, "-W", "error", "-m", "data", "stats", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["people"] == 0


def test_a_home_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NIGHTSCHOOL_HOME", str(tmp_path / "file" / "var"))
    assert "cannot be written" in told(capsys, "stats", code=2)["error"]


def a_person_who_taught(db: Database, home: Home) -> Person:
    """A person whose rankings a published version learned from."""
    person = somebody(db, CANARY)
    replies = a_turn(db, person, [f"{CANARY} reply", "other"], question=f"{CANARY} question")
    rank(db, person, replies, [1, 2])
    run = runs.claim(db, "tonight", config={})
    assert run is not None
    snapshot = take_snapshot(db)
    runs.set_snapshot(db, run.id, snapshot)
    (home.runs / run.id).mkdir()
    write_snapshot(snapshot, home.runs / run.id / "snapshot.jsonl")
    versions.add(
        db,
        name="v000001",
        parent="base",
        base_model="tiny",
        base_sha256="",
        path="v000001",
        sha256="",
        status="accepted",
        report={},
        run_id=run.id,
        rankings=1,
    )
    versions.publish(db, "v000001", actor=CANARY, reason="It won.")
    people.record(db, "ada", "disable", {"who": [CANARY]})
    runs.finish(db, run.id, run.fencing_token, state="published", reason="It won.", version="v000001")
    return person


def test_a_forgotten_person_is_nowhere_in_the_files(
    db: Database, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    person = a_person_who_taught(db, home)
    eve = somebody(db, "eve")
    others = a_turn(db, eve)
    conversations.add_edit(db, others[0].id, f"{CANARY} edit", person.id)
    done = told(capsys, "forget", CANARY, "--yes")
    assert (done["conversations"], done["rankings"], done["versions"]) == (1, 1, ["v000001"])
    assert (done["backups"], done["is_wiped"], len(done["snapshots"])) == ([], True, 1)
    db.close()
    for path in home.root.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
            assert person.id.encode() not in path.read_bytes(), path


def test_a_forgotten_persons_versions_stay_known_after_the_rankings_are_gone(
    db: Database, home: Home
) -> None:
    person = a_person_who_taught(db, home)
    forget(db, home, person)
    (row,) = db.query("SELECT * FROM run_rankings")
    assert row["person_id"] is None
    assert versions.learned_from(db, [row["ranking_id"]]) == ["v000001"]
    assert take_snapshot(db).turns == ()


def test_rankings_that_compare_a_forgotten_persons_words_go_too(db: Database, home: Home) -> None:
    eve, person = somebody(db, "eve"), somebody(db, CANARY)
    replies = a_turn(db, eve)
    edit = conversations.add_edit(db, replies[0].id, "theirs", person.id)
    going_on = conversations.add_user_message(db, edit.conversation_id, edit.id, "Go on", eve.id)
    rank(db, eve, [*replies, edit], [2, 3, 4, 1])
    kept = rank(db, eve, a_turn(db, eve), [1, 2, 3])
    forget(db, home, person)
    assert [turn.ranking_id for turn in take_snapshot(db).turns] == [kept.id]
    assert [entry.content for entry in conversations.path_to(db, going_on.id)][1:] == ["(deleted)", "Go on"]
    assert rankings.count(db) == 1


def test_nobody_is_forgotten_while_a_refresh_runs_or_without_a_yes(
    db: Database, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    ada = somebody(db)
    assert "add --yes" in told(capsys, "forget", "ada", code=2)["error"]
    assert runs.claim(db, "tonight", config={}) is not None
    with pytest.raises(Busy, match="refresh is running"):
        forget(db, home, ada)
    assert people.by_name(db, "ada") == ada


def test_the_list_of_backups_that_still_hold_the_rows_is_told(db: Database, home: Home) -> None:
    ada = somebody(db)
    assert main(["backup"]) == 0
    assert len(forget(db, home, ada).backups) == 1
    open_database(home).close()
