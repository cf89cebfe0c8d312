"""Several servers, one set of versions: who confirms by what it computes is asked, nobody else."""

import logging
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chatbot.adapters import hash_files
from chatbot.basemodel import Base, load_base
from chatbot.following import Follower, load_verified
from chatbot.remote import RemoteEngine
from chatbot.vllm import Gone
from data import versions
from data.database import Database
from data.errors import Problem, Refused
from data.home import Home
from data.records import Sampling
from tests.adapter_files import make_version, write_adapter
from tests.fake_vllm import FakeVllm, engine_on, slowed
from tests.test_engine import done
from tests.test_following import with_canary
from tests.tiny import make_tiny_model
from tests.waiting import until

HELLO = [{"role": "user", "content": "Hello there."}]
GREEDY = Sampling(temperature=0, max_new_tokens=8)


def back(server: FakeVllm) -> FakeVllm:
    """The same server after a restart: nothing is loaded."""
    server.die()
    return FakeVllm(server.base, port=server.port, context=server.context)


def problem(remote: RemoteEngine, place: int) -> str:
    """Why a server is not up, once that is known."""
    replica = remote._replicas.all[place]
    until(lambda: replica.problem)
    return replica.problem or ""


def test_a_published_version_is_followed_on_every_server(
    db: Database, home: Home, tiny_base: Base, remote: RemoteEngine, servers: list[FakeVllm]
) -> None:
    follower = Follower(db, home, remote)
    version = make_version(db, home, tiny_base)
    versions.publish(db, version.name, actor="test", reason="a test")
    assert follower.follow_once() and follower.problem is None
    assert done(remote.submit(HELLO, sampling=GREEDY)).version == remote.version == version.name
    names = [server.versions for server in servers]
    assert names[0] == names[1] and names[0][0].startswith(f"{version.name}-")
    assert servers[0].adapters[names[0][0]] == home.adapters / version.path


def test_other_files_are_never_loaded_under_a_name_that_was_used(
    remote: RemoteEngine, servers: list[FakeVllm], tiny_base: Base, tmp_path: Path
) -> None:
    """A name that meant something else would be answered from its old prefix cache."""
    for seed in (1, 2, 1):
        directory = write_adapter(tmp_path / f"{time.monotonic()}", tiny_base.config, seed=seed)
        remote.load("v000001", directory)
        remote.unload("v000001")
        until(lambda: not any(server.versions for server in servers))
    tags = [name for name in servers[0].loaded if name.startswith("v")]
    assert len(tags) == 3 and len(set(tags)) == 2 and tags[0] == tags[2]


def test_a_version_that_one_server_cannot_load_serves_nowhere(
    remote: RemoteEngine, servers: list[FakeVllm], adapter: Path
) -> None:
    servers[1].refuses = "LoRA rank 64 is greater than max_lora_rank 16."
    with pytest.raises(Refused, match=rf"{servers[1].url} could not load .* \(LoRA rank 64 is greater"):
        remote.load("v000001", adapter)
    assert remote.known_versions == ["base"]
    assert not any(server.versions for server in servers)
    assert done(remote.submit(HELLO, sampling=GREEDY)).version == "base"


def test_a_server_that_was_not_started_for_adapters_is_named(
    remote: RemoteEngine, servers: list[FakeVllm], adapter: Path
) -> None:
    servers[0].can_load = False
    with pytest.raises(Refused, match="loads no adapters - start it with --enable-lora"):
        remote.load("v000001", adapter)


def test_a_server_that_says_it_loaded_and_did_not_is_found_out(
    db: Database, home: Home, tiny_base: Base, remote: RemoteEngine, servers: list[FakeVllm]
) -> None:
    """The other server is right, and the pointer stays where it was all the same."""
    version = with_canary(db, home, tiny_base, 0.0)
    servers[1].ignores_adapters = True
    with pytest.raises(Refused, match=f"{servers[1].url} computes other log-probabilities of 'v000001'"):
        load_verified(db, home, remote, version.name)
    assert remote.known_versions == ["base"]
    assert not any(server.versions for server in servers)


def test_a_version_that_computes_what_its_manifest_says_is_loaded(
    db: Database, home: Home, tiny_base: Base, remote: RemoteEngine
) -> None:
    load_verified(db, home, remote, with_canary(db, home, tiny_base, 0.0005).name)
    assert remote.known_versions == ["base", "v000001"]


