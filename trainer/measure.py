"""Measuring versions against a known taste, on prompts that nothing has learned from.

Every version answers the same prompts with the sampling of the chat; the first one named is what the others
are held against. Reported beside the plain win rate (ties half): the decisive one (ties dropped) with an
interval over prompts, since the replies to one prompt are not independent; the mean taste in units of the
first version's spread; and how far the version has moved from the base, in nats a reply.

    trainer measure --taste concise --versions base,v000001 --prompts prompts.jsonl
"""

import gc
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from chatbot.basemodel import Base
from chatbot.engine import Engine
from chatbot.following import load_verified
from chatbot.generation import MAX_REPLIES, Generation
from chatbot.models import merged_model
from data import versions
from data.cli import table
from data.database import Database
from data.errors import Busy, Refused
from data.home import Home
from data.records import BASE_VERSION, Prompt, Sampling
from trainer.canary import exact_format
from trainer.forward import logprobs_of
from trainer.intervals import bootstrap_by_group
from trainer.raters import ROWS_IN_FLIGHT
from trainer.tastes import Taste
from trainer.telling import Counted, nobody

BOOTSTRAPS = 2000


@dataclass
class Answers:
    """What one version said: lists over prompts, of lists over samples."""

    tastes: list[list[float]]
    prompts: list[list[int]]
    replies: list[list[list[int]]]

    @property
    def all_tastes(self) -> list[float]:
        return [value for row in self.tastes for value in row]


@dataclass(frozen=True)
class Duel:
    """Wins, losses and ties of a version against the first, prompt by prompt."""

    wins: list[int]
    losses: list[int]
    ties: list[int]

    @property
    def win_rate(self) -> float:
        """Ties count half."""
        total = sum(self.wins) + sum(self.losses) + sum(self.ties)
        return (sum(self.wins) + sum(self.ties) / 2) / total

    @property
    def tie_share(self) -> float:
        return sum(self.ties) / (sum(self.wins) + sum(self.losses) + sum(self.ties))

    @property
    def decisive_win_rate(self) -> float | None:
        """Ties dropped; None where there is nothing else."""
        decisive = sum(self.wins) + sum(self.losses)
        return sum(self.wins) / decisive if decisive else None

    def interval(self, seed: int = 0) -> tuple[float, float] | None:
        """95 % of the decisive win rate, bootstrapped over the prompts that have one."""
        decisive = [[1.0] * won + [0.0] * lost for won, lost in zip(self.wins, self.losses, strict=True)]
        groups = [outcomes for outcomes in decisive if outcomes]
        if not groups:
            return None
        low, high = bootstrap_by_group(groups, seed, BOOTSTRAPS)
        return low, high


def measure(
    base: Base,
    home: Home,
    db: Database,
    *,
    taste: Taste,
    names: Sequence[str],
    prompts: Sequence[Prompt],
    samples: int = 1,
    seed: int = 0,
    precision: str = "auto",
    four_bit: bool = False,
    progress: Counted = nobody,
) -> dict[str, Any]:
    """Samples `samples` replies of each version to each prompt; returns the report that `--json` prints."""
    if not names or samples < 1 or not prompts:
        raise Refused("There is nothing to measure - name a version, a prompt and at least one sample.")
    for name in names:
        versions.get(db, name)
    engine = Engine(base, precision=precision, four_bit=four_bit)
    sampling = Sampling(max_new_tokens=engine.longest_reply)
    engine.start()
    try:
        answers = {}
        for number, name in enumerate(dict.fromkeys(names)):
            load_verified(db, home, engine, name)
            draw = random.Random(f"{seed} {number}")
            answers[name] = _ask(engine, name, taste, prompts, samples, sampling, draw)
            engine.unload(name)
            progress(number + 1, len(names))
    finally:
        engine.close()
        del engine  # with the weights of its versions, for which there may be no room beside what comes next
        gc.collect()
    kls = _kls(base, home, db, answers, sampling.temperature, four_bit)
    first = answers[names[0]]
    return {
        "versions": {name: _figures(said, first, kls[name]) for name, said in answers.items()},
        "prompts": len(prompts),
        "samples": samples,
        "seed": seed,
        "sampling": asdict(sampling),
    }


