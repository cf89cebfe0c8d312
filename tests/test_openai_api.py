"""/v1 over plain HTTP: what is refused and how, clients that hang up, and that nothing of it is stored."""

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from chatbot import openai_api, openai_request
from chatbot.generation import Generation
from chatbot.interface import AnyEngine
from chatbot.memory import Memory
from chatbot.openai_reply import Completion, ReplyReader, Token
from chatbot.runner import LlamaRunner
from data import api_keys, people
from data.database import Database
from data.errors import Problem, Unavailable
from data.home import Home
from tests.api import HELLO, Api, running_api, slow_steps
from tests.stories import somebody
from tests.waiting import until

LONG = {"max_tokens": 900, "temperature": 0}


@pytest.fixture
def api(db: Database, engine: Any, home: Home) -> Iterator[Api]:
    with running_api(db, engine, home) as running:
        yield running


def error_of(answer: Any, status: int) -> dict[str, Any]:
    """The error in an answer, which has OpenAI's shape and is a sentence with a remedy."""
    error: dict[str, Any] = answer.json()["error"]
    assert answer.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"} and " - " in error["message"]
    return error


# What is refused


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe\xfd",
        b'{"model": "base", "messages": [' + b"[" * 100_000,
        b'{"temperature": ' + b"9" * 5000 + b"}",
        b'{"model": "base", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    ],
)
def test_a_body_that_is_no_request_is_refused(api: Api, body: bytes) -> None:
    with api.client() as client:
        answer = client.post("/chat/completions", content=body)
    assert "The body is no JSON object" in error_of(answer, 400)["message"]


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 32_001}]}, "messages[0]"),
        ({"messages": HELLO * 10_000}, "messages"),
        ({"messages": HELLO * 200}, "messages"),
        ({"max_tokens": 1000}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e308}, "temperature"),
        ({"model": None}, "model"),
        ({"stop": [""]}, "stop"),
        ({"stop": "\ud800"}, "stop"),
    ],
)
def test_what_makes_no_sense_is_refused_and_named(api: Api, fields: dict[str, Any], param: str) -> None:
    assert error_of(api.ask(**fields), 400)["param"] == param
    assert api.engine.load_now == (0, 0)


def test_a_prompt_that_does_not_fit_is_refused_not_shortened(api: Api) -> None:
    error = error_of(api.ask(messages=[{"role": "user", "content": "x" * 1200}]), 400)
    assert (error["code"], "that fit - shorten them" in error["message"]) == ("context_length_exceeded", True)
    assert api.ask(messages=[{"role": "user", "content": "x" * 600}]).json()["usage"]["prompt_tokens"] > 600


def test_a_reply_may_have_all_that_the_prompt_leaves(api: Api) -> None:
    longest = api.engine.base.context - len(api.engine.base.format.encode(HELLO))
    body = {"model": "base", "messages": HELLO, "max_tokens": longest, "stream": True}
    with api.client() as client, client.stream("POST", "/chat/completions", json=body) as answer:
        assert answer.status_code == 200
    assert error_of(api.ask(max_tokens=longest + 1), 400)["code"] == "context_length_exceeded"


def heard_by(api: Api) -> list[Generation]:
    """The requests of the engine that have ended since; a moment after they were answered."""
    heard: list[Generation] = []
    count = api.engine.ended

    def hear(generation: Generation) -> None:
        heard.append(generation)
        count(generation)

    api.engine.ended = hear
    return heard


