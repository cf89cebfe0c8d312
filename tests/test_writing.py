"""Replies under way at servers: each is a request of its own, and outlives the server it was begun on."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from chatbot.basemodel import Base
from chatbot.remote import RemoteEngine
from chatbot.replica import SILENT_SECONDS
from chatbot.replicas import FAILURES
from chatbot.vllm import Failed, Gone, Server
from data.errors import Busy
from data.home import Home
from data.records import Sampling
from tests.fake_vllm import NAME, FakeVllm, engine_on, slowed
from tests.test_engine import done
from tests.waiting import until

HELLO = [{"role": "user", "content": "Hello there."}]
GREEDY = Sampling(temperature=0, max_new_tokens=16)
LONG = Sampling(temperature=0, max_new_tokens=400)


def tokens(*ids: object, logprobs: Sequence[object] | None = None) -> dict[str, Any]:
    """What a server sends that has written these tokens."""
    said = [-1.0] * len(ids) if logprobs is None else logprobs
    return {"choices": [{"token_ids": ids, "logprobs": {"token_logprobs": said}}]}


def check_that_another_writes(
    remote: RemoteEngine,
    servers: list[FakeVllm],
    meanwhile: Callable[[], object] = lambda: None,
    **fault: Any,
) -> None:
    """What the first server writes, the second writes where the first has this fault."""
    whole = done(remote.submit(HELLO, sampling=GREEDY)).replies[0]
    until(lambda: [replica.rows for replica in remote._replicas.all] == [0, 0])
    for name, value in fault.items():
        setattr(servers[0], name, value)
    generation = remote.submit(HELLO, sampling=GREEDY)
    meanwhile()
    reply = done(generation).replies[0]
    assert (reply.token_ids, reply.finish_reason) == (whole.token_ids, "length")
    assert [len(server.asked) for server in servers] == [2, 1]


def test_replies_to_one_prompt_share_a_server_and_requests_are_spread(
    remote: RemoteEngine, servers: list[FakeVllm]
) -> None:
    for server in servers:
        server.may_work.clear()  # until all have been asked
    asked = [remote.submit(HELLO, replies=3, sampling=GREEDY) for _ in range(4)]
    until(lambda: sum(server.waiting for server in servers) == 12)
    for server in servers:
        server.may_work.set()
    for generation in asked:
        done(generation)
    assert [len(server.asked) for server in servers] == [6, 6]


def test_a_stopped_reply_is_left_at_once_and_its_siblings_go_on(
    remote: RemoteEngine, servers: list[FakeVllm]
) -> None:
    slowed(servers, 0.1)
    generation = remote.submit(HELLO, replies=3, sampling=Sampling(0, 1, 60))
    until(lambda: all(reply.tokens for reply in generation.replies))
    generation.replies[1].stop()
    until(lambda: sum(server.writing for server in servers) == 2)
    slowed(servers, 0.0)
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
    slowed(servers, 0.1)
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
    slowed([server for server in servers if not server.is_hung], 0.0)
    reply = done(generation).replies[0]
    assert (reply.token_ids, reply.finish_reason) == (whole.token_ids, "length")
    assert reply.logprobs == pytest.approx(whole.logprobs, abs=1e-4)


def test_without_any_server_nothing_new_is_taken_and_what_waits_is_answered_later(
    tiny_base: Base, servers: list[FakeVllm], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.writing.PATIENCE_SECONDS", 0.1)
    (first, second) = servers
    second.die()
    engine = RemoteEngine(tiny_base, [first.url], home.adapters, rows_per_server=1, patience=30)
    engine.start()
    first.pause = 0.05
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
    for number in range(1, FAILURES + 1):
        assert done(remote.submit(HELLO)).replies[0].finish_reason == "failed"
        assert [len(server.asked) for server in servers] == [number, number]
    assert all(replica.is_up for replica in remote._replicas.all)
    for server in servers:
        server.fails_with = None
    assert done(remote.submit(HELLO, sampling=GREEDY)).replies[0].tokens == 16


@pytest.mark.parametrize(
    "fault",
    [
        {"fails_with": 401},
        {"fails_with": 429},
        {"sends": {"choices": []}},
        {"sends": {"choices": [{"token_ids": None}]}},
        {"sends": {"choices": "none"}},
        {"sends": {"error": "no object"}},
        {"sends": tokens(-1)},
    ],
)
def test_a_server_that_refuses_all_or_answers_nonsense_fails_nobody_beside_a_healthy_one(
    remote: RemoteEngine, servers: list[FakeVllm], fault: dict[str, Any]
) -> None:
    whole = done(remote.submit(HELLO, sampling=GREEDY)).replies[0]
    until(lambda: remote.load_now == (0, 0))
    for name, value in fault.items():
        setattr(servers[0], name, value)
    for _ in range(FAILURES + 1):
        reply = done(remote.submit(HELLO, sampling=GREEDY)).replies[0]
        assert (reply.token_ids, reply.finish_reason) == (whole.token_ids, "length")
        assert reply.logprobs == pytest.approx(whole.logprobs, abs=1e-4)
        until(lambda: remote.load_now == (0, 0))


def test_a_server_that_says_it_is_well_and_writes_nothing_loses_its_replies_to_another(
    remote: RemoteEngine, servers: list[FakeVllm]
) -> None:
    def be_silent_for_long() -> None:
        until(lambda: servers[0].writing)
        remote._replicas.all[0].heard_at -= 2 * SILENT_SECONDS

    check_that_another_writes(remote, servers, be_silent_for_long, pause=600.0)


def test_a_server_that_writes_at_one_of_its_replies_is_not_stuck(
    remote: RemoteEngine, servers: list[FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.replicas.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("chatbot.replica.SILENT_SECONDS", 4.0)
    slowed(servers, 0.2)
    asked = [remote.submit(HELLO, sampling=Sampling(0, 1, 30)) for _ in range(4)]
    assert {done(one).replies[0].finish_reason for one in asked} == {"length"}
    assert [len(server.asked) for server in servers] == [2, 2]


@pytest.mark.parametrize("tokens", [0, 3])
@pytest.mark.parametrize("count", [1, 2])
def test_a_reply_that_a_server_forgets_beside_others_is_written_all_the_same(
    tiny_base: Base,
    servers: list[FakeVllm],
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    tokens: int,
) -> None:
    """By another server, or by the same where there is none; nobody else notices."""
    monkeypatch.setattr("chatbot.replica.SILENT_SECONDS", 2.5)
    monkeypatch.setattr("chatbot.replica.PREEMPTED_SECONDS", 2.5)
    with engine_on(tiny_base, servers[:count], home.adapters) as engine:
        whole = done(engine.submit(HELLO, sampling=GREEDY)).replies[0]
        until(lambda: not any(replica.rows for replica in engine._replicas.all))
        servers[0].forgets = (7, tokens)
        slowed(servers, 0.01)
        reply = engine.submit(HELLO, seeds=[7], sampling=GREEDY).replies[0]
        until(lambda: servers[0].writing and reply.tokens == tokens)
        deadline = time.monotonic() + 30
        while reply.finish_reason is None and time.monotonic() < deadline:
            others = [engine.submit(HELLO, sampling=GREEDY) for _ in range(count)]
            assert {done(other).replies[0].finish_reason for other in others} == {"length"}
            if tokens == 0 and count == 1:
                servers[0].forgets = None
        assert (reply.token_ids, reply.finish_reason) == (whole.token_ids, "length")
        assert reply.logprobs == pytest.approx(whole.logprobs, abs=1e-4)
        assert all(replica.is_up and replica.last_until == 0.0 for replica in engine._replicas.all)
        assert any(body["seed"] == 7 + tokens for body in servers[count - 1].asked), "it was continued there"
        until(lambda: [replica.rows for replica in engine._replicas.all] == [0] * count)


def test_a_reply_in_a_servers_queue_and_one_that_was_preempted_are_waited_for(
    remote: RemoteEngine, servers: list[FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes at those that came before, for longer than a silence may last."""
    monkeypatch.setattr("chatbot.replica.SILENT_SECONDS", 5.0)
    slowed(servers, 0.1)
    others = [remote.submit(HELLO, sampling=LONG) for _ in servers]
    until(lambda: all(generation.replies[0].tokens for generation in others))
    servers[0].forgets, servers[1].forgets = (7, 0), (8, 3)
    queued, preempted = (remote.submit(HELLO, seeds=[seed], sampling=GREEDY) for seed in (7, 8))
    until(lambda: [len(server.asked) for server in servers] == [2, 2] and preempted.replies[0].tokens == 3)
    silent_since = time.monotonic()
    until(lambda: time.monotonic() - silent_since > 6.0)
    assert not any(generation.is_done for generation in (queued, preempted, *others))
    assert [len(server.asked) for server in servers] == [2, 2]


