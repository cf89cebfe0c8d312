"""The guard: what it turns away before any route is asked, and the headers it puts on every answer."""

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from chatbot import accounts, guard
from chatbot.config import ServeConfig
from data.api_keys import ApiKey
from data.errors import Problem
from data.records import Person, PersonRole

HOME = "http://127.0.0.1:7860"
CONFIG = ServeConfig(public_url="https://night.example.org")


def somebody(name: str, role: PersonRole) -> Person:
    return Person(name, name, role, "human", False, 0.0)


PEOPLE = {"u": somebody("ada", "user"), "v": somebody("eve", "user"), "o": somebody("grace", "operator")}

KEYS = {"ns-a": (ApiKey("1", "ada", "ns-a", "", 0.0, None, None), PEOPLE["u"])}


async def echo(request: Request) -> Response:
    body = await request.body()
    person = request.scope["person"]
    return JSONResponse({"person": person.id if person else None, "bytes": len(body)})


def client(token: str | None = None, **headers: str) -> TestClient:
    app = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST", "PUT", "DELETE"])])
    guarded = guard.Guard(
        app, CONFIG, lambda cookie: PEOPLE.get(cookie or ""), lambda key: KEYS.get(key or "")
    )
    cookies = {accounts.COOKIE: token} if token else {}
    return TestClient(
        guarded,
        base_url=HOME,
        cookies=cookies,
        headers=headers,
        follow_redirects=False,
        client=("127.0.0.1", 50000),
    )


