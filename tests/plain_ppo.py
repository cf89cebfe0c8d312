"""PPO once more, written from the papers without a look at trainer/ppo.py: float64, one token at a time.

Slow on purpose. Lists of numbers where the equations need no gradient; the update builds its own model from
the base's weights and the adapters' tensors, and steps with Adam by hand.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, pstdev
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from chatbot.basemodel import Base
from trainer.forward import Reply


def plain_gae(
    rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """Advantages by their definition, a sum over the future, and returns, of one reply."""
    n = len(rewards)
    after = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(n)]
    advantages = [sum((gamma * lam) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def plain_whiten(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Zero mean, unit variance over all numbers of all rows."""
    flat = [x for row in rows for x in row]
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in flat) / len(flat) + 1e-8)
    return [[(x - mean) / deviation for x in row] for row in rows]


def plain_policy_term(new: Any, old: float, advantage: float, clip: float) -> Any:
    """-min(rho A, clip(rho) A) of one token; a tensor where `new` is one."""
    rho = torch.exp(torch.as_tensor(new) - old)
    low, high = 1 - clip, 1 + clip
    kept = low if rho < low else high if rho > high else rho
    gains = [torch.as_tensor(x, dtype=torch.float64) * advantage for x in (rho, kept)]
    return -min(gains, key=_number)


def plain_value_term(new: Any, old: float, target: float, clip: float) -> Any:
    """Half the larger squared error of one token, of the value and of the value kept near the old one."""
    kept = old - clip if new < old - clip else old + clip if new > old + clip else new
    errors = [(torch.as_tensor(x, dtype=torch.float64) - target) ** 2 for x in (new, kept)]
    return 0.5 * max(errors, key=_number)


def _number(x: Any) -> float:
    return float(torch.as_tensor(x).detach())


class PlainModel:
    """The base with one adapter multiplied out, in float64; `tensors` are leaves that take gradients."""

    def __init__(self, base: Base, state: Mapping[str, Tensor], head: Mapping[str, Tensor] | None) -> None:
        model = AutoModelForCausalLM.from_pretrained(base.directory, dtype=torch.float64).eval()
        self._trunk: Any = model.get_decoder()
        self._out: Tensor = model.get_output_embeddings().weight.detach()
        self.tensors = {name: tensor.detach().double().requires_grad_() for name, tensor in state.items()}
        self.head = {name: tensor.detach().double().requires_grad_() for name, tensor in (head or {}).items()}

    def hidden(self, ids: Sequence[int]) -> Tensor:
        """(T, D), of one sequence without any padding."""
        weights = dict(self._trunk.named_parameters())
        for name in [n for n in self.tensors if "lora_A" in n]:
            path = name.removeprefix("base_model.model.model.").replace("lora_A.", "")
            b, a = self.tensors[name.replace("lora_A", "lora_B")], self.tensors[name]
            weights[path] = weights[path].detach() + 2.0 * b @ a  # alpha is twice the rank
        out = functional_call(self._trunk, weights, kwargs={"input_ids": torch.tensor([list(ids)])})
        found: Tensor = out.last_hidden_state[0]
        return found

    def logprobs(self, prompt: list[int], reply: list[int], temperature: float) -> list[Tensor]:
        """Of each token of the reply, given all before it."""
        hidden = self.hidden(prompt + reply)
        found = []
        for t, token in enumerate(reply):
            logits = self._out @ hidden[len(prompt) + t - 1] / temperature
            found.append(logits[token] - torch.logsumexp(logits, 0))
        return found

    def read(self, hidden: Tensor) -> Tensor:
        """The head's normalised number at one hidden state."""
        head = self.head
        number: Tensor = ((hidden * head["weight"]).sum() + head["bias"] - head["mean"]) / head["std"]
        return number

    def of_length(self, log_length: Tensor) -> Tensor:
        """What a length is worth beside the usual one."""
        head = self.head
        number: Tensor = head["length"] * (log_length - head["usual_length"]) / head["std"]
        return number

    def score(self, prompt: list[int], reply: list[int]) -> Tensor:
        """What the head says of the tokens of the reply, on average, and of their number."""
        numbers = [self.read(state) for state in self.hidden(prompt + reply)[len(prompt) :]]
        return torch.stack(numbers).mean() + self.of_length(torch.tensor(len(reply)).double().log())

    def values(self, prompt: list[int], reply: list[int]) -> list[Tensor]:
        """V before each token of the reply: the mean so far, with ten tokens of score 0 before it, and what
        the length is worth, which is the usual one or already more."""
        hidden, found = self.hidden(prompt + reply), []
        numbers = [self.read(hidden[len(prompt) + t - 1]) for t in range(len(reply))]
        for t in range(1, len(reply) + 1):
            said = torch.stack(numbers[:t]).sum() / (t + 10)
            length = max(torch.tensor(t).double().log(), self.head["usual_length"].detach())
            found.append(said + self.of_length(length))
        return found


