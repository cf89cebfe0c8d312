"""Serving, ours and the peers' in turn: sixteen mixed requests, one reply, and four replies to one prompt.

    python benchmarks/serving.py --quick                             # about 15 minutes on two cores
    python benchmarks/serving.py                                     # about an hour and a half
    python benchmarks/serving.py --vllm var/vllm/bin/python          # with vLLM too: see vllm_serving.py

The peers are transformers' `generate` one request after the other and as one static batch, its continuous
batching, and vLLM. Every side has the same prompts as token ids and writes exactly the same number of tokens
(no reply may end early), in the same precision. A static batch is done when its longest reply is, which is
what it costs. No two prompts are alike beyond the template, so no side finds one in a cache. Processes of all
sides alternate; figures are medians over the rounds of all of them, the first of each process left out.

On a CPU ours also runs with int8 weights and is then held against the peers in bfloat16. `same` counts the
greedy replies that equal those of transformers one after the other, token for token: in float32 they should,
in bfloat16 they depend on the shape of a batch and differ.

Results are kept in `--out`, so that an interrupted run goes on; another model, or changed code, wants
another file: below the tables stands which commit each figure is of.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from peers import Result, answered, figure, measured, origins, parser_for, peak_memory_gib, ratio, table
from workload import ALONE, ALONE_TOKENS, MIXED, REPLIES, Request, Round, alone, make_rounds

from chatbot.basemodel import Base, load_base
from chatbot.engine import Engine
from chatbot.models import pick_device
from data.cli import ENVIRONMENT
from data.home import open_home
from data.records import Sampling

ROOT = Path(__file__).parent.parent
SIDES = {
    "ours": "ours",
    "sequential": "transformers, one after the other",
    "static": "transformers, one static batch",
    "continuous": "transformers, continuous batching",
    "vllm": "vLLM",
}
COMPARED_AS = {"int8": "bfloat16"}
"""The precision of the peers that a precision they lack is held against."""
Found = Mapping[tuple[str, str], Result]
"""Side and precision -> what was measured."""


def main() -> None:
    """Write the work down, measure every side in every precision, print the tables."""
    arguments = parse()
    base = load_base(arguments.model, open_home(), tell=lambda line: print(line, file=sys.stderr))
    if arguments.work:
        print(json.dumps(run_ours(base, arguments.precisions, json.loads(arguments.work.read_text()))))
        return
    arguments.out = arguments.out.absolute()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    processes, rounds = (1, 2) if arguments.quick else (3, 3)
    work = arguments.out.parent / f"serving-work-{rounds}.json"
    work.write_text(json.dumps(make_rounds(base, rounds + 1)))
    found: dict[tuple[str, str], list[Result]] = {}
    for process in range(processes):
        for side, precision in sides(arguments):
            name = f"{side}, {precision}, {rounds} rounds, process {process + 1}"
            name += ", eager" if side == "vllm" and arguments.vllm_eager else ""
            command = [*command_of(side, precision, arguments)]
            command += ["--model", str(base.directory), "--work", str(work)]
            settings = ENVIRONMENT if side == "ours" else {}
            result = measured(arguments.out, name, command, settings)
            found.setdefault((side, precision), []).append(result)
    print_tables({key: merged(results) for key, results in found.items()})
    print(origins(result for results in found.values() for result in results))


def parse() -> argparse.Namespace:
    """The flags."""
    parser = parser_for(__doc__)
    parser.add_argument("--vllm", type=Path, help="python of the venv that has vLLM")
    parser.add_argument("--vllm-eager", action="store_true", help="vLLM without torch.compile: starts sooner")
    parser.add_argument("--sides", default=",".join(SIDES), help="which sides to measure")
    parser.add_argument("--precisions", default="bfloat16,float32", help="of all sides")
    parser.add_argument(
        "--ours-also",
        help="precisions of ours alone; may be empty (default: int8 on a CPU, which alone has it)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one process of two rounds a side, not three of three"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "var" / "benchmarks" / "serving.json")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # the child: do this, print JSON
    arguments = parser.parse_args()
    if arguments.ours_also is None:
        arguments.ours_also = "int8" if pick_device().type == "cpu" else ""
    return arguments


def sides(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Each side in each precision, ours next to the peers."""
    wanted = [side for side in arguments.sides.split(",") if side != "vllm" or arguments.vllm]
    for precision in arguments.precisions.split(","):
        yield from ((side, precision) for side in wanted)
    if "ours" in wanted:
        yield from (("ours", precision) for precision in arguments.ours_also.split(",") if precision)


def command_of(side: str, precision: str, arguments: argparse.Namespace) -> list[str]:
    """What measures a side, but for the model and the work."""
    here = Path(__file__)
    if side == "ours":
        return [sys.executable, str(here), "--precisions", precision]
    if side == "vllm":
        command = [str(arguments.vllm), str(here.with_name("vllm_serving.py")), "--precision", precision]
        return command + ["--eager"] * arguments.vllm_eager
    peer = str(here.with_name("transformers_serving.py"))
    return [sys.executable, peer, "--method", side, "--precision", precision]


# Ours