@pytest.mark.parametrize(
    "host", ["127.0.0.1:7860", "localhost:1", "LOCALHOST", "[::1]:7860", "night.example.org"]
)
def test_the_server_answers_to_its_own_names(host: str) -> None:
    assert client(host=host).get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example@127.0.0.1", "127.0.0.1/..", "[::1", ""]
)
def test_a_forged_host_is_refused_with_the_remedy(host: str) -> None:
    answer = client("o", host=host).get("/healthz")
    assert answer.status_code == 400
    assert "--public-url" in answer.json()["error"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_another_site_cannot_act_for_a_person(method: str, origin: str) -> None:
    answer = client("o", origin=origin).request(method, "/operate/x")
    assert (answer.status_code, "another site" in answer.text) == (403, True)


@pytest.mark.parametrize("origin", [HOME, "http://localhost:7860", "https://night.example.org"])
def test_our_own_pages_may_act(origin: str) -> None:
    assert client("u", origin=origin).post("/x", content=b"abc").json() == {"person": "ada", "bytes": 3}


def test_a_browser_that_names_no_origin_is_judged_by_the_site_it_names() -> None:
    assert client("u", **{"sec-fetch-site": "cross-site"}).post("/x").status_code == 403
    assert client("u", **{"sec-fetch-site": "same-origin"}).post("/x").status_code == 200
    assert client("u").post("/x").status_code == 200


def test_a_body_that_says_it_is_too_large_is_refused_unread() -> None:
    assert client("u").post("/x", content=b"x" * (guard.BODY_LIMIT + 1)).status_code == 413
    assert client("u").post("/x", content=b"x" * guard.BODY_LIMIT).json()["bytes"] == guard.BODY_LIMIT


@pytest.mark.parametrize("length", ["-1", "1e9", "many", "9" * 5000])
def test_a_length_that_is_no_number_is_refused(length: str) -> None:
    assert client("u", **{"content-length": length}).get("/x").status_code == 413


def test_a_body_that_does_not_say_its_length_is_cut_off() -> None:
    answer = client("u").post("/x", content=(b"x" * 50_000 for _ in range(30)))
    assert (answer.status_code, "at most 1 MB" in answer.json()["error"]) == (413, True)


def test_nobody_sees_a_closed_route() -> None:
    answer = client().get("/gradio_api/info", headers={"accept": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (401, "You are not signed in - sign in first.")


def test_a_browser_without_a_session_goes_to_sign_in_and_comes_back() -> None:
    answer = client().get("/operate/?a=b&c=d", headers={"accept": "text/html"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/operate/%3Fa%3Db%26c%3Dd")


def test_a_form_without_a_session_goes_to_sign_in_and_not_back_to_where_it_was_sent() -> None:
    answer = client().post("/account/password?a=b", headers={"accept": "text/html"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert client().post("/account/password", headers={"accept": "*/*"}).status_code == 401


def test_a_form_of_another_site_is_refused_as_a_page() -> None:
    for path in ("/account/password", "/logout"):
        answer = client("u", accept="text/html", origin="https://evil.example").post(path)
        assert (answer.status_code, "Open Night School itself." in answer.text) == (403, True)
        assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    "path", ["/operate", "/operate/", "/operate/config", "/%6fperate/gradio_api/queue/join"]
)
def test_a_user_does_not_see_the_operators_pages(path: str) -> None:
    assert client("u").get(path).status_code == 403
    assert client("o").get(path).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://evil.example/cat.png",
        "/operate/gradio_api/file=/tmp/cat.png",
        "/gradio_api/proxy=http://x.hf.space",
        "/operate/monitoring",
        "/gradio_api/what-comes-with-the-next-gradio",
        "/gradio_api/reset-all",
        "/gradio_api/queue/data/all",
        "/gradio_api",
        "/operate/gradio_api/deep_link?session_hash=abc",
        "/gradio_api/upload?upload_id=1",
        "/?deep_link=x",
        "/?c=1&%64eep_link=x",
        "/operate/?deep_link=",
        "/operate/config?page=&deep_link=x",
    ],
)
def test_what_no_page_of_ours_uses_is_not_there(path: str) -> None:
    assert client("o").get(path).status_code == 404


def test_a_page_session_belongs_to_who_opened_it() -> None:
    site = client()
    as_ada, as_eve = ({"cookie": f"{accounts.COOKIE}={token}"} for token in "uv")
    assert site.get("/gradio_api/heartbeat/abc", headers=as_ada).status_code == 200
    assert site.get("/gradio_api/queue/data?session_hash=abc", headers=as_ada).status_code == 200
    assert site.get("/gradio_api/queue/data?session_hash=abc", headers=as_eve).status_code == 403
    assert site.get("/gradio_api/heartbeat/abc", headers=as_eve).status_code == 403
    both = "/gradio_api/queue/data?session_hash=eves&session_hash=abc"
    assert site.get(both, headers=as_eve).status_code == 403


# Programs with a key


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_below_v1_a_key_stands_for_its_person_whatever_the_origin(scheme: str) -> None:
    headers = {"authorization": f"{scheme} ns-a", "origin": "https://evil.example"}
    assert client(**headers).post("/v1/x", content=b"abc").json() == {"person": "ada", "bytes": 3}


@pytest.mark.parametrize("word", ["", "ns-a", "Basic ns-a", "Bearer", "Bearer ns-b", "Bearer ns-a ns-a"])
def test_below_v1_a_cookie_opens_nothing_and_neither_does_half_a_key(word: str) -> None:
    answer = client("o", authorization=word, accept="text/html").get("/v1/models")
    error = answer.json()["error"]
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert (error["code"], "make one at /account/keys" in error["message"]) == ("invalid_api_key", True)


@pytest.mark.parametrize("path", ["/", "/v10", "/v1x/models", "//v1/models", "/account/", "/operate/v1/"])
def test_elsewhere_a_key_opens_nothing(path: str) -> None:
    assert client(authorization="Bearer ns-a").get(path).status_code == 401


def test_a_forged_host_is_refused_in_the_clients_shape() -> None:
    answer = client(authorization="Bearer ns-a", host="evil.example").get("/v1/models")
    assert (answer.status_code, "--public-url" in answer.json()["error"]["message"]) == (400, True)


def without_database() -> TestClient:
    """A client with a cookie and a key, before an application whose database cannot be read."""

    def fail(token: str | None) -> None:
        raise Problem("The disk failed - check it.")

    app = Starlette(routes=[Route("/{path:path}", echo)])
    headers = {"cookie": f"{accounts.COOKIE}=u", "authorization": "Bearer ns-a"}
    return TestClient(guard.Guard(app, CONFIG, fail, fail), base_url=HOME, headers=headers)


def test_a_database_that_fails_is_a_sentence_to_people_and_programs() -> None:
    answers = [
        without_database().get(path, headers={"accept": accept})
        for path, accept in [("/", "text/html"), ("/gradio_api/info", "*/*"), ("/v1/models", "*/*")]
    ]
    assert [(answer.status_code, "retry-after" in answer.headers) for answer in answers] == [(503, True)] * 3
    page, data, api = answers
    assert "Check it." in page.text and data.json() == {"error": "The disk failed - check it."}
    assert api.json()["error"]["message"] == "The disk failed - check it."
    assert page.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    ("path", "accept"), [("/", "text/html"), ("/metrics", "*/*"), ("/v1/models", "*/*")], ids=str
)
def test_whoever_reads_a_refusal_gets_its_headers_and_when_to_come_again(path: str, accept: str) -> None:
    scope = {"type": "http", "path": path, "headers": [(b"accept", accept.encode())]}
    busy = guard.answer(scope, 503, "Busy - wait.")
    other = guard.answer(scope, 405, "Not so - ask otherwise.", {"allow": "GET"})
    assert (busy.headers["retry-after"], other.headers["allow"]) == ("2", "GET")
    assert busy.headers["content-type"].startswith("text/html" if path == "/" else "application/json")
    assert "retry-after" not in other.headers


@pytest.mark.parametrize("path", ["/healthz", "/account.css", "/login"])
def test_what_is_open_to_everybody_needs_no_database(path: str) -> None:
    assert without_database().get(path).json() == {"person": None, "bytes": 0}


@pytest.mark.parametrize("path", ["/login", "/x", "/operate", "/v1/models"])
def test_every_answer_carries_the_security_headers(path: str) -> None:
    headers = client("u").get(path).headers
    assert {name: headers.get(name) for name in guard.SECURITY_HEADERS} == guard.SECURITY_HEADERS


def test_a_program_on_this_machine_is_told_from_a_proxy() -> None:
    scope = {"type": "http", "client": ("127.0.0.1", 1), "headers": [(b"host", b"127.0.0.1:7860")]}
    assert guard.is_local(scope)
    assert not guard.is_local({**scope, "client": ("192.0.2.7", 1)})
    assert not guard.is_local({**scope, "headers": [(b"host", b"night.example.org")]})
    assert not guard.is_local({**scope, "headers": [*scope["headers"], (b"x-forwarded-for", b"192.0.2.7")]})