@dataclass
class Episode:
    """What PPO remembers of one reply, as lists over its tokens."""

    prompt: list[int]
    reply: list[int]
    old: list[float]
    value: list[float]
    advantage: list[float]
    returns: list[float]


@torch.no_grad()
def plain_episodes(
    replies: Sequence[Reply],
    policy: PlainModel,
    reference: PlainModel,
    rewards: Sequence[PlainModel],
    *,
    pessimism: float,
    punish_cut: bool,
    beta: float,
    lam: float,
    temperature: float,
) -> list[Episode]:
    """Rewards, advantages (whitened over the batch) and returns; the value is the first reward model."""
    episodes = []
    for r in replies:
        old = [float(x) for x in policy.logprobs(r.prompt, r.reply, temperature)]
        ref = [float(x) for x in reference.logprobs(r.prompt, r.reply, temperature)]
        value = [float(x) for x in rewards[0].values(r.prompt, r.reply)]
        opinions = [float(model.score(r.prompt, r.reply)) for model in rewards]
        score = mean(opinions) - pessimism * pstdev(opinions)
        if punish_cut and not r.finished:
            score = min(score, 0.0) - 1.0
        steps = [-beta * (p - q) for p, q in zip(old, ref, strict=True)]
        steps[-1] += score
        advantage, returns = plain_gae(steps, value, 1.0, lam)
        episodes.append(Episode(r.prompt, r.reply, old, value, advantage, returns))
    for episode, whitened in zip(episodes, plain_whiten([e.advantage for e in episodes]), strict=True):
        episode.advantage = whitened
    return episodes


def plain_losses(
    episodes: Sequence[Episode], policy: PlainModel, value: PlainModel, *, clip: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """The two losses, means over all tokens of all replies."""
    policy_terms, value_terms = [], []
    for e in episodes:
        new = policy.logprobs(e.prompt, e.reply, temperature)
        now = value.values(e.prompt, e.reply)
        for t in range(len(e.reply)):
            policy_terms.append(plain_policy_term(new[t], e.old[t], e.advantage[t], clip))
            value_terms.append(plain_value_term(now[t], e.value[t], e.returns[t], clip))
    return torch.stack(policy_terms).mean(), torch.stack(value_terms).mean()


def plain_ptx(examples: Sequence[tuple[list[int], list[int]]], policy: PlainModel) -> Tensor:
    """Minus the mean log-probability of the examples' reply tokens, at temperature 1."""
    terms = [-x for prompt, reply in examples for x in policy.logprobs(prompt, reply, 1.0)]
    return torch.stack(terms).mean()


def plain_first_adam_step(tensors: Sequence[Tensor], lr: float, eps: float = 1e-5) -> float:
    """Clips the gradients to norm 1 together and moves `tensors` by Adam's first step; returns the norm."""
    gradients = [t.grad for t in tensors if t.grad is not None]
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    with torch.no_grad():
        for tensor in tensors:
            if tensor.grad is not None:
                g = tensor.grad * min(1.0, 1.0 / norm)
                tensor -= lr * g / (g.abs() + eps)
    return norm
