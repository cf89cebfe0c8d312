"""The server under load: two hundred streams, bursts of five hundred, fifty clients that vanish.

    python benchmarks/load.py                    # about two minutes
    python benchmarks/load.py --only burst
    python benchmarks/load.py --minutes 60       # an hour of everything: endurance.py
    python benchmarks/load.py --refresh 20       # chat beside twenty minutes of a refresh: chatting.py

These have the tiny model of the tests behind the API, held back to 20 tokens a second: what a client
waits for beyond that is the server's own. Client and server share the machine's cores, as the API's users
would not, so the figures are upper bounds.

streams   200 people's streams begin within five seconds and are then all there: what does the API add to the
          time of a first token, does each get its 20 tokens a second, does any fail?
burst     500 requests in two seconds, a queue of 32: how soon do those hear it who are refused, are all
          others answered, and how soon is a request answered as before?
moment    the same with all 500 in one moment: the last to be refused waits for all the others
vanish    50 streams whose clients are suddenly gone: how soon is every row free?
"""

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import chatting
import endurance
from clients import Heard
from peers import table
from served import Server, paced_server, times, tiny_model

from data.home import open_home

RATE = 20.0
PEOPLE = 20
STREAMS, STREAM_TOKENS, BEGIN_SECONDS = 200, 300, 5.0
BURST, BURST_SECONDS, BURST_TOKENS, QUEUE, ROWS = 500, 2.0, 40, 32, 64
VANISHING, VANISH_AFTER = 50, 5
WIDE = 288
"""As `chatbot serve --rows 288`, for 200 streams: a quarter of the rows is kept for people who chat."""
GIVE_UP_SECONDS = 30.0

Rows = list[tuple[str, str, str]]
"""What was measured, its value, what is wanted."""
Found = tuple[Rows, int]
"""And how much of it failed."""


