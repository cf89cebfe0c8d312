"""Who writes replies: servers write what the merged copy here writes, of the policy as it is just then."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pytest
import torch

from chatbot.basemodel import Base, load_base
from chatbot.engine import Engine
from chatbot.models import load_model
from chatbot.policy import Policy
from chatbot.remote import RemoteEngine
from chatbot.runner import bytes_to_prepare, prepare
from data import runs
from data.database import Database
from data.errors import Problem
from data.home import Home
from data.records import Sampling
from tests.adapter_files import make_version
from tests.fake_vllm import FakeVllm, slowed
from tests.learners import CPU, END, PROMPTS, a_learner, shake
from tests.nights import a_night, rank_by_taste
from tests.tiny import make_tiny_model
from tests.waiting import until
from trainer import sampler
from trainer.forward import Reply
from trainer.sampler import MergedSampler, Sampler, ServerSampler, sample_replies

SAMPLING = Sampling(0.8, 1.0, 12)


def merged(policy: Policy) -> MergedSampler:
    return MergedSampler(load_model(policy.base, device=CPU, dtype=torch.float32))


def write(writer: Sampler, policy: Policy, seed: int = 4) -> list[Reply]:
    return writer.write(policy, PROMPTS * 2, sampling=SAMPLING, seed=seed)


def test_servers_write_what_is_written_here_of_the_policy_as_it_is_now(
    tiny_base: Base, remote: RemoteEngine, servers: list[FakeVllm], home: Home
) -> None:
    policy = a_learner(tiny_base)
    here, there = merged(policy), ServerSampler(remote, home.adapters)
    before = set(home.adapters.iterdir())
    written = []
    for seed in (1, 2):
        shake(policy, "policy", 0.4, seed=seed)
        mine, theirs = (write(writer, policy) for writer in (here, there))
        assert theirs == mine
        for one, other in zip(mine, theirs, strict=True):
            assert other.logprobs == pytest.approx(one.logprobs, abs=1e-4)
        written.append(theirs)
    assert written[0] != written[1] and sum(len(server.asked) for server in servers) == 16
    until(lambda: not any(server.versions for server in servers))
    assert set(home.adapters.iterdir()) == before and remote.known_versions == ["base"]


def test_more_prompts_than_may_wait_are_all_answered(
    tiny_base: Base, servers: list[FakeVllm], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "WAITING", 2)
    policy = a_learner(tiny_base)
    engine = RemoteEngine(
        tiny_base, [servers[0].url], home.adapters, dtype=torch.float32, max_waiting=2, rows_per_server=1
    )
    engine.start()
    told: list[float] = []
    replies = ServerSampler(engine, home.adapters).write(
        policy, PROMPTS, sampling=SAMPLING, seed=4, tell=told.append
    )
    engine.close()
    assert replies == merged(policy).write(policy, PROMPTS, sampling=SAMPLING, seed=4)
    assert told == [0.25, 0.5, 0.75, 1.0]


def test_a_batch_takes_as_long_as_it_takes_while_servers_write(
    tiny_base: Base,
    remote: RemoteEngine,
    servers: list[FakeVllm],
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("DEADLINE", "LONG_DEADLINE"):
        for module in ("generation", "interface"):
            monkeypatch.setattr(f"chatbot.{module}.{name}", 0.1, raising=False)
    slowed(servers, 0.05)
    policy = a_learner(tiny_base)
    assert write(ServerSampler(remote, home.adapters), policy) == write(merged(policy), policy)


def test_a_reply_that_servers_lose_ends_the_batch_and_leaves_nothing(
    tiny_base: Base, remote: RemoteEngine, servers: list[FakeVllm], home: Home
) -> None:
    before = set(home.adapters.iterdir())
    for server in servers:
        server.fails_with = 400
    with pytest.raises(Problem, match="left a reply unfinished - look after them, then resume"):
        write(ServerSampler(remote, home.adapters), a_learner(tiny_base))
    assert set(home.adapters.iterdir()) == before and remote.known_versions == ["base"]


def test_a_night_does_not_wait_for_ever_for_servers_that_are_gone(
    tiny_base: Base, servers: list[FakeVllm], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What still waits to be let in is lost on no server, and would wait on."""
    monkeypatch.setattr(sampler, "STALLED_SECONDS", 1.0)
    engine = RemoteEngine(tiny_base, [servers[0].url], home.adapters, dtype=torch.float32, rows_per_server=1)
    engine.start()

    def die(fraction: float) -> None:
        servers[0].die()

    with pytest.raises(Problem, match="The engines have written nothing for 1 seconds - look after them"):
        ServerSampler(engine, home.adapters).write(
            a_learner(tiny_base), PROMPTS, sampling=SAMPLING, seed=4, tell=die
        )
    engine.close()


