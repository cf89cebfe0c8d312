"""The `chatbot` command: people, the terminal chat, and how serving starts, fails and ends."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from chatbot import accounts, terminal
from chatbot.__main__ import main
from chatbot.accounts import make_key, owner_of_key
from chatbot.server import alone
from chatbot.throttle import Throttle
from data import audit, messages, people, rankings
from data.database import Database, open_database
from data.errors import Refused
from data.home import Home
from tests.waiting import until


def test_a_person_is_made_with_a_link_that_sets_the_password(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["person", "add", "Ada", "--role", "rater"]) == 0
    link = re.search(r"http://127\.0\.0\.1:7860/set-password\?link=(\S+)", capsys.readouterr().out)
    assert link
    assert accounts.use_password_link(db, link[1], "a quiet night").role == "rater"


def test_a_password_may_come_from_standard_input(
    home: Home, db: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a quiet night\n"))
    assert main(["person", "add", "Ada", "--password-stdin", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["name"], row["link"]) == ("Ada", None)
    assert accounts.sign_in(db, Throttle(), "Ada", "a quiet night", "")


def test_a_name_is_signed_in_with_in_any_case_beyond_ascii_too(
    home: Home, db: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a quiet night\n"))
    assert main(["person", "add", "Émile", "--password-stdin"]) == 0
    assert accounts.sign_in(db, Throttle(), "émile", "a quiet night", "")
    assert main(["person", "add", "ÉMILE"]) == 2
    assert "is taken" in capsys.readouterr().err


def test_a_disabled_person_is_listed_as_such_and_let_in_again_by_reset(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    people.add(db, "Ada")
    assert main(["person", "disable", "ada"]) == 0
    assert main(["person", "list"]) == 0
    assert "user, disabled" in capsys.readouterr().out
    assert main(["person", "reset", "ada"]) == 0
    person = people.by_name(db, "Ada")
    assert person and not person.is_disabled


def test_a_reset_ends_sessions_and_revokes_keys(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    ada = people.add(db, "Ada")
    token, (key, _) = accounts.open_session(db, ada), make_key(db, ada)
    assert main(["person", "reset", "Ada"]) == 0
    assert "signed out everywhere, and their API keys are revoked" in capsys.readouterr().out
    assert accounts.person_of(db, token) is None and owner_of_key(db, key) is None


def test_after_a_reset_neither_the_old_password_nor_an_older_link_opens_anything(
    home: Home, db: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a leaked night\n"))
    assert main(["person", "add", "Ada", "--password-stdin"]) == 0
    assert main(["person", "reset", "Ada"]) == 0
    with pytest.raises(accounts.WrongPassword):
        accounts.sign_in(db, Throttle(), "Ada", "a leaked night", "")
    assert main(["person", "reset", "Ada"]) == 0
    older, newer = re.findall(r"set-password\?link=(\S+)", capsys.readouterr().out)
    with pytest.raises(Refused, match="used or has expired"):
        accounts.use_password_link(db, older, "a stolen night")
    accounts.use_password_link(db, newer, "a quiet night")
    assert accounts.sign_in(db, Throttle(), "Ada", "a quiet night", "")


def test_a_role_is_changed_but_somebody_must_be_left_to_operate(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, role in (("Ada", "operator"), ("Eve", "user")):
        assert main(["person", "add", name, "--role", role]) == 0
    for command in (["role", "Ada", "user"], ["disable", "Ada"]):
        assert main(["person", *command]) == 2
        assert "Without Ada there is no operator with a password - make" in capsys.readouterr().err
    people.set_password(db, people.list_all(db)[1].id, "hash")
    assert main(["person", "role", "eve", "operator", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["role"] == "operator"
    assert main(["person", "role", "Ada", "rater"]) == 0
    assert capsys.readouterr().out == "Ada is rater from their next click on.\n"
    ada, said = people.by_name(db, "Ada"), audit.entries(db)[0]
    assert ada and ada.role == "rater"
    assert (said.action, said.detail) == (
        "person role",
        {"name": "Ada", "role": "rater", "before": "operator"},
    )


def test_an_empty_house_says_how_to_begin(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["person", "list"]) == 0
    assert "chatbot serve" in capsys.readouterr().out
    assert main(["person", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    "command",
    [
        *("person list", "person add Ada", "person role Ada user", "person disable Ada", "person reset Ada"),
        *("key list", "key add Ada", "key revoke 1"),
    ],
)
def test_in_another_directory_no_person_and_no_key_is_made(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It made an empty home there, and printed a link that the running server did not know."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NIGHTSCHOOL_HOME", raising=False)
    assert main(command.split()) == 2
    assert capsys.readouterr().err.startswith(f"There is no Night School in {str(tmp_path / 'var')!r} - run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["person", "disable", "nobody"], "Nobody is called 'nobody'"),
        (["person", "add", " "], "not a name"),
        (["serve", "--port", "70000"], "Port 70000 is out of range"),
        (["serve", "--replies", "10"], "from 1 to 9"),
        (["serve", "--public-url", "chat.example.org"], "like https://chat.example.org"),
        (["chat", "--as", "nobody"], "Nobody called 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_exit_code_2(
    home: Home, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["serve"],
        ["chat"],
        ["person"],
        ["person", "add"],
        ["person", "role"],
        ["person", "reset"],
        ["key"],
        ["key", "add"],
    ],
)
def test_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    assert len(capsys.readouterr().out) > 100


# The chat in the terminal


def test_an_order_is_read_as_it_is_shown() -> None:
    order = terminal.parse_order("b > a=C", ["x", "y", "z", "w"])
    assert order and order.kind == "full"
    assert rankings.order_text(order.placements) == "B > A = C"
    assert {entry.message_id: entry.place for entry in order.placements} == {"y": 1, "x": 2, "z": 2}


def test_one_letter_is_the_best_and_x_is_all_bad() -> None:
    best, bad = terminal.parse_order("B", ["x", "y"]), terminal.parse_order("x", ["x", "y"])
    assert best and bad
    assert (best.kind, [entry.place for entry in best.placements]) == ("best", [2, 1])
    assert (bad.kind, [entry.place for entry in bad.placements]) == ("all_bad", [1, 1])
    assert terminal.parse_order("  ", ["x", "y"]) is None


@pytest.mark.parametrize("text", ["A >", "> A", "A B", "A > D", "A > A", "A >> B", "7", "drop table"])
def test_what_is_no_order_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        terminal.parse_order(text, ["x", "y", "z"])


def test_a_turn_in_the_terminal_is_ranked_like_one_on_the_page(
    home: Home,
    tiny_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nnonsense\nB > A = C\n"))
    command = ["chat", "--model", str(tiny_directory), "--replies", "3", "--max-new-tokens", "4"]
    assert main(command) == 0
    assert "Saved: B > A = C, written by base." in capsys.readouterr().out
    db = open_database(home)
    person = people.by_name(db, "terminal")
    row = db.one("SELECT id FROM messages WHERE role = 'user'")
    assert person and row
    ranking = rankings.current(db, row["id"], person.id)
    assert ranking and [entry.place for entry in ranking.placements] == [2, 1, 2]
    shown = rankings.shown_order(
        row["id"], person.id, [reply.id for reply in messages.replies(db, row["id"])]
    )
    assert [entry.message_id for entry in ranking.placements] == shown
    db.close()


def test_the_terminal_chat_speaks_json(
    home: Home,
    tiny_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nAnd again\n"))
    assert main(["chat", "--model", str(tiny_directory), "--max-new-tokens", "4", "--json"]) == 0
    turns = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert len(turns) == 2
    assert turns[0]["conversation_id"] == turns[1]["conversation_id"]
    assert all(turn["version"] == "base" and turn["replies"][0]["tokens"] <= 4 for turn in turns)


# Serving

PATIENCE = 240
"""Seconds that a process may take: on a busy machine a minute goes by before one has imported torch."""


def serve(home: Home, model: Path, *flags: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "chatbot", "serve", "--model", str(model), *flags],
        env={**os.environ, "NIGHTSCHOOL_HOME": str(home.root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def children_of(server: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The children, once one of them is the watcher: a child just forked still has its parent's name."""
    children: list[psutil.Process] = []

    def has_watcher() -> bool:
        children[:] = psutil.Process(server.pid).children(recursive=True)
        with contextlib.suppress(psutil.NoSuchProcess):
            return any("watch" in child.cmdline() for child in children)
        return False

    until(has_watcher)
    return children


