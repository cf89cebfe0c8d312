"""Simulated raters: several people with one known taste, who chat and rank through the code of a click.

They send practice prompts to the version that serves, wait for the replies, score them by the taste plus
some noise, and store the order with `data.rankings.save`, marked as simulated for ever. What a version has
learned of the taste is measured by measure.py.

    trainer simulate --taste concise --turns 100 --replies 4
"""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from chatbot.turns import LiveTurn, Turns
from data import conversations, people, rankings
from data.database import Database
from data.errors import Refused
from data.prompts import practice_prompts
from data.records import Person, Placement, Prompt
from trainer.tastes import Taste
from trainer.telling import Counted, nobody

ROWS_IN_FLIGHT = 64
"""Replies asked for at a time: the engine decodes together what waits together."""
TIE_MARGIN = 0.3
"""Scores closer than this, in units of the spread, are a tie: three times the noise of a rater. With less
margin equal replies would be ranked by noise: for a taste that counts lists, four of five preferences."""


@dataclass
class Simulation:
    """What the raters did, in figures."""

    turns: int = 0
    ties: int = 0
    """Pairs of replies that were placed equal."""
    pairs: int = 0
    versions: set[str] = field(default_factory=set)
    scores: list[float] = field(default_factory=list)

    @property
    def spread(self) -> float:
        """How much the taste differs between replies; quartiles, so that a rare extreme does not drown it."""
        if len(self.scores) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.scores, n=4)
        return (high - low) / 1.349 or statistics.pstdev(self.scores)  # 1.349: quartiles of a normal

    def report(self) -> dict[str, Any]:
        """The figures as JSON."""
        return {
            "turns": self.turns,
            "versions": sorted(self.versions),
            "taste_mean": statistics.fmean(self.scores) if self.scores else None,
            "taste_spread": self.spread,
            "ties": self.ties / self.pairs if self.pairs else None,
        }


def simulate(
    db: Database,
    turns: Turns,
    *,
    taste: Taste,
    turns_count: int,
    replies: int = 4,
    noise: float = 0.1,
    people: int = 5,
    flipped: float = 0.0,
    seed: int = 0,
    prompts: Sequence[Prompt] | None = None,
    progress: Counted = nobody,
) -> Simulation:
    """Sends `turns_count` turns by `people` raters in turn, and ranks the `replies` replies to each.

    `noise` is the standard deviation of what is added to the taste, in units of its spread over the replies
    so far; `flipped` is the share of rankings that are turned upside down. `prompts` are what they say, the
    practice prompts where None. `seed` chooses among them, and the noise; the replies themselves are drawn
    by the engine.
    """
    if not 2 <= replies <= 9:
        raise Refused(f"{replies!r} replies cannot be ranked - use 2 to 9.")
    if turns_count < 1 or people < 1 or noise < 0 or not 0 <= flipped <= 1:
        raise Refused("Turns and people count from 1, noise from 0, flips from 0 to 1 - use such numbers.")
    draw = random.Random(seed)
    raters = [_rater(db, number) for number in range(1, people + 1)]
    chosen = _choose(_that_fit(prompts or practice_prompts(), turns), turns_count, draw)
    done = Simulation()
    wave = max(1, ROWS_IN_FLIGHT // replies)
    for start in range(0, turns_count, wave):
        sent = [
            (rater, prompt, _send(db, turns, rater, prompt, replies))
            for rater, prompt in _assign(raters, chosen[start : start + wave], start)
        ]
        judged = []
        for rater, prompt, live in sent:
            judged.append((rater, live, _judge(taste, prompt, live, done)))
            progress(start + len(judged), turns_count)
        for rater, live, scores in judged:
            if scores:
                sign = -1 if draw.random() < flipped else 1
                noisy = [sign * score + draw.gauss(0, noise * done.spread) for score in scores]
                _rank(db, rater, live, places(noisy, TIE_MARGIN * done.spread), done)
    return done


def places(scores: Sequence[float], margin: float) -> list[int]:
    """Place 1 for the best; whoever is within `margin` of the best of a place shares it."""
    result = [0] * len(scores)
    place, leader = 0, float("inf")
    for index in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if place == 0 or leader - scores[index] > margin:
            place, leader = place + 1, scores[index]
        result[index] = place
    return result


def _rater(db: Database, number: int) -> Person:
    """The same simulated people every time."""
    name = f"Simulated rater {number}"
    person = people.by_name(db, name) or people.add(db, name, kind="simulated")
    if person.kind != "simulated":
        raise Refused(f"A person is called {name!r} - give them another name first.")
    return person


def _that_fit(prompts: Sequence[Prompt], turns: Turns) -> list[Prompt]:
    """Those that leave room for a reply in the model's context, with all that came before."""
    base = turns.engine.base
    room = base.context - turns.sampling.max_new_tokens
    fitting = [prompt for prompt in prompts if base.format.fits(prompt.messages, room)]
    if not fitting:
        raise Refused(f"No practice prompt fits in {room} tokens - use a model with a longer context.")
    return fitting


def _choose(prompts: Sequence[Prompt], count: int, draw: random.Random) -> list[Prompt]:
    """`count` prompts, none twice before each came once."""
    chosen: list[Prompt] = []
    while len(chosen) < count:
        chosen += draw.sample(prompts, min(len(prompts), count - len(chosen)))
    return chosen


def _assign(raters: Sequence[Person], prompts: Sequence[Prompt], start: int) -> list[tuple[Person, Prompt]]:
    return [(raters[(start + i) % len(raters)], prompt) for i, prompt in enumerate(prompts)]


def _send(db: Database, turns: Turns, person: Person, prompt: Prompt, replies: int) -> LiveTurn:
    """Plays what came before into a conversation, then asks the last question as anybody would."""
    conversation = conversations.create(db, person.id)
    parent = conversations.add_history(db, conversation, prompt.messages[:-1])
    return turns.send(
        person,
        prompt.messages[-1]["content"],
        conversation_id=conversation.id,
        parent_id=parent,
        replies=replies,
    )


def _judge(taste: Taste, prompt: Prompt, live: LiveTurn, done: Simulation) -> list[float]:
    """The taste of each reply in shown order; empty where a reply was not written to its end."""
    live.wait()
    if not all(reply.finish_reason in ("stop", "length") for reply in live.replies):
        return []
    scores = [taste(prompt.messages, reply.text) for reply in live.replies]
    done.scores += scores
    done.versions.add(live.version)
    return scores


def _rank(db: Database, person: Person, live: LiveTurn, order: Sequence[int], done: Simulation) -> None:
    placements = [
        Placement(reply.message_id, place, shown)
        for shown, (reply, place) in enumerate(zip(live.replies, order, strict=True))
    ]
    rankings.save(
        db,
        turn_id=live.turn_id,
        person_id=person.id,
        kind="full",
        placements=placements,
        source="simulated",
    )
    done.turns += 1
    done.pairs += len(order) * (len(order) - 1) // 2
    done.ties += sum(order[i] == order[j] for i in range(len(order)) for j in range(i))