def modes(directory: Path) -> tuple[int, set[int]]:
    """Who may read a directory, and its files."""
    return directory.stat().st_mode, {path.stat().st_mode for path in directory.iterdir()}


def test_servers_of_another_user_can_read_a_rollout_as_they_can_a_version(
    db: Database, tiny_base: Base, remote: RemoteEngine, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = remote.load
    found: list[tuple[int, set[int]]] = []

    def looked_at(name: str, directory: Path) -> None:
        found.append(modes(directory))
        load(name, directory)

    monkeypatch.setattr(remote, "load", looked_at)
    write(ServerSampler(remote, home.adapters), a_learner(tiny_base))
    assert found == [modes(home.adapters / make_version(db, home, tiny_base).path)]


def test_rollouts_of_a_night_that_was_killed_are_removed_and_nothing_else(
    db: Database, tiny_base: Base, remote: RemoteEngine, home: Home
) -> None:
    make_version(db, home, tiny_base)
    before = set(home.adapters.iterdir())
    (home.adapters / "rollout-killed").mkdir()
    (home.adapters / "rollout-killed" / "adapter_config.json").write_text("{}")
    ServerSampler(remote, home.adapters).remove_leftovers()
    assert set(home.adapters.iterdir()) == before


def test_a_night_whose_replies_servers_write_ends_as_any_other(
    db: Database, home: Home, tiny_base: Base, servers: list[FakeVllm], tmp_path: Path
) -> None:
    engine = Engine(tiny_base)
    engine.start()
    rank_by_taste(db, engine, count=60)  # as many as make a judge, without whom nobody practises
    engine.close()
    (home.adapters / "rollout-killed").mkdir()
    servers[0].adapters["rollout-killed-0123456789ab"] = home.adapters / "rollout-killed"
    for server in servers:  # they compute in bfloat16, the night in float32
        server.rounds_by = 0.02
    urls = ",".join(server.url for server in servers)
    short = {"updates": 2, "gate_prompts": 8}
    run = a_night(db, home, tiny_base, engine=urls, **short)
    assert run.state in ("published", "refused")
    # At least: a reply whose connection a busy machine breaks is asked for once more.
    assert sum(len(server.asked) for server in servers) >= 3 * 32
    gaps = [m.value for m in runs.metrics(db, run.id) if m.name == "sampler_gap"]
    assert len(gaps) == 3 and max(gaps) < 1e-4
    assert not list(home.adapters.glob("rollout-*"))
    until(lambda: not any(server.versions for server in servers))


def sampled(
    base: Base, *, as_likely: Mapping[int, int] = MappingProxyType({}), count: int = 40, seed: int = 0
) -> list[Reply]:
    """Replies of the bare base, with some tokens made as likely as others."""
    model = load_model(base, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        weight = cast(Any, model.get_output_embeddings()).weight
        for token, other in as_likely.items():
            weight[token] = weight[other]
    prompts = [[1, 80 + i] for i in range(count)]
    return sample_replies(
        model, prompts, sampling=Sampling(max_new_tokens=12), end_of_turn=base.format.end_of_turn, seed=seed
    )


def test_a_reply_ends_at_the_template_s_end_of_turn_not_at_the_tokenizer_s_eos(home: Home) -> None:
    path = make_tiny_model(home.root / "other", eos="<|endoftext|>")
    base = load_base(str(path), home, lambda text: None)
    replies = sampled(base, as_likely={0: 46, END: 84})
    assert (base.tokenizer.eos_token_id, base.format.end_of_turn) == (0, END)
    assert 0 < sum(r.finished for r in replies) < len(replies)
    for r in replies:
        assert r.finished == (r.reply[-1] == END)
        assert END not in r.reply[:-1]
        assert r.finished or len(r.reply) == 12
    assert any(0 in r.reply for r in replies)


def test_the_same_seed_samples_the_same_replies_in_the_order_of_their_prompts(tiny_base: Base) -> None:
    one = sampled(tiny_base, seed=5)
    assert one == sampled(tiny_base, seed=5) != sampled(tiny_base, seed=6)
    assert [r.prompt for r in one] == [[1, 80 + i] for i in range(40)]
    assert len({tuple(r.reply) for r in one}) > 30


def test_where_memory_is_short_the_weights_are_not_copied(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    plenty, copied = sampled(tiny_base, seed=5), []
    model = load_model(tiny_base, device=CPU, dtype=torch.float32)
    needed = bytes_to_prepare(model, "float32")

    def copy(*given: Any) -> Any:
        copied.append(True)
        return prepare(*given)

    monkeypatch.setattr(sampler, "prepare", copy)
    for free, is_copied in ((needed, False), (needed + 1, True)):
        monkeypatch.setattr(sampler, "free_bytes", lambda device, free=free: free)
        assert [r.reply for r in sampled(tiny_base, seed=5)] == [r.reply for r in plenty]
        assert bool(copied) == is_copied