@pytest.mark.parametrize("place", ["fails_with", "fails_after"])
def test_a_request_that_healthy_servers_fail_at_fails_alone(
    remote: RemoteEngine, servers: list[FakeVllm], caplog: pytest.LogCaptureFixture, place: str
) -> None:
    slowed(servers, 0.02)
    others = [remote.submit(HELLO, sampling=Sampling(0, 1, 80)) for _ in servers]
    until(lambda: all(generation.replies[0].tokens > 5 for generation in others))
    for server in servers:
        setattr(server, place, {"fails_with": 500, "fails_after": 3}[place])
    assert done(remote.submit(HELLO, sampling=GREEDY)).replies[0].finish_reason == "failed"
    for server in servers:
        setattr(server, place, None)
    assert [done(generation).replies[0].finish_reason for generation in others] == ["length", "length"]
    assert [len(server.asked) for server in servers] == [2, 2]  # it was tried elsewhere; the others stayed
    assert "failed at a request (that is how it is)" in caplog.text
    assert "Without an engine" not in caplog.text


def test_a_reply_that_one_healthy_server_fails_at_is_written_by_another(
    remote: RemoteEngine, servers: list[FakeVllm]
) -> None:
    check_that_another_writes(remote, servers, fails_after=5)


def test_a_healthy_server_that_fails_at_everything_is_asked_no_more_until_it_can_write_again(
    remote: RemoteEngine, servers: list[FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.replicas.REFUSED_SECONDS", 0.1)
    monkeypatch.setattr("chatbot.replicas.LAST_SECONDS", 0.0)
    (first, second), (replica, _) = servers, remote._replicas.all
    first.fails_with = 500
    for _ in range(FAILURES):
        assert done(remote.submit(HELLO, sampling=GREEDY)).replies[0].finish_reason == "length"
        until(lambda: remote.load_now == (0, 0))
    assert not replica.is_up and [len(server.asked) for server in servers] == [FAILURES, FAILURES]
    done(remote.submit(HELLO, sampling=GREEDY))
    assert len(second.asked) == FAILURES + 1
    first.fails_with = None
    until(lambda: replica.is_up)


def test_a_server_that_failed_is_asked_last_for_a_while(
    remote: RemoteEngine, servers: list[FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.replicas.LAST_SECONDS", 600.0)
    (first, second), (replica, _) = servers, remote._replicas.all
    first.fails_after = 0  # it computes what it should, and yet breaks off every reply
    for _ in range(FAILURES + 1):
        assert done(remote.submit(HELLO, sampling=GREEDY)).replies[0].finish_reason == "length"
        until(lambda: remote.load_now == (0, 0))
    assert (replica.is_up, len(first.asked), len(second.asked)) == (True, 1, FAILURES + 1)
    first.fails_after, replica.last_until = None, 0.0
    done(remote.submit(HELLO, sampling=GREEDY))
    assert len(first.asked) == 2


@pytest.mark.parametrize(("is_ill", "meaning"), [(True, Gone), (False, Failed)])
def test_an_error_counts_against_a_server_only_where_it_is_not_well(
    servers: list[FakeVllm], is_ill: bool, meaning: type[Exception]
) -> None:
    servers[0].fails_with, servers[0].is_ill = 500, is_ill

    async def ask() -> None:
        server = Server(servers[0].url)
        async for _ in server.write(NAME, [1, 2, 3], GREEDY, seed=0, end_of_turn=2):
            pass

    with pytest.raises(meaning):
        asyncio.run(ask())


@pytest.mark.parametrize(
    "sends",
    [
        *(tokens(id) for id in (-1, 10**30, "x", 1.5, None, True)),
        tokens(5, logprobs=[]),
        tokens(5, logprobs=["x"]),
        tokens(5, logprobs=[float("nan")]),
    ],
    ids=str,
)
def test_what_is_no_token_is_not_taken_for_one(servers: list[FakeVllm], sends: object) -> None:
    servers[0].sends = sends

    async def ask() -> None:
        async for _ in Server(servers[0].url).write(NAME, [1, 2, 3], GREEDY, seed=0, end_of_turn=2):
            pass

    with pytest.raises(Failed, match="answered with what is no reply of vLLM"):
        asyncio.run(ask())


def test_a_server_that_writes_for_ever_is_left_where_the_reply_is_as_long_as_it_may_be(
    remote: RemoteEngine, servers: list[FakeVllm]
) -> None:
    for server in servers:
        server.sends = tokens(*[5] * 7)
    reply = done(remote.submit(HELLO, sampling=GREEDY)).replies[0]
    assert (reply.token_ids, reply.finish_reason, len(reply.logprobs)) == ([5] * 16, "length", 16)


@pytest.mark.parametrize(
    "sends",
    [{"choices": "none"}, {"choices": [None]}, {"choices": [[]]}, {"no choices": 1}, {"error": "no object"}],
)
def test_a_server_that_answers_nonsense_is_named(servers: list[FakeVllm], sends: object) -> None:
    servers[0].sends = sends
    url = servers[0].url

    async def ask() -> None:
        server = Server(url)
        with pytest.raises(Failed, match=f"^{url} answered with what is no reply of vLLM - see its log.$"):
            await server.mean_logprob(NAME, [1, 2, 3], 2)
        async for _ in server.write(NAME, [1, 2, 3], GREEDY, seed=0, end_of_turn=2):
            pass

    with pytest.raises(Failed, match=f"^{url} answered with what is no reply of vLLM - see its log.$"):
        asyncio.run(ask())


def test_a_reply_waits_for_its_only_server_to_come_back(
    tiny_base: Base, servers: list[FakeVllm], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.writing.PATIENCE_SECONDS", 60.0)
    with engine_on(tiny_base, servers[:1], home.adapters) as engine:
        whole = done(engine.submit(HELLO, sampling=Sampling(0, 1, 80))).replies[0]
        slowed(servers, 0.03)
        stopped, late, patient = (
            engine.submit(HELLO, sampling=sampling, deadline=deadline)
            for sampling, deadline in ((LONG, None), (LONG, 3.0), (Sampling(0, 1, 80), None))
        )
        until(lambda: patient.replies[0].tokens > 5)
        servers[0].die()
        until(lambda: not engine.is_ready)
        stopped.stop()
        assert done(late).replies[0].finish_reason == "interrupted"
        until(lambda: engine.load_now[0] <= 1)  # who has ended is not waited for
        servers.append(FakeVllm(tiny_base, port=servers[0].port))
        reply = done(patient).replies[0]
    assert (reply.token_ids, reply.finish_reason) == (whole.token_ids, "length")


def test_a_reply_that_lost_too_many_servers_is_counted_nowhere(
    tiny_base: Base, servers: list[FakeVllm], home: Home
) -> None:
    servers += [FakeVllm(tiny_base) for _ in range(2)]
    with engine_on(tiny_base, servers, home.adapters) as engine:
        for server in servers[:3]:
            server.breaks_after = 0
        assert done(engine.submit(HELLO, sampling=GREEDY)).replies[0].finish_reason == "failed"
        assert [replica.rows for replica in engine._replicas.all] == [0, 0, 0, 0]
