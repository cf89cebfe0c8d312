"""Following: what is published serves within a second; what is damaged never does, and says why."""

import json
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from math import nan
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from chatbot import adapters
from chatbot.basemodel import Base, load_base
from chatbot.canary import CANARY_TOLERANCE, too_far_off
from chatbot.engine import Engine
from chatbot.following import Answering, Follower, load_verified
from chatbot.manifest import MANIFEST, Canary
from data import versions
from data.database import Database
from data.errors import Busy, NotFound, Refused
from data.home import Home
from data.records import Prompt, Sampling, Serving, Version
from tests.adapter_files import make_version, write_adapter
from tests.tiny import make_tiny_model
from tests.waiting import until
from trainer.canary import canaries
from trainer.publish import write_candidate

HELLO = [{"role": "user", "content": "Hello there."}]
PROMPTS = [Prompt(({"role": "user", "content": text},), None, "test") for text in ("Hello.", "Count to ten.")]


@pytest.fixture
def follower(db: Database, home: Home, engine: Engine) -> Iterator[Follower]:
    made = Follower(db, home, engine)
    yield made
    made.close()


def publish(db: Database, name: str) -> None:
    versions.publish(db, name, actor="test", reason="a test")


def canaries_of(home: Home, base: Base) -> list[Canary]:
    """What an adapter in the state directory says of its replies."""
    adapter = write_adapter(home.runs / "canary", base.config, size=0.3)
    return canaries(base, adapter, PROMPTS, seed=1)


def version_with(db: Database, home: Home, base: Base, canary: list[Canary]) -> Version:
    """A version of that adapter, with these canaries in its manifest."""
    with write_candidate(
        db,
        home,
        base,
        adapter_dir=home.runs / "canary",
        run=None,
        parent="base",
        canary=canary,
        snapshot_sha256=None,
        rankings=1,
    ) as candidate:
        return candidate.appear(report={}, status="accepted")


def with_canary(db: Database, home: Home, base: Base, shift: float) -> Version:
    """A version whose manifest says `shift` nats more of its replies than its files do."""
    told = canaries_of(home, base)
    return version_with(db, home, base, [{**c, "logprob": c["logprob"] + shift} for c in told])


def damage(home: Home, version: Version, file: str) -> None:
    """Changes one byte near the end."""
    path = home.adapters / version.path / file
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def answer(engine: Engine) -> tuple[str, list[int]]:
    generation = engine.submit(HELLO, sampling=Sampling(temperature=0, max_new_tokens=8))
    assert generation.wait(60)
    return generation.version, generation.replies[0].token_ids


def test_a_published_version_answers_by_itself(
    db: Database, home: Home, tiny_base: Base, engine: Engine
) -> None:
    follower = Follower(db, home, engine)
    follower.start()
    version = make_version(db, home, tiny_base)
    before = answer(engine)
    publish(db, version.name)
    until(lambda: engine.version == version.name)
    assert before[0] == "base" and answer(engine)[0] == version.name
    assert answer(engine)[1] != before[1]
    follower.close()


def test_nothing_happens_while_what_should_serve_serves(follower: Follower, engine: Engine) -> None:
    assert follower.follow_once() and follower.problem is None
    assert engine.known_versions == ["base"]


@pytest.mark.parametrize("file", [adapters.TENSORS, adapters.CONFIG, MANIFEST])
def test_a_damaged_version_does_not_serve_and_a_sentence_says_why(
    db: Database, home: Home, tiny_base: Base, engine: Engine, follower: Follower, file: str
) -> None:
    good, bad = (make_version(db, home, tiny_base, seed=seed) for seed in (1, 2))
    publish(db, good.name)
    assert follower.follow_once()
    damage(home, bad, file)
    publish(db, bad.name)
    assert not follower.follow_once()
    assert answer(engine)[0] == engine.version == good.name
    assert follower.problem is not None
    assert follower.problem.startswith(f"{bad.name} does not serve. When it was last tried: ")
    assert follower.problem.endswith(f" {good.name} goes on answering, and {bad.name} is tried again.")
    assert follower.answering() == Answering(good.name, follower.problem)


def test_another_manifest_than_the_published_one_is_refused(
    db: Database, home: Home, tiny_base: Base, engine: Engine
) -> None:
    version = make_version(db, home, tiny_base)
    path = home.adapters / version.path / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rankings": 99}))
    with pytest.raises(Refused, match="is not the one published"):
        load_verified(db, home, engine, version.name)


def test_a_version_whose_files_are_gone_does_not_serve(
    db: Database, home: Home, tiny_base: Base, engine: Engine, follower: Follower
) -> None:
    version = make_version(db, home, tiny_base)
    shutil.rmtree(home.adapters / version.path)
    publish(db, version.name)
    assert not follower.follow_once()
    assert follower.problem is not None and "it is not a directory" in follower.problem


