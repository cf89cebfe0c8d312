"""What a night practises on and is judged on. The two share nothing, and neither has a turn that was ranked.

PPO practises on people's own turns and on the prompts that ship with the project, or on a file of the
operator's; of these, one that was ranked word for word is used only where there are too few others. The
gate judges first on people's turns in the conversations that are kept for it, then on other prompts of ours;
or on a file of the operator's alone. A base that was not made for Chinese is asked none of ours in it.

People's words go no further than the run's folder: what is written into a version shows ours.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from chatbot.basemodel import Base
from data import asked, demonstrations
from data.comparisons import RankedTurn
from data.database import Database
from data.demonstrations import Demonstration
from data.errors import Refused
from data.files import write_json
from data.prompts import judging_prompts, practice_prompts, read_prompts
from data.records import Prompt
from trainer.config import RefreshConfig, fewest_to_pass
from trainer.examples import as_replies
from trainer.forward import Reply
from trainer.probes import language_of

T = TypeVar("T")
Words = tuple[tuple[str, str], ...]
"""Role and content of each message."""

_LONGEST = 384
"""Tokens of a prompt to practise on, or of a person's to judge on; a long one makes its whole batch slow."""
_REFERENCE_PROMPTS = 64
_PIECE = 256
"""Tokens of one example of a text file."""
_ASKED = 500
"""People's turns that are looked through, everybody's newest first."""
_TURNS_OF_A_CHAT = 5
"""At most so many of one conversation are judged on."""


@dataclass(frozen=True)
class Exercises:
    """All that one night practises on and is judged on."""

    practice: list[Prompt]
    judging: list[Prompt]
    ptx: list[Reply]
    """What PPO-ptx keeps the policy able to say."""
    demonstrations: list[str]
    """The messages that `ptx` may have been made of."""


def choose(db: Database, base: Base, config: RefreshConfig, ranked: Sequence[RankedTurn]) -> Exercises:
    """What a night begins to practise with; `ranked` is what it learned from."""
    shown, judged = to_imitate(db, config), choose_gate_prompts(db, base, config, ranked)
    return Exercises(
        choose_practice_prompts(db, base, config, ranked, judged),
        judged,
        ptx_examples(base, config, shown),
        [demonstration.message_id for demonstration in shown],
    )


def write_exercises(exercises: Exercises, path: Path) -> None:
    """As JSON, which is replaced whole."""
    write_json(path, asdict(exercises))


def read_exercises(path: Path) -> Exercises:
    """What `write_exercises` wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    practised, judged = (
        [Prompt(**row | {"messages": tuple(row["messages"])}) for row in found[name]]
        for name in ("practice", "judging")
    )
    return Exercises(practised, judged, [Reply(**row) for row in found["ptx"]], found["demonstrations"])


def is_still_allowed(db: Database, exercises: Exercises) -> bool:
    """Whether nothing that it practises on was deleted or taken back from training since it was chosen."""
    turns = {prompt.turn_id for prompt in exercises.practice if prompt.turn_id}
    if turns != asked.still_teaching(db, turns):
        return False
    shown = set(exercises.demonstrations)
    return not shown or shown <= {found.message_id for found in demonstrations.collect(db)}


def still_allowed(db: Database, prompts: Sequence[Prompt]) -> list[Prompt]:
    """`prompts` without those deleted or taken back since, from which nothing was learned."""
    allowed = asked.still_teaching(db, {prompt.turn_id for prompt in prompts if prompt.turn_id})
    return [prompt for prompt in prompts if prompt.turn_id is None or prompt.turn_id in allowed]


def check_prompts(db: Database, base: Base, config: RefreshConfig, longest_reply: int) -> None:
    """Raises NotFound or Refused where the operator's files or lengths would end the night later."""
    if longest_reply > base.context // 2:
        raise Refused(
            f"Replies may have {longest_reply} tokens, more than half of the {base.context} that "
            f"{base.name!r} sees - use --max-new-tokens {base.context // 2} or less."
        )
    judged = len({prompt.group for prompt in shipped_gate_prompts(base, config)})
    if judged < (fewest := fewest_to_pass(config.margin)):
        raise Refused(
            f"Prompts to judge on that begin differently: {judged}, too few to tell better from chance even "
            f"if all are won - give at least {fewest} with --judging."
        )
    _unjudged(base, config)
    if len(reference_prompts(base, config)) < 2:
        raise Refused("There is one prompt to practise on - give at least two with --practice.")
    ptx_examples(base, config, to_imitate(db, config))


