"""Candidates for the gate whose worth is known, and the court that judges them.

They are pushed towards a reward of ours, taught a text, or shaken at random. The push is plain REINFORCE with
the batch's mean as baseline: not PPO, so that a mistake there cannot make the gate's tests pass. Their true
win rate is measured by the taste itself, on other draws than the gate's.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from chatbot.models import load_model
from chatbot.policy import Policy
from data.records import Prompt, Sampling
from trainer.config import RefreshConfig
from trainer.forward import Reply, forward_replies, reply_logprobs
from trainer.gate import Verdict, judge_candidate, replay
from trainer.probes import probe
from trainer.sampler import sample_replies
from trainer.tastes import Taste

Worth = Callable[[Sequence[Reply]], list[float]]
"""What a candidate is pushed towards: a number a reply."""
Maker = Callable[[Policy, PreTrainedModel, int], None]
"""Turns `policy` into a candidate by its seed, and leaves it merged in the model."""


@dataclass
class Court:
    """A policy with a trained judge, the base that serves, the true taste and the prompts of both."""

    policy: Policy
    dtype: torch.dtype
    judge: dict[str, Any]
    """The judge's own examination."""
    config: RefreshConfig
    taste: Taste
    sampling: Sampling
    judging: Sequence[Prompt]
    measuring: Sequence[Prompt]
    """The prompts of the true win rate."""
    draws: int
    """Replies of each side to each of them."""
    _made: int = 0
    _tastes: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.current = self._plain()
        self._probes = probe(self.current, self.policy.base, sampling=self.sampling, seed=0)
        self._tastes = self._true_tastes(self.current, 9_500)

    def made(
        self, makers: Sequence[Maker], wanted: int, is_right: Callable[[float], bool]
    ) -> Iterator[PreTrainedModel]:
        """`wanted` candidates, from `makers` in turn, whose true win rate `is_right`."""
        found = 0
        for attempt in range(3 * wanted):
            model = self.candidate(makers[attempt % len(makers)])
            if is_right(self.true_win_rate(model)):
                found += 1
                yield model
            if found == wanted:
                return
        raise AssertionError(f"only {found} of {wanted} candidates came out as they should")

    def candidate(self, make: Maker) -> PreTrainedModel:
        """A new candidate by `make`, from the base."""
        self._made += 1
        if "policy" in self.policy.adapters:
            self.policy.drop("policy")
        self.policy.add("policy", seed=self._made, rank=self.config.rank)
        model = self._plain()
        make(self.policy, model, self._made)
        return model

    def true_win_rate(self, model: PreTrainedModel) -> float:
        """How often the taste itself prefers the model's replies to those of what serves; ties count half."""
        return statistics.fmean(
            (new > old) + 0.5 * (new == old)
            for ours, theirs in zip(self._true_tastes(model, 9_000), self._tastes, strict=True)
            for new, old in zip(ours, theirs, strict=True)
        )

    def verdict(self, model: PreTrainedModel) -> Verdict:
        """What the gate says, as at the end of a night."""
        return judge_candidate(
            self.policy,
            (self._replies(model), self._replies(self.current)),
            self.judging,
            self.judge,
            self.config,
            sampling=self.sampling,
            length_preference=0.0,
            probes=(probe(model, self.policy.base, sampling=self.sampling, seed=0), self._probes),
            tell=lambda fraction, message: None,
        )

    def _replies(self, model: PreTrainedModel) -> list[Reply]:
        base, seed = self.policy.base, self.config.seed
        return replay(model, base, self.judging, sampling=self.sampling, seed=seed)

    def _true_tastes(self, model: PreTrainedModel, seed: int) -> list[list[float]]:
        chat = self.policy.base.format
        return [
            [
                self.taste(prompt.messages, chat.decode(said.reply))
                for prompt, said in zip(
                    self.measuring,
                    replies_of(model, self.policy, self.measuring, self.sampling, seed + draw),
                    strict=True,
                )
            ]
            for draw in range(self.draws)
        ]

    def _plain(self) -> PreTrainedModel:
        return load_model(self.policy.base, device=self.policy.device, dtype=self.dtype)


def replies_of(
    model: PreTrainedModel, policy: Policy, prompts: Sequence[Prompt], sampling: Sampling, seed: int
) -> list[Reply]:
    """One reply of `model` to each prompt."""
    chat = policy.base.format
    ids = [chat.encode(prompt.messages) for prompt in prompts]
    return sample_replies(model, ids, sampling=sampling, end_of_turn=chat.end_of_turn, seed=seed)


def push(
    policy: Policy,
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    worth: Worth,
    *,
    sampling: Sampling,
    steps: int,
    lr: float,
    seed: int,
) -> None:
    """Take `policy` that many steps towards replies that `worth` likes; `model` ends as the candidate."""
    optimiser = torch.optim.Adam(policy.parameters("policy"), lr=lr)
    for step in range(steps):
        policy.write_merged("policy", model)
        replies = replies_of(model, policy, prompts, sampling, seed * 1000 + step)
        values = torch.tensor(worth(replies))
        advantage = (values - values.mean()) / values.std().clamp(min=1e-6)
        _step(policy, optimiser, replies, advantage, sampling.temperature)
    policy.write_merged("policy", model)


def teach(
    policy: Policy, model: PreTrainedModel, lesson: Sequence[tuple[Reply, float]], *, lr: float
) -> None:
    """Make each reply of `lesson` likelier by its weight, four a step; `model` ends as the candidate."""
    optimiser = torch.optim.Adam(policy.parameters("policy"), lr=lr)
    for start in range(0, len(lesson), 4):
        replies, weights = zip(*lesson[start : start + 4], strict=True)
        _step(policy, optimiser, replies, torch.tensor(weights), 1.0)
    policy.write_merged("policy", model)


def _step(
    policy: Policy,
    optimiser: torch.optim.Optimizer,
    replies: Sequence[Reply],
    weight: torch.Tensor,
    temperature: float,
) -> None:
    """One step that makes each reply likelier by its weight, (B,)."""
    with policy.wear("policy"):
        forward = forward_replies(policy, replies)
        logprob = reply_logprobs(policy, forward, temperature)  # (B, T)
    loss = -(weight[:, None].to(logprob.device) * logprob).sum() / forward.mask.sum()
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    optimiser.step()
