"""API keys for people: made once, known by a hash, and looked after on a page or in the terminal."""

import json
import re
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from chatbot import accounts
from chatbot.__main__ import main
from chatbot.accounts import make_key, owner_of_key
from chatbot.config import ServeConfig
from chatbot.metrics import Metrics
from chatbot.web import Site, open_site
from data import api_keys, audit, people
from data.database import Database
from data.home import Home
from data.records import Person
from tests.stories import somebody


@pytest.fixture
def ada(db: Database) -> Person:
    return somebody(db, "ada")


@pytest.fixture
def browser(db: Database, home: Home, ada: Person) -> Iterator[TestClient]:
    """Of ada, signed in."""
    app = open_site(Site(db, home, ServeConfig(public_url="https://night.example.org"), Metrics(db)))
    cookies = {accounts.COOKIE: accounts.open_session(db, ada)}
    yield TestClient(app, base_url="http://127.0.0.1:7860", cookies=cookies, follow_redirects=False)


def test_whoever_carries_a_key_is_its_person(db: Database, ada: Person) -> None:
    secret, key = make_key(db, ada, "My editor")
    assert re.fullmatch(r"ns-[\w-]{43}", secret)
    assert owner_of_key(db, secret) == (key, ada)


@pytest.mark.parametrize("key", [None, "", "ns-", "ns-made-up", "\udc80", "é", "x" * 100_000])
def test_a_made_up_key_is_nobody(db: Database, ada: Person, key: str | None) -> None:
    make_key(db, ada)
    assert owner_of_key(db, key) is None


def test_the_database_holds_no_key(db: Database, ada: Person) -> None:
    secret, _ = make_key(db, ada)
    stored = db.path.read_bytes() + db.path.with_name(db.path.name + "-wal").read_bytes()
    assert secret.encode() not in stored and secret[:8].encode() in stored


# The page


def test_a_new_key_is_shown_once(browser: TestClient, db: Database) -> None:
    answer = browser.post("/account/keys", data={"label": "<b>My editor"})
    (secret,) = re.findall(r'value="(ns-[\w-]{43})"', answer.text)
    assert (answer.headers["cache-control"], "&lt;b&gt;My editor" in answer.text) == ("no-store", True)
    assert owner_of_key(db, secret)
    again = browser.get("/account/keys").text
    assert secret not in again and secret[:8] in again and "never used" in again
    assert 'value="https://night.example.org/v1"' in again


def test_a_person_revokes_a_key_of_theirs(browser: TestClient, db: Database, ada: Person) -> None:
    secret, key = make_key(db, ada)
    assert f"/account/keys/{key.id}/revoke" in browser.get("/account/keys").text
    assert browser.post(f"/account/keys/{key.id}/revoke").headers["location"] == "/account/keys"
    assert owner_of_key(db, secret) is None
    page = browser.get("/account/keys").text
    assert "revoked" in page and f"/account/keys/{key.id}/revoke" not in page


def test_nobody_sees_or_revokes_the_key_of_another(browser: TestClient, db: Database) -> None:
    secret, key = make_key(db, somebody(db, "eve"), "Her secret project")
    assert "Her secret project" not in browser.get("/account/keys").text
    assert browser.post(f"/account/keys/{key.id}/revoke").status_code == 404
    assert browser.post("/account/keys/no-such-key/revoke").status_code == 404
    assert owner_of_key(db, secret)


def test_a_label_that_is_none_is_a_sentence_on_the_page(browser: TestClient, db: Database) -> None:
    answer = browser.post("/account/keys", data={"label": "x" * 65})
    assert (answer.status_code, "cannot be used" in answer.text) == (400, True)
    assert browser.post("/account/keys", data={"label": "x" * 5000}).status_code == 422


def test_the_account_leads_to_its_keys(browser: TestClient) -> None:
    assert 'href="/account/keys"' in browser.get("/account/").text


# The terminal


def test_a_key_is_made_listed_and_revoked_in_the_terminal(
    db: Database, ada: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["key", "add", "Ada", "--label", "My editor"]) == 0
    (secret,) = re.findall(r"ns-[\w-]{43}", capsys.readouterr().out)
    found = owner_of_key(db, secret)
    assert found
    assert main(["key", "list"]) == 0
    out = capsys.readouterr().out
    assert all(part in out for part in (found[0].id, "ada", "My editor", "never")) and secret not in out
    assert main(["key", "revoke", found[0].id]) == 0
    assert "of ada opens nothing any more" in capsys.readouterr().out
    assert owner_of_key(db, secret) is None


def test_the_terminal_speaks_json(db: Database, ada: Person, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["key", "add", "ada", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert owner_of_key(db, made["key"])
    assert main(["key", "revoke", made["id"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["revoked_at"]
    assert main(["key", "list", "ada", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert "key" not in listed and "key_hash" not in listed


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["key", "add", "nobody"], "Nobody is called 'nobody'"),
        (["key", "add", "robot"], "is a simulated rater"),
        (["key", "revoke", "x"], "No API key has the id 'x'"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    db: Database, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    people.add(db, "robot", kind="simulated")
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


def test_an_empty_house_says_how_to_make_a_key(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "list"]) == 0
    assert "chatbot key add NAME" in capsys.readouterr().out


def test_what_is_done_with_keys_stands_in_the_audit_log(db: Database, ada: Person) -> None:
    _, key = make_key(db, ada, "words of hers")
    api_keys.revoke(db, key, "command line")
    assert [(e.person, e.action, e.detail) for e in audit.entries(db)] == [
        ("command line", "revoke api key", {"key": key.id}),
        ("ada", "make api key", {"key": key.id}),
    ]