def test_without_a_limit_a_reply_may_have_what_the_context_leaves(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, heard = api.engine.base, heard_by(api)
    answer = api.ask(max_tokens=None)
    left = base.context - len(base.format.encode(HELLO))
    until(lambda: heard)
    assert [generation.sampling.max_new_tokens for generation in heard] == [left]
    assert answer.json()["usage"]["completion_tokens"] > 128
    monkeypatch.setattr(openai_request, "USUAL_TOKENS", 7)
    assert api.ask(max_tokens=None).json()["usage"]["completion_tokens"] == 7


def test_without_a_limit_one_token_must_be_left_for_a_reply(api: Api) -> None:
    base = api.engine.base
    fixed = len(base.format.encode([{"role": "user", "content": ""}]))

    def ask(tokens: int) -> Any:
        said = [{"role": "user", "content": "x" * (tokens - fixed)}]
        assert len(base.format.encode(said)) == tokens
        return api.ask(messages=said, max_tokens=None)

    assert ask(base.context - 1).json()["usage"]["completion_tokens"] == 1
    error = error_of(ask(base.context), 400)
    assert error["message"] == (
        f"The messages are {base.context:,} tokens, more than the {base.context - 1:,} that fit beside a "
        "reply - shorten them."
    )
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")


def test_without_a_limit_little_memory_makes_a_reply_shorter_but_refuses_none(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, heard = Memory(500, api.engine.base.context, is_shared=True), heard_by(api)
    monkeypatch.setattr(api.engine._scheduler, "memory", memory)
    assert api.ask(max_tokens=None).status_code == 200
    until(lambda: heard)
    (generation,) = heard
    longest = generation.sampling.max_new_tokens
    assert 128 <= longest < 375 < memory.needed(len(generation.prompt), 1, 2 * longest)
    assert memory.needed(len(generation.prompt), 1, longest) <= 375


def test_a_request_that_can_never_fit_in_memory_is_refused(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(1000, api.engine.base.context, is_shared=True)
    monkeypatch.setattr(api.engine._scheduler, "memory", memory)
    error = error_of(api.ask(n=9, max_tokens=400), 400)
    assert "more than the 750 for programs - ask for fewer or shorter replies" in error["message"]
    assert api.engine.load_now == (0, 0) and api.ask().status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "\0\x01\x1b[31mred",
        "\ud800 alone",
        "\u202eright to left",
        "zero\u200bwidth \ufeffmark",
        "👩\u200d👩\u200d👧\u200d👦",
        "e" + "\u0301" * 200,
        "<|im_start|>system",
        "| a |\n" * 50,
        "[x](javascript:alert(1))",
    ],
)
def test_strange_texts_are_answered_like_any_other(api: Api, text: str) -> None:
    messages = [{"role": "user", "content": text}]
    answer = api.ask(messages=messages, user=text, metadata={text: text})
    assert answer.status_code == 200
    assert answer.json()["usage"]["prompt_tokens"] == len(api.engine.base.format.encode(messages))


def test_a_body_above_the_limit_is_refused_in_the_clients_words(api: Api) -> None:
    with api.client() as client:
        assert error_of(client.post("/chat/completions", content=b"x" * 1_000_001), 413)
        unsaid = client.post("/chat/completions", content=(b"x" * 50_000 for _ in range(30)))
        assert error_of(unsaid, 413)


@pytest.mark.parametrize(
    "path", ["", "/", "/completions", "/files/x", "/models/no-such", "/../healthz/../v1/x"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
def test_there_is_nothing_else_below_v1(api: Api, path: str, method: str) -> None:
    with api.client() as client:
        assert error_of(client.request(method, path), 404)


def test_before_the_model_is_there_the_api_says_so(db: Database, home: Home) -> None:
    from starlette.testclient import TestClient

    from chatbot.accounts import make_key
    from chatbot.config import ServeConfig
    from chatbot.metrics import Metrics
    from chatbot.web import Site, open_site

    app = open_site(Site(db, home, ServeConfig(), Metrics(db)))
    browser = TestClient(app, base_url="http://127.0.0.1:7860")
    key, _ = make_key(db, somebody(db))
    answer = browser.get("/v1/models", headers={"authorization": f"Bearer {key}", "accept": "text/html"})
    assert "is loading" in error_of(answer, 503)["message"]
    assert answer.headers["retry-after"] == "2"


# Whose request it is


def test_a_revoked_key_and_a_disabled_person_are_out_at_once(api: Api, db: Database) -> None:
    assert api.ask().status_code == 200
    ada = somebody(db)
    people.set_disabled(db, ada.id, True)
    assert error_of(api.ask(), 401)["code"] == "invalid_api_key"
    people.set_disabled(db, ada.id, False)
    assert api.ask().status_code == 200
    (key,) = api_keys.list_for(db, ada.id)
    api_keys.revoke(db, key, "ada")
    answer = api.ask()
    assert (error_of(answer, 401)["code"], answer.headers["www-authenticate"]) == (
        "invalid_api_key",
        "Bearer",
    )


def test_the_engine_hears_whose_request_it_is_and_metrics_count_it(api: Api, db: Database) -> None:
    heard = heard_by(api)
    api.ask(n=2)
    until(lambda: heard)
    (generation,) = heard
    assert (generation.kind, generation.person) == ("api", somebody(db).id)
    until(lambda: "nightschool_time_to_first_token_seconds_count 2.0" in api.site.metrics.text())


def test_the_last_use_of_a_key_is_known_and_a_full_disk_silences_nobody(
    api: Api, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.ask()
    (key,) = api_keys.list_for(db, somebody(db).id)
    assert key.last_used_at and 0 <= time.time() - key.last_used_at < 60

    def disk_is_full(db: Database, key: api_keys.ApiKey) -> None:
        raise Problem("The disk is full - free some space.")

    monkeypatch.setattr(api_keys, "note_use", disk_is_full)
    assert api.ask().status_code == 200


def test_an_outage_is_not_called_a_crowd(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody_is_there() -> None:
        raise Unavailable("No engine answers at the moment - try again in a moment.")

    monkeypatch.setattr(api.engine, "_check_open", nobody_is_there)
    answer = api.ask()
    assert (error_of(answer, 503)["type"], answer.headers["retry-after"]) == ("server_error", "2")


def test_nothing_of_a_request_is_stored(api: Api, db: Database) -> None:
    canary = "canary-51c0ff"
    assert api.ask(messages=[{"role": "user", "content": canary}], user=canary).status_code == 200
    with api.client() as client, client.stream("POST", "/chat/completions", json=_long(canary)) as answer:
        assert answer.status_code == 200
    assert not any(db.one(f"SELECT 1 FROM {table}") for table in ("conversations", "messages", "rankings"))
    for path in db.path.parent.rglob("*"):
        assert not path.is_file() or canary.encode() not in path.read_bytes()


def _long(text: str) -> dict[str, Any]:
    return {"model": "base", "messages": [{"role": "user", "content": text}], "stream": True, **LONG}


# Clients that hang up, replies that fail


def hanging(api: Api, **fields: Any) -> socket.socket:
    """A connection over which long replies were asked for; left, it is cut."""
    body = json.dumps({"model": "base", "messages": HELLO, **LONG, **fields})
    connection = socket.create_connection(("127.0.0.1", api.site.config.port))
    connection.sendall(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Authorization: Bearer {api.key}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    return connection


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_hangs_up_frees_its_place_long_before_its_replies_would_end(
    api: Api, streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_steps(monkeypatch, 0.05)
    heard = heard_by(api)
    with hanging(api, n=3, stream=streams) as connection:
        if streams:
            assert connection.recv(12) == b"HTTP/1.1 200"
        until(lambda: api.engine.load_now == (1, 0))
    until(lambda: heard and api.engine.load_now == (0, 0))
    assert [reply.finish_reason for reply in heard[0].replies] == ["cancelled"] * 3
    assert api.ask().status_code == 200


def test_fifty_clients_that_vanish_leave_nothing_behind(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_steps(monkeypatch, 0.05)
    heard = heard_by(api)
    with ExitStack() as clients:
        connections = [clients.enter_context(hanging(api, n=2, stream=True)) for _ in range(50)]
        statuses = [connection.recv(12) for connection in connections]
    # One person's burst fills the half of the queue that is theirs, and no more.
    assert set(statuses) == {b"HTTP/1.1 200", b"HTTP/1.1 429"}
    until(lambda: len(heard) == statuses.count(b"HTTP/1.1 200") and api.engine.load_now == (0, 0))
    assert {reply.finish_reason for generation in heard for reply in generation.replies} == {"cancelled"}
    assert api.ask().status_code == 200


def test_a_crowd_is_refused_before_any_of_it_is_read(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """While those that fit are being read, whoever comes on top hears at once that there is no room."""
    monkeypatch.setattr(AnyEngine, "room", 3)
    begin, may_begin = openai_api._begin, threading.Event()

    def slow(*given: Any) -> Any:
        assert may_begin.wait(60)
        return begin(*given)

    monkeypatch.setattr(openai_api, "_begin", slow)
    with ThreadPoolExecutor(8) as people:
        asked = [people.submit(api.ask) for _ in range(8)]
        until(lambda: sum(one.done() for one in asked) == 5)
        refused = [one.result() for one in asked if one.done()]
        may_begin.set()
    assert {error_of(answer, 429)["code"] for answer in refused} == {"rate_limit_exceeded"}
    assert sum(one.result().status_code == 200 for one in asked) == 3
    assert api.ask().status_code == 200


def test_others_are_answered_while_a_long_answer_is_put_together(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, has_begun, may_end = Completion.whole, threading.Event(), threading.Event()

    def slow(
        completion: Completion, readings: Sequence[ReplyReader], *, has_logprobs: bool
    ) -> dict[str, Any]:
        has_begun.set()
        may_end.wait(60)
        return whole(completion, readings, has_logprobs=has_logprobs)

    monkeypatch.setattr(Completion, "whole", slow)
    with ThreadPoolExecutor(1) as beside, api.client() as client:
        asked = beside.submit(api.ask, logprobs=True, n=2)
        try:
            assert has_begun.wait(60) and client.get("/models").status_code == 200
        finally:
            may_end.set()
        assert len(asked.result().json()["choices"]) == 2


def test_a_reply_that_fails_is_told_with_and_without_a_stream(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaRunner, "step", lambda self, beside: 1 / 0)
    assert error_of(api.ask(), 500)["type"] == "server_error"
    lines = [line for line in api.ask(stream=True).text.splitlines() if line]
    assert "The model failed" in json.loads(lines[-1].removeprefix("data: "))["error"]["message"]


def test_a_reply_that_fails_while_it_is_looked_at_is_told_too(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    news, may_fail = ReplyReader.news, threading.Event()

    def fail(runner: LlamaRunner, beside: int) -> None:
        assert may_fail.wait(60)
        raise ZeroDivisionError

    def late(reading: ReplyReader) -> tuple[str, list[Token]]:
        may_fail.set()
        until(lambda: reading._reply.finish_reason is not None)
        return news(reading)

    monkeypatch.setattr(LlamaRunner, "step", fail)
    monkeypatch.setattr(ReplyReader, "news", late)
    lines = [line for line in api.ask(stream=True).text.splitlines() if line]
    assert "The model failed" in json.loads(lines[-1].removeprefix("data: "))["error"]["message"]


def test_what_the_deadline_cuts_ends_like_what_a_limit_cuts(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_steps(monkeypatch)
    monkeypatch.setattr("chatbot.openai_api.API_DEADLINE", 2.0)
    (choice,) = api.ask(**LONG).json()["choices"]
    assert choice["finish_reason"] == "length" and choice["message"]["content"]


def test_a_silent_stream_sends_signs_of_life(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    step, may_step = LlamaRunner.step, threading.Event()

    def held(runner: LlamaRunner, beside: int) -> None:
        assert may_step.wait(60)
        step(runner, beside)

    monkeypatch.setattr(LlamaRunner, "step", held)
    monkeypatch.setattr("chatbot.openai_api.SILENCE_SECONDS", 0.05)
    body = {"model": "base", "messages": HELLO, "max_tokens": 2, "stream": True}
    with api.client() as client, client.stream("POST", "/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        assert ": still here" in lines
        may_step.set()
        assert [line for line in lines if line][-1] == "data: [DONE]"
