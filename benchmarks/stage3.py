"""What is stage 3 worth, and what do its brakes do? One set of reward models, several ways to use them.

    trainer simulate --taste concise && trainer reward       # prints the run's id
    python benchmarks/stage3.py --run ID --taste concise     # about an hour and a half on two cores

    ppo            as a night does it
    bestofk        as `--algorithm bestofk` does it, with as many sampled replies as PPO
    sft            imitation of the rankings' winners, without any reward model
    bestofk-long   the same with so many more prompts that it takes as long as PPO
    sft-long       the same with so many more passes that it takes as long as PPO
    unguarded      PPO on one reward model, without KL penalty and guards: to see over-optimisation

Each row begins with the base and the reward models, judge and snapshot of the run's folder; what those took
is in no row's time, though `sft` needs none of them. Its result is measured by the true taste, which no
reward model saw, on prompts that no stage has seen, against the base with the same seeds. `--plot` draws what
PPO went through (curves.py).
"""

import argparse
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data.cli import ENVIRONMENT

if __name__ == "__main__":  # as our commands do, before PyTorch's libraries are loaded and read it
    os.environ.update({**ENVIRONMENT, **os.environ})

import torch
from curves import as_svg
from peers import commit
from transformers import PreTrainedModel

from chatbot.basemodel import Base, load_base
from chatbot.models import merged_model, pick_device, pick_dtype
from chatbot.policy import Policy
from data.comparisons import RankedTurn, read_snapshot
from data.home import open_home
from data.prompts import practice_prompts, read_prompts
from data.records import Prompt, Sampling
from trainer import ppo
from trainer.bestofk import train_best_of_k
from trainer.config import RefreshConfig
from trainer.endings import endings_of
from trainer.ensemble import rewards_of
from trainer.forward import Reply, logprobs_of
from trainer.guards import Guards
from trainer.measure import compare
from trainer.members import members_of
from trainer.ppo import train_ppo
from trainer.result import PolicyResult
from trainer.reward import length_preference
from trainer.rollout import Roles, Task
from trainer.sampler import MergedSampler, sample_replies
from trainer.sft import train_sft
from trainer.tastes import Taste, load_taste

SAMPLING = Sampling()
MEASURED = 64
"""Replies whose KL is measured, in float32: more would take longer than the row."""
ROWS = "ppo,bestofk,sft,bestofk-long,sft-long,unguarded"
UNGUARDED = {"beta": 0.0, "updates": 24, "max_kl": 1e9}


class Fearless(Guards):
    """Guards that never stop a run, and to whom the latest policy is the best one."""

    @property
    def judge(self) -> float:
        return float(self._seen.batches)

    @property
    def keeps_endings(self) -> bool:
        return True

    def check_rollout(self, metrics: dict[str, float]) -> str | None:
        super().check_rollout(metrics)
        return None

    def check_update(self, metrics: dict[str, float]) -> str | None:
        return None


