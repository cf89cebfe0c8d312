"""What is stage 3 worth, and what do its brakes do? One set of reward models, several ways to use them.

    trainer simulate --taste concise && trainer reward       # prints the run's id
    python benchmarks/stage3.py --run ID --taste concise     # about an hour on two cores

    ppo         as a night does it
    bestofk     as `--algorithm bestofk` does it, with as many sampled replies as PPO
    sft         imitation of the rankings' winners, without any reward model
    unguarded   PPO without KL penalty, ensemble penalty and guards: to see over-optimisation

Each row begins with the base and the reward models, judge and snapshot of the run's folder. Its result is
measured by the true taste, which no reward model saw, on prompts that no stage has seen, against the base
with the same seeds. `--plot` draws the true taste and the reward models' score of every update against
sqrt(KL).
"""

import argparse
import json
import math
import os
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
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
from trainer.forward import Reply, logprobs_of, sample_replies
from trainer.guards import Guards
from trainer.measure import compare
from trainer.ppo import PPOResult, train_ppo
from trainer.reward import winners_direction
from trainer.sampler import MergedSampler
from trainer.sft import train_sft
from trainer.tastes import Taste, load_taste

SAMPLING = Sampling()
UNGUARDED = {"beta": 0.0, "pessimism": 0.0, "updates": 24, "max_kl": 1e9}


class Fearless(Guards):
    """Guards that never stop a run."""

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
    parser.add_argument("--rows", default="ppo,bestofk,sft,unguarded", help="which of the ways")
    parser.add_argument("--practice", type=Path, help="the prompts the run practised on, if not ours")
    parser.add_argument("--unseen", type=Path, help="prompts to measure on (default: 200 of ours, kept away)")
    parser.add_argument("--home", type=Path, help="where the run lies, if not where `trainer` looks")
    parser.add_argument("--out", type=Path, default=Path("var/stage3.jsonl"), help="one line a row")
    parser.add_argument("--plot", type=Path, help="write the curves as an SVG file")
    arguments = parser.parse_args()
    home = open_home(arguments.home)
    bench = Bench(load_base(None, home), home.runs / arguments.run, load_taste(arguments.taste))
    bench.part_prompts(arguments.practice, arguments.unseen)
    done = {line["row"] for line in read(arguments.out)}
    for row in arguments.rows.split(","):
        if row not in done:
            line = {"row": row, "taste": arguments.taste, **bench.run(row)}
            with arguments.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps({k: v for k, v in line.items() if k != "curve"}), flush=True)
    print(f"{os.cpu_count()} cores, torch {torch.__version__}\n")
    print("\n".join(as_table(list(read(arguments.out)))))
    if arguments.plot:
        arguments.plot.write_text(as_svg(list(read(arguments.out))))


class Bench:
    """The reward models of one run, and the prompts to use and to measure them on."""

    def __init__(self, base: Base, folder: Path, taste: Taste) -> None:
        self.base, self.folder, self.taste = base, folder, taste
        self.turns: tuple[RankedTurn, ...] = read_snapshot(folder / "snapshot.jsonl").turns
        self.reference = [Reply(**row) for row in json.loads((folder / "reference.json").read_text())]
        self.device = pick_device()
        self.dtype = pick_dtype("auto", self.device)

    def part_prompts(self, practice: Path | None, unseen: Path | None) -> None:
        """What is practised on, and what is kept for the measurement."""
        ours = random.Random(0).sample(practice_prompts(), len(practice_prompts()))
        ranked = {as_key(turn.prompt) for turn in self.turns}
        new = [prompt for prompt in ours if as_key(prompt.messages) not in ranked]
        self.unseen: list[Prompt] = read_prompts(unseen) if unseen else new[:200]
        kept = {as_key(prompt.messages) for prompt in self.unseen}
        asked = read_prompts(practice) if practice else ours
        ids = [self.base.format.encode(p.messages) for p in asked if as_key(p.messages) not in kept]
        self.prompts = [prompt for prompt in ids if len(prompt) <= 384]

    def run(self, row: str) -> dict[str, Any]:
        """Train one way, then measure."""
        torch.manual_seed(0)
        policy = Policy(self.base, device=self.device, dtype=self.dtype)
        names = sorted(path.name for path in self.folder.glob("reward-*") if path.is_dir())
        for name in (*names, "judge"):
            policy.load(name, self.folder / name, with_head=True)
        policy.add("policy", seed=0)
        merged = merged_model(self.base, None, device=self.device, dtype=self.dtype)
        started = time.monotonic()
        curve = self._train(row, policy, merged)
        seconds = time.monotonic() - started
        return {"seconds": seconds, "curve": curve, **self._measure(policy, merged)}

    def _train(self, row: str, policy: Policy, merged: PreTrainedModel) -> list[dict[str, float]]:
        config = RefreshConfig()
        if row == "sft":
            train_sft(policy, "policy", self._winners(), [], config, tell=lambda *_: None)
            return []
        curve: list[dict[str, float]] = []

        def tell(update: int, fraction: float, metrics: dict[str, float]) -> None:
            print(f"{row} {fraction:.0%}: KL {metrics['kl']:.1f}", flush=True)

        if row == "bestofk":
            train_best_of_k(
                policy,
                MergedSampler(merged),
                self.prompts,
                config,
                sampling=SAMPLING,
                reference=None,
                tell=tell,
            )
            return []
        unguarded = row == "unguarded"
        ppo.Guards = Fearless if unguarded else Guards  # type: ignore[misc]
        with self._true_taste(curve):
            result: PPOResult = train_ppo(
                policy,
                MergedSampler(merged),
                self.prompts,
                replace(config, **UNGUARDED) if unguarded else config,
                sampling=SAMPLING,
                reference=None,
                starts_at_reference=True,
                reference_finish_rate=statistics.fmean(r.finished for r in self.reference),
                winners_direction=winners_direction(self.turns),
                tell=tell,
            )
        return [{**seen, **update} for seen, update in zip(curve, result.history, strict=False)]

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
        """The reply of each ranking that was put first, ties by the order they came in."""
        chat, out = self.base.format, []
        for turn in self.turns:
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
            "taste": statistics.fmean(tastes),
            "base_taste": statistics.fmean(others),
            "kl": self._kl(policy, mine),
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