def test_a_server_that_dies_is_taken_out_and_gets_what_it_missed_before_it_serves(
    remote: RemoteEngine, servers: list[FakeVllm], adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    servers[0].die()
    assert "does not answer" in problem(remote, 0)
    remote.load("v000001", adapter)
    remote.serve("v000001")
    here = done(remote.submit(HELLO, sampling=GREEDY)).replies[0].token_ids
    with caplog.at_level(logging.WARNING):
        servers.append(back(servers[0]))
        until(lambda: len(remote._replicas.up) == 2)
    assert servers[2].versions == servers[1].versions != []
    servers[1].die()
    assert done(remote.submit(HELLO, sampling=GREEDY)).replies[0].token_ids == here
    assert f"{servers[0].url} is up." in caplog.text


def test_a_server_that_was_started_anew_between_two_looks_is_found_out_by_its_answer(
    remote: RemoteEngine, servers: list[FakeVllm], adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.writing.PATIENCE_SECONDS", 60.0)
    remote.load("v000001", adapter)
    remote.serve("v000001")
    for server in servers:
        server.adapters.clear()
    asked = [remote.submit(HELLO, sampling=GREEDY) for _ in range(2)]
    assert {done(generation).replies[0].finish_reason for generation in asked} == {"length"}
    until(lambda: len(remote._replicas.up) == 2)
    assert [len(server.versions) for server in servers] == [1, 1]
    assert done(remote.submit(HELLO, sampling=GREEDY)).replies[0].finish_reason == "length"


@pytest.fixture
def other_base(home: Home, tmp_path: Path) -> Base:
    """Other weights of the same shape."""
    return load_base(str(make_tiny_model(tmp_path / "other", seed=5)), home, lambda text: None)


def come_back_with(other_base: Base, remote: RemoteEngine, servers: list[FakeVllm], why: str) -> list[bool]:
    """The first server does, until it is refused for that reason; which are up, once a reply was written."""
    servers[0].die()
    problem(remote, 0)
    servers.append(FakeVllm(other_base, port=servers[0].port))
    until(lambda: why in problem(remote, 0))
    assert done(remote.submit(HELLO, sampling=GREEDY)).replies[0].finish_reason == "length"
    return [replica.is_up for replica in remote._replicas.all]


def test_a_server_that_comes_back_with_another_model_stays_out(
    remote: RemoteEngine, servers: list[FakeVllm], other_base: Base
) -> None:
    why = "computes other log-probabilities of 'base' than its weights"
    assert come_back_with(other_base, remote, servers, why) == [False, True]


def test_a_server_that_is_the_first_with_another_model_is_found_out(
    tiny_base: Base, servers: list[FakeVllm], home: Home, other_base: Base
) -> None:
    servers.append(FakeVllm(other_base))
    alone = RemoteEngine(tiny_base, [servers[2].url], home.adapters, patience=60)
    sentence = r"No engine can be used.* log-probabilities of 'base' than its weights have \(.* allowed\)"
    with pytest.raises(Problem, match=sentence):
        alone.start()
    alone.close()
    assert len(servers[2].adapters) == 1  # those whose model it is go on
    beside = RemoteEngine(tiny_base, [servers[2].url, servers[0].url], home.adapters, patience=60)
    beside.start()
    assert [replica.is_up for replica in beside._replicas.all] == [False, True]
    beside.close()


def test_without_room_for_the_base_the_servers_are_compared_with_each_other(
    tiny_base: Base,
    servers: list[FakeVllm],
    home: Home,
    other_base: Base,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("chatbot.base_canary.free_bytes", lambda device: 2**10)
    with engine_on(tiny_base, servers, home.adapters) as engine:
        assert "whether the first engine holds the same base is not checked" in caplog.text
        why = "computes something else than the other engines"
        assert come_back_with(other_base, engine, servers, why) == [False, True]


def test_a_server_that_comes_back_with_a_shorter_context_stays_out(
    remote: RemoteEngine, servers: list[FakeVllm], tiny_base: Base
) -> None:
    servers[0].die()
    problem(remote, 0)
    servers.append(FakeVllm(tiny_base, port=servers[0].port, context=256))
    until(lambda: "takes 256 tokens where 1,024 are promised" in problem(remote, 0))
    assert done(remote.submit(HELLO, sampling=GREEDY)).replies[0].finish_reason == "length"
    assert [replica.is_up for replica in remote._replicas.all] == [False, True]


def test_a_version_loads_where_it_can_while_a_server_is_down(
    remote: RemoteEngine, servers: list[FakeVllm], adapter: Path
) -> None:
    servers[0].die()  # not noticed yet, or just so
    remote.load("v000001", adapter)
    assert remote.known_versions == ["base", "v000001"]
    assert len(servers[1].versions) == 1


def test_a_server_that_is_out_and_stuck_keeps_no_version_from_the_others(
    remote: RemoteEngine, servers: list[FakeVllm], home: Home, tiny_base: Base
) -> None:
    older, newer = (write_adapter(home.adapters / name, tiny_base.config) for name in ("v000001", "v000002"))
    remote.load("v000001", older)
    servers[0].may_work.clear()
    remote._loop.call_soon_threadsafe(
        remote._replicas.take_out, remote._replicas.all[0], Gone("It wrote nothing.")
    )
    until(lambda: servers[0].waiting > 0)
    with ThreadPoolExecutor(1) as beside:
        try:
            beside.submit(remote.load, "v000002", newer).result(60)
            beside.submit(remote.unload, "v000001").result(60)
        finally:
            servers[0].may_work.set()
    until(lambda: len(remote._replicas.up) == 2)
    assert servers[0].versions == servers[1].versions
    assert len(servers[1].versions) == 1


def test_replies_go_on_while_the_files_of_a_version_are_read(
    remote: RemoteEngine, servers: list[FakeVllm], adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_reading, may_end = threading.Event(), threading.Event()

    def read_slowly(directory: Path) -> dict[str, str]:
        is_reading.set()
        may_end.wait(120)
        return hash_files(directory)

    monkeypatch.setattr("chatbot.edition.hash_files", read_slowly)
    slowed(servers, 0.1)
    reply = remote.submit(HELLO, sampling=Sampling(temperature=0, max_new_tokens=400)).replies[0]
    with ThreadPoolExecutor(1) as beside:
        loading = beside.submit(remote.load, "v000001", adapter)
        try:
            assert is_reading.wait(60)
            seen = reply.tokens
            until(lambda: reply.tokens > seen + 5)
            assert not loading.done(), "the files were being read all the while"
        finally:
            may_end.set()
        loading.result(60)
    assert remote.known_versions == ["base", "v000001"]


def test_a_version_that_was_let_go_while_a_server_was_out_is_unloaded_there_too(
    db: Database, home: Home, remote: RemoteEngine, servers: list[FakeVllm], tiny_base: Base
) -> None:
    for seed in range(2):
        version = make_version(db, home, tiny_base, seed=seed)
        remote.load(version.name, home.adapters / version.path)
    servers[0].is_ill = True
    problem(remote, 0)
    remote.unload("v000001")
    until(lambda: len(servers[1].versions) == 1)
    assert len(servers[0].versions) == 2
    servers[0].is_ill = False
    until(lambda: len(remote._replicas.up) == 2)
    assert servers[0].versions == servers[1].versions
    assert remote.known_versions == ["base", "v000002"]


def test_what_a_killed_process_left_is_unloaded_and_nothing_that_others_may_want(
    tiny_base: Base, servers: list[FakeVllm], home: Home, tmp_path: Path
) -> None:
    """A night and a chat server share servers, and so may two installations."""
    left = {
        "v000007-0123456789ab": home.adapters / "v000007",
        "rollout-1-0123456789ab": home.adapters / "rollout-1",
        "v000007-ba9876543210": tmp_path / "elsewhere" / "v000007",
        "rollout-2-ba9876543210": tmp_path / "elsewhere" / "rollout-2",
        "summaries": tmp_path / "summaries",
    }
    servers[0].adapters.update(left)
    names = list(left)
    for prefix, stay in (("v", names[1:]), ("rollout-", names[2:])):
        engine = RemoteEngine(tiny_base, [servers[0].url], home.adapters, patience=30, prefix=prefix)
        engine.start()
        engine.close()
        assert servers[0].versions == stay


def test_what_is_loaded_already_is_taken_as_it_is(
    tiny_base: Base, servers: list[FakeVllm], adapter: Path, home: Home
) -> None:
    """A server of ours that was killed leaves its versions on the engines."""
    for _ in range(2):
        with engine_on(tiny_base, servers, home.adapters) as engine:
            engine.load("v000001", adapter)
    assert [len(server.versions) for server in servers] == [1, 1]


def test_an_address_without_vllm_is_told_at_once(
    tiny_base: Base, servers: list[FakeVllm], home: Home
) -> None:
    servers[0].is_foreign = True
    engine = RemoteEngine(tiny_base, [servers[0].url], home.adapters, patience=60)
    with pytest.raises(Problem, match=f"No engine can be used.* {servers[0].url} is no vLLM server"):
        engine.start()
    engine.close()


def test_a_damaged_version_never_reaches_a_server(
    db: Database, home: Home, tiny_base: Base, remote: RemoteEngine, servers: list[FakeVllm]
) -> None:
    version = make_version(db, home, tiny_base)
    shutil.rmtree(home.adapters / version.path)
    with pytest.raises(Refused, match="it is not a directory"):
        load_verified(db, home, remote, version.name)
    assert not any(name.startswith("v") for server in servers for name in server.loaded)