def main() -> None:
    """Runs the rows that have no line yet, then prints all lines as a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="a run whose reward models are trained")
    parser.add_argument("--taste", required=True, help="the taste of the people who ranked")
    parser.add_argument("--rows", default=ROWS, help="which of the ways, in this order")
    parser.add_argument("--practice", type=Path, help="the prompts the run practised on, if not ours")
    parser.add_argument("--unseen", type=Path, help="prompts to measure on (default: 200 of ours, kept away)")
    parser.add_argument("--home", type=Path, help="where the run lies, if not where `trainer` looks")
    parser.add_argument("--out", type=Path, default=Path("var/stage3.jsonl"), help="one line a row")
    parser.add_argument("--plot", type=Path, help="write the curves as an SVG file")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"run": arguments.run, "taste": arguments.taste}
    rows = rows_of(arguments.rows, [line["row"] for line in read(arguments.out, about)])
    home = open_home(arguments.home)
    bench = Bench(load_base(None, home), home.runs / arguments.run, load_taste(arguments.taste))
    bench.part_prompts(arguments.practice, arguments.unseen)
    for row in rows:
        done = {line["row"]: line for line in read(arguments.out, about)}
        if row not in done:
            origin = {"commit": commit(), "threads": torch.get_num_threads()}
            line = {"row": row, **about, **origin, **bench.run(row, longer(row, done))}
            with arguments.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps({k: v for k, v in line.items() if k != "curve"}), flush=True)
    print(f"{os.cpu_count()} cores, torch {torch.__version__}\n")
    lines = read(arguments.out, about)
    print("\n".join(as_table(lines)))
    if arguments.plot:
        arguments.plot.write_text(as_svg(lines))


class Bench:
    """The reward models of one run, and the prompts to use and to measure them on."""

    def __init__(self, base: Base, folder: Path, taste: Taste) -> None:
        self.base, self.folder, self.taste = base, folder, taste
        self.turns: tuple[RankedTurn, ...] = read_snapshot(folder / "snapshot.jsonl").turns
        self.reference = [Reply(**row) for row in json.loads((folder / "reference.json").read_text())]
        self.device = pick_device()
        self.dtype = pick_dtype("auto", self.device)

    def part_prompts(self, practice: Path | None, unseen: Path | None) -> None:
        """What is practised on, and what is kept for the measurement. Prompts that were ranked come last."""
        ours = random.Random("stage 3").sample(practice_prompts(), len(practice_prompts()))
        ranked = {as_key(turn.prompt) for turn in self.turns}
        new = [prompt for prompt in ours if as_key(prompt.messages) not in ranked]
        self.unseen: list[Prompt] = read_prompts(unseen) if unseen else new[:200]
        kept = {as_key(prompt.messages) for prompt in self.unseen}
        asked = list(read_prompts(practice) if practice else ours)
        asked.sort(key=lambda prompt: as_key(prompt.messages) in ranked)  # in this order otherwise
        ids = [self.base.format.encode(p.messages) for p in asked if as_key(p.messages) not in kept]
        self.prompts = [prompt for prompt in ids if len(prompt) <= 384]

    def run(self, row: str, more: float) -> dict[str, Any]:
        """Train one way, `more` times as much as usual, then measure."""
        torch.manual_seed(0)
        policy = Policy(self.base, device=self.device, dtype=self.dtype)
        names = sorted(path.name for path in self.folder.glob("reward-*") if path.is_dir())
        for name in (*names[: 1 if row == "unguarded" else None], "judge"):
            policy.load(name, self.folder / name, with_head=True)
        policy.add("policy", seed=0, depth=RefreshConfig().depth)
        merged = merged_model(self.base, None, device=self.device, dtype=self.dtype)
        started = time.monotonic()
        trained = self._train(row, policy, merged, more)
        seconds = time.monotonic() - started
        return {"seconds": seconds, "more": more, **trained, **self._measure(policy, merged)}

    def _train(self, row: str, policy: Policy, merged: PreTrainedModel, more: float) -> dict[str, Any]:
        """What became of it, and the curve of each update where it is PPO."""
        config = RefreshConfig()

        def tell(update: int, fraction: float, metrics: dict[str, float]) -> None:
            print(f"{row} {fraction:.0%}: KL {metrics.get('kl', math.nan):.1f}", flush=True)

        if row.startswith("sft"):
            config = replace(config, sft_epochs=max(1, round(more * config.sft_epochs)))
            train_sft(
                policy, "policy", self._winners(), [], config, tell=tell, temperature=SAMPLING.temperature
            )
            return {"curve": []}
        roles = Roles(tuple(members_of(policy)))
        task = Task(MergedSampler(merged), self.prompts, config, SAMPLING, roles)
        if row.startswith("bestofk"):
            longer = replace(config, updates=max(1, round(more * config.updates)))
            result = train_best_of_k(policy, replace(task, config=longer), tell=tell)
            return {"curve": [], **end_of(result)}
        curve: list[dict[str, float]] = []
        unguarded = row == "unguarded"
        ppo.Guards = Fearless if unguarded else Guards  # type: ignore[misc]
        with self._true_taste(curve):
            rewards = rewards_of(policy, self.reference, config.pessimism)
            task = replace(
                task,
                config=replace(config, **UNGUARDED) if unguarded else config,
                endings=endings_of(self.reference, rewards),
            )
            result = train_ppo(policy, task, length_preference=length_preference(self.turns), tell=tell)
        curve = [{**seen, **update} for seen, update in zip(curve, result.history, strict=False)]
        return {"curve": curve, **end_of(result)}

    @contextmanager
    def _true_taste(self, curve: list[dict[str, float]]) -> Iterator[None]:
        """Notes the true taste of every batch of rollouts beside what PPO sees of it."""
        roll_out = ppo.roll_out

        def noted(*given: Any, **more: Any) -> Any:
            found = roll_out(*given, **more)
            curve.append({"taste": statistics.fmean(self._tastes(found[0].replies))})
            return found

        ppo.roll_out = noted
        try:
            yield
        finally:
            ppo.roll_out = roll_out

    def _tastes(self, replies: Sequence[Reply], prompts: Sequence[Prompt] | None = None) -> list[float]:
        """The taste of each reply; tastes of replies alone need no prompt."""
        asked = (
            [p.messages for p in prompts] if prompts else [({"role": "user", "content": ""},)] * len(replies)
        )
        said = [self.base.format.decode(reply.reply) for reply in replies]
        return [self.taste(messages, text) for messages, text in zip(asked, said, strict=True)]

    def _winners(self) -> list[Reply]:
        """The reply that each ranking put before another, ties by the order they came in."""
        chat, out = self.base.format, []
        for turn in self.turns:
            if not any(pair.is_decided for pair in turn.pairs()):
                continue
            first = turn.places.index(min(turn.places))
            reply = chat.encode_reply(turn.replies[first], finished=not turn.cut[first])
            out.append(Reply(chat.fit(turn.prompt, self.base.context // 2).ids, reply, not turn.cut[first]))
        return out

    def _measure(self, policy: Policy, merged: PreTrainedModel) -> dict[str, Any]:
        """One reply each to the unseen prompts, by the base and by the policy, drawn with the same seeds."""
        policy.write_merged("policy", merged)
        ids = [self.base.format.encode(prompt.messages) for prompt in self.unseen]
        plain = merged_model(self.base, None, device=self.device, dtype=self.dtype)
        end = self.base.format.end_of_turn
        mine, theirs = (
            sample_replies(model, ids, sampling=SAMPLING, end_of_turn=end, seed=1)
            for model in (merged, plain)
        )
        tastes, others = self._tastes(mine, self.unseen), self._tastes(theirs, self.unseen)
        duel = compare([[t] for t in tastes], [[t] for t in others])
        return {
            "decisive_win_rate": duel.decisive_win_rate,
            "interval": duel.interval(),
            "ties": duel.tie_share,
            "taste_mean": statistics.fmean(tastes),
            "base_taste_mean": statistics.fmean(others),
            "kl": self._kl(policy, mine[:MEASURED]),
            "tokens": statistics.fmean(len(reply.reply) for reply in mine),
        }

    def _kl(self, policy: Policy, replies: list[Reply]) -> float:
        """Nats a reply that the policy is from the base, by float32 models."""
        with TemporaryDirectory() as folder:
            policy.save("policy", Path(folder))
            sums = []
            for adapter in (Path(folder), None):
                model = merged_model(self.base, adapter, device=self.device, dtype=torch.float32)
                prompts, said = [r.prompt for r in replies], [r.reply for r in replies]
                found = logprobs_of(model, prompts, said, SAMPLING.temperature)
                sums.append([float(values.sum()) for values in found])
        return statistics.fmean(a - b for a, b in zip(*sums, strict=True))


def rows_of(asked: str, done: Iterable[str]) -> list[str]:
    """The rows that are asked for. Ends, before anything is loaded, where one of them cannot be."""
    rows, there = asked.split(","), set(done)
    for row in rows:
        if row not in ROWS.split(","):
            sys.exit(f"There is no way {row!r} - use {ROWS}.")
        needed = {"ppo", row.removesuffix("-long")} if row.endswith("-long") else set[str]()
        if missing := needed - there:
            sys.exit(
                f"{row} needs the time of {' and '.join(sorted(missing))} - put them before it in --rows."
            )
        there.add(row)
    return rows


def as_key(messages: Sequence[dict[str, str]]) -> str:
    """The same for the same messages."""
    return json.dumps(messages, sort_keys=True)


def longer(row: str, done: Mapping[str, dict[str, Any]]) -> float:
    """How much more of the same a row gets, to take the time of PPO; 1 for those that are not to."""
    if not row.endswith("-long"):
        return 1.0
    return float(done["ppo"]["seconds"] / done[row.removesuffix("-long")]["seconds"])


def end_of(result: PolicyResult) -> dict[str, Any]:
    """Which update was kept, of how many, and what stopped it."""
    return {"best_update": result.best_update, "updates": result.updates, "stopped": result.stopped}


def read(out: Path, about: Mapping[str, str]) -> list[dict[str, Any]]:
    """The lines there are of this run and taste."""
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    return [line for line in lines if about.items() <= line.items()]


def as_table(lines: list[dict[str, Any]]) -> list[str]:
    """A Markdown line a row."""
    table = [
        "| way | commit | minutes | as much as usual | kept | decisive wins | ties | taste (base) "
        "| KL | tokens |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        wins = "-"  # where nothing was kept, all are ties
        if line["interval"]:
            low, high = line["interval"]
            wins = f"{line['decisive_win_rate']:.1%} [{low:.0%}, {high:.0%}]"
        taste = f"{line['taste_mean']:.1f} ({line['base_taste_mean']:.1f})"
        taste += f" | {line['kl']:.1f} | {line['tokens']:.0f}"
        kept = f"{line['best_update']} of {line['updates']}" if "updates" in line else "all"
        spent = f"{line.get('commit', 'unknown')} | {line['seconds'] / 60:.1f} | {line['more']:.1f}x | {kept}"
        table.append(f"| {line['row']} | {spent} | {wins} | {line['ties']:.0%} | {taste} |")
    return table


if __name__ == "__main__":
    main()
