"""python -m data: each command's answer, its JSON, its sentences for mistakes; and forgetting a person."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data import audit, conversations, lessons, messages, people, rankings, runs, versions
from data.__main__ import main
from data.comparisons import write_snapshot
from data.database import Database, open_database
from data.errors import Busy, Problem
from data.forgetting import forget, scrub
from data.home import Home
from data.records import Person, Run
from data.runfolder import LOG
from data.snapshots import taught_turns
from tests.stories import a_turn, frozen, rank, somebody

CANARY = "canary-7f3a91"


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    """What the command prints with --json."""
    assert main([*arguments, "--json"]) == code
    out, err = capsys.readouterr()
    return json.loads(err if "-" in arguments else out)


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
    path.touch(0o644)
    assert told(capsys, "export", str(path), "--format", "tiers")["rows"] == 1
    assert path.stat().st_mode & 0o777 == 0o600  # their words are not for other accounts of the machine
    monkeypatch.setenv("NIGHTSCHOOL_HOME", str(tmp_path / "elsewhere"))
    assert told(capsys, "import", str(path), "--format", "tiers") == {"added": 1, "skipped": [], "known": 0}
    assert main(["import", str(path), "--format", "tiers"]) == 0
    assert capsys.readouterr().out == "Line 1 is left out: it is here already.\nAdded 0, left out 1.\n"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "could be imported, for it has none - give one JSON object a line, of the format 'tiers'"),
        ('{"prompt": 1}\n[]\n', "could be imported: Line 1 is left out: "),
    ],
)
def test_a_file_of_which_nothing_can_be_used_is_refused(
    db: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, why: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    assert main(["import", str(path), "--format", "tiers"]) == 2
    out, err = capsys.readouterr()
    assert why in err and "or name another --format." in err and not out


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
        (["export", "."], "'.' cannot be written (Is a directory) - choose another."),
        (["export", ""], "'.' cannot be written (Is a directory) - choose another."),
        (["export", "/dev/null/x"], "'/dev/null/x' cannot be written (Not a directory)"),
        (["backup", "--output", "/"], "'/' cannot be written (Is a directory) - choose another."),
        (["backup", "--output", "/proc/x.db"], "'/proc/x.db' cannot be written ("),
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
    monkeypatch.setenv("NIGHTSCHOOL_HOME", str(tmp_path / "file"))
    assert "cannot be written" in told(capsys, "stats", code=2)["error"]


@pytest.mark.parametrize("command", ["stats", "export -", "backup", "forget ada"])
def test_in_another_directory_there_is_nothing_to_read(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NIGHTSCHOOL_HOME", raising=False)
    assert "There is no Night School in" in told(capsys, *command.split(), code=2)["error"]
    assert list(tmp_path.iterdir()) == []


def test_an_import_and_a_restore_may_begin_a_home(
    db: Database,
    home: Home,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = told(capsys, "backup")["backup"]
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}')
    monkeypatch.delenv("NIGHTSCHOOL_HOME")
    for command in (["import", str(tmp_path / "rows.jsonl")], ["restore", made]):
        folder = tmp_path / command[0]
        folder.mkdir()
        monkeypatch.chdir(folder)
        told(capsys, *command)
        assert told(capsys, "stats")["people"] == 0 and (folder / "var" / "nightschool.db").is_file()


def a_version(db: Database, run: Run, report: dict[str, Any], name: str, parent: str = "base") -> None:
    """A version that this run made, the run being over."""
    versions.add(
        db,
        name=name,
        parent=parent,
        base_model="tiny",
        base_sha256="",
        path=name,
        sha256="",
        status="accepted",
        report=report,
        run_id=run.id,
        rankings=1,
    )
    runs.finish(db, run, state="published", reason="It won.", version=name)


def a_run(db: Database, home: Home, key: str, words: str) -> Run:
    """A run that wrote down these words wherever a night may, and logs."""
    run = runs.claim(db, key, config={})
    assert run is not None
    names = ("output.log", "report.json", "favourites.json", "ppo/update-4/state.json", "judge/head.json")
    for name in names:
        path = home.runs / run.id / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("Training." if name == "output.log" else words)
    return run


def a_person_who_taught(db: Database, home: Home) -> Person:
    """A person whose rankings a published version learned from."""
    person = somebody(db, CANARY)
    replies = a_turn(db, person, [f"{CANARY} reply", "other"], question=f"{CANARY} question")
    rank(db, person, replies, [1, 2])
    run = a_run(db, home, "tonight", f"{CANARY} by {person.id}")
    snapshot = frozen(db)
    runs.set_snapshot(db, run.id, snapshot)
    write_snapshot(snapshot.turns, home.runs / run.id / "snapshot.jsonl")
    shown = {"samples": {"4": [{"prompt": CANARY, "reply": CANARY}]}}
    report = {"ppo": shown, "reward": {"accuracy_by_person": {person.id: 1.0}}}
    a_version(db, run, report, "v000001")
    versions.publish(db, "v000001", actor=CANARY, reason=f"Published by hand by {CANARY}.")
    versions.set_reference(db, "v000001", actor=CANARY)
    audit.record(db, "ada", "disable", {"who": [CANARY]})
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
    assert versions.get(db, "v000001").report == {
        "ppo": {"samples": {}},
        "reward": {"accuracy_by_person": {}},
    }
    db.close()
    for path in home.root.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
            assert person.id.encode() not in path.read_bytes(), path


def test_a_deletion_leaves_no_word_and_rewrites_no_file_while_others_chat(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = a_person_who_taught(db, home)
    monkeypatch.setattr(Database, "vacuum", lambda db: pytest.fail("all writes would wait"))
    assert forget(db, home, person).is_wiped
    for path in filter(Path.is_file, home.root.rglob("*")):
        assert CANARY.encode() not in path.read_bytes(), path


def test_a_deletion_names_copies_that_were_never_finished(
    db: Database, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [home.backups / "20260101T000000Z-replaced.db-wal", home.backups / "20260101T000000Z.db.7.part"]
    for path in (*kept, home.root / "restored.part"):
        path.touch()
    named = forget(db, home, somebody(db, "ada")).backups
    assert set(named) == {*map(str, kept), str(home.root / "restored.part")}
    assert main(["forget", somebody(db, "ben").name, "--yes"]) == 0
    assert f"those in {home.backups} and {home.root / 'restored.part'} if" in capsys.readouterr().out


def test_the_file_is_rewritten_once_after_a_deletion(db: Database, home: Home) -> None:
    assert not scrub(db)
    a_turn(db, ada := somebody(db, "ada"), ["long" * 4000])
    forget(db, home, ada)
    before = home.database.stat().st_size
    assert scrub(db) and home.database.stat().st_size < before
    assert not scrub(db)


def test_the_file_is_rewritten_once_though_somebody_reads_and_again_for_who_goes_meanwhile(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, ben = somebody(db, "ada"), somebody(db, "ben")
    forget(db, home, ada)
    rewrite = Database.vacuum

    def refuse(self: Database) -> bool:
        raise Busy("Somebody keeps the log.")

    def vacuum(self: Database) -> None:
        with monkeypatch.context() as kept:
            kept.setattr(Database, "empty_log", refuse)
            rewrite(self)
        forget(db, home, ben)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "vacuum", vacuum)
        assert scrub(db)
    assert scrub(db)
    assert not scrub(db)


def test_the_file_is_rewritten_though_the_clock_was_ahead_at_the_last_deletion(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, ben = somebody(db, "ada"), somebody(db, "ben")
    with monkeypatch.context() as ahead:
        ahead.setattr("data.audit.time.time", lambda: 4e9)
        forget(db, home, ada)
        assert scrub(db)
    forget(db, home, ben)
    assert scrub(db) and not scrub(db)


def test_without_room_the_file_is_not_rewritten_and_the_command_says_so(
    db: Database, home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    somebody(db, "ada")
    monkeypatch.setattr("data.database.shutil.disk_usage", lambda folder: SimpleNamespace(free=10_000))
    assert main(["forget", "ada", "--yes"]) == 0
    assert "may still hold copies of rows (There is no room to rewrite" in capsys.readouterr().out
    assert people.by_name(db, "ada") is None


def test_what_was_deleted_is_told_even_where_the_disk_is_too_full_to_wipe_the_log(
    db: Database, home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a_person_who_taught(db, home)

    def full(self: Database) -> bool:
        raise Problem("The disk is full.")

    monkeypatch.setattr(Database, "empty_log", full)
    assert main(["forget", CANARY, "--yes"]) == 0
    said = capsys.readouterr().out
    assert "v000001 serves" in said and "log keeps old pages" in said


def test_somebody_with_a_chat_of_a_thousand_turns_can_be_forgotten(db: Database, home: Home) -> None:
    ann = somebody(db, "Ann")
    said = [{"role": role, "content": "Go on."} for role in ("user", "assistant")] * 600
    with db.write():
        conversations.add_history(db, conversations.create(db, ann.id), said)
    assert forget(db, home, ann).conversations == 1
    assert db.query("SELECT count(*) FROM messages")[0][0] == 0


def test_a_forgotten_name_goes_out_of_a_reason_and_not_out_of_other_words(db: Database, home: Home) -> None:
    a_version(db, a_run(db, home, "yesterday", "words"), {}, "v000001")
    versions.publish(db, "v000001", actor="eve", reason="Ann: published by Ann (Annual, v000001). 由Ann发布")
    forget(db, home, somebody(db, "Ann"))
    told = "a deleted person: published by a deleted person (Annual, v000001). 由a deleted person发布"
    assert versions.serving(db).reason == told
    assert versions.history(db)[0].detail["reason"] == told


def test_a_forgotten_persons_versions_stay_known_after_the_rankings_are_gone(
    db: Database, home: Home
) -> None:
    person = a_person_who_taught(db, home)
    forget(db, home, person)
    (row,) = db.query("SELECT * FROM run_rankings")
    assert row["person_id"] is None
    assert versions.learned_from(db, [row["ranking_id"]]) == ["v000001"]
    assert taught_turns(db) == []


def test_of_runs_that_may_have_read_a_forgotten_persons_words_only_the_log_stays(
    db: Database, home: Home
) -> None:
    eve = somebody(db, "eve")
    before = a_run(db, home, "yesterday", "older than the person")
    a_version(db, before, report := {"ppo": {"samples": {"1": ["eve"]}}}, "v000001")
    person = somebody(db, CANARY)
    a_turn(db, person, question=CANARY)  # ranked by nobody: practised on, at most
    rank(db, eve, a_turn(db, eve), [1, 2, 3])
    after = a_run(db, home, "tonight", CANARY)
    a_version(db, after, report, "v000002")
    (home.runs / "of-no-known-run").mkdir()
    (home.runs / "of-no-known-run" / "snapshot.jsonl").write_text(CANARY)
    done = forget(db, home, person)
    assert (sorted(done.runs), done.versions) == (sorted([after.id, "of-no-known-run"]), [])
    assert [path.name for path in (home.runs / after.id).iterdir()] == ["output.log"]
    assert len([path for path in (home.runs / before.id).rglob("*") if path.is_file()]) == 5
    assert [entry.report["ppo"]["samples"] for entry in versions.list_all(db)] == [{"1": ["eve"]}, {}]


def test_a_version_that_practised_on_what_a_forgotten_person_asked_is_named(
    db: Database, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    person = somebody(db, CANARY)
    turns = [a_turn(db, person, question=question) for question in ("One?", "Two?")]
    for name, turn in zip(("v000001", "v000002"), turns, strict=True):
        run = a_run(db, home, name, "words")
        lessons.note(db, run.id, [str(turn[0].parent_id)])
        a_version(db, run, {}, name)
    versions.publish(db, "v000002", actor="eve", reason="A test.")
    conversations.delete(db, turns[0][0].conversation_id)  # what is known of it is only whose it was
    assert main(["forget", CANARY, "--yes"]) == 0
    said = capsys.readouterr().out
    assert "learned from them: v000001, v000002." in said and "v000002 serves and keeps what" in said


def test_a_run_that_practised_on_their_words_is_emptied_whatever_the_clock_said(
    db: Database, home: Home
) -> None:
    person = somebody(db, CANARY)
    run = a_run(db, home, "tonight", CANARY)
    lessons.note(db, run.id, [str(a_turn(db, person, question=CANARY)[0].parent_id)])
    runs.finish(db, run, state="failed", reason="")
    with db.write() as conn:  # the clock was an hour ahead when they came
        conn.execute("UPDATE people SET created_at = created_at + 3600 WHERE id = ?", (person.id,))
    assert forget(db, home, somebody(db, CANARY)).runs == [run.id]


def test_a_run_that_was_open_when_the_person_came_is_emptied_too(db: Database, home: Home) -> None:
    run = a_run(db, home, "tonight", "words")
    person = somebody(db)
    runs.finish(db, run, state="failed", reason="")
    assert forget(db, home, person).runs == [run.id]


def test_a_reference_that_learned_from_a_forgotten_person_anchors_nothing_more(
    db: Database, home: Home
) -> None:
    assert forget(db, home, a_person_who_taught(db, home)).reference == "v000001"
    assert versions.serving(db).reference is None
    (said,) = [e for e in audit.entries(db) if (e.person, e.action) == ("command line", "set_reference")]
    assert (said.detail["before"], said.detail["version"]) == ("v000001", "base")


def test_a_reference_that_learned_nothing_from_them_stays(db: Database, home: Home) -> None:
    a_version(db, a_run(db, home, "yesterday", "words"), {}, "v000001")
    versions.set_reference(db, "v000001", actor="ada")
    assert forget(db, home, somebody(db)).reference is None
    assert versions.serving(db).reference == "v000001"


def test_forgetting_tells_what_serves_still_and_the_way_back(
    db: Database, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    a_person_who_taught(db, home)
    assert main(["forget", CANARY, "--yes"]) == 0
    out = capsys.readouterr().out
    assert "These versions learned from them: v000001.\nv000001 serves and keeps what it learned" in out
    assert 'run "trainer publish base" to go back to before.' in out
    assert "v000001 was the reference; that is the base model now.\nFolders of runs that may" in out
    assert "emptied but for the log: 1." in out


def test_what_no_longer_serves_teaches_nobody_and_that_is_told(
    db: Database, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    a_person_who_taught(db, home)
    versions.rollback(db, actor="ada")
    assert main(["forget", CANARY, "--yes"]) == 0
    assert "None of them serves, so the next refresh descends from none" in capsys.readouterr().out


def test_where_a_folder_cannot_be_emptied_nothing_is_forgotten_yet(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = a_person_who_taught(db, home)

    def broken(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("data.forgetting.shutil.rmtree", broken)
        with pytest.raises(Problem, match=r"cannot be emptied .* so nobody is forgotten yet"):
            forget(db, home, person)
    assert people.by_name(db, CANARY) == person
    assert forget(db, home, person).rankings == 1


def test_a_prune_in_the_same_folder_keeps_nobody_from_being_forgotten(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = a_person_who_taught(db, home)
    remove = shutil.rmtree

    def too_late(path: Path) -> None:
        remove(path)
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr("data.forgetting.shutil.rmtree", too_late)
    assert forget(db, home, person).rankings == 1
    assert not [path for path in home.runs.glob("*/*") if path.name != LOG]


def test_rankings_that_compare_a_forgotten_persons_words_go_too(db: Database, home: Home) -> None:
    eve, person = somebody(db, "eve"), somebody(db, CANARY)
    replies = a_turn(db, eve)
    edit = conversations.add_edit(db, replies[0].id, "theirs", person.id)
    going_on = conversations.add_user_message(db, edit.conversation_id, edit.id, "Go on", eve.id)
    rank(db, eve, [*replies, edit], [2, 3, 4, 1])
    kept = rank(db, eve, a_turn(db, eve), [1, 2, 3])
    forget(db, home, person)
    assert [turn.ranking_id for turn in taught_turns(db)] == [kept.id]
    assert [entry.content for entry in messages.path_to(db, going_on.id)][1:] == ["(deleted)", "Go on"]
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


def test_a_night_that_was_killed_keeps_nobody_from_being_forgotten(db: Database, home: Home) -> None:
    ada = somebody(db)
    run = runs.claim(db, "tonight", config={}, now=time.time() - 3600)
    assert run is not None and run.state == "running"
    forget(db, home, ada)
    assert people.by_name(db, "ada") is None and runs.get(db, run.id).state == "interrupted"


def test_the_list_of_backups_that_still_hold_the_rows_is_told(db: Database, home: Home) -> None:
    ada = somebody(db)
    assert main(["backup"]) == 0
    assert len(forget(db, home, ada).backups) == 1
    open_database(home).close()
