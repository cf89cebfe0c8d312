"""Who may reach what: every route and every Gradio event of the real application, for every role.

The routes are read from the application, so a new one is in the matrix the day it is written.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.routing import Mount
from starlette.testclient import TestClient

from chatbot import accounts
from chatbot.accounts import make_key
from chatbot.engine import Engine
from chatbot.guard import PUBLIC, is_used
from chatbot.openai_errors import is_api
from chatbot.turns import Turns
from data import people
from data.database import Database
from data.home import Home
from data.records import PersonRole
from tests.site import built_app

BASE = "http://127.0.0.1:7860"
ROLES: tuple[PersonRole | None, ...] = (None, "user", "rater", "operator")


@pytest.fixture
def app(db: Database, engine: Engine, home: Home, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    return built_app(db, Turns(db, engine), home)


def client(app: FastAPI, role: PersonRole | None) -> TestClient:
    """A browser of somebody with this role, from another machine."""
    cookies = {}
    if role:
        db: Database = app.state.site.db
        person = people.by_name(db, role) or people.add(db, role, role=role)
        cookies = {accounts.COOKIE: accounts.open_session(db, person)}
    return TestClient(app, base_url=BASE, cookies=cookies, follow_redirects=False, client=("192.0.2.7", 1))


def endpoints(routes: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every (method, path) below `routes`, in mounts and included routers too."""
    for route in routes:
        if isinstance(route, Mount):
            yield from endpoints(route.routes, prefix + route.path)
        elif hasattr(route, "original_router"):
            yield from endpoints(route.original_router.routes, prefix)
        else:
            path = re.sub(r"\{[^}]*\}", "x", prefix + route.path)
            yield from ((method, path) for method in route.methods)


def refusal(path: str, role: PersonRole | None) -> int | None:
    """The status with which this role is turned away from this path; None where it may pass."""
    if path in PUBLIC:
        return None
    if role is None or is_api(path):
        return 401
    return 403 if path.startswith("/operate") and role != "operator" else None


def test_every_route_turns_away_whom_it_should(app: FastAPI) -> None:
    matrix = sorted(set(endpoints(app.routes)))
    assert len(matrix) > 120
    assert sum(path.startswith("/operate/gradio_api/") for _, path in matrix) > 30
    wrong = []
    for role in ROLES:
        browser = client(app, role)
        for method, path in matrix:
            expected = refusal(path, role)
            if expected and browser.request(method, path).status_code != expected:
                wrong.append((role, method, path))
    assert not wrong


def test_of_gradio_only_what_our_pages_use_is_there(app: FastAPI) -> None:
    below = {
        (prefix, path.removeprefix(prefix))
        for _, path in endpoints(app.routes)
        for prefix in ("/operate/gradio_api", "/gradio_api")
        if path.startswith(prefix)
    }
    used = {(prefix, path) for prefix, path in below if is_used(path)}
    assert {path for _, path in used} >= {"/queue/join", "/queue/data", "/heartbeat/x", "/app_id"}
    assert len(used) < 20
    unused = {path for prefix, path in below - used if prefix == "/gradio_api"}
    assert unused >= {"/file=x", "/process_recording", "/upload", "/run/x", "/proxy=x"}
    operator = client(app, "operator")
    paths = [prefix + path for prefix, path in below - used]
    for path in [*paths, "/gradio_api/file=http://192.0.2.9/cat.png", "/monitoring", "/operate/monitoring/x"]:
        for method in ("GET", "HEAD", "POST"):
            assert operator.request(method, path).status_code == 404, path


@pytest.mark.parametrize("path", ["/", "/config", "/operate/", "/operate/config"])
def test_no_file_of_gradios_takes_the_place_of_our_components(app: FastAPI, home: Home, path: str) -> None:
    folder = home.gradio / "deep_links" / "evil"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text('[{"id": 1, "type": "html", "props": {"js_on_load": "evil()"}}]')
    answer = client(app, "operator").get(f"{path}?deep_link=evil")
    assert (answer.status_code, "evil()" in answer.text) == (404, False)