def choose_practice_prompts(
    db: Database,
    base: Base,
    config: RefreshConfig,
    ranked: Sequence[RankedTurn],
    judged: Sequence[Prompt] = (),
) -> list[Prompt]:
    """The prompts PPO rolls out on, shuffled, none twice; at most half are people's own.

    So a few that an operator gives are not drowned by what was asked: all are met again and again instead.
    """
    covered = {_words(turn.prompt) for turn in ranked}
    needed = config.prompts_per_update * (config.updates + 1)
    ours = _shuffled(_unjudged(base, config), config.seed)
    ours.sort(key=lambda prompt: _words(prompt.messages) in covered)  # in this order otherwise
    ours = _short(base, ours)
    elsewhere = covered | {_words(prompt.messages) for prompt in (*judged, *ours)}
    theirs = _unless(elsewhere, asked.user_prompts(db, _ASKED, for_judging=False))
    theirs = _that_fit(base, theirs, _room(base))[: min(needed // 2, len(ours))]
    return _shuffled([*theirs, *ours][:needed], config.seed + 1)


def reference_prompts(base: Base, config: RefreshConfig) -> list[list[int]]:
    """Token ids of the prompts to which the reference replies, so that scores have a zero and a unit."""
    chosen = _short(base, _shuffled(_ours(base, config), config.seed + 2))[:_REFERENCE_PROMPTS]
    return [base.format.encode(prompt.messages) for prompt in chosen]


def shipped_gate_prompts(base: Base, config: RefreshConfig) -> list[Prompt]:
    """The operator's prompts to judge on, else those that ship; nobody's turn is among them."""
    found = _that_fit(base, _all_gate_prompts(base, config), base.context // 2)
    if not found:
        raise Refused(
            f"No prompt to judge on has fewer than {base.context // 2} tokens - give shorter ones with "
            "--judging."
        )
    return _shuffled(found, config.seed)[: config.gate_prompts]


def choose_gate_prompts(
    db: Database, base: Base, config: RefreshConfig, ranked: Sequence[RankedTurn]
) -> list[Prompt]:
    """The prompts of the gate's replay: people's newest turns that are kept for it, in rounds by person, at
    most half; then others.

    So a candidate that fails at what is asked here cannot pass on what is asked everywhere. An operator's own
    file says by itself what is asked here.
    """
    others = shipped_gate_prompts(base, config)
    if config.judging:
        return others
    elsewhere = {_words(turn.prompt) for turn in ranked}
    elsewhere |= {_words(prompt.messages) for prompt in (*others, *_ours(base, config))}
    theirs = _unless(elsewhere, asked.user_prompts(db, _ASKED, for_judging=True))
    theirs = _few_of_each(_that_fit(base, theirs, _room(base)))[: config.gate_prompts // 2]
    return [*theirs, *others][: config.gate_prompts]


def _few_of_each(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first few of each conversation, its newest where they come in that order.

    So no long one decides a night.
    """
    seen: Counter[str] = Counter()
    kept = []
    for prompt in prompts:
        seen[prompt.group] += 1
        if seen[prompt.group] <= _TURNS_OF_A_CHAT:
            kept.append(prompt)
    return kept


def to_imitate(db: Database, config: RefreshConfig) -> list[Demonstration]:
    """The demonstrations of PPO-ptx, where it is wanted and has no text file."""
    if config.ptx == 0 or config.ptx_data is not None:
        return []
    found = demonstrations.collect(db)
    if not found:
        raise Refused("There are no demonstrations for PPO-ptx - give a text file with --ptx-data.")
    return found


def ptx_examples(base: Base, config: RefreshConfig, shown: Sequence[Demonstration]) -> list[Reply]:
    """What PPO-ptx keeps the policy able to say: a text file of the operator's, else what `shown` says."""
    if config.ptx == 0:
        return []
    if config.ptx_data is None:
        examples = as_replies(shown, base)
        if not examples:
            raise Refused(
                f"Every demonstration for PPO-ptx is too long for {base.name!r} - add shorter ones, or give "
                "a text file with --ptx-data."
            )
        return examples
    ids = base.format.encode_text(_read(Path(config.ptx_data)))
    pieces = [ids[start : start + _PIECE] for start in range(0, len(ids) - 1, _PIECE)]
    if not pieces:
        raise Refused(f"The file {config.ptx_data!r} has no text for PPO-ptx - give a longer one.")
    return [Reply(piece[:1], piece[1:], False) for piece in pieces if len(piece) > 1]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(
            f"The file {str(path)!r} cannot be read ({error}) - give a text file in UTF-8."
        ) from error


def _ours(base: Base, config: RefreshConfig) -> list[Prompt]:
    return (
        read_prompts(Path(config.practice)) if config.practice else list(practice_prompts(language_of(base)))
    )


def _all_gate_prompts(base: Base, config: RefreshConfig) -> list[Prompt]:
    """All there are, of which a night takes some."""
    return read_prompts(Path(config.judging)) if config.judging else list(judging_prompts(language_of(base)))


def _unjudged(base: Base, config: RefreshConfig) -> list[Prompt]:
    """Those that no night is judged on, as an operator's two files may have it."""
    judged = {_words(prompt.messages) for prompt in _all_gate_prompts(base, config)}
    found = _unless(judged, _ours(base, config))
    if not found:
        raise Refused("Every prompt to practise on is also judged on - give others with --judging.")
    return found


def _words(messages: Sequence[dict[str, str]]) -> Words:
    """By these two prompts are the same."""
    return tuple((message["role"], message["content"]) for message in messages)


def _unless(elsewhere: set[Words], prompts: Sequence[Prompt]) -> list[Prompt]:
    return [prompt for prompt in prompts if _words(prompt.messages) not in elsewhere]


def _short(base: Base, prompts: Iterable[Prompt]) -> list[Prompt]:
    """Those that are short enough to practise on, none twice, in order."""
    once: dict[Words, Prompt] = {}
    for prompt in prompts:
        once.setdefault(_words(prompt.messages), prompt)
    longest = _room(base)
    found = _that_fit(base, once.values(), longest)
    if not found:
        raise Refused(f"No prompt to practise on has fewer than {longest} tokens - give shorter ones.")
    return found


def _room(base: Base) -> int:
    return min(_LONGEST, base.context // 2)


def _that_fit(base: Base, prompts: Iterable[Prompt], longest: int) -> list[Prompt]:
    return [prompt for prompt in prompts if base.format.fits(prompt.messages, longest)]


def _shuffled(items: Sequence[T], seed: int) -> list[T]:
    return random.Random(seed).sample(items, len(items))
