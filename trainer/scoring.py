"""Reward models on files of rows instead of the database: train and examine on some, score others.

    trainer reward --data hh_online.jsonl.gz --evaluate hh_base.jsonl.gz --json
    trainer score --version v000003 --data replies.jsonl --json

The rows are those of trainer/preferences.py. Nothing here knows of a policy, so scores have their zero and
their unit from a sample of the very replies that were ranked, not from what a reference would answer.

Left out on purpose: the A/B parting of a night. A file that is trained on and a file that is examined on are
two files, or one that is split by conversation.
"""

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chatbot.basemodel import Base
from chatbot.manifest import RewardRecord, hash_file, read_manifest
from chatbot.memory import peak_bytes
from data.comparisons import RankedTurn
from data.errors import Refused
from data.home import Home
from data.prompts import paraphrases
from data.records import Version
from data.runfolder import JUDGE, reward_model
from trainer import ensemble
from trainer.config import RefreshConfig
from trainer.examine import ensemble_scores, examine
from trainer.forward import Reply, training_policy
from trainer.members import members_of
from trainer.preferences import read_rows, split_by_conversation
from trainer.reward import tokenise
from trainer.telling import ModelStep

SPLIT = 0.2
"""The share of conversations that is held out where no file is given to examine on."""
_REFERENCE_RANKINGS = 64
_TRAINING_SHARE = 0.8
"""Of the time, roughly."""