def main() -> None:
    """Run what is asked for, print its table; exit code 1 where something failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=list(SCENES), help="one of them")
    parser.add_argument("--minutes", type=float, help="mixed load for so long instead")
    parser.add_argument(
        "--refresh", type=float, metavar="MINUTES", help="chat beside a refresh for so long instead"
    )
    parser.add_argument(
        "--model", help="for --minutes (the tiny one if left out) and --refresh (the default)"
    )
    parser.add_argument(
        "--home", type=Path, help="for --refresh: a state directory with rankings; it is written to"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.refresh:
            sys.exit(chatting.run(Path(folder), arguments.model, arguments.home, arguments.refresh))
        model = tiny_model(Path(folder) / "tiny")
        if arguments.minutes:
            sys.exit(endurance.run(Path(folder), arguments.model or str(model), arguments.minutes))
        rows, failed = [], 0
        for name, scene in SCENES.items():
            if arguments.only in (None, name):
                print(f"{name}.", file=sys.stderr, flush=True)
                found, errors = scene(model, Path(folder) / name)
                rows += [[name, what, *values] for what, *values in found]
                failed += errors
    print(table(["", "measured", "value", "wanted"], rows))
    sys.exit(1 if failed else 0)


def streams(model: Path, folder: Path) -> Found:
    """Two hundred streams at once. A client's seed tells which request of the engine's was its own."""
    home = open_home(folder)
    with paced_server(model, home, rate=RATE, rows=WIDE, waiting=QUEUE, people=PEOPLE) as server:
        heard = asyncio.run(_begin_one_by_one(server))
    engine = times(home)
    whole = {seed: one for seed, one in enumerate(heard) if one.is_whole and one.tokens == STREAM_TOKENS}
    added = []
    for seed, one in whole.items():
        submitted, first = engine[seed]
        added.append(one.first_text - (first - submitted))
    rates = [(one.tokens - 1) / (one.texts_at[-1] - one.texts_at[0]) for one in whole.values()]
    pauses = [b - a for one in whole.values() for a, b in itertools.pairwise(one.texts_at)]
    together = min(one.ended_at for one in heard) - max(one.asked_at for one in heard)
    return [
        ("streams answered to the end", f"{len(whole)} of {len(heard)}", "all"),
        ("seconds with all of them there", f"{together:.1f}", "> 0"),
        ("added to the first token, p50 / p95 / most", seconds(added), "p95 <= 0.3 s"),
        ("tokens a second, median / fewest", _rates(rates), f"{RATE:.0f}"),
        ("between two pieces of text, p50 / p95 / most", seconds(pauses), ""),
        *problems(heard),
    ], len(heard) - len(whole)


async def _begin_one_by_one(server: Server) -> list[Heard]:
    async def one(number: int) -> Heard:
        await asyncio.sleep(number * BEGIN_SECONDS / STREAMS)
        client = server.clients[number % PEOPLE]
        return await client.ask(f"Tell me about {number}.", max_tokens=STREAM_TOKENS, seed=number)

    return await asyncio.gather(*(one(number) for number in range(STREAMS)))


def burst(model: Path, folder: Path) -> Found:
    """Five hundred within two seconds."""
    return _burst(model, folder, BURST_SECONDS)


def moment(model: Path, folder: Path) -> Found:
    """Five hundred at once."""
    return _burst(model, folder, 0.0)


def _burst(model: Path, folder: Path, within: float) -> Found:
    """Five hundred, each connected before; then one at a time, until all is as before."""
    home = open_home(folder)
    with paced_server(model, home, rate=RATE, rows=ROWS, waiting=QUEUE, people=PEOPLE) as server:
        before, heard, normal = asyncio.run(_come_together(server, within))
    refused = [one.ended_at - one.asked_at for one in heard if one.is_refused]
    answered = [one for one in heard if one.is_whole]
    others = len(heard) - len(refused) - len(answered)
    return [
        ("answered / refused / anything else", f"{len(answered)} / {len(refused)} / {others}", "0 else"),
        ("refused after, p50 / p95 / p99", seconds(refused, 0.99), "p99 <= 0.2 s"),
        ("first text before", f"{before:.2f} s", ""),
        ("from the last request to such a first text again", f"{normal:.1f} s", "<= 5 s"),
        *problems([one for one in heard if not one.is_refused]),
    ], others


async def _come_together(server: Server, within: float) -> tuple[float, list[Heard], float]:
    """Seconds to a first text before; what everybody heard; seconds until a first text comes as before."""
    calm = server.clients[0]
    alone = [await calm.ask("Hello.", max_tokens=4) for _ in range(5)]
    before = statistics.median(one.first_text for one in alone)
    go = [asyncio.Event() for _ in range(BURST)]
    crowd = [
        asyncio.create_task(
            server.clients[number % PEOPLE].ask(f"Hello {number}.", go=go[number], max_tokens=BURST_TOKENS)
        )
        for number in range(BURST)
    ]
    await asyncio.sleep(2)  # until all are connected
    began = time.monotonic()
    for number, event in enumerate(go):
        await asyncio.sleep(max(0.0, began + number * within / BURST - time.monotonic()))
        event.set()
    began = time.monotonic()
    while time.monotonic() - began < GIVE_UP_SECONDS:
        await asyncio.sleep(0.1)
        again = await calm.ask("Hello again.", max_tokens=4)
        if again.is_whole and again.first_text <= 2 * before:
            break
    normal = time.monotonic() - began
    return before, await asyncio.gather(*crowd), normal


def vanish(model: Path, folder: Path) -> Found:
    """Fifty streams that would go on for long; their clients leave in the same moment."""
    home = open_home(folder)
    with paced_server(model, home, rate=RATE, rows=WIDE, waiting=QUEUE, people=PEOPLE) as server:
        running, gone, left = asyncio.run(_leave_together(server))
    return [
        ("requests running before", f"{running}", f"{VANISHING}"),
        ("until none was left", f"{gone:.2f} s", "<= 1 s"),
        ("left after that", f"{left}", "0"),
    ], left + abs(VANISHING - running)


async def _leave_together(server: Server) -> tuple[int, float, int]:
    """How many ran, seconds until none did, and how many were left where we gave up."""
    tasks = []
    for number in range(VANISHING):
        client = server.clients[number % PEOPLE]
        tasks.append(asyncio.create_task(client.ask(f"A long story of {number}.", max_tokens=800)))
        await asyncio.sleep(0.02)  # the queue is shorter than fifty
    await asyncio.sleep(VANISH_AFTER / RATE + 1)
    running, _ = await asyncio.to_thread(server.clients[0].load_now)
    began = time.monotonic()
    for task in tasks:
        task.cancel()  # cuts the connection, and says nothing
    await asyncio.gather(*tasks, return_exceptions=True)
    left = running
    while left and time.monotonic() - began < GIVE_UP_SECONDS:
        left = sum(await asyncio.to_thread(server.clients[0].load_now))
    return running, time.monotonic() - began, left


def seconds(values: Sequence[float], last: float = 1.0) -> str:
    """Two quantiles and the largest, or the quantile `last`."""
    if not values:
        return "-"
    return " / ".join(f"{quantile(values, share):.3f}" for share in (0.5, 0.95, last)) + " s"


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _rates(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):.1f} / {min(rates):.1f}" if rates else "-"


def problems(heard: Sequence[Heard]) -> Rows:
    """What went wrong, and how often."""
    counts = Counter(one.problem or f"status {one.status}" for one in heard if not one.is_whole)
    return [(f"problem: {problem}", f"{count}", "0") for problem, count in counts.most_common(5)]


SCENES = {"streams": streams, "burst": burst, "moment": moment, "vanish": vanish}

if __name__ == "__main__":
    main()
