"""trainer/config.py: the defaults are sound, and nonsense is refused before it costs a night."""

from dataclasses import fields, replace
from typing import Any, get_type_hints

import pytest
import torch

from data.errors import Refused
from trainer.config import RefreshConfig, fewest_to_pass, quick
from trainer.gate import check_wins
from trainer.intervals import bootstrap_by_group


def test_the_defaults_are_those_of_the_chat_where_both_sample() -> None:
    assert RefreshConfig().temperature == 0.8
    assert RefreshConfig().max_new_tokens == 0  # as the chat: by the hardware


ABOVE_NOTHING = (
    *("rank", "min_rankings", "max_rankings", "reward_epochs", "reward_batch", "reward_steps", "reward_lr"),
    *("updates", "inner_epochs", "minibatch", "prompts_per_update", "warmup_updates", "ppo_lr", "clip"),
    *("max_kl", "gate_prompts", "temperature", "members", "sft_epochs", "sft_lr", "min_demonstrations"),
    "best_of",
)
OR_NOTHING = (
    *("threads", "max_new_tokens", "beta", "target_kl", "value_coefficient", "gamma", "lam", "margin"),
    *("pessimism", "replay", "ptx", "ema"),
)


def a_config(**changes: Any) -> RefreshConfig:
    return replace(RefreshConfig(), **changes)


@pytest.mark.parametrize("name", ABOVE_NOTHING)
def test_what_must_be_above_nothing_is_refused_at_0(name: str) -> None:
    with pytest.raises(Refused, match=" - "):
        a_config(**{name: 0})


@pytest.mark.parametrize("name", OR_NOTHING)
def test_what_may_be_nothing_is_refused_below(name: str) -> None:
    a_config(**{name: 0})
    with pytest.raises(Refused, match=f"{name} is -1"):
        a_config(**{name: -1})


NUMBERS = [f.name for f in fields(RefreshConfig) if get_type_hints(RefreshConfig)[f.name] is float]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(Refused, match=f"{name} is {value!r}"):
        a_config(**{name: value})


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"minibatch": 9, "prompts_per_update": 8}, "minibatch is 9 with 8 prompts an update - use 1 up to"),
        ({"min_rankings": 20, "max_rankings": 10}, "max_rankings is 10, fewer than min_rankings, 20 - raise"),
        (
            {"gate_prompts": 3},
            "with a margin of 0.03, even if all are won - use at least 4; 300 is a fair gate",
        ),
        ({"temperature": 0.0}, "temperature is 0.0 - rollouts need one from 0.01"),
        ({"temperature": 1e-40}, "below which all are alike, to 5"),
        ({"seed": 10**20}, "seed is 100000000000000000000 - use a number of up to 18 digits"),
        ({"threads": 100_000}, "threads is 100000 - use 0 for the usual number, or up to 1024"),
        ({"rank": 10**20}, "rank is 100000000000000000000 - no setting but the seed may be above a billion"),
        ({"ppo_lr": 1e300}, "ppo_lr is 1e+300 - no setting but the seed may be above a billion"),
        ({"prompts_per_update": 1, "minibatch": 1}, "prompts_per_update is 1, and PPO learns from how"),
        ({"gamma": 1.1}, "gamma is 1.1 - use a number from 0 to 1"),
        ({"margin": 0.6}, "margin is 0.6 - use a number from 0 to 0.5"),
        ({"updates": 0}, "updates is 0 - use 1 or more"),
        ({"beta": 0.0, "target_kl": 5.0}, "beta is 0 with a target_kl of 5, and what is steered by factors"),
    ],
)
def test_a_refusal_names_the_value_and_the_remedy(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Refused) as refused:
        a_config(**changes)
    assert sentence in str(refused.value)


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 10**18 - 1, 2**63 - 1])
def test_every_seed_that_is_let_through_is_one_to_torch(seed: int) -> None:
    """Reward models use the next one too."""
    config = a_config(seed=seed)
    drawn = {
        float(torch.rand((), generator=torch.Generator().manual_seed(config.seed + more))) for more in (0, 1)
    }
    assert len(drawn) == 2


def test_best_of_k_may_measure_itself_on_one_prompt_at_a_time() -> None:
    assert a_config(algorithm="bestofk", prompts_per_update=1, minibatch=1).prompts_per_update == 1


@pytest.mark.parametrize("margin", [0.0, 0.03, 0.1, 0.5])
def test_a_gate_that_is_let_through_can_be_passed(margin: float) -> None:
    def reasons(prompts: int) -> list[str]:
        return check_wins(1.0, bootstrap_by_group([[1.0]] * prompts, seed=0), margin)

    fewest = fewest_to_pass(margin)
    assert a_config(margin=margin, gate_prompts=fewest) and reasons(fewest) == []
    with pytest.raises(Refused, match=f"gate_prompts is {fewest - 1}"):
        a_config(margin=margin, gate_prompts=fewest - 1)
    assert fewest == 2 or reasons(fewest - 1) != []


def test_every_dial_has_a_sentence() -> None:
    hints = get_type_hints(RefreshConfig, include_extras=True)
    for field in fields(RefreshConfig):
        (sentence,) = hints[field.name].__metadata__
        assert sentence.endswith("."), field.name


def test_a_quick_night_is_smaller_and_keeps_what_was_asked_for() -> None:
    config = quick(a_config(updates=4, gate_prompts=20, beta=0.1))
    assert (config.members, config.updates, config.gate_prompts, config.beta) == (1, 4, 20, 0.1)
    assert quick(RefreshConfig()).updates < RefreshConfig().updates