def compare(tastes: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> Duel:
    """Each reply against each of the other version's replies to the same prompt."""
    signs = [
        [(mine > theirs) - (mine < theirs) for mine in row for theirs in other]
        for row, other in zip(tastes, others, strict=True)
    ]
    return Duel(*([row.count(sign) for row in signs] for sign in (1, -1, 0)))


def as_table(report: dict[str, Any]) -> list[str]:
    """The report as lines for a person."""
    header = ["version", "taste", "best of", "gain", "wins", "decisive", "interval", "ties", "tokens", "kl"]
    rows = [[name, *map(_figure, row.values())] for name, row in report["versions"].items()]
    sampling = report["sampling"]
    below = (
        f"{report['samples']} replies to each of {report['prompts']} prompts, temperature "
        f"{sampling['temperature']}, at most {sampling['max_new_tokens']} tokens."
    )
    return [*table(header, rows), "", below]


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    return " to ".join(map(_figure, value)) if isinstance(value, tuple) else f"{value:.3f}"


def _figures(said: Answers, first: Answers, kl: float) -> dict[str, Any]:
    mean, first_mean = statistics.fmean(said.all_tastes), statistics.fmean(first.all_tastes)
    spread = statistics.pstdev(first.all_tastes)
    duel = compare(said.tastes, first.tastes) if said is not first else None
    return {
        "taste_mean": mean,
        "best_of_taste": statistics.fmean(max(row) for row in said.tastes),
        "taste_gain": (mean - first_mean) / spread if spread else None,
        "win_rate": duel.win_rate if duel else None,
        "decisive_win_rate": duel.decisive_win_rate if duel else None,
        "decisive_win_rate_interval": duel.interval() if duel else None,
        "ties": duel.tie_share if duel else None,
        "tokens_mean": statistics.fmean(len(ids) for row in said.replies for ids in row),
        "kl": kl,
    }


def _ask(
    engine: Engine,
    name: str,
    taste: Taste,
    prompts: Sequence[Prompt],
    samples: int,
    sampling: Sampling,
    draw: random.Random,
) -> Answers:
    """Every prompt, `samples` times, as many at once as the engine decodes together."""
    answers = Answers([[] for _ in prompts], [[] for _ in prompts], [[] for _ in prompts])
    counts = [MAX_REPLIES] * (samples // MAX_REPLIES) + [samples % MAX_REPLIES] * (samples % MAX_REPLIES > 0)
    requests = [(row, count) for row in range(len(prompts)) for count in counts]
    wave = max(1, min(engine.max_waiting, ROWS_IN_FLIGHT // max(counts)))
    for start in range(0, len(requests), wave):
        sent = []
        for row, count in requests[start : start + wave]:
            seeds = [draw.getrandbits(31) for _ in range(count)]
            sent.append((row, _submit(engine, name, prompts[row], sampling, seeds)))
        for row, generation in sent:
            generation.wait()
            answers.prompts[row] = generation.prompt
            for reply in generation.replies:
                if reply.finish_reason not in ("stop", "length"):
                    raise Busy(f"A reply of {name!r} ended as {reply.finish_reason!r} - measure again.")
                answers.tastes[row].append(taste(prompts[row].messages, reply.text))
                answers.replies[row].append(reply.token_ids)
    return answers


def _submit(engine: Engine, name: str, prompt: Prompt, sampling: Sampling, seeds: list[int]) -> Generation:
    return engine.submit(prompt.messages, replies=len(seeds), sampling=sampling, seeds=seeds, version=name)


def _kls(
    base: Base,
    home: Home,
    db: Database,
    answers: dict[str, Answers],
    temperature: float,
    four_bit: bool,
) -> dict[str, float]:
    """For each version the mean over its own replies of sum(log version - log base), in nats."""
    kls, place = {BASE_VERSION: 0.0}, exact_format(base, four_bit=four_bit)
    for name, said in answers.items():
        if name != BASE_VERSION:
            adapter = home.adapters / versions.get(db, name).path
            of_version, of_base = (
                _logprob_sums(base, worn, said, temperature, place, four_bit) for worn in (adapter, None)
            )
            kls[name] = statistics.fmean(a - b for a, b in zip(of_version, of_base, strict=True))
    return kls


def _logprob_sums(
    base: Base,
    adapter: Path | None,
    said: Answers,
    temperature: float,
    place: tuple[torch.device, torch.dtype],
    four_bit: bool,
) -> list[float]:
    """The log-probability of each whole reply, teacher-forced; one model in memory at a time."""
    device, dtype = place
    with device:  # onto a GPU from the files, as for the canaries
        model = merged_model(base, adapter, device=device, dtype=dtype, four_bit=four_bit)
    pairs = [(said.prompts[row], ids) for row, replies in enumerate(said.replies) for ids in replies]
    prompts, replies = [prompt for prompt, _ in pairs], [ids for _, ids in pairs]
    return [float(logprob.sum()) for logprob in logprobs_of(model, prompts, replies, temperature)]
