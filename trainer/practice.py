"""What a night practises on and is judged on. The two share nothing, and neither is what was ranked.

PPO practises on people's own turns that no ranking covers and on the prompts that ship with the project, or
on a file of the operator's; the gate judges on other prompts, which nothing else in a night sees.
"""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from chatbot.basemodel import Base
from data import conversations, demonstrations
from data.comparisons import RankedTurn
from data.database import Database
from data.errors import Refused
from data.prompts import judging_prompts, practice_prompts, read_prompts
from data.records import Prompt
from trainer.config import RefreshConfig
from trainer.examples import tokenise
from trainer.forward import Reply

T = TypeVar("T")

_LONGEST = 384
"""Tokens of a prompt to practise on; one long prompt would make its whole batch slow."""
_REFERENCE_PROMPTS = 64
_PIECE = 256
"""Tokens of one example of a text file."""


def practice(
    db: Database, base: Base, config: RefreshConfig, ranked: Sequence[RankedTurn]
) -> list[list[int]]:
    """Token ids of the prompts PPO rolls out on, shuffled, none twice; at most half are people's own."""
    covered = {turn.turn_id for turn in ranked}
    asked = [p for p in conversations.user_prompts(db, limit=500) if p.turn_id not in covered]
    needed = config.prompts_per_update * (config.updates + 1)
    ours = _shuffled(_ours(config), config.seed)
    out = _encoded(base, [*asked[: needed // 2], *ours])[:needed]
    return _shuffled(out, config.seed + 1)


def reference_prompts(base: Base, config: RefreshConfig) -> list[list[int]]:
    """Token ids of the prompts to which the reference replies, so that scores have a zero and a unit."""
    return _encoded(base, _shuffled(_ours(config), config.seed + 2))[:_REFERENCE_PROMPTS]


def judging(base: Base, config: RefreshConfig) -> list[Prompt]:
    """The prompts of the gate's replay."""
    prompts = read_prompts(Path(config.judging)) if config.judging else list(judging_prompts())
    fitting = [p for p in prompts if len(base.format.encode(p.messages)) <= base.context // 2]
    return _shuffled(fitting, config.seed)[: config.gate_prompts]


def ptx_examples(db: Database, base: Base, config: RefreshConfig) -> list[Reply]:
    """What PPO-ptx keeps the policy able to say: a text file of the operator's, else the demonstrations."""
    if config.ptx == 0:
        return []
    if config.ptx_data is not None:
        ids = base.format.encode_text(_read(Path(config.ptx_data)))
        pieces = [ids[start : start + _PIECE] for start in range(0, len(ids) - 1, _PIECE)]
        return [Reply(piece[:1], piece[1:], False) for piece in pieces if len(piece) > 1]
    shown = demonstrations.collect(db)
    if not shown:
        raise Refused("There are no demonstrations for PPO-ptx - give a text file with --ptx-data.")
    return tokenise(shown, base)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(
            f"The file {str(path)!r} cannot be read ({error}) - give a text file in UTF-8."
        ) from error


def _ours(config: RefreshConfig) -> list[Prompt]:
    return read_prompts(Path(config.practice)) if config.practice else list(practice_prompts())


def _encoded(base: Base, prompts: Iterable[Prompt]) -> list[list[int]]:
    """Token ids of those that are short enough, none twice, in order."""
    ids = (tuple(base.format.encode(prompt.messages)) for prompt in prompts)
    found = [list(prompt) for prompt in dict.fromkeys(ids) if len(prompt) <= _LONGEST]
    if not found:
        raise Refused(f"No prompt to practise on has fewer than {_LONGEST} tokens - give shorter ones.")
    return found


def _shuffled(items: Sequence[T], seed: int) -> list[T]:
    return random.Random(seed).sample(items, len(items))
