"""Replies read by the training copy: log-probabilities, values and scores.

Sequences are sorted by length into micro-batches; logits are computed only where a reply token is predicted.
Who wrote the replies is told in sampler.py, and what PPO makes of the numbers in rollout.py.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from chatbot.basemodel import Base
from chatbot.batch import TokenBatch
from chatbot.head import ScalarHead
from chatbot.logits import logits_of
from chatbot.memory import free_bytes
from chatbot.models import pick_device, pick_dtype
from chatbot.policy import Policy
from trainer.config import RefreshConfig

INVALID = 0.0
"""What stands at padded positions; every mean goes through a mask."""

PRIOR_TOKENS = 10
"""How many tokens of score 0 `reply_values` takes to stand before a reply: the weight of its prior."""

_LEAST, _MOST = 512, 4096
TOKENS_PER_PASS = {"cpu": 1024, "cuda": _MOST}
"""Tokens of one pass, padding included, by type of device; what is more is accumulated.

A CPU gains nothing from more (benchmarks/RESULTS.md). A GPU does, until they fill its memory:
`fit_tokens_per_pass` sets its number here, for the whole process.
"""
_KEPT_NUMBERS = 34
"""What a layer that learns keeps of a token until the backward pass, for each of the model's width: 20 in the
embedded model, 17 by arXiv 2205.05198, section 4.1; and as much again for what the backward pass computes."""
_KEPT_OF_LOGITS = 10
"""Bytes: each as the head gives it in 16 bits, in float32, and as a log-probability."""


@dataclass(frozen=True)
class Reply:
    """A prompt and a sampled reply to it, as token ids."""

    prompt: list[int]
    reply: list[int]
    finished: bool
    """It ends with the end-of-turn token."""
    logprobs: Sequence[float] = field(default=(), compare=False)
    """Of its tokens at temperature 1, as whoever sampled them computed it; empty where nobody did."""

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.reply


def hash_seed(seed: int, index: int) -> int:
    """A seed of its own for each reply of a run."""
    return (seed * 1_000_003 + index * 7_919 + 12_345) % (2**31)


def training_policy(base: Base, config: RefreshConfig) -> Policy:
    """The training copy of `base` as `config` wants it, on as many threads and with passes as large as fit.

    It wears nothing yet. Threads and passes are those of the whole process from then on.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = pick_device()
    dtype = pick_dtype(config.precision, device)
    policy = Policy(base, device=device, dtype=dtype, four_bit=config.four_bit)
    fit_tokens_per_pass(policy, config.depth)
    return policy


def fit_tokens_per_pass(policy: Policy, depth: float) -> None:
    """Make a pass on a GPU as large as its memory bears beside `policy`, once that is loaded.

    Half of what is free is left to the model that samples. depth: the share of the layers that learn.
    """
    if policy.device.type != "cuda":
        return
    text = policy.base.config.get_text_config()
    by_layers = _KEPT_NUMBERS * policy.dtype.itemsize * text.hidden_size * depth * text.num_hidden_layers
    fits = int(free_bytes(policy.device) / 2 / (by_layers + _KEPT_OF_LOGITS * text.vocab_size))
    TOKENS_PER_PASS["cuda"] = max(_LEAST, min(fits, _MOST))