def test_gradio_looks_for_its_files_where_nobody_else_can_lay_any(app: FastAPI, home: Home) -> None:
    pages = [route.app for route in app.routes if isinstance(route, Mount) and route.path in ("/operate", "")]
    assert [page.uploaded_file_dir for page in pages] == [str(home.gradio)] * 2
    assert home.gradio.stat().st_mode & 0o777 == 0o700


def test_a_key_opens_v1_for_every_role_and_nothing_else_for_any(app: FastAPI) -> None:
    matrix = sorted(set(endpoints(app.routes)))
    assert {path for _, path in matrix if is_api(path)} == {
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/x",
    }
    db, wrong = app.state.site.db, []
    for role in ("user", "rater", "operator"):
        key, _ = make_key(db, people.by_name(db, role) or people.add(db, role, role=role))
        program = client(app, None)
        program.headers["authorization"] = f"Bearer {key}"
        for method, path in matrix:
            if path not in PUBLIC:
                is_refused = program.request(method, path).status_code == 401
                wrong += [(role, method, path)] if is_refused == is_api(path) else []
    assert not wrong


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/run/x", "/gradio_api/call/x"])
def test_no_event_of_the_operators_page_runs_for_anybody_else(app: FastAPI, path: str) -> None:
    page = next(route.app for route in app.routes if getattr(route, "path", "") == "/operate")
    events = range(len(page.get_blocks().fns))
    assert len(events) > 3
    for role in ROLES[:3]:
        browser = client(app, role)
        for event in events:
            body = {"data": [], "fn_index": event, "session_hash": "s"}
            answer = browser.post(f"/operate{path}", json=body)
            assert answer.status_code == (401 if role is None else 403)


def test_the_operators_events_are_not_reachable_through_the_chat(app: FastAPI) -> None:
    pages = {route.path: route.app for route in app.routes if isinstance(route, Mount)}
    operate, chat = pages["/operate"].get_blocks(), pages[""].get_blocks()
    of_operator = {fn.fn for fn in operate.fns.values() if fn.fn}
    assert of_operator.isdisjoint({fn.fn for fn in chat.fns.values() if fn.fn})


def test_gradio_takes_no_value_of_the_chat_page(app: FastAPI) -> None:
    # It would fetch and keep whatever address stands in a value that says it is a file; events carry ours.
    chat = next(route.app for route in app.routes if isinstance(route, Mount) and route.path == "")
    events = chat.get_blocks().fns.values()
    assert len(events) > 10 and not any(event.inputs for event in events)


@pytest.mark.parametrize("role", ROLES)
def test_the_pages_open_for_those_they_are_for(app: FastAPI, role: PersonRole | None) -> None:
    browser = client(app, role)
    seen = {path: browser.get(path).status_code for path in ("/", "/config", "/account/", "/operate/")}
    chat, operate = 200 if role else 401, {None: 401, "operator": 200}.get(role, 403)
    assert seen == {"/": chat, "/config": chat, "/account/": chat, "/operate/": operate}


@pytest.mark.parametrize("role", ROLES)
def test_metrics_are_for_operators_where_they_are_asked_for_from_elsewhere(
    app: FastAPI, role: PersonRole | None
) -> None:
    assert client(app, role).get("/metrics").status_code == {None: 401, "operator": 200}.get(role, 403)


def test_who_is_disabled_or_demoted_is_out_at_once(app: FastAPI, db: Database) -> None:
    browser = client(app, "operator")
    person = people.by_name(db, "operator")
    assert person and browser.get("/operate/config").status_code == 200
    people.set_role(db, person.id, "user")
    assert browser.get("/operate/config").status_code == 403
    people.set_disabled(db, person.id, True)
    assert browser.get("/config").status_code == 401
