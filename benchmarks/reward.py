"""Reward training, ours and TRL's RewardTrainer in turn: time and memory a ranking, and what is learned.

    python -m venv var/trl-reward && var/trl-reward/bin/pip install -r benchmarks/requirements-reward.txt
    python benchmarks/reward.py --peer var/trl-reward/bin/python --quick      # about 15 minutes on two cores
    python benchmarks/reward.py --peer var/trl-reward/bin/python              # about an hour
    python benchmarks/reward.py --peer var/trl-reward/bin/python --accuracy   # about an hour more

Time: pairs of Anthropic HH (K = 2), and rankings of arguments cut to K = 4 and 9. TRL trains on all C(K, 2)
pairs. Both sides read the same token ids, wear LoRA of rank 16 on every linear map, and take the same number
of sequences into a step; the first step is left out. TRL's adapters are in every layer. Ours are where a
night has them, in the upper layers; those of `ours-whole` are in all. TRL's gradient checkpointing is off,
which makes it faster; `--checkpointing` puts its default back.

Accuracy (`--accuracy`): 1,024 pairs to learn from, once, and 500 to be tested on, both sides with the same
learning rate, warm-up and batch. The difference has a 95 % interval, bootstrapped by how a dialogue begins.

The rows are files of published preferences: HH helpful-online, rejection-sampled and base, and the topic
rankings of UKP's argument pairs, each as JSON lines {"id", "prompt": [messages], "replies", "ranking",
"source"}. They lie in `shared/data/preferences` beside the repository, or where `--data`, `--test` and
`--rankings` say.

Results are kept in `--out`, so that an interrupted run goes on; other settings, or changed code, want
another file: below the tables stands which commit each figure is of.
`--sides trl` measures the peer alone.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peers import Result, figure, measured, options, origins, peak_memory_gib, ratio, sides_of, table
from preferences import bag_of_words

from chatbot.basemodel import Base, load_base
from chatbot.models import pick_device, pick_dtype
from chatbot.policy import Policy
from data.cli import ENVIRONMENT
from data.comparisons import RankedTurn, read_snapshot, write_snapshot
from data.home import open_home
from trainer.config import RefreshConfig
from trainer.intervals import bootstrap_by_group, by_group, paired_bootstrap
from trainer.preferences import read_rows, split_by_conversation
from trainer.reward import scores_of, tokenise, train_reward

ROOT = Path(__file__).parent.parent
PREFERENCES = ROOT.parent / "shared" / "data" / "preferences"
PAIRS = [PREFERENCES / f"hh_helpful_{part}.jsonl.gz" for part in ("online", "rejection_sampled")]
TEST = [PREFERENCES / "hh_helpful_base_half.jsonl.gz"]
RANKINGS = [PREFERENCES / "ukp_topic_rankings.jsonl.gz"]

STEP = {2: 8, 4: 4, 9: 2}
"""K -> rankings in one step of ours: 16 to 18 sequences, as many as in TRL's 8 pairs."""
FULL = {2: 64, 4: 32, 9: 16}
QUICK = {2: 24, 4: 12, 9: 4}
"""K -> rankings to time."""
SIDES = ("ours", "ours-whole", "trl")
LEARNING_RATE = 3e-4
WARM_UP = 0.1


@dataclass(frozen=True)
class Job:
    """Rankings that both sides train on, written down for both; and pairs to be tested on."""

    name: str
    k: int
    rankings: int
    data: Path


