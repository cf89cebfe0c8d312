"""Who is next: chat before rollouts, people in turns, rows kept for chat, a queue with an end."""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import product

import pytest

from chatbot.basemodel import Base
from chatbot.chatformat import FittedPrompt
from chatbot.generation import Asked, Generation, Kind
from chatbot.memory import Memory
from chatbot.scheduler import Scheduler
from data.errors import Busy, Refused
from data.records import Sampling

Ask = Callable[..., Generation]


@pytest.fixture
def ask(tiny_base: Base) -> Ask:
    """A request of a person."""

    def make(
        person: str | None = None, kind: Kind = "chat", replies: int = 1, prompt: int = 1, new: int = 24
    ) -> Generation:
        fitted = FittedPrompt([1] * prompt, 0)
        asked = Asked(fitted, Sampling(max_new_tokens=new), range(replies), person=person, kind=kind)
        return Generation(tiny_base.format, lambda _: 0, asked, "base")

    return make


def with_memory(columns: int) -> Scheduler:
    """A scheduler with rows for everybody."""
    scheduler = Scheduler(max_waiting=32, max_rows=64)
    scheduler.memory = Memory(columns, context=8192, is_shared=True)
    return scheduler


def test_people_who_chat_come_before_the_others(ask: Ask) -> None:
    scheduler = Scheduler(max_waiting=8, max_rows=64)
    kinds: list[Kind] = ["rollout", "api", "chat"]
    requests = {kind: ask(kind=kind) for kind in kinds}
    for request in requests.values():
        scheduler.add(request)
    assert [scheduler.position_of(requests[kind]) for kind in kinds] == [3, 2, 1]
    assert scheduler.let_in() == [requests[kind] for kind in reversed(kinds)]


def test_those_of_one_rank_are_let_in_as_they_came(ask: Ask) -> None:
    scheduler = Scheduler(max_waiting=8, max_rows=64)
    requests = [ask() for _ in range(5)]
    for request in requests:
        scheduler.add(request)
    assert scheduler.let_in() == requests
    assert scheduler.position_of(requests[0]) == 0


def test_a_burst_of_one_person_waits_for_itself(ask: Ask) -> None:
    scheduler = Scheduler(max_waiting=32, max_rows=16)
    burst = [ask("ada", replies=4) for _ in range(6)]
    for request in burst:
        scheduler.add(request)
    assert scheduler.let_in() == burst[:2]
    others = [ask(person, replies=4) for person in ("ben", "cyd", "dan")]
    for request in others:
        scheduler.add(request)
    assert scheduler.let_in() == others[:2]
    burst[0].stop()
    scheduler.let_go()
    assert scheduler.let_in() == others[2:]  # ada has four under way
    for request in others:
        request.stop()
    scheduler.let_go()
    assert scheduler.let_in() == burst[2:3]


@pytest.mark.parametrize("kind, burst, running", [("api", 1, 24), ("chat", 9, 3), ("chat", 4, 8)])
def test_one_persons_burst_takes_half_of_the_rows_and_another_person_is_let_in_at_once(
    ask: Ask, kind: Kind, burst: int, running: int
) -> None:
    scheduler = Scheduler(max_waiting=32, max_rows=64)
    for _ in range(running):
        scheduler.add(ask("ada", kind, replies=burst))
        assert len(scheduler.let_in()) == 1
    for _ in range(16):
        scheduler.add(ask("ada", kind, replies=burst))
    assert scheduler.let_in() == []
    bens = ask("ben", kind, replies=9)
    scheduler.add(bens)
    assert scheduler.position_of(bens) == 1
    assert scheduler.let_in() == [bens]


@pytest.mark.parametrize("kind, running", [("api", 3), ("chat", 4)])
def test_one_persons_burst_takes_half_of_the_memory_and_another_person_is_let_in_at_once(
    ask: Ask, kind: Kind, running: int
) -> None:
    scheduler = with_memory(9000)
    for _ in range(10):
        scheduler.add(ask("ada", kind, prompt=900))  # 1024 columns each
    assert len(scheduler.let_in()) == running
    bens = ask("ben", kind, prompt=900)
    scheduler.add(bens)
    assert scheduler.let_in() == [bens]