def run_ours(base: Base, precision: str, work: Sequence[Round]) -> Result:
    """Every scene of every round through the engine; the first round warms up and is not told."""
    base.format.end_of_turn = -1  # no token, so no reply ends early
    started = time.monotonic()
    engine = Engine(base, precision=precision)
    engine.start()
    result: Result = {"start_seconds": time.monotonic() - started}
    result |= answered(work, lambda requests, name: answer(engine, requests))
    engine.close()
    result["peak_memory_gib"] = peak_memory_gib()
    return result


def answer(engine: Engine, requests: Sequence[Request]) -> tuple[dict[str, float], list[list[int]]]:
    """Seconds to the last token, median seconds to a first token, and the tokens of each first reply."""
    started = time.monotonic()
    running = [
        engine.submit(
            [{"role": "user", "content": one["text"]}],
            replies=one["replies"],
            sampling=Sampling(one["temperature"], max_new_tokens=one["new"]),
            seeds=range(one["replies"]),
        )
        for one in requests
    ]
    for generation in running:
        generation.wait()
    seconds = time.monotonic() - started
    for generation, one in zip(running, requests, strict=True):
        assert generation.prompt == one["ids"], "the peers read other prompts"
        assert [reply.tokens for reply in generation.replies] == [one["new"]] * one["replies"]
    first = [reply.first_token_at - started for g in running for reply in g.replies if reply.first_token_at]
    figures = {"seconds": seconds, "first": statistics.median(first)}
    return figures, [g.replies[0].token_ids for g in running]


# The tables


def merged(results: Sequence[Result]) -> Result:
    """What several processes of one side measured, as one."""
    whole: Result = {"tokens": results[0].get("tokens")}
    for name in ("start_seconds", "peak_memory_gib", "load"):
        whole[name] = statistics.median(result[name] for result in results)
    for name in [name for name, value in results[0].items() if isinstance(value, dict)]:
        keys = results[0][name]
        whole[name] = {key: [x for result in results for x in result[name][key]] for key in keys}
    return whole


def print_tables(found: Found) -> None:
    """The sixteen requests; then one reply and four replies to one prompt."""
    head = (
        "16 requests,precision,s,range,with start and stop: s,tokens/s,first token: s,theirs / ours,same,"
        "start: s,peak GiB,load at the start"
    )
    print(table(head.split(","), [mixed_row(found, *key) for key in found]))
    head = (
        "prompt tokens,side,precision,first token: s,ms a token,1 reply: s,4 replies: s,4 against 1,"
        "1 reply: theirs / ours,4 replies: theirs / ours"
    )
    has_alone = [key for key, result in found.items() if alone(ALONE[0], 1) in result]
    print(table(head.split(","), [alone_row(found, *key, n) for n in ALONE for key in has_alone]))


def mixed_row(found: Found, side: str, precision: str) -> list[str]:
    """One side's sixteen requests."""
    result = found[side, precision]
    seconds = result[MIXED]["seconds"]
    return [
        SIDES[side],
        precision,
        figure(median(result, MIXED, "seconds"), 2),
        f"{min(seconds):.2f}-{max(seconds):.2f}",
        figure(median(result, MIXED, "with_start_and_stop"), 2),
        figure(sum(REPLIES) / statistics.median(seconds), 0),
        figure(median(result, MIXED, "first"), 2),
        against_ours(found, side, precision, MIXED),
        same(found, side, precision),
        figure(result["start_seconds"]),
        figure(result["peak_memory_gib"]),
        figure(result["load"]),
    ]


def alone_row(found: Found, side: str, precision: str, length: int) -> list[str]:
    """One side's replies to one prompt of `length` tokens."""
    result = found[side, precision]
    one, four = (median(result, alone(length, replies), "seconds") or 0.0 for replies in (1, 4))
    first = median(result, alone(length, 1), "first") or 0.0
    return [
        str(length),
        SIDES[side],
        precision,
        figure(first, 3),
        figure(1000 * (one - first) / (ALONE_TOKENS - 1)),
        figure(one, 2),
        figure(four, 2),
        figure(four / one, 2),
        *(against_ours(found, side, precision, alone(length, replies)) for replies in (1, 4)),
    ]


def median(result: Result, name: str, key: str) -> float | None:
    """None where a side did not measure it."""
    values = result.get(name, {}).get(key)
    return float(statistics.median(values)) if values else None


def against_ours(found: Found, side: str, precision: str, name: str) -> str:
    """How many times as long a peer takes; for a precision of ours alone, than its best peer."""
    if side != "ours":
        ours = found.get(("ours", precision), {})
        return ratio(median(ours, name, "seconds"), median(found[side, precision], name, "seconds"))
    if precision not in COMPARED_AS:
        return "1"
    theirs = [found.get((peer, COMPARED_AS[precision]), {}) for peer in SIDES if peer != "ours"]
    times = [seconds for result in theirs if (seconds := median(result, name, "seconds"))]
    best = ratio(median(found[side, precision], name, "seconds"), min(times, default=None))
    return f"best {COMPARED_AS[precision]} peer {best}"


def same(found: Found, side: str, precision: str) -> str:
    """How many of the sixteen replies are those of transformers one after the other."""
    theirs = found.get(("sequential", precision), {}).get("tokens")
    ours = found[side, precision].get("tokens")
    if not (theirs and ours):
        return "-"
    return f"{sum(a == b for a, b in zip(ours, theirs, strict=True))} of {len(ours)}"


if __name__ == "__main__":
    main()
