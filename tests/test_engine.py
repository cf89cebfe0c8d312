"""The engine: several people at once, a queue with an end, stops, failures, versions changing in flight."""

import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import PreTrainedModel

from chatbot.basemodel import Base
from chatbot.engine import Engine
from chatbot.generation import Generation
from chatbot.kernels import Format, bytes_a_weight
from chatbot.memory import column_bytes
from chatbot.models import merged_model
from chatbot.runner import PIECE, LlamaRunner, bytes_to_prepare
from data.errors import Busy, NotFound, Problem, Refused
from data.records import Sampling
from tests.jobs import ask_tokens
from tests.waiting import until

HELLO = [{"role": "user", "content": "Hello there."}]
GREEDY = Sampling(temperature=0, max_new_tokens=16)
LONG = Sampling(temperature=0, max_new_tokens=900)
LONG_PROMPT = [3 + i % 250 for i in range(900)]
END_OF_WAITING = 60
Endless = Callable[[Engine], Generation]


def done(generation: Generation) -> Generation:
    assert generation.wait(END_OF_WAITING)
    return generation


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Endless:
    """Asks for a reply that outlasts the test unless it is stopped: each of its 900 steps takes a while."""
    step = LlamaRunner.step

    def slow_step(self: LlamaRunner, beside: int) -> None:
        time.sleep(0.01)
        step(self, beside)

    monkeypatch.setattr(LlamaRunner, "step", slow_step)
    return lambda engine: engine.submit(HELLO, sampling=LONG)