def micro_batches(
    lengths: Sequence[int], device: torch.device, rows: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Indices in order of length, cut so that `device` has room for each micro-batch with its padding.

    An index is one sequence, or `rows` of them that stay together. What is too long by itself comes alone.
    """
    batch: list[int] = []
    height = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        added = rows[i] if rows else 1
        if batch and lengths[i] * (height + added) > TOKENS_PER_PASS[device.type]:
            yield batch
            batch, height = [], 0
        batch.append(i)
        height += added
    if batch:
        yield batch


@dataclass(frozen=True)
class ReplyForward:
    """The hidden states of a pass, and where in them the replies stand."""

    states: Tensor  # (B, S, D) of prompts, replies and padding
    at: Tensor  # (B, T): where each reply token stands
    tokens: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool

    @cached_property
    def hidden(self) -> Tensor:
        """(B, T, D): position t predicts reply token t, and its value is V(s_t)."""
        return self.states[self._rows, self.at - 1]

    @cached_property
    def pooled(self) -> Tensor:
        """(B, D), float32: the mean over the reply's own tokens, from which it is scored."""
        said = self.states[self._rows, self.at].float() * self.mask[:, :, None]
        return said.sum(1) / self.lengths[:, None]

    @property
    def lengths(self) -> Tensor:
        """(B,): the number of reply tokens, 1 where there is none."""
        return self.mask.sum(1).clamp(min=1)

    @property
    def _rows(self) -> Tensor:
        return torch.arange(len(self.at), device=self.at.device)[:, None]


def forward_replies(policy: Policy, replies: Sequence[Reply]) -> ReplyForward:
    """One forward pass through what `policy` wears, cut to the replies."""
    batch = TokenBatch.of([r.ids for r in replies], policy.device)
    states = policy.hidden(batch)
    device = policy.device
    lengths = torch.tensor([len(r.reply) for r in replies], device=device)
    starts = torch.tensor([len(r.prompt) for r in replies], device=device)
    steps = torch.arange(int(lengths.max()), device=device)
    mask = steps < lengths[:, None]
    at = (starts[:, None] + steps).clamp(max=batch.ids.shape[1] - 1)
    return ReplyForward(states, at, tokens=batch.ids.gather(1, at), mask=mask)


def reply_scores(policy: Policy, name: str, replies: Sequence[Reply]) -> Tensor:
    """The normalised score of each reply, (B,): what the head of reward model `name` says of its tokens, on
    average, and of their number.

    InstructGPT reads the last token alone. The adapter must then learn to gather the whole reply in it, for
    which a hundred rankings are too few (benchmarks/RESULTS.md).
    """
    head = policy.heads[name]
    with policy.wear(name):
        forward = forward_replies(policy, replies)
        return cast(Tensor, head(forward.pooled)) + head.of_length(forward.lengths)


def reply_values(head: ScalarHead, forward: ReplyForward) -> Tensor:
    """V(s_t), the score that is foreseen before each reply token: (B, T), float32.

    A reply's score is the mean over its tokens, and 0 is the mean score of the reference. So V is the mean so
    far, as if PRIOR_TOKENS of score 0 stood before it: V(s_t) = sum_(i <= t) head(h_i) / (t + PRIOR_TOKENS).
    Before anything is learned this explains three quarters of the scores' variance; what the head says of a
    single token is further from them than 0 is (benchmarks/RESULTS.md). What the reply's length is worth is
    added; until the reply is longer than usual, the usual length is foreseen.
    """
    tokens = torch.arange(1, forward.at.shape[1] + 1, device=forward.at.device)
    said: Tensor = head(forward.hidden)
    return said.cumsum(1) / (tokens + PRIOR_TOKENS) + head.of_length(tokens.maximum(head.usual_length.exp()))


def reply_logprobs(policy: Policy, forward: ReplyForward, temperature: float) -> Tensor:
    """Log-probability of each reply token at `temperature`: (B, T), float32."""

    def read(logits: Tensor, tokens: Tensor) -> Tensor:
        return -F.cross_entropy(logits / temperature, tokens, reduction="none")

    return _spread(_read_logits(policy, forward, read), forward.mask)


def reply_draws(policy: Policy, forward: ReplyForward, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """How each reply token was drawn, (B, T) float32 each: its log-probability at `temperature`, that at 1,
    and the entropy in nats of the distribution at `temperature`."""

    def read(logits: Tensor, tokens: Tensor) -> Tensor:
        logprobs = torch.log_softmax(logits / temperature, dim=-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        untempered = -F.cross_entropy(logits, tokens, reduction="none")
        return torch.stack([logprobs.gather(1, tokens[:, None])[:, 0], untempered, entropy], dim=1)

    logprob, untempered, entropy = _read_logits(policy, forward, read).unbind(1)
    mask = forward.mask
    return _spread(logprob, mask), _spread(untempered, mask), _spread(entropy, mask)


def _read_logits(policy: Policy, forward: ReplyForward, read: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What `read` makes of some logits, (n, V), and of the tokens, (n,), at their places: of all, (N,)."""
    tokens = forward.tokens[forward.mask]
    found: list[Tensor] = []
    for logits in policy.logits_in_parts(forward.hidden[forward.mask]):
        found.append(read(logits, tokens[: len(logits)]))
        tokens = tokens[len(logits) :]
    return torch.cat(found)


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """Put one value a real token, (N,), where the tokens stand, (B, T)."""
    return torch.full(mask.shape, INVALID, device=values.device).masked_scatter(mask, values)


@torch.no_grad()
def logprobs_of(
    model: PreTrainedModel, prompts: Sequence[list[int]], replies: Sequence[list[int]], temperature: float
) -> list[Tensor]:
    """Log-probabilities of the tokens of `replies` under a merged model, (len(reply),) each."""
    out: dict[int, Tensor] = {}
    lengths = [len(prompt) + len(reply) for prompt, reply in zip(prompts, replies, strict=True)]
    for rows in micro_batches(lengths, model.device):
        batch = TokenBatch.of([prompts[i] + replies[i] for i in rows], model.device)
        hidden = model.get_decoder()(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        for i, ids, states in zip(rows, batch.ids, hidden, strict=True):
            first, end = len(prompts[i]), lengths[i]
            logprobs = torch.log_softmax(logits_of(model, states[first - 1 : end - 1]) / temperature, dim=-1)
            out[i] = logprobs.gather(1, ids[first:end, None])[:, 0].cpu()
    return [out[i] for i in range(len(lengths))]
