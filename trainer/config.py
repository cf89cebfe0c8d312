"""What an operator may set for a night: general settings first, then those of each stage."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Annotated, Literal

from chatbot.config import MOST_THREADS, server_urls
from data.errors import Refused
from data.records import FEWEST_RANKINGS
from trainer.intervals import wilson_interval

_RULES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "rank min_rankings max_rankings members reward_epochs reward_batch reward_steps updates inner_epochs "
        "warmup_updates sft_epochs min_demonstrations",
        lambda x: x >= 1,
        "use 1 or more",
    ),
    ("max_new_tokens", lambda x: x >= 0, "use 0 or more"),
    ("threads", lambda x: 0 <= x <= MOST_THREADS, f"use 0 for the usual number, or up to {MOST_THREADS}"),
    ("seed", lambda x: -(2**63) <= x < 2**63, "use a number of up to 18 digits"),
    ("reward_lr ppo_lr sft_lr clip max_kl", lambda x: 0 < x < math.inf, "use a number above 0"),
    (
        "beta target_kl value_coefficient pessimism ptx replay",
        lambda x: 0 <= x < math.inf,
        "use a number from 0",
    ),
    ("gamma lam", lambda x: 0 <= x <= 1, "use a number from 0 to 1"),
    ("depth", lambda x: 0 < x <= 1, "use a number above 0, up to 1"),
    ("temperature", lambda x: 0.01 <= x <= 5, "rollouts need one from 0.01, below which all are alike, to 5"),
    ("ema", lambda x: 0 <= x < 1, "use 0 for none, or a number below 1 like 0.992"),
    ("best_of", lambda x: 2 <= x <= 64, "use 2 to 64"),
    ("margin", lambda x: 0 <= x <= 0.5, "use a number from 0 to 0.5"),
)
"""Fields, what is true of a sound value (a nan is none), and what to use instead."""
_LARGEST = 1e9
"""Of any number but the seed: larger ones do not fit the bits that some of them are computed in."""


@dataclass(frozen=True)
class RefreshConfig:
    """A whole night. The defaults fit a 135M model on two cores in about half an hour."""

    model: Annotated[
        str | None, "Base model: a directory or a hub id; the embedded default where left out."
    ] = None
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], "Number format of the frozen base; auto asks the hardware."
    ] = "auto"
    four_bit: Annotated[bool, "Load the base in 4 bits (NF4, bitsandbytes): a quarter of the memory."] = False
    threads: Annotated[int, "Cores to use; 0 means all, or half of them under the watcher."] = 0
    seed: Annotated[int, "Seed of everything random in the run."] = 0
    rank: Annotated[int, "Rank of each fresh LoRA adapter; one that goes on keeps its own."] = 16
    depth: Annotated[
        float,
        "Share of the layers, from the last one down, that a fresh adapter changes; old ones keep theirs.",
    ] = 0.5
    max_new_tokens: Annotated[
        int, "Longest reply in rollouts and replays; 0 means 128 on a CPU, 256 on a GPU."
    ] = 0
    temperature: Annotated[float, "Sampling temperature of rollouts and replays, as in the chat."] = 0.8

    min_rankings: Annotated[int, "Fewest rankings worth a night."] = FEWEST_RANKINGS
    max_rankings: Annotated[
        int, "Most rankings a night learns from: people's before imported ones, everybody's newest first."
    ] = 1000
    members: Annotated[int, "Reward models in the ensemble, each from its own seed and sample."] = 3
    pessimism: Annotated[
        float, "Weight of the ensemble's disagreement: the reward is mean - pessimism * std."
    ] = 0.5
    warm_start: Annotated[bool, "Go on from last night's reward models; --no-warm-start trains anew."] = True
    replay: Annotated[float, "Old rankings repeated for each new one when a reward model goes on."] = 1.0
    reward_epochs: Annotated[int, "Passes over the rankings when a reward model is trained."] = 2
    reward_lr: Annotated[float, "Peak learning rate of a reward model."] = 5e-4
    reward_batch: Annotated[int, "Rankings in one step of reward training."] = 2
    reward_steps: Annotated[
        int, "Fewest steps of a reward model: with few rankings, up to twice --reward-epochs passes are made."
    ] = 64

    sft_epochs: Annotated[
        int, "Most passes over the demonstrations; it stops early where they help no more."
    ] = 3
    sft_lr: Annotated[float, "Peak learning rate of supervised fine-tuning."] = 2e-4
    min_demonstrations: Annotated[int, "Fewest demonstrations worth a fine-tuning."] = 16

    algorithm: Annotated[
        Literal["ppo", "bestofk"], "How the policy learns from the reward; bestofk is the simple control."
    ] = "ppo"
    best_of: Annotated[
        int, "With bestofk: replies sampled for each prompt, of which the favourite is imitated."
    ] = 8
    engine: Annotated[
        str, "vLLM servers that write the replies to learn from, e.g. http://gpu1:8000,http://gpu2:8000."
    ] = ""
    updates: Annotated[int, "PPO updates, each on a fresh batch of rollouts."] = 12
    prompts_per_update: Annotated[int, "Prompts, one reply each, in a batch of rollouts."] = 16
    inner_epochs: Annotated[int, "Passes over each batch of rollouts."] = 2
    minibatch: Annotated[int, "Replies in one optimiser step."] = 8
    ppo_lr: Annotated[float, "Peak learning rate of policy and value."] = 4e-4
    warmup_updates: Annotated[int, "Updates over which the learning rate rises."] = 4
    beta: Annotated[float, "Weight of the KL penalty against the reference, in score per nat."] = 0.05
    target_kl: Annotated[float, "Steer beta to this KL, in nats a reply; 0 leaves beta alone."] = 0.0
    gamma: Annotated[float, "Discount of later rewards."] = 1.0
    lam: Annotated[float, "GAE's lambda."] = 0.95
    clip: Annotated[float, "Clip range of ratio and of value."] = 0.2
    value_coefficient: Annotated[
        float, "Weight of the value loss. The value has an adapter of its own, so it matters little."
    ] = 0.1
    ptx: Annotated[
        float, "Weight of the language-model loss on demonstrations (PPO-ptx); 0 leaves it out."
    ] = 0.0
    ptx_data: Annotated[str | None, "PPO-ptx learns from this text file instead of demonstrations."] = None
    ema: Annotated[
        float,
        "Publish a moving average of the policy with this decay, like 0.992; 0 publishes the policy itself.",
    ] = 0.0
    max_kl: Annotated[float, "Stop where replies are more nats than this from the night's start."] = 8.0

    practice: Annotated[str | None, "Prompts to practise on: a JSONL file instead of ours."] = None
    judging: Annotated[str | None, "Prompts to judge on: a JSONL file instead of ours and people's."] = None
    gate_prompts: Annotated[int, "Judging prompts of the gate's replay."] = 300
    margin: Annotated[float, "How far below one half the lower bound of the win rate may lie."] = 0.03

    def __post_init__(self) -> None:
        server_urls(self.engine)
        for names, is_right, remedy in _RULES:
            for name in names.split():
                if not is_right(getattr(self, name)):
                    raise Refused(f"{name} is {getattr(self, name)!r} - {remedy}.")
        for name, value in asdict(self).items():
            if name != "seed" and isinstance(value, int | float) and value > _LARGEST:
                raise Refused(f"{name} is {value!r} - no setting but the seed may be above a billion.")
        self._check_together()

    def _check_together(self) -> None:
        """Each is sound by itself, but not all go with each other."""
        if self.algorithm == "ppo" and self.prompts_per_update < 2:
            raise Refused(
                f"prompts_per_update is {self.prompts_per_update!r}, and PPO learns from how the replies of "
                "one update differ - use 2 or more."
            )
        if self.minibatch < 1 or self.prompts_per_update < self.minibatch:
            raise Refused(
                f"minibatch is {self.minibatch!r} with {self.prompts_per_update!r} prompts an update - "
                "use 1 up to the number of prompts."
            )
        if self.target_kl and not self.beta:
            raise Refused(
                f"beta is 0 with a target_kl of {self.target_kl:g}, and what is steered by factors stays 0 - "
                "use a beta above 0."
            )
        if self.max_rankings < self.min_rankings:
            raise Refused(
                f"max_rankings is {self.max_rankings!r}, fewer than min_rankings, {self.min_rankings!r} - "
                "raise one or lower the other."
            )
        if self.gate_prompts < (fewest := fewest_to_pass(self.margin)):
            raise Refused(
                f"gate_prompts is {self.gate_prompts!r}, too few to tell better from chance with a margin of "
                f"{self.margin:g}, even if all are won - use at least {fewest}; 300 is a fair gate."
            )


def fewest_to_pass(margin: float) -> int:
    """The fewest prompts, two at least, on which a candidate that wins all of them can pass the gate."""
    return next(n for n in count(2) if wilson_interval(1.0, n)[0] > 0.5 - margin)


def quick(config: RefreshConfig) -> RefreshConfig:
    """The night of `--quick`: one reward model, at most 8 updates, half a gate; for trying things out."""
    return replace(
        config,
        members=1,
        updates=min(config.updates, 8),
        gate_prompts=min(config.gate_prompts, 150),
    )