@pytest.fixture
def may_step(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """A step is done for each time that it is released."""
    step, may_step = LlamaRunner.step, threading.Semaphore(0)

    def step_when_told(self: LlamaRunner, beside: int) -> None:
        assert may_step.acquire(timeout=END_OF_WAITING)
        step(self, beside)

    monkeypatch.setattr(LlamaRunner, "step", step_when_told)
    return may_step


@pytest.mark.parametrize("replies", range(1, 10))
def test_a_prompt_has_as_many_replies_as_asked_for(engine: Engine, replies: int) -> None:
    generation = done(engine.submit(HELLO, replies=replies, sampling=Sampling(max_new_tokens=6)))
    assert len(generation.replies) == replies == len({reply.seed for reply in generation.replies})
    for reply in generation.replies:
        assert reply.finish_reason in ("stop", "length")
        assert reply.tokens == len(reply.token_ids) <= 6
        assert reply.text == engine.base.format.decode(reply.token_ids)


@pytest.mark.parametrize("replies", [0, 10, -1])
def test_a_count_out_of_range_is_refused(engine: Engine, replies: int) -> None:
    with pytest.raises(Refused, match="use 1 to 9"):
        engine.submit(HELLO, replies=replies)


def test_the_same_seeds_give_the_same_replies_beside_strangers(engine: Engine) -> None:
    first = done(engine.submit(HELLO, replies=3, seeds=[1, 2, 3]))
    strangers = [engine.submit([{"role": "user", "content": "x" * n}], replies=2) for n in (1, 90)]
    again = done(engine.submit(HELLO, replies=3, seeds=[1, 2, 3]))
    assert [r.token_ids for r in again.replies] == [r.token_ids for r in first.replies]
    assert all(done(stranger).is_done for stranger in strangers)


def test_several_people_at_once_are_each_answered(engine: Engine) -> None:
    wanted = done(engine.submit(HELLO, sampling=GREEDY)).replies[0].token_ids
    answers: list[list[int]] = []

    def ask() -> None:
        generation = done(engine.submit(HELLO, replies=4, sampling=GREEDY))
        answers.extend(reply.token_ids for reply in generation.replies)

    people = [threading.Thread(target=ask) for _ in range(8)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert answers == [wanted] * 32


def test_a_request_joins_those_under_way_and_all_share_each_step(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    step = LlamaRunner.step

    def noted(self: LlamaRunner, beside: int) -> None:
        widths.append(self.width)
        time.sleep(0.01)
        step(self, beside)

    monkeypatch.setattr(LlamaRunner, "step", noted)
    first = engine.submit(HELLO, replies=2, sampling=LONG)
    until(lambda: first.replies[0].tokens > 3)
    second = engine.submit(HELLO, replies=3, sampling=GREEDY)
    assert done(second).is_done and not first.is_done
    first.stop()
    assert max(widths) == 5 and len(widths) <= done(first).replies[0].tokens + 2


def test_the_oldest_turns_are_left_out_where_the_context_is_full(engine: Engine) -> None:
    turns = [{"role": role, "content": "x" * 200} for _ in range(4) for role in ("user", "assistant")]
    generation = done(engine.submit([*turns, *HELLO], sampling=GREEDY))
    assert generation.dropped == 4
    assert len(generation.prompt) + GREEDY.max_new_tokens <= engine.base.context


def test_a_reply_length_that_leaves_no_room_is_refused(engine: Engine) -> None:
    with pytest.raises(Refused, match="leaves no room for a prompt in a context of 1024"):
        engine.submit(HELLO, sampling=Sampling(max_new_tokens=1000))


def test_beyond_the_queue_the_server_is_busy(tiny_base: Base, endless: Endless) -> None:
    engine = Engine(tiny_base, precision="float32", max_waiting=2, max_rows=1)
    engine.start()
    running = endless(engine)
    until(lambda: running.queue_position == 0)
    waiting = [engine.submit(HELLO, sampling=GREEDY) for _ in range(2)]
    assert ([g.queue_position for g in waiting], engine.load_now) == ([1, 2], (1, 2))
    with pytest.raises(Busy, match="2 requests are waiting already - try again"):
        engine.submit(HELLO)
    running.stop()
    assert [done(g).replies[0].finish_reason for g in waiting] == ["length", "length"]
    engine.close()


def test_a_request_wider_than_the_batch_is_served_alone(tiny_base: Base) -> None:
    engine = Engine(tiny_base, precision="float32", max_rows=2)
    engine.start()
    both = [engine.submit(HELLO, replies=count, sampling=GREEDY) for count in (5, 1)]
    assert all(done(generation).is_done for generation in both)
    engine.close()


def test_who_chats_is_read_before_long_prompts_that_were_let_in_first(
    engine: Engine, may_step: threading.Semaphore
) -> None:
    long = [ask_tokens(engine, LONG_PROMPT, sampling=GREEDY, seeds=[0]) for _ in range(5)]
    may_step.release()
    until(lambda: engine.load_now == (5, 0))
    chat = engine.submit(HELLO, sampling=GREEDY)
    may_step.release(1000)
    first_tokens = [done(generation).replies[0].first_token_at or 0.0 for generation in [chat, *long[2:]]]
    assert first_tokens[0] < min(first_tokens[1:])


@pytest.mark.parametrize("is_llama", [True, False])
def test_what_memory_cannot_hold_together_is_answered_one_after_the_other_and_chat_first(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, is_llama: bool
) -> None:
    monkeypatch.setattr("chatbot.runner.can_run", lambda model: is_llama)
    free = 9 * 1500 * column_bytes(tiny_base.config, torch.float32)
    monkeypatch.setattr("chatbot.memory.free_bytes", lambda device: free)
    engine, together = Engine(tiny_base, precision="float32"), list[int]()
    step = engine._step

    def noted(*arguments: Any) -> None:
        together.append(sum(request.kind == "rollout" for request in engine._scheduler.running))
        step(*arguments)

    monkeypatch.setattr(engine, "_step", noted)
    engine.load("base", None)
    long = [ask_tokens(engine, LONG_PROMPT, sampling=GREEDY, seeds=[0]) for _ in range(4)]
    chat = engine.submit(HELLO, sampling=GREEDY)
    engine.start()
    first_tokens = [done(generation).replies[0].first_token_at or 0.0 for generation in [chat, *long]]
    assert first_tokens == sorted(first_tokens) and max(together) == 1
    assert {generation.replies[0].finish_reason for generation in [chat, *long]} <= {"length", "stop"}
    engine.close()


def test_stopping_one_reply_leaves_its_siblings_to_be_written(
    engine: Engine, may_step: threading.Semaphore
) -> None:
    generation = engine.submit(HELLO, replies=3, sampling=Sampling(temperature=0, max_new_tokens=40))
    first, second, third = generation.replies
    may_step.release(3)
    until(lambda: second.tokens)
    second.stop()
    may_step.release(1000)
    done(generation)
    assert [r.finish_reason for r in generation.replies] == ["length", "cancelled", "length"]
    assert first.token_ids == third.token_ids
    assert second.token_ids == first.token_ids[: second.tokens] != first.token_ids


def test_stopping_all_ends_the_request_at_once_and_twice_is_harmless(
    engine: Engine, endless: Endless
) -> None:
    generation = endless(engine)
    until(lambda: generation.replies[0].tokens)
    generation.stop()
    assert generation.wait(0)
    generation.stop()
    assert generation.replies[0].finish_reason == "cancelled"
    until(lambda: engine.load_now == (0, 0))


def test_a_stop_after_the_end_changes_nothing(engine: Engine) -> None:
    generation = done(engine.submit(HELLO, sampling=GREEDY))
    generation.stop()
    assert generation.replies[0].finish_reason == "length"


def test_a_request_stopped_in_the_queue_is_never_begun(tiny_base: Base, endless: Endless) -> None:
    engine = Engine(tiny_base, precision="float32", max_rows=1)
    engine.start()
    running, waiting = endless(engine), endless(engine)
    until(lambda: running.queue_position == 0)
    waiting.stop()
    running.stop()
    until(lambda: engine.load_now == (0, 0))
    assert (waiting.is_done, waiting.replies[0].tokens) == (True, 0)
    engine.close()


def test_closing_interrupts_what_runs_and_what_waits(tiny_base: Base, endless: Endless) -> None:
    engine = Engine(tiny_base, precision="float32", max_rows=1)
    engine.start()
    running, waiting = endless(engine), endless(engine)
    until(lambda: running.replies[0].tokens)
    engine.close()
    assert [g.replies[0].finish_reason for g in (running, waiting)] == ["interrupted"] * 2
    assert running.replies[0].tokens > 0 and not engine.is_ready
    with pytest.raises(Busy, match="shutting down"):
        engine.submit(HELLO)
    engine.close()  # twice is harmless


def test_a_failing_batch_ends_as_failed_and_the_next_is_answered(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(LlamaRunner, "step", lambda self, beside: 1 / 0)
        failed = done(engine.submit(HELLO, replies=2))
    assert [reply.finish_reason for reply in failed.replies] == ["failed", "failed"]
    assert done(engine.submit(HELLO, sampling=GREEDY)).replies[0].tokens == 16
    until(lambda: engine.load_now == (0, 0))
    assert engine.is_ready


def test_after_an_error_that_sticks_to_the_gpu_every_reply_has_failed_and_none_is_begun(
    tiny_base: Base, endless: Endless, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then `synchronize` raises too; where it does not, as after one that ran out of memory, all goes on."""
    engine = Engine(tiny_base, precision="float32", max_rows=1)
    engine.start()
    engine.device, asked = torch.device("cuda"), []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    with monkeypatch.context() as broken:
        broken.setattr(LlamaRunner, "step", lambda self, beside: 1 / 0)
        assert done(engine.submit(HELLO)).replies[0].finish_reason == "failed"
    assert asked == [engine.device]
    running, waiting = endless(engine), endless(engine)
    until(lambda: running.replies[0].tokens)
    assert engine.is_ready and not engine.is_broken
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: 1 / 0)
    monkeypatch.setattr(LlamaRunner, "step", lambda self, beside: 1 / 0)
    assert [done(one).replies[0].finish_reason for one in (running, waiting)] == ["failed", "failed"]
    until(lambda: engine.is_broken and engine.load_now == (0, 0))
    with pytest.raises(Busy, match="shutting down"):
        engine.submit(HELLO)
    engine.close()
    assert not engine.is_ready


def test_an_engine_that_cannot_let_go_of_a_version_is_broken_too(
    engine: Engine, adapter: Path, endless: Endless, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version that was superseded is let go of by the engine's thread, after its last reply."""
    engine.load("v000001", adapter)
    running = endless(engine)
    until(lambda: running.replies[0].tokens)
    engine.load("v000002", adapter)
    engine.serve("v000001")
    last = endless(engine)
    engine.serve("v000002")
    monkeypatch.setattr(engine, "_drop", lambda name: 1 / 0)
    last.stop()
    assert done(running).replies[0].finish_reason == "failed"
    until(lambda: engine.is_broken and not engine.is_ready)


def test_the_time_of_the_first_token_is_noted(engine: Engine) -> None:
    generation = done(engine.submit(HELLO, sampling=GREEDY))
    first = generation.replies[0].first_token_at
    assert first is not None and generation.submitted_at < first <= time.monotonic()


def test_a_stop_text_ends_a_reply_before_it(engine: Engine) -> None:
    whole = done(engine.submit(HELLO, sampling=GREEDY)).replies[0]
    stop = whole.text[5:8]
    cut = done(engine.submit(HELLO, sampling=GREEDY, stop=["never said", stop])).replies[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, whole.finish_reason) == ("stop", "length")
    assert cut.tokens < whole.tokens


def test_a_stop_text_that_the_last_token_completes_is_why_a_reply_ended(engine: Engine) -> None:
    whole = done(engine.submit(HELLO, sampling=GREEDY)).replies[0].text
    ended = done(engine.submit(HELLO, sampling=GREEDY, stop=[whole])).replies[0]
    assert (ended.text, ended.tokens, ended.finish_reason) == ("", GREEDY.max_new_tokens, "stop")


def test_a_deadline_ends_what_of_a_programs_request_is_not_finished(engine: Engine, endless: Endless) -> None:
    generation = engine.submit(HELLO, replies=2, sampling=LONG, deadline=2, kind="api")
    done(generation)
    assert [reply.finish_reason for reply in generation.replies] == ["cancelled"] * 2
    assert 0 < generation.replies[0].tokens < 900
    in_time = done(engine.submit(HELLO, sampling=GREEDY, deadline=60))
    assert in_time.replies[0].finish_reason == "length"


def test_a_deadline_counts_in_the_queue_too(tiny_base: Base, endless: Endless) -> None:
    engine = Engine(tiny_base, precision="float32", max_rows=1)
    engine.start()
    running = endless(engine)
    until(lambda: running.queue_position == 0)
    late = done(engine.submit(HELLO, sampling=GREEDY, deadline=0.1))
    assert (late.replies[0].finish_reason, late.replies[0].tokens) == ("interrupted", 0)
    assert not running.is_done and engine.load_now == (1, 0)
    engine.close()


def test_each_token_comes_with_its_log_probability(engine: Engine) -> None:
    generation = done(engine.submit(HELLO, seeds=[4], sampling=Sampling(max_new_tokens=20)))
    [reply] = generation.replies
    mean = engine.mean_logprob("base", [*generation.prompt, *reply.token_ids], len(generation.prompt))
    assert len(reply.logprobs) == reply.tokens
    assert sum(reply.logprobs) / reply.tokens == pytest.approx(mean, abs=1e-4)


def test_the_next_turn_of_a_conversation_is_answered_as_if_it_were_read_anew(
    engine: Engine, tiny_base: Base
) -> None:
    first = done(engine.submit(HELLO, replies=3, sampling=GREEDY))
    said = {"role": "assistant", "content": first.replies[1].text}
    following = [*HELLO, said, {"role": "user", "content": "And then?"}]
    again = done(engine.submit(following, sampling=GREEDY))
    fresh = Engine(tiny_base, precision="float32")
    fresh.start()
    assert again.replies[0].token_ids == done(fresh.submit(following, sampling=GREEDY)).replies[0].token_ids
    fresh.close()


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_an_engine_of_fewer_bits_says_nearly_the_same(
    tiny_base: Base, engine: Engine, precision: str
) -> None:
    fewer = Engine(tiny_base, precision=precision)
    fewer.start()
    generation = done(engine.submit(HELLO, seeds=[1], sampling=Sampling(max_new_tokens=40)))
    ids, start = [*generation.prompt, *generation.replies[0].token_ids], len(generation.prompt)
    assert fewer.mean_logprob("base", ids, start) == pytest.approx(
        engine.mean_logprob("base", ids, start), abs=0.1
    )
    assert done(fewer.submit(HELLO, replies=9, sampling=GREEDY)).replies[8].tokens == 16
    fewer.close()


def superseded(engine: Engine, adapter: Path, endless: Endless) -> Generation:
    """A reply of the base that goes on while v000001 serves."""
    engine.load("v000001", adapter)
    old = endless(engine)
    until(lambda: old.replies[0].tokens)
    engine.serve("v000001")
    return old


def test_a_request_keeps_its_version_while_another_begins_to_serve(
    engine: Engine, adapter: Path, endless: Endless
) -> None:
    old = superseded(engine, adapter, endless)
    new = done(engine.submit(HELLO, sampling=GREEDY))
    assert (old.version, new.version, engine.version) == ("base", "v000001", "v000001")
    assert not old.is_done
    at_base = done(engine.submit(HELLO, sampling=GREEDY, version="base"))
    assert at_base.replies[0].token_ids != new.replies[0].token_ids
    old.stop()


def test_a_long_prompt_of_a_new_version_does_not_hold_up_who_reads_along(
    engine: Engine, adapter: Path, endless: Endless
) -> None:
    old = superseded(engine, adapter, endless)
    before = old.replies[0].tokens
    new = ask_tokens(engine, LONG_PROMPT, sampling=GREEDY, seeds=[0])
    until(lambda: new.replies[0].tokens)
    assert new.version == "v000001" and old.replies[0].tokens - before >= len(LONG_PROMPT) // PIECE
    old.stop()


def test_a_reply_in_flight_is_what_its_version_alone_would_have_said(engine: Engine, adapter: Path) -> None:
    whole = done(engine.submit(HELLO, seeds=[11], sampling=Sampling(max_new_tokens=200)))
    engine.load("v000001", adapter)
    flying = engine.submit(HELLO, seeds=[11], sampling=Sampling(max_new_tokens=200))
    engine.serve("v000001")
    beside = engine.submit(HELLO, sampling=GREEDY)
    assert done(flying).replies[0].token_ids == whole.replies[0].token_ids
    assert done(beside).version == "v000001"


def test_a_superseded_version_is_let_go_when_its_last_request_ends(
    engine: Engine, adapter: Path, endless: Endless
) -> None:
    for name in ("v000001", "v000002"):
        engine.load(name, adapter)
    engine.serve("v000001")
    last = endless(engine)
    engine.serve("v000002")
    assert engine.known_versions == ["base", "v000001", "v000002"]
    last.stop()
    until(lambda: engine.known_versions == ["base", "v000002"])


@pytest.mark.parametrize("is_llama", [True, False])
def test_a_version_that_is_superseded_while_nobody_asks_leaves_memory(
    engine: Engine, adapter: Path, monkeypatch: pytest.MonkeyPatch, is_llama: bool
) -> None:
    monkeypatch.setattr("chatbot.runner.can_run", lambda model: is_llama)
    for name in ("v000001", "v000002"):
        engine.load(name, adapter)
    engine.serve("v000001")
    done(engine.submit(HELLO, sampling=GREEDY))
    until(lambda: engine.load_now == (0, 0))
    weights = weakref.ref(engine._loaded["v000001"].weights)
    engine.serve("v000002")
    until(lambda: weights() is None)
    assert weights() is None and engine.known_versions == ["base", "v000002"]


def test_memory_of_a_gpu_that_versions_leave_is_given_back(
    engine: Engine, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append("all"))
    monkeypatch.setattr("chatbot.memory._SOON_SECONDS", 0.01)
    engine.load("v000001", adapter)
    engine.device = torch.device("cuda")
    engine.unload("v000001")
    until(lambda: given_back)
    assert given_back == ["all"] and engine.known_versions == ["base"]


def test_what_a_version_that_cannot_be_built_took_is_given_back(
    engine: Engine, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[PreTrainedModel]] = []
    given_back: list[bool] = []

    def fail(model: PreTrainedModel, *rest: object, **more: object) -> None:
        held.append(weakref.ref(model))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.05 GiB.")

    monkeypatch.setattr("chatbot.engine.prepare", fail)
    monkeypatch.setattr("chatbot.engine.give_back", lambda device: given_back.append(held[0]() is None))
    with pytest.raises(
        Problem, match=r"ran out \(CUDA out of memory. Tried to allocate 1.05 GiB\) - close other programs"
    ):
        engine.load("v000001", adapter)
    assert given_back == [True] and engine.known_versions == ["base"]
    assert done(engine.submit(HELLO, sampling=GREEDY)).replies[0].tokens == 16


def test_a_version_for_which_memory_is_too_short_is_refused_before_the_system_ends_the_server(
    engine: Engine, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = engine._bytes_to_build
    model = merged_model(engine.base, None, device=engine.device, dtype=torch.float32)
    assert free > sum(4 * weight.numel() for weight in model.parameters())
    monkeypatch.setattr("chatbot.engine.free_bytes", lambda device: free - 1)
    with pytest.raises(
        Refused, match=r"Building 'v1' may take \d\.\d GiB of memory .*, and \d\.\d are free - "
    ):
        engine.load("v1", adapter)
    assert engine.known_versions == ["base"] and done(engine.submit(HELLO, sampling=GREEDY)).replies[0].tokens
    monkeypatch.setattr("chatbot.engine.free_bytes", lambda device: free)
    engine.load("v1", adapter)
    assert engine.known_versions == ["base", "v1"]


def test_on_a_gpu_too_what_serves_keeps_the_memory_that_a_version_would_take_from_it(
    engine: Engine, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.device = torch.device("cuda")
    monkeypatch.setattr("chatbot.engine.free_bytes", lambda device: 0 if device.type == "cuda" else 2**40)
    with pytest.raises(Refused, match="Building 'v1' may take"):
        engine.load("v1", adapter)
    assert engine.known_versions == ["base"]


def test_building_on_a_gpu_converts_nothing(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    model = merged_model(tiny_base, None, device=torch.device("cpu"), dtype=torch.float32)
    held = sum(weight.nbytes for weight in model.parameters())
    monkeypatch.setattr(PreTrainedModel, "device", torch.device("cuda"))
    assert bytes_to_prepare(model, "float32") == int(1.25 * held)


@pytest.mark.parametrize(
    ("precision", "is_llama", "copies"),
    [
        ("bfloat16", True, 2),
        ("float32", True, 6),
        ("int8", True, 6),
        ("bfloat16", False, 0),
        ("float32", False, 0),
    ],
)
def test_what_building_takes_counts_the_embedding_as_often_as_its_format_converts_it(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, precision: str, is_llama: bool, copies: int
) -> None:
    monkeypatch.setattr("chatbot.runner.can_run", lambda model: is_llama)
    engine = Engine(tiny_base, precision=precision)
    engine.load("base", None)
    model = merged_model(tiny_base, None, device=engine.device, dtype=engine.dtype)
    size = bytes_a_weight(cast(Format, precision)) if is_llama else engine.dtype.itemsize
    weights = size * sum(weight.numel() for weight in model.parameters())
    embedding = 4 * model.get_input_embeddings().weight.numel()
    assert engine._bytes_to_build - copies * embedding == pytest.approx(1.25 * weights, abs=1)


def test_the_model_that_a_version_is_built_from_goes_layer_by_layer(
    engine: Engine, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[PreTrainedModel] = []

    def noted(*arguments: Any, **more: Any) -> PreTrainedModel:
        built.append(merged_model(*arguments, **more))
        return built[-1]

    monkeypatch.setattr("chatbot.engine.merged_model", noted)
    engine.load("v000001", adapter)
    assert all(parameter.is_meta for parameter in built[0].get_decoder().layers.parameters())


def test_a_superseded_version_that_is_loaded_again_stays(
    engine: Engine, adapter: Path, endless: Endless
) -> None:
    engine.load("v000001", adapter)
    engine.serve("v000001")
    last = endless(engine)
    engine.serve("base")
    engine.load("v000001", adapter)
    last.stop()
    until(lambda: engine.load_now == (0, 0))
    engine.serve("v000001")
    assert done(engine.submit(HELLO, sampling=GREEDY)).version == "v000001"


def test_the_version_that_serves_and_the_base_cannot_be_unloaded(engine: Engine, adapter: Path) -> None:
    for name in ("v000001", "v000002"):
        engine.load(name, adapter)
    engine.serve("v000001")
    for name in ("base", "v000001", "v000002", "v000009"):
        engine.unload(name)
    assert engine.known_versions == ["base", "v000001"]


def test_an_unknown_version_is_named(engine: Engine) -> None:
    for ask in (lambda: engine.submit(HELLO, version="v000099"), lambda: engine.serve("v000099")):
        with pytest.raises(NotFound, match="Version 'v000099' is not loaded here - load it first"):
            ask()
    assert engine.version == "base"
