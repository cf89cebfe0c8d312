"""Continuous batching on a Llama: jobs join and leave at any step, K replies cost one prefill.

A step is one pass through the weights. In it every row that is under way gets its next token, and prompts
that came meanwhile are read, a piece of them at a time, so that a long prompt never holds up those who are
reading along. The most urgent prompt is read first; one that it overtakes goes on later from where it was.
All replies to a prompt go on from the same keys and values (shelves.py).

What a finished reply leaves behind can be kept (prefixes.py): the next turn of a conversation begins with it.
"""

from bisect import insort
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel

from chatbot.attention import Piece
from chatbot.kernels import Format, bytes_a_weight
from chatbot.llama import Llama, can_run
from chatbot.padded import PaddedRunner, TransformersModel
from chatbot.prefixes import Prefixes
from chatbot.sampling import Job, Row, draw
from chatbot.shelves import Place
from data.errors import Refused

_SLACK = 1.25
"""Covers the layer that is being converted (CPU) or merged (GPU), and replies that grow meanwhile."""
_CONVERTING: dict[Format, int] = {"bfloat16": 2, "float32": 6, "int8": 6}
"""On a CPU so many float32 copies of the embedding besides, which is converted at once
(benchmarks/RESULTS.md). Models that transformers runs are not converted."""
PIECE = 64
"""Prompt tokens read in a step beside rows under way, which wait about twice as long for one token then."""
MOST_PIECES = 4
"""At most so many of them where more rows wait for a first token than are under way: a crowd has come."""
ALONE = 512
"""Prompt tokens read in a step where nobody waits for a token."""
ON_GPU = 4
"""Times as many on a GPU, which computes 150 to 400 products in the time it reads a byte: up to about so many
tokens, a pass takes no longer than reading the weights does."""


class Runner(Protocol):
    """Decodes the jobs of one version, all at the same time, a token a step. Used by one thread."""

    @property
    def width(self) -> int: ...
    @property
    def under_way(self) -> int: ...
    @property
    def is_idle(self) -> bool: ...
    def add(self, job: Job, priority: int = 0) -> None:
        """Take a job, the more urgent the lower `priority`; its prompt and longest reply fit the context."""

    def step(self, beside: int = 0) -> None:
        """A token to every row under way, and to some of those that have none yet. So many rows of other
        versions, `beside` them, wait until it is done."""


def prepare(model: PreTrainedModel, form: Format, *, takes: bool = False) -> Llama | TransformersModel:
    """The weights of a merged model in the fastest way there is to decode it; with `takes` the model is used
    up. Raises Refused where there is no such way in this format."""
    if can_run(model):
        return Llama(model, form, takes=takes)
    if form == "int8":
        raise Refused("This model is decoded by transformers, which has no int8 here - use bfloat16.")
    return TransformersModel(model)


def bytes_to_prepare(model: PreTrainedModel, form: Format) -> int:
    """Of memory that making such weights takes, at most: what stays, and what is there meanwhile."""
    sizes = [weight.numel() for weight in model.parameters()]
    if model.device.type == "cuda":  # where nothing is converted
        return int(_SLACK * sum(weight.nbytes for weight in model.parameters()))
    if not can_run(model):
        return int(_SLACK * model.dtype.itemsize * sum(sizes))
    return int(_SLACK * bytes_a_weight(form) * sum(sizes) + _CONVERTING[form] * 4 * max(sizes))


def runner_for(
    weights: Llama | TransformersModel, end_of_turn: int, *, prefixes: Prefixes | None = None
) -> Runner:
    """A runner without jobs. `prefixes` are those of these weights; models of any kind keep none."""
    if isinstance(weights, Llama):
        return LlamaRunner(weights, end_of_turn, prefixes=prefixes)
    return PaddedRunner(weights, end_of_turn)


@dataclass(eq=False)
class _Prefilling:
    """A job whose prompt is being read."""

    job: Job
    place: Place
    priority: int


@dataclass(eq=False)
class _Decoding:
    """A row under way; its place holds all its tokens but the last."""

    row: Row
    place: Place
    job: Job
    priority: int


