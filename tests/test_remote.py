"""The engine on vLLM servers: it says what the engine here says, and servers may die under it."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.swapping import mistakes, reference, stream, swap
from chatbot.basemodel import Base
from chatbot.engine import Engine
from chatbot.generation import Generation
from chatbot.remote import RemoteEngine
from data.errors import Busy, NotFound, Problem, Refused
from data.home import Home
from data.records import Sampling
from tests.adapter_files import write_adapter
from tests.fake_vllm import FakeVllm, slowed
from tests.test_engine import done
from tests.test_swaps import let_each_version_meet_a_stream
from tests.waiting import until

HELLO = [{"role": "user", "content": "Hello there."}]
GREEDY = Sampling(temperature=0, max_new_tokens=16)
LONG = Sampling(temperature=0, max_new_tokens=400)


def both_say(engines: tuple[Engine, RemoteEngine], version: str, sampling: Sampling) -> list[Generation]:
    """What each engine replies to the same seeds."""
    asked = [
        e.submit(HELLO, replies=3, seeds=[5, -5, 2**62], sampling=sampling, version=version) for e in engines
    ]
    return [done(generation) for generation in asked]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("version", ["base", "v000001"])
def test_it_says_what_the_engine_here_says(
    engine: Engine, remote: RemoteEngine, adapter: Path, version: str, temperature: float
) -> None:
    for one in (engine, remote):
        one.load("v000001", adapter)
    here, there = both_say((engine, remote), version, Sampling(temperature, 0.95, 40))
    for mine, theirs in zip(here.replies, there.replies, strict=True):
        assert (theirs.token_ids, theirs.text) == (mine.token_ids, mine.text)
        assert theirs.finish_reason == mine.finish_reason
        assert theirs.logprobs == pytest.approx(mine.logprobs, abs=1e-4)
        assert there.submitted_at < (theirs.first_token_at or 0.0)


def test_the_log_probability_of_a_text_is_the_same_here_and_there(
    engine: Engine, remote: RemoteEngine, adapter: Path
) -> None:
    ids = list(range(3, 60))
    for one in (engine, remote):
        one.load("v000001", adapter)
    for version in ("base", "v000001"):
        values = [one.mean_logprob(version, ids, 20) for one in (engine, remote)]
        assert values[0] == pytest.approx(values[1], abs=1e-4)
    with pytest.raises(NotFound, match="Version 'v000099' is not loaded here"):
        remote.mean_logprob("v000099", ids, 20)


def test_every_parameter_that_bends_a_distribution_is_sent(
    remote: RemoteEngine, servers: list[FakeVllm]
) -> None:
    """What is not sent, vLLM takes from the model's generation_config.json; a seed of -1 is none to it."""
    done(remote.submit(HELLO, seeds=[-1], sampling=Sampling(0.7, 0.9, 5)))
    (body,) = servers[0].asked + servers[1].asked
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["seed"]) == (0.7, 0.9, 5, 2**63 - 1)
    plain = {"top_k": 0, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
    assert plain.items() <= body.items()
    assert body["ignore_eos"] and body["stop_token_ids"] == [remote.base.format.end_of_turn]


def test_a_stop_text_and_a_deadline_end_a_reply(remote: RemoteEngine, servers: list[FakeVllm]) -> None:
    deadline = 600.0
    whole = done(remote.submit(HELLO, sampling=GREEDY)).replies[0].text
    stop = whole[5:7]
    ended = done(remote.submit(HELLO, sampling=LONG, stop=[stop])).replies[0]
    assert (ended.text, ended.finish_reason) == (whole[: whole.index(stop)], "stop")
    slowed(servers)
    late = remote.submit(HELLO, sampling=LONG, deadline=deadline, kind="api")
    until(lambda: late.replies[0].tokens)
    late.submitted_at -= deadline
    assert done(late).replies[0].finish_reason == "cancelled"
    assert 0 < late.replies[0].tokens < LONG.max_new_tokens


def test_a_stop_text_that_the_last_token_completes_is_why_a_reply_ended(remote: RemoteEngine) -> None:
    whole = done(remote.submit(HELLO, sampling=GREEDY)).replies[0].text
    ended = done(remote.submit(HELLO, sampling=GREEDY, stop=[whole])).replies[0]
    assert (ended.text, ended.tokens, ended.finish_reason) == ("", GREEDY.max_new_tokens, "stop")


def test_beyond_the_queue_it_is_busy_and_people_who_chat_come_first(
    tiny_base: Base, servers: list[FakeVllm], home: Home
) -> None:
    slowed(servers)
    engine = RemoteEngine(
        tiny_base, [servers[0].url], home.adapters, max_waiting=2, rows_per_server=1, patience=30
    )
    engine.start()
    running = engine.submit(HELLO, sampling=LONG)
    until(lambda: running.replies[0].tokens)
    rollout = engine.submit(HELLO, sampling=GREEDY, kind="rollout")
    chat = engine.submit(HELLO, sampling=GREEDY)
    assert (chat.queue_position, rollout.queue_position, engine.load_now) == (1, 2, (1, 2))
    with pytest.raises(Busy, match="2 requests are waiting already"):
        engine.submit(HELLO)
    running.stop()
    slowed(servers, 0.0)
    done(rollout)
    assert chat.is_done
    engine.close()


def test_without_one_of_its_servers_it_lets_in_what_the_others_can_write(
    tiny_base: Base, servers: list[FakeVllm], home: Home
) -> None:
    """What is more would queue on a server, where chat waits behind rollouts."""
    urls = [server.url for server in servers]
    servers[0].die()
    slowed(servers, 0.2)
    engine = RemoteEngine(tiny_base, urls, home.adapters, dtype=torch.float32, rows_per_server=1, patience=30)
    engine.start()
    running = engine.submit(HELLO, sampling=LONG)
    rollout = engine.submit(HELLO, sampling=LONG, kind="rollout")
    until(lambda: running.replies[0].tokens > 2)
    assert (engine.load_now, rollout.queue_position) == ((1, 1), 1)
    servers.append(FakeVllm(tiny_base, port=servers[0].port, pause=0.2))
    until(lambda: engine.load_now == (2, 0))
    engine.close()


def test_swaps_under_streams_leave_every_answer_that_of_its_version(
    remote: RemoteEngine,
    servers: list[FakeVllm],
    tiny_base: Base,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = [[{"role": "user", "content": text}] for text in ("Hello.", "Count to ten.")]
    adapters = [write_adapter(tmp_path / f"{i}", tiny_base.config, seed=i, size=0.5) for i in range(2)]
    here = partial(Engine, tiny_base, precision="float32")
    references = [reference(here, adapter, prompts, GREEDY) for adapter in (None, *adapters)]
    let_each_version_meet_a_stream(remote, monkeypatch)
    with ThreadPoolExecutor(1) as beside:
        swapping = beside.submit(swap, remote, references, 6, pause=0.05)
        answers = stream(remote, prompts, GREEDY, streams=4, until=swapping.done)
        swaps = swapping.result()
    found = mistakes(remote, references, swaps, answers)
    assert (found.failed, found.wrong) == ([], [])
    assert {one.version for one in swaps} <= {answer.version for answer in answers}
    # What served before is gone from here and there.
    until(lambda: set(remote.known_versions) == {"base", remote.version})
    until(lambda: all(len(server.versions) == len(remote.known_versions) - 1 for server in servers))


def test_a_version_in_use_is_unloaded_after_its_last_request(
    remote: RemoteEngine, servers: list[FakeVllm], adapter: Path
) -> None:
    remote.load("v000001", adapter)
    remote.serve("v000001")
    slowed(servers)
    last = remote.submit(HELLO, sampling=LONG)
    until(lambda: last.replies[0].tokens)
    remote.serve("base")
    assert remote.known_versions == ["base", "v000001"]
    assert all(len(server.versions) == 1 for server in servers)
    last.stop()
    until(lambda: not any(server.versions for server in servers))
    assert remote.known_versions == ["base"]


def test_the_context_is_that_of_the_servers(tiny_base: Base, servers: list[FakeVllm], home: Home) -> None:
    servers[0].context = 512
    engine = RemoteEngine(tiny_base, [server.url for server in servers], home.adapters, patience=30)
    engine.start()
    assert (engine.base.context, tiny_base.context) == (512, 1024)
    with pytest.raises(Refused, match="leaves no room for a prompt in a context of 512"):
        engine.submit(HELLO, sampling=Sampling(max_new_tokens=500))
    engine.close()


def test_a_start_without_a_server_ends_in_a_sentence(
    tiny_base: Base, servers: list[FakeVllm], home: Home
) -> None:
    servers[0].die()
    engine = RemoteEngine(tiny_base, [servers[0].url], home.adapters, patience=0.1)
    with pytest.raises(Problem, match="No engine can be used - start one, or leave --engine out"):
        engine.start()
    engine.close()
    assert not engine.is_ready


def test_the_start_waits_for_the_first_server(tiny_base: Base, servers: list[FakeVllm], home: Home) -> None:
    port = servers[0].port
    servers[0].die()
    engine = RemoteEngine(tiny_base, [f"http://127.0.0.1:{port}"], home.adapters, patience=30)
    with ThreadPoolExecutor(1) as beside:
        starting = beside.submit(engine.start)
        time.sleep(0.2)
        assert not starting.done()
        servers.append(FakeVllm(tiny_base, port=port))
        starting.result(30)
    assert done(engine.submit(HELLO, sampling=GREEDY)).replies[0].tokens == 16
    engine.close()


def test_closing_interrupts_what_runs_and_what_waits(
    tiny_base: Base, servers: list[FakeVllm], home: Home
) -> None:
    slowed(servers)
    engine = RemoteEngine(tiny_base, [servers[0].url], home.adapters, rows_per_server=1, patience=30)
    engine.start()
    both = [engine.submit(HELLO, sampling=LONG) for _ in range(2)]
    until(lambda: both[0].replies[0].tokens)
    engine.close()
    assert [g.replies[0].finish_reason for g in both] == ["interrupted"] * 2
    for ask in (lambda: engine.submit(HELLO), lambda: engine.load("v000001", Path("gone"))):
        with pytest.raises(Busy, match="shutting down"):
            ask()
    engine.close()  # twice is harmless
    until(lambda: not servers[0].writing)


def test_an_engine_that_breaks_leaves_nobody_waiting(
    remote: RemoteEngine, servers: list[FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(servers)
    running = remote.submit(HELLO, sampling=LONG)
    until(lambda: running.replies[0].tokens)
    monkeypatch.setattr(remote._writing, "leave_what_is_over", lambda: 1 / 0)
    assert done(running).replies[0].finish_reason == "failed"
    until(lambda: remote.is_broken and not remote.is_ready)
    with pytest.raises(Busy, match="shutting down"):
        remote.submit(HELLO)
