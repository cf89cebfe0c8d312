"""Replies under way at servers: each is a request of its own, and outlives the server it was begun on."""

from collections.abc import Callable

import pytest

from chatbot.basemodel import Base
from chatbot.remote import RemoteEngine
from data.errors import Busy
from data.home import Home
from data.records import Sampling
from tests.fake_vllm import FakeVllm, slowed, until
from tests.test_engine import done

HELLO = [{"role": "user", "content": "Hello there."}]
GREEDY = Sampling(temperature=0, max_new_tokens=16)
LONG = Sampling(temperature=0, max_new_tokens=400)


def test_replies_to_one_prompt_share_a_server_and_requests_are_spread(
    remote: RemoteEngine, servers: list[FakeVllm]
) -> None:
    slowed(servers, 0.03)
    asked = [remote.submit(HELLO, replies=3, sampling=GREEDY) for _ in range(4)]
    for generation in asked:
        done(generation)
    assert [len(server.asked) for server in servers] == [6, 6]


def test_a_stopped_reply_is_left_at_once_and_its_siblings_go_on(
    remote: RemoteEngine, servers: list[FakeVllm]
) -> None:
    slowed(servers)
    generation = remote.submit(HELLO, replies=3, sampling=Sampling(0, 1, 60))
    until(lambda: all(reply.tokens for reply in generation.replies))
    generation.replies[1].stop()
    until(lambda: sum(server.writing for server in servers) == 2)
    done(generation)
    assert [reply.finish_reason for reply in generation.replies] == ["length", "cancelled", "length"]
    assert generation.replies[1].tokens < 60
    until(lambda: remote.load_now == (0, 0))
    until(lambda: [replica.rows for replica in remote._replicas.all] == [0, 0])


@pytest.mark.parametrize("fault", ["dies", "hangs", "breaks off", "fails"])
def test_a_reply_outlives_its_server(
    remote: RemoteEngine, servers: list[FakeVllm], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("chatbot.vllm.SECONDS_TO_ANSWER", 1.0)
    whole = done(remote.submit(HELLO, sampling=Sampling(0, 1, 80))).replies[0]
    until(lambda: not any(server.writing for server in servers))
    slowed(servers, 0.02)
    generation = remote.submit(HELLO, sampling=Sampling(0, 1, 80))
    until(lambda: generation.replies[0].tokens > 5)
    (writer,) = [server for server in servers if server.writing]
    faults: dict[str, Callable[[], object]] = {
        "dies": writer.die,
        "hangs": lambda: (setattr(writer, "is_hung", True), setattr(writer, "pause", 60)),
        "breaks off": lambda: setattr(writer, "breaks_after", 30),
        "fails": lambda: (setattr(writer, "fails_with", 500), setattr(writer, "breaks_after", 30)),
    }
    faults[fault]()
    reply = done(generation).replies[0]
    assert (reply.token_ids, reply.finish_reason) == (whole.token_ids, "length")
    assert reply.logprobs == pytest.approx(whole.logprobs, abs=1e-4)


def test_without_any_server_nothing_new_is_taken_and_what_waits_is_answered_later(
    tiny_base: Base, servers: list[FakeVllm], home: Home
) -> None:
    (first, second) = servers
    second.die()
    engine = RemoteEngine(tiny_base, [first.url], home.adapters, rows_per_server=1, patience=30)
    engine.start()
    first.pause = 0.01
    broken, waiting = (engine.submit(HELLO, sampling=s) for s in (LONG, GREEDY))
    until(lambda: broken.replies[0].tokens)
    first.die()
    assert done(broken).replies[0].finish_reason == "failed"
    assert not engine.is_ready
    with pytest.raises(Busy, match="No engine answers at the moment"):
        engine.submit(HELLO)
    servers.append(FakeVllm(tiny_base, port=first.port))
    assert done(waiting).replies[0].tokens == 16
    assert engine.is_ready
    engine.close()


def test_a_request_that_every_server_refuses_fails_alone(
    remote: RemoteEngine, servers: list[FakeVllm]
) -> None:
    for server in servers:
        server.fails_with = 400
    assert done(remote.submit(HELLO)).replies[0].finish_reason == "failed"
    assert len(servers[0].asked + servers[1].asked) == 1
    for server in servers:
        server.fails_with = None
    assert done(remote.submit(HELLO, sampling=GREEDY)).replies[0].tokens == 16
