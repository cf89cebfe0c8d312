"""PPO-ptx: the language-model loss on demonstrations that keeps a policy from forgetting how to write.

    L = L_PPO + coefficient * -E log pi(x)        (InstructGPT, Ouyang et al. 2022, equation 2)

The expectation is over the reply tokens of demonstrations, at temperature 1. InstructGPT's coefficient of
27.8 belongs to its scale and is known to be unstable elsewhere (DeepSpeed-Chat's README), so both gradient
norms are logged: where that of ptx is the larger by far, the policy imitates more than it learns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from chatbot.policy import Policy
from trainer.config import RefreshConfig
from trainer.forward import Reply, forward_replies, micro_batches, reply_logprobs
from trainer.team import Team


def ptx_loss(logprob: Tensor, mask: Tensor, count: int) -> Tensor:
    """Minus the log-probability, (B, T), of these tokens' part of the mean over `count` tokens."""
    return -logprob[mask].sum() / count


def pick_examples(ptx: Sequence[Reply], config: RefreshConfig, shuffle: torch.Generator) -> list[Reply]:
    """As many different demonstrations for one step as it has replies; none where the coefficient is 0."""
    if not config.ptx:
        return []
    return [ptx[i] for i in torch.randperm(len(ptx), generator=shuffle)[: config.minibatch].tolist()]


def add_ptx(policy: Policy, examples: Sequence[Reply], coefficient: float, team: Team) -> dict[str, float]:
    """Add the gradient of the loss on `examples` to what PPO has left on the adapter `policy`."""
    parameters = policy.parameters("policy")
    count, loss = sum(len(r.reply) for r in examples), 0.0
    of_ppo = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    mine = team.share(examples)
    for part in micro_batches([len(r.ids) for r in mine], policy.device):
        with policy.wear("policy"):
            forward = forward_replies(policy, [mine[i] for i in part])
            part_loss = ptx_loss(reply_logprobs(policy, forward, 1.0), forward.mask, count)
            (coefficient * part_loss).backward()
        loss += float(part_loss.detach())
    norm = team.summed_norm(parameters)
    for parameter, grad in zip(parameters, of_ppo, strict=True):
        if grad is not None:
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
    return {"ptx_loss": team.sum([loss])[0], "grad_norm_ptx": norm}
