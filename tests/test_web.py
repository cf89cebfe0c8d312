"""The plain routes: sign in and out, links, the account, health, and what one reads when something fails."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.testclient import TestClient

from chatbot import accounts, data_routes, signin
from chatbot.accounts import make_key, owner_of_key
from chatbot.config import ServeConfig
from chatbot.engine import Engine
from chatbot.metrics import Metrics
from chatbot.server import _Server
from chatbot.turns import Turns
from chatbot.web import Site, mount_api, open_site
from data import api_keys, audit, conversations, people, runs
from data.database import Database
from data.forgetting import NOBODY
from data.home import Home
from data.records import Person
from tests.site import built_app
from tests.stories import a_turn, rank

BASE = "http://127.0.0.1:7860"
PASSWORD = "a quiet night"
PAGE = {"accept": "text/html"}


@pytest.fixture
def site(db: Database, home: Home) -> Site:
    return Site(db, home, ServeConfig(public_url="https://night.example.org"), Metrics(db))


@pytest.fixture
def app(site: Site) -> FastAPI:
    """The application while the model still loads."""
    return open_site(site)


@pytest.fixture
def browser(app: FastAPI) -> TestClient:
    return TestClient(app, base_url=BASE, follow_redirects=False, client=("127.0.0.1", 1))


@pytest.fixture
def ada(db: Database) -> Person:
    return people.add(db, "Ada", password_hash=accounts.hash_password(PASSWORD))


def sign_in(browser: TestClient, **fields: str) -> None:
    answer = browser.post("/login", data={"name": "Ada", "password": PASSWORD, **fields})
    assert answer.status_code == 303, answer.text


# Signing in


def test_the_sign_in_page_says_what_becomes_of_ones_words(browser: TestClient) -> None:
    answer = browser.get("/login")
    assert "may be used to train this assistant" in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert browser.get("/account.css").headers["content-type"].startswith("text/css")
    assert browser.get("/favicon.ico").headers["content-type"] == "image/svg+xml"


def test_before_there_is_an_operator_the_sign_in_page_leads_to_the_printed_link(
    browser: TestClient, db: Database
) -> None:
    tried = browser.post("/login", data={"name": "Ada", "password": PASSWORD})
    for text in (browser.get("/login").text, tried.text):
        assert "Open the link that the terminal printed." in text and "restart the server" in text
        assert "An operator makes one" not in text
    people.add(db, "olga", "operator")
    text = browser.get("/login").text
    assert "An operator makes one" in text and "terminal" not in text


def test_the_cookie_of_a_session_is_out_of_reach(browser: TestClient, ada: Person) -> None:
    answer = browser.post("/login", data={"name": "Ada", "password": PASSWORD})
    cookie = next(one for one in answer.headers.get_list("set-cookie") if one.startswith(accounts.COOKIE))
    assert all(part in cookie for part in ("HttpOnly", "SameSite=lax", "Max-Age=2592000", "Path=/"))
    assert "Secure" not in cookie


def test_the_cookie_is_secure_on_https(app: FastAPI, ada: Person) -> None:
    browser = TestClient(app, base_url="https://night.example.org", follow_redirects=False)
    answer = browser.post("/login", data={"name": "Ada", "password": PASSWORD})
    assert "Secure" in answer.headers["set-cookie"]
    assert "max-age" in answer.headers["strict-transport-security"]


@pytest.mark.parametrize("end", ["", "/"])
def test_the_cookie_is_secure_behind_a_proxy_that_ends_https(
    db: Database, home: Home, ada: Person, end: str
) -> None:
    config = ServeConfig(public_url=f"https://night.example.org{end}")
    app = open_site(Site(db, home, config, Metrics(db)))
    browser = TestClient(app, base_url="http://night.example.org", follow_redirects=False)
    answer = browser.post("/login", data={"name": "Ada", "password": PASSWORD})
    assert all("Secure" in cookie for cookie in answer.headers.get_list("set-cookie"))


def test_the_page_can_read_who_signed_in(browser: TestClient, ada: Person) -> None:
    answer = browser.post("/login", data={"name": "Ada", "password": PASSWORD})
    cookie = next(
        one for one in answer.headers.get_list("set-cookie") if one.startswith(signin.PERSON_COOKIE)
    )
    assert f"={ada.id};" in cookie and "HttpOnly" not in cookie


def test_a_wrong_password_keeps_the_name_and_says_so(browser: TestClient, ada: Person) -> None:
    answer = browser.post("/login", data={"name": '"><b>Ada', "password": "wrong"})
    assert answer.status_code == 401
    assert "Name or password is wrong" in answer.text
    assert 'value="&quot;&gt;&lt;b&gt;Ada"' in answer.text


def test_after_ten_wrong_passwords_one_waits(browser: TestClient, ada: Person) -> None:
    codes = [
        browser.post("/login", data={"name": f"guess{i}", "password": "wrong"}).status_code for i in range(11)
    ]
    assert codes == [401] * 10 + [429]
    answer = browser.post("/login", data={"name": "Ada", "password": PASSWORD})
    assert (answer.status_code, 0 < int(answer.headers["retry-after"]) <= 60) == (429, True)


def test_sign_in_returns_to_the_page_that_was_asked_for(browser: TestClient, ada: Person) -> None:
    answer = browser.post("/login", data={"name": "Ada", "password": PASSWORD, "next": "/account/?done=x"})
    assert answer.headers["location"] == "/account/?done=x"


@pytest.mark.parametrize(
    "path",
    [
        "https://evil.example",
        "//evil.example",
        "//[",
        "/\\evil.example",
        "/login",
        "evil",
        "",
        "/\nx",
        "/\t/evil.example",
    ],
)
def test_sign_in_never_leads_to_another_site(path: str) -> None:
    assert signin.own_path(path) == "/"


def test_an_incomplete_form_is_a_sentence(browser: TestClient) -> None:
    assert browser.post("/login", data={"name": "Ada"}).status_code == 422
    assert "not complete" in browser.post("/login", data={"name": "Ada"}, headers=PAGE).text


# Links


def test_the_first_operator_comes_in_by_the_printed_link(browser: TestClient, db: Database) -> None:
    link = accounts.make_operator_link(db)
    assert "Make the first account" in browser.get(f"/login?link={link}").text
    answer = browser.post("/login", data={"link": str(link), "name": "Grace", "password": PASSWORD})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "Signed in as operator" in browser.get("/account/").text
    assert "used or has expired" in browser.get(f"/login?link={link}").text


def test_a_short_password_shows_the_form_of_the_link_again(browser: TestClient, db: Database) -> None:
    link = accounts.make_operator_link(db)
    answer = browser.post("/login", data={"link": str(link), "name": "Grace", "password": "short"})
    assert answer.status_code == 400
    assert "Make the first account" in answer.text and "8 to 1024" in answer.text


def test_a_person_sets_a_password_by_link_and_is_in(browser: TestClient, db: Database, ada: Person) -> None:
    link = accounts.make_password_link(db, ada)
    assert "Hello, Ada" in browser.get(f"/set-password?link={link}").text
    assert browser.post("/set-password", data={"link": link, "password": "new night"}).status_code == 303
    assert "Signed in as user" in browser.get("/account/").text
    again = browser.post("/set-password", data={"link": link, "password": "new night"})
    assert (again.status_code, "used or has expired" in again.text) == (400, True)


def test_guessing_links_is_throttled(browser: TestClient) -> None:
    codes = [
        browser.post("/set-password", data={"link": str(i), "password": PASSWORD}).status_code
        for i in range(11)
    ]
    assert codes == [400] * 10 + [429]


# The account


def test_signing_out_ends_the_session(browser: TestClient, ada: Person) -> None:
    sign_in(browser)
    assert browser.get("/account/").status_code == 200
    assert browser.post("/logout").headers["location"] == "/login"
    assert browser.get("/account/").status_code == 401


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_who_is_signed_out_already_may_sign_out_again(browser: TestClient, method: str) -> None:
    answer = browser.request(method, "/logout", headers=PAGE)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


def test_a_form_that_is_refused_is_answered_with_a_page(browser: TestClient, ada: Person) -> None:
    sign_in(browser)
    gone = browser.post("/account/keys/gone/revoke", headers=PAGE)
    empty = browser.post("/account/password", headers=PAGE)
    assert [(answer.status_code, "<h1>" in answer.text) for answer in (gone, empty)] == [
        (404, True),
        (422, True),
    ]
    assert browser.post("/account/keys/gone/revoke").json()["error"]


def test_a_link_on_another_site_signs_nobody_out(browser: TestClient, ada: Person) -> None:
    sign_in(browser)
    browser.get("/logout", headers={"sec-fetch-site": "cross-site"})
    assert browser.get("/account/").status_code == 200


def test_signing_out_everywhere_ends_other_devices_too(
    app: FastAPI, browser: TestClient, ada: Person
) -> None:
    other = TestClient(app, base_url=BASE, follow_redirects=False)
    sign_in(browser)
    sign_in(other)
    browser.post("/account/sign-out-everywhere")
    assert other.get("/account/").status_code == 401


def test_signing_out_everywhere_shuts_out_programs_too(
    browser: TestClient, db: Database, ada: Person
) -> None:
    mine, hers = make_key(db, ada)[0], make_key(db, people.add(db, "Eve"))[0]
    sign_in(browser)
    assert "revokes your API keys" in browser.get("/account/").text
    browser.post("/account/sign-out-everywhere")
    assert owner_of_key(db, mine) is None and owner_of_key(db, hers)
    assert audit.entries(db)[0].action == "revoke api key"


def test_changing_the_password_keeps_this_device_in(browser: TestClient, ada: Person) -> None:
    sign_in(browser)
    wrong = browser.post("/account/password", data={"old": "guess", "new": "another night"})
    assert wrong.status_code == 401
    right = browser.post("/account/password", data={"old": PASSWORD, "new": "another night"})
    assert "is changed" in browser.get(right.headers["location"]).text


def test_a_stolen_cookie_does_not_let_anybody_guess_the_password(
    app: FastAPI, browser: TestClient, ada: Person
) -> None:
    sign_in(browser)
    guesses = [{"old": f"guess {i}", "new": "another night"} for i in range(11)]
    codes = [browser.post("/account/password", data=guess).status_code for guess in guesses]
    assert codes == [401] * 10 + [429]
    elsewhere = TestClient(app, base_url=BASE, cookies=browser.cookies, client=("192.0.2.7", 1))
    answer = elsewhere.post("/account/password", data={"old": PASSWORD, "new": "another night"})
    assert "is changed" in answer.text, "the owner is not kept from a new password"


def test_changing_the_password_leaves_programs_in(browser: TestClient, db: Database, ada: Person) -> None:
    key, _ = make_key(db, ada)
    sign_in(browser)
    right = browser.post("/account/password", data={"old": PASSWORD, "new": "another night"})
    assert "Your API keys go on working." in browser.get(right.headers["location"]).text
    assert owner_of_key(db, key)


def test_an_export_has_all_of_ones_own_and_nothing_of_others(
    browser: TestClient, db: Database, ada: Person
) -> None:
    eve = people.add(db, "Eve")
    mine = a_turn(db, ada, question="My question")
    rank(db, ada, mine, [1, 2, 3])
    rank(db, eve, mine, [3, 2, 1])
    a_turn(db, eve, question="Her secret")
    api_keys.add(db, ada, "0" * 64, "ns-abc", "my script")
    api_keys.add(db, eve, "1" * 64, "ns-def", "hers")
    sign_in(browser)
    answer = browser.get("/account/export")
    data = json.loads(answer.text)
    assert [key["label"] for key in data["api_keys"]] == ["my script"] and "0" * 64 not in answer.text
    assert "attachment" in answer.headers["content-disposition"]
    assert (len(data["conversations"]), "Her secret" in answer.text) == (1, False)
    assert [row["person_id"] for row in data["conversations"][0]["rankings"]] == [ada.id]
    assert len(data["conversations"][0]["messages"]) == 4


def test_an_export_outlasts_a_chat_that_is_deleted_meanwhile(db: Database, ada: Person) -> None:
    a_turn(db, ada, question="Kept")
    gone = a_turn(db, ada, question="Deleted")[0].conversation_id
    found = conversations.list_for(db, ada.id)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(data_routes.conversations, "list_for", lambda *_, **__: found)
        conversations.delete(db, gone)
        data = json.loads("".join(data_routes.own_data(db, ada)))
    assert [chat["title"] for chat in data["conversations"]] == ["Kept"]


def test_somebody_who_wants_to_be_forgotten_types_the_password(
    browser: TestClient, db: Database, ada: Person
) -> None:
    eve = people.add(db, "Eve")
    rank(db, ada, a_turn(db, ada, question="My question"), [1, 2, 3])
    a_turn(db, eve, question="Hers")
    sign_in(browser)
    answer = browser.post("/account/delete", data={"password": "not this one"})
    assert answer.status_code == 401 and "present password is wrong" in answer.text
    assert people.by_name(db, "Ada") is not None
    answer = browser.post("/account/delete", data={"password": PASSWORD})
    assert answer.status_code == 200 and "Chats deleted: 1. Rankings deleted: 1." in answer.text
    assert people.by_name(db, "Ada") is None
    assert browser.get("/account/").status_code == 401
    assert [chat.title for chat in conversations.list_for(db, eve.id)] == ["Hers"]
    told = db.query("SELECT person, action FROM audit WHERE action = 'forget'")
    assert [tuple(row) for row in told] == [(NOBODY, "forget")]


def test_the_only_operator_and_what_a_night_reads_stay(
    browser: TestClient, db: Database, ada: Person
) -> None:
    people.set_role(db, ada.id, "operator")
    never_came = people.add(db, "Eve", role="operator")
    sign_in(browser)
    answer = browser.post("/account/delete", data={"password": PASSWORD})
    assert answer.status_code == 400 and "Without Ada there is no operator" in answer.text
    people.set_password(db, never_came.id, "hash")
    run = runs.claim(db, "tonight", config={})
    assert run is not None
    answer = browser.post("/account/delete", data={"password": PASSWORD})
    assert answer.status_code == 503 and "A refresh is running" in answer.text
    assert int(answer.headers["retry-after"]) > 0
    runs.finish(db, run, state="cancelled", reason="Cancelled.")
    assert browser.post("/account/delete", data={"password": PASSWORD}).status_code == 200


def test_operators_take_what_may_teach_in_the_formats_of_other_trainers(
    browser: TestClient, db: Database, ada: Person
) -> None:
    rank(db, ada, a_turn(db, ada, question="Café?"), [1, 2, 3])
    sign_in(browser)
    assert browser.get("/operate/export/preference").status_code == 403
    people.set_role(db, ada.id, "operator")
    answer = browser.get("/operate/export/preference")
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert [row["prompt"][0]["content"] for row in rows] == ["Café?"] * 3
    assert 'filename="night-school-preference.jsonl"' in answer.headers["content-disposition"]
    told = db.query("SELECT person, detail FROM audit WHERE action = 'export'")
    assert [tuple(row) for row in told] == [("Ada", '{"format":"preference"}')]
    answer = browser.get("/operate/export/excel", headers=PAGE)
    assert answer.status_code == 403 and "There is no format" in answer.text


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
        (None, ""),
    ],
)
def test_the_addresses_of_one_line_are_counted_as_one(host: str | None, counted: str) -> None:
    request = Request({"type": "http", "client": (host, 1) if host else None})
    assert signin.address_of(request) == counted


# Health, and failing


def test_while_the_model_loads_the_server_is_well_but_not_ready(browser: TestClient, ada: Person) -> None:
    assert browser.get("/healthz").json() == {"status": "ok"}
    answer = browser.get("/readyz")
    assert (answer.status_code, answer.json()["model"], answer.json()["database"]) == (503, False, True)
    sign_in(browser)
    page = browser.get("/", headers=PAGE)
    assert (page.status_code, "Waking up" in page.text) == (503, True)
    assert browser.get("/gradio_api/queue/data").json() == {
        "error": "The model is loading - try again in a moment."
    }


def test_the_containers_health_check_asks_no_proxy() -> None:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    text = (Path(__file__).parent.parent / "Dockerfile").read_text()
    [check] = re.findall(r"HEALTHCHECK .*\\\n +CMD (\[.*\])", text)
    environment = os.environ | dict.fromkeys(("http_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever).start()
        python, *rest = json.loads(check.replace("7860", str(server.server_port)))
        asked = subprocess.run(
            [sys.executable, *rest], env=environment | {"no_proxy": "", "NO_PROXY": ""}, capture_output=True
        )
        server.shutdown()
    assert (python, asked.returncode) == ("python", 0), asked.stderr


def test_a_draining_or_closed_server_is_not_ready(site: Site, browser: TestClient) -> None:
    site.is_draining = True
    assert browser.get("/readyz").json()["staying"] is False


def test_a_database_that_cannot_be_read_is_a_sentence_until_it_can(
    browser: TestClient, db: Database, home: Home, ada: Person
) -> None:
    sign_in(browser)
    key, _ = make_key(db, ada)
    db.vacuum()  # all of it is in the file, nothing in the log
    whole = home.database.read_bytes()
    home.database.write_bytes(b"no database" + whole[11:])
    page = browser.get("/account/", headers=PAGE)
    assert (page.status_code, "is no database" in page.text) == (503, True)
    api = browser.get("/v1/models", headers={"authorization": f"Bearer {key}"})
    assert (api.status_code, "is no database" in api.json()["error"]["message"]) == (503, True)
    assert browser.get("/healthz").json() == {"status": "ok"}
    home.database.write_bytes(whole)
    assert browser.get("/account/", headers=PAGE).status_code == 200


def test_signing_in_while_the_database_is_locked_is_no_wrong_password(
    browser: TestClient, home: Home, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.database.BUSY_SECONDS", 0.1)
    other = Database(home.database)
    with other.write():
        answer = browser.post("/login", data={"name": "Ada", "password": PASSWORD})
    other.close()
    assert (answer.status_code, "Another process" in answer.text) == (503, True)
    sign_in(browser)


def test_what_nobody_thought_of_is_logged_and_answered_in_the_shape_that_was_asked_for(
    app: FastAPI,
    site: Site,
    engine: Engine,
    ada: Person,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mount_api(app, Turns(site.db, engine))
    browser = TestClient(app, base_url=BASE, client=("127.0.0.1", 1), raise_server_exceptions=False)
    for broken in ("chatbot.metrics.Metrics.text", "chatbot.openai_api.models_of"):
        monkeypatch.setattr(broken, lambda *given: 1 / 0)
    page, data = browser.get("/metrics", headers=PAGE), browser.get("/metrics")
    key = {"authorization": f"Bearer {make_key(site.db, ada)[0]}"}
    program = browser.get("/v1/models", headers=key | PAGE)
    said = "Something broke here - try again, or tell the operator, whose log has it."
    assert "Something broke here" in page.text and page.headers["content-type"].startswith("text/html")
    assert data.json() == {"error": said}
    assert program.json()["error"] == {"message": said, "type": "server_error", "param": None, "code": None}
    for answer in (page, data, program):
        assert (answer.status_code, answer.headers["x-frame-options"]) == (500, "DENY")
    logged = [(one.name, one.getMessage(), bool(one.exc_info)) for one in caplog.records]
    paths = ("/metrics", "/metrics", "/v1/models")
    assert logged == [("chatbot.web", f"GET {path!r} failed.", True) for path in paths]


def test_who_hangs_up_before_all_is_sent_is_no_error(
    app: FastAPI, site: Site, engine: Engine, ada: Person, caplog: pytest.LogCaptureFixture
) -> None:
    mount_api(app, Turns(site.db, engine))
    key, _ = make_key(site.db, ada)
    scope = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:7860"), (b"authorization", f"Bearer {key}".encode())],
    }
    sent = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return sent.pop(0)

    async def send(message: Any) -> None:
        pass

    with pytest.raises(ClientDisconnect):
        asyncio.run(app(scope, receive, send))
    assert not sent and not caplog.records


def test_with_a_model_the_server_is_ready_and_the_pages_open(
    db: Database, engine: Engine, home: Home, ada: Person
) -> None:
    app = built_app(db, Turns(db, engine), home)
    with TestClient(app, base_url=BASE, follow_redirects=False, client=("127.0.0.1", 1)) as browser:
        assert browser.get("/readyz").json()["ready"] is True
        assert browser.get("/", headers=PAGE).headers["location"] == "/login?next=/"
        sign_in(browser)
        assert "gradio" in browser.get("/", headers=PAGE).text
        assert browser.get("/operate").status_code == 403
        assert "nightschool_requests_running 0.0" in browser.get("/metrics").text
        assert browser.get("/no-such-page", headers=PAGE).status_code == 404


def test_another_site_gets_no_leave_to_read(browser: TestClient, ada: Person) -> None:
    sign_in(browser)
    answer = browser.get("/account/export", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("proxies, status", [("127.0.0.1", 429), ("172.16.0.0/12", 400)])
def test_people_behind_a_named_proxy_are_told_apart(
    db: Database, home: Home, proxies: str, status: int
) -> None:
    """Where nobody may say who calls, a stranger's guesses lock out everybody."""
    site = Site(db, home, ServeConfig(proxies=proxies), Metrics(db))
    server = _Server(site, open_site(site))
    server.config.load()
    browser = TestClient(cast(Any, server.config.loaded_app), base_url=BASE, client=("172.18.0.3", 50000))

    def guess(caller: str) -> int:
        form = {"link": "none", "password": PASSWORD}
        return browser.post("/set-password", data=form, headers={"x-forwarded-for": caller}).status_code

    assert [guess("192.0.2.1") for _ in range(11)] == [400] * 10 + [429]
    assert guess("192.0.2.2") == status