class LlamaRunner:
    """Decodes the jobs of one version. Used by one thread."""

    def __init__(self, llama: Llama, end_of_turn: int, *, prefixes: Prefixes | None = None) -> None:
        self._llama = llama
        self._end_of_turn = end_of_turn
        self._shelves = llama.shelves()
        self._prefixes = prefixes
        self._times = 1 if llama.device.type == "cpu" else ON_GPU
        self._prefilling: list[_Prefilling] = []  # the most urgent first, of one priority as they came
        self._decoding: dict[Place, _Decoding] = {}

    @property
    def width(self) -> int:
        """Rows that this runner holds, those whose prompt is being read with them."""
        return len(self._decoding) + sum(len(p.job.rows) for p in self._prefilling)

    @property
    def under_way(self) -> int:
        """Rows that wait for their next token; those whose prompt is being read are not among them."""
        return len(self._decoding)

    @property
    def is_idle(self) -> bool:
        return not (self._prefilling or self._decoding)

    def add(self, job: Job, priority: int = 0) -> None:
        """Take a job, the more urgent the lower `priority`; its prompt and longest reply fit the context."""
        place = self._shelves.take(len(job.prompt), rows=len(job.rows))
        if self._prefixes:
            self._prefixes.recall(job.prompt, place)
        insort(self._prefilling, _Prefilling(job, place, priority), key=lambda p: p.priority)

    def step(self, beside: int = 0) -> None:
        """One pass: a token to every row under way, and to those whose prompt is read with it."""
        self._drop_ended()
        if self.is_idle:
            return
        self._shelves.make_room(self._decoding)
        pieces = self._next_pieces(self.under_way + beside)
        places = [place for shelf in self._shelves.occupied() for place in shelf.places]
        decoding = [self._decoding[place] for place in places if place in self._decoding]
        tokens = {d.place: d.row.token_ids[-1] for d in decoding}
        logits = self._llama.forward(self._shelves, tokens, pieces)
        # The logits of a prompt that is read to its end are drawn from once for each of its rows.
        at = list(range(len(decoding)))
        for number, prefilling in enumerate(self._prefilling[: len(pieces)]):
            if prefilling.place.length == len(prefilling.job.prompt):
                begun = self._begin(prefilling)
                decoding += begun
                at += [len(tokens) + number] * len(begun)
        if decoding:
            draw(logits[at], [d.row for d in decoding], [d.job.sampling for d in decoding], self._end_of_turn)
        self._drop_ended()

    def _next_pieces(self, under_way: int) -> list[Piece]:
        """As much of the first prompts as one step may read while so many rows wait for it."""
        left = ALONE * self._times
        if under_way:
            waiting = sum(len(p.job.rows) for p in self._prefilling)
            left = PIECE * self._times * min(MOST_PIECES, max(1, waiting // under_way))
        pieces = []
        for prefilling in self._prefilling:
            if left <= 0:
                break
            start = prefilling.place.length
            pieces.append(Piece(prefilling.place, prefilling.job.prompt[start : start + left]))
            left -= len(pieces[-1].token_ids)
        return pieces

    def _begin(self, prefilling: _Prefilling) -> list[_Decoding]:
        """The prompt is read: its rows get places of their own."""
        self._prefilling.remove(prefilling)
        rows = [row for row in prefilling.job.rows if row.finish_reason is None]
        if not rows:
            self._shelves.leave(prefilling.place)
            return []
        places = [prefilling.place, *self._shelves.fork(prefilling.place, len(rows) - 1)]
        begun = [
            _Decoding(row, place, prefilling.job, prefilling.priority)
            for row, place in zip(rows, places, strict=True)
        ]
        self._decoding |= {d.place: d for d in begun}
        return begun

    def _drop_ended(self) -> None:
        """Rows that ended, here or by a stop from outside, give their places back."""
        for prefilling in [p for p in self._prefilling if all(row.finish_reason for row in p.job.rows)]:
            self._prefilling.remove(prefilling)
            self._shelves.leave(prefilling.place)
        for d in [d for d in self._decoding.values() if d.row.finish_reason]:
            del self._decoding[d.place]
            if self._prefixes:
                self._prefixes.remember(d.job.prompt, d.row.token_ids, d.place, d.priority)
            self._shelves.leave(d.place)