def test_people_who_fill_everything_come_to_equal_shares_and_leave_one_to_the_next(ask: Ask) -> None:
    scheduler = Scheduler(max_waiting=64, max_rows=64)
    mine = {person: [ask(person, "api") for _ in range(24)] for person in ("ada", "ben")}
    for person in mine:
        for request in mine[person]:
            scheduler.add(request)
            scheduler.let_in()
    while ended := [request for request in mine["ada"] if request in scheduler.running][16:]:
        ended[0].stop()
        scheduler.let_go()
        scheduler.let_in()
    assert Counter(request.person for request in scheduler.running) == {"ada": 16, "ben": 16}


def test_who_was_passed_by_is_next_when_theirs_have_ended_however_much_it_needs(ask: Ask) -> None:
    scheduler = Scheduler(max_waiting=32, max_rows=16)
    first, wide, small = (ask("ada", replies=count) for count in (8, 9, 1))
    bens = ask("ben", replies=8)
    for request in (first, wide, small, bens):
        scheduler.add(request)
    assert scheduler.let_in() == [first, bens]
    for ended, following in ((first, []), (bens, [wide]), (wide, [small])):
        ended.stop()
        scheduler.let_go()
        assert scheduler.let_in() == following  # her small one does not overtake her wide one


def test_a_persons_programs_do_not_keep_their_own_chat_waiting(ask: Ask) -> None:
    scheduler = Scheduler(max_waiting=32, max_rows=16)
    for person in ("ada", "ben"):
        for _ in range(6):
            scheduler.add(ask(person, "api"))
    scheduler.let_in()
    chat = ask("ada", replies=4)
    scheduler.add(chat)
    assert scheduler.let_in() == [chat]


def test_a_persons_programs_that_fill_their_half_of_the_queue_leave_their_chat_its_own(ask: Ask) -> None:
    scheduler = Scheduler(max_waiting=32, max_rows=16)
    with pytest.raises(Busy, match="16 of your requests"):
        for _ in range(32):
            scheduler.add(ask("ada", "api"))
    with pytest.raises(Busy, match="24 of your requests"):
        for _ in range(16):
            scheduler.add(ask("ada"))
    other = ask("ben")
    scheduler.add(other)
    assert [request.person for request in scheduler.let_in()][:2] == ["ada", "ben"]


def test_what_has_no_person_may_take_all_that_its_kind_may(ask: Ask) -> None:
    scheduler = Scheduler(max_waiting=32, max_rows=16)
    rollouts = [ask(kind="rollout") for _ in range(13)]
    for request in rollouts:
        scheduler.add(request)
    assert scheduler.let_in() == rollouts[:12]


def test_nobody_holds_more_than_half_of_the_queue(ask: Ask) -> None:
    scheduler = Scheduler(max_waiting=4, max_rows=1)
    for _ in range(2):
        scheduler.add(ask("ada"))
    with pytest.raises(Busy, match="2 of your requests are waiting already - wait for their answers"):
        scheduler.add(ask("ada"))
    scheduler.add(ask("ben"))
    scheduler.add(ask())
    with pytest.raises(Busy, match="4 requests are waiting already - try again in a moment"):
        scheduler.add(ask("cyd"))


def test_programs_of_several_people_do_not_fill_the_queue_of_those_who_chat(ask: Ask) -> None:
    scheduler = Scheduler(max_waiting=4, max_rows=8)
    scheduler.add(ask("ada", kind="api"))
    for _ in range(2):
        scheduler.add(ask("ben", kind="api"))
    with pytest.raises(Busy, match="3 requests are waiting already - try again in a moment"):
        scheduler.add(ask("ada", kind="api"))
    scheduler.add(ask("cyd"))
    with pytest.raises(Busy, match="4 requests are waiting already"):
        scheduler.add(ask("dan"))


def test_a_quarter_of_the_rows_is_kept_for_people_who_chat(ask: Ask) -> None:
    scheduler = Scheduler(max_waiting=32, max_rows=16)
    rollouts = [ask(kind="rollout", replies=4) for _ in range(4)]
    for request in rollouts:
        scheduler.add(request)
    assert scheduler.let_in() == rollouts[:3]
    person = ask("ada", replies=4)
    scheduler.add(person)
    assert scheduler.let_in() == [person]


def test_what_ended_makes_room_in_the_queue_or_under_way(ask: Ask) -> None:
    scheduler = Scheduler(max_waiting=2, max_rows=1)
    running, waiting = ask(), ask()
    scheduler.add(running)
    assert scheduler.let_in() == [running]
    scheduler.add(waiting)
    running.stop()
    waiting.stop()
    assert scheduler.let_go() == [running, waiting]
    assert (scheduler.requests, scheduler.waiting) == ([], 0)