def train_and_evaluate(
    base: Base,
    data: Sequence[Path],
    evaluate: Sequence[Path],
    config: RefreshConfig,
    *,
    tell: ModelStep,
    split: float | None = SPLIT,
    limit: int | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Train `config.members` reward models on the rows of `data`; the report of examine() on `evaluate`.

    Where `evaluate` is empty, `split` of the conversations of `data` are held out for it. `limit` is the most
    rows of each file. `folder` is where the models are kept, each a `reward-i`; one that lies there already
    is loaded, not trained again. `tell` hears which model is at which step, the fraction of the whole, and
    the step's metrics.

    On top of the report come `trained_on` (rankings), `seen_prompts` (how many of the examined rankings have
    a prompt that was trained on too: 0 where the examination is fair), seconds and peak memory.
    """
    began = time.monotonic()
    taught, asked = read_parts(data, evaluate, split=split, limit=limit, seed=config.seed)
    policy = training_policy(base, config)

    def hear(name: str, step: int, fraction: float, metrics: dict[str, float]) -> None:
        tell(name, step, _TRAINING_SHARE * fraction, metrics)

    with policy.remembering(), _kept(folder) as models:
        ensemble.fit(
            policy,
            taught,
            config,
            folder=models,
            reference_replies=_reference(base, taught, config.seed),
            warm=None,
            seed=config.seed,
            tell=hear,
        )
        trained = time.monotonic()
        names = members_of(policy)
        report = examine(policy, names, asked, seed=config.seed, paraphrases=paraphrases())
    tell("examined", 0, 1.0, {})
    prompts = {str(turn.prompt) for turn in taught}
    return {
        **report,
        "trained_on": len(taught),
        "seen_prompts": sum(str(turn.prompt) in prompts for turn in asked),
        "members": config.members,
        "seconds": round(time.monotonic() - began, 2),
        "seconds_training": round(trained - began, 2),
        "peak_memory_gib": round(peak_bytes() / 2**30, 2),
    }


def score_file(
    base: Base, folders: Sequence[Path], path: Path, config: RefreshConfig | None = None
) -> list[dict[str, Any]]:
    """What the reward models saved in `folders` give the replies of each row: their mean, and their spread.

    Each reply is scored as one that ended by itself.
    """
    config = config or RefreshConfig()
    turns = read_rows([path], needs_ranking=False)
    policy = training_policy(base, config)
    names = [reward_model(i) for i in range(len(folders))]
    for name, folder in zip(names, folders, strict=True):
        policy.load(name, folder, with_head=True)
    replies = [reply for t in tokenise(turns, base.format, base.context) for reply in t.replies]
    scores = ensemble_scores(policy, names, replies)
    found, at = [], 0
    for turn in turns:
        here = slice(at, at := at + len(turn.replies))
        found.append({"id": turn.ranking_id, "scores": scores.mean[here], "std": scores.spread[here]})
    return found


def as_lines(report: dict[str, Any]) -> list[str]:
    """The report of train_and_evaluate() for a person."""
    low, high = report["accuracy_interval"]
    lines = [
        f"Right on {report['accuracy']:.1%} of {report['pairs']} pairs (95 %: {low:.1%} to {high:.1%}).",
        f"The longest reply wins {report['always_longest']:.1%} of the same pairs.",
        f"Trained on {report['trained_on']} rankings; all in all {report['seconds']:.0f} seconds.",
    ]
    if report["kendall_tau"] is not None:
        lines.append(f"Kendall's tau over rankings of more than two replies: {report['kendall_tau']:.2f}.")
    if report["ece"] is not None:
        lines.append(f"How sure it is differs from how often it is right by {report['ece']:.1%} (ECE).")
    if report["seen_prompts"]:
        lines.append(f"{report['seen_prompts']} rankings have a prompt that was trained on too: unfair.")
    return lines


def reward_folders(home: Home, version: Version, base: Base) -> list[Path]:
    """Where the reward models lie that made this version, in order.

    Refused where it has none, where they were cleared away or changed, or where they belong to another base
    model: scores of other weights, or without their own normalisation, would mean something else.
    """
    if version.path and version.base_sha256 != base.sha256:
        raise Refused(
            f"The reward models of {version.name!r} belong to another base model, {version.base_model!r} - "
            "give it as --model."
        )
    rewards = read_manifest(home.adapters / version.path).rewards if version.path else []
    folders = [home.runs / str(version.run_id) / row["name"] for row in rewards if row["name"] != JUDGE]
    if not folders or not all(folder.is_dir() for folder in folders):
        raise Refused(
            f"Version {version.name!r} has no reward models - name one that a night made, by "
            '"trainer versions".'
        )
    check_unchanged(home, version, [row for row in rewards if row["name"] != JUDGE])
    return folders


def check_unchanged(home: Home, version: Version, rewards: Sequence[RewardRecord]) -> None:
    """Refused where the files of one of these reward models are not those the manifest of `version` names."""
    for row in rewards:
        folder = home.runs / str(version.run_id) / row["name"]
        if {path.name: hash_file(path) for path in sorted(folder.iterdir())} != row["files"]:
            raise Refused(
                f"{row['name']!r} of version {version.name!r} is not what it was when the version was made - "
                "score by another version, or train again."
            )


def read_parts(
    data: Sequence[Path],
    evaluate: Sequence[Path],
    *,
    split: float | None = SPLIT,
    limit: int | None = None,
    seed: int,
) -> tuple[list[RankedTurn], list[RankedTurn]]:
    """What to train on and what to examine on, as train_and_evaluate() says."""
    turns = read_rows(data, limit=limit)
    if evaluate:
        return turns, read_rows(evaluate, limit=limit)
    if split is None or not 0 < split < 1:
        raise Refused(f"There is nothing to examine on with a split of {split!r} - use one between 0 and 1.")
    taught, asked = split_by_conversation(turns, split, seed)
    if not taught or not asked:
        raise Refused(
            f"There are too few rows to split by conversation, {len(turns)} - give a file to examine on."
        )
    return taught, asked


def _reference(base: Base, turns: Sequence[RankedTurn], seed: int) -> list[Reply]:
    """The replies of some of the rankings."""
    some = random.Random(seed).sample(turns, min(len(turns), _REFERENCE_RANKINGS))
    return [reply for t in tokenise(some, base.format, base.context) for reply in t.replies]


@contextmanager
def _kept(folder: Path | None) -> Iterator[Path]:
    """`folder`, or one that goes when it is no longer needed."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)