def test_a_port_in_use_is_a_sentence_before_anything_is_loaded(home: Home, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = serve(home, tmp_path / "no-such-model", "--port", str(port))
        output, _ = server.communicate(timeout=PATIENCE)
    assert server.returncode == 2
    assert (
        output == f"Port {port} is in use - stop the program that uses it, or choose another with --port.\n"
    )


def test_a_second_server_of_one_home_ends_with_a_sentence_before_it_touches_anything(
    home: Home, tmp_path: Path
) -> None:
    with alone(home):
        server = serve(home, tmp_path / "no-such-model", "--port", "0")
        output, _ = server.communicate(timeout=PATIENCE)
    assert (server.returncode, home.database.exists()) == (2, False)
    sentence = f"Another server uses {str(home.root)!r} - stop it, or set NIGHTSCHOOL_HOME to another"
    assert output == f"{sentence} directory.\n"


def test_a_model_that_is_not_there_ends_the_server_with_a_sentence(home: Home, tmp_path: Path) -> None:
    server = serve(home, tmp_path / "no-such-model", "--port", "0")
    output, _ = server.communicate(timeout=PATIENCE)
    assert server.returncode == 2
    assert "No directory" in output and "Traceback" not in output


def test_serving_starts_the_trainer_links_lead_to_it_and_sigterm_leaves_nothing_behind(
    home: Home, tiny_directory: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(home, tiny_directory, "--port", "0")
    request.addfinalizer(server.kill)
    assert server.stdout
    lines = [server.stdout.readline() for _ in range(3)]
    url = re.sub(r"Night School is at (\S+)\n", r"\1", lines[0])
    assert re.fullmatch(rf"  {url}/login\?link=\S+\n", lines[2])
    assert server.stdout.readline() == "Ready: version base answers.\n"
    with urllib.request.urlopen(f"{url}/readyz") as answer:
        assert json.load(answer)["ready"]
    assert main(["person", "add", "Ada"]) == 0
    assert f"{url}/set-password?link=" in capsys.readouterr().out
    children = children_of(server)
    server.send_signal(signal.SIGTERM)
    assert server.wait(PATIENCE) == 0
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    server.stdout.close()
