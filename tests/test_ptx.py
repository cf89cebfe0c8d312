"""trainer/ptx.py: the loss on demonstrations, and what it adds to a step of PPO."""

import pytest
import torch

from chatbot.basemodel import Base
from chatbot.models import load_model
from chatbot.policy import Policy
from tests.learners import a_config, a_learner, a_run, some_replies
from tests.plain_ppo import PlainModel, plain_ptx
from trainer.forward import logprobs_of
from trainer.ptx import add_ptx, pick_examples, ptx_loss
from trainer.team import SOLO

EXAMPLES = some_replies()


def test_the_loss_is_the_mean_over_real_tokens_whatever_stands_at_padding() -> None:
    logprob = torch.tensor([[-1.0, -2.0], [-3.0, 99.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert float(ptx_loss(logprob, mask, 3)) == 2.0


def test_the_gradient_is_that_of_a_slow_model_and_is_added_to_what_is_there(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    parameters = policy.parameters("policy")
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    found = add_ptx(policy, EXAMPLES, 0.5, SOLO)
    slow = PlainModel(tiny_base, policy.state("policy"), None)
    loss = plain_ptx([(r.prompt, r.reply) for r in EXAMPLES], slow)
    (0.5 * loss).backward()
    assert found["ptx_loss"] == pytest.approx(loss.item(), rel=1e-4)
    expected = torch.cat([t.grad.flatten() for t in slow.tensors.values() if t.grad is not None])
    assert found["grad_norm_ptx"] == pytest.approx(float(expected.norm()), rel=1e-3)
    ours = torch.cat([p.grad.flatten() - 1 for p in parameters if p.grad is not None])
    assert float(ours.norm()) == pytest.approx(float(expected.norm()), rel=1e-3)


def test_every_demonstration_is_picked_once_a_step_and_none_without_a_coefficient() -> None:
    shuffle = torch.Generator().manual_seed(0)
    picked = pick_examples(EXAMPLES, a_config(ptx=1.0, prompts_per_update=9, minibatch=9), shuffle)
    assert sorted(r.ids for r in picked) == sorted(r.ids for r in EXAMPLES)
    assert len(pick_examples(EXAMPLES, a_config(ptx=1.0, minibatch=2), shuffle)) == 2
    assert pick_examples(EXAMPLES, a_config(ptx=0.0), shuffle) == []


def likelihood(policy: Policy) -> float:
    merged = load_model(policy.base, device=policy.device, dtype=torch.float32)
    policy.write_merged("policy", merged)
    found = logprobs_of(merged, [r.prompt for r in EXAMPLES], [r.reply for r in EXAMPLES], 1.0)
    return float(sum(x.sum() for x in found))


def test_a_run_with_ptx_makes_demonstrations_likelier(tiny_base: Base) -> None:
    policy = a_learner(tiny_base, size=0.0)
    before, after = likelihood(policy), []
    config = a_config(updates=4, ppo_lr=1e-3, inner_epochs=4, ptx=5.0)
    result = a_run(policy, config, ptx=EXAMPLES, tell=lambda *_: after.append(likelihood(policy)))
    assert after[-1] > before + 1
    assert result.history[0]["ptx_loss"] > result.history[3]["ptx_loss"] > 0
    assert result.history[0]["grad_norm_ptx"] > 0 and result.history[0]["grad_norm_policy"] > 0
