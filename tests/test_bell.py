"""The bell: every coroutine that waits hears every ring, from whatever thread, and none is missed."""

import asyncio
import threading

from chatbot.bell import Bell


async def hear(bell: Bell, seconds: float = 60.0) -> bool:
    """Whether it rang in time."""
    heard, _ = await asyncio.wait([bell.next_ring()], timeout=seconds)
    return bool(heard)


def test_all_who_wait_hear_a_ring_from_another_thread() -> None:
    bell = Bell()

    async def crowd() -> list[bool]:
        waiting = [asyncio.create_task(hear(bell)) for _ in range(50)]
        await asyncio.sleep(0)
        threading.Thread(target=bell.ring).start()
        return await asyncio.gather(*waiting)

    assert asyncio.run(crowd()) == [True] * 50


def test_without_a_ring_nobody_hears_one() -> None:
    bell = Bell()
    bell.ring()  # before anybody waits

    async def alone() -> tuple[bool, bool]:
        return await hear(bell, 0.01), bell.next_ring() is bell.next_ring()

    assert asyncio.run(alone()) == (False, True)


def test_one_who_leaves_takes_the_ring_from_nobody() -> None:
    bell = Bell()

    async def two() -> bool:
        leaving, staying = (asyncio.create_task(hear(bell)) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.sleep(0)
        bell.ring()
        return await staying

    assert asyncio.run(two())


def test_nothing_that_is_written_while_others_look_is_missed() -> None:
    """A writer as fast as it can be, readers that only look when it rings: they see the last word."""
    bell, written, last = Bell(), [0], 20_000

    def write() -> None:
        for number in range(1, last + 1):
            written[0] = number
            bell.ring()

    async def read() -> int:
        while True:
            ring = bell.next_ring()
            if written[0] == last:
                return last
            heard, _ = await asyncio.wait([ring], timeout=60)
            assert heard, "something was written and did not ring"

    async def readers() -> list[int]:
        reading = [asyncio.create_task(read()) for _ in range(5)]
        await asyncio.sleep(0)
        thread = threading.Thread(target=write)
        thread.start()
        seen = await asyncio.gather(*reading)
        await asyncio.to_thread(thread.join)
        return seen

    assert asyncio.run(readers()) == [last] * 5


def test_who_waits_for_something_goes_on_when_it_is_so_and_not_before() -> None:
    bell, count = Bell(), [0]

    async def wait() -> list[int]:
        asked_at: list[int] = []

        def is_so() -> bool:
            asked_at.append(count[0])
            return count[0] >= 3

        waiting = asyncio.create_task(bell.until(is_so))
        for number in (1, 2, 3):
            while count[0] not in asked_at:
                await asyncio.sleep(0)
            assert not waiting.done()
            count[0] = number
            bell.ring()
        await waiting
        return asked_at

    assert asyncio.run(wait()) == [0, 1, 2, 3]


def test_a_loop_that_was_closed_keeps_nobody_from_hearing() -> None:
    bell = Bell()

    async def ask() -> None:
        bell.next_ring()

    asyncio.run(ask())

    async def alone() -> bool:
        waiting = asyncio.create_task(hear(bell))
        await asyncio.sleep(0)
        bell.ring()
        return await waiting

    assert asyncio.run(alone())