def test_a_failure_is_logged_once_and_tried_again_later(
    db: Database,
    home: Home,
    tiny_base: Base,
    follower: Follower,
    caplog: pytest.LogCaptureFixture,
) -> None:
    version = make_version(db, home, tiny_base)
    directory = home.adapters / version.path
    directory.rename(directory.with_name("away"))
    publish(db, version.name)
    assert [follower.follow_once() for _ in range(3)] == [False] * 3
    follower._retry_at = 0.0
    assert not follower.follow_once() and len(caplog.records) == 1
    directory.with_name("away").rename(directory)
    follower._retry_at = 0.0
    assert follower.follow_once() and follower.follow_once() and follower.problem is None


def test_the_pause_after_each_failure_doubles_until_another_version_is_to_serve(
    db: Database, home: Home, tiny_base: Base, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.following.time", SimpleNamespace(monotonic=lambda: 100.0))
    first, second = (make_version(db, home, tiny_base, seed=seed) for seed in (1, 2))
    for version in (first, second):
        shutil.rmtree(home.adapters / version.path)
    pauses = []
    for name, times in ((first.name, 8), (second.name, 1)):
        publish(db, name)
        for _ in range(times):
            follower._retry_at = 0.0
            assert not follower.follow_once()
            pauses.append(follower._retry_at - 100)
    assert pauses == [30, 60, 120, 240, 480, 960, 1800, 1800, 30]


def test_a_version_that_was_mended_and_published_anew_is_tried_at_once(
    db: Database, home: Home, tiny_base: Base, engine: Engine, follower: Follower
) -> None:
    version = make_version(db, home, tiny_base)
    directory = home.adapters / version.path
    directory.rename(directory.with_name("away"))
    publish(db, version.name)
    assert not follower.follow_once() and follower.problem is not None
    directory.with_name("away").rename(directory)
    assert not follower.follow_once(), "it is not its turn yet"
    publish(db, "base")
    publish(db, version.name)  # before the follower has looked
    assert follower.follow_once() and engine.version == version.name


def test_nothing_is_said_of_a_version_before_it_was_tried(
    db: Database, home: Home, tiny_base: Base, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = (make_version(db, home, tiny_base, seed=seed) for seed in (1, 2))
    damage(home, bad, adapters.TENSORS)
    publish(db, bad.name)
    assert not follower.follow_once() and follower.problem is not None
    said = []
    monkeypatch.setattr("chatbot.following.load_verified", lambda *given: said.append(follower.problem))
    publish(db, good.name)
    assert not follower.follow_once() and said == [None], "what was not loaded cannot serve"


def test_a_version_of_another_base_does_not_serve(
    db: Database, home: Home, engine: Engine, follower: Follower, tmp_path: Path
) -> None:
    other = load_base(str(make_tiny_model(tmp_path / "other", seed=5)), home, lambda text: None)
    version = make_version(db, home, other)
    publish(db, version.name)
    assert not follower.follow_once() and engine.version == "base"
    assert follower.problem is not None and "trained on another base model ('other')" in follower.problem


def test_rolling_back_is_followed_down_to_the_base(
    db: Database, home: Home, tiny_base: Base, engine: Engine, follower: Follower
) -> None:
    first = make_version(db, home, tiny_base, seed=1)
    second = make_version(db, home, tiny_base, seed=2, parent=first.name)
    at_base = answer(engine)[1]
    said = []
    for step in (first.name, second.name, None, None):
        publish(db, step) if step else versions.rollback(db, actor="test")
        assert follower.follow_once()
        said.append(answer(engine))
    assert [name for name, _ in said] == [first.name, second.name, first.name, "base"]
    assert said[0] == said[2] and said[3][1] == at_base
    until(lambda: engine.known_versions == ["base"])


def test_a_version_rolled_back_while_it_is_built_never_serves(
    db: Database,
    home: Home,
    tiny_base: Base,
    engine: Engine,
    follower: Follower,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = make_version(db, home, tiny_base, seed=1)
    second = make_version(db, home, tiny_base, seed=2, parent=first.name)
    publish(db, first.name)
    assert follower.follow_once()
    publish(db, second.name)
    served, build = [], engine.load

    def load(name: str, adapter: Path | None) -> None:
        build(name, adapter)
        versions.rollback(db, actor="test")

    monkeypatch.setattr(engine, "load", load)
    monkeypatch.setattr(engine, "serve", served.append)
    assert not follower.follow_once()
    assert served == [] and engine.version == first.name and follower.problem is None
    until(lambda: engine.known_versions == ["base", first.name])
    assert follower.follow_once()


def test_a_version_is_let_go_where_the_database_fails_once_it_is_built(
    db: Database,
    home: Home,
    tiny_base: Base,
    engine: Engine,
    follower: Follower,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = make_version(db, home, tiny_base)
    publish(db, version.name)
    looks, serving = iter([True]), versions.serving

    def locked_later(db: Database) -> Serving:
        if next(looks, None) is None:
            raise Busy("Another process is writing to the database - try again in a moment.")
        return serving(db)

    monkeypatch.setattr(versions, "serving", locked_later)
    assert not follower.follow_once()
    assert "Another process is writing" in str(follower.problem)
    until(lambda: engine.known_versions == ["base"])


def test_a_problem_is_over_once_another_version_serves(
    db: Database, home: Home, tiny_base: Base, follower: Follower
) -> None:
    bad, good = (make_version(db, home, tiny_base, seed=seed) for seed in (1, 2))
    damage(home, bad, adapters.TENSORS)
    publish(db, bad.name)
    assert not follower.follow_once()
    publish(db, good.name)
    assert follower.follow_once() and follower.follow_once()
    assert follower.problem is None


def test_a_version_that_computes_what_its_manifest_says_is_loaded(
    db: Database, home: Home, tiny_base: Base, engine: Engine
) -> None:
    load_verified(db, home, engine, with_canary(db, home, tiny_base, 0.0005).name)
    assert "v000001" in engine.known_versions


@pytest.mark.parametrize("shift", [0.002, -0.5, float("1e9")])
def test_a_version_that_computes_something_else_is_let_go(
    db: Database, home: Home, tiny_base: Base, engine: Engine, shift: float
) -> None:
    version = with_canary(db, home, tiny_base, shift)
    with pytest.raises(Refused, match="computes other log-probabilities here than where it was trained"):
        load_verified(db, home, engine, version.name)
    assert engine.known_versions == ["base"]


def test_a_single_short_reply_may_be_off_where_the_others_are_not(
    db: Database, home: Home, tiny_base: Base, engine: Engine
) -> None:
    """In bfloat16 one reply of few tokens is; the bound is on the mean over all tokens."""
    told = canaries_of(home, tiny_base)
    tokens = [len(canary["ids"]) - canary["reply_start"] for canary in told]
    may_be = 0.9 * CANARY_TOLERANCE[engine.dtype] * sum(tokens)
    told[0]["logprob"] += may_be / tokens[0]
    load_verified(db, home, engine, version_with(db, home, tiny_base, told).name)
    told[1]["logprob"] += may_be / tokens[1]
    with pytest.raises(Refused, match="computes other log-probabilities"):
        load_verified(db, home, engine, version_with(db, home, tiny_base, told).name)


@pytest.mark.parametrize(("shift", "is_loaded"), [(0.5, True), (1.5, False)])
def test_a_version_of_the_other_format_may_be_as_far_off_as_four_bits_are(
    db: Database, home: Home, tiny_base: Base, engine: Engine, shift: float, is_loaded: bool
) -> None:
    told = canaries_of(home, tiny_base)
    for canary in told:
        canary["logprob"] += shift
        canary["four_bit"] = True
    version = version_with(db, home, tiny_base, told)
    with nullcontext() if is_loaded else pytest.raises(Refused, match=r"1\.0 allowed"):
        load_verified(db, home, engine, version.name)


@pytest.mark.parametrize(("shift", "is_loaded"), [(0.05, True), (0.1, False)])
def test_a_version_that_was_read_in_bfloat16_may_be_as_far_off_as_that_is(
    db: Database, home: Home, tiny_base: Base, engine: Engine, shift: float, is_loaded: bool
) -> None:
    told = canaries_of(home, tiny_base)
    for canary in told:
        canary["logprob"] += shift
        canary["bfloat16"] = True
    version = version_with(db, home, tiny_base, told)
    with nullcontext() if is_loaded else pytest.raises(Refused, match=r"0\.08 allowed"):
        load_verified(db, home, engine, version.name)


@pytest.mark.parametrize(
    ("logprob", "off"),
    [
        (-2.0009, None),
        (-2.002, "0.0020 nats a token off, 0.001 allowed"),
        (nan, "nan nats a token off, 0.001 allowed"),
    ],
)
def test_how_far_off_a_version_is_is_said_where_that_is_too_far(logprob: float, off: str | None) -> None:
    told = Canary(ids=[1, 7, 8], reply_start=1, logprob=-2.0)
    assert too_far_off([told], [logprob], torch.float32, four_bit=False) == off


def test_the_base_needs_no_files_and_an_unknown_version_is_named(
    db: Database, home: Home, engine: Engine
) -> None:
    load_verified(db, home, engine, "base")
    with pytest.raises(NotFound, match="No version 'v000099'"):
        load_verified(db, home, engine, "v000099")


def test_closing_without_a_start_is_harmless(follower: Follower) -> None:
    follower.close()
    assert follower.problem is None