def test_a_request_wider_than_all_rows_runs_alone(ask: Ask) -> None:
    scheduler = Scheduler(max_waiting=4, max_rows=2)
    wide, narrow = ask(replies=5), ask()
    scheduler.add(wide)
    scheduler.add(narrow)
    assert scheduler.let_in() == [wide]
    wide.stop()
    scheduler.let_go()
    assert scheduler.let_in() == [narrow]


def test_the_room_is_the_free_rows_and_what_may_still_queue(ask: Ask) -> None:
    scheduler = Scheduler(max_waiting=3, max_rows=8)
    assert scheduler.room == 11
    scheduler.add(ask(kind="chat", replies=4))
    assert scheduler.room == 10
    scheduler.let_in()
    assert scheduler.room == 7


def test_long_requests_wait_until_memory_is_free_and_chat_does_not_wait_behind_them(ask: Ask) -> None:
    scheduler = with_memory(3000)
    long = [ask(kind="api", prompt=900) for _ in range(3)]  # 1024 columns each
    for request in long:
        scheduler.add(request)
    assert scheduler.let_in() == long[:2]
    person = ask("ada", prompt=400)
    scheduler.add(person)
    assert scheduler.let_in() == [person]  # what is kept for people who chat
    for ended, following in ((person, []), (long[0], [long[2]])):
        ended.stop()
        scheduler.let_go()
        assert scheduler.let_in() == following


def test_a_request_that_needs_more_memory_than_its_share_runs_alone_and_is_not_passed_by(ask: Ask) -> None:
    scheduler = with_memory(1000)
    first, long, short = (ask("ada", prompt=length) for length in (10, 2000, 10))
    for request in (first, long, short):
        scheduler.add(request)
    for alone in (first, long, short):
        assert scheduler.let_in() == [alone]
        alone.stop()
        scheduler.let_go()


def test_a_program_that_asks_for_more_than_programs_have_is_refused_and_a_person_is_not(ask: Ask) -> None:
    scheduler = with_memory(10_000)
    with pytest.raises(Refused, match="memory for 8,192 tokens, more than the 7,500 for programs - ask for"):
        scheduler.add(ask(kind="api", prompt=8000))
    assert scheduler.requests == []
    scheduler = with_memory(1000)
    person = ask("ada", prompt=8000)
    scheduler.add(person)
    assert scheduler.let_in() == [person]


def test_no_program_that_is_taken_keeps_a_short_chat_waiting(ask: Ask) -> None:
    scheduler, taken = with_memory(20_000), 0
    for replies, new in product((1, 3, 9), (100, 1000, 8000)):
        program = ask("ada", "api", replies=replies, prompt=50, new=new)
        with suppress(Refused):
            scheduler.add(program)
            taken += 1
            chat = ask("ben", prompt=50)
            scheduler.add(chat)
            assert scheduler.let_in() == [chat, program]
        for request in scheduler.requests:
            request.stop()
        scheduler.let_go()
    assert 3 < taken < 9


def test_a_program_that_names_no_length_leaves_room_for_others_but_has_a_few_words(ask: Ask) -> None:
    scheduler = with_memory(8000)
    assert scheduler.longest_that_fits(500, 1, 1024) == 1024
    wide = scheduler.longest_that_fits(500, 9, 1024)
    assert 128 <= wide < 1024
    scheduler.add(ask("ada", "api", replies=9, prompt=500, new=wide))
    scheduler.add(ask("ben", "chat"))
    assert len(scheduler.let_in()) == 2
    assert with_memory(100).longest_that_fits(500, 9, 1024) == 128
    assert with_memory(100).longest_that_fits(500, 9, 60) == 60
    assert Scheduler(max_waiting=8, max_rows=64).longest_that_fits(500, 9, 1024) == 1024


def test_who_is_stopped_while_the_ended_are_let_go_is_let_go_the_next_time(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, request = Scheduler(max_waiting=8, max_rows=64), ask()
    scheduler.add(request)
    assert scheduler.let_in() == [request]
    looks = iter([False, True, True, True])  # another thread stops it after the first look
    monkeypatch.setattr(Generation, "is_done", property(lambda self: next(looks)))
    assert [scheduler.let_go(), scheduler.let_go()] == [[], [request]]