def as_key(messages: Sequence[dict[str, str]]) -> str:
    """The same for the same messages."""
    return json.dumps(messages, sort_keys=True)


def read(out: Path) -> list[dict[str, Any]]:
    """The lines there are."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []


def as_table(lines: list[dict[str, Any]]) -> list[str]:
    """A Markdown line a row."""
    table = [
        "| way | minutes | decisive wins | ties | taste (base) | KL | tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        low, high = line["interval"] or (math.nan, math.nan)
        rate = math.nan if line["decisive_win_rate"] is None else line["decisive_win_rate"]
        taste = f"{line['taste']:.1f} ({line['base_taste']:.1f}) | {line['kl']:.1f} | {line['tokens']:.0f}"
        wins = f"{rate:.1%} [{low:.0%}, {high:.0%}] | {line['ties']:.0%}"
        table.append(f"| {line['row']} | {line['seconds'] / 60:.1f} | {wins} | {taste} |")
    return table


def as_svg(lines: list[dict[str, Any]], width: int = 760, height: int = 300) -> str:
    """True taste (left) and reward models' score (right) of every update against sqrt(KL)."""
    curves = {line["row"]: line["curve"] for line in lines if line["curve"]}
    colours = dict(zip(curves, ("#2563eb", "#d9480f", "#2b8a3e"), strict=False))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    ]
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for panel, (key, title) in enumerate((("taste", "true taste"), ("score", "score of the reward models"))):
        every = [point for curve in curves.values() for point in curve]
        xs = [math.sqrt(max(point["kl"], 0.0)) for point in every]
        ys = [point[key] for point in every]
        left, top, wide, high = 50 + panel * width / 2, 30, width / 2 - 80, height - 80
        low, span = min(ys), max(max(ys) - min(ys), 1e-9)

        def place(
            point: Mapping[str, float],
            key: str = key,
            box: tuple[float, float, float, float] = (left, top, wide, high),
            scale: tuple[float, float, float] = (max(*xs, 1e-9), low, span),
        ) -> str:
            x = box[0] + box[2] * math.sqrt(max(point["kl"], 0.0)) / scale[0]
            return f"{x:.1f},{box[1] + box[3] * (1 - (point[key] - scale[1]) / scale[2]):.1f}"

        parts.append(
            f'<text x="{left}" y="18" font-size="13">{title}</text>'
            f'<path d="M{left} {top}V{top + high}H{left + wide}" fill="none" stroke="#888"/>'
            f'<text x="{left - 6}" y="{top + 8}" font-size="11" text-anchor="end">{max(ys):.1f}</text>'
            f'<text x="{left - 6}" y="{top + high}" font-size="11" text-anchor="end">{low:.1f}</text>'
            f'<text x="{left + wide}" y="{top + high + 16}" font-size="11" text-anchor="end">'
            f"sqrt(KL), to {max(xs):.1f}</text>"
        )
        for row, curve in curves.items():
            points = " ".join(place(point) for point in curve)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colours[row]}" stroke-width="2"/>'
            )
    for i, (row, colour) in enumerate(colours.items()):
        parts.append(
            f'<text x="{50 + i * 120}" y="{height - 12}" font-size="13" fill="{colour}">{row}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    main()