def main() -> None:
    """Write the data down, measure each side, print the tables."""
    parser = options(__doc__)
    parser.add_argument("--sides", default="ours,ours-whole,trl", help="which sides to measure")
    parser.add_argument("--quick", action="store_true", help="fewer rankings")
    parser.add_argument("--accuracy", action="store_true", help="compare what is learned instead of the time")
    parser.add_argument("--data", type=Path, nargs="+", default=PAIRS, help="files of pairs to train on")
    parser.add_argument(
        "--test",
        type=Path,
        nargs="*",
        default=TEST,
        help="files to test on; none: half of --data's conversations",
    )
    parser.add_argument("--rankings", type=Path, nargs="+", default=RANKINGS, help="files to cut to K = 4, 9")
    parser.add_argument(
        "--rows", type=int, nargs=2, default=[1024, 500], help="pairs to train and to test on"
    )
    parser.add_argument(
        "--longest", type=int, default=256, help="tokens; rows with a longer reply are left out"
    )
    parser.add_argument("--lr", type=float, default=LEARNING_RATE, help="peak learning rate of both sides")
    parser.add_argument(
        "--checkpointing", action="store_true", help="TRL as by default: recompute activations"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "var" / "benchmarks" / "reward.json")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)  # the child: train on this, print JSON
    parser.add_argument("--step", type=int, default=8, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out = arguments.out.absolute()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    base = load_base(arguments.model, open_home(), tell=lambda line: print(line, file=sys.stderr))

    if arguments.ours:
        print(json.dumps(train_ours(base, arguments)))
        return
    arguments.sides = sides_of(arguments, SIDES)
    (compare_accuracy if arguments.accuracy else compare_time)(base, arguments)


def compare_time(base: Base, arguments: argparse.Namespace) -> None:
    """A row for each K and precision."""
    rows, told = [], list[Result]()
    for job in timing_jobs(base, arguments):
        for precision in arguments.precisions.split(","):
            sides = run_sides(base, job, precision, arguments)
            told += sides.values()
            each, peak = {}, {}
            for side, result in sides.items():
                per_ranking = job.k * (job.k - 1) // 2 if side == "trl" else 1
                each[side] = result["seconds"] / result["pairs"] * per_ranking
                peak[side] = result["peak_memory_gib"]
            rows.append(
                [str(job.k), str(job.rankings), precision]
                + [figure(each.get(side), 2) for side in SIDES]
                + [ratio(each.get(side), each.get("trl")) for side in SIDES[:2]]
                + [figure(peak.get(side)) for side in SIDES]
                + [" / ".join(f"{result['load']}" for result in sides.values())]
            )
    head = (
        "K,rankings,precision,ours: s a ranking,ours in all layers,TRL,TRL / ours,in all layers,"
        "ours: GiB,in all layers,TRL,load at the start"
    )
    print(table(head.split(","), rows))
    print(origins(told))


def compare_accuracy(base: Base, arguments: argparse.Namespace) -> None:
    """One row a precision: accuracy of both on the same pairs, and the difference with its interval."""
    job, taught, test = accuracy_job(base, arguments)
    words = f"{100 * bag_of_words(taught, test):.1f} %"
    rows, told = [], list[Result]()
    for precision in arguments.precisions.split(","):
        sides = run_sides(base, job, precision, arguments)
        told += sides.values()
        hits = {side: hits_by_group(test, result["scores"]) for side, result in sides.items()}
        longest = hits_by_group(test, [[float(len(r)) for r in turn.replies] for turn in test])
        cells = [f"{share(hits[side])}" if side in hits else "-" for side in SIDES]
        difference = "-"
        if {"ours", "trl"} <= hits.keys():
            groups = [list(zip(hits["ours"][name], hits["trl"][name], strict=True)) for name in hits["ours"]]
            low, high = paired_bootstrap(groups, seed=0)
            mean = sum(a - b for group in groups for a, b in group) / sum(len(group) for group in groups)
            difference = f"**{100 * mean:+.1f}** [{100 * low:+.1f}, {100 * high:+.1f}]"
        times = [figure(sides[side]["seconds_in_all"], 0) if side in sides else "-" for side in SIDES]
        rows.append([job.name, precision, *cells, difference, share(longest), words, *times])
    head = (
        "data,precision,ours,ours in all layers,TRL,ours - TRL,longest wins,bag of words,"
        "ours: s of training,in all layers,TRL"
    )
    print(table(head.split(","), rows))
    print(origins(told))


def share(hits: dict[str, list[float]]) -> str:
    """Per cent right of all decided pairs, with the interval by group."""
    groups = list(hits.values())
    low, high = bootstrap_by_group(groups, seed=0)
    mean = sum(map(sum, groups)) / sum(map(len, groups))
    return f"{100 * mean:.1f} % [{100 * low:.0f}, {100 * high:.0f}]"


def hits_by_group(turns: Sequence[RankedTurn], scores: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """1, 0 or (equal scores) 1/2 for each decided pair, by RankedTurn.group."""
    return by_group(
        (turn.group, 0.5 if row[better] == row[worse] else float(row[better] > row[worse]))
        for turn, row in zip(turns, scores, strict=True)
        for better, worse in decided(turn)
    )


# Data: the same rankings, as texts for us and as token ids for TRL


def timing_jobs(base: Base, arguments: argparse.Namespace) -> list[Job]:
    """Pairs as they are; long rankings cut to 4 and to 9 replies. More than one step of each."""
    jobs = []
    for k, count in (QUICK if arguments.quick else FULL).items():
        turns = read_rows(arguments.data) if k == 2 else cut(read_rows(arguments.rankings), k)
        turns = fitting(turns, base, arguments.longest)[:count]
        check_enough(turns, k, arguments.longest)
        jobs.append(write(base, f"K={k}, {len(turns)} rankings", turns, [], arguments.out))
    return jobs


def accuracy_job(base: Base, arguments: argparse.Namespace) -> tuple[Job, list[RankedTurn], list[RankedTurn]]:
    """Pairs to learn from and pairs to be tested on, with no dialogue in common, whatever file it is in."""
    turns, test = read_rows(arguments.data), read_rows(arguments.test)
    if not test:
        turns, test = split_by_conversation(turns, 0.5, seed=0)
    tested = {turn.group for turn in test}
    turns = [turn for turn in turns if turn.group not in tested]
    first, last = arguments.rows
    turns = fitting(turns, base, arguments.longest)[:first]
    check_enough(turns, 2, arguments.longest)
    test = fitting(test, base, arguments.longest)[:last]
    names = "+".join(path.name.split(".")[0] for path in arguments.data)
    job = write(base, f"{names}, {len(turns)} to {len(test)}", turns, test, arguments.out)
    return job, turns, test


def check_enough(turns: Sequence[RankedTurn], k: int, longest: int) -> None:
    """Ends where nothing is left to time after the first step."""
    if len(turns) <= STEP[k]:
        sys.exit(
            f"Only {len(turns)} rankings of {k} replies fit into {longest} tokens, "
            f"and a step takes {STEP[k]} - name other files, or raise --longest."
        )


def cut(turns: Sequence[RankedTurn], k: int) -> list[RankedTurn]:
    """Long rankings in parts of `k` replies; what is left over is left out."""
    columns = ("replies", "places", "versions", "shown", "cut")
    return [
        replace(turn, **{name: getattr(turn, name)[start : start + k] for name in columns})
        for turn in turns
        for start in range(0, len(turn.replies) - k + 1, k)
    ]


def fitting(turns: Sequence[RankedTurn], base: Base, longest: int) -> list[RankedTurn]:
    """Those with something decided and no sequence above `longest` tokens, shuffled with seed 0."""
    kept = [
        entry.turn
        for entry in tokenise(turns, base.format)
        if decided(entry.turn) and entry.longest <= longest
    ]
    random.Random(0).shuffle(kept)
    return kept


def decided(turn: RankedTurn) -> list[tuple[int, int]]:
    """(better, worse) of every pair that is no tie."""
    return [(pair.better, pair.worse) for pair in turn.pairs() if pair.is_decided]


def tested(path: Path) -> Path:
    """Where the rankings to be tested on lie, beside the token ids at `path`."""
    return path.with_suffix(".test.jsonl")


def write(base: Base, name: str, turns: list[RankedTurn], test: list[RankedTurn], out: Path) -> Job:
    """Both forms of the data, beside the results."""
    path = out.parent / f"{name.replace(' ', '').replace(',', '-').replace('=', '')}.json"
    write_snapshot(turns, path.with_suffix(".jsonl"))
    write_snapshot(test, tested(path))
    ids = {
        part: [
            {"sequences": [reply.ids for reply in entry.replies], "pairs": decided(entry.turn)}
            for entry in tokenise(rows, base.format)
        ]
        for part, rows in (("train", turns), ("test", test))
    }
    path.write_text(json.dumps(ids))
    return Job(name, len(turns[0].replies), len(turns), path)


# The sides


def run_sides(base: Base, job: Job, precision: str, arguments: argparse.Namespace) -> dict[str, Result]:
    """What each side measures; `pairs` of ours counts rankings, of which each is one data point."""
    same = ["--model", str(base.directory), "--lr", str(arguments.lr)]
    ours = [sys.executable, __file__, *same, "--precisions", precision]
    ours += ["--ours", str(job.data), "--step", str(STEP[job.k])]
    theirs = [str(arguments.peer), str(Path(__file__).with_name("trl_reward.py")), *same]
    theirs += ["--precision", precision, "--data", str(job.data), "--warmup", str(WARM_UP)]
    commands = {
        "ours": ours,
        "ours-whole": [*ours, "--depth", "1"],
        "trl": theirs + ["--checkpointing"] * arguments.checkpointing,
    }
    sides = {}
    for side in arguments.sides:
        name = f"{side}, {job.name}, {precision}"
        name += ", checkpointing" if side == "trl" and arguments.checkpointing else ""
        settings = {} if side == "trl" else ENVIRONMENT
        sides[side] = measured(arguments.out, name, commands[side], settings)
    return sides


def train_ours(base: Base, arguments: argparse.Namespace) -> Result:
    """One member, one pass over the rankings, then the score of each reply to be tested on."""
    turns = read_snapshot(arguments.ours.with_suffix(".jsonl")).turns
    test = read_snapshot(tested(arguments.ours)).turns
    config = RefreshConfig(
        reward_epochs=1, reward_steps=1, reward_batch=arguments.step, reward_lr=arguments.lr, members=1
    )
    if arguments.depth:
        config = replace(config, depth=arguments.depth)
    device = pick_device()
    policy = Policy(base, device=device, dtype=pick_dtype(arguments.precisions, device))
    times: list[float] = []
    started = time.monotonic()
    train_reward(policy, "reward-0", turns, config, seed=0, tell=lambda *_: times.append(time.monotonic()))
    replies = [reply for entry in tokenise(test, base.format) for reply in entry.replies]
    scores = iter(scores_of(policy, "reward-0", replies))
    return {
        "seconds": times[-1] - times[0],
        "pairs": len(turns) - arguments.step,
        "seconds_in_all": times[-1] - started,
        "peak_memory_gib": peak_memory_gib(),
        "scores": [[next(scores) for _ in turn.replies] for turn in test],
    }


if __name__ == "__main__":
    main()
